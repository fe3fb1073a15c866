# amaranth: UnusedElaboratable=no
# (some constructors raise here, and some components are asked for their latency only)
"""Arithmetic pipelines against the golden functions, bit for bit, and their latencies."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from amaranth import Module, Signal, signed
from amaranth.back.verilog import convert
from amaranth.hdl import Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

import rtl.arith
from golden import functions
from golden.expert_bf16 import activate
from golden.formats import accumulate, bf16_decode, bf16_encode, burst_sum, f32_flush
from golden.functions import FIXED_MAX, ONE
from rtl.arith import (
    BF16,
    F32,
    Accumulate,
    Burst,
    bf16_from_f32,
    burst_layout,
    ceil_log2,
    delay,
    normalise,
    round_stages,
    round_to_bf16,
    significand_bits,
    tree,
)
from rtl.expert.activation import ActivationLane
from rtl.functions import (
    FIXED_STAGES,
    Exp2Negative,
    ExpNegative,
    GeluTanhArgument,
    InterpolatedTable,
    Log2,
    NormalCdf,
    Reciprocal,
    Sigmoid,
    SqrtSoftplus,
    TanhRatio,
    fixed_from_f32,
)
from sim.expert import activation_latency
from spec.design import Pipeline
from spec.geometry import FfnGeometry
from spec.model import Activation, FfnSpec
from tests.bfm import (
    pack,
    run_pipeline,
)
from tests.block_bench import (
    first_difference,
    mutated_module,
)

COLS = (1, 3, 4, 16)


class Combinational(wiring.Component):
    """Named inputs, one output, a function of them between."""

    def __init__(self, shapes, out_shape, function) -> None:
        self.names = list(shapes)
        self.function = function
        super().__init__({**{name: In(shape) for name, shape in shapes.items()}, "out": Out(out_shape)})

    def elaborate(self, platform):
        m = Module()
        result = self.function(m, *(getattr(self, name) for name in self.names))
        m.d.comb += Value.cast(self.out).eq(result)
        return m


def agree(got, want, what: str, *operands) -> None:
    """Fail with the first set of operands whose result differs."""
    n = first_difference(got.tolist(), np.asarray(want).tolist())
    if n is not None:
        given = ", ".join(str(values[n]) for values in operands)
        pytest.fail(f"{what}: case {n} ({given}): rtl {got[n]:#x}, golden {int(want[n]):#x}", pytrace=False)


def bf16_patterns(rng, shape) -> np.ndarray:
    """Return a third arbitrary patterns, a third numbers around 1, a third sparse ones."""
    numbers = bf16_encode(rng.standard_normal(shape) * np.exp2(rng.integers(-6, 7, shape)))
    part = shape[0] // 3
    wild = rng.integers(0, 1 << 16, (part, *shape[1:])).astype(np.uint16)
    numbers[:part] = np.where(rng.random(wild.shape) < 0.5, wild, numbers[:part])
    numbers[-part:] = np.where(rng.random(wild.shape) < 0.7, 0, numbers[-part:])
    return numbers


def f32_patterns(rng, count: int) -> np.ndarray:
    """Return fp32 numbers: half arbitrary patterns without subnormals, half around 1, and all corners."""
    wild = rng.integers(0, 1 << 32, count, dtype=np.uint64).astype(np.uint32).view(np.float32)
    near = (rng.standard_normal(count) * np.exp2(rng.integers(-28, 14, count))).astype(np.float32)
    corners = np.array(
        [
            0,
            1,
            -1,
            np.inf,
            -np.inf,
            np.nan,
            2.0**-126,
            -(2.0**-126),
            3.4028235e38,
            -3.4028235e38,
            2048,
            -2048,
        ],
        dtype=np.float32,
    )
    values = np.where(np.arange(count) % 2, wild, near)
    values[: corners.size] = corners
    return f32_flush(values)


def burst_value(sums: dict, n: int, cols: int) -> float:
    """Return what a burst_layout says, as the float64 of golden."""
    fields = burst_layout(cols).from_bits(int(sums[n]))
    if fields["nan"]:
        return float("nan")
    sign = -1.0 if fields["sign"] else 1.0
    if fields["inf"]:
        return sign * float("inf")
    bits = significand_bits(cols)
    if not fields["significand"] >> (bits - 1):
        assert fields["significand"] == 0, "not normalised"
        return 0.0
    return sign * float(np.ldexp(float(fields["significand"]), fields["exponent"] - 127 - (bits - 1)))


PIPELINES = tuple(Pipeline)


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("cols", COLS)
def test_burst(cols, pipeline):
    rng = np.random.default_rng(cols)
    x, w = bf16_patterns(rng, (600, cols)), bf16_patterns(rng, (600, cols))
    # The largest sum, the smallest product, cancellation to zero.
    x[0], w[0] = 0x7F7F, 0x7F7F
    x[1], w[1] = 0x0080, 0x8080
    x[2], w[2] = np.where(np.arange(cols) % 2, 0xBF80, 0x3F80), 0x7F7F
    inputs = {"x": [pack(row) for row in x], "w": [pack(row) for row in w]}
    want = burst_sum(x, w)

    dut = Burst(cols, pipeline)
    got = run_pipeline(dut, inputs, ["o"], Burst.latency_of(cols, pipeline))["o"]
    for n in range(len(x)):
        value = burst_value(got, n, cols)
        same = value == want[n] or (np.isnan(value) and np.isnan(want[n]))
        assert same, f"{cols} cols, burst {n}: rtl {value!r}, golden {want[n]!r} of {x[n]} and {w[n]}"


class BurstThenAccumulate(wiring.Component):
    """A burst added to an accumulator, as the blocks connect them."""

    def __init__(self, cols: int, pipeline: Pipeline) -> None:
        self.cols = cols
        self.pipeline = pipeline
        self.before = Burst.latency_of(cols, pipeline)
        self.latency = self.before + Accumulate.latency_of(pipeline)
        vector = data.ArrayLayout(BF16, cols)
        super().__init__({"x": In(vector), "w": In(vector), "acc": In(F32), "out": Out(F32)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.burst = burst = Burst(self.cols, self.pipeline)
        m.submodules.accumulate = adder = Accumulate(self.cols, self.pipeline)
        m.d.comb += [
            burst.x.eq(self.x),
            burst.w.eq(self.w),
            adder.acc.eq(delay(m, self.acc.as_value(), self.before, "acc")),
            adder.addend.eq(burst.o),
            self.out.eq(adder.o),
        ]
        return m


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("cols", COLS)
def test_accumulate(cols, pipeline):
    rng = np.random.default_rng(100 + cols)
    count = 800
    x, w = bf16_patterns(rng, (count, cols)), bf16_patterns(rng, (count, cols))
    sums = burst_sum(x, w)
    acc = f32_patterns(rng, count)
    # A third cancels, exactly or but for the last places.
    near = np.arange(count) % 3 == 0
    factor = 1 + np.where(rng.random(count) < 0.5, 2.0 ** -rng.integers(20, 25, count), 0)
    with np.errstate(over="ignore", invalid="ignore"):
        acc = f32_flush(np.where(near, (-sums * factor).astype(np.float32), acc))
    dut = BurstThenAccumulate(cols, pipeline)
    got = run_pipeline(
        dut,
        {"x": [pack(row) for row in x], "w": [pack(row) for row in w], "acc": acc.view(np.uint32)},
        ["out"],
        dut.latency,
    )["out"]
    agree(got, accumulate(acc, sums).view(np.uint32), f"accumulate, {cols} cols", acc, sums)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_accumulate_rounds_in_every_place(pipeline):
    """Bursts of one product beside an accumulator at every distance: ties, stickies, carries."""
    rng = np.random.default_rng(7)
    distances = np.repeat(np.arange(-40, 41), 24)
    x = bf16_encode(rng.choice([1, -1, 1.5, 1.0078125, 1.9921875], distances.size))
    w = bf16_encode(np.exp2(distances.astype(np.float64)))
    significands = rng.choice([0x3F800000, 0x3F800001, 0x3FFFFFFF, 0x3F800003, 0xBFAAAAAB], distances.size)
    acc = significands.astype(np.uint32).view(np.float32)
    dut = BurstThenAccumulate(1, pipeline)
    got = run_pipeline(
        dut,
        {"x": x, "w": w, "acc": acc.view(np.uint32)},
        ["out"],
        dut.latency,
    )["out"]
    sums = burst_sum(x[:, None], w[:, None])
    agree(got, accumulate(acc, sums).view(np.uint32), "accumulate", acc, sums)


@pytest.mark.parametrize("width", [1, 2, 5, 8, 24])
def test_normalise(width):
    rng = np.random.default_rng(width)
    values = np.append(rng.integers(0, 1 << width, 200) >> rng.integers(0, width, 200), 0)
    count_bits = ceil_log2(width)

    def both(m, value):
        shifted, count = normalise(m, value, "value")
        return shifted | (count << width if count_bits else 0)

    dut = Combinational({"value": width}, width + count_bits, both)
    got = run_pipeline(dut, {"value": values}, ["out"], 0)["out"]
    for value, result in zip(values.tolist(), got.tolist(), strict=True):
        shifted, count = result & ((1 << width) - 1), result >> width
        zeros = width - value.bit_length()
        assert shifted == value << zeros & ((1 << width) - 1), f"{value:#x} of {width} bits"
        assert count == (zeros if value else (1 << count_bits) - 1), f"{value:#x} of {width} bits"


def test_bf16_from_f32():
    values = f32_patterns(np.random.default_rng(1), 3000)
    dut = Combinational({"value": F32}, 16, lambda _m, value: bf16_from_f32(value))
    got = run_pipeline(dut, {"value": values.view(np.uint32)}, ["out"], 0)["out"]
    agree(got, bf16_encode(values), "bf16_from_f32", values)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_fixed_from_f32(pipeline):
    values = f32_patterns(np.random.default_rng(2), 3000)
    deep = pipeline is Pipeline.DEEP
    dut = Combinational(
        {"value": F32}, signed(32), lambda m, value: fixed_from_f32(m, value, "value", deep=deep)
    )
    got = run_pipeline(dut, {"value": values.view(np.uint32)}, ["out"], FIXED_STAGES * deep)["out"]
    agree(got, functions.fixed_from_f32(values), "fixed_from_f32", values)


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("width", [3, 10, 40])
def test_round_to_bf16(width, pipeline):
    rng = np.random.default_rng(width)
    count = 2000
    magnitude = rng.integers(0, 1 << width, count) >> rng.integers(0, width, count)
    if width > 10:
        kept, shift = rng.integers(128, 256, 500), rng.integers(2, width - 8, 500)
        magnitude[:500] = (kept << shift) + (1 << (shift - 1)) + rng.integers(-1, 2, 500)
    power, sign = rng.integers(-200, 140, count), rng.integers(0, 2, count)
    deep = pipeline is Pipeline.DEEP
    dut = Combinational(
        {"sign": 1, "magnitude": width, "power": signed(12)},
        16,
        lambda m, *operands: round_to_bf16(m, *operands, "rounded", deep=deep),
    )
    inputs = {"sign": sign, "magnitude": magnitude, "power": power}
    got = run_pipeline(dut, inputs, ["out"], round_stages(width) if deep else 0)["out"]
    agree(got, functions.bf16_from_integer(sign, magnitude, power), "round_to_bf16", magnitude, power)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8])
def test_tree(count):
    assert tree(range(count), lambda a, b: a + b) == sum(range(count))
    depths = tree([0] * count, lambda a, b: max(a, b) + 1)
    assert depths == (count - 1).bit_length()


class Delayed(wiring.Component):
    """A value, ``cycles`` cycles late."""

    def __init__(self, cycles: int) -> None:
        self.cycles = cycles
        super().__init__({"value": In(8), "out": Out(8)})

    def elaborate(self, platform):
        m = Module()
        unused = Signal()
        m.d.sync += unused.eq(~unused)
        m.d.comb += self.out.eq(delay(m, self.value, self.cycles, "value"))
        return m


@pytest.mark.parametrize("cycles", [1, 2, 5])
def test_delay(cycles):
    values = list(range(40))
    assert run_pipeline(Delayed(cycles), {"value": values}, ["out"], cycles)["out"].tolist() == values


def test_interpolated_table():
    rng = np.random.default_rng(3)
    position = np.append(rng.integers(0, ONE, 2000), [0, 4095, 4096, ONE - 1])
    for base, descent in (
        (functions.EXP_BASE, functions.EXP_DESCENT),
        (functions.RECIPROCAL_BASE, functions.RECIPROCAL_DESCENT),
    ):
        got = run_pipeline(
            InterpolatedTable(base, descent), {"position": position}, ["o"], InterpolatedTable.LATENCY
        )["o"]
        want = base[position >> 12] - ((descent[position >> 12] * (position & 4095)) >> 12)
        agree(got, want, "table", position)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_reciprocal(pipeline):
    m = np.append(np.random.default_rng(4).integers(ONE, 2 * ONE, 1500), [ONE, 2 * ONE - 1, 2 * ONE])
    got = run_pipeline(Reciprocal(pipeline), {"m": m}, ["o"], Reciprocal.latency_of(pipeline))["o"]
    agree(got, functions.reciprocal(m), "reciprocal", m)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_exp_negative(pipeline):
    rng = np.random.default_rng(5)
    zero_from = int(32 * np.log(2) * ONE)
    corners = [0, 1, zero_from - 40, zero_from + 40, (1 << 25) - 1, 1 << 25, FIXED_MAX, (1 << 32) - 1]
    d = np.concatenate([corners, rng.integers(0, 23 * ONE, 1500), rng.integers(0, 1 << 32, 300)])
    dut = ExpNegative(pipeline)
    got = run_pipeline(dut, {"d": d}, ["mantissa", "shift"], ExpNegative.latency_of(pipeline))
    for name, want in zip(("mantissa", "shift"), functions.exp_negative(d), strict=True):
        agree(got[name], want, f"exp {name}", d)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_sigmoid(pipeline):
    rng = np.random.default_rng(6)
    corners = [0, 1, -1, ONE, -ONE, FIXED_MAX, -FIXED_MAX, 23 * ONE, -23 * ONE]
    z = np.concatenate([corners, rng.integers(-(1 << 25), 1 << 25, 1500)])
    dut = Sigmoid(pipeline)
    got = run_pipeline(dut, {"z": z}, ["mantissa", "shift"], Sigmoid.latency_of(pipeline))
    for name, want in zip(("mantissa", "shift"), functions.sigmoid(z), strict=True):
        agree(got[name], want, f"sigmoid {name}", z)


def test_sqrt_softplus():
    rng = np.random.default_rng(10)
    corners = [0, 1, -1, ONE, -ONE, FIXED_MAX, -FIXED_MAX, 44 * ONE, -44 * ONE, -45 * ONE]
    some = rng.integers(-1500, 1500, 1500) * np.exp2(rng.integers(-3, 21, 1500))
    z = np.concatenate([corners, np.clip(some.astype(np.int64), -FIXED_MAX, FIXED_MAX)])
    got = run_pipeline(SqrtSoftplus(), {"z": z}, ["o"], SqrtSoftplus.LATENCY)["o"]
    agree(got, functions.sqrt_softplus(z), "sqrt_softplus", z)


@pytest.mark.parametrize("bits", [36, 9])
def test_log2(bits):
    rng = np.random.default_rng(11)
    value = np.append(rng.integers(1, 1 << bits, 700) >> rng.integers(0, bits, 700), [0, 1, (1 << bits) - 1])
    value = np.maximum(value, 1)
    got = run_pipeline(Log2(bits), {"value": value}, ["o"], Log2.LATENCY)["o"]
    agree(got, functions.log2_fixed(value), "log2", value)


def test_exp2_negative():
    rng = np.random.default_rng(12)
    power = np.append(rng.integers(0, 34 * ONE, 700), [0, 1, 32 * ONE - 1, 32 * ONE, (1 << 32) - 1])
    got = run_pipeline(Exp2Negative(32), {"power": power}, ["mantissa", "shift"], Exp2Negative.LATENCY)
    for name, want in zip(("mantissa", "shift"), functions.exp2_negative(power), strict=True):
        agree(got[name], want, f"exp2 {name}", power)


def bf16_corners(rng, count: int) -> np.ndarray:
    """Return bf16 patterns: any, and those whose functions are neither 0 nor what their ends are."""
    near = bf16_encode(rng.choice([-1, 1], count) * np.exp2(rng.uniform(-14, 4, count)))
    corners = [0, 0x8000, 1, 0x8001, 0x0080, 0x7F80, 0xFF80, 0x7FC0, 0xFF81, 0x7F7F, 0xFF7F]
    corners += [
        sign | value + n for value in (0x4100, 0x40D5, 0x40B6) for n in (-1, 0, 1) for sign in (0, 0x8000)
    ]
    return np.concatenate([corners, near, rng.integers(0, 1 << 16, count)]).astype(np.uint16)


def test_normal_cdf():
    x = bf16_corners(np.random.default_rng(10), 700)
    got = run_pipeline(NormalCdf(), {"x": x}, ["mantissa", "shift"], NormalCdf.LATENCY)
    for name, want in zip(("mantissa", "shift"), functions.normal_cdf(x), strict=True):
        agree(got[name], want, f"normal cdf {name}", x)


def test_gelu_tanh_argument():
    x = bf16_corners(np.random.default_rng(11), 700)
    got = run_pipeline(GeluTanhArgument(), {"x": x}, ["z"], GeluTanhArgument.LATENCY)["z"]
    agree(got, functions.gelu_tanh_argument(x), "argument of gelu_tanh", x)


def test_tanh_ratio():
    x = bf16_corners(np.random.default_rng(12), 700)
    got = run_pipeline(TanhRatio(), {"x": x}, ["o"], TanhRatio.LATENCY)["o"]
    agree(got, functions.tanh_ratio(x), "tanh ratio", x)


FFNS = [
    FfnSpec(d_expert=4, activation=activation, gate_matrix=gated, clamped=clamped, limit=limit)
    for activation in Activation
    for gated in (True, False)
    for clamped, limit in ((False, 7.0), (False, 0.5), (True, 10.0))
    # Two matrices cannot clamp; clamped SwiGLU always does; else no bound counts without the flag.
    if (gated or not (clamped or activation is Activation.CLAMPED_SWIGLU))
    and (clamped is (limit != 7.0) if activation is not Activation.CLAMPED_SWIGLU else not clamped)
]
"""Every activation, with and without a gate matrix, clamped and not."""


def name_of(ffn: FfnSpec) -> str:
    return f"{ffn.activation}{'-gated' if ffn.gated else ''}{f'-{ffn.limit}' if ffn.clamped else ''}"


def lane_inputs(ffn: FfnSpec, count: int = 250) -> dict[str, np.ndarray]:
    """Return gate and up sums: any fp32 numbers, bf16 corners, all pairs of what is special."""
    rng = np.random.default_rng(8)
    limit = ffn.limit
    specials = np.array([0, 1, -1, 30, -30, np.inf, -np.inf, np.nan, 3e38, -3e38, limit, -limit, -1e-6])
    pairs = np.stack(np.meshgrid(specials, specials), axis=-1).reshape(-1, 2).astype(np.float32)
    gate = np.concatenate([f32_patterns(rng, count), pairs[:, 0], bf16_decode(bf16_corners(rng, count))])
    up = rng.permutation(f32_patterns(rng, len(gate) - len(pairs)))
    # As a sum has it: no subnormals, no -0.
    gate = f32_flush(gate)
    return {"gate": gate, "up": np.concatenate([up[:count], pairs[:, 1], up[count:]])}


@pytest.mark.parametrize("ffn", FFNS, ids=map(name_of, FFNS))
def test_activation_lane(ffn):
    values = lane_inputs(ffn)
    lane = ActivationLane(ffn)
    words = {name: value.view(np.uint32) for name, value in values.items()}
    got = run_pipeline(lane, words, ["o"], lane.latency)["o"]
    want = activate(ffn, values["gate"], values["up"] if ffn.gated else None)
    agree(got, want, name_of(ffn), *values.values())


DEEP_FFNS = [ffn for ffn in FFNS if ffn.limit == 7.0 or ffn.clamped]
"""Of those that differ only in a bound that they do not have, one."""
DEEP_SHORT = (Activation.SILU, Activation.CLAMPED_SWIGLU, Activation.RELU2)


@pytest.mark.parametrize(
    "ffn",
    [
        pytest.param(ffn, marks=[] if ffn.activation in DEEP_SHORT else pytest.mark.long, id=name_of(ffn))
        for ffn in DEEP_FFNS
    ],
)
def test_deep_activation_lane(ffn):
    """The same bits from a deep lane, after the cycles that the model states."""
    values = lane_inputs(ffn)
    lane = ActivationLane(ffn, pipeline=Pipeline.DEEP)
    words = {name: value.view(np.uint32) for name, value in values.items()}
    got = run_pipeline(lane, words, ["o"], lane.latency)["o"]
    want = activate(ffn, values["gate"], values["up"] if ffn.gated else None)
    agree(got, want, name_of(ffn), *values.values())


def geometry_of(ffn: FfnSpec) -> FfnGeometry:
    return FfnGeometry(ffn=ffn, d_model=1, d_hidden=1, rows=1, cols=1)


def test_deep_lanes_latencies_as_stated():
    """The figures of docs/expert.md; each lane was run with its own above."""
    latencies = {ffn: ActivationLane(ffn, pipeline=Pipeline.DEEP).latency for ffn in DEEP_FFNS}
    for ffn, latency in latencies.items():
        assert activation_latency(geometry_of(ffn), pipeline=Pipeline.DEEP) == latency, name_of(ffn)
    for ffn, other in PAIRS:
        lane = ActivationLane(ffn, other, Pipeline.DEEP)
        kinds = map(geometry_of, (ffn, other))
        assert activation_latency(*kinds, pipeline=Pipeline.DEEP) == lane.latency
    plain = {(ffn.activation, ffn.gated): latency for ffn, latency in latencies.items() if not ffn.clamped}
    gated = {
        Activation.SILU: 30,
        Activation.CLAMPED_SWIGLU: 36,
        Activation.QUICK_GELU: 35,
        Activation.SIGMOID: 30,
        Activation.GELU: 15,
        Activation.GELU_TANH: 30,
        Activation.TANH: 12,
        Activation.RELU: 6,
        Activation.RELU2: 8,
        Activation.LINEAR: 6,
    }
    single = {kind: cycles - 1 for kind, cycles in gated.items()}
    single |= {Activation.RELU: 2, Activation.LINEAR: 2, Activation.RELU2: 8}
    del single[Activation.CLAMPED_SWIGLU]
    assert plain == {(kind, True): cycles for kind, cycles in gated.items()} | {
        (kind, False): cycles for kind, cycles in single.items()
    }
    for (kind, is_gated), latency in plain.items():
        clamping = [ffn for ffn in DEEP_FFNS if ffn.clamped and ffn.activation is kind and is_gated]
        assert [latencies[ffn] for ffn in clamping] in ([], [latency + 1])


PAIRS = [
    (ffn, dataclasses.replace(ffn, activation=other, gate_matrix=ffn.gated))
    for ffn in FFNS
    for other in Activation
    if other is not ffn.activation and (ffn.gated or other is not Activation.CLAMPED_SWIGLU)
]


@pytest.mark.parametrize(
    "seed", [*range(5), *(pytest.param(n, marks=pytest.mark.long) for n in range(5, 40))]
)
def test_activation_lane_of_two(seed):
    """Any two activations in one lane, another one in each cycle."""
    rng = np.random.default_rng(seed)
    ffn, other = PAIRS[rng.integers(len(PAIRS))]
    values = lane_inputs(ffn)
    shared = rng.integers(0, 2, len(values["gate"]))
    lane = ActivationLane(ffn, other)
    assert lane.latency == max(ActivationLane(kind).latency for kind in (ffn, other))
    words = {name: value.view(np.uint32) for name, value in values.items()}
    got = run_pipeline(lane, words | {"shared": shared}, ["o"], lane.latency)["o"]
    routed, own = (
        activate(kind, values["gate"], values["up"] if ffn.gated else None) for kind in (ffn, other)
    )
    agree(got, np.where(shared, own, routed), f"{name_of(ffn)} and {name_of(other)}", *values.values())


def test_latencies_as_stated():
    """The figures of docs/numbers.md; each pipeline was run with its own above."""
    assert (Burst.LATENCY, Accumulate.LATENCY) == (5, 3)
    deep = [kind.latency_of(Pipeline.DEEP) for kind in (InterpolatedTable, Reciprocal, ExpNegative, Sigmoid)]
    assert deep == [4, 4, 8, 18]
    deep = [Burst.latency_of(cols, Pipeline.DEEP) for cols in (1, 4, 5, 16, 64, 256)]
    assert (deep, Accumulate.latency_of(Pipeline.DEEP)) == ([10, 11, 13, 14, 17, 20], 7)
    stages = (InterpolatedTable, Reciprocal, ExpNegative, Sigmoid, SqrtSoftplus, Log2, Exp2Negative)
    assert [stage.LATENCY for stage in stages] == [2, 2, 3, 7, 14, 4, 2]
    assert [stage.LATENCY for stage in (NormalCdf, GeluTanhArgument, TanhRatio)] == [6, 3, 3]
    latencies = {(ffn.activation, ffn.gated): ActivationLane(ffn).latency for ffn in FFNS}
    gated = {
        Activation.SILU: 11,
        Activation.CLAMPED_SWIGLU: 11,
        Activation.QUICK_GELU: 11,
        Activation.SIGMOID: 11,
        Activation.GELU: 9,
        Activation.GELU_TANH: 13,
        Activation.TANH: 6,
        Activation.RELU: 3,
        Activation.RELU2: 3,
        Activation.LINEAR: 3,
    }
    single = gated | {Activation.RELU: 1, Activation.LINEAR: 1}
    del single[Activation.CLAMPED_SWIGLU]
    assert latencies == {(kind, True): cycles for kind, cycles in gated.items()} | {
        (kind, False): cycles for kind, cycles in single.items()
    }
    for ffn in FFNS:
        geometry = FfnGeometry(ffn=ffn, d_model=1, d_hidden=1, rows=1, cols=1)
        assert activation_latency(geometry) == latencies[ffn.activation, ffn.gated]


TABLES = {
    # What a lane has of ROMs: bits of a word, words.
    Activation.RELU: [],
    Activation.RELU2: [],
    Activation.LINEAR: [],
    Activation.SILU: [(33, 256), (33, 256)],
    Activation.CLAMPED_SWIGLU: [(33, 256), (33, 256)],
    Activation.QUICK_GELU: [(33, 256), (33, 256)],
    Activation.SIGMOID: [(33, 256), (33, 256)],
    Activation.GELU_TANH: [(33, 256), (33, 256)],
    Activation.GELU: [(33, 256), (34, 1024)],
    Activation.TANH: [(33, 1024)],
}


@pytest.mark.parametrize("ffn", [ffn for ffn in FFNS if not ffn.clamped and ffn.limit == 7.0], ids=name_of)
def test_a_lane_has_no_other_activations_tables(ffn):
    """The ROMs in a lane's Verilog are those of its activation alone."""
    text = convert(ActivationLane(ffn), emit_src=False)
    roms = re.findall(r"reg \[(\d+):0\] \w+ \[(\d+):0\];", text)
    assert sorted((int(bits) + 1, int(words) + 1) for bits, words in roms) == TABLES[ffn.activation]


def test_pipeline_bench_finds_a_wrong_latency():
    values = list(range(1, 40))
    assert run_pipeline(Delayed(3), {"value": values}, ["out"], 2)["out"].tolist() != values


PLANTED_IN_DEEP = {
    "significands of another order": ("above = Cat(acc.fraction, Const(1, 1)) <<", "above = acc.fraction <<"),
    "places of the other operand": ('"below": Mux(acc_bigger, *(', '"below": Mux(~acc_bigger, *('),
    "carry that stays": (
        "Cat(kept[:23], exponent[:8]) + increment",
        "Cat((kept[:23] + increment)[:23], exponent[:8])",
    ),
    "zero product": ("[Mux(zero, 0, product)", "[Mux(zero, 1, product)"),
    "other half's zeros": ("Mux(high_empty, a, b)", "Mux(high_empty, b, a)"),
}


def check_deep() -> None:
    test_burst(4, Pipeline.DEEP)
    test_accumulate(4, Pipeline.DEEP)
    test_accumulate_rounds_in_every_place(Pipeline.DEEP)


@pytest.mark.parametrize("bug", PLANTED_IN_DEEP)
def test_planted_bug_in_deep_is_found(monkeypatch, bug):
    broken = mutated_module(monkeypatch, rtl.arith, *PLANTED_IN_DEEP[bug])
    for name in ("Burst", "Accumulate"):
        monkeypatch.setitem(globals(), name, getattr(broken, name))
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check_deep()


def test_broken_pipeline_is_found(monkeypatch):
    """A control of the comparison itself: a table whose last step is left out."""
    m = np.arange(ONE, 2 * ONE, 4099)
    monkeypatch.setattr("rtl.functions.RECIPROCAL_DESCENT", np.zeros(256, dtype=np.int64))
    got = run_pipeline(Reciprocal(), {"m": m}, ["o"], Reciprocal.LATENCY)["o"]
    with pytest.raises(
        pytest.fail.Exception, match=r"^reciprocal: case 1 \(1052675\): rtl 0xff010, golden 0xff00e$"
    ):
        agree(got, functions.reciprocal(m), "reciprocal", m)
