"""Energy: counts by hand, components that add up, figures that are missing, tables that are complete."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sim import accelerator
from sim.cli import main
from sim.commands import reports
from sim.energy import Energy, check_table, energy_of, pim_engine_counts
from sim.pim_report import run_pim_model
from sim.routing import Routing, draw_ids
from spec.design import INTEGER_FORMATS, BankMode, Format
from spec.energy import COMPONENTS, FIGURES, POWERS, EnergyTable, Figure
from spec.errors import InputError
from spec.load import load_design, load_energy, load_model, load_sources, preset_names
from spec.model import AppliedTo

TABLES = preset_names("energy")
TINY = Path(__file__).parent / "tiny.toml"
SIM = ["sim", "--model", "mixtral-8x7b", "--scale", "64", "--engine", "model"]


def run_of(design_name: str, number_format: Format = Format.BF16, tokens: int = 5) -> accelerator.Report:
    """Return the cycle model's report of a small layer."""
    model = load_model("mixtral-8x7b").scaled(64)
    design = replace(load_design(design_name), format=number_format)
    ids = draw_ids(model.gating, Routing("uniform"), tokens, 1)
    run = accelerator.run_model if design_name == "fpga" else run_pim_model
    return run(model, design, ids, "uniform")


@pytest.mark.parametrize("name", TABLES)
def test_every_table_loads_and_names_the_source_of_each_figure(name):
    table, sources = load_energy(name), load_sources("energy", name)
    assert table.name == name
    assert {figure for figure in FIGURES if getattr(table, figure) is not None} == set(sources)


def test_every_figure_has_a_component_and_some_table():
    assert set(COMPONENTS) == set(FIGURES)
    assert set(POWERS) <= set(FIGURES)
    tables = [load_energy(name) for name in TABLES]
    assert [name for name in FIGURES if not any(getattr(table, name) for table in tables)] == []


@pytest.mark.parametrize("design", ["fpga", "pim"])
@pytest.mark.parametrize("number_format", [Format.BF16, *INTEGER_FORMATS])
def test_components_add_up_and_lie_in_the_range(design, number_format):
    report = run_of(design, number_format)
    energy = report.energy
    assert report.energy_j == energy.total == sum(energy.components.values())
    assert energy.low < energy.total < energy.high
    assert all(joules > 0 for joules in energy.components.values())
    assert ("mac_int8" in energy.counts) is number_format.integer
    json_report = report.as_json()["energy"]
    assert json_report["components_j"] == energy.components
    assert (json_report["low_j"], json_report["high_j"]) == (energy.low, energy.high)


def test_counts_of_a_layer_by_hand():
    """mixtral-8x7b / 64: d_model 64, d_expert 224, 8 experts, top 2; arrays of 16 x 16."""
    report = run_of("fpga", tokens=5)
    counts = report.energy.counts
    # Three matrices of 4 x 14 tiles for each of 10 pairs; 64 lanes take a token's 8 x 64 products in 8 steps;
    # the combiner multiplies 10 x 64 elements.
    assert counts["mac_bf16"] == 10 * 3 * 4 * 14 * 256 + 5 * 8 * 64 + 10 * 64
    assert counts["activation"] == 10 * 224
    assert counts["compare"] == 5 * 8 * 2
    assert counts["link_bit"] == 2 * 5 * 64 * 16
    # A beat a cycle on the weight port, 256 bits each.
    assert counts["memory_bit"] == report.utilisation["bandwidth"] * report.cycles["model"] * 256
    assert counts["logic_static"] == counts["memory_background"] == 1
    power = load_energy("ecp5-ddr4").logic_static.value * 1e-3
    assert report.energy.components["static"] == pytest.approx(power * report.seconds, rel=1e-12)


def test_counts_of_terms_of_other_families_by_hand():
    """As above, 5 tokens, what each term adds to it."""
    model = load_model("mixtral-8x7b").scaled(64)
    ids = np.tile([1, 6], (5, 1))

    def counts(design: str, gating: dict[str, object], **changes: object) -> dict[str, float]:
        other = replace(model, gating=replace(model.gating, **gating), **changes)
        run = accelerator.run_model if design == "fpga" else run_pim_model
        return run(other, load_design(design), ids, "given").energy.counts

    plain = {design: counts(design, {}) for design in ("fpga", "pim")}
    weighted = {"weight_applied_to": AppliedTo.INPUT}
    # For every input tile of two matrices; near memory once for the registers.
    assert counts("fpga", weighted)["mac_bf16"] - plain["fpga"]["mac_bf16"] == 10 * 2 * 14 * 64
    assert counts("pim", weighted)["mac_bf16"] - plain["pim"]["mac_bf16"] == 10 * 64
    # Expert 6 returns its input: neither its products nor those of its contributions.
    identity = counts("fpga", {"num_identity_experts": 2})
    assert plain["fpga"]["mac_bf16"] - identity["mac_bf16"] == 5 * 3 * 4 * 14 * 256 + 5 * 64 - 5 * 64
    assert identity["activation"] == plain["fpga"]["activation"] / 2
    biased = counts("fpga", {}, output_bias=True)
    assert biased["sram_bit"] - plain["fpga"]["sram_bit"] == 5 * 64 * 32
    assert biased["mac_bf16"] == plain["fpga"]["mac_bf16"]


def test_counts_of_the_banks_by_hand():
    design = load_design("pim")
    commands = {"activates": 3, "mac_commands": 7, "register_writes": 5, "register_reads": 2}
    counts = pim_engine_counts(design, fires=9, commands=commands, cycles=39000, hidden_values=11)
    assert counts["dram_activate"] == 3 * 16
    assert counts["dram_cell_bit"] == counts["dram_bank_bit"] == 7 * 16 * 256
    assert counts["dram_register_bit"] == 5 * 256 + 2 * 16 * 16
    assert counts["dram_refresh"] == 2 * 10
    assert counts["dram_background"] == 2
    assert counts["mac_bf16"] == 9 * 16 * 16
    assert counts["sram_bit"] == 9 * (16 * 16 + 2 * 16 * 32) + 11 * 16
    # One command each for the banks; a group of banks shares lanes; no refresh.
    single = replace(design, pim=replace(design.pim, bank_mode=BankMode.SINGLE_BANK, refresh=False))
    checked = pim_engine_counts(
        design.with_secded(), fires=9, commands=commands, cycles=39000, hidden_values=11
    )
    differing = {name for name in counts if checked[name] != counts[name]}
    assert {name: checked[name] / counts[name] for name in differing} == {
        "dram_cell_bit": 9 / 8,
        "dram_bank_bit": 9 / 8,
    }
    counts = pim_engine_counts(single, fires=9, commands=commands, cycles=39000, hidden_values=11)
    assert (counts["dram_activate"], counts["dram_cell_bit"], counts["dram_refresh"]) == (3, 7 * 256, 0)
    group = replace(design, pim=replace(design.pim, banks_per_unit=4))
    counts = pim_engine_counts(group, fires=9, commands=commands, cycles=39000, hidden_values=11)
    assert counts["dram_bank_group_bit"] == 7 * 4 * 256
    assert counts["dram_group_register_bit"] == 5 * 256 + 2 * 4 * 16
    assert not {"dram_bank_bit", "dram_register_bit"} & set(counts)


def test_a_missing_figure_is_an_error_and_never_zero():
    figure = Figure(value=2.0, low=1.0, high=4.0)
    table = EnergyTable(name="t", mac_bf16=figure)
    assert energy_of(table, {"mac_bf16": 3.0, "compare": 0.0}, 1.0).components == {"mac": 6e-12}
    message = "energy.compare: is missing in table t, and the run has such events"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        energy_of(table, {"mac_bf16": 3.0, "compare": 1.0}, 1.0)


@pytest.mark.parametrize("missing", [name for name in FIGURES if getattr(load_energy("ecp5-ddr4"), name)])
def test_every_figure_of_the_fpga_table_is_needed(missing):
    table = replace(load_energy("ecp5-ddr4"), **{missing: None})
    model = load_model("mixtral-8x7b").scaled(64)
    number_format = Format.INT8 if missing == "mac_int8" else Format.BF16
    design = replace(load_design("fpga"), energy=table, format=number_format)
    message = f"^energy.{missing}: is missing in table ecp5-ddr4"
    with pytest.raises(InputError, match=message):
        accelerator.run_model(model, design, np.array([[0, 1]]), "uniform")
    with pytest.raises(InputError, match=message):
        check_table(design)


def test_a_design_without_a_table_has_no_energy(capsys):
    assert main([*SIM, "--design", str(TINY), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["energy_j"] is None
    assert report["energy"] is None


def test_bad_tables_are_refused_in_one_line(tmp_path, capsys):
    table = tmp_path / "t.toml"
    design = tmp_path / "d.toml"
    design.write_text(TINY.read_text().replace("window_tokens", f'energy = "{table}"\nwindow_tokens', 1))
    for text, message in (
        ('name = "t"\nmac = 1.0', "mac: unknown key; known are"),
        ('name = "t"\nmac_bf16 = 1.0', "mac_bf16: must be a table, not 1.0"),
        (
            'name = "t"\nmac_bf16 = {value=1.0, low=2.0, high=3.0}',
            "mac_bf16.low: must be above 0 and at most",
        ),
        (
            'name = "t"\nmac_bf16 = {value=1.0, low=1.0, high=0.5}',
            "mac_bf16.high: must be at least value=1.0",
        ),
        ('name = "t"\nmac_bf16 = {value=nan, low=1.0, high=0.5}', "mac_bf16.value: must be finite, not nan"),
        ('name = "t"\nmac_bf16 = {value=0, low=0, high=0}', "mac_bf16.value: must be above 0"),
        ('name = "t"\nmac_bf16 = {value=1.0, low=1.0}', "mac_bf16.high: is missing"),
        ('name = "t"', "energy.mac_bf16: is missing in table t, and the run has such events"),
    ):
        table.write_text(text)
        # Before anything is built, where the Verilog is to run.
        assert main([*SIM, "--design", str(design), "--engine", "rtl"]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert len(captured.err.splitlines()) == 1
        assert message in captured.err


def test_a_step_has_the_energy_of_its_layers(capsys):
    arguments = ["sim", "--model", "olmoe-1b-7b", "--scale", "64", "--tokens", "2", "--json"]
    assert main([*arguments, "--phase", "decode"]) == 0
    step = json.loads(capsys.readouterr().out)
    layers = load_model("olmoe-1b-7b").num_moe_layers
    assert step["energy"]["counts"]["logic_static"] == layers
    assert step["energy_j"] == pytest.approx(sum(step["energy"]["components_j"].values()), rel=1e-12)


def test_energy_for_people():
    energy = Energy("t", {"mac": 1e-6, "sram": 3e-6}, 2e-6, 5e-3, {})
    text = "energy 4 uJ by table t (2 uJ to 5 mJ over its figures' ranges): sram 75.0%, mac 25.0%"
    assert reports._energy(energy) == text


def test_the_page_has_the_tables_figures():
    page = (Path(__file__).parents[1] / "docs" / "energy.md").read_text()
    for name in FIGURES:
        cells = [getattr(load_energy(table), name) for table in TABLES]
        texts = ["-" if cell is None else f"{cell.value:g} ({cell.low:g} to {cell.high:g})" for cell in cells]
        unit = "mW" if name in POWERS else "pJ"
        assert f"| `{name}` | {unit} | {COMPONENTS[name]} | {' | '.join(texts)} |" in page
