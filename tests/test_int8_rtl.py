"""int8 pipelines against golden, bit for bit, and their latencies."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from amaranth import Const, Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

import rtl.int8
from golden.int8 import FixedScale, dequantise, quantise
from rtl.arith import Accumulate, Burst
from rtl.export import export
from rtl.int8 import (
    DualInt4Multiplier,
    DualIntegerBurst,
    DualMultiplier,
    IntegerAccumulate,
    IntegerBurst,
    Quantise,
    product_bits,
    scale_layout,
    scale_of,
)
from spec.design import INTEGER_FORMATS, Format, Pipeline
from tests.bfm import pack, run_pipeline
from tests.gates import Gates
from tests.test_arith import agree

SCALES = (
    FixedScale(1 << 15, -15),  # 1: halves everywhere
    FixedScale.of(127 / 5.37),
    FixedScale.of(127 / 3.3e38),
    FixedScale((1 << 16) - 1, 511),
)


def scale_bits(mantissa: np.ndarray, shift: np.ndarray) -> list[int]:
    return [
        scale_layout().const({"mantissa": int(m), "shift": int(s)}).as_value().value
        for m, s in zip(mantissa, shift, strict=True)
    ]


class Quantisers(wiring.Component):
    """A quantiser for each of ``SCALES``, behind one input; scales as register words."""

    def __init__(self) -> None:
        super().__init__({"i": In(16), **{f"o_{n}": Out(8) for n in range(len(SCALES))}})

    def elaborate(self, platform):
        m = Module()
        for n, scale in enumerate(SCALES):
            m.submodules[f"quantise_{n}"] = quantiser = Quantise()
            m.d.comb += [
                quantiser.i.eq(self.i),
                quantiser.scale.eq(scale_of(Const(scale.word, 32))),
                getattr(self, f"o_{n}").eq(quantiser.o),
            ]
        return m


@pytest.mark.slow
@pytest.mark.parametrize("count", [1 << 13, pytest.param(1 << 16, marks=pytest.mark.long)])
def test_bf16_patterns_into_int8(count):
    """All of them in the long tests; by default every exponent and sign with some significands."""
    patterns = np.random.default_rng(1).permutation(1 << 16).astype(np.uint16)[:count]
    assert len(np.unique(patterns >> 7)) == 1 << 9
    outputs = [f"o_{n}" for n in range(len(SCALES))]
    got = run_pipeline(Quantisers(), {"i": patterns}, outputs, Quantise.LATENCY)
    for name, scale in zip(outputs, SCALES, strict=True):
        want = quantise(patterns, scale).astype(np.int64) & 0xFF
        agree(got[name], want, f"quantise with {scale}", patterns)


@pytest.mark.parametrize("pipeline", list(Pipeline))
def test_random_scales_into_int8(pipeline):
    rng = np.random.default_rng(2)
    patterns = rng.integers(0, 1 << 16, 3000).astype(np.uint16)
    mantissa = rng.integers(1 << 15, 1 << 16, 3000)
    # Most results are between 0 and 127: halves, carries and the edge of saturation.
    shift = 134 - ((patterns >> 7) & 0xFF).astype(np.int64) - rng.integers(13, 28, 3000)
    want = [
        quantise(patterns[n : n + 1], FixedScale(int(mantissa[n]), int(shift[n])))[0]
        for n in range(len(patterns))
    ]
    inputs = {"i": patterns, "scale": scale_bits(mantissa, shift)}
    got = run_pipeline(Quantise(pipeline=pipeline), inputs, ["o"], Quantise.latency_of(pipeline))["o"]
    agree(got, want, "quantise", patterns, mantissa, shift)
    assert {-127, -1, 0, 1, 127} <= set(want) and len(set(want)) > 200, "few values were reached"


def packed_weights(weights: np.ndarray, number_format: Format) -> list[int]:
    """Return rows of weights as words, the first one lowest."""
    bits = number_format.bits
    return [pack(row & ((1 << bits) - 1), bits) for row in weights]


@pytest.mark.parametrize("cols", [1, 4, 5, 8, 16, 32, 256])
@pytest.mark.parametrize("number_format", INTEGER_FORMATS)
def test_burst(cols, number_format):
    largest = number_format.largest_weight
    rng = np.random.default_rng(cols)
    x = rng.integers(-127, 128, (60, cols))
    w = rng.integers(-largest, largest + 1, (60, cols))
    x[0], w[0] = -127, largest
    x[1], w[1] = -127, -largest
    inputs = {"x": [pack(row & 0xFF, 8) for row in x], "w": packed_weights(w, number_format)}
    got = run_pipeline(IntegerBurst(cols, number_format), inputs, ["o"], IntegerBurst.LATENCY)["o"]
    agree(got, (x * w).sum(axis=1), f"burst of {cols}")


@pytest.mark.parametrize("multiplier", [DualMultiplier, DualInt4Multiplier])
def test_dual_multiplier(multiplier):
    """Every pair of corners with every corner, and what is drawn."""
    bits = multiplier.FORMAT.bits
    top = 1 << (bits - 1)
    values = [(-128, -127, -1, 0, 1, 127), *[(-top, 1 - top, -1, 0, 1, top - 1)] * 2]
    corners = np.array(list(itertools.product(*values)))
    drawn = np.random.default_rng(5).integers([-128, -top, -top], [128, top, top], (3000, 3))
    x, w_0, w_1 = np.concatenate([corners, drawn]).T
    mask = 2 * top - 1
    inputs = {"x": x & 0xFF, "w_0": w_0 & mask, "w_1": w_1 & mask}
    got = run_pipeline(multiplier(), inputs, ["p_0", "p_1"], multiplier.LATENCY)
    agree(got["p_0"], x * w_0, "lower product", x, w_0, w_1)
    agree(got["p_1"], x * w_1, "upper product", x, w_0, w_1)


RTL = Path(rtl.int8.__file__).parent
DUAL_SOURCE = (RTL / f"{DualMultiplier.VERILOG}.v").read_text()
INT4_SOURCE = (RTL / f"{DualInt4Multiplier.VERILOG}.v").read_text()


def wrong_products(source: str, folder: Path, number_format: Format) -> int:
    """Return how many products of all pairs of weights with int8 the gates of a Verilog file have wrong."""
    gates = Gates(source, folder)
    bits = number_format.bits
    codes, top = np.arange(1 << bits, dtype=np.uint8), 1 << (bits - 1)
    weights = [np.tile(codes, 1 << bits), np.repeat(codes, 1 << bits)]
    signed_weights = [(of.astype(int) ^ top) - top for of in weights]
    mask = (1 << product_bits(number_format)) - 1
    wrong = 0
    for x in range(256):
        got = gates.outputs(x=np.full(len(weights[0]), x, np.uint8), w_0=weights[0], w_1=weights[1])
        for row in range(2):
            want = int(np.uint8(x).view(np.int8)) * signed_weights[row]
            wrong += np.count_nonzero(got[f"p_{row}"] != want & mask)
    return wrong


@pytest.mark.slow
def test_every_product_of_the_dual_multiplier(tmp_path):
    """All 2**24 operands, through the gates that Yosys makes of the Verilog file itself."""
    assert wrong_products(DUAL_SOURCE, tmp_path, Format.INT8) == 0


@pytest.mark.long
def test_a_borrow_and_a_sum_too_narrow_are_seen(tmp_path):
    borrow = DUAL_SOURCE.replace(" + 32'sd32768", "").replace("{~sum_q[15], sum_q[14:0]}", "sum_q[15:0]")
    # Each lower product below 0: signs of x and w_0 differ.
    assert wrong_products(borrow, tmp_path, Format.INT8) == 2 * 127 * 128 * 256
    narrow = DUAL_SOURCE.replace("wire signed [24:0] weights", "wire signed [23:0] weights")
    # -128 * 2**16 and a negative number: too small by 2**24, and the upper product by 2**8 times x.
    assert wrong_products(narrow, tmp_path, Format.INT8) == 128 * 255


def test_every_product_of_the_dual_int4_multiplier(tmp_path):
    """All 2**16 operands, through the gates that Yosys makes of the Verilog file itself."""
    assert wrong_products(INT4_SOURCE, tmp_path, Format.W4A8) == 0


@pytest.mark.long
def test_a_borrow_and_a_sum_too_narrow_are_seen_with_int4(tmp_path):
    borrow = INT4_SOURCE.replace(" + {11'd0, product_q[11]}", "")
    # Each lower product below 0: signs of x and w_0 differ.
    assert wrong_products(borrow, tmp_path, Format.W4A8) == (128 * 7 + 127 * 8) * 16
    narrow = INT4_SOURCE.replace("wire signed [16:0] weights", "wire signed [15:0] weights")
    # -8 * 2**12 and a negative number: too small by 2**16, and the upper product by 2**4 times x.
    assert wrong_products(narrow, tmp_path, Format.W4A8) == 8 * 255


@pytest.mark.parametrize("cols", [1, 5, 16])
@pytest.mark.parametrize("number_format", INTEGER_FORMATS)
def test_dual_burst(cols, number_format):
    top = 1 << (number_format.bits - 1)
    rng = np.random.default_rng(cols)
    x = rng.integers(-128, 128, (60, cols))
    w = rng.integers(-top, top, (2, 60, cols))
    x[0], w[0, 0], w[1, 0] = -128, -top, top - 1
    x[1], w[0, 1], w[1, 1] = -128, top - 1, -top
    inputs = {
        "x": [pack(row & 0xFF, 8) for row in x],
        **{f"w_{row}": packed_weights(w[row], number_format) for row in range(2)},
    }
    dut = DualIntegerBurst(cols, number_format)
    got = run_pipeline(dut, inputs, ["o_0", "o_1"], DualIntegerBurst.LATENCY)
    for row in range(2):
        agree(got[f"o_{row}"], (x * w[row]).sum(axis=1), f"row {row} of a burst of {cols}")


@pytest.mark.parametrize(
    ("number_format", "multiplier"), [(Format.INT8, DualMultiplier), (Format.W4A8, DualInt4Multiplier)]
)
def test_an_array_takes_the_multiplier_of_its_format(number_format, multiplier, tmp_path):
    """A wider one gives the same sums, and takes more of the device."""
    files = export(DualIntegerBurst(3, number_format), "rows", tmp_path)
    assert [file.name for file in files][:2] == ["eb_rows.v", f"{multiplier.VERILOG}.v"]


@pytest.mark.parametrize("pipeline", list(Pipeline))
def test_accumulate(pipeline):
    rng = np.random.default_rng(3)
    count = 4000
    acc = rng.integers(-(1 << 31), 1 << 31, count) >> rng.integers(0, 31, count)
    addend = rng.integers(-(1 << 31), 1 << 31, count) >> rng.integers(0, 31, count)
    acc[:2], addend[:2] = (1 << 31) - 1, 1 << 30
    acc[2:4], addend[2:4] = -(1 << 31), 1 - (1 << 31)
    acc[4:6] = addend[4:6] = 0
    finish = np.arange(count) % 2 == 1
    mantissa = np.where(rng.random(count) < 0.05, 0, rng.integers(1 << 15, 1 << 16, count))
    shift = np.where(rng.random(count) < 0.3, rng.integers(-320, 228, count), rng.integers(-40, 1, count))
    want = np.where(
        finish,
        dequantise(acc + addend, mantissa, shift).astype(np.int64) << 16,
        (acc + addend) & 0xFFFFFFFF,
    )
    inputs = {"acc": acc, "addend": addend, "finish": finish, "scale": scale_bits(mantissa, shift)}
    got = run_pipeline(IntegerAccumulate(pipeline), inputs, ["o"], IntegerAccumulate.latency_of(pipeline))[
        "o"
    ]
    agree(got, want, "accumulate", acc, addend, finish, mantissa, shift)
    assert (want[finish] == 0x7F800000).any(), "no infinity was reached"


def test_latencies_as_those_of_bf16():
    """The cycle models know one array."""
    assert IntegerBurst.LATENCY == Burst.LATENCY
    assert DualIntegerBurst.LATENCY == Burst.LATENCY
    assert IntegerAccumulate.LATENCY == Accumulate.LATENCY
