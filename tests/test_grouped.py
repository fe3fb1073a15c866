"""Stored weights with a scale for each group: golden against exact fractions and float."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from golden.expert import ffn
from golden.expert_grouped import ExpertGrouped, ffn_grouped, group_expert
from golden.formats import BF16_NAN, bf16_decode, bf16_encode, dot
from golden.grouped import MatrixGrouped, element_table, quantise_groups, scale_values, scaled
from golden.image import expert_image_grouped
from golden.weights import ExpertWeights
from spec.design import DEFAULT_GROUP, GROUPS, ArrayDesign, Format, RouterPlace
from spec.geometry import FfnGeometry, ImageGeometry, ceil_div
from spec.load import load_design, load_model
from spec.model import Activation, FfnSpec
from tests.exact import f32_of, nearest_f32
from tests.test_spec import raises

FORMATS = tuple(GROUPS)


def random_weights(rng, spec: FfnSpec, d_model: int, d_hidden: int) -> ExpertWeights:
    """Return weights scaled by their fan-in, bf16 values."""

    def draw(*shape: int) -> np.ndarray:
        return bf16_decode(bf16_encode(rng.standard_normal(shape) / np.sqrt(shape[-1])))

    return ExpertWeights(
        gate=draw(d_hidden, d_model) if spec.gated else None,
        up=draw(d_hidden, d_model),
        down=draw(d_model, d_hidden),
        gate_bias=draw(d_hidden) if spec.gated and spec.bias else None,
        up_bias=draw(d_hidden) if spec.bias else None,
        down_bias=draw(d_model) if spec.bias else None,
    )


def test_elements_decode_exactly():
    fp8 = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    ours = bf16_decode(element_table(Format.FP8))
    assert np.array_equal(ours, fp8, equal_nan=True)
    assert np.isnan(fp8).sum() == 2
    fp4 = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    assert bf16_decode(element_table(Format.MXFP4)).tolist() == fp4.tolist()
    assert bf16_decode(element_table(Format.INT4)).tolist() == [*range(8), *range(-8, 0)]


def test_scales_decode_exactly():
    e8m0 = scale_values(Format.MXFP4, np.arange(256))
    assert np.isnan(e8m0[255])
    assert [Fraction(value) for value in e8m0[:255]] == [Fraction(2) ** (n - 127) for n in range(255)]
    assert scale_values(Format.INT4, np.array([0x3FC0, 0xBF80, 0x0001])).tolist() == [1.5, -1.0, 0.0]
    patterns = np.array([0x3F800001, 1], dtype=np.uint32)
    assert scale_values(Format.FP8, patterns).tolist() == [1 + 2.0**-23, 0.0]


def test_scaling_rounds_once():
    rng = np.random.default_rng(0)
    sums = rng.integers(0, 255 << 23, 4000).astype(np.uint32)
    sums = np.where(sums >> 23 == 0, 0, sums) | rng.integers(0, 2, 4000).astype(np.uint32) << 31
    factors = rng.integers(1 << 23, 255 << 23, 4000).astype(np.uint32)
    ours = scaled(sums.view(np.float32), scale_values(Format.FP8, factors)).view(np.uint32)
    want = [
        nearest_f32(Fraction(f32_of(int(a))) * Fraction(f32_of(int(b))))
        for a, b in zip(sums, factors, strict=True)
    ]
    assert ours.tolist() == want
    infinite, zero = 0x7F800000, 0
    assert {infinite, zero} <= {pattern & 0x7FFFFFFF for pattern in want}, "the corner was not reached"


@pytest.mark.parametrize("number_format", FORMATS)
def test_sums_are_made_group_by_group(number_format):
    """By exact fractions from the sums of the bursts."""
    rng = np.random.default_rng(1)
    cols, group, inputs = 2, 4, 10
    matrix = quantise_groups(
        rng.standard_normal((3, inputs)).astype(np.float32),
        number_format,
        group,
        rng.standard_normal(3).astype(np.float32),
    )
    x = bf16_encode(rng.standard_normal((5, inputs)))
    ours = matrix.product(x, cols).view(np.uint32)
    for token, row in np.ndindex(5, 3):
        assert matrix.bias is not None
        total = Fraction(float(bf16_decode(matrix.bias)[row]))
        for number in range(ceil_div(inputs, group)):
            part = slice(number * group, (number + 1) * group)
            [[of_group]] = dot(x[token : token + 1, part], matrix.elements()[row : row + 1, part], cols)
            factor = Fraction(scale_values(number_format, matrix.scales)[row, number])
            product = f32_of(nearest_f32(Fraction(float(of_group)) * factor))
            total = Fraction(f32_of(nearest_f32(total + Fraction(product))))
        assert f32_of(int(ours[token, row])) == total, (token, row)


def test_groups_of_a_burst_are_added_in_pairs():
    """Four groups of a burst: (1 + -1) + (tiny + tiny), not (1 + -1 + tiny) + tiny; then to the bias."""
    tiny = 2.0**-24
    codes = np.array([[1, 0xF, 1, 1]], np.uint8)
    scales = np.array([[0x3F80, 0x3F80, 0x3380, 0x3380]], np.uint32)  # 1, 1, 2**-24, 2**-24
    matrix = MatrixGrouped(Format.INT4, 1, codes, scales, bf16_encode(np.array([1.0])))
    one = bf16_encode(np.ones((1, 4)))
    assert matrix.product(one, 4).tolist() == [[1 + 2 * tiny]]
    assert matrix.product(one, 2).tolist() == [[1 + 2 * tiny]]
    # One after the other: 1 + tiny is a tie, to even.
    assert matrix.product(one, 1).tolist() == [[1.0]]
    partial = replace(matrix, codes=codes[:, :3], scales=scales[:, :3])
    assert partial.product(one[:, :3], 4).tolist() == [[1.0]]


@pytest.mark.parametrize("number_format", FORMATS)
@pytest.mark.parametrize("group", [4, 32])
def test_the_nearest_elements_are_stored(number_format, group):
    """No other element of the group's scale is nearer; blocks at the edges are partial."""
    rng = np.random.default_rng(2)
    weights = (rng.standard_normal((37, 43)) * np.exp(rng.standard_normal((37, 1)))).astype(np.float32)
    weights[3, :group] = 0
    weights[:, -1] = 0.25
    stored = quantise_groups(weights, number_format, group)
    table = bf16_decode(element_table(number_format)).astype(np.float64)
    if number_format is Format.INT4:
        table = table[table != -8]
    factors = np.repeat(scale_values(number_format, stored.scales), group, axis=1)[:, :43]
    possible = table[np.isfinite(table)] * factors[..., None]
    error = np.abs(stored.values() - weights)
    assert (error <= np.abs(possible - weights[..., None]).min(axis=-1) + 1e-7 * np.abs(weights)).all()
    assert (stored.values()[3, :group] == 0).all()
    if number_format is Format.FP8:
        assert len(np.unique(stored.scales, axis=0)) == ceil_div(37, group)


def test_scales_of_groups():
    weights = np.array([[1.0, -7.0, 0, 0, 448, 1, 2, 3]], np.float32)
    assert quantise_groups(weights, Format.MXFP4, 4).scales.tolist() == [[127, 133]]
    assert scale_values(Format.INT4, quantise_groups(weights, Format.INT4, 4).scales).tolist() == [[1, 64]]
    assert scale_values(Format.FP8, quantise_groups(weights, Format.FP8, 4).scales)[0, 1] == 1
    tiny = np.full((1, 4), 1e-38, np.float32)
    for number_format in (Format.FP8, Format.INT4):
        stored = quantise_groups(tiny, number_format, 4)
        assert (stored.scales[0, 0], stored.codes.any()) == (0, False)
    assert quantise_groups(tiny, Format.MXFP4, 4).values()[0, 0] == pytest.approx(1e-38, rel=0.3)


def test_ties_go_to_the_even_element():
    weights = np.array([[4.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]], np.float32)
    assert quantise_groups(weights, Format.MXFP4, 8).codes.tolist() == [[6, 0, 2, 2, 4, 4, 6, 6]]
    assert quantise_groups(-weights, Format.MXFP4, 8).codes.tolist() == [[14, 0, 10, 10, 12, 12, 14, 14]]


def plain_bits(data: bytes, place: int, width: int) -> int:
    """Return ``width`` bits of a memory from bit ``place`` on, the lowest first."""
    whole = int.from_bytes(data[place // 8 : (place + width + 7) // 8], "little")
    return whole >> place % 8 & ((1 << width) - 1)


@pytest.mark.parametrize("number_format", FORMATS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("rows", "cols", "group"), [(4, 8, 8), (2, 16, 32), (2, 16, 8)])
def test_a_matrix_is_read_from_its_image(number_format, bias, rows, cols, group):
    """Address by address, as ``docs/expert.md`` describes it; what belongs to no weight is zero."""
    spec = FfnSpec(d_expert=11, activation=Activation.RELU, bias=bias)
    geometry = FfnGeometry(
        ffn=spec,
        d_model=53,
        d_hidden=11,
        rows=rows,
        cols=cols,
        format=number_format,
        group=group,
    )
    weights = random_weights(np.random.default_rng(3), spec, 53, 11)
    expert = group_expert(weights, number_format, geometry.group)
    image = expert_image_grouped(geometry, expert)
    assert (image.dtype, image.size) == (np.uint8, geometry.num_bytes)
    data, bits = image.tobytes(), number_format.bits
    tile_bits, row_bits = geometry.tile_bytes * 8, cols * bits

    def read(matrix: MatrixGrouped, first_tile: int) -> int:
        """Compare a matrix that begins at a tile; return the number of the tile behind it."""
        num_rows, inputs = matrix.codes.shape
        tile = first_tile
        for block in range(ceil_div(num_rows, rows)):
            for number in range(ceil_div(inputs, cols)):
                if number % geometry.span_tiles == 0:
                    scale_tile, tile = tile, tile + 1
                for row in range(block * rows, (block + 1) * rows):
                    at = row % rows * row_bits
                    for n in range(cols):
                        column = number * cols + n
                        inside = row < num_rows and column < inputs
                        want = int(matrix.codes[row, column]) if inside else 0
                        assert plain_bits(data, tile * tile_bits + at + n * bits, bits) == want
                    for column in range(number * cols, number * cols + cols, min(cols, group)):
                        n = column // group
                        place = geometry.bias_bits + n % geometry.span_groups * number_format.scale_bits
                        inside = row < num_rows and column < inputs
                        want = int(matrix.scales[row, n]) if inside else 0
                        got = plain_bits(data, scale_tile * tile_bits + at + place, number_format.scale_bits)
                        assert got == want
                    if matrix.bias is not None:
                        want = int(matrix.bias[row]) if row < num_rows else 0
                        assert plain_bits(data, scale_tile * tile_bits + at, 16) == want
                tile += 1
        return tile

    assert read(expert.down, read(expert.up, 0)) == geometry.num_tiles


FLOAT_CASES = {
    activation: FfnSpec(d_expert=192, activation=activation, bias=activation is Activation.CLAMPED_SWIGLU)
    for activation in (Activation.SILU, Activation.CLAMPED_SWIGLU, Activation.RELU)
}
ERRORS = {
    Format.FP8: (0.29, 0.050),
    Format.MXFP4: (1.50, 0.21),
    Format.INT4: (1.26, 0.18),
}
"""Largest and rms error over the output's deviation, all activations, seeds 0..49: measured, rounded up."""


def errors_of(number_format: Format, group: int, activation: Activation, seed: int) -> tuple[float, float]:
    spec = FLOAT_CASES[activation]
    rng = np.random.default_rng(seed)
    weights = random_weights(rng, spec, 128, 192)
    x = bf16_encode(rng.standard_normal((64, 128)))
    ours = bf16_decode(ffn_grouped(spec, x, group_expert(weights, number_format, group), 16))
    theirs = ffn(spec, x=bf16_decode(x), **vars(weights))
    error = np.abs(ours - theirs) / theirs.std()
    return float(error.max()), float(np.sqrt(np.mean(error**2)))


@pytest.mark.parametrize("number_format", FORMATS)
@pytest.mark.parametrize("activation", list(FLOAT_CASES))
@pytest.mark.parametrize("seeds", [range(2), pytest.param(range(50), marks=pytest.mark.long)])
def test_against_float(number_format, activation, seeds):
    """Most of it is the rounding of the weights to few bits."""
    found = [errors_of(number_format, DEFAULT_GROUP[number_format], activation, seed) for seed in seeds]
    largest, rms = (max(values) for values in zip(*found, strict=True))
    print(f"{number_format} {activation}: {seeds}: largest {largest:.4f}, rms {rms:.4f} of the output's std")
    assert largest < ERRORS[number_format][0]
    assert rms < ERRORS[number_format][1]


def test_exact_weights_leave_the_error_of_bf16():
    """Weights that a format holds exactly: what is left is the rounding of hidden values and results."""
    spec = FfnSpec(d_expert=192, activation=Activation.SILU)
    rng = np.random.default_rng(5)
    for number_format in FORMATS:
        stored = group_expert(random_weights(rng, spec, 128, 192), number_format, 32)
        x = bf16_encode(rng.standard_normal((64, 128)))
        real = {name: matrix.values() for name, matrix in vars(stored).items()}
        theirs = ffn(spec, x=bf16_decode(x).astype(np.float64), **real)
        error = np.abs(bf16_decode(ffn_grouped(spec, x, stored, 16)) - theirs) / theirs.std()
        assert error.max() < 0.025, number_format


def test_a_scale_of_another_group_is_found():
    spec = FfnSpec(d_expert=64, activation=Activation.SILU)
    rng = np.random.default_rng(6)
    stored = group_expert(random_weights(rng, spec, 64, 64), Format.MXFP4, 32)
    stored.up.scales[:, 0] += 1
    x = bf16_encode(rng.standard_normal((4, 64)))
    wrong = ExpertGrouped(
        stored.gate, replace(stored.up, scales=np.ascontiguousarray(stored.up.scales[:, ::-1])), stored.down
    )
    assert (ffn_grouped(spec, x, stored, 16) != ffn_grouped(spec, x, wrong, 16)).mean() > 0.9


def test_nan_elements_and_scales_give_nan():
    codes = np.full((1, 4), 0x38, np.uint8)
    one = bf16_encode(np.ones((1, 4)))
    sound = MatrixGrouped(Format.FP8, 2, codes, np.full((1, 2), 0x3F800000, np.uint32), None)
    assert sound.product(one, 2).tolist() == [[4.0]]
    codes_with_nan = codes.copy()
    codes_with_nan[0, 3] = 0xFF
    assert bf16_encode(replace(sound, codes=codes_with_nan).product(one, 2)).tolist() == [[BF16_NAN]]
    e8m0 = MatrixGrouped(Format.MXFP4, 2, codes & 3, np.array([[127, 255]], np.uint32), None)
    assert bf16_encode(e8m0.product(one, 2)).tolist() == [[BF16_NAN]]


# What a design may ask for.


def test_groups_of_a_design():
    for number_format, group in DEFAULT_GROUP.items():
        design = load_design("fpga", number_format)
        geometry = ImageGeometry.of(load_model("deepseek-v3"), design).routed
        assert (design.scale_group, geometry.group, geometry.group_tiles) == (group, group, group // 16)
    assert load_design("fpga").scale_group == 0
    # A whole expert: elements, one scale tile for each span, nothing else.
    sizes = {
        number_format: ImageGeometry.of(
            load_model("deepseek-v3"), load_design("fpga", number_format)
        ).routed.num_bytes
        for number_format in (Format.BF16, *FORMATS)
    }
    weights = 3 * 7168 * 2048
    assert sizes[Format.BF16] == 2 * weights
    assert sizes[Format.FP8] == weights * (1 + 4 / 128)
    assert sizes[Format.MXFP4] == weights / 2 * (1 + 1 / 16)
    assert sizes[Format.INT4] == weights / 2 * (1 + 2 / 16)


@pytest.mark.parametrize(
    ("number_format", "changes", "message"),
    [
        (Format.BF16, {"group": 32}, "group: must not be given with format bf16 (it has no groups)"),
        (Format.MXFP4, {"group": 64}, "group: must be 32 with format mxfp4, not 64"),
        (Format.INT4, {"group": 48}, "group: must be a power of two in 32..128, not 48"),
        (Format.INT4, {"group": 16}, "group: must be a power of two in 32..128, not 16"),
        (Format.FP8, {"group": 256}, "group: must be a power of two in 1..128, not 256"),
        (
            Format.MXFP4,
            {"array": ArrayDesign(rows=16, cols=64, act_lanes=4)},
            (
                "array.cols: must be at most group=32 (mxfp4 weights that share a scale), not 64: a tile must"
                " not split a group"
            ),
        ),
    ],
)
def test_what_a_design_may_not_ask_for(number_format, changes, message):
    design = load_design("fpga", number_format)
    with raises(message):
        replace(design, **changes)


def test_a_tile_must_not_split_a_group():
    spec = FfnSpec(d_expert=8, activation=Activation.RELU)
    with raises(
        "group: must be whole tiles of cols=8 inputs, or divide one (a tile must not split a group), not 12"
    ):
        FfnGeometry(ffn=spec, d_model=8, d_hidden=8, rows=4, cols=8, format=Format.INT4, group=12)


def test_scales_must_fit_a_row_of_a_tile():
    spec = FfnSpec(d_expert=8, activation=Activation.RELU, bias=True)
    with raises("cols: must be at least 8 in int4 (a row of a tile holds a scale and a bias), not 4"):
        FfnGeometry(ffn=spec, d_model=8, d_hidden=8, rows=4, cols=4, format=Format.INT4, group=32)


def test_scales_of_a_tiles_groups_must_fit_a_row():
    """Each with a bias and without; the group named is the least one that fits."""
    for bias, least in ((False, 4), (True, 8)):
        spec = FfnSpec(d_expert=8, activation=Activation.RELU, bias=bias)
        shape = {"ffn": spec, "d_model": 8, "d_hidden": 8, "rows": 4, "cols": 32, "format": Format.FP8}
        words = " and a bias" if bias else ""
        with raises(
            f"group: must be at least {least} in fp8 with cols=32 (a row of a tile holds the scales of a"
            f" tile's groups{words}), not 2"
        ):
            FfnGeometry(**shape, group=2)
        geometry = FfnGeometry(**shape, group=least)
        assert (geometry.tile_groups, geometry.span_groups) == (32 // least, 32 // least)
        with raises(
            f"group: must be at least {least} in fp8 with cols=32 (a row of a tile holds the scales"
            f" of a tile's groups{words}), not {least // 2}"
        ):
            FfnGeometry(**shape, group=least // 2)


def test_groups_of_a_channel_of_banks():
    """A burst is 32 fp8 or 64 other elements; a register write still 16 inputs."""
    sizes = {Format.FP8: (32, 4, 1, 32), Format.MXFP4: (64, 1, 2, 16), Format.INT4: (64, 1, 2, 8)}
    weights = 3 * 7168 * 2048
    for number_format, (cols, group_tiles, tile_groups, span_tiles) in sizes.items():
        design = load_design("pim", number_format)
        geometry = ImageGeometry.of(load_model("deepseek-v3"), design).routed
        assert (geometry.cols, geometry.group_tiles, geometry.tile_groups) == (cols, group_tiles, tile_groups)
        assert geometry.span_tiles == span_tiles
        assert geometry.num_bytes == weights * number_format.bits / 8 * (1 + 1 / span_tiles)
        assert design.pim is not None
        assert design.pim.load_lanes(number_format) == 16


@pytest.mark.parametrize("number_format", FORMATS)
def test_a_channel_of_banks_has_its_router_elsewhere(number_format):
    design = load_design("pim", number_format)
    with raises(
        f"pim.router: must be own with format {number_format} (the lanes beside the banks take"
        f" {number_format} weights then, the router is bf16), not banks"
    ):
        replace(design, pim=replace(design.pim, router=RouterPlace.BANKS))


def test_a_register_write_brings_a_hidden_value_of_each_unit():
    """Though a burst has more weights than units."""
    design = load_design("pim", "mxfp4")
    dram = replace(design.pim.dram, burst_bytes=16)
    with raises(
        "pim.banks_per_unit: leaves 16 units in 16 banks; there must be 1..8 (the bf16 elements of a burst)"
    ):
        replace(design, pim=replace(design.pim, dram=dram))
