"""A routing trace: which experts each token went to, in which layers, whoever wrote it down."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spec.errors import InputError, require, require_range
from spec.model import MAX_EXPERTS, MAX_LAYERS, MAX_TOP_K

IntArray = NDArray[np.int64]

NO_EXPERT = -1
UNKNOWN, PREFILL, DECODE = 0, 1, 2
PHASES = ("unknown", "prefill", "decode")
"""What a token's ``phase`` stands for."""

MAX_SLOTS = MAX_TOP_K
MAX_ASSIGNMENTS = 1 << 26
"""Layers x tokens x slots that a trace holds at most: 256 MiB of ids."""


@dataclass(frozen=True, kw_only=True)
class TraceShape:
    """What a file may leave unsaid, as the user or the model says it; None where nobody does.

    Attributes
    ----------
    top_k : experts of a token.
    num_layers : layers that the file covers, dense ones included where the format has them.
    num_experts : routed experts of a layer; without it the largest id that occurs, plus one. A file that
        states another number is of another model, and refused.
    exact_layers : the user says ``num_layers``: a file of another number is refused. (A model may have more
        layers than a file that serves it.)
    """

    top_k: int | None = None
    num_layers: int | None = None
    num_experts: int | None = None
    exact_layers: bool = False

    def __post_init__(self) -> None:
        for name, value, high in (
            ("top_k", self.top_k, MAX_SLOTS),
            ("num_layers", self.num_layers, MAX_LAYERS),
            ("num_experts", self.num_experts, MAX_EXPERTS),
        ):
            if value is not None:
                require_range(name, value, 1, high)

    def check_layers(self, num_layers: int) -> None:
        """Raise :class:`InputError` unless a file of so many layers is one that was asked for."""
        if self.exact_layers and self.num_layers is not None:
            require(
                num_layers == self.num_layers,
                f"must be {num_layers}, those of the file, not {self.num_layers}",
                key="layers",
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """The experts of T tokens in L layers, at most K each; checked when it is made.

    Attributes
    ----------
    source : the format that it came in, or the name of the synthetic routing.
    num_experts : routed experts of a layer; shared experts are not part of a trace.
    ids : (L, T, K) int32, logical expert numbers, distinct within a token, in the source's order (most have
        the largest weight first); -1 where there is none. A row of -1 only is a token that was not recorded
        in that layer.
    weights : (L, T, K) float32 or None; 0 where there is no expert.
    layers : (L,) int64, ascending: the layers' numbers as the source counts them.
    phase : (T,) uint8, an index into :data:`PHASES`.
    request : (T,) int64, which request (or batch, where the source knows no requests) a token belongs to.
    position : (T,) int64, a token's place in its request; -1 where unknown.
    aligned : whether row t is the same token in every layer. If not, phase, request and position are those
        of no layer in particular.
    """

    source: str
    num_experts: int
    ids: NDArray[np.int32]
    layers: IntArray
    phase: NDArray[np.uint8]
    request: IntArray
    position: IntArray
    weights: NDArray[np.float32] | None = None
    aligned: bool = True

    def __post_init__(self) -> None:
        require_range("num_experts", self.num_experts, 1, MAX_EXPERTS)
        check_size(self.ids.shape)
        num_layers, num_tokens, _ = self.ids.shape
        _check_layers(self.layers, num_layers)
        _require_shape("phase", self.phase, (num_tokens,))
        require(int(self.phase.max()) < len(PHASES), f"must be in 0..2, not {self.phase.max()}", key="phase")
        for name, array, low in (("request", self.request, 0), ("position", self.position, -1)):
            _require_shape(name, array, (num_tokens,))
            require(int(array.min()) >= low, f"must be at least {low}, not {array.min()}", key=name)
        for index, layer in enumerate(self.layers):
            _check_ids(self.ids[index], int(layer), self.num_experts)
        if self.weights is not None:
            _require_shape("weights", self.weights, self.ids.shape)
            for index, layer in enumerate(self.layers):
                _check_weights(self.weights[index], int(layer))

    @property
    def num_layers(self) -> int:
        """Layers that the trace covers."""
        return int(self.ids.shape[0])

    @property
    def num_tokens(self) -> int:
        """Tokens of a layer, those that were not recorded included."""
        return int(self.ids.shape[1])

    @property
    def top_k(self) -> int:
        """Largest number of experts of a token."""
        return int(self.ids.shape[2])

    def index_of(self, layer: int) -> int:
        """Return where a layer's number is in :attr:`layers`."""
        found = np.flatnonzero(self.layers == layer)
        if not len(found):
            numbers = [str(number) for number in self.layers]
            if len(numbers) > 16:
                numbers = [*numbers[:8], "...", *numbers[-2:]]
            raise InputError(f"must be one of {', '.join(numbers)}, not {layer}", key="layer")
        return int(found[0])


def stacked(traces: list[Trace]) -> Trace:
    """Return the traces of different layers of the same tokens as one; phases and requests are the longest's.

    It is aligned if all are and have equally many tokens.
    """
    if len(traces) == 1:
        return traces[0]
    layers = np.concatenate([trace.layers for trace in traces])
    numbers, counts = np.unique(layers, return_counts=True)
    again = numbers[counts > 1]
    if len(again):
        raise InputError(f"must be other ones in each file, but {again[0]} is in several", key="layers")
    most = max(traces, key=lambda trace: trace.num_tokens)
    slots = max(trace.top_k for trace in traces)
    check_size((len(layers), most.num_tokens, slots))
    ids = np.full((len(layers), most.num_tokens, slots), NO_EXPERT, np.int32)
    weights = np.zeros(ids.shape, np.float32) if all(t.weights is not None for t in traces) else None
    index = 0
    for trace in traces:
        place = np.s_[index : index + trace.num_layers, : trace.num_tokens, : trace.top_k]
        ids[place] = trace.ids
        if weights is not None:
            assert trace.weights is not None
            weights[place] = trace.weights
        index += trace.num_layers
    order = np.argsort(layers)
    return Trace(
        source=traces[0].source,
        num_experts=max(trace.num_experts for trace in traces),
        ids=ids[order],
        layers=layers[order],
        phase=most.phase,
        request=most.request,
        position=most.position,
        weights=None if weights is None else weights[order],
        aligned=all(trace.aligned and trace.num_tokens == most.num_tokens for trace in traces),
    )


def check_size(shape: tuple[int, ...]) -> None:
    """Raise :class:`InputError` unless these are layers x tokens x slots of a trace."""
    require(len(shape) == 3, f"must have layers, tokens and slots, not shape {shape}", key="ids")
    require_range("layers", shape[0], 1, MAX_LAYERS)
    require(shape[1] >= 1, "must have at least one token", key="ids")
    require_range("top_k", shape[2], 1, MAX_SLOTS)
    count = shape[0] * shape[1] * shape[2]
    require(
        count <= MAX_ASSIGNMENTS, f"must be at most {MAX_ASSIGNMENTS} assignments, not {count}", key="ids"
    )


def make_trace(
    source: str,
    ids: NDArray[np.integer],
    shape: TraceShape,
    *,
    layers: IntArray | None = None,
    num_experts: int | None = None,
    weights: NDArray[np.float32] | None = None,
    phase: NDArray[np.uint8] | None = None,
    request: IntArray | None = None,
    position: IntArray | None = None,
    aligned: bool = True,
) -> Trace:
    """Return a trace of (L, T, K) ``ids``, what is not given being unknown.

    Layers without numbers are counted from 0; without a request all tokens are of one, in order.
    """
    check_size(ids.shape)
    num_layers, num_tokens, _ = ids.shape
    shape.check_layers(num_layers)
    low, high = int(ids.min()), int(ids.max())
    require(
        low >= NO_EXPERT and high < MAX_EXPERTS,
        f"must be in 0..{MAX_EXPERTS - 1}, but hold {low}..{high}",
        key="ids",
    )
    if num_experts is not None and shape.num_experts is not None:
        require(
            num_experts == shape.num_experts,
            f"must be {shape.num_experts} as the model has, not {num_experts}",
            key="num_experts",
        )
    if num_experts is None:
        num_experts = shape.num_experts if shape.num_experts is not None else max(high, 0) + 1
    if position is None:
        position = np.arange(num_tokens) if request is None else np.full(num_tokens, -1)
    return Trace(
        source=source,
        num_experts=num_experts,
        ids=ids.astype(np.int32),
        weights=weights,
        layers=np.arange(num_layers) if layers is None else layers,
        phase=np.zeros(num_tokens, np.uint8) if phase is None else phase,
        request=np.zeros(num_tokens, np.int64) if request is None else request,
        position=position,
        aligned=aligned,
    )


def repeated(rows: NDArray[np.integer]) -> IntArray:
    """Return the (N,) indices of the rows of (N, K) that name an expert twice."""
    ordered = np.sort(rows, axis=1)
    same = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != NO_EXPERT)
    return np.flatnonzero(same.any(axis=1))


def _require_shape(name: str, array: NDArray[np.generic], shape: tuple[int, ...]) -> None:
    require(array.shape == shape, f"must have shape {shape}, not {array.shape}", key=name)


def _check_layers(layers: IntArray, num_layers: int) -> None:
    _require_shape("layers", layers, (num_layers,))
    ascending = bool((layers >= 0).all() and (np.diff(layers) > 0).all())
    require(ascending, "must be ascending numbers from 0", key="layers")


def _check_ids(rows: NDArray[np.int32], layer: int, num_experts: int) -> None:
    low, high = int(rows.min()), int(rows.max())
    if low < NO_EXPERT or high >= num_experts:
        token = int(np.flatnonzero(((rows < NO_EXPERT) | (rows >= num_experts)).any(axis=1))[0])
        raise InputError(
            f"must be in 0..{num_experts - 1}, but layer {layer}, token {token} holds"
            f" {int(rows[token].min())}..{int(rows[token].max())}",
            key="ids",
        )
    if low == NO_EXPERT:
        late = ((rows[:, 1:] != NO_EXPERT) & (rows[:, :-1] == NO_EXPERT)).any(axis=1)
        if late.any():
            token = int(np.flatnonzero(late)[0])
            raise InputError(f"must have -1 last only, unlike layer {layer}, token {token}", key="ids")
    again = repeated(rows)
    if len(again):
        token = int(again[0])
        raise InputError(
            f"must be distinct within a token, unlike layer {layer}, token {token}: {rows[token].tolist()}",
            key="ids",
        )


def _check_weights(rows: NDArray[np.float32], layer: int) -> None:
    bad = ~np.isfinite(rows).all(axis=1)
    if bad.any():
        token = int(np.flatnonzero(bad)[0])
        raise InputError(f"must be finite, unlike layer {layer}, token {token}", key="weights")
