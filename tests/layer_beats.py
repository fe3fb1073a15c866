"""All streams of a layer beat by beat, from the layer's model and the models of its blocks."""

from __future__ import annotations

import numpy as np

from sim.combine import combine_cycles
from sim.expert import expert_cycles
from sim.gating import gate_cycles
from sim.layer import LayerCycles, LayerShape, LayerTimes, StreamTimes
from sim.streams import ALWAYS, Cycles, Spans, union
from spec.design import DeepBlock


def late(shape: LayerShape, offered: Cycles) -> Cycles:
    """Return each token's arrival for :func:`sim.layer.layer_cycles`, from when its beats are offered."""
    beats = shape.image.gate.input_beats
    latest: Cycles = (offered.reshape(-1, beats) - np.arange(beats)).max(axis=1)
    return latest


def beat_by_beat(
    shape: LayerShape, modelled: LayerCycles, offered: Cycles, output_ready: Spans = ALWAYS
) -> LayerTimes:
    """Return all streams of a layer as if observed: the model's, and its blocks' beats between them.

    Parameters
    ----------
    modelled : the model's answer for tokens whose beats are offered in the cycles ``offered``.
    output_ready : as it was given.
    """
    beats, words, num_slots = shape.image.gate.input_beats, shape.engine.words, shape.num_slots
    expert = expert_cycles(
        shape.engine,
        shape.entry_shared,
        shape.streams.entry_last,
        modelled.entries.offered,
        latency=shape.design.memory.latency_cycles,
    )
    free, stalled = (
        combine_cycles(
            shape.contribution_tokens,
            expert.o,
            modelled.expects.offered,
            num_slots=num_slots,
            words=words,
            ready=ready,
            pipeline=shape.design.pipeline_of(DeepBlock.COMBINE),
        )
        for ready in (ALWAYS, output_ready)
    )
    behind = np.concatenate([[-1], stalled.o])[: len(stalled.o)] + 1
    # The gate is offered a token's first beat when there is a slot for it.
    reused = np.arange(num_slots, len(offered) // beats)
    admitted = offered.astype(np.int64)
    admitted[reused * beats] = np.maximum(admitted[reused * beats], stalled.freed[reused - num_slots] + 1)
    streams = {
        "tokens": StreamTimes(offered, gate_cycles(shape.image.gate, admitted, modelled.assignments.waits).i),
        "assignments": modelled.assignments,
        "expects": modelled.expects,
        "entries": modelled.entries,
        "contributions": StreamTimes(expert.o, expert.o),
        "output": StreamTimes(np.maximum(free.o, behind), stalled.o),
        "addresses": StreamTimes(expert.ar, expert.ar),
        "beats": StreamTimes(expert.r, expert.r),
    }
    return LayerTimes(streams, union(expert.wait_from, expert.wait_to))
