"""An MoE layer written the slow, obvious way: one token, one expert, one number at a time.

It shares no code with the golden model: Python floats and lists, formulas straight from the families'
definitions. Tests compare the two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from golden.weights import LayerWeights
from spec.model import ModelSpec


@dataclass(frozen=True)
class Expected:
    """What :func:`reference_layer` computed; arrays as in a vector file."""

    router_logits: np.ndarray
    topk_indices: np.ndarray
    topk_weights: np.ndarray
    combine: np.ndarray
    output: np.ndarray
    dropped_assignments: int


def reference_layer(model: ModelSpec, weights: LayerWeights, tokens: np.ndarray) -> Expected:
    """Compute a layer for tokens (B, S, H)."""
    num_experts, k = model.gating.num_experts, model.gating.top_k
    logits, indices, kept_weights, combine, outputs = [], [], [], [], []
    dropped = 0
    for sequence in tokens:
        gates = []
        for token in sequence.tolist():
            z = [dot(row, token) for row in weights.router.tolist()]
            if weights.logit_bias is not None:
                z = [a + b for a, b in zip(z, weights.logit_bias.tolist(), strict=True)]
            gates.append((z, *reference_gate(model, z, weights.selection_bias)))
        places = reference_places(model, [(chosen, factors) for _, chosen, factors in gates])
        for number, (z, chosen, factors) in enumerate(gates):
            token = sequence[number].tolist()
            row = [0.0] * num_experts
            for slot, expert in enumerate(chosen):
                if (number, slot) in places:
                    row[expert] = factors[slot]
                else:
                    factors[slot] = 0.0
                    dropped += 1
            y = [0.0] * model.d_model
            if weights.shared_up is not None:
                y = reference_ffn(model, weights, None, token)
            for expert in range(num_experts):
                if row[expert]:
                    part = reference_ffn(model, weights, expert, token)
                    y = [a + row[expert] * b for a, b in zip(y, part, strict=True)]
            logits.append(z)
            indices.append(chosen)
            kept_weights.append(factors)
            combine.append(row)
            outputs.append(y)
    return Expected(
        router_logits=np.array(logits),
        topk_indices=np.array(indices, np.int64).reshape(-1, k),
        topk_weights=np.array(kept_weights),
        combine=np.array(combine),
        output=np.array(outputs).reshape(tokens.shape),
        dropped_assignments=dropped,
    )


def reference_places(model: ModelSpec, gates: list[tuple[list[int], list[float]]]) -> set[tuple[int, int]]:
    """Return the (token, choice) pairs of a sequence that find a place at their expert."""
    pairs = [(token, choice) for token in range(len(gates)) for choice in range(model.gating.top_k)]
    if model.capacity_rule != "switch":
        pairs.sort(key=lambda pair: pair[1])
    if model.capacity_rule == "batch_priority":
        pairs.sort(key=lambda pair: (pair[1], -max(gates[pair[0]][1])))
    load = [0] * model.gating.num_experts
    places = set()
    for token, choice in pairs:
        expert = gates[token][0][choice]
        if load[expert] < model.expert_capacity or not model.expert_capacity:
            load[expert] += 1
            places.add((token, choice))
    return places


def reference_gate(
    model: ModelSpec, z: list[float], selection_bias: np.ndarray | None
) -> tuple[list[int], list[float]]:
    """Return one token's experts and weights."""
    gating = model.gating
    if gating.score == "softmax":
        top = max(z)
        total = math.fsum(math.exp(value - top) for value in z)
        scores = [math.exp(value - top) / total for value in z]
    else:
        scores = [1 / (1 + math.exp(-value)) for value in z]
    ranking = list(scores)
    if selection_bias is not None:
        ranking = [a + b for a, b in zip(scores, selection_bias.tolist(), strict=True)]
    candidates = set(range(len(z)))
    if gating.topk_groups < gating.num_groups:
        size = len(z) // gating.num_groups
        members = [list(range(g * size, (g + 1) * size)) for g in range(gating.num_groups)]
        best = 1 if gating.group_score == "max" else 2
        worth = [sum(sorted((ranking[e] for e in group), reverse=True)[:best]) for group in members]
        winners = sorted(range(gating.num_groups), key=lambda g: (-worth[g], g))[: gating.topk_groups]
        candidates = {e for g in winners for e in members[g]}
    chosen = sorted(candidates, key=lambda e: (-ranking[e], e))[: gating.top_k]
    factors = [scores[e] for e in chosen]
    if gating.normalise == "sum":
        total = sum(factors) + gating.epsilon
        factors = [factor / total if total else 0.0 for factor in factors]
    return chosen, [factor * gating.scale for factor in factors]


def reference_ffn(model: ModelSpec, w: LayerWeights, expert: int | None, x: list[float]) -> list[float]:
    """Return the output of one expert (None: the shared one) for one token."""
    if expert is None:
        gate, up, down = w.shared_gate, w.shared_up, w.shared_down
        biases = (None, None, None)
    else:
        gate, up, down = (None if a is None else a[expert] for a in (w.gate, w.up, w.down))
        biases = tuple(None if a is None else a[expert] for a in (w.gate_bias, w.up_bias, w.down_bias))
    u = affine(up, biases[1], x)
    if model.ffn.activation == "relu":
        hidden = [max(value, 0.0) for value in u]
    else:
        g = affine(gate, biases[0], x)
        if model.ffn.activation == "silu":
            hidden = [a / (1 + math.exp(-a)) * b for a, b in zip(g, u, strict=True)]
        else:
            limit, alpha = model.ffn.limit, model.ffn.alpha
            g = [min(a, limit) for a in g]
            u = [max(-limit, min(b, limit)) for b in u]
            hidden = [(b + 1) * a / (1 + math.exp(-alpha * a)) for a, b in zip(g, u, strict=True)]
    return affine(down, biases[2], hidden)


def affine(matrix: np.ndarray, bias: np.ndarray | None, x: list[float]) -> list[float]:
    """Return ``matrix x + bias``."""
    products = [dot(row, x) for row in matrix.tolist()]
    return products if bias is None else [a + b for a, b in zip(products, bias.tolist(), strict=True)]


def dot(a: list[float], b: list[float]) -> float:
    """Return the exactly rounded sum of the products."""
    return math.fsum(x * y for x, y in zip(a, b, strict=True))
