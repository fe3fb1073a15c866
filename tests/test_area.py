"""Areas: memories are those of the hardware, totals are sums of figures, published areas beside them."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from amaranth.hdl import Fragment

from rtl.layer import FpgaLayer, PimLayer
from rtl.ram import ExportPlatform, Ram
from sim.area import Area, area_of, device_area, layer_area, memory_bits
from sim.cost import cost_of
from sim.gemv.area import Cost
from sim.sweep.chunks import run_point
from sim.sweep.evaluators import PRICES
from sim.sweep.findings import find
from sim.sweep.run import run_sweep
from sim.sweep.space import load_space, read_space
from sim.synth import export_block, gate_counts
from sim.system.area import system_area
from sim.system.blocks import one_unit
from sim.workload import scaled_model
from spec.design import DeepBlock, DesignSpec, Engine, Format, Multiplier, RouterPlace
from spec.energy import Figure
from spec.errors import InputError
from spec.geometry import ImageGeometry
from spec.load import (
    load_area,
    load_design,
    load_device,
    load_prices,
    load_sources,
    load_system,
    preset_names,
)
from spec.model import ModelSpec
from tests.test_sweep import Here, Silent

TABLE = load_area("cells-45nm")


def hardware_memories(
    model: ModelSpec, design: DesignSpec, monkeypatch: pytest.MonkeyPatch
) -> Counter[tuple[int, int, int]]:
    """Return how many memories a layer's hardware has of each width, depth and number of copies.

    There is a copy for each read port.
    """
    found: Counter[tuple[int, int, int]] = Counter()
    instances = Ram._elaborate_instances

    def counted(self: Ram) -> object:
        found[self.width, self.depth, self.num_read_ports] += 1
        return instances(self)

    with monkeypatch.context() as patched:
        patched.setattr(Ram, "_elaborate_instances", counted)
        layer = PimLayer(model, design) if design.engine is Engine.PIM else FpgaLayer(model, design)
        Fragment.get(layer, ExportPlatform())
    return found


SMALL = {"gate": {"lanes": 16, "logits_per_cycle": 1}, "array": {"rows": 4, "cols": 16, "act_lanes": 2}}


def small(name: str, number_format: str = "bf16", **changes: object) -> DesignSpec:
    design = load_design(name, number_format)
    parts: dict[str, object] = {"gate": replace(design.gate, **SMALL["gate"])}
    if design.array is not None:
        parts["array"] = replace(design.array, **SMALL["array"])
    return replace(design, **(parts | changes))


@pytest.mark.parametrize(
    ("model", "design"),
    [
        ("mixtral-8x7b", small("fpga")),
        ("deepseek-v3", small("fpga", "int8", window_tokens=16)),
        ("mixtral-8x7b", small("pim-small")),
        pytest.param("mixtral-8x7b", small("fpga", deep=tuple(DeepBlock)), marks=pytest.mark.long),
        pytest.param("deepseek-v3", load_design("fpga"), marks=pytest.mark.long),
        pytest.param("gpt-oss-20b", load_design("pim", "mxfp4"), marks=pytest.mark.long),
        pytest.param("olmoe-1b-7b", load_design("pim"), marks=pytest.mark.long),
        pytest.param("switch-base-128", load_design("fpga"), marks=pytest.mark.long),
    ],
)
def test_memories_are_those_of_the_hardware(model, design, monkeypatch):
    """Each that is counted is one there, or several alike; all but tables, queues and lists are counted."""
    scaled = scaled_model(model, 64)
    counted, hardware = memory_bits(scaled, design), hardware_memories(scaled, design, monkeypatch)
    alike = {n * math.prod(size) for size, count in hardware.items() for n in range(count + 1)}
    for name, bits in counted.items():
        assert bits in alike, name
    total = sum(count * math.prod(size) for size, count in hardware.items())
    assert 0.9 <= sum(counted.values()) / total <= 1


def test_an_area_is_the_sum_of_its_parts():
    model, design = scaled_model("mixtral-8x7b", 64), small("fpga")
    area = layer_area(model, design)
    assert area.counts["mac_bf16"] == 4 * 16 + 16 + 2
    assert area.counts["mac_int8"] == 0
    assert area.counts["register_bit"] == 2 * 4 * 16 * 16
    assert area.total == pytest.approx(
        1e-6 * sum(count * getattr(TABLE, name).value for name, count in area.counts.items())
    )
    assert area.low < area.total < area.high
    # Sums of gate and up, each with a copy for two readers, of 4 rows and 2 x 32 tokens.
    assert memory_bits(model, design)["accumulators"] == 2 * 2 * (4 * 32) * (2 * 32)
    narrow = layer_area(model, small("fpga", "int8"))
    assert narrow.counts["mac_int8"] == 4 * 16
    assert narrow.counts["mac_bf16"] == 16 + 2
    assert narrow.total < area.total


def test_what_lies_in_a_dram_has_a_wider_range():
    counts = {"mac_bf16": 100}
    logic, dram = area_of(TABLE, counts), area_of(TABLE, counts, in_dram=True)
    assert dram.total == logic.total
    assert dram.low == pytest.approx(logic.low * (20 / 45) ** 2)
    assert dram.high == 2 * logic.high


def test_more_of_everything_is_more():
    model = scaled_model("mixtral-8x7b", 64)
    for name, changed in {
        "fpga": [{"window_tokens": 64}, {"gate": replace(load_design("fpga").gate, lanes=128)}],
        "pim": [{"pim": replace(load_design("pim").pim, channels=4)}],
    }.items():
        before = layer_area(model, load_design(name)).total
        for one in changed:
            assert layer_area(model, replace(load_design(name), **one)).total > before, one


def test_units_of_a_device():
    """Buffers and registers as its file has them; what is not known has no area, and is not 0."""
    duplex = device_area(load_device("duplex"), 32)
    assert duplex.counts["mac_bf16"] == 32 * 512
    assert duplex.counts["memory_bit"] == 32 * 8192 * 8
    monde = load_device("monde")
    half, whole = device_area(monde, 20), device_area(monde, 40)
    assert whole.counts["memory_bit"] == 8 * monde.buffer_bytes == 2 * half.counts["memory_bit"]
    assert device_area(replace(monde, buffer_bytes=0), 40) is None
    assert device_area(replace(load_device("gddr6-aim"), element_bits=4), 1) is None


def test_a_sweep_has_areas_as_figures_and_objectives(tmp_path):
    table = {
        "fixed": {"model": "mixtral-8x7b", "scale": 64, "tokens": 64, "design": "fpga"},
        "axes": {"design.array.rows": [16, 32, 64], "design.window_tokens": [8, 16]},
        "columns": {"cost": "2 * area_mm2 + memory_bits / 1e6"},
        "objectives": {"seconds": "min", "area_mm2": "min", "cost": "min"},
    }
    of = read_space(table, "s")
    rows = {choices: run_point(of, choices).figures for choices in of.candidates()}
    names = [*of.kind.figures, *of.columns]
    for choices, figures in rows.items():
        row = dict(zip(names, figures, strict=True))
        specs, _ = of.resolve(of.taken(choices))
        area = layer_area(specs["model"].scaled(64), specs["design"])
        assert (row["area_low_mm2"], row["area_mm2"], row["area_high_mm2"]) == (
            area.low,
            area.total,
            area.high,
        )
        assert row["cost"] == 2 * area.total + area.counts["memory_bit"] / 1e6
    run_sweep(of, tmp_path / "s.parquet", Here, Silent())
    front = find(of, tmp_path / "s.parquet").front
    # A longer window is faster and larger; the smallest is on the front.
    assert len(front) > 1
    areas = [row["area_mm2"] for row in front]
    assert min(areas) == min(row[names.index("area_mm2")] for row in rows.values())
    product = read_space(
        {
            "evaluate": "gemv",
            "fixed": {"channels": 2, "rows": 64, "cols": 64},
            "axes": {"device": ["duplex"]},
        },
        "g",
    )
    (choices,) = product.candidates()
    found = dict(zip(product.kind.figures, run_point(product, choices).figures, strict=True))
    assert found["area_mm2"] == device_area(load_device("duplex"), 2).total


# Systems, and what it all costs.


def test_a_system_is_its_parts_on_each_device():
    """Declared dies and their ranges, as often as there are devices; what nobody has published is named."""
    model = scaled_model("mixtral-8x7b", 64)
    four, one = system_area(load_system("duplex-4"), model), system_area(load_system("duplex"), model)
    host, near = load_system("duplex").host.area_mm2, load_system("duplex").near.area_mm2
    assert {name: area.total for name, area in one.dies.items()} == {"host": 814, "near": 89}
    assert (four.total.low, four.total.total) == (4 * (host.least + near.least), 4 * (814 + 89))
    assert four.cells == {} and four.missing == ()
    unknown = system_area(load_system("sieve"), model)
    assert (unknown.total, unknown.missing) == (None, ("near.area_mm2",))
    assert unknown.as_json()["area_mm2"] is None
    assert unknown.as_json()["area"]["missing"] == ["near.area_mm2"]


def test_an_accelerator_beside_a_host_is_its_units_without_what_routes():
    model, machine = scaled_model("mixtral-8x7b", 64), load_system("a100-pim")
    design, units = machine.near.block, int(machine.units.value)
    area = system_area(machine, model).cells["near accelerator"]
    tile = design.tile
    assert area.counts["mac_bf16"] == units * tile.rows * tile.cols
    # A whole accelerator of a single channel has gate and combiner beside it.
    whole = layer_area(model, one_unit(design))
    assert area.total < units * whole.total
    extra = whole.counts["mac_bf16"] - tile.rows * tile.cols
    assert extra == tile.act_lanes + (0 if design.pim.router is RouterPlace.BANKS else design.gate.lanes)
    alone = system_area(load_system("fpga"), model)
    assert alone.total.total == layer_area(model, load_design("fpga")).total


def test_a_cost_is_silicon_and_memory_at_each_end():
    prices = load_prices("wafers-2020")
    cells, dies = Area(10.0, 4.0, 30.0, {}), Area(800.0, 700.0, 900.0, {})
    cost = cost_of(2e9, cells=cells, dies=dies)
    for end, price, area in (("total", "value", "total"), ("low", "low", "low"), ("high", "high", "high")):
        assert getattr(cost, end) == pytest.approx(
            getattr(cells, area) * getattr(prices.cells_mm2, price)
            + getattr(dies, area) * getattr(prices.dies_mm2, price)
            + 2 * getattr(prices.memory_gb, price)
        )
    own = cost_of(2e9, cells=cells, prices={"cells_mm2": 1.0, "memory_gb": 5.0})
    assert (own.low, own.total, own.high) == (4 + 10, 10 + 10, 30 + 10)


def test_a_sweep_has_costs_of_each_kind_of_point(tmp_path):
    """As figures and objectives; prices are the table's, or the space's own, also as an axis."""
    of = read_space(
        {
            "evaluate": "system",
            "fixed": {"model": "mixtral-8x7b", "scale": 64, "tokens": 4, "dies_usd_per_mm2": 0.5},
            "axes": {"system": ["duplex", "sieve", "fpga"], "memory_usd_per_gb": [3, 10.5]},
            "objectives": {"seconds": "min", "area_mm2": "min", "cost_usd": "min"},
        },
        "s",
    )
    run_sweep(of, tmp_path / "s.parquet", Here, Silent())
    rows = {
        (row["system"], row["memory_usd_per_gb"]): row
        for row in pq.read_table(tmp_path / "s.parquet").to_pylist()
    }
    assert all(row["error"] is None for row in rows.values())
    model = scaled_model("mixtral-8x7b", 64)
    gigabytes = 2 * model.expert_params * model.num_moe_layers / 1e9
    cheap, dear = rows["duplex", 3.0], rows["duplex", 10.5]
    assert cheap["memory_gb"] == gigabytes
    assert cheap["cost_usd"] == pytest.approx(0.5 * 903 + 3 * gigabytes)
    assert cheap["cost_low_usd"] == pytest.approx(0.5 * (814 + 34.6) + 3 * gigabytes)
    assert dear["cost_usd"] - cheap["cost_usd"] == pytest.approx(7.5 * gigabytes)
    assert rows["sieve", 3.0]["area_mm2"] is rows["sieve", 3.0]["cost_usd"] is None
    assert rows["sieve", 3.0]["seconds"] > 0
    prices = load_prices("wafers-2020")
    cells = layer_area(model, load_design("fpga"))
    assert rows["fpga", 3.0]["cost_high_usd"] == pytest.approx(
        cells.high * prices.cells_mm2.high + 3 * gigabytes
    )
    front = find(of, tmp_path / "s.parquet").front
    assert {row["system"] for row in front} == {"duplex", "fpga"}
    layer = read_space({"fixed": {"model": "olmoe-1b-7b", "scale": 64}, "axes": {"design": ["fpga"]}}, "l")
    (choices,) = layer.candidates()
    found = dict(zip(layer.kind.figures, run_point(layer, choices).figures, strict=True))
    image = ImageGeometry.of(scaled_model("olmoe-1b-7b", 64), load_design("fpga"))
    assert found["memory_gb"] == image.num_bytes / 1e9
    assert found["cost_usd"] == pytest.approx(
        found["area_mm2"] * prices.cells_mm2.value + found["memory_gb"] * prices.memory_gb.value
    )


@pytest.mark.parametrize(
    ("price", "line"),
    [
        ('"much"', "fixed.memory_usd_per_gb: must be a number, not 'much'"),
        ("true", "fixed.memory_usd_per_gb: must be a number, not True"),
        ("-1", "fixed.memory_usd_per_gb: must be a finite number of at least 0, not -1"),
        ("nan", "fixed.memory_usd_per_gb: must be a finite number of at least 0, not nan"),
        ("inf", "fixed.memory_usd_per_gb: must be a finite number of at least 0, not inf"),
    ],
)
def test_a_price_that_is_none_is_one_line(tmp_path, price, line):
    file = tmp_path / "s.toml"
    fixed = f'model = "mixtral-8x7b"\nmemory_usd_per_gb = {price}'
    file.write_text(f'[fixed]\n{fixed}\n[axes]\ndesign = ["fpga"]\n')
    with pytest.raises(InputError, match=rf"\A{re.escape(f'{file}: {line}')}\Z"):
        load_space(str(file))


def test_dual_multipliers_and_deep_gates_have_figures_of_their_own():
    """As many MACs, of another kind: all of the array, all of the gate, none of the combiner."""
    model, design = scaled_model("mixtral-8x7b", 64), small("fpga", "int8")
    dual = replace(design, array=replace(design.array, multiplier=Multiplier.DUAL))
    single, paired = layer_area(model, design), layer_area(model, dual)
    assert paired.counts == single.counts | {"mac_int8": 0, "mac_int8_dual": 64}
    change = TABLE.mac_int8_dual.value - TABLE.mac_int8.value
    assert paired.total - single.total == pytest.approx(64e-6 * change)
    short = small("fpga")
    deep = layer_area(model, replace(short, deep=(DeepBlock.GATE, DeepBlock.DISPATCH)))
    before = layer_area(model, short).counts | {"memory_bit": deep.counts["memory_bit"]}
    assert deep.counts == before | {"mac_bf16": 64 + 2, "mac_bf16_deep": 16}
    assert deep.total > layer_area(model, short).total


@pytest.mark.long
@pytest.mark.parametrize(
    ("number_format", "multiplier"),
    [
        (Format.BF16, Multiplier.SINGLE),
        (Format.INT8, Multiplier.SINGLE),
        (Format.INT8, Multiplier.DUAL),
    ],
)
def test_a_mac_is_what_the_verilog_has_more_of_with_more_of_them(number_format, multiplier):
    model = scaled_model("mixtral-8x7b", 64)
    cells = []
    for rows in (2, 4):
        design = small("fpga", number_format)
        design = replace(
            design,
            array=replace(design.array, rows=rows, multiplier=multiplier),
            memory=replace(design.memory, width_bits=128),
        )
        directory, name = export_block(model, design, "expert")
        cells.append(
            (Cost.of(gate_counts(directory, name, boxes="*none_such")).um2, layer_area(model, design))
        )
    (few, before), (many, after) = cells
    registers = after.counts["register_bit"] - before.counts["register_bit"]
    dual = "_dual" if multiplier is Multiplier.DUAL else ""
    figure = getattr(TABLE, f"mac_{number_format}{dual}")
    measured = (many - few - registers * TABLE.register_bit.value) / (2 * 16)
    assert figure.value == pytest.approx(measured, abs=0.5)
    if number_format is Format.INT8:
        assert figure.high == pytest.approx((many - few) / (2 * 16), abs=0.5)


@pytest.mark.long
def test_a_deep_gates_mac_is_what_its_verilog_has_more_of_with_more_lanes():
    model, cells = scaled_model("mixtral-8x7b", 64), []
    for lanes in (16, 32):
        design = small("fpga", deep=(DeepBlock.GATE,))
        design = replace(design, gate=replace(design.gate, lanes=lanes))
        directory, name = export_block(model, design, "gate")
        cells.append(Cost.of(gate_counts(directory, name, boxes="*none_such")).um2)
    assert TABLE.mac_bf16_deep.value == pytest.approx((cells[1] - cells[0]) / 16, abs=0.5)


def test_published_areas_lie_in_the_range_that_a_shrink_leaves():
    """MoNDE's cores: 2.95 to 3.0 mm2 at 28 nm. No figure was fitted to it."""
    shrink = (28 / 45) ** 2
    monde = device_area(load_device("monde"), 40)
    assert shrink * monde.low < 2.95 < 3.0 < shrink * monde.high


def test_the_page_has_the_figures_and_the_published_areas():
    page = (Path(__file__).parent.parent / "docs" / "sweep.md").read_text()
    sources = load_sources("area", TABLE.name)
    for name, entry in sources.items():
        figure = getattr(TABLE, name)
        row = re.search(rf"\| `{name}` \| ([\d.]+) \(([\d.]+) to ([\d.]+)\) \| (\w) \|", page)
        shown = [f"{float(text):.2g}" for text in row.groups()[:3]]
        assert shown == [f"{value:.2g}" for value in (figure.value, figure.low, figure.high)]
        assert row[4] == entry["grade"]
    for option, name in PRICES.items():
        figure = getattr(load_prices("wafers-2020"), name)
        assert f"| `{option}` | {figure.value:g} ({figure.low:g} to {figure.high:g}) |" in page
    monde = device_area(load_device("monde"), 40)
    macs = area_of(TABLE, {"mac_bf16": device_area(load_device("duplex"), 32).counts["mac_bf16"]})
    for area, nm in ((monde, 28), (macs, 7)):
        low, value, high = ((nm / 45) ** 2 * one for one in (area.low, area.total, area.high))
        assert f"({low:.1f} to {high:.1f}, value {value:.1f})" in page


@pytest.mark.parametrize(
    ("load", "kind", "name"),
    [
        *((load_area, "area", name) for name in preset_names("area")),
        *((load_prices, "prices", name) for name in preset_names("prices")),
    ],
)
def test_each_figure_has_a_source(load, kind, name):
    table, sources = load(name), load_sources(kind, name)
    figures = {key for key, value in vars(table).items() if isinstance(value, Figure)}
    assert figures == set(sources)
    assert all(entry["grade"] in "ABCD" for entry in sources.values())


def test_a_table_without_a_figure_is_one_line(tmp_path):
    file = tmp_path / "a.toml"
    file.write_text('name = "a"\nmac_bf16 = { value = 1, low = 2, high = 3 }\n')
    with pytest.raises(InputError, match=rf"\A{file}: mac_bf16\.low: must be above 0 and at most value=1\.0"):
        load_area(str(file))
    file.write_text('name = "a"\n')
    with pytest.raises(InputError, match=rf"\A{file}: mac_bf16: is missing\Z"):
        load_area(str(file))
