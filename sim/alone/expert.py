"""The expert engine of an ``fpga`` design alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from golden.formats import BF16_ONE, Bits16
from golden.layer_bf16 import layer_image
from sim.accelerator import token_beats
from sim.alone.plan import EngineAlone, Operands, Plan, Totals
from sim.divergence import PortCheck
from sim.energy import fpga_engine_counts
from sim.expert import EngineShape, ExpertCycles, ExpertModel, expert_cycles
from sim.rtlsim import Build, ReadMemory, RunResult, RunSpec, Sink, Source, Trace, build, expert_component
from spec.geometry import PAGE_BYTES


class ExpertAlone(EngineAlone):
    """The MAC array with its AXI4 read master and the memory behind it."""

    BLOCK = "expert"

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.shape = EngineShape.of_design(plan.image, plan.design)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights that a run of the Verilog holds."""
        return self.plan.image.expert_page(self.plan.num_experts) * PAGE_BYTES

    @property
    def waveform_name(self) -> str:
        """Name of a waveform file."""
        return f"{self.plan.model.name}_experts.vcd"

    def modelled(self) -> Totals:
        """Return the cycle model's answer."""
        plan = self.plan
        model = ExpertModel(self.shape, plan.design.memory.latency_cycles)
        jobs = model.run(plan.shared, plan.last, plan.arrivals)
        cycles = int(jobs.results[-1] - jobs.i[0]) + 1
        return self._totals(cycles, jobs.fires, jobs.read_beats)

    def times(self) -> ExpertCycles:
        """Return the cycle model's answer, beat by beat."""
        plan = self.plan
        return expert_cycles(
            self.shape, plan.shared, plan.last, plan.arrivals, latency=plan.design.memory.latency_cycles
        )

    def build(self, root: Path, *, trace: bool) -> Build:
        """Return the compiled bench of the engine's exported Verilog; builds are cached by content."""
        model, design = self.plan.model, self.plan.design
        # The hardware does not depend on the names of presets or on how many layers there are.
        anonymous = dataclasses.replace(model, name="model", num_moe_layers=1, num_dense_layers=0)
        config = (anonymous, design.hardware)
        return build("expert", expert_component(model, design), config=config, trace=trace, root=root)

    def job(self, rtl: Build, operands: Operands) -> RunSpec:
        """Return the native bench's job: tokens into the store, then every expert's entries."""
        plan, scales = self.plan, operands.scales
        image, memory = plan.image, plan.design.memory
        entries = rtl.pack("i", expert=plan.experts, slot=plan.slots, weight=BF16_ONE, last=plan.last)
        return RunSpec(
            sources={
                "i_token": Source(token_beats(image, plan.design, operands.tokens, [plan.num_tokens])),
                "i": Source(entries, plan.arrivals),
            },
            sinks={"o": Sink(len(entries) * self.shape.words)},
            memories={
                "o_ar": ReadMemory(
                    layer_image(plan.model, image, operands.weights, range(plan.num_experts), scales=scales),
                    latency=memory.latency_cycles,
                    max_outstanding=256,
                )
            },
            statics={} if scales is None else {"scale_x": scales.x.word, "scale_h": scales.hidden.word},
            probes=["fire"],
            max_cycles=1 << 40,
        )

    def seen(self, result: RunResult) -> Totals:
        """Return what a run showed that came to its end."""
        cycles = int(result.streams["o"].cycles[-1] - result.streams["i"].cycles[0]) + 1
        fires, beats = result.probes["fire"][0], result.memories["o_ar"].r_cycles
        return self._totals(cycles, len(fires), len(beats))

    def _totals(self, cycles: int, fires: int, beats: int) -> Totals:
        """Return the totals of a run."""
        counts = fpga_engine_counts(
            self.plan.design, fires=fires, read_beats=beats, hidden_values=self.plan.hidden_values
        )
        return Totals(cycles, fires / cycles, beats / cycles, counts)

    def checks(self, rtl: Build, operands: Operands, result: RunResult, *, cycles: bool) -> list[PortCheck]:
        """Return the comparisons: first the results with golden; with ``cycles`` all ports with the model."""
        seen, memory, fields = result.streams["o"], result.memories["o_ar"], rtl.fields("o")
        payloads = self._expected(rtl, operands.results)
        if not cycles:
            return [PortCheck("expert", "o", seen, payloads=payloads, fields=fields)]
        times = self.times()
        return [
            PortCheck("expert", "o", seen, payloads=payloads, cycles=times.o, fields=fields),
            PortCheck("expert", "i", result.streams["i"], cycles=times.i),
            PortCheck("expert", "o_ar", Trace.of_cycles(memory.ar_cycles), cycles=times.ar),
            PortCheck("expert", "i_r", Trace.of_cycles(memory.r_cycles), cycles=times.r),
        ]

    def _expected(self, rtl: Build, results: Bits16) -> NDArray[np.uint64]:
        """Return the beats that golden expects: per expert and block of array rows, every token's words."""
        plan = self.plan
        lanes, words = plan.design.tile.act_lanes, self.shape.words
        elements = np.zeros((*results.shape[:2], words * lanes), dtype=np.uint16)
        elements[..., : results.shape[2]] = results
        beats = elements.reshape(plan.num_experts, plan.num_tokens, words, lanes)
        token, word = self.shape.output_order(np.array([plan.num_tokens]))
        return rtl.pack(
            "o",
            slot=np.tile(token, plan.num_experts),
            word=np.tile(word, plan.num_experts),
            weight=BF16_ONE,
            data=beats[:, token, word].reshape(-1, lanes),
            last=np.tile(word == words - 1, plan.num_experts),
        )
