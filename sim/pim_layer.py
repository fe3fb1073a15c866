"""Run the near-memory layer's Verilog: its job for the native bench, and what came back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from golden.banks import channel_image
from golden.layer_bf16 import LayerBf16, layer_bf16, layer_image
from sim.dram_check import Commands, Violation, check_commands, commands_seen
from sim.rtlsim import (
    BankMemory,
    ReadMemory,
    RunResult,
    RunSpec,
    Set,
    Sink,
    Source,
    Step,
    reg_read,
    reg_wait,
    reg_write,
)
from sim.streams import Cycles
from sim.workload import Workload
from spec.banks import BankGeometry, refresh_offset
from spec.design import DesignSpec
from spec.registers import (
    CONTROL_CLEAR,
    CONTROL_LOAD,
    COUNTERS,
    POLICIES,
    REGISTERS,
    STATUS_LOADED,
    STATUS_REFRESHING,
    counter_address,
)

AFTER_REFRESH = 4
"""Cycles from channel 0's decision to refresh to cycle 0 of a run (:func:`start_steps`)."""


def placement_steps(banks: BankGeometry, placement: list[list[int]]) -> list[Step]:
    """Return the register writes that tell the layer where its experts lie.

    ``placement``: channels of each expert (:meth:`spec.banks.BankGeometry.round_robin`).
    """
    steps: list[Step] = []
    for channel, bases in enumerate(banks.bases(placement)):
        for expert, base in bases.items():
            steps += [
                reg_write(REGISTERS["PLACE_EXPERT"], expert | channel << 16),
                reg_write(REGISTERS["PLACE_ROW"], base // banks.sides),
            ]
    for expert, channels in enumerate(placement):
        steps += [
            reg_write(REGISTERS["PLACE_EXPERT"], expert),
            reg_write(REGISTERS["PLACE_CHANNELS"], sum(1 << channel for channel in channels)),
        ]
    return steps


def start_steps(banks: BankGeometry) -> list[Step]:
    """Return the steps after which a run starts ``AFTER_REFRESH`` cycles after channel 0's last refresh."""
    status, refreshing = REGISTERS["STATUS"], 1 << STATUS_REFRESHING
    clear = [
        reg_write(REGISTERS["CONTROL"], 1 << CONTROL_CLEAR),
        # The counters are cleared in the cycle after the write; no event may fall into it.
        Set({"reg_addr": status}),
    ]
    if not banks.pim.refresh:
        return list(clear)
    return [reg_wait(status, refreshing, 0), reg_wait(status, refreshing, refreshing, 1 << 20), *clear]


def first_refreshes(banks: BankGeometry) -> list[int]:
    """Return for each channel the cycle of the run in which its first refresh is or was decided."""
    offsets = [refresh_offset(banks, channel) for channel in range(banks.pim.channels)]
    return [offset - offsets[0] - AFTER_REFRESH for offset in offsets]


@dataclass(frozen=True)
class PimRun:
    """A layer's run of the Verilog: the job, what golden expects, what came back."""

    workload: Workload
    design: DesignSpec
    banks: BankGeometry
    golden: LayerBf16
    spec: RunSpec
    result: RunResult

    @property
    def commands(self) -> list[Commands]:
        """Commands of each channel."""
        probes = self.result.probes
        return [
            commands_seen(self.banks, probes[f"row_{n}"], probes[f"column_{n}"])
            for n in range(self.banks.pim.channels)
        ]

    def violations(self) -> list[tuple[int, Violation]]:
        """Return the DRAM rules that a channel broke: channel and violation."""
        return [
            (channel, violation)
            for channel, commands in enumerate(self.commands)
            for violation in check_commands(self.banks.pim, commands)
        ]


def pim_job(
    workload: Workload,
    design: DesignSpec,
    input_payloads: NDArray[np.uint64],
    *,
    placement: list[list[int]] | None = None,
    arrivals: Cycles | None = None,
    output_ready: NDArray[np.bool_] | None = None,
) -> tuple[BankGeometry, LayerBf16, RunSpec]:
    """Return geometry, golden result and the native bench's job of a workload.

    ``placement``: channels of each expert, by default :meth:`spec.banks.BankGeometry.round_robin`.
    """
    model = workload.model
    banks = BankGeometry.of(model, design)
    golden = layer_bf16(
        model,
        banks.image,
        workload.weights,
        workload.tokens,
        window_tokens=design.window_tokens,
        batch_lengths=workload.batch_lengths,
        policy=design.policy,
    )
    placed = banks.round_robin() if placement is None else placement
    banks.check_fit(placed)
    words = -(-model.d_model // design.tile.act_lanes)
    control, loaded = REGISTERS["CONTROL"], 1 << STATUS_LOADED
    channels = range(banks.pim.channels)
    spec = RunSpec(
        sources={"i": Source(input_payloads, arrivals)},
        sinks={"o": Sink(len(workload.tokens) * words, output_ready)},
        memories={
            "o_ar": ReadMemory(
                layer_image(model, banks.image, workload.weights, experts=[]),
                latency=design.memory.latency_cycles,
                max_outstanding=256,
            )
        },
        banks={
            f"mem_{channel}": BankMemory(
                channel_image(banks, workload.weights, bases).view(np.uint8), banks.pim.storage_cycles
            )
            for channel, bases in enumerate(banks.bases(placed))
        },
        prologue=[
            reg_write(REGISTERS["IMAGE_PAGE"], 0),
            reg_write(REGISTERS["CAPACITY"], model.expert_capacity),
            reg_write(REGISTERS["POLICY"], POLICIES.index(design.policy)),
            *placement_steps(banks, placed),
            reg_write(control, 1 << CONTROL_LOAD),
            reg_wait(REGISTERS["STATUS"], loaded, loaded, 1 << 30),
            *start_steps(banks),
        ],
        epilogue=[reg_read(counter_address(name) + offset) for name in COUNTERS for offset in (0, 4)],
        probes=[
            "probe",
            "probe_channels",
            *(f"row_{channel}" for channel in channels),
            *(f"column_{channel}" for channel in channels),
        ],
        max_cycles=1 << 40,
    )
    return banks, golden, spec
