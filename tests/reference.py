"""An MoE layer written the slow, obvious way: one token, one expert, one number at a time.

It shares no code with the golden model: Python floats and lists, formulas straight from the families'
definitions. Tests compare the two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from golden.weights import LayerWeights
from spec.model import FfnSpec, GatingSpec, ModelSpec


@dataclass(frozen=True)
class Expected:
    """What :func:`reference_layer` computed; arrays as in a vector file."""

    router_logits: np.ndarray
    topk_indices: np.ndarray
    topk_weights: np.ndarray
    combine: np.ndarray
    output: np.ndarray
    dropped_assignments: int


def reference_layer(
    model: ModelSpec, weights: LayerWeights, tokens: np.ndarray, token_ids: np.ndarray | None = None
) -> Expected:
    """Compute a layer for tokens (B, S, H); token_ids (B, S) where experts are hashed."""
    gating = model.gating
    num_experts, k = gating.num_experts, gating.top_k
    flat = tokens.reshape(-1, tokens.shape[2]).tolist()
    ids = [None] * len(flat) if token_ids is None else token_ids.ravel().tolist()
    gates = []
    for token, token_id in zip(flat, ids, strict=True):
        z = reference_logits(weights, token)
        if gating.logit_deviation:
            mean = math.fsum(z) / num_experts
            spread = math.sqrt(math.fsum((value - mean) ** 2 for value in z) / num_experts)
            z = [gating.logit_deviation * (value - mean) / spread if spread else 0.0 for value in z]
        gates.append((z, *reference_gate(model, weights, z, token_id)))
    length = len(flat) if model.capacity_scope == "batch" else tokens.shape[1]
    kept = []
    for start in range(0, len(flat), length):
        places = reference_places(model, [gate[1:] for gate in gates[start : start + length]])
        kept += [[(token, slot) in places for slot in range(k)] for token in range(length)]
    logits, indices, kept_weights, combine, outputs = [], [], [], [], []
    for token, (z, chosen, scores), keeps in zip(flat, gates, kept, strict=True):
        parts = [s for s, keep in zip(scores, keeps, strict=True) if keep or not gating.normalise_kept]
        factors = [
            reference_weight(gating, s, parts) if keep else 0.0 for s, keep in zip(scores, keeps, strict=True)
        ]
        row = [0.0] * num_experts
        for expert, factor in zip(chosen, factors, strict=True):
            row[expert] += factor
        x = token if weights.latent_in is None else affine(weights.latent_in, weights.latent_in_bias, token)
        x = [model.expert_input_scale * value for value in x]
        y = [0.0] * len(x)
        for expert, factor, keep in zip(chosen, factors, keeps, strict=True):
            if keep:
                on_input = gating.weight_applied_to == "input"
                inputs = [factor * value for value in x] if on_input else x
                part = reference_expert(model, weights, expert, inputs)
                y = [a + (1.0 if on_input else factor) * b for a, b in zip(y, part, strict=True)]
        if weights.latent_out is not None:
            y = affine(weights.latent_out, weights.latent_out_bias, y)
        if model.d_shared:
            y = [a + b for a, b in zip(y, reference_shared(model, weights, token), strict=True)]
        if weights.output_bias is not None:
            y = [a + b for a, b in zip(y, weights.output_bias.tolist(), strict=True)]
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
        dropped_assignments=sum(not keep for keeps in kept for keep in keeps),
    )


def reference_logits(weights: LayerWeights, token: list[float]) -> list[float]:
    """Return one token's logits, by a matrix or by attention among the experts."""
    if weights.router_hidden is None:
        z = affine(weights.router, None, token)
    else:
        z = affine(weights.router, None, [math.tanh(v) for v in affine(weights.router_hidden, None, token)])
    if weights.router_query is not None:
        queries, keys = (affine(part, None, token) for part in (weights.router_query, weights.router_key))
        z = [dot(reference_score("softmax", [query * key for key in keys]), z) for query in queries]
    if weights.logit_bias is None:
        return z
    return [a + b for a, b in zip(z, weights.logit_bias.tolist(), strict=True)]


def reference_places(model: ModelSpec, gates: list[tuple[list[int], list[float]]]) -> set[tuple[int, int]]:
    """Return the (token, choice) pairs of a sequence that find a place at their expert."""
    capacity = model.expert_capacity
    if model.capacity_fraction > 0:
        share = model.capacity_fraction * len(gates)
        if model.capacity_rounding == "up":
            capacity = math.ceil(share)
        else:
            # 3.9 and 4.0 make 4, 5.0 makes 6.
            capacity = 2 * math.ceil(math.floor(share + 1e-9) / 2)
        capacity = max(capacity, model.capacity_minimum)
    elif capacity == 0:
        capacity = len(gates) * model.gating.top_k
    pairs = [(token, choice) for token in range(len(gates)) for choice in range(model.gating.top_k)]
    if model.capacity_rule != "switch":
        pairs.sort(key=lambda pair: pair[1])
    if model.capacity_rule == "batch_priority":
        # By the largest weight.
        largest = [max(reference_weight(model.gating, s, scores) for s in scores) for _, scores in gates]
        pairs.sort(key=lambda pair: (pair[1], -largest[pair[0]]))
    if model.capacity_rule == "score_priority":
        pairs.sort(key=lambda pair: (pair[1], -max(gates[pair[0]][1])))
    load = [0] * model.gating.num_experts
    places = set()
    for token, choice in pairs:
        expert = gates[token][0][choice]
        if load[expert] < capacity:
            load[expert] += 1
            places.add((token, choice))
    return places


def reference_score(kind: str, z: list[float]) -> list[float]:
    """Return the scores of one token's logits."""
    if kind == "softmax":
        top = max(z)
        total = math.fsum(math.exp(value - top) for value in z)
        return [math.exp(value - top) / total for value in z]
    if kind == "sigmoid":
        return [logistic(value) for value in z]
    if kind == "sqrt_softplus":
        return [math.sqrt(max(value, 0.0) + math.log1p(math.exp(-abs(value)))) for value in z]
    return list(z)


def reference_gate(
    model: ModelSpec, weights: LayerWeights, z: list[float], token_id: int | None
) -> tuple[list[int], list[float]]:
    """Return one token's experts and their scores, nothing normalised yet."""
    gating = model.gating
    if gating.selection == "sparse_mixer":
        return reference_sparse_mixer(gating, z)
    size = len(z) // gating.num_prototypes
    parts = [z[start : start + size] for start in range(0, len(z), size)]
    scores = [value for part in parts for value in reference_score(gating.score, part)]
    ranking = list(scores)
    if weights.selection_bias is not None:
        ranking = [a + b for a, b in zip(scores, weights.selection_bias.tolist(), strict=True)]
    if gating.topk_groups < gating.num_groups:
        width = len(z) // gating.num_groups
        members = [list(range(g * width, (g + 1) * width)) for g in range(gating.num_groups)]
        best = 1 if gating.group_score == "max" else 2
        worth = [sum(sorted((ranking[e] for e in group), reverse=True)[:best]) for group in members]
        losers = sorted(range(gating.num_groups), key=lambda g: (-worth[g], g))[gating.topk_groups :]
        for expert in (e for g in losers for e in members[g]):
            ranking[expert] = 0.0 if gating.group_mask == "zero" else -math.inf
    if token_id is None:
        chosen = []
        for start in range(0, len(z), size):
            best = sorted(range(start, start + size), key=lambda e: (-ranking[e], e))
            chosen += best[: gating.top_k // gating.num_prototypes]
    else:
        chosen = weights.hash_table[token_id].tolist()
    if gating.weight_score is not None:
        scores = [value for part in parts for value in reference_score(gating.weight_score, part)]
    return chosen, [scores[e] for e in chosen]


def reference_sparse_mixer(gating: GatingSpec, z: list[float]) -> tuple[list[int], list[float]]:
    """Return SparseMixer's experts and weights: the best of those left, again and again."""
    left, chosen, weights = set(range(len(z))), [], []
    for _ in range(gating.top_k):
        best = min(left, key=lambda e: (-z[e], e))
        near = []
        for expert in left:
            factor = max(abs(z[expert]), z[best])
            if factor == 0 or (z[best] - z[expert]) / factor <= 2 * gating.jitter:
                near.append(expert)
        chosen.append(best)
        weights.append(1 / math.fsum(math.exp(z[e] - z[best]) for e in near))
        left.remove(best)
    return chosen, weights


def reference_weight(gating: GatingSpec, score: float, parts: list[float]) -> float:
    """Return the weight of a score among those that are normalised together."""
    if gating.normalise == "none":
        return score * gating.scale
    if gating.normalise == "sum":
        total = math.fsum(parts)
    else:
        total = math.fsum(abs(part) ** gating.norm_order for part in parts) ** (1 / gating.norm_order)
    total = total + gating.epsilon if gating.epsilon_rule == "added" else max(total, gating.epsilon)
    return score / total * gating.scale if total else 0.0


def reference_expert(model: ModelSpec, w: LayerWeights, expert: int, x: list[float]) -> list[float]:
    """Return the output of a routed expert for one input."""
    if expert >= model.gating.num_experts - model.gating.num_identity_experts:
        return x
    gate, up, down, gate_bias, up_bias, down_bias = (
        None if array is None else array[expert]
        for array in (w.gate, w.up, w.down, w.gate_bias, w.up_bias, w.down_bias)
    )
    u = affine(up, up_bias, x)
    g = None if gate is None else affine(gate, gate_bias, x)
    hidden = reference_hidden(model.ffn, model.ffn.activation, g, u)
    if w.second_up is not None:
        hidden = [a * b for a, b in zip(hidden, affine(w.second_up[expert], None, x), strict=True)]
    y = affine(down, down_bias, hidden)
    return [model.expert_output_scale * value for value in y]


def reference_shared(model: ModelSpec, w: LayerWeights, x: list[float]) -> list[float]:
    """Return the output of the shared expert for one token."""
    u = affine(w.shared_up, w.shared_up_bias, x)
    g = None if w.shared_gate is None else affine(w.shared_gate, w.shared_gate_bias, x)
    hidden = reference_hidden(model.ffn, model.shared_activation or model.ffn.activation, g, u)
    y = affine(w.shared_down, w.shared_down_bias, hidden)
    if w.shared_expert_gate is not None:
        factor = logistic(dot(w.shared_expert_gate[0].tolist(), x))
        y = [factor * value for value in y]
    return y


def reference_hidden(ffn: FfnSpec, activation: str, g: list[float] | None, u: list[float]) -> list[float]:
    """Return the hidden activations of one expert, from gate values (None: no gate matrix) and up values."""
    if g is None:
        return [reference_activation(activation, value) for value in u]
    if ffn.clamped or activation == "clamped_swiglu":
        g = [min(a, ffn.limit) for a in g]
        u = [max(-ffn.limit, min(b, ffn.limit)) for b in u]
    if activation == "clamped_swiglu":
        return [(b + 1) * a * logistic(ffn.alpha * a) for a, b in zip(g, u, strict=True)]
    return [reference_activation(activation, a) * b for a, b in zip(g, u, strict=True)]


def reference_activation(kind: str, x: float) -> float:
    """Return an activation of one number."""
    return {
        "silu": lambda: x * logistic(x),
        "relu": lambda: max(x, 0.0),
        "relu2": lambda: max(x, 0.0) * max(x, 0.0),
        "gelu": lambda: x * math.erfc(-x / math.sqrt(2)) / 2,
        "gelu_tanh": lambda: x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))),
        "quick_gelu": lambda: x * logistic(1.702 * x),
        "sigmoid": lambda: logistic(x),
        "tanh": lambda: math.tanh(x),
        "linear": lambda: x,
    }[kind]()


def logistic(x: float) -> float:
    """Return the sigmoid of a number."""
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


def affine(matrix: np.ndarray, bias: np.ndarray | None, x: list[float]) -> list[float]:
    """Return ``matrix x + bias``."""
    products = [dot(row, x) for row in matrix.tolist()]
    return products if bias is None else [a + b for a, b in zip(products, bias.tolist(), strict=True)]


def dot(a: list[float], b: list[float]) -> float:
    """Return the exactly rounded sum of the products."""
    return math.fsum(x * y for x, y in zip(a, b, strict=True))
