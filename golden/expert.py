"""One expert's feed-forward network, in float."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from golden.gating import sigmoid
from spec.model import Activation, FfnSpec

_SQRT_HALF = math.sqrt(0.5)
_SQRT_2_OVER_PI = math.sqrt(2.0 / math.pi)
_erf = np.vectorize(math.erf, otypes=[np.float64])


def ffn(
    spec: FfnSpec,
    gate: NDArray[np.floating] | None,
    up: NDArray[np.floating],
    down: NDArray[np.floating],
    x: NDArray[np.floating],
    *,
    gate_bias: NDArray[np.floating] | None = None,
    up_bias: NDArray[np.floating] | None = None,
    down_bias: NDArray[np.floating] | None = None,
    second_up: NDArray[np.floating] | None = None,
) -> NDArray[np.float64]:
    """Return one expert's output for n tokens, computed in float64.

    Parameters
    ----------
    spec : the activation. Its ``d_expert`` is not read: the arrays say how wide the expert is.
    gate : (F, H), or None where there is no gate matrix.
    up : (F, H).
    down : (H, F).
    x : (n, H).
    gate_bias, up_bias, down_bias : (F,), (F,) and (H,), or None.
    second_up : (F, H), or None.

    Returns
    -------
    (n, H) float64.

    Sources: gated activations arXiv 2002.05202 (eq. 5 and 6); clamped SwiGLU: the gpt-oss release; ReLU arXiv
    2101.03961; squared ReLU arXiv 2109.08668; GELU and its approximations arXiv 1606.08415; a second up
    matrix: github.com/hpcaitech/ColossalAI colossalai/moe/experts.py.
    """
    values = hidden(spec, gate, up, x, gate_bias=gate_bias, up_bias=up_bias)
    if second_up is not None:
        values = values * linear(x, second_up, None)
    return linear(values, down, down_bias)


def hidden(
    spec: FfnSpec,
    gate: NDArray[np.floating] | None,
    up: NDArray[np.floating],
    x: NDArray[np.floating],
    *,
    gate_bias: NDArray[np.floating] | None = None,
    up_bias: NDArray[np.floating] | None = None,
) -> NDArray[np.float64]:
    """Return one expert's hidden activations, (n, F) float64; parameters as in :func:`ffn`."""
    u = linear(x, up, up_bias)
    if gate is None:
        return activation(spec.activation, u)
    return activate(spec, linear(x, gate, gate_bias), u)


def activate(spec: FfnSpec, g: NDArray[np.float64], u: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the gated activation of gate values ``g`` and up values ``u``, elementwise."""
    if spec.clamped or spec.activation is Activation.CLAMPED_SWIGLU:
        g = np.minimum(g, spec.limit)
        u = np.clip(u, -spec.limit, spec.limit)
    if spec.activation is Activation.CLAMPED_SWIGLU:
        return (u + 1.0) * g * sigmoid(spec.alpha * g)
    return activation(spec.activation, g) * u


def activation(kind: Activation, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return an activation of one argument, elementwise; ``clamped_swiglu`` has two (:func:`activate`)."""
    match kind:
        case Activation.SILU:
            return x * sigmoid(x)
        case Activation.RELU:
            return np.maximum(x, 0.0)
        case Activation.RELU2:
            return np.maximum(x, 0.0) ** 2
        case Activation.GELU:
            return 0.5 * x * (1.0 + np.asarray(_erf(x * _SQRT_HALF)))
        case Activation.GELU_TANH:
            return 0.5 * x * (1.0 + np.tanh(_SQRT_2_OVER_PI * (x + 0.044715 * x**3)))
        case Activation.QUICK_GELU:
            return x * sigmoid(1.702 * x)
        case Activation.SIGMOID:
            return sigmoid(x)
        case Activation.TANH:
            return np.tanh(x)
        case Activation.LINEAR:
            return x
    raise ValueError(f"{kind} has no single argument")


def linear(
    x: NDArray[np.floating], weight: NDArray[np.floating], bias: NDArray[np.floating] | None
) -> NDArray[np.float64]:
    """Return ``x @ weight.T``, (n, outputs) float64, and the bias where there is one."""
    product: NDArray[np.float64] = x.astype(np.float64) @ weight.astype(np.float64).T
    return product if bias is None else product + bias
