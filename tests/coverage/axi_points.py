"""The corners of a top with AXI ports by name, decided by a log of what its ports carried, and when.

A log is that of :class:`tests.bench.axi_in_simulator.PortLog`: for each signal its value at every clock edge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from spec.registers import BUS_REGISTERS, Top, field_of

Log = Mapping[str, NDArray[np.uint64]]
SLVERR, DECERR = 2, 3
WHOLE_WORD = 0xF


def _register(name: str) -> int:
    return next(register.address for register in BUS_REGISTERS if register.name == name)


@dataclass(frozen=True)
class Write:
    """A register write: the edge from which on it may be done, and what it was."""

    edge: int
    address: int
    data: int
    response: int


@dataclass(frozen=True)
class Ports:
    """What the ports carried from one reset to the next; tokens have so many input beats.

    ``cut``: another reset follows, the log does not merely end.
    """

    log: Log
    token_beats: int
    cut: bool

    def on(self, name: str) -> NDArray[np.bool_]:
        """Return when a signal is 1."""
        set_: NDArray[np.bool_] = self.log[name] == 1
        return set_

    def moves(self, channel: str) -> NDArray[np.int64]:
        """Return the edges at which a channel transfers."""
        return np.flatnonzero(self.on(f"{channel}valid") & self.on(f"{channel}ready"))

    def carried(self, channel: str, part: str) -> NDArray[np.uint64]:
        """Return what a channel's transfers carried."""
        return self.log[f"{channel}{part}"][self.moves(channel)]

    def before(self, edges: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many of these edges lie before each edge, and before the end."""
        return np.searchsorted(edges, np.arange(len(self.log["irq"]) + 1))

    @cached_property
    def writes(self) -> list[Write]:
        """All writes that were answered, in order."""
        asked = zip(self.moves("s_axi_aw"), self.moves("s_axi_w"), strict=False)
        return [
            Write(int(edge), *map(int, parts))
            for edge, *parts in zip(
                (max(edges) for edges in asked),
                self.carried("s_axi_aw", "addr"),
                self.carried("s_axi_w", "data"),
                self.carried("s_axi_b", "resp"),
                strict=False,
            )
        ]

    def done(self, register: str) -> list[Write]:
        """Return the writes of a register that were not refused."""
        return [write for write in self.writes if write.address == _register(register) and not write.response]

    @cached_property
    def recoveries(self) -> list[int]:
        """The edges at which writes of ``recover`` have come."""
        recover = field_of(BUS_REGISTERS, "BUS_CONTROL", "recover").mask
        return [write.edge for write in self.done("BUS_CONTROL") if write.data & recover]

    def is_open(self, channel: str) -> NDArray[np.bool_]:
        """Return whether a packet of a stream is open before each edge, and at the end."""
        last = np.concatenate([[1], self.carried(channel, "last")])
        opened: NDArray[np.bool_] = last[self.before(self.moves(channel))] == 0
        return opened

    @cached_property
    def packets(self) -> list[tuple[int, int]]:
        """The edge of each input packet's end, and its beats; none in which there was a recovery."""
        moved = self.moves("s_axis_t")
        ends = np.flatnonzero(self.carried("s_axis_t", "last"))
        begins = np.concatenate([[0], ends[:-1] + 1])
        return [
            (int(moved[end]), int(end - begin + 1))
            for begin, end in zip(begins, ends, strict=False)
            if not any(moved[begin] <= edge <= moved[end] for edge in self.recoveries)
        ]

    def limit(self, edge: int) -> int:
        """Return what BATCH_TOKENS holds before an edge."""
        return ([0] + [write.data for write in self.done("BATCH_TOKENS") if write.edge < edge])[-1]

    @cached_property
    def in_flight(self) -> NDArray[np.int64]:
        """Bursts that are asked and not wholly answered, before each edge and at the end."""
        ends = self._beats[self.log["m_axi_rlast"][self._beats] == 1]
        return self.before(self.moves("m_axi_ar")) - self.before(ends)

    @cached_property
    def _beats(self) -> NDArray[np.int64]:
        """The edges of beats that were asked for: none is left of reads before the reset."""
        first = self.moves("m_axi_ar")[:1]
        beats = self.moves("m_axi_r")
        return beats[beats > first] if first.size else beats[:0]

    @cached_property
    def bursts(self) -> list[tuple[int, int]]:
        """The beats of each burst that came, and those that were asked."""
        ends = np.flatnonzero(self.log["m_axi_rlast"][self._beats])
        came = np.diff(np.concatenate([[-1], ends])).tolist()
        return list(zip(came, (self.carried("m_axi_ar", "len") + 1).tolist(), strict=False))

    @cached_property
    def loading(self) -> NDArray[np.bool_]:
        """Whether no token has come yet, before each edge: what is read is loaded."""
        none: NDArray[np.bool_] = self.before(self.moves("s_axis_t")) == 0
        return none


Point = Callable[[Ports], bool]


def split(log: Log, token_beats: int) -> list[Ports]:
    """Return what a log holds from each reset to the next."""
    running = np.concatenate([[0], log["aresetn"], [0]]).astype(int)
    begins, ends = (np.flatnonzero(np.diff(running) == step).tolist() for step in (1, -1))
    return [
        Ports({name: values[begin:end] for name, values in log.items()}, token_beats, end < len(log["irq"]))
        for begin, end in zip(begins, ends, strict=True)
    ]


def _orders(sign: int) -> Point:
    """Return "the address of a write comes before (-1), with (0), behind (1) its data"."""
    return lambda ports: any(
        np.sign(address - data) == sign
        for address, data in zip(ports.moves("s_axi_aw"), ports.moves("s_axi_w"), strict=False)
    )


def _limited(test: Callable[[float, int], bool]) -> Point:
    """Return "a packet of so many tokens where BATCH_TOKENS has so many"."""
    return lambda ports: any(
        ports.limit(edge) > 0 and test(beats / ports.token_beats, ports.limit(edge))
        for edge, beats in ports.packets
    )


def _carries(channel: str, part: str, test: Callable[[NDArray[np.uint64]], NDArray[np.bool_]]) -> Point:
    return lambda ports: bool(np.any(test(ports.carried(channel, part))))


def _responds(channel: str, response: int) -> Point:
    return _carries(channel, "resp", lambda seen: seen == response)


def _waits(channel: str) -> Point:
    return lambda ports: bool(np.any(ports.on(f"{channel}valid") & ~ports.on(f"{channel}ready")))


def _at_recovery(state: Callable[[Ports], NDArray]) -> Point:
    return lambda ports: bool(np.any(state(ports)[ports.recoveries]))


def _at_reset(state: Callable[[Ports], NDArray]) -> Point:
    return lambda ports: ports.cut and bool(state(ports)[-1])


def _follows(ports: Ports) -> bool:
    moved = ports.moves("s_axis_t")
    return bool(np.any(ports.log["s_axis_tlast"][moved[:-1][np.diff(moved) == 1]]))


def _input_open(ports: Ports) -> NDArray:
    return ports.is_open("s_axis_t")


def _output_open(ports: Ports) -> NDArray:
    return ports.is_open("m_axis_t")


def _reading(ports: Ports) -> NDArray:
    return ports.in_flight > 0


ANY: dict[str, Point] = {
    "a write's address before its data": _orders(-1),
    "a write's data before its address": _orders(1),
    "a write's address with its data": _orders(0),
    "a read and a write asked in one cycle": lambda ports: bool(
        np.any(ports.on("s_axi_arvalid") & ports.on("s_axi_awvalid"))
    ),
    "bytes of a word written": _carries("s_axi_w", "strb", lambda seen: seen != WHOLE_WORD),
    "the answer to a write waits": _waits("s_axi_b"),
    "the answer to a read waits": _waits("s_axi_r"),
    "a write refused (SLVERR)": _responds("s_axi_b", SLVERR),
    "a write to nothing (DECERR)": _responds("s_axi_b", DECERR),
    "a read of nothing (DECERR)": _responds("s_axi_r", DECERR),
    "an input beat waits": _waits("s_axis_t"),
    "an output beat waits": _waits("m_axis_t"),
    "a packet right behind another one": _follows,
    "a packet that ends inside a token": lambda ports: any(
        beats % ports.token_beats for _, beats in ports.packets
    ),
    "fewer tokens than BATCH_TOKENS": _limited(lambda tokens, limit: tokens < limit),
    "as many tokens as BATCH_TOKENS": _limited(lambda tokens, limit: tokens == limit),
    "more tokens than BATCH_TOKENS": _limited(lambda tokens, limit: tokens > limit),
    "a limit beyond 65,535 tokens": _limited(lambda _tokens, limit: limit > 0xFFFF),
    "an output beat is marked": _carries("m_axis_t", "user", lambda seen: seen == 1),
    "an interrupt comes and goes": lambda ports: (
        {1, -1} <= set(np.diff(ports.on("irq").astype(int)).tolist())
    ),
    "recovery while an input packet is open": _at_recovery(_input_open),
    "recovery while an output packet is open": _at_recovery(_output_open),
    "reset while an input packet is open": _at_reset(_input_open),
    "reset while an output packet is open": _at_reset(_output_open),
}
READS: dict[str, Point] = {
    "an address waits": _waits("m_axi_ar"),
    "an error in a burst (SLVERR)": _responds("m_axi_r", SLVERR),
    "an error in a burst (DECERR)": _responds("m_axi_r", DECERR),
    "a burst that ends too early": lambda ports: any(came < asked for came, asked in ports.bursts),
    "a burst that ends too late": lambda ports: any(came > asked for came, asked in ports.bursts),
    "an error while loading": lambda ports: bool(
        np.any(ports.loading[ports.moves("m_axi_r")] & (ports.carried("m_axi_r", "resp") > 1))
    ),
    "recovery while reads are in flight": _at_recovery(_reading),
    "reset while reads are in flight": _at_reset(_reading),
}
"""Of tops with a memory."""
ARRAY: dict[str, Point] = {
    "several bursts in flight": lambda ports: bool(np.any(ports.in_flight > 1)),
}
"""Of the array, which reads weights while tokens are inside."""
POINTS: dict[Top, dict[str, Point]] = {
    Top.DISPATCH: ANY,
    Top.GATE: ANY | READS,
    Top.PIM: ANY | READS,
    Top.FPGA: ANY | READS | ARRAY,
}


def corners_met(top: Top, runs: list[Ports]) -> dict[str, int]:
    """Return for each corner of a top how many of the runs from a reset meet it."""
    return {point: sum(seen(run) for run in runs) for point, seen in POINTS[top].items()}
