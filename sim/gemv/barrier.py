"""The published HBM-PIM kernel of a matrix-vector product, command by command.

The kernel is a sequence of *groups* of accesses with a barrier behind each; a controller of ordinary reads
and writes serves them. Only the group at hand is seen. In each cycle one command of any kind may go:

1. Where a refresh is due: REF once all banks are closed, else PRE of an open bank as soon as it may close.
2. The oldest access of the group whose row is open, or whose bank is closed and can be opened, also while a
   refresh that is due waits for a bank that is still open. The last access of a group neither opens its row
   nor issues before it is alone.
3. PRE of an open row that the group does not need.

Ordinary traffic around the kernel (:func:`ordinary_cycles`) opens nothing while a refresh is due.

The controller knows single banks; with all-bank commands the first even bank stands for all even ones, the
first odd bank for all odd ones. REF does not wait tRP after PRE, as in the kernel's simulator.

Sources: behaviour and figures observed of github.com/SAITPublic/PIMSimulator at b464dde0; no code of it.
Checked against 16 of its cycle counts (``tests/data/pim_hbm2_gemv.json``): all are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.gemv.commands import (
    ACT,
    ACT_GAP,
    CCD_L,
    CCD_S,
    EVEN,
    FAR,
    FAW,
    MAC,
    MAC_GAP,
    NO_BANK,
    NUM_KINDS,
    OTHER_REF,
    PRE,
    RAS,
    RC,
    RCD_RD,
    RCD_WR,
    RD,
    READ_LATENCY,
    READ_TO_WRITE,
    REF,
    REFI,
    RFC,
    RP,
    RRD_L,
    RRD_S,
    RTP,
    WR,
    WRITE_TO_PRE,
    WRITE_TO_READ_L,
    WRITE_TO_READ_S,
    Log,
    Product,
    compiled,
    require_rows,
)
from spec.device import PimDevice
from spec.program import LEAVE_ROW, MODE_ROW, PARK_ROW, REGISTER_ROW, RESULT_ROW, TILE_INPUTS, TILE_ROWS

CLOSED = -1
FIRST_COMMAND = 1
# Integers of the state: the next cycle without a command, refreshes due, the end of the last refresh, ...
(
    _NOW,
    _DUE,
    _OTHER_DUE,
    _BUSY,
    _LAST_RD,
    _LAST_WR,
    _LAST_ACT,
    _LAST_ALL_ACT,
    _LOGGED,
    _OPEN,
    _SINGLE_ACTS,
    _NUM_STATE,
) = range(12)
_STEADY = 17
"""Numbers of :func:`_relative`."""


@compiled
def _emit(state, counts, log, cycle, kind, bank, row):  # type: ignore[no-untyped-def]
    counts[kind] += 1
    if log.shape[0] > 0:
        place = state[_LOGGED]
        log[place, 0], log[place, 1], log[place, 2], log[place, 3] = cycle, kind, bank, row
    state[_LOGGED] += 1


@compiled
def _serve(machine, queue, n, all_bank, until_closed, patient):  # type: ignore[no-untyped-def]
    """Serve a group: the first ``n`` accesses (or runs of ``left`` equal ones) of the queue.

    machine : timings, state, banks, groups, acts, counts, log. queue : kinds, banks, rows, left.
    banks : (banks, 5) open row, last ACT, PRE, RD, WR. groups : (bank groups, 3) last ACT, RD, WR.
    acts : last four single-bank ACTs, oldest first. until_closed : a bank that must be closed at the end.
    patient : banks are opened also while a refresh is due and waits for another to close.
    """
    T, state, banks, groups, acts, counts, log = machine
    kinds, where, rows, left = queue
    per_group = banks.shape[0] // groups.shape[0]
    alive = 0
    for i in range(n):
        alive += left[i]
    while alive > 0 or (until_closed >= 0 and banks[until_closed, 0] != CLOSED):
        now = state[_NOW]
        pending = now >= state[_DUE]
        best, what, which, rank = FAR, -1, -1, 9
        seen_open = 0
        for b in range(banks.shape[0]):
            if seen_open == state[_OPEN]:
                break
            if banks[b, 0] == CLOSED:
                continue
            seen_open += 1
            needed = False
            if not pending:
                for i in range(n):
                    if left[i] > 0 and where[i] == b and rows[i] == banks[b, 0]:
                        needed = True
            if not needed:
                ready = max(banks[b, 1] + T[RAS], banks[b, 3] + T[RTP], banks[b, 4] + T[WRITE_TO_PRE])
                ready = max(ready, now, state[_BUSY])
                order = 0 if pending else 2
                if ready < best or (ready == best and order < rank):
                    best, what, which, rank = ready, PRE, b, order
        if pending and state[_OPEN] == 0:
            best, what, which, rank = max(now, state[_BUSY]), REF, NO_BANK, 0
        else:
            for i in range(n):
                if left[i] == 0 or (i == n - 1 and alive > left[i]):
                    continue
                b = where[i]
                group = b // per_group
                if banks[b, 0] == rows[i]:
                    if kinds[i] == WR:
                        ready = max(
                            banks[b, 1] + T[RCD_WR],
                            state[_LAST_RD] + T[READ_TO_WRITE],
                            state[_LAST_WR] + T[CCD_S],
                            groups[group, 2] + T[CCD_L],
                        )
                    else:
                        ready = max(
                            banks[b, 1] + T[RCD_RD],
                            state[_LAST_WR] + T[WRITE_TO_READ_S],
                            groups[group, 2] + T[WRITE_TO_READ_L],
                            state[_LAST_RD] + T[CCD_S],
                            groups[group, 1] + (T[MAC_GAP] if kinds[i] == MAC else T[CCD_L]),
                        )
                    command = kinds[i]
                elif banks[b, 0] == CLOSED and (patient or not pending):
                    ready = max(banks[b, 2] + T[RP], banks[b, 1] + T[RC])
                    if all_bank:
                        ready = max(ready, state[_LAST_ALL_ACT] + T[ACT_GAP])
                    else:
                        ready = max(ready, acts[3] + T[RRD_S], groups[group, 0] + T[RRD_L], acts[0] + T[FAW])
                    command = ACT
                else:
                    continue
                ready = max(ready, now, state[_BUSY])
                if ready < best or (ready == best and rank == 2):
                    best, what, which, rank = ready, command, i, 1
        if not pending and best >= state[_DUE]:
            state[_NOW] = state[_DUE]
            continue
        while state[_OTHER_DUE] < best:
            _emit(state, counts, log, state[_OTHER_DUE], OTHER_REF, NO_BANK, CLOSED)
            state[_OTHER_DUE] += T[REFI]
        if best == state[_OTHER_DUE]:
            _emit(state, counts, log, best, OTHER_REF, NO_BANK, CLOSED)
            state[_OTHER_DUE] += T[REFI]
            state[_NOW] = best + 1
            continue
        state[_NOW] = best + 1
        if what == REF:
            _emit(state, counts, log, best, REF, NO_BANK, CLOSED)
            state[_BUSY] = best + T[RFC]
            state[_DUE] += T[REFI]
            continue
        if what == PRE:
            # In all-bank mode the first bank of a parity stands for all.
            seen = which + EVEN if all_bank and which < 2 else which
            _emit(state, counts, log, best, PRE, seen, banks[which, 0])
            banks[which, 0] = CLOSED
            state[_OPEN] -= 1
            banks[which, 2] = best
            continue
        b = where[which]
        seen = b + EVEN if all_bank else b
        if what == ACT:
            _emit(state, counts, log, best, ACT, seen, rows[which])
            banks[b, 0], banks[b, 1] = rows[which], best
            state[_OPEN] += 1
            if all_bank:
                state[_LAST_ALL_ACT] = best
            else:
                state[_SINGLE_ACTS] += 1
                groups[b // per_group, 0] = best
                acts[0], acts[1], acts[2], acts[3] = acts[1], acts[2], acts[3], best
            continue
        # One access, or with nothing else to do and no log all that go before the next refresh.
        many = 1
        step = T[CCD_L] if what == WR else T[MAC_GAP]
        if n == 1 and log.shape[0] == 0 and not pending and state[_OPEN] == 1:
            limit = min(state[_DUE], state[_OTHER_DUE])
            many = max(1, min(left[0], (limit - 1 - best) // step + 1))
        last = best + (many - 1) * step
        if many == 1:
            _emit(state, counts, log, best, what, seen, rows[which])
        else:
            counts[what] += many
            state[_LOGGED] += many
        left[which] -= many
        alive -= many
        state[_NOW] = last + 1
        if what == WR:
            state[_LAST_WR] = groups[b // per_group, 2] = banks[b, 4] = last
        else:
            state[_LAST_RD] = groups[b // per_group, 1] = banks[b, 3] = last


@compiled
def _access(machine, queue, kind, bank, row, count):  # type: ignore[no-untyped-def]
    queue[0][0], queue[1][0], queue[2][0], queue[3][0] = kind, bank, row, count
    _serve(machine, queue, 1, True, -1, True)


@compiled
def _machine(T, bank_groups, num_banks, start, refresh, log, counts):  # type: ignore[no-untyped-def]
    """Return a machine that starts in a cycle with all banks closed, in step with the refreshes."""
    state = np.full(_NUM_STATE, -FAR // 2, dtype=np.int64)
    state[_NOW], state[_LOGGED], state[_OPEN], state[_SINGLE_ACTS] = start, 0, 0, 0
    state[_DUE] = state[_OTHER_DUE] = FAR
    if refresh:
        half = T[REFI] // 2
        state[_DUE] = half + (start - half + T[REFI] - 1) // T[REFI] * T[REFI] if start > half else half
        state[_OTHER_DUE] = max(1, (start + T[REFI] - 1) // T[REFI]) * T[REFI]
    banks = np.full((num_banks, 5), -FAR // 2, dtype=np.int64)
    banks[:, 0] = CLOSED
    groups = np.full((bank_groups, 3), -FAR // 2, dtype=np.int64)
    acts = np.full(4, -FAR // 2, dtype=np.int64)
    return T, state, banks, groups, acts, counts, log


@compiled
def _queue(places):  # type: ignore[no-untyped-def]
    return (
        np.zeros(places, dtype=np.int64),
        np.zeros(places, dtype=np.int64),
        np.zeros(places, dtype=np.int64),
        np.zeros(places, dtype=np.int64),
    )


@compiled
def _ordinary(  # type: ignore[no-untyped-def]
    T, bank_groups, banks_per_group, kind, used, bursts, row_bursts, start, closed, refresh, log, counts
):
    """Read or write ``bursts`` of each of the first ``used`` banks; return the cycle behind the last.

    closed : the cycle of the last PRE before the start; neither ACT nor REF come before tRP is over.
    """
    num_banks = bank_groups * banks_per_group
    machine = _machine(T, bank_groups, num_banks, start, refresh, log, counts)
    machine[1][_BUSY] = closed + T[RP]
    queue = _queue(num_banks)
    done = 0
    while done < bursts:
        for i in range(used):
            # Neighbours of the queue lie in other bank groups.
            queue[0][i], queue[1][i] = kind, (i % bank_groups) * banks_per_group + 2 * (i // bank_groups)
            queue[2][i], queue[3][i] = done // row_bursts, min(row_bursts, bursts - done)
        _serve(machine, queue, used, False, -1, False)
        done += row_bursts
    return machine[1][_NOW]


@compiled
def _relative(machine, seen):  # type: ignore[no-untyped-def]
    """Write down what the commands to come depend on, in cycles from now; long ago is all the same."""
    T, state, banks, groups, _acts, _counts, _log = machine
    now = state[_NOW]
    long_ago = -max(T[RC], T[WRITE_TO_PRE], T[WRITE_TO_READ_L], T[READ_TO_WRITE], T[MAC_GAP], T[ACT_GAP])
    for b in range(2):
        seen[5 * b] = banks[b, 0] != CLOSED
        for i in range(1, 5):
            seen[5 * b + i] = max(long_ago, banks[b, i] - now)
    for i in range(1, 3):
        seen[9 + i] = max(long_ago, groups[0, i] - now)
    seen[12] = max(long_ago, state[_LAST_RD] - now)
    seen[13] = max(long_ago, state[_LAST_WR] - now)
    seen[14] = max(long_ago, state[_LAST_ALL_ACT] - now)
    seen[15] = max(0, state[_BUSY] - now)
    seen[16] = state[_OPEN]


@compiled
def _tiles(machine, queue, side, first, tiles, entries, row_bursts, steady):  # type: ignore[no-untyped-def]
    """Serve the tiles of one side, one behind the other.

    steady : (2, ...) of each side a state that a tile left as it found it, the tile's commands and cycles.
        Without a log, tiles that find this state are one step, as many as end before the next refresh.
    """
    _T, state, banks, groups, _acts, counts, log = machine
    before, after = np.zeros(_STEADY, dtype=np.int64), np.zeros(_STEADY, dtype=np.int64)
    known = steady[side]
    tile = 0
    while tile < tiles:
        start = state[_NOW]
        next_refresh = min(state[_DUE], state[_OTHER_DUE])
        if log.shape[0] == 0 and tile > 0:
            _relative(machine, before)
            period = known[-1]
            if period > 0 and (before == known[:_STEADY]).all():
                skipped = min(tiles - tile, (next_refresh - start) // period)
                if skipped > 0:
                    shift = skipped * period
                    counts += skipped * known[_STEADY:-1]
                    banks[:2, 1:] += shift
                    groups[0] += shift
                    for place in (_NOW, _LAST_RD, _LAST_WR, _LAST_ALL_ACT):
                        state[place] += shift
                    tile += skipped
                    # No tile to come has the rows of one before.
                    for b in range(2):
                        if banks[b, 0] >= 0:
                            banks[b, 0] = first + tile * TILE_ROWS - 1
                    continue
        counted = counts.copy()
        _access(machine, queue, WR, 1, REGISTER_ROW, entries)
        for row in range(TILE_ROWS):
            # A barrier behind each 8 MACs delays nothing: they go to the same row.
            _access(machine, queue, MAC, side, first + tile * TILE_ROWS + row, row_bursts)
        if log.shape[0] == 0 and tile > 0 and state[_NOW] <= next_refresh:
            _relative(machine, after)
            if (after == before).all():
                known[:_STEADY] = after
                known[_STEADY:-1] = counts - counted
                known[-1] = state[_NOW] - start
        tile += 1


@compiled
def _kernel(  # type: ignore[no-untyped-def]
    T, bank_groups, banks_per_group, outputs, inputs, batch, entries, row_bursts, refresh, log, counts
):
    """Run the kernel for tiles of ``outputs`` x ``inputs``; return when it ends, and ACTs of single banks."""
    num_banks = bank_groups * banks_per_group
    machine = _machine(T, bank_groups, num_banks, FIRST_COMMAND, refresh, log, counts)
    queue = _queue(num_banks)
    kinds, where, rows, left = queue
    steady = np.zeros((2, _STEADY + NUM_KINDS + 1), dtype=np.int64)
    park = np.zeros(num_banks, dtype=np.int64)
    for i in range(num_banks):
        park[i] = (i % bank_groups) * banks_per_group + i // bank_groups
    kinds[:], where[:], rows[:], left[:] = RD, park, PARK_ROW, 1
    _serve(machine, queue, num_banks, False, -1, True)
    # All-bank mode: writes to a row of two banks in each of two bank groups.
    for i in range(4):
        kinds[i], rows[i], left[i] = WR, MODE_ROW, 1
        where[i] = (i // 2) * (bank_groups // 2) * banks_per_group + i % 2
    _serve(machine, queue, 4, False, -1, True)
    _access(machine, queue, WR, 1, REGISTER_ROW, 1)  # the program: one burst of instructions
    for output in range(outputs):
        for _item in range(batch):
            _access(machine, queue, WR, 0, REGISTER_ROW, 1)  # all-bank PIM mode, sums cleared
            first = output * ((inputs + 1) // 2) * TILE_ROWS
            for side in range(2):
                tiles = (inputs + 1 - side) // 2
                _tiles(machine, queue, side, first, tiles, entries, row_bursts, steady)
            _access(machine, queue, WR, 1, RESULT_ROW, entries)
            _access(machine, queue, WR, 0, REGISTER_ROW, 1)  # back to all-bank mode
    for i in range(2):
        kinds[i], where[i], rows[i], left[i] = WR, i, LEAVE_ROW, 1
    # Single-bank mode begins when the second of these rows closes; then banks are read one by one.
    _serve(machine, queue, 2, True, 1, True)
    kinds[:], where[:], rows[:], left[:] = RD, park, PARK_ROW, 1
    _serve(machine, queue, num_banks, False, -1, True)
    return machine[1][_LAST_RD] + T[READ_LATENCY], machine[1][_SINGLE_ACTS]


def ordinary_cycles(
    device: PimDevice,
    T: NDArray[np.int64],
    *,
    write: bool,
    bursts: int,
    start: int,
    closed: int = -FAR // 2,
    refresh: bool = True,
    log: Log | None = None,
) -> int:
    """Return the cycles of reading or writing ``bursts`` in each unit as ordinary traffic, from ``start`` on.

    One bank of each unit; results lie in the banks of one side. Rows follow each other; banks take turns.
    The last data of reads included. All banks are closed, the last one in cycle ``closed``. Commands go to a
    ``log`` that has room for them, if there is one.
    """
    if bursts == 0:
        return 0
    dram = device.timed
    none, counts = np.zeros((0, 4), dtype=np.int64), np.zeros(NUM_KINDS, dtype=np.int64)
    end = _ordinary(
        T,
        dram.bank_groups,
        dram.banks_per_group,
        WR if write else RD,
        device.units,
        bursts,
        dram.bursts_per_row,
        start,
        closed,
        refresh,
        none if log is None else log,
        counts,
    )
    return int(end) - start + (0 if write else int(T[READ_LATENCY]) - 1)


def tiles(device: PimDevice, product: Product) -> tuple[int, int]:
    """Return the tiles of outputs and of inputs that the product is padded to."""
    outputs = device.output_registers * device.units * product.channels
    inputs = TILE_INPUTS * device.lanes
    return -(-product.rows // outputs), -(-product.cols // inputs)


def _run(
    device: PimDevice, T: NDArray[np.int64], shape: tuple[int, int, int], refresh: bool, log: Log
) -> tuple[int, NDArray[np.int64], int]:
    dram = device.timed
    counts = np.zeros(NUM_KINDS, dtype=np.int64)
    end, singles = _kernel(
        T,
        dram.bank_groups,
        dram.banks_per_group,
        *shape,
        device.output_registers,
        dram.bursts_per_row,
        refresh,
        log,
        counts,
    )
    return int(end), counts, int(singles)


def single_acts(device: PimDevice, product: Product, T: NDArray[np.int64], *, refresh: bool = True) -> int:
    """Return the ACTs of single banks among those of a product; the others open one of each unit."""
    outputs, inputs = tiles(device, product)
    shape = (outputs, inputs, product.batch)
    return _run(device, T, shape, refresh, np.zeros((0, 4), dtype=np.int64))[2]


def visit_cycles(device: PimDevice, T: NDArray[np.int64]) -> int:
    """Return the cycles of entering and leaving the units' mode with nothing between."""
    return _run(device, T, (0, 0, 0), False, np.zeros((0, 4), dtype=np.int64))[0]


def run(
    device: PimDevice, product: Product, T: NDArray[np.int64], *, refresh: bool = True, log: bool = False
) -> tuple[int, NDArray[np.int64], Log]:
    """Return cycles, the number of commands of each kind, and with ``log`` the commands of a channel."""
    dram = device.timed
    outputs, inputs = tiles(device, product)
    # Three rows are kept for results, registers and modes.
    require_rows(outputs * -(-inputs // 2) * TILE_ROWS + 3, dram)
    none = np.zeros((0, 4), dtype=np.int64)

    def once(place: Log) -> tuple[int, NDArray[np.int64]]:
        return _run(device, T, (outputs, inputs, product.batch), refresh, place)[:2]

    cycles, counts = once(none)
    if not log:
        return cycles, counts, none
    place = np.zeros((int(counts.sum()), 4), dtype=np.int64)
    end, again = once(place)
    assert end == cycles and (again == counts).all()
    return cycles, counts, place


@dataclass(frozen=True, kw_only=True)
class Group:
    """Accesses between two barriers.

    Attributes
    ----------
    accesses : of each its kind, bank, row, and how often.
    all_banks : each goes to all banks of its bank's parity; these are banks 0 and 1.
    closed : a bank that must be closed at the end, or -1.
    """

    accesses: tuple[tuple[int, int, int, int], ...]
    all_banks: bool
    closed: int = -1


def serve(
    device: PimDevice, T: NDArray[np.int64], groups: Sequence[Group], *, refresh: bool = True
) -> tuple[int, Log]:
    """Return the cycle in which the last read of any groups has returned, and the commands of a channel."""
    dram = device.timed
    accesses = sum(count for group in groups for *_access, count in group.accesses)
    # Between two refreshes, at which all banks are closed, there is an access; it may open its row.
    log = np.zeros(((2 * dram.num_banks + 5) * (accesses + 2), 4), dtype=np.int64)
    counts = np.zeros(NUM_KINDS, dtype=np.int64)
    machine = _machine(T, dram.bank_groups, dram.num_banks, FIRST_COMMAND, refresh, log, counts)
    queue = _queue(dram.num_banks)
    for group in groups:
        for n, access in enumerate(group.accesses):
            for column, value in zip(queue, access, strict=True):
                column[n] = value
        _serve(machine, queue, len(group.accesses), group.all_banks, group.closed, True)
    end = max(FIRST_COMMAND, int(machine[1][_LAST_RD] + T[READ_LATENCY]))
    return end, log[: int(counts.sum())]


@compiled
def _many(T, bank_groups, banks_per_group, entries, row_bursts, refresh, shapes, cycles):  # type: ignore[no-untyped-def]
    log, counts = np.zeros((0, 4), dtype=np.int64), np.zeros(NUM_KINDS, dtype=np.int64)
    for i in range(shapes.shape[0]):
        cycles[i], _singles = _kernel(
            T,
            bank_groups,
            banks_per_group,
            shapes[i, 0],
            shapes[i, 1],
            shapes[i, 2],
            entries,
            row_bursts,
            refresh,
            log,
            counts,
        )


def many(
    device: PimDevice, products: NDArray[np.int64], T: NDArray[np.int64], *, refresh: bool = True
) -> NDArray[np.int64]:
    """Return the cycles of many products: (n, 4) rows, cols, channels, batch -> (n,) int64."""
    dram = device.timed
    rows, cols, channels, batch = products.T
    outputs = -(-rows // (device.output_registers * device.units * channels))
    inputs = -(-cols // (TILE_INPUTS * device.lanes))
    require_rows(int((outputs * -(-inputs // 2) * TILE_ROWS + 3).max()), dram)
    cycles = np.zeros(len(products), dtype=np.int64)
    _many(
        T,
        dram.bank_groups,
        dram.banks_per_group,
        device.output_registers,
        dram.bursts_per_row,
        refresh,
        np.ascontiguousarray(np.stack([outputs, inputs, batch], axis=1)),
        cycles,
    )
    return cycles
