"""What is run of an engine alone, and what each engine has to say about it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from golden.checkpoint import CheckpointLayer
from golden.expert_int8 import ActivationScales
from golden.formats import Bits16
from golden.vectors import Vector
from golden.weights import LayerWeights
from sim.divergence import PortCheck
from sim.energy import Counts
from sim.rtlsim import Build, RunResult, RunSpec
from sim.streams import Cycles
from spec.design import DesignSpec
from spec.errors import require
from spec.geometry import ImageGeometry
from spec.model import ModelSpec


@dataclass(frozen=True)
class Plan:
    """Every one of ``num_tokens`` tokens goes to each of the first ``num_experts`` experts, a job each.

    ``vector``: where weights and tokens come from, if not from a seed; ``own_layer``: where weights do.
    """

    model: ModelSpec
    design: DesignSpec
    num_experts: int
    num_tokens: int
    vector: Vector | None = None
    own_layer: CheckpointLayer | None = None

    def __post_init__(self) -> None:
        limit, window = self.model.gating.num_ffn_experts, self.design.window_tokens
        require(
            1 <= self.num_experts <= limit, f"must be in 1..{limit}, not {self.num_experts}", key="experts"
        )
        require(
            1 <= self.num_tokens <= window,
            f"must be in 1..{window} (one window) with --experts, not {self.num_tokens}",
            key="tokens",
        )

    @property
    def image(self) -> ImageGeometry:
        """The weight image's geometry."""
        return ImageGeometry.of(self.model, self.design)

    @property
    def experts(self) -> NDArray[np.int64]:
        """Expert of each job entry."""
        return np.repeat(np.arange(self.num_experts), self.num_tokens)

    @property
    def slots(self) -> NDArray[np.int64]:
        """Token of each job entry, which is also its slot in the token store."""
        return np.tile(np.arange(self.num_tokens), self.num_experts)

    @property
    def last(self) -> NDArray[np.bool_]:
        """Whether a job entry is the last of its job."""
        ends: NDArray[np.bool_] = self.slots == self.num_tokens - 1
        return ends

    @property
    def arrivals(self) -> Cycles:
        """Cycle in which each job entry is offered: when all tokens are in the store."""
        loaded = self.num_tokens * self.image.gate.input_beats + 2
        return np.full(len(self.experts), loaded, dtype=np.int64)

    @property
    def hidden_values(self) -> int:
        """Values that go through the activation."""
        return len(self.experts) * self.model.ffn.d_expert

    @property
    def shared(self) -> NDArray[np.bool_]:
        """Whether a job entry's expert is the shared one: never."""
        return np.zeros(len(self.experts), dtype=np.bool_)


@dataclass(frozen=True, eq=False)
class Operands:
    """What the engine computes with, and what comes out.

    Attributes
    ----------
    weights : the layer's, with the plan's experts at least.
    tokens : (tokens, d_model) bf16 patterns.
    results : (experts, tokens, d_model) bf16 patterns, golden.
    scales : of the tokens and of the experts' hidden activations, None in bf16.
    """

    weights: LayerWeights
    tokens: Bits16
    results: Bits16
    scales: ActivationScales | None


@dataclass(frozen=True)
class Totals:
    """Cycles from the first entry taken to the last beat given, and the shares of them that were used.

    Attributes
    ----------
    mac : of the slots in which a tile meets a token.
    bandwidth : of the engine's access to its weights.
    counts : events that cost energy.
    mac_slots : where a channel's cycles went (:data:`sim.pim_slots.SLOTS`).
    """

    cycles: int
    mac: float
    bandwidth: float
    counts: Counts
    mac_slots: dict[str, int] | None = None


class EngineAlone(ABC):
    """A plan on an engine: its cycle model, the bench of its exported Verilog, what to compare.

    ``BLOCK`` is the engine's block. What does not fit raises :class:`InputError` when it is made.
    """

    BLOCK: ClassVar[str]

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    @property
    @abstractmethod
    def weight_bytes(self) -> int:
        """Bytes of the weights that a run of the Verilog holds."""

    @property
    @abstractmethod
    def waveform_name(self) -> str:
        """Name of a waveform file."""

    @abstractmethod
    def modelled(self) -> Totals:
        """Return the cycle model's answer."""

    @abstractmethod
    def build(self, root: Path, *, trace: bool) -> Build:
        """Return the compiled bench of the engine's exported Verilog; builds are cached by content."""

    @abstractmethod
    def job(self, rtl: Build, operands: Operands) -> RunSpec:
        """Return the native bench's job: tokens into the store, then every expert's entries."""

    @abstractmethod
    def seen(self, result: RunResult) -> Totals:
        """Return what a run showed that came to its end."""

    @abstractmethod
    def checks(self, rtl: Build, operands: Operands, result: RunResult, *, cycles: bool) -> list[PortCheck]:
        """Return the comparisons: first the results with golden; with ``cycles`` all ports with the model."""
