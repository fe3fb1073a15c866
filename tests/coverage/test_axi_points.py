"""Corners of the tops with AXI ports: each is met by a log that has it, and by none that has not."""

from __future__ import annotations

import numpy as np
import pytest

from spec.registers import BUS_REGISTERS, Top
from tests.bench.axi_in_simulator import LOGGED
from tests.coverage.axi_points import POINTS, corners_met, split

EDGES = 40
TOKEN_BEATS = 3
ADDRESS = {register.name: register.address for register in BUS_REGISTERS}


def quiet() -> dict[str, np.ndarray]:
    """Return the log of ports at which nothing happens, two edges of reset in front."""
    names = [f"{channel}{part}" for channel, more in LOGGED.items() for part in ("valid", "ready", *more)]
    log = {name: np.zeros(EDGES, np.uint64) for name in ("aresetn", "irq", *names)}
    log["aresetn"][2:] = 1
    for name in log:
        if name.endswith("strb"):
            log[name][:] = 0xF
    return log


def moves(log, channel: str, *edges: int, **parts: int) -> None:
    for edge in edges:
        log[f"{channel}valid"][edge] = log[f"{channel}ready"][edge] = 1
        for part, value in parts.items():
            log[f"{channel}{part}"][edge] = value


def write(log, edge: int, name: str, data: int, response: int = 0) -> None:
    """Write a register from ``edge`` on; it is answered two edges later."""
    moves(log, "s_axi_aw", edge, addr=ADDRESS[name])
    moves(log, "s_axi_w", edge, data=data)
    moves(log, "s_axi_b", edge + 2, resp=response)


def packet(log, first: int, beats: int, channel: str = "s_axis_t", *, ends: bool = True) -> None:
    moves(log, channel, *range(first, first + beats))
    log[f"{channel}last"][first + beats - 1] = ends


def waits(log, channel: str) -> None:
    log[f"{channel}valid"][10:13] = 1
    log[f"{channel}ready"][12] = 1


def reset(log, edge: int) -> None:
    log["aresetn"][edge:] = 0


def of_address_and_data(log, address: int, data: int) -> None:
    moves(log, "s_axi_aw", address, addr=ADDRESS["BATCH_TOKENS"])
    moves(log, "s_axi_w", data, data=1)
    moves(log, "s_axi_b", 20)


def limited(log, limit: int, beats: int) -> None:
    write(log, 3, "BATCH_TOKENS", limit)
    packet(log, 10, beats)


def asks(log, edge: int, beats: int) -> None:
    moves(log, "m_axi_ar", edge, len=beats - 1)


def answers(log, first: int, beats: int) -> None:
    moves(log, "m_axi_r", *range(first, first + beats))
    log["m_axi_rlast"][first + beats - 1] = 1


def both(log) -> None:
    log["s_axi_arvalid"][5] = log["s_axi_awvalid"][5] = 1


def interrupt(log, last: int = 9) -> None:
    log["irq"][5:last] = 1


def recover(log) -> None:
    write(log, 15, "BUS_CONTROL", 1)


def burst(log, asked: int, came: int) -> None:
    asks(log, 5, asked)
    answers(log, 10, came)


# What has a corner, and what is like it and has not.
CASES = {
    "a write's address before its data": (
        [lambda log: of_address_and_data(log, 5, 6)],
        [lambda log: of_address_and_data(log, 6, 6)],
    ),
    "a write's data before its address": (
        [lambda log: of_address_and_data(log, 6, 5)],
        [lambda log: of_address_and_data(log, 5, 6)],
    ),
    "a write's address with its data": (
        [lambda log: of_address_and_data(log, 5, 5)],
        [lambda log: of_address_and_data(log, 5, 6)],
    ),
    "a read and a write asked in one cycle": ([both], [lambda log: moves(log, "s_axi_ar", 5)]),
    "bytes of a word written": (
        [lambda log: moves(log, "s_axi_w", 5, strb=7)],
        [lambda log: moves(log, "s_axi_w", 5, strb=15)],
    ),
    "the answer to a write waits": (
        [lambda log: waits(log, "s_axi_b")],
        [lambda log: moves(log, "s_axi_b", 5)],
    ),
    "the answer to a read waits": (
        [lambda log: waits(log, "s_axi_r")],
        [lambda log: moves(log, "s_axi_r", 5)],
    ),
    "a write refused (SLVERR)": (
        [lambda log: write(log, 5, "BUS_ID", 0, 2)],
        [lambda log: write(log, 5, "BUS_ID", 0, 3)],
    ),
    "a write to nothing (DECERR)": (
        [lambda log: write(log, 5, "BUS_ID", 0, 3)],
        [lambda log: write(log, 5, "BUS_ID", 0, 2)],
    ),
    "a read of nothing (DECERR)": (
        [lambda log: moves(log, "s_axi_r", 5, resp=3)],
        [lambda log: moves(log, "s_axi_r", 5, resp=0)],
    ),
    "an input beat waits": ([lambda log: waits(log, "s_axis_t")], [lambda log: packet(log, 5, 3)]),
    "an output beat waits": (
        [lambda log: waits(log, "m_axis_t")],
        [lambda log: packet(log, 5, 3, "m_axis_t")],
    ),
    "a packet right behind another one": (
        [lambda log: packet(log, 5, 3), lambda log: packet(log, 8, 3)],
        [lambda log: packet(log, 5, 3), lambda log: packet(log, 9, 3)],
    ),
    "a packet that ends inside a token": ([lambda log: packet(log, 5, 4)], [lambda log: packet(log, 5, 6)]),
    "fewer tokens than BATCH_TOKENS": ([lambda log: limited(log, 3, 6)], [lambda log: limited(log, 2, 6)]),
    "as many tokens as BATCH_TOKENS": ([lambda log: limited(log, 2, 6)], [lambda log: limited(log, 1, 6)]),
    "more tokens than BATCH_TOKENS": ([lambda log: limited(log, 1, 6)], [lambda log: limited(log, 2, 6)]),
    "a limit beyond 65,535 tokens": (
        [lambda log: limited(log, 0x1_0000, 6)],
        [lambda log: limited(log, 0xFFFF, 6)],
    ),
    "an output beat is marked": (
        [lambda log: moves(log, "m_axis_t", 5, user=1)],
        [lambda log: moves(log, "m_axis_t", 5, user=0)],
    ),
    "an interrupt comes and goes": ([interrupt], [lambda log: interrupt(log, EDGES)]),
    "recovery while an input packet is open": (
        [lambda log: packet(log, 5, 3, ends=False), recover],
        [lambda log: packet(log, 5, 3), recover],
    ),
    "recovery while an output packet is open": (
        [lambda log: packet(log, 5, 3, "m_axis_t", ends=False), recover],
        [lambda log: packet(log, 5, 3, "m_axis_t"), recover],
    ),
    "reset while an input packet is open": (
        [lambda log: packet(log, 5, 3, ends=False), lambda log: reset(log, 30)],
        [lambda log: packet(log, 5, 3, ends=False)],
    ),
    "reset while an output packet is open": (
        [lambda log: packet(log, 5, 3, "m_axis_t", ends=False), lambda log: reset(log, 30)],
        [lambda log: packet(log, 5, 3, "m_axis_t"), lambda log: reset(log, 30)],
    ),
    "an address waits": ([lambda log: waits(log, "m_axi_ar")], [lambda log: asks(log, 5, 2)]),
    "an error in a burst (DECERR)": (
        [lambda log: moves(log, "m_axi_r", 5, resp=3)],
        [lambda log: moves(log, "m_axi_r", 5, resp=2)],
    ),
    "an error in a burst (SLVERR)": (
        [lambda log: moves(log, "m_axi_r", 5, resp=2)],
        [lambda log: moves(log, "m_axi_r", 5, resp=3)],
    ),
    "an error while loading": (
        [lambda log: moves(log, "m_axi_r", 5, resp=2), lambda log: packet(log, 9, 3)],
        [lambda log: packet(log, 5, 3), lambda log: moves(log, "m_axi_r", 9, resp=2)],
    ),
    "recovery while reads are in flight": (
        [lambda log: asks(log, 5, 2), recover],
        [lambda log: burst(log, 2, 2), recover],
    ),
    "reset while reads are in flight": (
        [lambda log: asks(log, 5, 2), lambda log: reset(log, 30)],
        [lambda log: burst(log, 2, 2), lambda log: reset(log, 30)],
    ),
    "several bursts in flight": (
        [lambda log: asks(log, 5, 2), lambda log: asks(log, 7, 2)],
        [lambda log: burst(log, 2, 2), lambda log: asks(log, 20, 2)],
    ),
    "a burst that ends too early": ([lambda log: burst(log, 3, 2)], [lambda log: burst(log, 2, 2)]),
    "a burst that ends too late": ([lambda log: burst(log, 2, 3)], [lambda log: burst(log, 2, 2)]),
}


@pytest.mark.parametrize("point", POINTS[Top.FPGA])
def test_a_point_tells_logs_apart(point):
    met = []
    for steps in CASES[point]:
        log = quiet()
        for step in steps:
            step(log)
        met.append(corners_met(Top.FPGA, split(log, TOKEN_BEATS))[point])
    assert met == [1, 0]


def test_a_packet_in_which_there_was_a_recovery_is_none():
    """Its source may have been reset, so that its beats are of two."""
    log = quiet()
    packet(log, 5, 2, ends=False)
    write(log, 10, "BUS_CONTROL", 1)
    packet(log, 15, 3)
    packet(log, 20, 3)
    assert [beats for run in split(log, TOKEN_BEATS) for _, beats in run.packets] == [3]


def test_beats_of_reads_before_the_reset_are_no_burst():
    log = quiet()
    moves(log, "m_axi_r", 3, last=1)
    burst(log, 2, 2)
    (run,) = split(log, TOKEN_BEATS)
    assert run.bursts == [(2, 2)]
    assert run.in_flight[-1] == 0


def test_every_top_has_its_points_among_those_of_the_array():
    assert all(points.items() <= POINTS[Top.FPGA].items() for points in POINTS.values())
    assert not any(corners_met(Top.FPGA, split(quiet(), TOKEN_BEATS)).values())


def test_a_log_is_cut_at_its_resets():
    log = quiet()
    log["aresetn"][20:22] = 0
    assert [(len(run.log["irq"]), run.cut) for run in split(log, TOKEN_BEATS)] == [(18, True), (18, False)]
