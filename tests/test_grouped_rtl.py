"""Decoding and scaling of stored weights against golden, bit for bit, and their latency."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from amaranth import Cat, Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

import rtl.grouped
from golden.formats import accumulate, burst_sum, f32_flush
from golden.grouped import element_table, scale_values, scaled
from rtl.arith import F32, Accumulate, Burst, delay
from rtl.export import export
from rtl.grouped import (
    ELEMENT_BITS,
    DecodeElements,
    DualBurst,
    DualSignificandMultiplier,
    ScaleSum,
    SumInPairs,
    f32_of_sum,
    factor_of,
    sum_of_f32,
)
from spec.design import GROUPS, Format, Pipeline
from tests.bfm import pack, run_pipeline
from tests.block_bench import plant_bug
from tests.gates import Gates
from tests.test_arith import agree, bf16_patterns, burst_value

FORMATS = tuple(GROUPS)


def decoded(number_format: Format) -> list[int]:
    """Return what the hardware makes of every element, two at a time."""
    dut = DecodeElements(number_format, 2)
    bits, out = number_format.bits, []

    async def bench(ctx):
        for code in range(1 << bits):
            ctx.set(dut.i, code | (~code & ((1 << bits) - 1)) << bits)
            await ctx.delay(1e-9)
            out.append((ctx.get(dut.o) & 0xFFFF, ctx.get(dut.o) >> 16))

    simulator = Simulator(dut)
    simulator.add_testbench(bench)
    simulator.run()
    assert [high for _, high in out] == [low for low, _ in reversed(out)]
    return [low for low, _ in out]


@pytest.mark.parametrize("number_format", FORMATS)
def test_every_element_decodes(number_format):
    """A zero may have a sign in hardware, where every zero is zero."""
    want = element_table(number_format).tolist()
    assert [code if code != 0x8000 else 0 for code in decoded(number_format)] == want


@pytest.mark.parametrize("number_format", FORMATS)
def test_the_bits_that_a_dual_multiplier_leaves_out_are_zero(number_format):
    """In every element's significand; none of those that it takes is zero in all."""
    fractions = element_table(number_format) & 0x7F
    kept = 8 - ELEMENT_BITS
    assert not (fractions & ((1 << kept) - 1)).any()
    bits = {Format.FP8: 4, Format.INT4: 3, Format.MXFP4: 2}[number_format]
    assert np.bitwise_or.reduce(fractions) == 0x80 - (1 << (8 - bits))


def test_dual_significand_multiplier():
    """Every pair of corners with every corner, and what is drawn."""
    corners = list(itertools.product((0, 1, 0x80, 0xFF), (0, 1, 8, 15), (0, 1, 8, 15)))
    drawn = np.random.default_rng(6).integers(0, (256, 16, 16), (1000, 3))
    x, w_0, w_1 = np.concatenate([corners, drawn]).T
    inputs = {"x": x, "w_0": w_0, "w_1": w_1}
    latency = DualSignificandMultiplier.LATENCY
    got = run_pipeline(DualSignificandMultiplier(), inputs, ["p_0", "p_1"], latency)
    agree(got["p_0"], x * w_0, "lower product", x, w_0, w_1)
    agree(got["p_1"], x * w_1, "upper product", x, w_0, w_1)


DUAL_SOURCE = (Path(rtl.grouped.__file__).parent / "eb_dual_significand_multiplier.v").read_text()


def wrong_products(source: str, folder: Path) -> int:
    """Return how many of all 2**17 products the gates of a Verilog file have wrong."""
    operands = np.arange(1 << 16)
    x = operands.astype(np.uint8)
    weights = [(operands >> place).astype(np.uint8) & 15 for place in (8, 12)]
    got = Gates(source, folder).outputs(x=x, w_0=weights[0], w_1=weights[1])
    return sum(np.count_nonzero(got[f"p_{row}"] != x.astype(int) * weights[row]) for row in range(2))


@pytest.mark.slow
def test_every_product_of_the_dual_significand_multiplier(tmp_path):
    """All 2**16 operands, through the gates that Yosys makes of the Verilog file itself."""
    assert wrong_products(DUAL_SOURCE, tmp_path) == 0


@pytest.mark.long
def test_a_product_too_near_and_a_sum_too_narrow_are_seen(tmp_path):
    narrow = DUAL_SOURCE.replace("reg  [23:0] product_q", "reg  [22:0] product_q")
    # The top bit of the upper product: at least 2**11.
    products = np.multiply.outer(np.arange(256), np.arange(16))
    assert wrong_products(narrow, tmp_path) == 16 * np.count_nonzero(products >= 1 << 11)
    near = DUAL_SOURCE.replace("{w_1, 8'd0, w_0}", "{1'b0, w_1, 7'd0, w_0}")
    for old, new in (("[11:0];", "[10:0];"), ("[23:12]", "[22:11]")):
        near = near.replace(f"product_q{old}", f"product_q{new}")
    # A lower product of 2**11 is lost, and carries 1 into the upper one.
    assert wrong_products(near, tmp_path) == 2 * 16 * np.count_nonzero(products >= 1 << 11)


def check_dual_burst(cols: int, number_format: Format, pipeline: Pipeline, count: int = 200) -> None:
    """Compare the sums of two rows with golden: any inputs, all kinds of elements."""
    seed = cols
    rng = np.random.default_rng(seed)
    x = bf16_patterns(rng, (count, cols))
    table = element_table(number_format)
    w = table[rng.integers(0, len(table), (2, count, cols))]
    # The largest sums, zeros on either side and beside each other.
    x[0], w[:, 0] = 0x7F7F, table.max(where=table < 0x7F80, initial=0)
    x[1] = 0
    w[0, 2], w[1, 3] = 0, 0
    words = {"x": x, "w_0": w[0], "w_1": w[1]}
    inputs = {name: [pack(row) for row in values] for name, values in words.items()}
    dut = DualBurst(cols, pipeline)
    got = run_pipeline(dut, inputs, ["o_0", "o_1"], Burst.latency_of(cols, pipeline))
    for row in range(2):
        want = burst_sum(x, w[row])
        for n in range(count):
            value = burst_value(got[f"o_{row}"], n, cols)
            same = value == want[n] or (np.isnan(value) and np.isnan(want[n]))
            assert same, f"seed {seed}, row {row}, burst {n}: rtl {value!r}, golden {want[n]!r}"


@pytest.mark.parametrize("pipeline", Pipeline)
@pytest.mark.parametrize(("cols", "number_format"), [(1, Format.FP8), (4, Format.INT4), (5, Format.MXFP4)])
def test_dual_burst(cols, number_format, pipeline):
    check_dual_burst(cols, number_format, pipeline)


def test_the_exported_verilog_instantiates_the_file(tmp_path):
    files = export(DualBurst(3), "rows", tmp_path)
    assert [file.name for file in files][:2] == ["eb_rows.v", "eb_dual_significand_multiplier.v"]
    text = files[0].read_text()
    # In one module around it, of which there is one for each of 3 columns.
    assert len(re.findall(r"^ *eb_dual_significand_multiplier ", text, re.MULTILINE)) == 1
    assert len(re.findall(r"^ *eb_rows_multiplier multiplier_\d ", text, re.MULTILINE)) == 3


DUAL_BUGS = {
    "products swapped": ('product = getattr(multiplier, f"p_{row}")', "product = multiplier.p_0"),
    "bits of the element's significand": ("weight[-ELEMENT_BITS:]", "weight[:ELEMENT_BITS]"),
    "place of the product": ("product << (8 - ELEMENT_BITS)", "product"),
    "products too near": ("SHIFT = 8 + ELEMENT_BITS", "SHIFT = 7 + ELEMENT_BITS"),
}


@pytest.mark.parametrize("bug", DUAL_BUGS)
def test_planted_bug_in_dual_bursts_is_found(monkeypatch, bug):
    plant_bug(monkeypatch, rtl.grouped, *DUAL_BUGS[bug])
    with pytest.raises(AssertionError, match="rtl "):
        check_dual_burst(2, Format.FP8, Pipeline.SHORT, 60)


class ScaledAddition(wiring.Component):
    """A sum times its scale, added to a total."""

    def __init__(self, number_format: Format, pipeline: Pipeline) -> None:
        self.format = number_format
        self.pipeline = pipeline
        self.latency = ScaleSum.latency_of(pipeline) + Accumulate.latency_of(pipeline)
        super().__init__({"i": In(32), "scale": In(number_format.scale_bits), "total": In(32), "o": Out(32)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.scale = scale = ScaleSum(self.format, self.pipeline)
        m.submodules.add = add = Accumulate(1, self.pipeline)
        m.d.comb += [
            Cat(scale.i.as_value()).eq(self.i),
            scale.factor.eq(factor_of(m, self.format, self.scale, "factor")),
            add.acc.eq(delay(m, self.total, scale.latency, "total")),
            add.addend.eq(scale.o),
            self.o.eq(add.o),
        ]
        return m


# Among them pairs whose products are halfway, just below the normal range, and 2**128.
CORNERS = (
    *(0, 0x00800000, 0x00800001, 0x3F7FFFFE, 0x3F800000, 0x3F800003, 0x3FC00000),
    *(0x40000000, 0x7F000000, 0x7F7FFFFF, 0x7F800000, 0x7FC00000),
)


def operands(number_format: Format, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return fp32 sums (no subnormals) and scales; every pair of corners, then any."""
    rng = np.random.default_rng(7)
    sums = f32_flush(rng.integers(0, 1 << 32, count, dtype=np.uint32).view(np.float32)).view(np.uint32)
    width = number_format.scale_bits
    scales = rng.integers(0, 1 << width, count, dtype=np.uint32)
    ends = np.array([*CORNERS, *(corner | 1 << 31 for corner in CORNERS[1:-1])], np.uint32)
    edges = {
        Format.FP8: np.array([*CORNERS, 1, 0xBF800001], np.uint32),
        Format.MXFP4: np.array([0, 1, 127, 254, 255], np.uint32),
        Format.INT4: np.array([0, 1, 0x0080, 0x3F80, 0x3FFF, 0x7F80, 0x7FC0, 0xBFC0], np.uint32),
    }[number_format]
    grid = np.stack(np.meshgrid(ends, edges), axis=-1).reshape(-1, 2)
    # Products around both ends of the range, where rounding and flushing meet.
    low = rng.integers(0x3F800000, 0x40000000, count // 4, dtype=np.uint32)
    near = {Format.FP8: low - (126 << 23), Format.MXFP4: low * 0 + 1, Format.INT4: (low - (126 << 23)) >> 16}
    return (
        np.concatenate([grid[:, 0], low, sums]),
        np.concatenate([grid[:, 1], near[number_format], scales]),
    )


def check_scaling(number_format: Format, count: int, pipeline: Pipeline = Pipeline.SHORT) -> None:
    sums, scales = operands(number_format, count)
    # Zero, and the most negative finite number, which brings 2**128 back into the range.
    totals = np.where(np.arange(len(sums)) % 3 == 0, np.uint32(0xFF7FFFFF), np.uint32(0))
    dut = ScaledAddition(number_format, pipeline)
    got = run_pipeline(
        dut,
        {"i": sums.tolist(), "scale": scales.tolist(), "total": totals.tolist()},
        ["o"],
        dut.latency,
    )["o"]
    product = scaled(sums.view(np.float32), scale_values(number_format, scales))
    want = accumulate(totals.view(np.float32), product.astype(np.float64)).view(np.uint32)
    wrong = np.flatnonzero(np.array(got, dtype=np.uint32) != want)
    assert not len(wrong), (
        f"{number_format}: {sums[wrong[0]]:#x} * {scales[wrong[0]]:#x}: rtl {got[wrong[0]]:#x},"
        f" golden {want[wrong[0]]:#x}"
    )


@pytest.mark.parametrize("number_format", FORMATS)
@pytest.mark.parametrize("count", [600, pytest.param(20000, marks=pytest.mark.long)])
@pytest.mark.parametrize("pipeline", list(Pipeline))
def test_scaling(number_format, count, pipeline):
    check_scaling(number_format, count, pipeline)


BUGS = {
    "rounded up": ("half & (rest | normal[-24])", "half"),
    "never rounded": ("half & (rest | normal[-24])", "0"),
    "zero times infinity": ("| (value_inf & factor_zero)", ""),
    "infinite scale": ("value_inf | factor.inf", "value_inf"),
    "flushed after rounding": ("(exponent < 1)", "(exponent_out < 1)"),
    "too large": ("(exponent_out >= 255)", "(exponent_out > 255)"),
}


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bug_is_found(monkeypatch, bug):
    plant_bug(monkeypatch, rtl.grouped, *BUGS[bug])
    with pytest.raises(AssertionError, match="rtl 0x"):
        check_scaling(Format.FP8, 600)


class PatternsInPairs(wiring.Component):
    """Four fp32 patterns, summed in pairs."""

    LATENCY = SumInPairs.latency_of(4)

    def __init__(self) -> None:
        super().__init__({**{f"i_{n}": In(F32) for n in range(4)}, "o": Out(32)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.pairs = pairs = SumInPairs(4)
        m.d.comb += self.o.eq(f32_of_sum(pairs.o))
        for n in range(4):
            number = sum_of_f32(m, getattr(self, f"i_{n}"), f"number_{n}")
            m.d.comb += pairs.i[n].eq(number)
            with m.If(number.inf):
                # As a product with a scale is too large.
                m.d.comb += [pairs.i[n].exponent.eq(300), pairs.i[n].significand.eq(0xABCDEF)]
        return m


def check_pairs() -> None:
    """Each corner with each, then numbers near each other, whose sums round and cancel."""
    rng = np.random.default_rng(8)
    corners = np.array([*CORNERS, *(corner | 1 << 31 for corner in CORNERS[1:-1])], np.uint32)
    near = rng.integers(0x3F800000, 0x41000000, (400, 4), dtype=np.uint32)
    near |= rng.integers(0, 2, near.shape).astype(np.uint32) << 31
    near[::3, 2] = near[::3, 0] ^ (1 << 31)
    numbers = np.concatenate([rng.choice(corners, (500, 4)), near])
    got = run_pipeline(
        PatternsInPairs(),
        {f"i_{n}": numbers[:, n].tolist() for n in range(4)},
        ["o"],
        PatternsInPairs.LATENCY,
    )["o"]
    a, b, c, d = numbers.T.copy().view(np.float32)

    def add(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return accumulate(one, other.astype(np.float64))

    want = add(add(a, b), add(c, d)).view(np.uint32)
    wrong = np.flatnonzero(np.array(got, dtype=np.uint32) != want)
    assert not len(wrong), f"{numbers[wrong[0]]}: rtl {got[wrong[0]]:#x}, golden {want[wrong[0]]:#x}"


def test_sums_in_pairs():
    check_pairs()


PAIR_BUGS = {
    "another order": ("numbers[2 * number : 2 * number + 2]", "numbers[number :: len(numbers) // 2]"),
    "an infinite number": ("Mux(value.inf, infinite, finite)", "finite"),
    "an infinite sum": ("out.inf.eq(top & ~value.fraction.any())", "out.inf.eq(0)"),
    "no number": ("out.nan.eq(top & value.fraction.any())", "out.nan.eq(0)"),
    "zero": ("out.significand.eq(Mux(zero, 0, ", "out.significand.eq(Mux(0, 0, "),
}


@pytest.mark.parametrize("bug", PAIR_BUGS)
def test_planted_bug_in_pairs_is_found(monkeypatch, bug):
    plant_bug(monkeypatch, rtl.grouped, *PAIR_BUGS[bug])
    with pytest.raises(AssertionError, match="rtl 0x"):
        check_pairs()
