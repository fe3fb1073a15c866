"""One channel of a ``pim`` design alone, the first experts in its banks."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from golden.banks import channel_image
from golden.formats import BF16_ONE, Bits16
from sim.accelerator import token_beats
from sim.alone.plan import EngineAlone, Operands, Plan, Totals
from sim.divergence import PortCheck
from sim.dram_check import Commands, Violation, bursts_of, bursts_read, check_commands, commands_seen
from sim.energy import pim_engine_counts
from sim.flips import FlippedWords, Flips, flip_words
from sim.pim import ISSUE, ChannelCycles, ChannelShape, Column, Row, channel_cycles
from sim.pim_layer import commands_check
from sim.pim_slots import ChannelTrace, mac_slots
from sim.rtlsim import BankMemory, Build, RunResult, RunSpec, Set, Sink, Source, build, pim_component
from sim.streams import Cycles
from spec.banks import BankGeometry, CommandTiming
from spec.design import RouterPlace
from spec.registers import ECC_COUNTERS


class PimAlone(EngineAlone):
    """A channel's lanes, banks and commands. Its first refresh falls due one interval after cycle 0."""

    BLOCK = "pim"

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        design = plan.design
        assert design.pim is not None
        # Nothing is routed.
        pim = dataclasses.replace(design.pim, channels=1, router=RouterPlace.OWN)
        self.design = dataclasses.replace(design, pim=pim)
        self.banks = BankGeometry.unplaced(plan.model, self.design)
        self.banks.check_fit(self.placement)
        self.timing = CommandTiming.of(self.banks.pim)

    @property
    def placement(self) -> list[list[int]]:
        """Channels of the experts that are run: the one there is."""
        return [[0]] * self.plan.num_experts

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights that a run of the Verilog holds."""
        routed = self.banks.image.routed
        visits = self.plan.num_experts * self.banks.reserved(routed)
        return visits * self.banks.bursts_per_row * self.banks.stored_tile_bytes

    @property
    def waveform_name(self) -> str:
        """Name of a waveform file."""
        return f"{self.plan.model.name}_{self.plan.design.name}_experts.vcd"

    @cached_property
    def times(self) -> ChannelCycles:
        """The cycle model's answer: transfers and commands."""
        return self.model()

    def model(self) -> ChannelCycles:
        """Run the cycle model."""
        plan = self.plan
        return channel_cycles(
            ChannelShape(banks=self.banks),
            plan.shared,
            plan.last,
            plan.arrivals,
            first_refresh=self.timing.refi,
        )

    def modelled(self) -> Totals:
        """Return the cycle model's answer."""
        times = self.times
        return self._totals(times.i, times.o, times.fires, times.rows, times.columns)

    def _totals(
        self, entries: Cycles, beats: Cycles, fires: int, rows: NDArray[np.int64], columns: NDArray[np.int64]
    ) -> Totals:
        """Return the totals of a run: when entries were taken and beats given, and the commands between."""
        start, end = int(entries[0]), int(beats[-1]) + 1
        plan, cycles = self.plan, end - start
        trace = ChannelTrace.of(self.banks, plan.experts, plan.last, entries, rows, columns)
        slots = mac_slots(self.banks, trace, start, end)
        commands = {
            "activates": int(np.count_nonzero(rows[:, 1] == Row.ACT)),
            "mac_commands": int(np.count_nonzero(columns[:, 1] == Column.MAC)),
            "register_writes": int(np.count_nonzero(columns[:, 1] == Column.WRITE)),
            "register_reads": int(np.count_nonzero(columns[:, 1] == Column.READ)),
        }
        counts = pim_engine_counts(
            self.design, fires=fires, commands=commands, cycles=cycles, hidden_values=plan.hidden_values
        )
        return Totals(
            cycles, fires * self.banks.pim.mac_cycles / cycles, slots["mac"] / cycles, counts, slots
        )

    def build(self, root: Path, *, trace: bool) -> Build:
        """Return the compiled bench of the channel's exported Verilog; builds are cached by content."""
        anonymous = dataclasses.replace(self.plan.model, name="model", num_moe_layers=1, num_dense_layers=0)
        config = (anonymous, self.design.hardware)
        component = pim_component(self.plan.model, self.design)
        return build("pim", component, config=config, trace=trace, root=root)

    def job(self, rtl: Build, operands: Operands) -> RunSpec:
        """Return the native bench's job: tokens into the store, then every expert's entries."""
        plan, banks, scales = self.plan, self.banks, operands.scales
        [bases] = banks.bases(self.placement)
        prologue = [
            Set({"base_we": 1, "base_expert": expert, "base_row": base // banks.sides})
            for expert, base in bases.items()
        ]
        entries = rtl.pack("i", expert=plan.experts, slot=plan.slots, weight=BF16_ONE, last=plan.last)
        statics = {"refresh_offset": len(prologue) + self.timing.refi}
        if scales is not None:
            statics |= {"scale_x": scales.x.word, "scale_h": scales.hidden.word}
        return RunSpec(
            sources={
                "i_token": Source(token_beats(banks.image, self.design, operands.tokens, [plan.num_tokens])),
                "i": Source(entries, plan.arrivals),
            },
            sinks={"o": Sink(len(self.times.o))},
            banks={
                "mem": BankMemory(
                    channel_image(banks, operands.weights, bases, scales), banks.pim.storage_cycles
                )
            },
            statics=statics,
            prologue=prologue,
            probes=["o_row", "o_column", "fire", *(ECC_COUNTERS if banks.pim.secded else ())],
            max_cycles=1 << 40,
        )

    def flip(self, spec: RunSpec, flips: Flips, seed: int) -> FlippedWords:
        """Flip bits of the experts' words in the banks of a job, in place."""
        image = spec.banks["mem"].image
        assert not isinstance(image, Path)
        [bases] = self.banks.bases(self.placement)
        read = bursts_of(self.banks, bases, np.arange(self.plan.num_experts))
        return flip_words(
            [image],
            [read],
            units=self.banks.pim.units,
            single=flips.single,
            double=flips.double,
            seed=seed,
        )

    def flips_seen(self, spec: RunSpec, result: RunResult, words: FlippedWords) -> tuple[Flips, list[int]]:
        """Return what a run should have counted of flipped words, and what it has: corrected, uncorrected."""
        image = spec.banks["mem"].image
        assert not isinstance(image, Path)
        planted = words.read([bursts_read(self.banks, self.commands(result), len(image))])
        return planted, [int(result.probes[name][1].sum()) for name in ECC_COUNTERS]

    def seen(self, result: RunResult) -> Totals:
        """Return what a run showed that came to its end."""
        entries, beats = (result.streams[name].cycles for name in ("i", "o"))
        commands = self.commands(result)
        return self._totals(entries, beats, len(result.probes["fire"][0]), commands.rows, commands.columns)

    def commands(self, result: RunResult) -> Commands:
        """Return the commands that a run showed on the buses."""
        return commands_seen(self.banks, result.probes["o_row"], result.probes["o_column"])

    def violations(self, result: RunResult) -> list[Violation]:
        """Return the DRAM rules that a run broke."""
        first_refresh = self.timing.refi + ISSUE
        return check_commands(self.banks.pim, self.commands(result), first_refresh=first_refresh)

    def checks(self, rtl: Build, operands: Operands, result: RunResult, *, cycles: bool) -> list[PortCheck]:
        """Return the comparisons: first the results with golden; with ``cycles`` all ports with the model."""
        seen, fields = result.streams["o"], rtl.fields("o")
        payloads = self._expected(rtl, operands.results)
        if not cycles:
            return [PortCheck("pim", "o", seen, payloads=payloads, fields=fields)]
        commands, times = self.commands(result), self.times
        return [
            PortCheck("pim", "o", seen, payloads=payloads, cycles=times.o, fields=fields),
            PortCheck("pim", "i", result.streams["i"], cycles=times.i),
            commands_check("o_row", commands.rows, times.rows),
            commands_check("o_column", commands.columns, times.columns),
        ]

    def _expected(self, rtl: Build, results: Bits16) -> NDArray[np.uint64]:
        """Return golden's beats: per expert, group of tokens and block of outputs the group's words."""
        plan, pim = self.plan, self.banks.pim
        lanes, words = pim.act_lanes, ChannelShape(banks=self.banks).words
        elements = np.zeros((*results.shape[:2], words * lanes), dtype=np.uint16)
        elements[..., : results.shape[2]] = results
        beats = elements.reshape(plan.num_experts, plan.num_tokens, words, lanes)
        token, word = (axis.ravel() for axis in np.indices((plan.num_tokens, words)))
        block = word // (pim.units // lanes)
        order = np.lexsort((word, token, block, token // pim.tokens_per_burst))
        token, word = token[order], word[order]
        return rtl.pack(
            "o",
            slot=np.tile(token, plan.num_experts),
            word=np.tile(word, plan.num_experts),
            weight=BF16_ONE,
            data=beats[:, token, word].reshape(-1, lanes),
            last=np.tile(word == words - 1, plan.num_experts),
        )
