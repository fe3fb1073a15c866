"""The derived bound of bf16 against float: it holds, it is not far away, and a wrong layer breaks it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import golden.int8
from golden.error_bound import Bounded, dot, dot_int8, output_error_bound, times
from golden.experts import calibrate
from golden.formats import bf16_decode, bf16_encode
from golden.formats import dot as dot_bf16
from golden.int8 import FixedScale, quantise, quantise_rows
from golden.layer import layer
from golden.layer_bf16 import layer_bf16
from golden.vectors import read_vector
from golden.weights import LayerWeights, random_tokens, random_weights
from sim.workload import vector_workload
from spec.design import INTEGER_FORMATS, DesignSpec, Format
from spec.errors import InputError
from spec.geometry import ImageGeometry
from spec.hardware import check_hardware
from spec.load import load_design, load_model
from spec.model import Activation, AppliedTo, ModelSpec

DESIGN: DesignSpec = load_design("fpga")
MODELS = ("mixtral-8x7b", "deepseek-v3", "gpt-oss-20b", "switch-base-128")


def errors(
    model: ModelSpec,
    weights: LayerWeights,
    wrong: LayerWeights,
    seed: int,
    number_format: Format = Format.BF16,
    *,
    too_small: float = 1.0,
) -> np.ndarray:
    """Return each output's error over its bound, the hardware's layer having ``wrong`` weights.

    In integer formats the scales are calibrated on the tokens times ``too_small``.
    """
    image = ImageGeometry.of(model, dataclasses.replace(DESIGN, format=number_format))
    tokens = bf16_encode(random_tokens(model, 24, seed))
    values = bf16_decode(tokens)
    real = layer(model, weights, values)
    scales = calibrate(model, weights, too_small * values) if number_format.integer else None
    ours = layer_bf16(model, image, wrong, tokens, window_tokens=DESIGN.window_tokens, scales=scales)
    same = (np.sort(ours.routing.ids) == np.sort(real.ids)).all(axis=1)
    assert same.sum() >= 20, f"seed {seed}: other experts for {(~same).sum()} tokens"
    error = np.abs(bf16_decode(ours.output) - real.output)
    bound = output_error_bound(model, image, weights, values, real, scales)
    assert (error[bound == 0] == 0).all()
    return (error / np.where(bound == 0, 1.0, bound))[same]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("seed", range(3))
def test_bound_holds_and_is_near(name: str, seed: int) -> None:
    model = load_model(name).scaled(64)
    weights = random_weights(model, seed)
    largest = errors(model, weights, weights, seed).max()
    print(f"{name}, seed {seed}: largest error {largest:.3f} of its bound")
    assert 0.05 < largest <= 1.0


def with_terms(name: str, gating: dict[str, object], **changes: object) -> ModelSpec:
    """Return a small preset with terms that it has not."""
    model = load_model(name).scaled(64)
    return dataclasses.replace(model, gating=dataclasses.replace(model.gating, **gating), **changes)


TERMS = {
    "weights on the input": with_terms("mixtral-8x7b", {"weight_applied_to": AppliedTo.INPUT}),
    "shared gate": with_terms("deepseek-v3", {}, shared_expert_gate=True),
    "identity experts": with_terms("mixtral-8x7b", {"num_identity_experts": 3}),
    "output bias": with_terms("mixtral-8x7b", {}, output_bias=True),
    "shared biases": with_terms("deepseek-v3", {}, shared_bias=True),
    "scaled outputs": with_terms("mixtral-8x7b", {}, expert_output_scale=0.83),
    "all": with_terms(
        "deepseek-v3",
        {"weight_applied_to": AppliedTo.INPUT, "num_identity_experts": 100},
        shared_expert_gate=True,
    ),
}


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("number_format", Format)
def test_bound_holds_with_terms_of_other_families(name: str, number_format: Format) -> None:
    model = TERMS[name]
    weights = random_weights(model, 2)
    largest = errors(model, weights, weights, 2, number_format).max()
    print(f"{name} in {number_format}: largest error {largest:.3f} of its bound")
    assert 0.01 < largest <= 1.0


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("too_small", [1.0, 0.5])
@pytest.mark.parametrize("number_format", INTEGER_FORMATS)
def test_bound_of_integers_holds(name: str, number_format: Format, too_small: float) -> None:
    """With scales of smaller tokens, what lies beyond 127 steps is in the bound."""
    model = load_model(name).scaled(64)
    weights = random_weights(model, 3)
    largest = errors(model, weights, weights, 3, number_format, too_small=too_small).max()
    print(f"{name}: largest error {largest:.3f} of its bound in {number_format}")
    assert 0.01 < largest <= 1.0


KINDS = [
    (activation, gated)
    for activation in Activation
    for gated in (True, False)
    if gated or activation is not Activation.CLAMPED_SWIGLU
]


@pytest.mark.parametrize(("activation", "gated"), KINDS)
def test_bound_holds_for_every_activation(activation: Activation, gated: bool) -> None:
    """Of routed experts or of a shared one, clamped to what is no bf16 number."""
    mixtral = load_model("mixtral-8x7b").scaled(64)
    plain = dataclasses.replace(mixtral.ffn, gate_matrix=gated, clamped=gated, limit=3.3)
    ffn = dataclasses.replace(plain, activation=activation, gate_matrix=gated)
    other = Activation.GELU if activation is Activation.SILU else Activation.SILU
    shared = dataclasses.replace(
        mixtral, ffn=plain, d_shared=224, shared_activation=activation, shared_bias=True
    )
    routed = dataclasses.replace(mixtral, ffn=ffn, d_shared=32, shared_activation=other)
    for seed, model in enumerate((routed, shared)):
        weights = random_weights(model, seed)
        for number_format in Format:
            largest = errors(model, weights, weights, seed, number_format).max()
            print(f"{activation}, {number_format}: largest error {largest:.3f} of its bound")
            assert (0.03 if number_format is Format.BF16 else 0.003) < largest <= 1.0


@pytest.mark.parametrize("name", ["up", "down", "gate"])
@pytest.mark.parametrize("number_format", INTEGER_FORMATS)
def test_a_matrix_of_the_wrong_sign_breaks_the_bound_of_integers(name: str, number_format: Format) -> None:
    model = load_model("mixtral-8x7b").scaled(64)
    weights = random_weights(model, 1)
    wrong = dataclasses.replace(weights, **{name: -4 * getattr(weights, name)})
    assert errors(model, weights, wrong, 1, number_format).max() > 1.0


@pytest.mark.parametrize("bias", [None, 0.3, 1e7])
@pytest.mark.parametrize("number_format", INTEGER_FORMATS)
def test_integer_sums_are_within_their_bound_and_near(bias: float | None, number_format: Format) -> None:
    """Also where a bias is so large that it makes the row's steps larger."""
    rng = np.random.default_rng(4)
    weight = rng.standard_normal((8, 48)).astype(np.float32)
    x = bf16_encode(rng.standard_normal((256, 48)))
    scale = FixedScale.of(127 / 2.5)  # some inputs lie beyond 127 steps
    offset = None if bias is None else np.full(8, bias, np.float32)
    exact = Bounded(bf16_decode(x).astype(float), np.zeros(x.shape))
    real = dot_int8(exact, weight, scale, offset, number_format).rounded()
    stored = quantise_rows(weight, offset, scale, number_format)
    error = np.abs(bf16_decode(stored.product(quantise(x, scale))) - real.value)
    assert (error <= real.error).all()
    assert error.max() > 0.1 * real.error[error.argmax() // 8].max()


@pytest.mark.parametrize("number_format", INTEGER_FORMATS)
def test_a_quantiser_that_is_off_breaks_the_bound(
    monkeypatch: pytest.MonkeyPatch, number_format: Format
) -> None:
    """Though the bound asks it what is stored: of that it takes half a step of each weight and no more."""
    rng = np.random.default_rng(5)
    weight = np.abs(rng.standard_normal((8, 48))).astype(np.float32)
    x = bf16_encode(np.abs(rng.standard_normal((64, 48))))
    scale = FixedScale.of(127 / 5)
    exact = Bounded(bf16_decode(x).astype(float), np.zeros(x.shape))

    def over_bound() -> float:
        stored = golden.int8.quantise_rows(weight, None, scale, number_format)
        found = bf16_decode(stored.product(quantise(x, scale)))
        real = dot_int8(exact, weight, scale, None, number_format).rounded()
        return float((np.abs(found - real.value) / real.error).max())

    assert over_bound() <= 1.0
    nearest, off = np.rint, max(1, number_format.largest_weight // 8)
    monkeypatch.setattr(golden.int8.np, "rint", lambda values: nearest(values) - off)
    assert over_bound() > 1.0


@pytest.mark.parametrize("name", ["up", "down", "gate"])
def test_a_weight_that_is_off_breaks_the_bound(name: str) -> None:
    model = load_model("mixtral-8x7b").scaled(64)
    weights = random_weights(model, 1)
    matrix = getattr(weights, name).copy()
    matrix[3] *= 1.5
    wrong = dataclasses.replace(weights, **{name: matrix})
    assert errors(model, weights, wrong, 1).max() > 1.0


@pytest.mark.parametrize("cols", [1, 4, 16])
def test_dot_bound_holds_for_sums_that_cancel(cols: int) -> None:
    rng = np.random.default_rng(cols)
    x = rng.standard_normal((64, 48)) * np.exp2(rng.integers(-12, 12, (64, 48)))
    x[:, 24:] = -x[:, :24]
    w = np.repeat(rng.standard_normal((8, 1)), 48, axis=1)
    x_bits, w_bits = bf16_encode(x), bf16_encode(w)
    real = dot(Bounded(bf16_decode(x_bits).astype(float), np.zeros(x.shape)), bf16_decode(w_bits), cols)
    error = np.abs(dot_bf16(x_bits, w_bits, cols) - real.value)
    assert (error <= real.error).all()
    assert error.max() > 0


def test_product_of_two_uncertain_values() -> None:
    a, b = Bounded(np.array([2.0]), np.array([0.5])), Bounded(np.array([-3.0]), np.array([0.25]))
    product = times(a, b)
    corners = [(2 + s * 0.5) * (-3 + t * 0.25) for s in (-1, 1) for t in (-1, 1)]
    assert product.error[0] == max(abs(corner + 6) for corner in corners)


def in_hardware(path: Path) -> bool:
    """Whether the hardware has the terms of a recorded layer; ``test_families`` says which ones."""
    try:
        check_hardware(read_vector(path).model)
    except InputError:
        return False
    return True


RECORDED = [path for path in sorted((Path(__file__).parent / "data").glob("*.npz")) if in_hardware(path)]


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_recorded_layers_are_within_the_bound(path: Path) -> None:
    work = vector_workload(str(path), None)
    image = ImageGeometry.of(work.model, DESIGN)
    real = layer(work.model, work.weights, bf16_decode(work.tokens), work.batch_lengths)
    ours = layer_bf16(
        work.model,
        image,
        work.weights,
        work.tokens,
        window_tokens=DESIGN.window_tokens,
        batch_lengths=work.batch_lengths,
    )
    bound = output_error_bound(work.model, image, work.weights, bf16_decode(work.tokens), real)
    assert (np.abs(bf16_decode(ours.output) - real.output) <= bound).all()
