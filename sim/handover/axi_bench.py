"""Files of the SystemVerilog bench of a top with AXI ports: tokens, golden's outputs, memories, the start.

The bench itself is written by hand (``eb_axi_bench.sv`` with models of streams, memories and a master); what
is generated here is what depends on the top. It is run from power-up with the recorded tokens in packets,
then with one packet that is wrong, and behind recovery with the recorded tokens once more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from golden.formats import Bits16
from golden.gating_bf16 import RoutingBf16, score_words
from golden.layer_bf16 import LayerBf16, layer_routing, layer_streams, load_image
from golden.weights import LayerWeights, random_weights
from sim.accelerator import input_payloads, output_payloads, setup_steps
from sim.handover.bench import MAX_IMAGE_BYTES, MAX_TOKENS, layer_bench, layer_run, placement_of, tokens_of
from sim.handover.bench_text import (
    CYCLES_PER_WORD,
    Bytes,
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
from sim.payload import fields_of, pack
from sim.pim_layer import placement_steps
from sim.routing import parse_routing
from sim.rtlsim import BankMemory, Step, check_fits, ports_of, top_of
from sim.workload import Workload, check_image, draw_tokens, is_vector, vector_workload
from spec.banks import BankGeometry
from spec.design import DesignSpec
from spec.errors import require_range
from spec.geometry import PAGE_BYTES, ImageGeometry, ceil_div
from spec.layout import Placement
from spec.model import ModelSpec
from spec.registers import (
    BUS_REGISTERS,
    CONTROL_CLEAR,
    Register,
    Top,
    register_map,
)

OPERATIONS = ("write", "wait", "read")
IMAGE_PAGE = 0x12345
"""Where the bench's memory holds the image: a page of which every digit counts."""
BUS = tuple(register.name for register in BUS_REGISTERS)
"""Of the registers' names the bench has those of the bus' page, and these."""
CORE = ("STATUS", "TOKENS_IN_LOW", "TOKENS_OUT_LOW")
WHOLE_WORD = 0xFFFF_FFFF


@dataclass(frozen=True, eq=False)
class AxiBench:
    """What a bench runs.

    Attributes
    ----------
    block : GATE or DISPATCH alone, None for the layer.
    weights, tokens, batch_lengths : the recorded tokens, one packet for each batch.
    workload : of a layer, its run.
    """

    model: ModelSpec
    design: DesignSpec
    block: Top | None
    weights: LayerWeights
    tokens: Bits16
    batch_lengths: list[int]
    workload: Workload | None = None

    @property
    def top(self) -> Top:
        """Which top it is."""
        return top_of(self.design, self.block)

    @property
    def registers(self) -> tuple[Register, ...]:
        """What software sees."""
        secded = self.design.pim is not None and self.design.pim.secded
        return register_map(self.top, int8=self.design.format.integer, secded=secded)

    def files(self, directory: Path, name: str) -> dict[str, str]:
        """Return the bench of a top that was exported as ``name``: file in the bench's folder -> text."""
        described = ports_of(directory, name)
        ports = {port["name"]: port["width"] for port in described["ports"]}
        streams = {stream["name"]: stream for stream in described["streams"]}
        run = _Run.of(self, streams)
        steps = list(_start(self, run.steps))
        count, right = len(self.tokens), slice(run.beats_before)
        words = len(run.image) + bank_words(run.banks)
        beats = 2 * (len(run.tokens) + len(run.outputs) + len(run.expect))
        lengths = set(self.batch_lengths)
        macros: dict[str, Any] = {
            "EB_TOP": described["top"],
            "EB_IN_BITS": streams["i"]["port_bits"],
            "EB_OUT_BITS": streams["o"]["port_bits"],
            "EB_NUM_TOKENS": count,
            "EB_NUM_IN": len(run.tokens[right]),
            "EB_NUM_OUT": run.outputs_before,
            "EB_BEATS_PER_TOKEN": run.beats_per_token,
            "EB_BATCH_TOKENS": lengths.pop() if len(lengths) == 1 else 0,
            "EB_WRONG_TOKENS": run.num_tokens - count,
            "EB_WRONG_IN": len(run.tokens) - run.beats_before,
            "EB_WRONG_OUT": len(run.outputs) - run.outputs_before,
            "EB_WRONG_BATCH_TOKENS": run.num_tokens - count + (not run.cut),
            "EB_WRONG_ERRORS": f"ERRORS_{'SHORT_TOKEN' if run.cut else 'SHORT_PACKET'}",
            "EB_NUM_STEPS": len(steps),
            "EB_MAX_CYCLES": CYCLES_PER_WORD * (words + beats + 1000),
        }
        files = {}
        for axi in described["axi_reads"]:
            image = at_least_one(run.image.reshape(-1, axi["data_bits"] // 8), axi["data_bits"] // 8)
            files["image.hex"] = hex_lines(image)
            macros |= {
                "EB_ADDR_BITS": axi["addr_bits"],
                "EB_DATA_BITS": axi["data_bits"],
                "EB_IMAGE_WORDS": len(image),
                "EB_IMAGE_BASE": f"{axi['addr_bits']}'h{IMAGE_PAGE * PAGE_BYTES:x}",
                "EB_LATENCY": self.design.memory.latency_cycles,
            }
        if "o_expect" in streams:
            macros["EB_EXPECT_BITS"] = streams["o_expect"]["port_bits"]
            files["expect.hex"] = hex_lines(run.expect)
        return {
            "bench.svh": sizes(macros, ports),
            "registers.svh": _register_names(self.registers),
            "ports.svh": connections(ports, run.banks),
            "start.hex": "".join(map(_step_line, steps)),
            **files,
            "tokens.hex": hex_lines(run.tokens),
            "outputs.hex": hex_lines(at_least_one(run.outputs, streams["o"]["port_bits"] // 8 + 1)),
            **bank_memories(ports, run.banks),
            **shared_files(directory, name, "eb_axi_bench", ("eb_axi_lite_master.sv",)),
        }


def axi_bench(
    model: ModelSpec,
    design: DesignSpec,
    block: Top | None,
    model_name: str | None,
    tokens: int | None,
) -> AxiBench | None:
    """Return the bench of a top that ``verilog --bus axi`` writes; see :func:`layer_bench`.

    ``model``, ``design``, ``block``: the top's; ``model_name``: as it was given, None for a block of its own
    size. Raises :class:`InputError` on bad input.
    """
    check_fits(model, design)
    if block is None:
        assert model_name is not None
        layer = layer_bench(model_name, model, design, tokens)
        if layer is None:
            return None
        work = layer.workload
        lengths = _packets(model, work.batch_lengths)
        return AxiBench(model, design, None, work.weights, work.tokens, lengths, work)
    if tokens is not None:
        require_range("bench", tokens, 0, MAX_TOKENS)
    image = ImageGeometry.of(model, design)
    num_bytes = image.router_pages * PAGE_BYTES if block is Top.GATE else 0
    if tokens == 0 or (tokens is None and num_bytes > MAX_IMAGE_BYTES):
        return None
    if model_name is not None and is_vector(model_name):
        work = vector_workload(model_name, tokens)
        return AxiBench(model, design, block, work.weights, work.tokens, _packets(model, work.batch_lengths))
    check_image(num_bytes)
    # No expert is asked for anything: of their weights the first one's are there.
    weights = random_weights(model, 0, experts=[0])
    drawn = draw_tokens(model, tokens_of(tokens), parse_routing("uniform"), 0, weights)
    return AxiBench(model, design, block, weights, drawn.tokens, _packets(model, [len(drawn.tokens)]))


def _packets(model: ModelSpec, lengths: list[int]) -> list[int]:
    """Return a single batch in two packets, unless its parts would have other capacities."""
    if len(lengths) > 1 or lengths[0] < 2:
        return lengths
    halves = [lengths[0] - lengths[0] // 2, lengths[0] // 2]
    return halves if len({model.capacity_of(half) for half in halves}) == 1 else lengths


@dataclass(frozen=True, eq=False)
class _Run:
    """Beats of a run: the recorded tokens, then one more packet, which is wrong.

    Attributes
    ----------
    cut : it ends inside its last token, else it has a token too few.
    num_tokens : with those of the wrong packet.
    tokens, outputs, expect : rows of the streams' files.
    beats_before, outputs_before : of the recorded tokens.
    """

    cut: bool
    num_tokens: int
    tokens: Bytes
    outputs: Bytes
    beats_before: int
    outputs_before: int
    beats_per_token: int
    steps: list[RegisterStep]
    expect: Bytes = field(default_factory=lambda: np.zeros((0, 1), np.uint8))
    image: Bytes = field(default_factory=lambda: np.zeros(0, np.uint8))
    banks: Mapping[str, BankMemory] = field(default_factory=dict)

    @classmethod
    def of(cls, bench: AxiBench, streams: Mapping[str, Any]) -> _Run:
        """Return the run of a bench; ``streams`` as ``ports.json`` describes them."""
        model, design = bench.model, bench.design
        image = ImageGeometry.of(model, design)
        # The wrong packet is the first one again: a batch of its length has its capacity, too.
        again = bench.batch_lengths[0]
        lengths = [*bench.batch_lengths, again]
        tokens = np.concatenate([bench.tokens, bench.tokens[:again]])
        if bench.top is Top.DISPATCH:
            return _dispatch_run(bench, image, tokens, lengths, streams)
        beats = image.gate.input_beats
        kept = beats // 2
        if kept:
            tokens[-1, kept * design.stream_lanes :] = 0
        payloads = input_payloads(design.stream_lanes, beats, tokens, lengths)
        rows = beat_rows(payloads, streams["i"])
        if kept:
            rows = _cut_short(rows, beats - kept)
        common: dict[str, Any] = {
            "cut": kept > 0,
            "num_tokens": len(tokens),
            "tokens": rows,
            "beats_before": len(bench.tokens) * beats,
        }
        if bench.top is Top.GATE:
            routing = layer_routing(image, bench.weights, tokens)
            each = model.gating.top_k
            outputs = _assignments(image, routing, lengths, streams["o"])
            alone = replace(image, output_bias=False)
            head = load_image(alone, bench.weights)
            memory = np.zeros(alone.router_pages * PAGE_BYTES, np.uint8)
            memory[: len(head)] = head
            common |= {"image": memory, "steps": _settings(bench, lengths)}
        else:
            assert bench.workload is not None
            work = replace(bench.workload, tokens=tokens, batch_lengths=lengths)
            placement = placement_of(work, design)
            golden, spec = layer_run(work, design, placement)
            each = ceil_div(model.d_model, design.tile.act_lanes)
            outputs = output_payloads(design.tile.act_lanes, golden, lengths)
            common |= {
                "image": np.asarray(spec.memories["o_ar"].image).ravel(),
                "banks": spec.banks,
                "steps": _settings(bench, lengths, golden, placement),
            }
        user = np.repeat(np.arange(len(tokens)) == len(tokens) - 1, each) & (kept > 0)
        return cls(
            outputs=beat_rows(outputs, streams["o"], user),
            outputs_before=len(bench.tokens) * each,
            beats_per_token=each,
            **common,
        )


def _dispatch_run(
    bench: AxiBench, image: ImageGeometry, tokens: Bits16, lengths: list[int], streams: Mapping[str, Any]
) -> _Run:
    """Return the dispatcher's run: what the gate gives in, jobs and expectations out."""
    routing = layer_routing(image, bench.weights, tokens)
    top_k = bench.model.gating.top_k
    # A weight that is made of a score is not 0 where the score's field is.
    cut = top_k > 1 and routing.scores is None
    if cut:
        # The last choice is missing and is filled up with zeros: expert 0, which no other one may be.
        routing.ids[-1] = [*range(1, top_k), 0]
        routing.weights[-1, -1] = 0
        if routing.shared is not None:
            routing.shared[-1] = 0
    rows = beat_rows(_assignments(image, routing, lengths, streams["i"]), streams["i"])
    found = layer_streams(
        bench.model,
        image,
        routing,
        window_tokens=bench.design.window_tokens,
        batch_lengths=lengths,
        policy=bench.design.policy,
    )
    entry: dict[str, Any] = {
        "expert": found.entry_expert,
        "slot": found.entry_slot,
        "weight": found.entry_weight,
        "last": found.entry_last,
    }
    expect: dict[str, Any] = {
        "slot": found.expect_slot,
        "count": found.expect_count,
        "last_token": found.last_token,
    }
    if any(part["name"] == "identity" for part in streams["o_expect"]["fields"]):
        expect["identity"] = found.identity_sum
    user = (found.entry_token == len(tokens) - 1) & cut
    return _Run(
        cut=cut,
        num_tokens=len(tokens),
        tokens=_cut_short(rows, 1) if cut else rows,
        outputs=beat_rows(pack(fields_of(streams["o"]["fields"]), entry), streams["o"], user),
        beats_before=len(bench.tokens) * top_k,
        outputs_before=int(np.count_nonzero(found.entry_token < len(bench.tokens))),
        beats_per_token=0,
        steps=_settings(bench, lengths),
        expect=beat_rows(pack(fields_of(streams["o_expect"]["fields"]), expect), streams["o_expect"]),
    )


def _assignments(
    image: ImageGeometry, routing: RoutingBf16, lengths: list[int], stream: Mapping[str, Any]
) -> NDArray[np.uint64]:
    """Return what the gate's top gives: a beat for each assignment, ``last`` on a batch's last one."""
    num_tokens, top_k = routing.ids.shape
    last = np.zeros((num_tokens, top_k), np.uint8)
    last[np.cumsum(lengths) - 1, -1] = 1
    columns: dict[str, NDArray[Any]] = {
        "expert": routing.ids.ravel(),
        "weight": routing.weights.ravel(),
        "last": last.ravel(),
    }
    if routing.shared is not None:
        columns["shared"] = np.repeat(routing.shared, top_k)
    if routing.scores is not None:
        columns["score"] = score_words(image.gate.gating, routing.scores).ravel()
    return pack(fields_of(stream["fields"]), columns)


def _cut_short(rows: Bytes, beats: int) -> Bytes:
    """Return a stream's rows without the last ones; the packet ends there."""
    rows = rows[:-beats].copy()
    rows[-1, -1] = 1
    return rows


def _settings(
    bench: AxiBench,
    lengths: list[int],
    golden: LayerBf16 | None = None,
    placement: Placement | None = None,
) -> list[RegisterStep]:
    """Return the steps of ``map.json`` for the bench's image, those that this top has."""
    places: list[Step] = []
    if placement is not None:
        places = placement_steps(BankGeometry.of(bench.model, bench.design, placement), placement)
    scales = None if golden is None else golden.scales
    steps = setup_steps(bench.model, bench.design, lengths, scales, page=IMAGE_PAGE, placement=places)
    names = {register.name for register in bench.registers}
    return [step for step in register_steps(steps) if step.register in names]


def _start(bench: AxiBench, steps: list[RegisterStep]) -> Iterator[RegisterStep]:
    """Yield the accesses of docs/axi.md from power-up to the first token."""
    found = {register.name: register for register in bench.registers}
    for name in ("IDENTITY", "BUS_ID"):
        yield RegisterStep(
            op="read", register=name, address=found[name].address, value=found[name].reset, mask=WHOLE_WORD
        )
    for step in steps:
        yield replace(step, value=step.value | 1 << CONTROL_CLEAR) if step.register == "CONTROL" else step
        if step.op == "write" and found[step.register].access.readable:
            yield replace(step, op="read", mask=WHOLE_WORD)


def _step_line(step: RegisterStep) -> str:
    return f"{OPERATIONS.index(step.op):02x}{step.address:04x}{step.value:08x}{step.mask or 0:08x}\n"


def _register_names(registers: tuple[Register, ...]) -> str:
    """Return ``registers.svh``: the addresses of the bench's registers, and the bits of their fields."""
    lines = []
    for register in registers:
        if register.name not in BUS + CORE:
            continue
        lines.append(f"    localparam [11:0] {register.name} = 12'h{register.address:03x};")
        for part in register.fields:
            if len(register.fields) > 1 or part.width < 32:
                name = f"{register.name}_{part.name.upper()}"
                lines.append(f"    localparam [31:0] {name} = 32'h{part.mask:08x};")
    return "\n".join([*lines, ""])
