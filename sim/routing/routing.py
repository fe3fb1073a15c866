"""What ``--routing`` names, a synthetic kind or a trace's file, and the experts that it gives to tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sim.routing.formats import SUFFIXES, read_trace
from sim.routing.synthetic import KINDS, RAGGED, IntArray, draw_synthetic, parse_kind, request_lengths
from sim.routing.trace import DECODE, NO_EXPERT, PHASES, UNKNOWN, Trace, TraceShape, check_size, make_trace
from spec.errors import InputError, require
from spec.model import GatingSpec, ModelSpec


@dataclass(frozen=True, eq=False)
class Routing:
    """A named distribution of experts.

    Attributes
    ----------
    name : how reports call it: a synthetic kind with its parameters, or a trace's file.
    kind, parameters : of a synthetic routing.
    trace : of a file, else None.
    layer : the number of the trace's layer that serves every layer of the model; None: see :func:`draw_ids`.
    """

    name: str
    kind: str = "uniform"
    parameters: tuple[float, ...] = ()
    trace: Trace | None = None
    layer: int | None = None

    @property
    def synthetic(self) -> bool:
        """Whether it is drawn, so that a seed matters."""
        return self.trace is None

    def layer_name(self) -> str:
        """Return the name with the layer that :func:`draw_ids` takes if nobody says which."""
        if self.trace is None or self.trace.num_layers == 1:
            return self.name
        return f"{self.name} (layer {self.trace.layers[0] if self.layer is None else self.layer})"

    def check_layers(self, num_layers: int) -> None:
        """Raise :class:`InputError` unless each of a model's layers has one of the trace's."""
        trace = self.trace
        if trace is None or self.layer is not None or trace.num_layers == 1:
            return
        if trace.num_layers < num_layers:
            raise InputError(
                f"has {trace.num_layers} layers, but the model has {num_layers} MoE layers"
                " (--routing-layer takes one for all)",
                file=self.name,
                key="layers",
            )


def parse_routing(
    text: str, shape: TraceShape | None = None, *, layer: int | None = None, npy: str = "loads"
) -> Routing:
    """Return the routing that a name or the path of a trace stands for.

    ``shape`` says what a trace's format may leave open, ``layer`` is the number of the layer to take, and
    ``npy`` what a ``.npy`` holds.
    """
    synthetic = parse_kind(text)
    if synthetic is not None:
        if layer is not None:
            raise InputError(f"must be left out for a synthetic routing, not {layer}", key="routing-layer")
        name, kind, parameters = synthetic
        return Routing(name, kind, parameters)
    path = Path(text)
    if path.suffix not in SUFFIXES:
        raise InputError(
            f"must be one of {', '.join(KINDS)} or a file {', '.join(SUFFIXES)}, not {text!r}", key="routing"
        )
    trace = read_trace(path, shape or TraceShape(), npy)
    if layer is not None:
        try:
            trace.index_of(layer)
        except InputError as error:
            raise error.at(file=path) from None
    return Routing(text, trace=trace, layer=layer)


def shape_of(model: ModelSpec) -> TraceShape:
    """Return what a model says about a trace of it: what the file may leave open, or has to agree with."""
    return TraceShape(
        top_k=model.gating.top_k,
        num_layers=model.num_moe_layers + model.num_dense_layers,
        num_experts=model.gating.num_experts,
    )


def draw_ids(
    gating: GatingSpec,
    routing: Routing,
    num_tokens: int,
    seed: int,
    *,
    moe_layer: int | None = None,
    phase: str | None = None,
) -> IntArray:
    """Return (tokens, k) int64 experts of each token, distinct.

    A synthetic routing is drawn with ``seed``, in groups that the gating allows. Of a trace the first tokens
    are taken as they are, of the layer that the routing names; without one of its only layer, of the first
    (``moe_layer`` is None) or of the one that comes ``moe_layer``-th. Where a trace knows its tokens' phases,
    those of ``phase`` are taken; decode tokens in the order in which a batch of all requests decodes them.
    """
    trace = routing.trace
    if trace is None:
        return draw_synthetic(gating, routing.kind, routing.parameters, num_tokens, seed)
    if routing.layer is not None:
        index = trace.index_of(routing.layer)
    else:
        index = 0 if moe_layer is None or trace.num_layers == 1 else moe_layer
    ids = trace.ids[index]
    order = _order(trace, phase)
    if order is not None:
        ids = ids[order]
    kept = ids[(ids != NO_EXPERT).any(axis=1)]
    return _checked(gating, routing.name, kept, num_tokens)


def _order(trace: Trace, phase: str | None) -> IntArray | None:
    """Return the tokens of a phase in the order that they are taken in; None for all as they are."""
    if phase is None or not trace.aligned or bool((trace.phase == UNKNOWN).all()):
        return None
    wanted = PHASES.index(phase)
    tokens = np.flatnonzero(trace.phase == wanted)
    if wanted == DECODE and len(tokens):
        # The first decode token of every request, then the second ones, and so on.
        by_request = tokens[np.argsort(trace.request[tokens], kind="stable")]
        _, starts, counts = np.unique(trace.request[by_request], return_index=True, return_counts=True)
        step = np.arange(len(tokens)) - starts.repeat(counts)
        tokens = by_request[np.argsort(step, kind="stable")]
    return tokens


def _checked(gating: GatingSpec, name: str, ids: np.ndarray, num_tokens: int) -> IntArray:
    def rule(ok: bool, text: str) -> None:
        if not ok:
            raise InputError(text, file=name, key="ids")

    rule(
        len(ids) >= num_tokens and ids.shape[1] == gating.top_k,
        f"must have at least {num_tokens} rows of k={gating.top_k}, not shape {ids.shape}",
    )
    ids = ids[:num_tokens].astype(np.int64)
    low, high = int(ids.min()), int(ids.max())
    rule(
        low >= 0 and high < gating.num_experts,
        f"must be in 0..{gating.num_experts - 1}, but hold {low}..{high}",
    )
    return np.ascontiguousarray(ids)


def synthetic_trace(
    gating: GatingSpec, routing: Routing, num_tokens: int, seed: int, num_layers: int
) -> Trace:
    """Return a synthetic routing as a trace of layers 0 .. num_layers - 1, drawn as a step of a model is."""
    require(routing.synthetic, "must be synthetic", key="routing")
    check_size((num_layers, num_tokens, gating.top_k))
    layers = [draw_ids(gating, routing, num_tokens, seed + layer) for layer in range(num_layers)]
    request = np.zeros(num_tokens, np.int64)
    position = np.arange(num_tokens)
    if routing.kind == RAGGED:
        lengths = request_lengths(num_tokens, routing.parameters[0], int(routing.parameters[1]))
        request = np.arange(len(lengths)).repeat(lengths)
        position -= (np.cumsum(lengths) - lengths).repeat(lengths)
    return make_trace(
        routing.name,
        np.stack(layers),
        TraceShape(num_experts=gating.num_experts),
        request=request,
        position=position,
    )
