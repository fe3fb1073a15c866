"""Files of the SystemVerilog bench of a layer: recorded tokens, golden's outputs, memories, register steps.

The bench itself is written by hand (``eb_bench.sv`` with two memory models); what is generated here is what
depends on the layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from golden.layer_bf16 import LayerBf16
from sim.accelerator import layer_job, output_payloads, token_beats
from sim.pack import RegisterStep, register_steps
from sim.pim_layer import pim_job
from sim.routing import parse_routing
from sim.rtlsim import RunSpec, file_list, ports_of
from sim.workload import (
    Workload,
    check_image,
    experts_used,
    hardware_model,
    is_vector,
    random_workload,
    vector_workload,
)
from spec.banks import BankGeometry
from spec.design import DesignSpec, Engine
from spec.errors import require_range
from spec.geometry import ImageGeometry, ceil_div
from spec.layout import Placement
from spec.load import load_design

FOLDER = "bench"
SOURCES = ("eb_bench.sv", "eb_axi_memory.sv", "eb_bank_memory.sv")
OPERATIONS = ("write", "wait")
DEFAULT_TOKENS, MAX_TOKENS = 8, 1 << 16
MAX_IMAGE_BYTES = 1 << 24
"""Weights for which a bench is written unasked."""
CYCLES_PER_WORD = 100
"""Cycles that the bench grants for each word of its memories, and as many words for each beat."""

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class LayerBench:
    """What a bench runs; ``placement``: of a near-memory design, channels of each expert."""

    workload: Workload
    design: DesignSpec
    placement: Placement | None = None


def layer_bench(
    model_name: str,
    design_name: str,
    scale: str,
    number_format: str | None,
    tokens: int | None,
    *,
    secded: bool = False,
) -> LayerBench | None:
    """Return the bench of the layer that ``verilog`` writes by these options.

    ``tokens``: how many, by default 8 random ones or all of a vector; None is returned for 0, and by default
    for weights beyond :data:`MAX_IMAGE_BYTES`. Raises :class:`InputError` on bad input.
    """
    if tokens is not None:
        require_range("bench", tokens, 0, MAX_TOKENS)
    design = load_design(design_name, number_format)
    design = design.with_secded() if secded else design
    vector = is_vector(model_name)
    model, _ = hardware_model(model_name, None if vector else scale, 1)
    image = ImageGeometry.of(model, design)
    if tokens == 0 or (tokens is None and image.num_bytes > MAX_IMAGE_BYTES):
        return None
    if vector:
        work = vector_workload(model_name, tokens)
    else:
        check_image(image.num_bytes)
        work = random_workload(
            model, tokens or DEFAULT_TOKENS, parse_routing("uniform"), 0, design.window_tokens
        )
    if design.engine is not Engine.PIM:
        return LayerBench(work, design)
    banks = BankGeometry.unplaced(model, design)
    return LayerBench(work, design, banks.place(experts_used(image, work.weights, work.tokens)))


def bench_files(directory: Path, name: str, bench: LayerBench) -> dict[str, str]:
    """Return the bench of a layer that was exported as ``name``: file below the export's folder -> text."""
    workload, design = bench.workload, bench.design
    golden, spec = _job(workload, design, bench.placement)
    ports = ports_of(directory, name)
    streams = {stream["name"]: stream for stream in ports["streams"]}
    [axi] = ports["axi_reads"]
    in_bits, out_bits = streams["i"]["data_bits"], streams["o"]["data_bits"]
    lanes = design.tile.act_lanes
    image = np.asarray(spec.memories["o_ar"].image).reshape(-1, axi["data_bits"] // 8)
    banks = {prefix: (np.asarray(bank.image), bank.latency) for prefix, bank in spec.banks.items()}
    beats = {
        "tokens": _rows(np.asarray(spec.sources["i"].payloads), in_bits),
        "outputs": _rows(output_payloads(lanes, golden, workload.batch_lengths), out_bits),
    }
    steps = list(register_steps(spec.prologue))
    words = len(image) + sum(len(tiles) for tiles, _ in banks.values()) + sum(map(len, beats.values()))
    defines = {
        "EB_TOP": ports["top"],
        "EB_IN_BITS": in_bits,
        "EB_OUT_BITS": out_bits,
        "EB_NUM_IN": len(beats["tokens"]),
        "EB_NUM_OUT": len(beats["outputs"]),
        "EB_BEATS_PER_TOKEN": ceil_div(workload.model.d_model, lanes),
        "EB_NUM_STEPS": len(steps),
        "EB_ADDR_BITS": axi["addr_bits"],
        "EB_DATA_BITS": axi["data_bits"],
        "EB_IMAGE_WORDS": max(1, len(image)),
        "EB_LATENCY": design.memory.latency_cycles,
        "EB_MAX_CYCLES": CYCLES_PER_WORD * (words + 1000),
    }
    widths = {port["name"]: port["width"] for port in ports["ports"]}
    clocks = [port for port in widths if port.startswith("bus_")]
    two_clocks = "`define EB_TWO_CLOCKS\n" if clocks else ""
    files = {
        "bench.svh": two_clocks + "".join(f"`define {key} {value}\n" for key, value in defines.items()),
        "memories.svh": "".join(
            _bank_memory(prefix, widths, len(tiles), latency) for prefix, (tiles, latency) in banks.items()
        ),
        "ports.svh": "".join(
            f"        .{port}({port}),\n"
            for port in (*clocks, *(f"{prefix}_{pin}" for prefix in banks for pin in ("en", "addr", "data")))
        ),
        "steps.hex": _steps(steps),
        "image.hex": _hex(image if len(image) else np.zeros((1, axi["data_bits"] // 8), np.uint8)),
        **{f"{key}.hex": _hex(rows) for key, rows in beats.items()},
        **{f"{prefix}.hex": _hex(tiles) for prefix, (tiles, _) in banks.items()},
        "bench.f": "".join(f"../{file.name}\n" for file in file_list(directory, name))
        + "".join(f"{source}\n" for source in SOURCES),
        **{source: Path(__file__).with_name(source).read_text() for source in SOURCES},
    }
    return {f"{FOLDER}/{file}": text for file, text in files.items()}


def _job(workload: Workload, design: DesignSpec, placement: Placement | None) -> tuple[LayerBf16, RunSpec]:
    if design.engine is Engine.PIM:
        image = ImageGeometry.of(workload.model, design)
        beats = token_beats(image, design, workload.tokens, workload.batch_lengths)
        _, golden, spec = pim_job(workload, design, beats, placement=placement)
    else:
        _, golden, spec = layer_job(workload, design)
    return golden, spec


def _rows(payloads: NDArray[Any], data_bits: int) -> Bytes:
    """Return beats as bytes: those of ``tdata``, then one with ``tlast`` in its lowest bit."""
    raw = np.ascontiguousarray(payloads).view(np.uint8).reshape(len(payloads), -1)
    return raw[:, : data_bits // 8 + 1]


def _hex(rows: Bytes) -> str:
    """Return a line of hexadecimal digits for each row of bytes, highest byte first."""
    return np.ascontiguousarray(rows[:, ::-1]).tobytes().hex("\n", rows.shape[1]) + "\n"


def _steps(steps: list[RegisterStep]) -> str:
    return "".join(
        f"{OPERATIONS.index(step.op):02x}{step.address:02x}{step.value:08x}{step.mask or 0:08x}\n"
        for step in steps
    )


def _bank_memory(prefix: str, widths: dict[str, int], words: int, latency: int) -> str:
    address, bits = widths[f"{prefix}_addr"], widths[f"{prefix}_data"]
    return f"""    wire [{widths[f"{prefix}_en"] - 1}:0] {prefix}_en;
    wire [{address - 1}:0] {prefix}_addr;
    wire [{bits - 1}:0] {prefix}_data;
    eb_bank_memory #(
        .ADDR_BITS({address}),
        .DATA_BITS({bits}),
        .WORDS({words}),
        .LATENCY({latency}),
        .FILE("{prefix}.hex")
    ) {prefix} (
        .aclk(aclk),
        .en(|{prefix}_en),
        .addr({prefix}_addr),
        .data({prefix}_data)
    );
"""
