"""What a step has beside routed experts: attention, dense layers, routers, shared experts; by rooflines.

Every device has an even share of the tokens and all of these weights; that with most tokens gives the time,
energy is of all tokens. A prompt is of all devices too: each has a share of its tokens, and reads the keys
and values of all of it (their ways between devices are not counted). Per layer: the projections of
attention, products with keys and values, the router; all dense layers stand before the first MoE layer.
Not counted: norms, embedding, output layer, recurrent layers, a vision encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from sim.system.costs import BYTES, FloatArray, Roofline
from spec.catalogue import Backbone
from spec.errors import require
from spec.model import ModelSpec
from spec.system import AttentionPlace, OutsideSpec, SharedPlace

OPERATIONS = 2
"""A multiplication and its addition."""


@dataclass(frozen=True)
class Part:
    """One kind of work of a layer: what is read, what is computed, how often in a step.

    Attributes
    ----------
    num_bytes, flops : of the device with most tokens.
    times : layers that have it.
    all_bytes, all_flops : of all devices together; one without tokens reads nothing.
    """

    num_bytes: float
    flops: float
    times: float
    all_bytes: float
    all_flops: float


@dataclass(frozen=True)
class Outside:
    """What a step's layers have beside routed experts, on the device with most tokens.

    Attributes
    ----------
    before_host_s, before_near_s, shared_s : (layers,), as in :class:`sim.system.costs.Costs`.
    parts : what -> (engine, part).
    notes : what is not counted, and why.
    """

    before_host_s: FloatArray
    before_near_s: FloatArray
    shared_s: FloatArray
    parts: dict[str, tuple[str, Part]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @staticmethod
    def nothing(layers: int) -> Outside:
        """Return that of a system that has routed experts alone."""
        zero = np.zeros(layers)
        notes = ("attention, dense layers, routers and shared experts are not counted",)
        return Outside(zero, zero, zero, notes=notes)


def outside_of(
    spec: OutsideSpec,
    values: Mapping[str, float],
    model: ModelSpec,
    backbone: Backbone | None,
    tokens: int,
    *,
    prefill: bool,
    devices: int = 1,
) -> Outside:
    """Return what a step of a model has beside routed experts, and where it is computed.

    Parameters
    ----------
    values : the system's numbers (:func:`spec.system.nominal`).
    backbone : the model's; None where it is not known, and neither attention nor dense layers are counted.
    tokens : of the step, of all devices: of one prompt in a prefill, else one of each request.
    devices : over which they are spread evenly.
    """
    if backbone is not None and spec.attention is not AttentionPlace.HOST:
        require("near.bytes_per_s" in values, "must be 'host' beside an accelerator", key="outside.attention")
    host, d = Roofline.of(values, "host"), model.d_model
    layers = model.num_moe_layers
    every = model.num_moe_layers + model.num_dense_layers
    own, used = -(-tokens // devices), min(tokens, devices)
    parts: dict[str, tuple[str, Part]] = {}
    notes = ["norms, embedding and output layer are not counted"]

    def product(params: float, times: float) -> Part:
        def traffic(copies: int, count: int) -> float:
            return BYTES * params * copies + 2 * BYTES * d * count

        def flops(count: int) -> float:
            return OPERATIONS * params * count

        return Part(traffic(1, own), flops(own), times, traffic(used, tokens), flops(tokens))

    if backbone is None:
        notes.append("attention and dense layers are not counted: the model's file has no [backbone]")
    elif backbone.attention_layers:
        context = tokens if prefill else values["outside.context"]
        attended = _products(backbone, own, context, 1 if prefill else own, prefill)
        of_all = _products(backbone, tokens, context, used if prefill else tokens, prefill)
        place = spec.attention.value
        if spec.attention is AttentionPlace.FASTER:
            near = Roofline.of(values, "near")
            place = "near" if near.seconds(*attended) < host.seconds(*attended) else "host"
        parts["projections"] = "host", product(backbone.attention_params(d), backbone.attention_layers)
        parts["attention"] = place, Part(*attended, backbone.attention_layers, *of_all)
    if backbone is not None and backbone.dense_ffns:
        params = backbone.dense_matrices * d * backbone.d_dense
        parts["dense layers"] = "host", product(params, backbone.dense_ffns)
    parts["routers"] = "host", product(d * model.gating.num_experts, layers)
    if model.d_shared:
        params = model.ffn.num_matrices * d * model.d_shared
        parts["shared experts"] = "host", product(params, layers)

    seconds = {
        name: (place, part.times * float(Roofline.of(values, place).seconds(part.num_bytes, part.flops)))
        for name, (place, part) in parts.items()
    }
    before = {"host": np.zeros(layers), "near": np.zeros(layers)}
    for name in ("projections", "attention"):
        if name in seconds:
            place, total = seconds[name]
            before[place] += total / every
            # Dense layers have attention too.
            before[place][0] += total / every * model.num_dense_layers
    if "dense layers" in seconds:
        before["host"][0] += seconds["dense layers"][1]
    before["host"] += seconds["routers"][1] / layers
    shared = np.full(layers, seconds["shared experts"][1] / layers if model.d_shared else 0.0)
    if spec.shared is SharedPlace.BEFORE:
        before["host"] += shared
        shared = np.zeros(layers)
    return Outside(before["host"], before["near"], shared, parts, tuple(notes))


def _products(
    backbone: Backbone, tokens: int, context: float, caches: int, prefill: bool
) -> tuple[float, float]:
    """Return bytes and operations of one layer's queries, times keys and then values.

    ``caches`` of ``context`` tokens are read: a device's tokens of a prefill have one, the whole prompt's,
    and see half of it on average; a decoded token has its own, all of it.
    """
    of_token, of_pair = attention_sizes(backbone)
    pairs = tokens * context * (0.5 if prefill else 1.0)
    return of_token * caches * context, of_pair * pairs


def attention_sizes(backbone: Backbone) -> tuple[int, int]:
    """Return bytes of a token's keys and values in one layer, and operations of a pair of tokens.

    Latent attention reads one latent vector a token, with its projections absorbed (arXiv 2405.04434, 2.1).
    """
    if backbone.kv_lora_rank:
        cached = backbone.kv_lora_rank + backbone.d_rope
        per_pair = backbone.heads * (cached + backbone.kv_lora_rank)
    else:
        cached = 2 * backbone.kv_heads * backbone.head_dim
        per_pair = 2 * backbone.heads * backbone.head_dim
    return BYTES * cached, OPERATIONS * per_pair
