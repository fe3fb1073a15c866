"""The whole MoE layer in the hardware's number formats, bit for bit, and its memory image.

Everything is bf16 but the experts, which are computed in the geometry's format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from golden.combine_bf16 import Contribution, combine_bf16, identity_start, identity_weights
from golden.dispatch_streams import DispatchStreams, Job, dispatch_streams
from golden.expert_int8 import ActivationScales
from golden.experts import PackedExpert
from golden.formats import BF16_ONE, Bits16, bf16_encode, bf16_product, f32_flush
from golden.gating_bf16 import RoutingBf16, check_selection_bias, route_bf16
from golden.image import router_image
from golden.weights import LayerWeights
from spec.design import Policy
from spec.geometry import PAGE_BYTES, ImageGeometry
from spec.model import ModelSpec


@dataclass(frozen=True)
class LayerBf16:
    """What the accelerator computes, with the streams between its blocks.

    Attributes
    ----------
    routing : ids and weights of each token.
    streams : the dispatcher's streams.
    contributions : the experts' results, in order of service.
    output : (tokens, d_model) bf16 patterns.
    scales : scales of the experts' inputs and hidden activations, None in bf16.
    """

    routing: RoutingBf16
    streams: DispatchStreams
    contributions: list[Contribution]
    output: Bits16
    scales: ActivationScales | None


def layer_bf16(
    model: ModelSpec,
    image: ImageGeometry,
    weights: LayerWeights,
    tokens: Bits16,
    *,
    window_tokens: int,
    batch_lengths: Sequence[int] | None = None,
    policy: Policy = Policy.QUEUE_ORDER,
    scales: ActivationScales | None = None,
) -> LayerBf16:
    """Compute a layer as the accelerator does.

    Parameters
    ----------
    image : geometry of the model on the design; it fixes the orders of accumulation.
    tokens : (tokens, d_model) bf16 patterns.
    window_tokens : tokens dispatched together, as in the design.
    batch_lengths : tokens of each sequence, default one; an expert's capacity counts per sequence.
    scales : scales of the experts' inputs and hidden activations, for int8.
    policy : order of service, as in the design; a token's contributions are added in that order.
    """
    routing = layer_routing(image, weights, tokens)
    streams = layer_streams(
        model, image, routing, window_tokens=window_tokens, batch_lengths=batch_lengths, policy=policy
    )
    jobs = streams.jobs()
    results = _expert_results(image, weights, tokens, jobs, scales)
    contributions = [
        Contribution(job.tokens, output_weights(image, job), result)
        for job, result in zip(jobs, results, strict=True)
    ]
    start = None
    if model.gating.num_identity_experts:
        start = identity_start(identity_weights(streams.identity_sum), tokens)
    elif weights.output_bias is not None:
        start = np.repeat(f32_flush(weights.output_bias)[None], len(tokens), axis=0)
    output = combine_bf16(contributions, len(tokens), model.d_model, start)
    return LayerBf16(routing, streams, contributions, output, scales)


def layer_streams(
    model: ModelSpec,
    image: ImageGeometry,
    routing: RoutingBf16,
    *,
    window_tokens: int,
    batch_lengths: Sequence[int] | None = None,
    policy: Policy = Policy.QUEUE_ORDER,
) -> DispatchStreams:
    """Return what the accelerator's dispatcher makes of what its gate chose.

    Parameters are those of :func:`layer_bf16`.
    """
    num_tokens = len(routing.ids)
    return dispatch_streams(
        routing.ids,
        routing.weights,
        num_experts=image.num_experts,
        num_identity_experts=model.gating.num_identity_experts,
        window_tokens=window_tokens,
        batch_lengths=None if batch_lengths is None else np.asarray(batch_lengths),
        capacity=model.capacity_for([num_tokens] if batch_lengths is None else batch_lengths),
        capacity_rule=model.capacity_rule,
        shared=image.shared is not None,
        shared_weights=routing.shared,
        scores=routing.scores,
        kept_gating=image.gate.gating if model.weights_of_kept else None,
        signed_weights=image.gate.plan.signed,
        policy=policy,
    )


def layer_routing(image: ImageGeometry, weights: LayerWeights, tokens: Bits16) -> RoutingBf16:
    """Return what the accelerator's gate chooses; of the weights it takes no expert's.

    Raises :class:`InputError` for a selection bias that its keys do not hold.

    Parameters are those of :func:`layer_bf16`.
    """
    check_selection_bias(image.gate.gating, weights.selection_bias)
    return route_bf16(
        image.gate.gating,
        bf16_encode(weights.router),
        tokens,
        image.router_cols,
        weights.logit_bias,
        weights.selection_bias,
        shared_gate=weights.shared_gate_bits,
        banked=image.gate.banked,
        gives_scores=image.gate.gives_scores,
    )


def _expert_results(
    image: ImageGeometry,
    weights: LayerWeights,
    tokens: Bits16,
    jobs: list[Job],
    scales: ActivationScales | None,
) -> list[Bits16]:
    """Results of each job; an expert's jobs of all windows are computed together."""
    by_expert: dict[int, list[int]] = {}
    for number, job in enumerate(jobs):
        by_expert.setdefault(job.expert, []).append(number)
    results: list[Bits16] = [np.zeros(0, np.uint16)] * len(jobs)
    for expert, numbers in by_expert.items():
        inputs = np.concatenate([job_inputs(image, jobs[number], tokens) for number in numbers])
        output = pack_expert(image, weights, expert, scales).outputs(inputs)
        ends = np.cumsum([len(jobs[number].tokens) for number in numbers])
        for number, part in zip(numbers, np.split(output, ends[:-1]), strict=True):
            results[number] = part
    return results


def job_inputs(image: ImageGeometry, job: Job, tokens: Bits16) -> Bits16:
    """Return what a job's expert sees of its tokens: times their weights, in bf16, if they apply there."""
    inputs: Bits16 = tokens[job.tokens]
    if image.weighted_inputs and job.expert < image.num_experts:
        return bf16_product(inputs, job.weights[:, None])
    return inputs


def output_weights(image: ImageGeometry, job: Job) -> Bits16:
    """Return the weights of a job's results; 1 where they applied to the inputs."""
    if image.weighted_inputs and job.expert < image.num_experts:
        return np.full_like(job.weights, BF16_ONE)
    return job.weights


def pack_expert(
    image: ImageGeometry, weights: LayerWeights, expert: int, scales: ActivationScales | None = None
) -> PackedExpert:
    """Return an expert in the image's format; ``num_experts`` as the index means the shared expert."""
    if expert < image.num_experts:
        return PackedExpert.of(weights.expert(expert), image.routed, scales, weights.stored_expert(expert))
    assert image.shared is not None
    assert weights.shared_expert is not None
    return PackedExpert.of(weights.shared_expert, image.shared, scales, weights.stored_expert(None))


def load_image(image: ImageGeometry, weights: LayerWeights) -> NDArray[np.uint8]:
    """Return the beginning of the weight image, which is loaded before the first token.

    The router's rows, or what of them no bank holds, and an output bias behind them, if the image has one.
    """
    router = router_image(
        image.gate,
        bf16_encode(weights.router),
        weights.logit_bias,
        weights.selection_bias,
        weights.shared_gate_bits,
    )
    parts = [router.view(np.uint8)]
    if image.output_bias and weights.output_bias is not None:
        parts.append(f32_flush(weights.output_bias).view(np.uint8))
    return np.concatenate(parts)


def layer_image(
    model: ModelSpec,
    image: ImageGeometry,
    weights: LayerWeights,
    experts: Sequence[int] | None = None,
    *,
    scales: ActivationScales | None = None,
) -> NDArray[np.uint8]:
    """Return the weight image, ``image.num_bytes`` bytes.

    ``experts`` names the experts that are needed (``num_experts`` is the shared one), by default all;
    the others' pages are zero, and the image ends behind the last one needed. ``scales`` are those of
    :func:`layer_bf16`.
    """
    num_experts = image.num_experts
    everyone = range(num_experts + (image.shared is not None))
    wanted = everyone if experts is None else experts
    last = max(wanted, default=-1)
    end = image.expert_page(last + 1) * PAGE_BYTES if last < num_experts else image.num_bytes
    memory = np.zeros(end, dtype=np.uint8)
    head = load_image(image, weights)
    memory[: head.size] = head
    for expert in wanted:
        tiles = pack_expert(image, weights, expert, scales).image()
        start = image.expert_page(expert) * PAGE_BYTES
        memory[start : start + tiles.size] = tiles
    return memory
