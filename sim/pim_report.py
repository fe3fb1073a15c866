"""Run a workload on the near-memory accelerator: golden, cycle model, exported Verilog; compare all three."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from golden.layer_bf16 import LayerBf16
from sim.accelerator import (
    Progress,
    Report,
    compare_with_float,
    cycles_apart,
    output_payloads,
    routing_report,
    seen_assignments,
    streams_of,
    token_beats,
)
from sim.divergence import PortCheck, differing_bits, first_divergence, with_waveform
from sim.dram_check import REF, Commands
from sim.dram_trace import trace_text
from sim.energy import energy_of, pim_counts
from sim.flips import NO_FLIPS, Flips, flip_problems, secded_of
from sim.pim import ChannelTotals
from sim.pim_banked import banked_cycles
from sim.pim_layer import (
    PimRun,
    PimShape,
    PimTimes,
    active_cycles,
    block_checks,
    first_refreshes,
    first_refreshes_seen,
    flip_banks,
    pim_activity,
    pim_cycles,
    pim_job,
    pim_span,
    seen_times,
)
from sim.pim_slots import ChannelTrace, mac_slots, total
from sim.routing import IntArray
from sim.rtlsim import DEFAULT_ROOT, Build, Waveform, build, layer_component
from sim.streams import Cycles
from sim.toolchain import write_atomically
from sim.waves import write_views
from sim.workload import Workload
from spec.banks import BankGeometry, CommandTiming
from spec.design import DesignSpec
from spec.layout import Placement, rows_used
from spec.load import load_design, load_model
from spec.model import ModelSpec
from spec.registers import ECC_COUNTERS, PROBE_EXPERT, PROBE_WEIGHT, STATUS_UNCORRECTED

BLOCKS = ("gating", "dispatch", "pim", "combine")


@cache
def load_compiled() -> None:
    """Load the model's compiled code: set-up, not part of the time of the run that comes first."""
    model, design = load_model("mixtral-8x7b").scaled(64), load_design("pim")
    shape = pim_shape(model, design, np.arange(model.gating.top_k)[None])
    pim_cycles(shape, _arrivals(shape.banks, 1), first_refreshes(shape.banks))


def pim_shape(
    model: ModelSpec,
    design: DesignSpec,
    ids: IntArray,
    batch_lengths: list[int] | None = None,
    placement: Placement | None = None,
) -> PimShape:
    """Return a model's layer on a ``pim`` design, for tokens that go to the experts ``ids`` (tokens, k).

    ``placement``: channels of each expert, by default :meth:`spec.banks.BankGeometry.place`.
    """
    banks = BankGeometry.unplaced(model, design)
    if placement is not None:
        banks.check_fit(placement)
    placed = banks.place(np.unique(ids).tolist()) if placement is None else placement
    streams = streams_of(model, banks.image, design, ids, batch_lengths)
    return PimShape(banks, design, streams, placed)


def run_pim_model(
    model: ModelSpec,
    design: DesignSpec,
    ids: IntArray,
    routing: str,
    batch_lengths: list[int] | None = None,
    *,
    placement: Placement | None = None,
    record: bool = False,
    totals_only: bool = False,
) -> Report:
    """Return the cycle model's answer for a routing; no weights, no Verilog.

    Parameters
    ----------
    placement : channels of each expert, by default :meth:`spec.banks.BankGeometry.place`.
    record : whether the report tells when what works (``activity``).
    totals_only : whether it leaves out each block's own cycles and what each channel holds, as a point does.
    """
    shape = pim_shape(model, design, ids, batch_lengths, placement)
    load_compiled()
    arrivals = _arrivals(shape.banks, len(ids))
    report = _report(model, shape, "model", 0.0, routing_report(routing, ids, model.gating.num_experts, None))
    started = time.perf_counter()
    if totals_only and shape.banks.image.router is None:
        first, last, channels = pim_span(shape, arrivals, first_refreshes(shape.banks))
        report.wall_s = time.perf_counter() - started
        _add_model(report, shape, first, last, channels)
        return report
    times, channels = _modelled(shape, arrivals)
    report.wall_s = time.perf_counter() - started
    _add_model(report, shape, *times.span, channels)
    if totals_only:
        return report
    _add_layout(
        report,
        shape,
        [len(entries) for entries in times.unit_entries],
        [int(shape.streams.entry_last[entries].sum()) for entries in times.unit_entries],
    )
    for name, count in active_cycles(shape, times, times.unit_entries).items():
        report.blocks[name]["model"] = count
    if record:
        report.activity = pim_activity(shape, times, times.unit_entries, "model", _commands_of(channels))
    return report


def _commands_of(channels: Sequence[ChannelTotals]) -> dict[str, NDArray[np.int64]]:
    """Return how many commands each channel gets in the model, by their names in ``dram`` of a report."""
    counts = {
        "ACT": [channel.activates for channel in channels],
        "MAC": [channel.macs for channel in channels],
        "WR": [channel.writes for channel in channels],
        "RD": [channel.reads for channel in channels],
    }
    return {name: np.array(of, dtype=np.int64) for name, of in counts.items()}


def run_pim_layer(
    workload: Workload,
    design: DesignSpec,
    *,
    engine: str,
    routing: str,
    seed: int = 1,
    waves: Path | None = None,
    root: Path = DEFAULT_ROOT,
    progress: Progress = lambda _text: None,
    placement: Placement | None = None,
    arrivals: Cycles | None = None,
    output_ready: NDArray[np.bool_] | None = None,
    trace: Path | None = None,
    record: bool = False,
    flips: Flips = NO_FLIPS,
) -> Report:
    """Run a workload with weights on the ``rtl`` engine, or on ``both``, and compare.

    Compared are bits with golden, every block's transfers and every DRAM command with the block models,
    the layer's cycles with the model composed of them (unless arrivals or readiness are given), and all
    commands with the DRAM's rules. ``waves`` and differences as in :func:`sim.accelerator.run_layer`.

    Parameters
    ----------
    placement : channels of each expert, by default :meth:`spec.banks.BankGeometry.round_robin`.
    arrivals, output_ready : as in :func:`sim.pim_layer.pim_job`.
    trace : file for all DRAM commands (:mod:`sim.dram_trace`).
    record : whether the report tells when what worked in the Verilog (``activity``).
    flips : words of the banks in which bits are flipped, chosen by ``seed``; they need check bits. Two in a
        word that is read are an error of their own, and outputs that differ then no divergence.
    """
    model = workload.model
    banks = BankGeometry.of(model, design, placement)
    progress("exporting Verilog and building its simulation (cached by content)")
    rtl = build_pim_layer(model, design, root, trace=waves is not None)
    load_compiled()
    beats = token_beats(banks.image, design, workload.tokens, workload.batch_lengths)
    placed = banks.round_robin() if placement is None else placement
    banks, golden, spec = pim_job(
        workload, design, beats, placement=placed, arrivals=arrivals, output_ready=output_ready
    )
    used = np.unique(golden.streams.entry_expert)
    words = flip_banks(spec, banks, placed, used, flips, seed) if banks.pim.secded else None
    progress(f"running {len(workload.tokens)} tokens through the Verilog")
    vcd = Waveform.of_run(waves / f"{model.name}_{design.name}.vcd") if waves else None
    views = partial(write_views, model=model, design=design)
    started = time.perf_counter()
    result = rtl.run(spec, seed=seed, vcd=vcd)
    run = PimRun(workload, design, banks, golden, spec, result)
    shape = PimShape(banks, design, golden.streams, placed)
    wall = time.perf_counter() - started
    report = _report(
        model,
        shape,
        engine,
        wall,
        routing_report(routing, golden.routing.ids, model.gating.num_experts, workload.target_ids),
    )
    if trace is not None:
        write_atomically(trace, trace_text(banks.pim, run.commands))
    progress("comparing")
    seen = seen_times(run)
    report.counters = run.counters
    report.simulated_cycles_per_second = result.cycles_per_second
    report.reference = compare_with_float(workload, golden)
    _add_layout(report, shape, [len(stream.taken) for stream in seen.entries], list(map(len, seen.retired)))
    payloads = payload_checks(run, golden)
    report.mismatches = sum(differing_bits(check) for check in payloads)
    checks = payloads[:1] if flips.double else list(payloads)
    slots = None
    if engine == "both":
        found, expected = block_checks(run, shape, seen)
        checks += found
        if expected is not None:
            _add_run(report, shape, seen, expected)
            buses = [(commands.rows, commands.columns) for commands in _commands_and_first_refresh(run)]
            slots = _mac_slots(shape, seen.numbered_as(expected), buses)
            if record:
                report.activity = pim_activity(
                    shape, seen, expected.unit_entries, "rtl", run.commands_by_name()
                )
        if arrivals is None and output_ready is None:
            started = time.perf_counter()
            times, channels = _modelled(shape, _arrivals(banks, len(workload.tokens)))
            report.wall_s += time.perf_counter() - started
            _add_model(report, shape, *times.span, channels)
    if result.timeout is None and len(seen.output.taken):
        report.cycles["rtl"] = seen.cycles
        report.seconds = seen.cycles / design.clock_hz
        add_use(report, shape, seen.cycles, report.counters)
    report.mac_slots = slots
    report.dram = run.dram()
    rules = report.dram["violations"]
    problems = [*result.violations, *rules, *([result.timeout] if result.timeout else [])]
    if words is not None:
        problems += _add_flips(report, words.read(run.reads()), run.status)
    divergence = first_divergence(checks)
    if divergence is not None:
        progress("something differs; building with waveforms")
        report.divergence = with_waveform(divergence, rtl, spec, root / "waves", seed=seed, views=views)
    elif problems:
        report.divergence = "; ".join(problems)
    else:
        report.divergence = cycles_apart(report)
    if vcd:
        report.waveform = str(vcd.path)
        views(vcd.path)
    report.dram_rules_broken = len(rules)
    return report


def build_pim_layer(
    model: ModelSpec, design: DesignSpec, root: Path = DEFAULT_ROOT, *, trace: bool = False
) -> Build:
    """Return the compiled bench of a layer's exported Verilog; builds are cached by content."""
    anonymous = dataclasses.replace(model, name="model", num_moe_layers=1, num_dense_layers=0)
    config = (anonymous, design.hardware)
    return build("layer", layer_component(model, design), config=config, trace=trace, root=root)


def _modelled(shape: PimShape, arrivals: Cycles) -> tuple[PimTimes, list[ChannelTotals]]:
    """Return the composed model's times, and what each channel counted."""
    model = pim_cycles if shape.banks.image.router is None else banked_cycles
    return model(shape, arrivals, first_refreshes(shape.banks))


def _arrivals(banks: BankGeometry, num_tokens: int) -> Cycles:
    return np.zeros(num_tokens * banks.image.gate.input_beats, dtype=np.int64)


def payload_checks(run: PimRun, golden: LayerBf16) -> list[PortCheck]:
    """Return the comparisons of assignments and outputs with golden."""
    ids = golden.routing.ids.ravel().astype(np.uint64)
    weights = golden.routing.weights.ravel().astype(np.uint64)
    outputs = output_payloads(run.design.tile.act_lanes, golden, run.workload.batch_lengths)
    return [
        PortCheck(
            "gating",
            "o",
            seen_assignments(*run.result.probes["probe"]),
            payloads=ids | weights << np.uint64(PROBE_WEIGHT - PROBE_EXPERT),
        ),
        PortCheck("combine", "o", run.result.streams["o"], payloads=outputs),
    ]


def _report(model: ModelSpec, shape: PimShape, engine: str, wall: float, routing: dict[str, Any]) -> Report:
    return Report(
        model=model.name,
        design=shape.design.name,
        format=shape.design.format,
        engine=engine,
        tokens=len(shape.streams.window),
        d_model=model.d_model,
        d_expert=model.ffn.d_expert,
        experts=model.gating.num_experts,
        top_k=model.gating.top_k,
        cycles={"model": None, "rtl": None},
        blocks={name: {"model": None, "rtl": None} for name in BLOCKS},
        mismatches=None,
        seconds=0.0,
        utilisation={"mac": 0.0, "bandwidth": 0.0},
        dropped=shape.streams.dropped,
        wall_s=wall,
        routing=routing,
    )


def _add_flips(report: Report, planted: Flips, status: int) -> list[str]:
    """Put what flipped bits came to into the report; return what is wrong with it.

    ``planted`` : as often as the words were read, by the commands.
    """
    assert report.counters is not None
    counts = [report.counters[name] for name in ECC_COUNTERS]
    report.secded = secded_of(planted, counts)
    problems = flip_problems(planted, counts, report.mismatches)
    told = status >> STATUS_UNCORRECTED & 1
    if told != (counts[1] > 0):
        problems.append(f"pim: bit {STATUS_UNCORRECTED} of STATUS is {told}, uncorrected {counts[1]}")
    return problems


def _add_layout(report: Report, shape: PimShape, assignments: list[int], jobs: list[int]) -> None:
    """Put into the report what each channel holds and how much of the run's work it did, a value per channel.

    ``rows`` are those that experts, and a router in the banks, take in each bank, ``assignments`` pairs of
    token and expert; ``only`` is how many experts the banks hold, where they do not hold all.
    """
    banks, placement = shape.banks, shape.placement
    held = sum(map(bool, placement))
    report.layout = {
        "file": None,
        "only": held if held < len(placement) else None,
        "experts": [
            sum(channel in channels for channels in placement) for channel in range(banks.pim.channels)
        ],
        "rows": rows_used(placement, banks),
        "rows_per_bank": banks.pim.dram.rows,
        "assignments": assignments,
        "jobs": jobs,
    }


def _add_model(report: Report, shape: PimShape, first: int, last: int, channels: list[ChannelTotals]) -> None:
    """Put the composed model's cycles into the report, and how well it uses lanes and column slots.

    ``first``, ``last`` : cycles of the first input beat and the last output beat.
    """
    cycles = last - first + 1
    report.cycles["model"] = cycles
    report.seconds = cycles / shape.design.clock_hz
    counters = {
        "mac_active": sum(channel.fires for channel in channels),
        "mac_commands": sum(channel.macs for channel in channels),
        "activates": sum(channel.activates for channel in channels),
        "register_writes": sum(channel.writes for channel in channels),
        "register_reads": sum(channel.reads for channel in channels),
    }
    add_use(report, shape, cycles, counters)
    report.mac_slots = total([channel.mac_slots(first, last + 1) for channel in channels])


def add_use(report: Report, shape: PimShape, cycles: int, counters: Mapping[str, int]) -> None:
    """Put the shares of lanes and column slots that were used into the report, and the energy.

    ``counters``: those of :data:`spec.registers.COUNTERS` that count MACs and commands.
    """
    pim = shape.banks.pim
    total = cycles * pim.channels
    report.utilisation = {
        "mac": counters["mac_active"] * pim.mac_cycles / total,
        "bandwidth": counters["mac_commands"] * CommandTiming.of(pim).mac_gap / total,
    }
    design = shape.design
    if design.energy is not None:
        counts = pim_counts(
            shape.banks.image,
            design,
            shape.streams,
            fires=counters["mac_active"],
            commands=counters,
            cycles=cycles,
        )
        report.energy = energy_of(design.energy, counts, cycles / design.clock_hz)


def _commands_and_first_refresh(run: PimRun) -> list[Commands]:
    """Return each channel's commands, and before them the refresh under way when the run began."""
    found = []
    for commands, first in zip(run.commands, first_refreshes_seen(run), strict=True):
        before = np.zeros((int(run.banks.pim.refresh and first < 0), commands.rows.shape[1]), dtype=np.int64)
        before[:, :2] = first, REF
        found.append(Commands(np.concatenate([before, commands.rows]), commands.columns))
    return found


def _mac_slots(
    shape: PimShape,
    times: PimTimes,
    buses: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
) -> dict[str, int]:
    """Return where all channels' time went between the layer's first and last beat.

    ``buses``: per channel its row and column commands.
    """
    parts = []
    start, end = times.span[0], times.span[1] + 1
    for (numbers, into), (rows, columns) in zip(times.into_channels(), buses, strict=True):
        experts, last = shape.entries_of(numbers)
        trace = ChannelTrace.of(shape.banks, experts, last, into.taken, rows, columns)
        parts.append(mac_slots(shape.banks, trace, start, end))
    return total(parts)


def _add_run(report: Report, shape: PimShape, seen: PimTimes, expected: PimTimes) -> None:
    """Put each block's own cycles into the report: as seen, and as its model has them."""
    for side, times in (("rtl", seen), ("model", expected)):
        for name, count in active_cycles(shape, times, expected.unit_entries).items():
            report.blocks[name][side] = count
