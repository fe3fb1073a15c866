"""One expert's feed-forward network, in float."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from golden.gating import sigmoid
from spec.model import Activation, FfnSpec


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
) -> NDArray[np.float64]:
    """Return one expert's output for n tokens, computed in float64.

    Parameters
    ----------
    spec : the activation. Its ``d_expert`` is not read: the arrays say how wide the expert is.
    gate : (F, H), or None where the activation is not gated.
    up : (F, H).
    down : (H, F).
    x : (n, H).
    gate_bias, up_bias, down_bias : (F,), (F,) and (H,), or None.

    Returns
    -------
    (n, H) float64.

    Sources: SwiGLU arXiv 2002.05202 (eq. 6); clamped SwiGLU: the gpt-oss release; ReLU arXiv
    2101.03961.
    """
    return _linear(hidden(spec, gate, up, x, gate_bias=gate_bias, up_bias=up_bias), down, down_bias)


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
    u = _linear(x, up, up_bias)
    return np.maximum(u, 0.0) if gate is None else activate(spec, _linear(x, gate, gate_bias), u)


def activate(spec: FfnSpec, g: NDArray[np.float64], u: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the gated activation of gate values ``g`` and up values ``u``, elementwise."""
    if spec.activation is Activation.CLAMPED_SWIGLU:
        g = np.minimum(g, spec.limit)
        u = np.clip(u, -spec.limit, spec.limit)
        return (u + 1.0) * g * sigmoid(spec.alpha * g)
    return g * sigmoid(g) * u


def _linear(
    x: NDArray[np.floating], weight: NDArray[np.floating], bias: NDArray[np.floating] | None
) -> NDArray[np.float64]:
    product: NDArray[np.float64] = x.astype(np.float64) @ weight.astype(np.float64).T
    return product if bias is None else product + bias
