"""Energy of products on devices: events against their logs, components, ranges, figures that are missing."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from sim.cli import main
from sim.gemv import lockstep, streamed
from sim.gemv.commands import EVEN, Kind, PowerLimits, Product, timings
from sim.gemv.energy import gemv_counts, gemv_energy
from sim.gemv.report import Options, run_gemv
from spec.device import PimDevice, Schedule, UnitLevel
from spec.errors import InputError
from spec.files import PRESETS
from spec.load import load_device, load_energy, preset_names
from tests.test_pim_gemv import products

DEVICES = [load_device(name) for name in preset_names("devices")]
WITH_TABLE = [device for device in DEVICES if device.energy is not None]
NAMES = {"argvalues": WITH_TABLE, "ids": lambda device: device.name}
SHAPE = ["--channels", "4", "--rows", "300", "--cols", "500"]
MACS = {8: "mac_int8", 16: "mac_bf16"}
REGISTERS = {
    UnitLevel.BANK: "dram_register_bit",
    UnitLevel.BANK_GROUP: "dram_group_register_bit",
    UnitLevel.LOGIC_DIE: "dram_die_register_bit",
}
BIG = Product(rows=4096, cols=4096, channels=64, batch=4)


def banks_at_once(device: PimDevice) -> int:
    """Return the banks that a command to all of a set goes to."""
    return 1 if device.schedule is Schedule.PINS else device.banks_per_mac or device.units


def banks_opened(device: PimDevice, log: np.ndarray) -> int:
    acts = log[log[:, 1] == Kind.ACT, 2]
    per_set = banks_at_once(device)
    return int((acts < EVEN).sum() + per_set * (acts >= EVEN).sum())


@pytest.mark.parametrize("device", **NAMES)
def test_events_are_those_of_the_log(device):
    for product in products(8, 8, most=900):
        run = run_gemv(device, product, log=True)
        counts, log, channels = gemv_counts(run), run.log, product.channels
        assert counts["dram_activate"] == channels * banks_opened(device, log)
        assert counts["dram_refresh"] == channels * (log[:, 1] == Kind.REF).sum()
        macs = int((log[:, 1] == Kind.MAC).sum()) * banks_at_once(device)
        paths = {"dram_bank_bit", "dram_bank_group_bit", "dram_logic_die_bit", "dram_pin_bit"}
        [path] = paths & set(counts)
        assert counts[path] == channels * macs * 256
        assert counts[MACS[device.element_bits]] >= product.macs
        assert counts["dram_cell_bit"] >= counts[path]
        registers = int((log[:, 1] == Kind.REG).sum())
        if device.schedule is Schedule.LOCKSTEP:
            registers += int((log[:, 1] == Kind.RD).sum())
            assert counts[REGISTERS[device.level]] == channels * registers * 256
            assert len({*REGISTERS.values()} & set(counts)) == 1
            assert counts["dram_cell_bit"] == counts[path]
        bits = product.rows * device.result_bits + product.cols * device.element_bits
        assert counts["link_bit"] == product.batch * bits


def test_counts_of_a_product_by_hand():
    """64 x 256 on a channel of hbm2-pim: 8 outputs of 16 bursts in each unit, 128 MACs in 4 rows."""
    run = run_gemv(load_device("hbm2-pim"), Product(rows=64, cols=256, channels=1))
    layout = streamed.layout(run.device, run.product, timings(run.device.timed, PowerLimits()))
    assert (layout.outputs, layout.bursts, layout.slices) == (8, 16, 1)
    assert gemv_counts(run) == {
        "mac_bf16": 64 * 256,
        # Of each unit: a burst of inputs for each MAC, one of sums read and written; 16 inputs, the mode's
        # three registers and 8 sums once.
        "sram_bit": 8 * 256 * (3 * 128 + 16 + 3 + 8),
        "link_bit": 16 * (64 + 256),
        # Four rows of weights, one of results, two of the mode, in 8 banks each; four banks for the mode.
        "dram_activate": 8 * (4 + 1 + 2) + 4,
        # MACs; results and the mode's last rows written, 4 banks before; results read.
        "dram_cell_bit": 256 * (8 * 128 + 8 * (8 + 2) + 4 + 8 * 8),
        "dram_bank_bit": 256 * 8 * 128,
        "dram_register_bit": 256 * (16 + 3 + 8 * (8 + 2) + 4 + 8 * 8),
        "dram_refresh": 0,
        "dram_background": 1,
        "host_add": 64 * 15,
    }


def test_counts_of_logic_pim_by_hand():
    """Two channels, 8 rows of 32 bursts in each of 8 banks; chunks of 32 bursts: 7 more sums than results."""
    product = Product(rows=16, cols=4096, channels=2, batch=8)
    run = run_gemv(load_device("duplex"), product, Options(refresh=False))
    layout = lockstep.layout(run.device, run.product, PowerLimits())
    assert (layout.outputs, layout.bursts, layout.slices, layout.entries) == (1, 256, 1, 256)
    counts = gemv_counts(run)
    assert counts["mac_bf16"] == 16 * 4096 * 8
    assert counts["dram_logic_die_bit"] == counts["dram_cell_bit"] == 16 * 4096 * 16
    assert counts["host_add"] == 16 * 8 * 7
    assert counts["dram_activate"] == 2 * 8 * 8
    # Inputs and sums stay on the logic die.
    assert counts["dram_die_register_bit"] == 2 * 256 * (256 * 8 + 8 * 8 * 8 // 16)
    assert "dram_register_bit" not in counts
    assert counts["dram_background"] == 2


@pytest.mark.parametrize("device", **NAMES)
def test_components_add_up_and_lie_in_the_range(device):
    energy = gemv_energy(run_gemv(device, BIG))
    assert energy.total == sum(energy.components.values())
    assert energy.low < energy.total < energy.high
    parts = {"mac", "sram", "link", "dram_core", "dram_path", "dram_refresh", "dram_background"}
    # Cores behind the pins leave the host nothing to add.
    assert set(energy.components) == parts | (set() if device.schedule is Schedule.PINS else {"host"})
    assert all(joules > 0 for joules in energy.components.values())


@pytest.mark.parametrize("device", **NAMES)
def test_a_missing_figure_is_an_error(device):
    run = run_gemv(device, BIG)
    for name, count in gemv_counts(run).items():
        if device.schedule is Schedule.PINS and name in ("dram_die_register_bit", "host_add"):
            assert count == 0  # inputs and sums stay in the cores' buffer
            continue
        assert count > 0
        less = replace(device, energy=replace(device.energy, **{name: None}))
        rule = f"energy.{name}: is missing in table {device.energy.name}, and the run has such events"
        with pytest.raises(InputError, match=f"^{re.escape(rule)}$"):
            gemv_energy(replace(run, device=less))


def test_tokens_that_share_a_burst_save_the_reads_of_banks():
    """Four tokens with one read of the weights; the same products, four times the writes of inputs."""
    alone = gemv_energy(run_gemv(load_device("hbm2-pim"), BIG))
    shared = gemv_energy(run_gemv(load_device("hbm2-pim-quad"), BIG))
    assert shared.counts["mac_bf16"] == alone.counts["mac_bf16"]
    assert shared.counts["dram_bank_bit"] == alone.counts["dram_bank_bit"] / 4
    assert shared.components["dram_core"] < 0.27 * alone.components["dram_core"]
    assert alone.components["sram"] < shared.components["sram"] < 1.13 * alone.components["sram"]
    assert shared.total < alone.total


def test_the_path_of_a_bit_is_what_separates_duplex_and_its_rivals():
    """Read energies of a bit as published: 1.81 pJ to the logic die, 2.68 to a group, 0.73 at a bank."""
    table = load_energy("hbm3-near-memory")
    for path, published in (
        ("dram_logic_die_bit", 0.464e3 / 256),
        ("dram_bank_group_bit", 0.686e3 / 256),
        ("dram_bank_bit", 0.187e3 / 256),
        ("dram_pin_bit", 0.891e3 / 256),
    ):
        assert table.dram_cell_bit.value + getattr(table, path).value == pytest.approx(published, abs=0.01)
    # Inputs and sums: the nearer the units are to the banks, the farther from the controller.
    ways = [getattr(table, name).value for name in REGISTERS.values()]
    assert ways == sorted(ways, reverse=True)
    energies = {
        name: gemv_energy(run_gemv(load_device(name), replace(BIG, channels=32, batch=8)))
        for name in ("duplex", "duplex-bank-group-pim", "duplex-bank-pim")
    }
    # A bank's own lanes read once for each token: eight times the cells, on the shortest way.
    cells = {name: energy.counts["dram_cell_bit"] for name, energy in energies.items()}
    assert cells["duplex-bank-pim"] == 8 * cells["duplex"] == 8 * cells["duplex-bank-group-pim"]
    assert energies["duplex"].total < energies["duplex-bank-group-pim"].total
    assert energies["duplex"].total < energies["duplex-bank-pim"].total


def test_energy_on_the_command_line(capsys):
    assert main(["pim", "gemv", "--design", "duplex", *SHAPE, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    energy = result["energy"]
    assert result["energy_j"] == sum(energy["components_j"].values())
    assert energy["low_j"] < result["energy_j"] < energy["high_j"]
    assert main(["pim", "gemv", "--design", "duplex", *SHAPE]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"J \([0-9.e-]+ to [0-9.e-]+ by table hbm3-near-memory\)", shown)


def test_no_table_is_no_energy_and_not_zero(capsys, tmp_path):
    text = (PRESETS / "devices" / "duplex.toml").read_text()
    (tmp_path / "d.toml").write_text(text.replace('energy = "hbm3-near-memory"\n', ""))
    arguments = ["pim", "gemv", "--design", str(tmp_path / "d.toml"), *SHAPE]
    assert main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["energy_j"] is result["energy"] is None
    assert main(arguments) == 0
    assert re.search(r"energy +not known: the device names no table", capsys.readouterr().out)


def test_every_device_with_a_schedule_has_energies():
    assert {one.name for one in DEVICES if one.schedule is not Schedule.NONE} == {
        one.name for one in WITH_TABLE
    }


def test_a_table_without_a_figure_ends_in_a_line(capsys, tmp_path):
    file, table = tmp_path / "d.toml", tmp_path / "t.toml"
    table.write_text('name = "t"\nmac_bf16 = { value = 1.0, low = 1.0, high = 2.0 }\n')
    text = (PRESETS / "devices" / "duplex.toml").read_text()
    assert text.count('energy = "hbm3-near-memory"') == 1
    file.write_text(text.replace('"hbm3-near-memory"', f'"{table}"'))
    assert main(["pim", "gemv", "--design", str(file), *SHAPE, "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    rule = "energy.sram_bit: is missing in table t, and the run has such events"
    assert captured.err == f"expertbank: {rule}\n"


def test_cores_behind_the_pins_with_a_table_of_ones_own():
    monde = replace(load_device("monde"), energy=load_energy("hbm3-near-memory"))
    run = run_gemv(monde, Product(rows=512, cols=512, channels=4, batch=3), log=True)
    counts = gemv_counts(run)
    assert counts["dram_pin_bit"] == counts["dram_cell_bit"] == 512 * 512 * 16
    assert counts["mac_bf16"] == 3 * 512 * 512
    assert counts["dram_activate"] == 4 * (run.log[:, 1] == Kind.ACT).sum()
    assert gemv_energy(run).total > 0
