"""The gate alone: its exported Verilog against golden and its cycle model, many tokens at a time."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from golden.formats import Bits16
from golden.gating_bf16 import RoutingBf16, score_words
from golden.image import router_image
from sim.accelerator import input_payloads
from sim.divergence import PortCheck, first_divergence, with_waveform
from sim.gating import GateCycles, gate_cycles
from sim.payload import pack
from sim.rtlsim import Build, RunResult, RunSpec, Sink, Source, build, gate_component, stream_fields
from sim.streams import readiness
from spec.geometry import GateGeometry

PAUSED = 0.5
"""Pauses per token in a run with gaps, each of up to two intervals."""


@dataclass(frozen=True, eq=False)
class GateOperands:
    """A router, tokens as bf16 patterns (T, d_model), and golden's answer to them.

    ``shared_gate``: the (1, d_model) row of a shared expert's gate, where the geometry has one.
    """

    geometry: GateGeometry
    router: Bits16
    logit_bias: NDArray[np.float32] | None
    selection_bias: NDArray[np.float32] | None
    shared_gate: Bits16 | None
    tokens: Bits16
    routing: RoutingBf16

    def part(self, some: slice) -> GateOperands:
        """Return the same gate with some of the tokens."""
        routing = self.routing
        shared = None if routing.shared is None else routing.shared[some]
        scores = None if routing.scores is None else routing.scores[some]
        chosen = RoutingBf16(routing.ids[some], routing.weights[some], routing.logits[some], shared, scores)
        return dataclasses.replace(self, tokens=self.tokens[some], routing=chosen)


@dataclass(frozen=True)
class GateRun:
    """What a run of the Verilog showed.

    Attributes
    ----------
    tokens, cycles : how many, and in how many cycles, the loading of the router included.
    bits, differing : bits of the assignments that were compared with golden, and those that differ.
    divergence : the first difference from golden or the cycle model, None where there is none.
    """

    tokens: int
    cycles: int
    bits: int
    differing: int
    divergence: str | None


@dataclass(frozen=True, eq=False)
class GateJob:
    """A run from reset on: the bench's job, and what golden and the cycle model say of it."""

    spec: RunSpec
    payloads: NDArray[np.uint64]
    model: GateCycles

    def checks(self, bench: Build, result: RunResult) -> list[PortCheck]:
        """Return the comparisons of all of its ports."""
        fields = stream_fields(bench.directory, bench.name, "o")
        loaded = result.streams["i_load"]
        return [
            PortCheck(
                "gating",
                "o",
                result.streams["o"],
                payloads=self.payloads,
                cycles=self.model.o,
                fields=fields,
            ),
            PortCheck("gating", "i", result.streams["i"], cycles=self.model.i),
            PortCheck("gating", "i_load", loaded, cycles=np.arange(len(loaded.payloads))),
        ]


def gate_job(bench: Build, operands: GateOperands, rng: np.random.Generator | None = None) -> GateJob:
    """Return a run of all tokens, one batch.

    Without ``rng`` beats are offered as fast as they are taken and assignments are taken at once; with it
    tokens come with gaps and the output stalls, for times of the order of the gate's interval.
    """
    geometry, tokens, routing = operands.geometry, operands.tokens, operands.routing
    top_k, beats = geometry.gating.top_k, geometry.input_beats
    image = router_image(
        geometry, operands.router, operands.logit_bias, operands.selection_bias, operands.shared_gate
    )
    load = image.reshape(-1, geometry.load_elements)
    load = np.pad(load, ((0, 0), (0, -geometry.load_elements % 4))).view(np.uint64)
    arrivals = np.full(len(tokens) * beats, len(load) + 1, dtype=np.int64)
    pattern = longer = None
    if rng is not None:
        pauses = rng.integers(1, 2 * geometry.interval + 2, len(arrivals))
        arrivals += np.cumsum(pauses * (rng.random(len(arrivals)) < PAUSED / beats))
        pattern = _runs(rng, int(arrivals[-1]), geometry.interval)
        # A model is ready after its pattern's end; a sink repeats it.
        longer = np.concatenate([pattern, np.ones(len(pattern) + 2 * len(tokens) * geometry.interval, bool)])
    model = gate_cycles(geometry, arrivals, readiness(pattern))
    if longer is not None and model.o[-1] >= len(longer):
        longer = np.concatenate([longer, np.ones(int(model.o[-1]), bool)])
    last_slot = np.arange(top_k) == top_k - 1
    columns: dict[str, NDArray[Any]] = {
        "expert": routing.ids.ravel(),
        "weight": routing.weights.ravel(),
        "last": np.tile(last_slot, len(tokens)),
        "last_token": np.repeat(np.arange(len(tokens)) == len(tokens) - 1, top_k),
    }
    if routing.shared is not None:
        columns["shared"] = np.repeat(routing.shared, top_k)
    if routing.scores is not None:
        columns["score"] = score_words(geometry.gating, routing.scores).ravel()
    payloads = pack(stream_fields(bench.directory, bench.name, "o"), columns)
    spec = RunSpec(
        sources={
            "i_load": Source(load),
            "i": Source(input_payloads(geometry.stream_lanes, beats, tokens, [len(tokens)]), arrivals),
        },
        sinks={"o": Sink(len(payloads), longer)},
        max_cycles=int(model.o[-1]) + 1_000_000,
    )
    return GateJob(spec, payloads, model)


def _runs(rng: np.random.Generator, cycles: int, mean: int) -> NDArray[np.bool_]:
    """Return a ready pattern of runs of both kinds, so many cycles long or more, that ends ready."""
    lengths = rng.geometric(1 / max(mean, 2), size=2 * (cycles // max(mean, 2) + 1))
    pattern: NDArray[np.bool_] = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return pattern


def run_gate(bench: Build, operands: GateOperands, *, seed: int, waves: Path) -> GateRun:
    """Run half of the tokens without gaps and stalls, half with them, each from a reset."""
    half = len(operands.tokens) // 2
    jobs = [
        gate_job(bench, operands.part(slice(half))),
        gate_job(bench, operands.part(slice(half, None)), np.random.default_rng(seed)),
    ]
    specs = [job.spec for job in jobs]
    results = bench.run_phases(specs)
    divergence, differing, bits = None, 0, 0
    width = max(
        field.offset + field.width for field in stream_fields(bench.directory, bench.name, "o").values()
    )
    for number, (job, result) in enumerate(zip(jobs, results, strict=True)):
        checks = job.checks(bench, result)
        bits += width * len(job.payloads)
        differing += _differing_bits(job.payloads, result.streams["o"].payloads, width)
        found = first_divergence(checks)
        if divergence is not None:
            continue
        if found is not None:
            divergence = with_waveform(found, bench, job.spec, waves, before=specs[:number])
        else:
            problems = [*result.violations, *([result.timeout] if result.timeout else [])]
            divergence = "; ".join(problems) or None
    return GateRun(
        len(operands.tokens), sum(result.cycles for result in results), bits, differing, divergence
    )


def _differing_bits(expected: NDArray[np.uint64], seen: NDArray[np.uint64], width: int) -> int:
    """Return the bits in which the payloads differ; a missing or extra one counts whole."""
    common = min(len(expected), len(seen))
    differing = int(np.bitwise_count(expected[:common] ^ seen[:common]).sum())
    return differing + width * abs(len(expected) - len(seen))


def build_gate(geometry: GateGeometry, root: Path) -> Build:
    """Return the compiled bench of a gate's exported Verilog; builds are cached by content."""
    return build("gate", gate_component(geometry), config=geometry, root=root)
