"""A near-memory channel alone in its exported Verilog, compared with golden, model and the DRAM's rules.

The first experts of a model, each for the same tokens: what the benches time, since a layer adds gate,
dispatcher and combiner to it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from golden.banks import channel_image
from golden.expert_int8 import ActivationScales, hidden_peak, scale_for
from golden.formats import BF16_ONE, bf16_decode, bf16_encode
from golden.layer_bf16 import pack_expert
from golden.weights import LayerWeights, random_tokens, random_weights
from sim.accelerator import token_beats
from sim.dram_check import check_commands, commands_seen
from sim.pim import ISSUE, ChannelCycles, ChannelShape, channel_cycles
from sim.rtlsim import BankMemory, Build, RunResult, RunSpec, Set, Sink, Source, build, pim_component
from sim.streams import Cycles
from spec.banks import BankGeometry
from spec.design import DesignSpec, Format
from spec.errors import require_range
from spec.model import ModelSpec

SETTLE = 16


@dataclass(frozen=True, eq=False)
class ChannelRun:
    """A channel's job: ``num_tokens`` tokens go to each of the first ``num_experts`` experts.

    Attributes
    ----------
    design : with one channel.
    weights : of these experts.
    tokens : (num_tokens, d_model) bf16 patterns.
    scales : in int8, else None.
    """

    model: ModelSpec
    design: DesignSpec
    num_experts: int
    weights: LayerWeights
    tokens: NDArray[np.uint16]
    scales: ActivationScales | None

    @classmethod
    def random(
        cls, model: ModelSpec, design: DesignSpec, num_experts: int, num_tokens: int, seed: int
    ) -> ChannelRun:
        """Return seeded weights and tokens for one channel of a design."""
        require_range("experts", num_experts, 1, model.gating.num_experts)
        require_range("tokens", num_tokens, 1, design.window_tokens)
        assert design.pim is not None
        one = dataclasses.replace(design, pim=dataclasses.replace(design.pim, channels=1))
        weights = random_weights(model, seed, experts=range(num_experts))
        tokens = bf16_encode(random_tokens(model, num_tokens, seed))
        scales = None
        if design.format is Format.INT8:
            x = bf16_decode(tokens)
            peaks = [hidden_peak(model.ffn, weights.expert(expert), x) for expert in range(num_experts)]
            scales = ActivationScales(scale_for(float(np.abs(x).max())), scale_for(max(peaks)))
        return cls(model, one, num_experts, weights, tokens, scales)

    @property
    def banks(self) -> BankGeometry:
        """Where the weights lie."""
        return BankGeometry.of(self.model, self.design)

    @property
    def shape(self) -> ChannelShape:
        """What the cycle model needs to know."""
        return ChannelShape(banks=self.banks)

    @property
    def num_entries(self) -> int:
        """Tokens of all jobs."""
        return self.num_experts * len(self.tokens)

    @property
    def last(self) -> NDArray[np.bool_]:
        """Whether an entry ends its job."""
        ends: NDArray[np.bool_] = np.arange(self.num_entries) % len(self.tokens) == len(self.tokens) - 1
        return ends

    @property
    def arrivals(self) -> Cycles:
        """Cycle in which each entry is offered: when all tokens are in the store."""
        loaded = len(self.tokens) * self.banks.image.gate.input_beats + 2
        return np.full(self.num_entries, loaded, dtype=np.int64)

    @property
    def first_refresh(self) -> int:
        """Cycle of the run in which the first refresh falls due."""
        assert self.design.pim is not None
        return self.design.pim.dram.timing.refi

    def modelled(self) -> ChannelCycles:
        """Return the cycle model's answer."""
        shared = np.zeros(self.num_entries, dtype=np.bool_)
        return channel_cycles(
            self.shape, shared, self.last, self.arrivals, first_refresh=self.first_refresh, tail=SETTLE
        )

    def build(self, root: Path) -> Build:
        """Return the compiled bench of the channel's exported Verilog; builds are cached by content."""
        anonymous = dataclasses.replace(self.model, name="model", num_moe_layers=1, num_dense_layers=0)
        config = (anonymous, dataclasses.replace(self.design, name="design"))
        return build("pim", pim_component(self.model, self.design), config=config, root=root)

    def spec(self, rtl: Build) -> RunSpec:
        """Return the native bench's job: tokens into the store, then every expert's entries."""
        banks, scales = self.banks, self.scales
        assert self.design.pim is not None
        [bases] = banks.bases([[0]] * self.num_experts)
        prologue = [
            Set({"base_we": 1, "base_expert": expert, "base_row": base // banks.sides})
            for expert, base in bases.items()
        ]
        count = len(self.tokens)
        entries = rtl.pack(
            "i",
            expert=np.repeat(np.arange(self.num_experts), count),
            slot=np.tile(np.arange(count), self.num_experts),
            weight=BF16_ONE,
            last=self.last,
        )
        beats = token_beats(banks.image, self.design, self.tokens, [count])
        return RunSpec(
            sources={"i_token": Source(beats), "i": Source(entries, self.arrivals)},
            sinks={"o": Sink(self.num_entries * self.shape.words)},
            banks={
                "mem": BankMemory(
                    channel_image(banks, self.weights, bases, scales), self.design.pim.storage_cycles
                )
            },
            statics={
                # Counted from reset on, the run's cycles from the last step of the prologue on.
                "refresh_offset": self.first_refresh + len(prologue),
                **({} if scales is None else {"scale_x": scales.x.word, "scale_h": scales.hidden.word}),
            },
            prologue=prologue,
            probes=["o_row", "o_column", "fire"],
            settle=SETTLE,
            max_cycles=1 << 40,
        )

    def expected(self, rtl: Build) -> NDArray[np.uint64]:
        """Return golden's beats of ``o``: per job, group and block of outputs, every token's words."""
        pim, words, count = self.banks.pim, self.shape.words, len(self.tokens)
        token, word = (axis.ravel() for axis in np.indices((count, words)))
        order = np.lexsort((word, token, word // (pim.units // pim.act_lanes), token // pim.tokens_per_burst))
        token, word = token[order], word[order]
        elements = np.zeros((self.num_experts, count, words * pim.act_lanes), dtype=np.uint16)
        for expert in range(self.num_experts):
            packed = pack_expert(self.banks.image, self.weights, expert, self.scales)
            elements[expert, :, : self.model.d_model] = packed.outputs(self.tokens)
        beats = elements.reshape(self.num_experts, count, words, pim.act_lanes)
        return rtl.pack(
            "o",
            slot=np.tile(token, self.num_experts),
            word=np.tile(word, self.num_experts),
            weight=BF16_ONE,
            data=beats[:, token, word].reshape(-1, pim.act_lanes),
            last=np.tile(word == words - 1, self.num_experts),
        )

    def check(self, rtl: Build, result: RunResult) -> None:
        """Raise ``AssertionError`` unless bits, transfers and commands are those of golden and model."""
        result.check()
        model, output = self.modelled(), result.streams["o"]
        commands = commands_seen(self.banks, result.probes["o_row"], result.probes["o_column"])
        for name, seen, wanted in (
            ("beats of o", output.payloads, self.expected(rtl)),
            ("cycles of o", output.cycles, model.o),
            ("commands of rows", commands.rows[:, :3], model.rows),
            ("commands of columns", commands.columns[:, :3], model.columns),
        ):
            if not np.array_equal(seen, wanted):
                raise AssertionError(f"channel: {name} are not those of golden and model")
        violations = check_commands(self.banks.pim, commands, first_refresh=self.first_refresh + ISSUE)
        if violations:
            raise AssertionError(f"channel: {violations[0]}")
