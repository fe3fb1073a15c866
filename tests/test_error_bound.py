"""The derived bound of bf16 against float: it holds, it is not far away, and a wrong layer breaks it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from golden.error_bound import Bounded, dot, output_error_bound, times
from golden.formats import bf16_decode, bf16_encode
from golden.formats import dot as dot_bf16
from golden.layer import layer
from golden.layer_bf16 import layer_bf16
from golden.vectors import read_vector
from golden.weights import LayerWeights, random_tokens, random_weights
from sim.workload import vector_workload
from spec.design import DesignSpec
from spec.errors import InputError
from spec.geometry import ImageGeometry
from spec.hardware import check_hardware
from spec.load import load_design, load_model
from spec.model import ModelSpec

DESIGN: DesignSpec = load_design("fpga")
MODELS = ("mixtral-8x7b", "deepseek-v3", "gpt-oss-20b", "switch-base-128")


def errors(model: ModelSpec, weights: LayerWeights, wrong: LayerWeights, seed: int) -> np.ndarray:
    """Return each output's error over its bound, the hardware's layer having ``wrong`` weights."""
    image = ImageGeometry.of(model, DESIGN)
    tokens = bf16_encode(random_tokens(model, 24, seed))
    values = bf16_decode(tokens)
    real = layer(model, weights, values)
    ours = layer_bf16(model, image, wrong, tokens, window_tokens=DESIGN.window_tokens)
    same = (np.sort(ours.routing.ids) == np.sort(real.ids)).all(axis=1)
    assert same.sum() >= 20, f"seed {seed}: other experts for {(~same).sum()} tokens"
    error = np.abs(bf16_decode(ours.output) - real.output)
    bound = output_error_bound(model, image, weights, values, real)
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
