"""int8 in golden: rounding, saturation, scales, layout, against plain integers, fractions and floats."""

from __future__ import annotations

import re
import struct
from fractions import Fraction

import numpy as np
import pytest

from golden.expert import ffn
from golden.expert_bf16 import activate
from golden.expert_int8 import ActivationScales, ffn_int8, hidden_peak, quantise_expert, scale_for
from golden.experts import calibrate
from golden.formats import Bits16, bf16_decode, bf16_encode
from golden.image import expert_image_int8
from golden.int8 import FixedScale, dequantise, fixed_scales, quantise, quantise_rows
from golden.weights import ExpertWeights, random_tokens, random_weights
from spec.design import INTEGER_FORMATS, Format
from spec.errors import InputError
from spec.geometry import FfnGeometry
from spec.load import load_model
from spec.model import Activation, FfnSpec
from tests.exact import nearest_bf16

ALL_PATTERNS = np.arange(1 << 16, dtype=np.uint16)
SCALES = [
    FixedScale(1 << 15, -15),  # 1
    FixedScale(1 << 15, -14),  # 2: even and odd halves
    FixedScale.of(127 / 5.5),
    FixedScale.of(127 / 3.0e38),
    FixedScale.of(127 / 1.2e-38),
    FixedScale((1 << 16) - 1, -512),
    FixedScale((1 << 16) - 1, 511),
]


def fraction_of(mantissa: int, shift: int) -> Fraction:
    return mantissa * Fraction(2) ** int(shift)


@pytest.mark.parametrize("scale", SCALES, ids=lambda scale: f"{scale.value:.3g}")
def test_every_bf16_pattern_into_int8(scale):
    """A product of 8 and 16 bits is exact in float64, and so is its rounding."""
    with np.errstate(invalid="ignore", over="ignore"):
        values = bf16_decode(ALL_PATTERNS).astype(np.float64)
        products = np.where(np.isnan(values), 0, values * scale.value)
    want = np.clip(np.rint(products), -127, 127)
    got = quantise(ALL_PATTERNS, scale)
    assert got.dtype == np.int8
    assert np.array_equal(got, want)
    assert quantise(np.array([0x7FC0, 0xFF80, 0x7F80], np.uint16), scale).tolist() == [0, -127, 127]


def test_halves_go_to_even():
    halves = bf16_encode(np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, 127.5, -127.5, 0.4980469]))
    assert quantise(halves, FixedScale(1 << 15, -15)).tolist() == [0, 2, 2, 0, -2, -2, 126, 127, -127, 0]


def test_sums_out_of_int8():
    rng = np.random.default_rng(1)
    sums = np.concatenate([rng.integers(-(1 << 31), 1 << 31, 3000), rng.integers(-300, 300, 3000)])
    sums[:5] = 0, 1, -1, (1 << 32) - 1, -(1 << 32) + 1
    mantissa = rng.integers(1 << 15, 1 << 16, 6000)
    mantissa[100:110] = 0
    shift = np.where(np.arange(6000) % 3 == 0, rng.integers(-320, 200, 6000), rng.integers(-40, 0, 6000))
    got = dequantise(sums, mantissa, shift)
    want = [
        nearest_bf16(int(total) * fraction_of(int(m), int(s)))
        for total, m, s in zip(sums, mantissa, shift, strict=True)
    ]
    assert got.tolist() == want
    assert (got == 0x7F80).any()
    assert ((got == 0) & (sums != 0) & (mantissa != 0)).any(), "below the normal range was not reached"


def test_no_sum_overflows():
    assert [one.most_inputs for one in INTEGER_FORMATS] == [133144, 2415617]
    for one, largest in zip(INTEGER_FORMATS, (127, 7), strict=True):
        assert 127 * largest * one.most_inputs < 1 << 31 <= 127 * largest * (one.most_inputs + 1)


def test_scales_are_nearest():
    rng = np.random.default_rng(2)
    values = np.concatenate([2.0 ** rng.uniform(-300, 220, 2000), [1.0, 65535.4, 65535.6, 65536.0]])
    mantissa, shift = fixed_scales(values)
    assert mantissa.min() >= 1 << 15
    assert mantissa.max() < 1 << 16
    for value, m, s in zip(values, mantissa, shift, strict=True):
        exact = Fraction(float(value))
        assert abs(fraction_of(int(m), int(s)) / exact - 1) <= Fraction(1, 1 << 16)
    assert [x.tolist() for x in fixed_scales(np.array([0.0]))] == [[0], [0]]
    scale = FixedScale.of(0.3)
    assert scale.value == float(fraction_of(scale.mantissa, scale.shift))
    assert FixedScale(0x8001, -3).word == 0xFFFD8001


@pytest.mark.parametrize(
    ("mantissa", "shift", "message"),
    [
        (0, 0, "mantissa: must be in 32768..65535, not 0"),
        (1 << 16, 0, "mantissa: must be in 32768..65535, not 65536"),
        (1 << 15, 512, "shift: must be in -512..511, not 512"),
    ],
)
def test_a_scale_that_hardware_cannot_hold(mantissa, shift, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        FixedScale(mantissa, shift)


@pytest.mark.parametrize("number_format", INTEGER_FORMATS)
def test_rows_against_fractions(number_format):
    """Every row has 127 or 7 as its largest magnitude; ties, which float64 division keeps, go to even."""
    largest = number_format.largest_weight
    assert largest == (1 << (number_format.bits - 1)) - 1
    rng = np.random.default_rng(3)
    matrix = rng.standard_normal((9, 40)).astype(np.float32)
    matrix[1] = 0
    # A step of 2: halves everywhere.
    matrix[2, 0], matrix[2, 1:] = 2 * largest, rng.integers(-2 * largest, 2 * largest + 1, 39)
    matrix[3] *= 1e-38
    bias = rng.standard_normal(9).astype(np.float32)
    bias[1], bias[4], bias[5] = 3.0, 1e9, 0.0
    scale = FixedScale.of(127 / 4.2)
    got = quantise_rows(matrix, bias, scale, number_format)
    for row in range(9):
        peak = max(abs(Fraction(float(value))) for value in matrix[row])
        factor = fraction_of(int(got.mantissa[row]), int(got.shift[row]))
        if row in (1, 3, 4):  # where the bias decides
            assert abs(int(got.bias[row])) <= (1 << 30) + (1 << 14)
            assert abs(got.bias[row] * factor / Fraction(float(bias[row])) - 1) < Fraction(1, 1 << 29)
            continue
        want = [round(Fraction(float(value)) * largest / peak) for value in matrix[row]]
        assert got.values[row].tolist() == want
        assert max(map(abs, want)) == largest
        assert abs(factor * largest * Fraction(scale.value) / peak - 1) < Fraction(1, 1 << 15)
        assert got.bias[row] == round(Fraction(float(bias[row])) / factor)
    assert got.values[1].tolist() == [0] * 40
    nothing = quantise_rows(np.zeros((2, 3), np.float32), np.zeros(2, np.float32), scale, number_format)
    assert nothing.product(np.ones((1, 3), np.int8)).tolist() == [[0, 0]]


def test_a_product_stays_within_its_derived_bound():
    """Half a step of each input and weight, times what it meets; then the scale and the rounding."""
    rng = np.random.default_rng(4)
    x = bf16_encode(rng.standard_normal((20, 300)))
    matrix = (rng.standard_normal((30, 300)) * rng.uniform(0.1, 10, (30, 1))).astype(np.float32)
    bias = rng.standard_normal(30).astype(np.float32)
    real = bf16_decode(x).astype(np.float64)
    scale = scale_for(float(np.abs(real).max()))
    packed = quantise_rows(matrix, bias, scale, Format.INT8)
    got = bf16_decode(packed.product(quantise(x, scale))).astype(np.float64)
    exact = real @ matrix.T.astype(np.float64) + bias
    x_step, w_step = 1 / scale.value, np.abs(matrix).max(axis=1).astype(np.float64) / 127
    size_x, size_w = np.abs(real).sum(axis=1)[:, None], np.abs(matrix.astype(np.float64)).sum(axis=1)
    steps = w_step / 2 * size_x + x_step / 2 * size_w + 300 * x_step * w_step / 4 + x_step * w_step
    bound = steps + (np.abs(exact) + steps) * (2.0**-8 + 2.0**-16)
    assert (np.abs(got - exact) <= bound).all()
    assert np.abs(got - exact).max() > bound.min() / 50, "the bound says nothing"


def random_expert(rng, spec: FfnSpec, d_model: int, d_hidden: int) -> ExpertWeights:
    def draw(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    def bias(present: bool, size: int) -> np.ndarray | None:
        return rng.standard_normal(size).astype(np.float32) / 4 if present and spec.bias else None

    return ExpertWeights(
        gate=draw(d_hidden, d_model) if spec.gated else None,
        up=draw(d_hidden, d_model),
        down=draw(d_model, d_hidden),
        gate_bias=bias(spec.gated, d_hidden),
        up_bias=bias(True, d_hidden),
        down_bias=bias(True, d_model),
    )


KINDS = [
    (activation, gated)
    for activation in Activation
    for gated in (True, False)
    if gated or activation is not Activation.CLAMPED_SWIGLU
]
"""Every activation, with and without a gate matrix."""


def random_case(
    seed: int, activation: Activation, gated: bool, bias: bool, d_model=13, d_hidden=11, tokens=5
):
    rng = np.random.default_rng(seed)
    spec = FfnSpec(d_expert=d_hidden, activation=activation, gate_matrix=gated, bias=bias)
    weights = random_expert(rng, spec, d_model, d_hidden)
    x = bf16_encode(rng.standard_normal((tokens, d_model)))
    real = bf16_decode(x)
    scales = ActivationScales(
        scale_for(float(np.abs(real).max())), scale_for(hidden_peak(spec, weights, real))
    )
    return spec, weights, x, scales


def plain_int8(value: int, scale: FixedScale) -> int:
    """Quantise one bf16 pattern with fractions."""
    if value & 0x7FFF > 0x7F80:
        return 0
    real = float(bf16_decode(np.array([value]))[0])
    if real in (float("inf"), float("-inf")):
        return 127 if real > 0 else -127
    return min(127, max(-127, round(Fraction(real) * fraction_of(scale.mantissa, scale.shift))))


def plain_ffn(spec: FfnSpec, image: bytes, geometry: FfnGeometry, x: Bits16, scales) -> list[list[int]]:
    """Compute an expert from the bytes of its image alone, with whole numbers and fractions."""
    rows, cols = geometry.rows, geometry.cols
    row_bytes = cols * geometry.format.bits // 8
    place = 0

    def row_of_weights() -> list[int]:
        """Return the weights at ``place``; of two in a byte the first one is in the lower half."""
        row = image[place : place + row_bytes]
        if geometry.format is Format.INT8:
            return list(struct.unpack(f"<{cols}b", row))
        halves = [half for byte in row for half in (byte & 15, byte >> 4)]
        return [half - 16 if half > 7 else half for half in halves]

    def product(inputs: list[int], size: int) -> list[int]:
        """Multiply the next block of rows, read its scales, return rounded results."""
        nonlocal place
        sums = [0] * rows
        for start in range(0, size, cols):
            for row in range(rows):
                weights = row_of_weights()
                place += row_bytes
                sums[row] += sum(a * b for a, b in zip(inputs[start : start + cols], weights, strict=False))
        out = []
        for total in sums:
            mantissa, shift = struct.unpack_from("<Hh", image, place)
            bias = struct.unpack_from("<i", image, place + 4)[0] if spec.bias else 0
            assert -(1 << 31) <= total < 1 << 31
            out.append(nearest_bf16((total + bias) * fraction_of(mantissa, shift)))
            place += row_bytes
        return out

    results = []
    for token in x:
        place = 0
        inputs = [plain_int8(int(value), scales.x) for value in token]
        hidden: list[int] = []
        for _ in range(geometry.hidden_blocks):
            first = product(inputs, geometry.d_model)
            gate, up = (first, product(inputs, geometry.d_model)) if spec.gated else (first, None)
            sums = [None if part is None else bf16_decode(np.array(part)) for part in (gate, up)]
            hidden += activate(spec, *sums).tolist()
        hidden = [plain_int8(value, scales.hidden) for value in hidden[: geometry.d_hidden]]
        out: list[int] = []
        for _ in range(geometry.out_blocks):
            out += product(hidden, geometry.d_hidden)
        assert place == len(image)
        assert not any(out[geometry.d_model :]), "rows beyond the matrix are not zero"
        results.append(out[: geometry.d_model])
    return results


@pytest.mark.parametrize(("activation", "gated"), KINDS)
@pytest.mark.parametrize(
    ("rows", "cols", "bias"), [(4, 8, False), (1, 8, True), (8, 16, True), (8, 16, False)]
)
@pytest.mark.parametrize("number_format", INTEGER_FORMATS)
def test_an_expert_from_its_image_by_plain_integers(activation, gated, bias, rows, cols, number_format):
    # As many bytes to a row.
    cols = cols * 8 // number_format.bits
    spec, weights, x, scales = random_case(rows, activation, gated, bias)
    x[0, 0], x[1, 1], x[2, 2] = 0x7FC0, 0x7F80, 0xFF80
    geometry = FfnGeometry(ffn=spec, d_model=13, d_hidden=11, rows=rows, cols=cols, format=number_format)
    expert = quantise_expert(weights, scales, number_format)
    image = expert_image_int8(geometry, expert)
    assert image.dtype == np.uint8
    assert image.size == geometry.num_bytes
    assert ffn_int8(spec, x, expert, scales).tolist() == plain_ffn(spec, image.tobytes(), geometry, x, scales)


INT8_ERROR = {
    (Activation.SILU, True): (0.245, 0.059),
    (Activation.SILU, False): (0.118, 0.0255),
    (Activation.CLAMPED_SWIGLU, True): (0.175, 0.046),
    (Activation.RELU, True): (0.184, 0.0395),
    (Activation.RELU, False): (0.09, 0.0195),
    (Activation.RELU2, True): (0.274, 0.066),
    (Activation.RELU2, False): (0.165, 0.038),
    (Activation.GELU, True): (0.233, 0.0555),
    (Activation.GELU, False): (0.102, 0.023),
    (Activation.GELU_TANH, True): (0.233, 0.0555),
    (Activation.GELU_TANH, False): (0.102, 0.023),
    (Activation.QUICK_GELU, True): (0.21, 0.056),
    (Activation.QUICK_GELU, False): (0.103, 0.0235),
    (Activation.SIGMOID, True): (0.101, 0.024),
    (Activation.SIGMOID, False): (0.057, 0.0115),
    (Activation.TANH, True): (0.116, 0.026),
    (Activation.TANH, False): (0.078, 0.0165),
    (Activation.LINEAR, True): (0.157, 0.0395),
    (Activation.LINEAR, False): (0.092, 0.019),
}
"""By activation and gate matrix: largest and rms error over the deviation, over seeds 0..199, rounded up."""


def errors_against_float(
    number_format: Format, activation: Activation, gated: bool, seeds: range
) -> tuple[float, float]:
    """Return an expert's largest and its largest rms error over the deviation of float's outputs."""
    largest, rms = [], []
    for seed in seeds:
        spec, weights, x, scales = random_case(
            seed,
            activation,
            gated,
            activation is Activation.CLAMPED_SWIGLU,
            d_model=128,
            d_hidden=192,
            tokens=64,
        )
        expert = quantise_expert(weights, scales, number_format)
        ours = bf16_decode(ffn_int8(spec, x, expert, scales))
        theirs = ffn(spec, x=bf16_decode(x), **vars(weights))
        error = np.abs(ours - theirs) / theirs.std()
        largest.append(error.max())
        rms.append(np.sqrt(np.mean(error**2)))
    print(f"{number_format}, {activation}: {seeds}: largest {max(largest):.4f}, rms {max(rms):.4f}")
    return max(largest), max(rms)


@pytest.mark.parametrize(("activation", "gated"), KINDS)
@pytest.mark.parametrize("seeds", [range(5), pytest.param(range(200), marks=pytest.mark.long)])
def test_against_float(activation, gated, seeds):
    """Most of it is the step of the hidden activations, of which a few are far larger than the others."""
    largest, rms = errors_against_float(Format.INT8, activation, gated, seeds)
    assert largest < INT8_ERROR[activation, gated][0]
    assert rms < INT8_ERROR[activation, gated][1]


W4A8_ERROR = {
    Activation.SILU: (1.328, 0.2195),
    Activation.CLAMPED_SWIGLU: (1.108, 0.1975),
    Activation.RELU: (0.948, 0.1795),
}
"""The same over seeds 0..49; with a gate matrix but for relu."""


@pytest.mark.parametrize("activation", W4A8_ERROR)
@pytest.mark.parametrize("seeds", [range(5), pytest.param(range(50), marks=pytest.mark.long)])
def test_w4a8_against_float(activation, seeds):
    """Most of it is the rounding of random weights to 15 values, as in the grouped formats of four bits."""
    largest, rms = errors_against_float(Format.W4A8, activation, activation is not Activation.RELU, seeds)
    assert largest < W4A8_ERROR[activation][0]
    assert rms < W4A8_ERROR[activation][1]


def test_calibration_cuts_nothing_off():
    model = load_model("deepseek-v3").scaled(128)
    weights = random_weights(model, 5)
    tokens = random_tokens(model, 7, 5)
    scales = calibrate(model, weights, tokens)
    assert np.abs(tokens).max() * scales.x.value == pytest.approx(127, rel=2**-16)
    peaks = [hidden_peak(model.ffn, weights.expert(n), tokens) for n in range(model.gating.num_experts)]
    assert max(peaks) * scales.hidden.value >= 127 * (1 - 2**-16)
    assert weights.shared_expert is not None
    shared = hidden_peak(model.ffn, weights.shared_expert, tokens)
    assert shared * scales.hidden.value <= 127 * (1 + 2**-16)
    assert calibrate(model, weights, np.zeros((2, model.d_model))).x.value == 127
