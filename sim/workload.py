"""What is run: a model, its weights and tokens, or only their routing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from golden.checkpoint import Checkpoint, CheckpointLayer
from golden.formats import Bits16, bf16_decode, bf16_encode
from golden.gating import route
from golden.layer import layer
from golden.layer_bf16 import layer_routing
from golden.vectors import read_vector
from golden.weights import LayerWeights, random_weights
from sim.routing import IntArray, Routing, draw_ids, fitted_tokens
from spec.errors import InputError, require, require_range
from spec.geometry import ImageGeometry, ceil_div
from spec.load import is_folder, load_model
from spec.model import MAX_WIDTH, CapacityScope, ModelSpec

DEFAULT_TOKENS = 16
MAX_IMAGE_BYTES = 1 << 30
"""Weights that a run of the Verilog holds at most; golden and reference need several times as much memory."""


@dataclass(frozen=True, eq=False)
class Workload:
    """A layer and the tokens that go through it.

    Attributes
    ----------
    target_ids : (tokens, k) experts asked for, None where the tokens are given (a vector).
    reference, reference_ids : float outputs (tokens, d_model) and selected experts to compare with.
    reference_name : who computed them.
    """

    model: ModelSpec
    weights: LayerWeights
    tokens: Bits16
    batch_lengths: list[int]
    target_ids: IntArray | None
    reference: NDArray[np.float64]
    reference_ids: IntArray
    reference_kept: NDArray[np.bool_]
    reference_name: str


def is_vector(name: str) -> bool:
    """Whether a model's name is the path of a vector."""
    return name.endswith(".npz")


def checkpoint_layer(name: str, layer: str | None) -> CheckpointLayer | None:
    """Return the layer whose weights are run, None where a model's name is no folder.

    Raises :class:`InputError` where a folder has not this layer, or a layer is named without a folder.
    """
    if is_folder(name):
        return Checkpoint(Path(name)).layer(layer)
    require(layer is None, f"is for a folder with weights, not for {name}", key="layer")
    return None


def scaled_model(name: str, scale: int) -> ModelSpec:
    """Return the model of a preset, TOML, config.json or folder, scaled."""
    return load_model(name).scaled(scale)


def vector_workload(path: str, num_tokens: int | None) -> Workload:
    """Return a Hugging Face vector's own weights and tokens (the first ``num_tokens`` of them)."""
    vector = read_vector(Path(path))
    tokens = vector.flat_tokens
    lengths = vector.sequence_lengths
    if num_tokens is not None:
        require(
            1 <= num_tokens <= len(tokens),
            f"must be in 1..{len(tokens)} for {path}, not {num_tokens}",
            key="tokens",
        )
        ends = np.minimum(np.cumsum(lengths), num_tokens)
        lengths = [int(n) for n in np.diff(np.concatenate([[0], ends])) if n]
    count = len(tokens) if num_tokens is None else num_tokens
    model = vector.model
    # Sequences matter for their own capacity alone; without one all tokens are one batch.
    limited = model.expert_capacity != 0 or model.capacity_fraction > 0
    by_sequence = limited and model.capacity_scope is CapacityScope.SEQUENCE
    return Workload(
        model=model,
        weights=vector.weights,
        tokens=bf16_encode(tokens[:count]),
        batch_lengths=lengths if by_sequence else [count],
        target_ids=None,
        reference=vector.output.reshape(tokens.shape)[:count].astype(np.float64),
        reference_ids=vector.topk_indices[:count],
        reference_kept=vector.topk_weights[:count] != 0,
        reference_name=f"Hugging Face ({vector.family})",
    )


@dataclass(frozen=True, eq=False)
class DrawnTokens:
    """Tokens of a layer whose experts need not be there yet: where they go is the gate's affair.

    Attributes
    ----------
    gate : weights of the layer, of any number of experts.
    tokens, target_ids : as in :class:`Workload`.
    """

    model: ModelSpec
    gate: LayerWeights
    tokens: Bits16
    target_ids: IntArray | None

    def used(self, image: ImageGeometry) -> list[int]:
        """Return the routed experts that the hardware sends the tokens to, in order of their numbers."""
        return experts_used(image, self.gate, self.tokens)

    def needed(self, image: ImageGeometry) -> list[int]:
        """Return :meth:`used` and what the float gate chooses, which near a tie is another one."""
        gate = self.gate
        values = bf16_decode(self.tokens)
        ids = route(self.model.gating, gate.router, values, gate.logit_bias, gate.selection_bias).ids
        return sorted({*self.used(image), *_with_ffn(image, ids)})

    def workload(self, weights: LayerWeights, window_tokens: int | None = None) -> Workload:
        """Return the tokens' run with the experts that they need; see :func:`random_workload`."""
        result = layer(self.model, weights, bf16_decode(self.tokens), window_tokens=window_tokens)
        return Workload(
            model=self.model,
            weights=weights,
            tokens=self.tokens,
            batch_lengths=[len(self.tokens)],
            target_ids=self.target_ids,
            reference=result.output.astype(np.float64),
            reference_ids=result.ids,
            reference_kept=result.kept,
            reference_name="float golden",
        )


def experts_used(image: ImageGeometry, weights: LayerWeights, tokens: Bits16) -> list[int]:
    """Return the routed experts with an FFN that the hardware sends tokens to, in order of their numbers."""
    return _with_ffn(image, layer_routing(image, weights, tokens).ids)


def _with_ffn(image: ImageGeometry, ids: IntArray) -> list[int]:
    """Return the experts chosen, in order of their numbers; identity experts have no weights."""
    chosen = np.unique(ids)
    found: list[int] = chosen[chosen < image.num_experts].tolist()
    return found


def check_image(num_bytes: int) -> None:
    """Raise :class:`InputError` for weights that are too large to be run, before they are drawn."""
    require(
        num_bytes <= MAX_IMAGE_BYTES,
        f"must leave at most {MAX_IMAGE_BYTES >> 20} MiB of weights for a run of the Verilog, not"
        f" {ceil_div(num_bytes, 1 << 20)} (--experts runs some of them alone)",
        key="scale",
    )


def draw_tokens(
    model: ModelSpec, num_tokens: int, routing: Routing, seed: int, weights: LayerWeights
) -> DrawnTokens:
    """Return tokens that lean towards the experts of ``routing``; of the weights the gate's matter alone."""
    require_range("tokens", num_tokens, 1, 1 << 20)
    ids = draw_ids(model.gating, routing, num_tokens, seed)
    tokens = bf16_encode(fitted_tokens(model.gating, weights, ids, seed))
    return DrawnTokens(model, weights, tokens, ids)


def random_workload(
    model: ModelSpec,
    num_tokens: int,
    routing: Routing,
    seed: int,
    window_tokens: int | None = None,
    weights: LayerWeights | None = None,
) -> Workload:
    """Return random weights, unless some are given, and tokens that go to the experts of ``routing``.

    The reference gives out an expert's places as a design with windows of ``window_tokens`` does.
    """
    weights = random_weights(model, seed) if weights is None else weights
    return draw_tokens(model, num_tokens, routing, seed, weights).workload(weights, window_tokens)


def hardware_model(name: str, scale: str | None, default: int) -> tuple[ModelSpec, int]:
    """Return the model that ``--model`` and ``--scale`` name, a vector's too, and the divisor of its widths.

    ``default`` divides those of a preset, a TOML or a ``config.json``; a vector and a folder have their own.

    Raises :class:`InputError` on bad input.
    """
    vector = is_vector(name)
    divisor = parse_scale(scale, default, vector=vector, folder=is_folder(name))
    return (read_vector(Path(name)).model if vector else scaled_model(name, divisor)), divisor


def parse_scale(text: str | None, default: int, *, vector: bool, folder: bool = False) -> int:
    """Return the divisor that ``--scale`` names: ``full`` or a whole number.

    1 for what has its own size: a vector, the weights of a folder.
    """
    if vector or folder:
        require(
            text in (None, "full", "1"),
            f"must be 'full' for a {'vector' if vector else 'folder'}, which has its own size, not {text!r}",
            key="scale",
        )
        return 1
    if text is None:
        return default
    if text == "full":
        return 1
    ok = text.isascii() and text.isdecimal() and len(text.lstrip("0")) <= len(str(MAX_WIDTH))
    if not ok or not 1 <= int(text) <= MAX_WIDTH:
        raise InputError(f"must be 'full' or a whole number in 1..{MAX_WIDTH}, not {text!r}", key="scale")
    return int(text)
