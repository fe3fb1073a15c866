"""The whole MoE layer in the hardware's number formats, bit for bit, and its memory image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from golden.combine_bf16 import Contribution, combine_bf16
from golden.dispatch_streams import DispatchStreams, Job, dispatch_streams
from golden.expert_bf16 import ffn_bf16
from golden.formats import Bits16, bf16_encode
from golden.gating_bf16 import RoutingBf16, route_bf16
from golden.image import expert_image, router_image
from golden.weights import LayerWeights
from spec.design import Policy
from spec.geometry import PAGE_BYTES, ImageGeometry
from spec.model import ModelSpec

ELEMENTS_PER_PAGE = PAGE_BYTES // 2


@dataclass(frozen=True)
class LayerBf16:
    """What the accelerator computes, with the streams between its blocks.

    Attributes
    ----------
    routing : ids and weights of each token.
    streams : the dispatcher's streams.
    contributions : the experts' results, in order of service.
    output : (tokens, d_model) bf16 patterns.
    """

    routing: RoutingBf16
    streams: DispatchStreams
    contributions: list[Contribution]
    output: Bits16


@dataclass(frozen=True, eq=False)
class ExpertBits:
    """One expert's matrices and biases as bf16 patterns; see :func:`golden.expert_bf16.ffn_bf16`."""

    gate: Bits16 | None
    up: Bits16
    down: Bits16
    gate_bias: Bits16 | None
    up_bias: Bits16 | None
    down_bias: Bits16 | None


def expert_bits(weights: LayerWeights, expert: int, num_experts: int) -> ExpertBits:
    """Return an expert's weights; ``num_experts`` as the index means the shared expert."""

    def bits(values: NDArray[np.float32] | None) -> Bits16 | None:
        return None if values is None else bf16_encode(values)

    if expert == num_experts:
        assert weights.shared_up is not None
        assert weights.shared_down is not None
        return ExpertBits(
            bits(weights.shared_gate),
            bf16_encode(weights.shared_up),
            bf16_encode(weights.shared_down),
            None,
            None,
            None,
        )

    def row(values: NDArray[np.float32] | None) -> Bits16 | None:
        return None if values is None else bits(values[expert])

    return ExpertBits(
        row(weights.gate),
        bf16_encode(weights.up[expert]),
        bf16_encode(weights.down[expert]),
        row(weights.gate_bias),
        row(weights.up_bias),
        row(weights.down_bias),
    )


def layer_bf16(
    model: ModelSpec,
    image: ImageGeometry,
    weights: LayerWeights,
    tokens: Bits16,
    *,
    window_tokens: int,
    batch_lengths: Sequence[int] | None = None,
    policy: Policy = Policy.QUEUE_ORDER,
) -> LayerBf16:
    """Compute a layer as the accelerator does.

    Parameters
    ----------
    image : geometry of the model on the design; it fixes the orders of accumulation.
    tokens : (tokens, d_model) bf16 patterns.
    window_tokens : tokens dispatched together, as in the design.
    batch_lengths : tokens of each sequence, default one; an expert's capacity counts per sequence.
    policy : order of service, as in the design; a token's contributions are added in that order.
    """
    routing = route_bf16(
        model.gating,
        bf16_encode(weights.router),
        tokens,
        image.gate.cols,
        weights.logit_bias,
        weights.selection_bias,
    )
    num_experts = model.gating.num_experts
    streams = dispatch_streams(
        routing.ids,
        routing.weights,
        num_experts=num_experts,
        window_tokens=window_tokens,
        batch_lengths=None if batch_lengths is None else np.asarray(batch_lengths),
        capacity=model.expert_capacity,
        capacity_rule=model.capacity_rule,
        shared=image.shared is not None,
        policy=policy,
    )
    jobs = streams.jobs()
    results = _expert_results(model, image, weights, tokens, jobs)
    contributions = [
        Contribution(job.tokens, job.weights, result) for job, result in zip(jobs, results, strict=True)
    ]
    output = combine_bf16(contributions, len(tokens), model.d_model)
    return LayerBf16(routing, streams, contributions, output)


def _expert_results(
    model: ModelSpec, image: ImageGeometry, weights: LayerWeights, tokens: Bits16, jobs: list[Job]
) -> list[Bits16]:
    """Results of each job; an expert's jobs of all windows are computed together."""
    by_expert: dict[int, list[int]] = {}
    for number, job in enumerate(jobs):
        by_expert.setdefault(job.expert, []).append(number)
    results: list[Bits16] = [np.zeros(0, np.uint16)] * len(jobs)
    for expert, numbers in by_expert.items():
        bits = expert_bits(weights, expert, model.gating.num_experts)
        rows = np.concatenate([jobs[number].tokens for number in numbers])
        output = ffn_bf16(
            model.ffn,
            tokens[rows],
            bits.gate,
            bits.up,
            bits.down,
            image.routed.cols,
            bits.gate_bias,
            bits.up_bias,
            bits.down_bias,
        )
        ends = np.cumsum([len(jobs[number].tokens) for number in numbers])
        for number, part in zip(numbers, np.split(output, ends[:-1]), strict=True):
            results[number] = part
    return results


def layer_image(
    model: ModelSpec, image: ImageGeometry, weights: LayerWeights, experts: Sequence[int] | None = None
) -> NDArray[np.uint8]:
    """Return the weight image, ``image.num_bytes`` bytes.

    ``experts`` names the experts that are needed (``num_experts`` is the shared one), by default all;
    the others' pages are zero, and the image ends behind the last one needed.
    """
    num_experts = model.gating.num_experts
    everyone = range(num_experts + (image.shared is not None))
    wanted = everyone if experts is None else experts
    last = max(wanted, default=-1)
    end = image.expert_page(last + 1) * PAGE_BYTES if last < num_experts else image.num_bytes
    memory = np.zeros(end // 2, dtype=np.uint16)
    router = router_image(image.gate, bf16_encode(weights.router), weights.logit_bias, weights.selection_bias)
    memory[: router.size] = router
    for expert in wanted:
        bits = expert_bits(weights, expert, num_experts)
        geometry = image.shared if expert == num_experts and image.shared else image.routed
        tiles = expert_image(
            geometry, bits.gate, bits.up, bits.down, bits.gate_bias, bits.up_bias, bits.down_bias
        )
        start = image.expert_page(expert) * ELEMENTS_PER_PAGE
        memory[start : start + tiles.size] = tiles
    return memory.view(np.uint8)
