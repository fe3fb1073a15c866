"""A piece of hardware: engine, lanes, buffers, memory. Data; validated here, once."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from spec.errors import InputError, require, require_range


class Engine(StrEnum):
    """Which engine computes the experts."""

    FPGA = "fpga"


class Policy(StrEnum):
    """Order in which the dispatcher serves its queues; the shared expert's comes first in any case.

    ``queue_order``: ascending expert index. ``longest_queue``: most entries in the window first, the lowest
    index where there are as many.
    """

    QUEUE_ORDER = "queue_order"
    LONGEST_QUEUE = "longest_queue"


def _require_power_of_two(name: str, value: int, low: int, high: int) -> None:
    require(
        low <= value <= high and value & (value - 1) == 0,
        f"must be a power of two in {low}..{high}, not {value}",
        key=name,
    )


@dataclass(frozen=True, kw_only=True)
class GateDesign:
    """Router product and selection: ``lanes`` MACs, up to ``logits_per_cycle`` logits per cycle."""

    lanes: int = 64
    logits_per_cycle: int = 4

    def __post_init__(self) -> None:
        _require_power_of_two("lanes", self.lanes, 1, 4096)
        _require_power_of_two("logits_per_cycle", self.logits_per_cycle, 1, 64)
        require(
            self.logits_per_cycle <= self.lanes,
            f"must be at most lanes={self.lanes}, not {self.logits_per_cycle}",
            key="logits_per_cycle",
        )


@dataclass(frozen=True, kw_only=True)
class ArrayDesign:
    """The expert engine's MAC array: ``rows`` outputs x ``cols`` inputs per cycle.

    ``act_lanes`` results per cycle leave the accumulators for the activation and the combiner.
    """

    rows: int = 16
    cols: int = 16
    act_lanes: int = 4

    def __post_init__(self) -> None:
        _require_power_of_two("rows", self.rows, 1, 256)
        _require_power_of_two("cols", self.cols, 1, 256)
        _require_power_of_two("act_lanes", self.act_lanes, 1, 256)
        require(
            self.act_lanes <= min(self.rows, self.cols),
            f"must be at most min(rows={self.rows}, cols={self.cols}), not {self.act_lanes}",
            key="act_lanes",
        )


@dataclass(frozen=True, kw_only=True)
class MemoryDesign:
    """The weight memory behind the AXI4 read master.

    ``latency_cycles`` from an accepted read address to the first data beat; afterwards one beat of
    ``width_bits`` per cycle, bursts in order.
    """

    width_bits: int = 256
    latency_cycles: int = 100
    burst_beats: int = 16
    max_outstanding: int = 16

    def __post_init__(self) -> None:
        _require_power_of_two("width_bits", self.width_bits, 16, 4096)
        require_range("latency_cycles", self.latency_cycles, 1, 4096)
        _require_power_of_two("burst_beats", self.burst_beats, 1, 256)
        require_range("max_outstanding", self.max_outstanding, 1, 256)
        require(
            self.burst_bytes <= 4096,
            f"times width_bits={self.width_bits} must not cross 4 KiB, but a burst of"
            f" {self.burst_beats} beats has {self.burst_bytes} bytes",
            key="burst_beats",
        )

    @property
    def beat_bytes(self) -> int:
        """Bytes of one data beat."""
        return self.width_bits // 8

    @property
    def beat_elements(self) -> int:
        """bf16 elements of one data beat."""
        return self.width_bits // 16

    @property
    def burst_bytes(self) -> int:
        """Bytes of one burst."""
        return self.burst_beats * self.beat_bytes


@dataclass(frozen=True, kw_only=True)
class DesignSpec:
    """An accelerator.

    Attributes
    ----------
    stream_lanes : bf16 elements per beat of the token input stream.
    window_tokens : tokens that are dispatched together: an expert's weights are fetched once for all
        of a window's tokens. The token store holds two windows.
    policy : order of service of the dispatcher's queues.
    max_d_model, max_d_expert, max_experts : largest model that the design accepts.
    clock_hz : clock used to turn cycles into seconds.
    """

    name: str
    engine: Engine
    gate: GateDesign
    array: ArrayDesign
    memory: MemoryDesign
    stream_lanes: int = 16
    window_tokens: int = 32
    policy: Policy = Policy.QUEUE_ORDER
    max_d_model: int = 8192
    max_d_expert: int = 32768
    max_experts: int = 512
    clock_hz: float = 100e6

    def __post_init__(self) -> None:
        _require_power_of_two("stream_lanes", self.stream_lanes, 1, 256)
        _require_power_of_two("window_tokens", self.window_tokens, 1, 1024)
        require_range("max_d_model", self.max_d_model, 1, 1 << 16)
        require_range("max_d_expert", self.max_d_expert, 1, 1 << 18)
        require_range("max_experts", self.max_experts, 1, 512)
        require(self.clock_hz > 0, f"must be positive, not {self.clock_hz}", key="clock_hz")
        for name, width in (
            ("array.cols", self.array.cols),
            ("gate.lanes / gate.logits_per_cycle", self.gate.lanes // self.gate.logits_per_cycle),
        ):
            require(
                width % self.stream_lanes == 0,
                f"must divide {name}={width}, not {self.stream_lanes}",
                key="stream_lanes",
            )
        tile = self.array.rows * self.array.cols
        require(
            tile % self.memory.beat_elements == 0,
            f"must divide a tile of rows x cols = {tile} bf16 weights,"
            f" not {self.memory.beat_elements} elements ({self.memory.width_bits} bits)",
            key="memory.width_bits",
        )
        router_word = self.gate.lanes
        require(
            router_word % self.memory.beat_elements == 0,
            f"must divide a router word of gate.lanes = {router_word} bf16 weights,"
            f" not {self.memory.beat_elements} elements ({self.memory.width_bits} bits)",
            key="memory.width_bits",
        )

    def check_model(self, d_model: int, d_expert: int, d_shared: int, num_experts: int) -> None:
        """Raise :class:`InputError` unless a model of these sizes fits the design's limits."""
        for key, value, limit_name, limit in (
            ("d_model", d_model, "max_d_model", self.max_d_model),
            ("d_expert", d_expert, "max_d_expert", self.max_d_expert),
            ("d_shared", d_shared, "max_d_expert", self.max_d_expert),
            ("num_experts", num_experts, "max_experts", self.max_experts),
        ):
            if value > limit:
                raise InputError(
                    f"must be at most {limit_name}={limit} of design {self.name}, not {value}", key=key
                )
