"""Tokens that a layer's gate sends to wanted experts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from golden.gating import route
from golden.weights import LayerWeights, to_bf16_values
from sim.routing.synthetic import STREAM, TOKENS_AT_A_TIME, FloatArray, IntArray
from spec.model import GatingSpec

LOGIT = 4.0
"""What a token's experts get; the others about 0."""
NOISE = 0.25
ROUNDS = 24
DAMPING = 1e-2
"""Of the router's mean squared row; keeps tokens small where its rows nearly depend on each other."""


def fitted_tokens(gating: GatingSpec, weights: LayerWeights, ids: IntArray, seed: int) -> FloatArray:
    """Return (tokens, d_model) tokens that the gate sends to ``ids`` wherever the fit finds such ones.

    A token is the combination of router rows (damped least squares) whose logits are large for its experts
    and 0 for the others, plus noise. While the gate, groups and biases included, chooses others than wanted
    for the token rounded to bf16, the logits of what it misses are raised and those of what it wrongly takes
    lowered. Biases, groups and routers with fewer dimensions than experts make this necessary: the first
    combination misses most sets there. Some may stay out of reach; the load that comes out is reported beside
    the one asked for.
    """
    rng = np.random.default_rng([seed, STREAM, 1])
    router = weights.router.astype(np.float64)
    products = router @ router.T
    damping = max(DAMPING * float(np.trace(products)) / len(router), 1e-30)
    solve = np.linalg.inv(products + damping * np.eye(len(router))) @ router
    tokens = np.empty((len(ids), router.shape[1]))
    for start in range(0, len(ids), TOKENS_AT_A_TIME):
        some = ids[start : start + TOKENS_AT_A_TIME]
        noise = NOISE * rng.standard_normal((len(some), router.shape[1]))
        wanted = _marked(some, len(router))
        logits = LOGIT * wanted
        fitted = logits @ solve + noise
        wrong = np.arange(len(some))
        for _ in range(ROUNDS):
            # Tokens that are right stay as they are; only the others are looked at again.
            values = to_bf16_values(fitted[wrong])
            chosen = route(gating, weights.router, values, weights.logit_bias, weights.selection_bias).ids
            change = wanted[wrong].astype(np.float64) - _marked(chosen, len(router))
            still = change.any(axis=1)
            wrong = wrong[still]
            if not len(wrong):
                break
            logits[wrong] += change[still]
            fitted[wrong] = logits[wrong] @ solve + noise[wrong]
        tokens[start : start + len(some)] = fitted
    return tokens


def _marked(ids: IntArray, num_experts: int) -> NDArray[np.bool_]:
    """Return (tokens, experts): whether an expert is among a token's."""
    marked = np.zeros((len(ids), num_experts), np.bool_)
    np.put_along_axis(marked, ids, True, axis=1)
    return marked
