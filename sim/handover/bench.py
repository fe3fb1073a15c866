"""Files of the SystemVerilog bench of a layer: recorded tokens, golden's outputs, memories, register steps.

The bench itself is written by hand (``eb_bench.sv`` with models of streams and memories); what is generated
here is what depends on the layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from golden.layer_bf16 import LayerBf16
from sim.accelerator import layer_job, output_payloads, token_beats
from sim.handover.bench_text import (
    CYCLES_PER_WORD,
    at_least_one,
    bank_memories,
    bank_words,
    beat_rows,
    connections,
    hex_lines,
    shared_files,
    sizes,
)
from sim.pack import RegisterStep, register_steps
from sim.pim_layer import pim_job
from sim.routing import parse_routing
from sim.rtlsim import RunSpec, ports_of
from sim.workload import (
    Workload,
    check_image,
    experts_used,
    is_vector,
    random_workload,
    vector_workload,
)
from spec.banks import BankGeometry
from spec.design import DesignSpec, Engine
from spec.errors import require_range
from spec.geometry import ImageGeometry, ceil_div
from spec.layout import Placement
from spec.model import ModelSpec

OPERATIONS = ("write", "wait")
DEFAULT_TOKENS, MAX_TOKENS = 8, 1 << 16
MAX_IMAGE_BYTES = 1 << 24
"""Weights for which a bench is written unasked."""


@dataclass(frozen=True, eq=False)
class LayerBench:
    """What a bench runs; ``placement``: of a near-memory design, channels of each expert."""

    workload: Workload
    design: DesignSpec
    placement: Placement | None = None

    def files(self, directory: Path, name: str) -> dict[str, str]:
        """Return the bench of a layer that was exported as ``name``: file in the bench's folder -> text."""
        workload, design = self.workload, self.design
        golden, spec = layer_run(workload, design, self.placement)
        described = ports_of(directory, name)
        ports = {port["name"]: port["width"] for port in described["ports"]}
        streams = {stream["name"]: stream for stream in described["streams"]}
        [axi] = described["axi_reads"]
        lanes = design.tile.act_lanes
        image = np.asarray(spec.memories["o_ar"].image).reshape(-1, axi["data_bits"] // 8)
        tokens = beat_rows(np.asarray(spec.sources["i"].payloads), streams["i"])
        outputs = beat_rows(output_payloads(lanes, golden, workload.batch_lengths), streams["o"])
        steps = list(register_steps(spec.prologue))
        words = len(image) + bank_words(spec.banks)
        macros = {
            "EB_TOP": described["top"],
            "EB_IN_BITS": streams["i"]["port_bits"],
            "EB_OUT_BITS": streams["o"]["port_bits"],
            "EB_NUM_IN": len(tokens),
            "EB_NUM_OUT": len(outputs),
            "EB_BEATS_PER_TOKEN": ceil_div(workload.model.d_model, lanes),
            "EB_NUM_STEPS": len(steps),
            "EB_ADDR_BITS": axi["addr_bits"],
            "EB_DATA_BITS": axi["data_bits"],
            "EB_IMAGE_WORDS": max(1, len(image)),
            "EB_LATENCY": design.memory.latency_cycles,
            "EB_MAX_CYCLES": CYCLES_PER_WORD * (words + len(tokens) + len(outputs) + 1000),
        }
        return {
            "bench.svh": sizes(macros, ports),
            "ports.svh": connections(ports, spec.banks),
            "steps.hex": _steps(steps),
            "image.hex": hex_lines(at_least_one(image, axi["data_bits"] // 8)),
            "tokens.hex": hex_lines(tokens),
            "outputs.hex": hex_lines(outputs),
            **bank_memories(ports, spec.banks),
            **shared_files(directory, name, "eb_bench"),
        }


def layer_bench(
    model_name: str, model: ModelSpec, design: DesignSpec, tokens: int | None
) -> LayerBench | None:
    """Return the bench of the layer that ``verilog`` writes for a model, which was given by this name.

    ``tokens``: how many, by default 8 random ones or all of a vector; None is returned for 0, and by default
    for weights beyond :data:`MAX_IMAGE_BYTES`. Raises :class:`InputError` on bad input.
    """
    if tokens is not None:
        require_range("bench", tokens, 0, MAX_TOKENS)
    image = ImageGeometry.of(model, design)
    if tokens == 0 or (tokens is None and image.num_bytes > MAX_IMAGE_BYTES):
        return None
    if is_vector(model_name):
        work = vector_workload(model_name, tokens)
    else:
        check_image(image.num_bytes)
        work = random_workload(model, tokens_of(tokens), parse_routing("uniform"), 0, design.window_tokens)
    return LayerBench(work, design, placement_of(work, design))


def placement_of(work: Workload, design: DesignSpec) -> Placement | None:
    """Return the channels of each expert that a workload needs, of a near-memory design."""
    if design.engine is not Engine.PIM:
        return None
    image = ImageGeometry.of(work.model, design)
    banks = BankGeometry.unplaced(work.model, design)
    return banks.place(experts_used(image, work.weights, work.tokens))


def tokens_of(tokens: int | None) -> int:
    """Return how many random tokens a bench has."""
    return tokens or DEFAULT_TOKENS


def layer_run(
    workload: Workload, design: DesignSpec, placement: Placement | None
) -> tuple[LayerBf16, RunSpec]:
    """Return golden's result of a layer, and the native bench's job at its plain ports."""
    if design.engine is Engine.PIM:
        image = ImageGeometry.of(workload.model, design)
        beats = token_beats(image, design, workload.tokens, workload.batch_lengths)
        _, golden, spec = pim_job(workload, design, beats, placement=placement)
    else:
        _, golden, spec = layer_job(workload, design)
    return golden, spec


def _steps(steps: list[RegisterStep]) -> str:
    return "".join(
        f"{OPERATIONS.index(step.op):02x}{step.address:02x}{step.value:08x}{step.mask or 0:08x}\n"
        for step in steps
    )
