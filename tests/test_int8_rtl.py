"""int8 pipelines against golden, bit for bit, and their latencies."""

from __future__ import annotations

import numpy as np
import pytest
from amaranth import Const, Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from golden.int8 import FixedScale, dequantise, quantise
from rtl.arith import Accumulate, Burst
from rtl.int8 import IntegerAccumulate, IntegerBurst, Quantise, scale_layout, scale_of
from tests.bfm import pack, run_pipeline
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


def test_random_scales_into_int8():
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
    got = run_pipeline(Quantise(), inputs, ["o"], Quantise.LATENCY)["o"]
    agree(got, want, "quantise", patterns, mantissa, shift)
    assert {-127, -1, 0, 1, 127} <= set(want) and len(set(want)) > 200, "few values were reached"


@pytest.mark.parametrize("cols", [1, 4, 5, 8, 16, 32, 256])
def test_burst(cols):
    rng = np.random.default_rng(cols)
    x, w = rng.integers(-127, 128, (2, 60, cols))
    x[0], w[0] = -127, 127
    x[1], w[1] = -127, -127
    inputs = {"x": [pack(row & 0xFF, 8) for row in x], "w": [pack(row & 0xFF, 8) for row in w]}
    got = run_pipeline(IntegerBurst(cols), inputs, ["o"], IntegerBurst.LATENCY)["o"]
    agree(got, (x * w).sum(axis=1), f"burst of {cols}")


def test_accumulate():
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
    got = run_pipeline(IntegerAccumulate(), inputs, ["o"], IntegerAccumulate.LATENCY)["o"]
    agree(got, want, "accumulate", acc, addend, finish, mantissa, shift)
    assert (want[finish] == 0x7F800000).any(), "no infinity was reached"


def test_latencies_as_those_of_bf16():
    """The cycle models know one array."""
    assert IntegerBurst.LATENCY == Burst.LATENCY
    assert IntegerAccumulate.LATENCY == Accumulate.LATENCY
