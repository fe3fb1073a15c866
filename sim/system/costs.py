"""What each expert of each layer would cost on either engine: arrays, from rooflines and block models.

A roofline is ``max(bytes / (bandwidth * efficiency), operations / (peak * efficiency))`` and a fixed time per
expert; nothing inside an engine. Of an accelerator of this project the arrays have the seconds of its block
model instead (:mod:`sim.system.blocks`).

Rows are layers; with several devices each layer has a row for each of them, one after the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from spec.errors import require

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
BYTES = 2
"""Of a number, where nothing else is said: fp16 or bf16."""


class ExpertTimes(Protocol):
    """What says how long experts take: a roofline, or a unit of an accelerator."""

    def experts(self, counts: IntArray, expert: Expert) -> FloatArray:
        """Return the time of each expert with its tokens, 0 where it has none."""


@dataclass(frozen=True)
class Roofline:
    """An engine's rates as reached: bytes and operations per second, and seconds per expert beside."""

    bytes_per_s: float
    flops: float
    expert_s: float = 0.0

    @staticmethod
    def of(values: Mapping[str, float], prefix: str) -> Roofline:
        """Return the engine of ``spec.system.nominal``'s values under a prefix."""
        return Roofline(
            values[f"{prefix}.bytes_per_s"] * values[f"{prefix}.bandwidth_efficiency"],
            values[f"{prefix}.peak_flops"] * values[f"{prefix}.flops_efficiency"],
            values.get(f"{prefix}.expert_s", 0.0),
        )

    @staticmethod
    def of_tier(values: Mapping[str, float], prefix: str) -> Roofline | None:
        """Return an engine as it reads from its tier, if it has one."""
        if f"{prefix}.tier.bytes_per_s" not in values:
            return None
        tier = f"{prefix}.tier"
        reached = values[f"{tier}.bytes_per_s"] * values[f"{tier}.bandwidth_efficiency"]
        return dataclasses.replace(Roofline.of(values, prefix), bytes_per_s=reached)

    def seconds(self, num_bytes: FloatArray | float, flops: FloatArray | float) -> FloatArray:
        """Return the time of an operation, without ``expert_s``."""
        return np.maximum(np.asarray(num_bytes) / self.bytes_per_s, np.asarray(flops) / self.flops)

    def experts(self, counts: IntArray, expert: Expert) -> FloatArray:
        """Return the time of each expert with its tokens, 0 where it has none."""
        seconds = self.seconds(expert.traffic(counts), expert.flops(counts)) + self.expert_s
        return np.where(counts > 0, seconds, 0.0)


@dataclass(frozen=True)
class Expert:
    """Size of one expert, or of the part of it that one device has.

    Attributes
    ----------
    params : of its matrices.
    d_model : numbers of a token that go in and come out.
    weight_bytes : of all its weights.
    """

    params: float
    d_model: float
    weight_bytes: float

    def traffic(self, counts: IntArray) -> FloatArray:
        """Return the bytes of an expert's weights and of its tokens, in and out."""
        traffic: FloatArray = self.weight_bytes + 2.0 * BYTES * self.d_model * counts.astype(np.float64)
        return traffic

    def cut(self, parts: int) -> Expert:
        """Return one of so many parts, each with its share of the weights and all of a token."""
        return Expert(self.params / parts, self.d_model, self.weight_bytes / parts)

    def flops(self, counts: IntArray) -> FloatArray:
        """Return two operations for each parameter and token."""
        flops: FloatArray = 2.0 * self.params * counts.astype(np.float64)
        return flops


@dataclass(frozen=True)
class Costs:
    """A step's experts: what a policy may know, and what the schedule takes.

    Attributes
    ----------
    counts : (rows, experts) int64, tokens of each expert.
    host_s, near_s : (rows, experts), its time on either engine, 0 without tokens.
    move_s : (rows, experts), time on the link until the host has its weights.
    send_s : (rows, experts), time on the link for its tokens, to the near engine; as much comes back.
    unit : (experts,) int64, the near engine's unit that has it; all 0 where each is cut over all.
    num_units : of the near engine.
    latency_s : of a transfer of tokens; a number, or one for each row (rows,).
    link_share : bandwidth of the link over that of link and near memory together.
    alpha, spaces : the system's parameters of policies.
    devices : rows of a layer; row ``layer * devices + device`` has the experts of that device.
    shared_s : for which the host computes shared experts before routed ones of a layer (rows,).
    before_host_s, before_near_s : what either engine does before a layer's experts (layers,).
    exchange_s : of tokens to other devices and of results back, together (layers,).
    overlapped : whether tokens are exchanged while experts are computed.
    """

    counts: IntArray
    host_s: FloatArray
    near_s: FloatArray
    move_s: FloatArray
    send_s: FloatArray
    unit: IntArray
    num_units: int = 1
    latency_s: FloatArray | float = 0.0
    link_share: float = 0.0
    alpha: float = 1.0
    spaces: int = 0
    devices: int = 1
    shared_s: FloatArray | float = 0.0
    before_host_s: FloatArray | float = 0.0
    before_near_s: FloatArray | float = 0.0
    exchange_s: FloatArray | float = 0.0
    overlapped: bool = False

    def __post_init__(self) -> None:
        shape = self.counts.shape
        for name in ("host_s", "near_s", "move_s", "send_s"):
            array = getattr(self, name)
            require(array.shape == shape, f"must have shape {shape}, not {array.shape}", key=name)
        require(
            self.unit.shape == shape[1:], f"must have shape {shape[1:]}, not {self.unit.shape}", key="unit"
        )

    @property
    def num_layers(self) -> int:
        """Layers."""
        return len(self.counts) // self.devices

    @property
    def active(self) -> BoolArray:
        """Which experts have tokens."""
        return self.counts > 0

    @property
    def host_path_s(self) -> FloatArray:
        """Time that an expert adds to the host's side at least where moves and computing overlap."""
        return np.maximum(self.host_s, self.move_s)
