"""Weights of one MoE layer under canonical names, and seeded random ones.

Random values are exactly representable in bf16 (stored as float32), so that a bf16 design reads them
without rounding, and scaled so that logits are about N(0, 1) and FFN outputs of order 1 for tokens
that are N(0, 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from golden.formats import bf16_encode
from golden.stored_formats import StoredWeight
from spec.errors import InputError, require, require_range
from spec.families import WEIGHT_NAMES
from spec.model import ModelSpec, Router

MATRICES = ("gate", "up", "down")
PER_EXPERT = ("gate", "up", "second_up", "down", "gate_bias", "up_bias", "down_bias")
"""Weights whose first axis is the expert."""

# One random stream each, so that no part's values depend on another part's size.
_STREAM_GATE, _STREAM_SHARED, _STREAM_TOKENS, _STREAM_EXPERT, _STREAM_HASH, _STREAM_WHOLE = range(6)


@dataclass(frozen=True, kw_only=True, eq=False)
class ExpertWeights:
    """Weights of one expert, all float32; matrices are (out, in), H is d_model, F the expert's width.

    Attributes
    ----------
    gate : (F, H), or None for an FFN of two matrices.
    up : (F, H).
    second_up : (F, H), or None where there is none.
    down : (H, F).
    gate_bias, up_bias : (F,), or None.
    down_bias : (H,), or None.
    """

    gate: NDArray[np.float32] | None
    up: NDArray[np.float32]
    down: NDArray[np.float32]
    gate_bias: NDArray[np.float32] | None = None
    up_bias: NDArray[np.float32] | None = None
    down_bias: NDArray[np.float32] | None = None
    second_up: NDArray[np.float32] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerWeights:
    """Weights of one layer, all but the hash table float32 and finite; matrices are (out, in).

    With E experts, E' of them with an FFN that are held here, width H (D for the routed experts: H or the
    latent width), expert width F and shared width Fs:

    Attributes
    ----------
    held : numbers of the experts that the per-expert arrays hold, in order; None for all of the model's.
    router : (E, H), or (E, W) behind a first layer of width W.
    router_hidden : (W, H), that first layer, or None.
    router_query, router_key : (E, H), or None without an attention router, whose values are the router's.
    logit_bias, selection_bias : (E,), or None where the gating has none.
    gate : (E', F, D), or None for an FFN of two matrices.
    up : (E', F, D).
    second_up : (E', F, D), or None.
    down : (E', D, F).
    gate_bias, up_bias : (E', F), or None.
    down_bias : (E', D), or None.
    shared_gate, shared_up : (Fs, H), or None.
    shared_down : (H, Fs), or None.
    shared_gate_bias, shared_up_bias, shared_down_bias : (Fs,), (Fs,) and (H,), or None.
    shared_expert_gate : (1, H), or None.
    hash_table : (V, k) int64, the experts of each token id, or None.
    latent_in, latent_in_bias : (D, H) and (D,), or None.
    latent_out, latent_out_bias : (H, D) and (H,), or None.
    output_bias : (H,), or None.
    stored : of matrices that a checkpoint stores quantised, per expert, what their values are of; a format
        that stores weights the same way takes these. Whoever replaces such a matrix replaces this, too.
    checked : to the constructor: dtypes and values are known to be as they should be, and are not looked at
        again (``replace`` looks at them).
    """

    router: NDArray[np.float32]
    up: NDArray[np.float32]
    down: NDArray[np.float32]
    gate: NDArray[np.float32] | None = None
    router_query: NDArray[np.float32] | None = None
    router_key: NDArray[np.float32] | None = None
    router_hidden: NDArray[np.float32] | None = None
    second_up: NDArray[np.float32] | None = None
    logit_bias: NDArray[np.float32] | None = None
    selection_bias: NDArray[np.float32] | None = None
    gate_bias: NDArray[np.float32] | None = None
    up_bias: NDArray[np.float32] | None = None
    down_bias: NDArray[np.float32] | None = None
    shared_gate: NDArray[np.float32] | None = None
    shared_up: NDArray[np.float32] | None = None
    shared_down: NDArray[np.float32] | None = None
    shared_gate_bias: NDArray[np.float32] | None = None
    shared_up_bias: NDArray[np.float32] | None = None
    shared_down_bias: NDArray[np.float32] | None = None
    shared_expert_gate: NDArray[np.float32] | None = None
    hash_table: NDArray[np.int64] | None = None
    latent_in: NDArray[np.float32] | None = None
    latent_in_bias: NDArray[np.float32] | None = None
    latent_out: NDArray[np.float32] | None = None
    latent_out_bias: NDArray[np.float32] | None = None
    output_bias: NDArray[np.float32] | None = None
    held: tuple[int, ...] | None = None
    stored: Mapping[str, Sequence[StoredWeight]] = field(default_factory=dict)
    checked: InitVar[bool] = False

    def __post_init__(self, checked: bool) -> None:
        if checked:
            return
        for name in WEIGHT_NAMES:
            array = getattr(self, name)
            if name == "hash_table" and array is not None:
                check_indices(name, array, len(self.router))
            elif array is not None:
                check_array(name, array)

    def holds(self, number: int) -> bool:
        """Whether a routed expert's weights are here."""
        return self.held is None or number in self.held

    def expert(self, number: int) -> ExpertWeights:
        """Return the weights of a routed expert that is held."""
        place = self._place(number)

        def part(array: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
            return None if array is None else array[place]

        return ExpertWeights(
            gate=part(self.gate),
            up=self.up[place],
            second_up=part(self.second_up),
            down=self.down[place],
            gate_bias=part(self.gate_bias),
            up_bias=part(self.up_bias),
            down_bias=part(self.down_bias),
        )

    def _place(self, number: int) -> int:
        return number if self.held is None else self.held.index(number)

    def stored_expert(self, number: int | None) -> dict[str, StoredWeight]:
        """Return how a checkpoint stores a routed expert's quantised matrices; None is the shared one."""
        prefix, place = ("shared_", 0) if number is None else ("", self._place(number))
        return {name: self.stored[prefix + name][place] for name in MATRICES if prefix + name in self.stored}

    @property
    def shared_gate_bits(self) -> NDArray[np.uint16] | None:
        """The shared expert's gate as bf16 patterns, (1, H), None where there is none."""
        gate = self.shared_expert_gate
        return None if gate is None or self.shared_up is None else bf16_encode(gate)

    @property
    def shared_expert(self) -> ExpertWeights | None:
        """The shared expert's weights, None where there is none."""
        if self.shared_up is None or self.shared_down is None:
            return None
        return ExpertWeights(
            gate=self.shared_gate,
            up=self.shared_up,
            down=self.shared_down,
            gate_bias=self.shared_gate_bias,
            up_bias=self.shared_up_bias,
            down_bias=self.shared_down_bias,
        )

    def check(self, model: ModelSpec, *, num_experts: int | None = None) -> None:
        """Raise :class:`InputError` unless these are a layer of ``model``.

        ``num_experts`` is how many experts the per-expert arrays hold (default: as ``held`` says).
        """
        if num_experts is None and self.held is not None:
            num_experts = len(self.held)
        shapes = weight_shapes(model, num_experts=num_experts)
        for name in WEIGHT_NAMES:
            array = getattr(self, name)
            if name not in shapes:
                require(array is None, f"must be absent in model {model.name}", key=name)
                continue
            require(array is not None, f"is missing in model {model.name}", key=name)
            require(
                array.shape == shapes[name], f"must have shape {shapes[name]}, not {array.shape}", key=name
            )


def check_array(name: str, array: object) -> None:
    """Raise :class:`InputError` unless ``array`` is a finite float32 array."""
    if not isinstance(array, np.ndarray):
        raise InputError(f"must be an array, not {type(array).__name__}", key=name)
    require(array.dtype == np.float32, f"must be float32, not {array.dtype}", key=name)
    finite = np.isfinite(array)
    if not finite.all():
        place = tuple(int(axis[0]) for axis in np.nonzero(~finite))
        raise InputError(f"must be finite, but element {place} is {array[place]}", key=name)


def check_indices(name: str, array: object, limit: int) -> None:
    """Raise :class:`InputError` unless ``array`` holds int64 numbers from 0 below ``limit``."""
    if not isinstance(array, np.ndarray):
        raise InputError(f"must be an array, not {type(array).__name__}", key=name)
    require(array.dtype == np.int64, f"must be int64, not {array.dtype}", key=name)
    low, high = int(array.min(initial=0)), int(array.max(initial=0))
    ok = low >= 0 and high < limit
    require(ok, f"must be in 0..{limit - 1}, not {low if low < 0 else high}", key=name)


def weight_shapes(model: ModelSpec, *, num_experts: int | None = None) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight that ``model`` has, by canonical name.

    ``num_experts`` is how many experts the per-expert arrays hold (default: all of the model's).
    """
    gating, ffn = model.gating, model.ffn
    e, h, f, s = gating.num_experts, model.d_model, ffn.d_expert, model.d_shared
    d, latent, shared_bias = model.expert_width, bool(model.d_latent), bool(s) and model.shared_bias
    attention = gating.router is Router.ATTENTION
    n = gating.num_ffn_experts if num_experts is None else num_experts
    present = {
        "router": (True, (e, gating.router_width or h)),
        "router_query": (attention, (e, h)),
        "router_key": (attention, (e, h)),
        "router_hidden": (gating.router_width > 0, (gating.router_width, h)),
        "logit_bias": (gating.logit_bias, (e,)),
        "selection_bias": (gating.selection_bias, (e,)),
        "gate": (ffn.gated, (n, f, d)),
        "up": (True, (n, f, d)),
        "second_up": (ffn.second_up, (n, f, d)),
        "down": (True, (n, d, f)),
        "gate_bias": (ffn.gated and ffn.bias, (n, f)),
        "up_bias": (ffn.bias, (n, f)),
        "down_bias": (ffn.bias, (n, d)),
        "shared_gate": (bool(s) and ffn.gated, (s, h)),
        "shared_up": (bool(s), (s, h)),
        "shared_down": (bool(s), (h, s)),
        "shared_gate_bias": (shared_bias and ffn.gated, (s,)),
        "shared_up_bias": (shared_bias, (s,)),
        "shared_down_bias": (shared_bias, (h,)),
        "shared_expert_gate": (model.shared_expert_gate, (1, h)),
        "hash_table": (gating.hash_tokens > 0, (gating.hash_tokens, gating.top_k)),
        "latent_in": (latent, (d, h)),
        "latent_in_bias": (latent and model.latent_bias, (d,)),
        "latent_out": (latent, (h, d)),
        "latent_out_bias": (latent and model.latent_bias, (h,)),
        "output_bias": (model.output_bias, (h,)),
    }
    return {name: shape for name, (there, shape) in present.items() if there}


def to_bf16_values(values: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return ``values`` rounded to the nearest bf16 (ties to even), stored as float32."""
    return values.astype(ml_dtypes.bfloat16).astype(np.float32)


def random_weights(model: ModelSpec, seed: int, *, experts: Sequence[int] | None = None) -> LayerWeights:
    """Return seeded random weights of a layer of ``model``.

    ``experts`` chooses the experts of the per-expert arrays (default: all, in order). An expert's
    values depend on the seed and its own number alone, so a subset agrees with the full set.
    Raises :class:`InputError` for a negative seed or an expert that the model has not.
    """
    check_seed(seed)
    num_experts = model.gating.num_ffn_experts
    chosen = range(num_experts) if experts is None else experts
    for expert in chosen:
        require_range("experts", expert, 0, num_experts - 1)
    deviations = _standard_deviations(model)
    one_expert = weight_shapes(model, num_experts=1)
    arrays: dict[str, Any] = {
        name: np.empty(shape, np.float32)
        for name, shape in weight_shapes(model, num_experts=len(chosen)).items()
    }
    if "hash_table" in arrays:
        arrays["hash_table"] = _random_table(model, np.random.default_rng([seed, _STREAM_HASH]))
    for stream, prefixes in (
        (_STREAM_GATE, ("router", "logit_", "selection_")),
        (_STREAM_SHARED, ("shared_",)),
        (_STREAM_WHOLE, ("latent_", "output_")),
    ):
        rng = np.random.default_rng([seed, stream])
        for name, array in arrays.items():
            if name.startswith(prefixes):
                array[...] = _normal(rng, array.shape, deviations[name])
    for slot, expert in enumerate(chosen):
        rng = np.random.default_rng([seed, _STREAM_EXPERT, expert])
        for name in PER_EXPERT:
            if name in arrays:
                arrays[name][slot] = _normal(rng, one_expert[name][1:], deviations[name])
    return LayerWeights(**arrays, held=None if experts is None else tuple(experts))


def _random_table(model: ModelSpec, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return distinct experts for each token id."""
    gating = model.gating
    keys = rng.random((gating.hash_tokens, gating.num_experts))
    return np.argsort(keys, axis=1)[:, : gating.top_k].astype(np.int64)


def random_token_ids(model: ModelSpec, num_tokens: int, seed: int) -> NDArray[np.int64] | None:
    """Return ``(num_tokens,)`` int64 token ids, seeded; None where no expert is chosen by them."""
    if not model.gating.hash_tokens:
        return None
    return np.random.default_rng([seed, _STREAM_HASH, 1]).integers(0, model.gating.hash_tokens, num_tokens)


def random_tokens(model: ModelSpec, num_tokens: int, seed: int) -> NDArray[np.float32]:
    """Return ``(num_tokens, d_model)`` float32 tokens, N(0, 1) rounded to bf16, seeded."""
    check_seed(seed)
    require_range("tokens", num_tokens, 1, 1 << 24)
    rng = np.random.default_rng([seed, _STREAM_TOKENS])
    return _normal(rng, (num_tokens, model.d_model), 1.0)


def check_seed(seed: int) -> None:
    """Raise :class:`InputError` unless a seed is a number of 63 bits."""
    require_range("seed", seed, 0, (1 << 63) - 1)


def _normal(rng: np.random.Generator, shape: tuple[int, ...], deviation: float) -> NDArray[np.float32]:
    values = rng.standard_normal(shape, dtype=np.float32)
    values *= np.float32(deviation)
    return to_bf16_values(values)


def _standard_deviations(model: ModelSpec) -> dict[str, float]:
    """Return each weight's standard deviation.

    A hidden value of an FFN has a root mean square of 0.6 (silu) to 0.9 (clamped SwiGLU) where its
    pre-activations are N(0, 1); 1.5 / sqrt(width) for the down projection gives outputs of order 1.
    """
    routers = ("router", "router_query", "router_key", "router_hidden")
    products = (*routers, "gate", "up", "second_up", "shared_gate", "shared_up")
    deviations = dict.fromkeys(products, model.d_model**-0.5)
    if model.gating.router_width:
        # The tanh of N(0, 1) has a root mean square of 0.63.
        deviations["router"] = (0.63**2 * model.gating.router_width) ** -0.5
    deviations["down"] = 1.5 * model.ffn.d_expert**-0.5
    deviations["shared_down"] = 1.5 * max(model.d_shared, 1) ** -0.5
    deviations |= dict.fromkeys(("gate_bias", "up_bias", "down_bias"), 0.25)
    deviations |= {"logit_bias": 0.5, "selection_bias": 0.1}
    deviations |= dict.fromkeys(("shared_expert_gate", "latent_in"), model.d_model**-0.5)
    deviations["latent_out"] = max(model.d_latent, 1) ** -0.5
    biases = ("shared_gate_bias", "shared_up_bias", "shared_down_bias", "latent_in_bias", "latent_out_bias")
    return deviations | dict.fromkeys((*biases, "output_bias"), 0.25)
