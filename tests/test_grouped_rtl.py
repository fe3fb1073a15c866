"""Decoding and scaling of stored weights against golden, bit for bit, and their latency."""

from __future__ import annotations

import numpy as np
import pytest
from amaranth import Cat, Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

import rtl.grouped
from golden.formats import accumulate, f32_flush
from golden.grouped import element_table, scale_values, scaled
from rtl.arith import F32, Accumulate, delay
from rtl.grouped import DecodeElements, ScaleSum, SumInPairs, f32_of_sum, factor_of, sum_of_f32
from spec.design import GROUPS, Format, Pipeline
from tests.bfm import run_pipeline
from tests.block_bench import plant_bug

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
