"""A schedule of ours for a matrix-vector product on the same DRAM and MAC units, command by command.

A MAC every ``ccd_l``: one row of the even banks, the next of the odd ones, in turn; the idle bank of each
pair closes its row and opens the next meanwhile. Row and column commands have buses of their own, one command
per cycle each. Inputs come over the register path during MACs, entry by entry, each behind the last MAC that
reads what it replaces: they take a column slot and nothing else. Nothing is padded: ``slices`` sets of
channels share the inputs (:class:`Layout`), and a unit's bursts lie in the order of use, without holes.

All refreshes are issued in the cycle in which they fall due: no access, ACT or PRE is placed that would leave
a bank open later than tRP before. MACs stop for it and go on in the same row.

What is placed, is placed as early as it may, in the order of the column commands.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.gemv.commands import (
    ACT,
    ACT_GAP,
    CCD_L,
    EVEN,
    FAR,
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
    READ_TO_WRITE,
    REF,
    REFI,
    REG,
    RFC,
    RP,
    RRD_L,
    RRD_S,
    RTP,
    WR,
    WRITE_TO_PRE,
    WRITE_TO_READ_L,
    Log,
    Product,
    compiled,
    require_rows,
)
from spec.device import PimDevice
from spec.program import ALL, LEAVE_ROW, MODE_ROW, RESULT_ROW, Additions

CLOSED = -1
FIRST_COMMAND = 1
RECENT = 16
"""Row commands that are remembered to keep their bus to one a cycle; more than can be placed out of order."""
MARGIN = 1
"""Cycles between the last ACT that may close before a refresh and what tRAS asks for: the other PRE."""
(
    _DUE,
    _BUSY,
    _LAST_MAC,
    _LAST_WR,
    _LAST_COLUMN,
    _LAST_ACT,
    _LOGGED,
    _ROW_COMMANDS,
    _REG_NEXT,
    _REG_WRITTEN,
    _REG_ALLOWED,
    _NUM_STATE,
) = range(12)
_OPEN, _ACT, _PRE, _RD, _WR, _RESULTS, _ROWS = range(7)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a matrix lies.

    Attributes
    ----------
    slices : sets of channels that each hold a slice of the inputs; the host adds their sums.
    outputs, bursts : of a unit: outputs, and bursts of inputs for each.
    tokens : tokens that share a burst.

    A unit's outputs run in passes of as many as it has sums for with the first group of tokens: a last group
    of fewer keeps them, for the bursts lie in the order of these passes.
    """

    slices: int
    outputs: int
    bursts: int
    tokens: int


@compiled
def _emit(state, counts, log, cycle, kind, bank, row):  # type: ignore[no-untyped-def]
    counts[kind] += 1
    if log.shape[0] > 0:
        place = state[_LOGGED]
        log[place, 0], log[place, 1], log[place, 2], log[place, 3] = cycle, kind, bank, row
    state[_LOGGED] += 1


@compiled
def _row_command(machine, cycle, kind, bank, row):  # type: ignore[no-untyped-def]
    """Issue a row command in the first free cycle from ``cycle`` on, and return it."""
    T, state, _sides, recent, counts, log, flags = machine
    again = True
    while again:
        again = flags[2] and cycle % T[REFI] == 0  # the other rank's refresh
        for i in range(RECENT):
            again = again or recent[i] == cycle
        if again:
            cycle += 1
    recent[state[_ROW_COMMANDS] % RECENT] = cycle
    state[_ROW_COMMANDS] += 1
    _emit(state, counts, log, cycle, kind, bank, row)
    return cycle


@compiled
def _close(machine, side, floor):  # type: ignore[no-untyped-def]
    T, _state, sides, _recent, _counts, _log, _flags = machine
    if sides[side, _OPEN] != CLOSED:
        ready = max(
            floor,
            sides[side, _ACT] + T[RAS],
            sides[side, _RD] + T[RTP],
            sides[side, _WR] + T[WRITE_TO_PRE],
        )
        sides[side, _PRE] = _row_command(machine, ready, PRE, EVEN + side, sides[side, _OPEN])
        sides[side, _OPEN] = CLOSED


@compiled
def _refresh(machine):  # type: ignore[no-untyped-def]
    """Close what is open, and refresh in the cycle in which it is due."""
    T, state, _sides, _recent, counts, log, _flags = machine
    for side in range(2):
        _close(machine, side, 0)
    _emit(state, counts, log, state[_DUE], REF, NO_BANK, CLOSED)
    state[_BUSY] = state[_DUE] + T[RFC]
    state[_DUE] += T[REFI]


@compiled
def _open(machine, side, row):  # type: ignore[no-untyped-def]
    """Have a row open on a side, early enough to be of use before the next refresh or behind it."""
    T, state, sides, _recent, _counts, _log, flags = machine
    if sides[side, _OPEN] == row:
        return
    floor = 0 if flags[0] else state[_LAST_COLUMN] + 1
    _close(machine, side, floor)
    while True:
        ready = max(
            floor,
            state[_BUSY],
            sides[side, _PRE] + T[RP],
            sides[side, _ACT] + T[RC],
            state[_LAST_ACT] + T[ACT_GAP],
        )
        # Room for a bus conflict, for tRAS and tRP.
        if ready + 2 + MARGIN + T[RAS] + T[RP] <= state[_DUE]:
            break
        _refresh(machine)
    sides[side, _ACT] = state[_LAST_ACT] = _row_command(machine, ready, ACT, EVEN + side, row)
    sides[side, _OPEN] = row


@compiled
def _fill_registers(machine, end):  # type: ignore[no-untyped-def]
    """Write registers in the cycles before ``end``; all of them are free."""
    _T, state, _sides, _recent, counts, log, _flags = machine
    while state[_REG_WRITTEN] < state[_REG_ALLOWED] and state[_REG_NEXT] < end:
        _emit(state, counts, log, state[_REG_NEXT], REG, NO_BANK, CLOSED)
        state[_REG_WRITTEN] += 1
        state[_REG_NEXT] += 1


@compiled
def _burst_writes(machine, count):  # type: ignore[no-untyped-def]
    """Register writes as writes on the data bus, one behind the other."""
    T, state, _sides, _recent, counts, log, _flags = machine
    cycle = max(state[_LAST_MAC] + T[READ_TO_WRITE], state[_LAST_WR] + T[CCD_L])
    for _ in range(count):
        _emit(state, counts, log, cycle, REG, NO_BANK, CLOSED)
        state[_LAST_WR] = state[_LAST_COLUMN] = cycle
        cycle += T[CCD_L]


@compiled
def _writes(machine, side, row, count):  # type: ignore[no-untyped-def]
    """Write the side's banks: results, or the rows of modes."""
    T, state, sides, _recent, counts, log, _flags = machine
    for _ in range(count):
        while True:
            _open(machine, side, row)
            cycle = max(
                state[_LAST_MAC] + T[READ_TO_WRITE],
                state[_LAST_WR] + T[CCD_L],
                sides[side, _ACT] + T[RCD_WR],
            )
            if cycle + T[WRITE_TO_PRE] + MARGIN + T[RP] <= state[_DUE]:
                break
            _refresh(machine)
        _emit(state, counts, log, cycle, WR, EVEN + side, row)
        sides[side, _WR] = state[_LAST_WR] = state[_LAST_COLUMN] = cycle


@compiled
def _macs(machine, side, row, first, count, outputs, bursts, tokens, depth, gap):  # type: ignore[no-untyped-def]
    """MACs ``first`` .. ``first + count`` - 1 of a pass, all in one row."""
    T, state, sides, _recent, counts, log, flags = machine
    done, uploaded = 0, -1
    while done < count:
        burst, output = (first + done) // outputs, (first + done) % outputs
        if output == 0 and not flags[1] and burst % depth == 0 and uploaded != burst:
            uploaded = burst
            _burst_writes(machine, min(depth, bursts - burst) * tokens)
        _open(machine, side, row)
        cycle = max(
            state[_LAST_MAC] + gap,
            sides[side, _ACT] + T[RCD_RD],
            state[_LAST_WR] + T[WRITE_TO_READ_L],
        )
        if output == 0 and flags[1]:
            _fill_registers(machine, cycle)
            cycle = max(cycle, state[_REG_NEXT] + (burst + 1) * tokens - state[_REG_WRITTEN])
        last = state[_DUE] - T[RP] - T[RTP]
        if cycle > last:
            _refresh(machine)
            continue
        # Where nothing waits for inputs, all MACs of the row before the next refresh are one step.
        many = 1
        if log.shape[0] == 0 and flags[1] and depth > 1 and outputs * (gap - 1) >= tokens:
            many = min(count - done, (last - cycle) // gap + 1)
        if flags[1]:
            _fill_registers(machine, cycle)
        if many == 1:
            _emit(state, counts, log, cycle, MAC, EVEN + side, row)
        else:
            counts[MAC] += many
            state[_LOGGED] += many
        final = cycle + (many - 1) * gap
        sides[side, _RD] = state[_LAST_MAC] = state[_LAST_COLUMN] = final
        done += many
        if flags[1]:
            allowed = min(bursts, (first + done) // outputs + depth) * tokens
            if many > 1:
                # What was allowed before the last burst has been written by now.
                written = min(bursts, (first + done - 1) // outputs + depth) * tokens
                counts[REG] += written - state[_REG_WRITTEN]
                state[_LOGGED] += written - state[_REG_WRITTEN]
                state[_REG_WRITTEN] = written
            state[_REG_ALLOWED] = allowed
            state[_REG_NEXT] = max(state[_REG_NEXT], final + 1)


@compiled
def _kernel(  # type: ignore[no-untyped-def]
    T,
    banks_per_group,
    bank_groups,
    batch,
    outputs,
    bursts,
    tokens,
    per_unit,
    entries,
    mac_cycles,
    row_bursts,
    flags,
    log,
    counts,
):
    """Run the product and return its cycles and the rows that it uses in a bank.

    flags : prefetch, register path, refresh.
    """
    state = np.full(_NUM_STATE, -FAR // 2, dtype=np.int64)
    state[_LOGGED] = state[_ROW_COMMANDS] = state[_BUSY] = 0
    state[_DUE] = T[REFI] // 2 if flags[2] else FAR
    sides = np.full((2, 7), -FAR // 2, dtype=np.int64)
    sides[:, _RESULTS] = sides[:, _ROWS] = 0
    recent = np.full(RECENT, -1, dtype=np.int64)
    machine = (T, state, sides, recent, counts, log, flags)

    # All-bank mode: a row of two banks in each of two bank groups is opened and written.
    cycle, other = FIRST_COMMAND, bank_groups // 2 * banks_per_group
    before, write = FIRST_COMMAND, -FAR
    for i in range(4):
        side, bank = i // 2, (i // 2) + (i % 2) * other
        if i > 0:
            cycle += T[RRD_S]
        if i >= 2:
            cycle = max(cycle, before + T[RRD_L])
        if i % 2 == 0:
            before = cycle
        _emit(state, counts, log, cycle, ACT, bank, MODE_ROW)
        write = max(write + T[CCD_L], cycle + T[RCD_WR])
        _emit(state, counts, log, write, WR, bank, MODE_ROW)
        sides[side, _OPEN], sides[side, _ACT], sides[side, _WR] = MODE_ROW, cycle, write
    state[_LAST_WR] = state[_LAST_COLUMN] = write
    state[_REG_NEXT], state[_REG_WRITTEN], state[_REG_ALLOWED] = write + 1, 0, 2
    # The program and the change to PIM mode are register writes.
    if flags[1]:
        _fill_registers(machine, write + 3)
    else:
        _burst_writes(machine, 2)

    used, place = 0, 0
    at_once = per_unit // max(1, min(tokens, batch))
    passes = (outputs + at_once - 1) // at_once
    for start in range(0, batch, tokens):
        sharing = min(tokens, batch - start)
        gap = max(T[MAC_GAP], sharing * mac_cycles)
        depth = entries // sharing
        sides[:, _ROWS] = 0
        side, row, column = 0, 0, 0
        for number in range(passes):
            here = outputs // passes + (1 if number < outputs % passes else 0)
            state[_REG_WRITTEN], state[_REG_ALLOWED] = 0, min(bursts, depth) * sharing
            state[_REG_NEXT] = max(state[_REG_NEXT], state[_LAST_COLUMN] + 1)
            done, total = 0, here * bursts
            while done < total:
                count = min(total - done, row_bursts - column)
                _macs(machine, side, row, done, count, here, bursts, sharing, depth, gap)
                done += count
                column += count
                if column == row_bursts:
                    # The next row lies in the other bank; of a new pass, in this one: it has time to open.
                    sides[side, _ROWS] += 1
                    side = 1 - side if done < total else side
                    row, column = sides[side, _ROWS], 0
            # Results go to the bank that is not needed next.
            ends = number == passes - 1
            following = 0 if ends and start + tokens < batch else side
            results = here * sharing
            place = 1 - following
            left = row_bursts - sides[place, _RESULTS] % row_bursts
            if left < results:
                sides[place, _RESULTS] += left
            _writes(machine, place, RESULT_ROW - sides[place, _RESULTS] // row_bursts, results)
            sides[place, _RESULTS] += results
        used = max(used, sides[0, _ROWS] + 1, sides[1, _ROWS] + 1)

    # Single-bank mode: a row of each side is written and closed; PIM mode ends in the next column slot.
    if flags[1]:
        _emit(state, counts, log, state[_LAST_COLUMN] + 1, REG, NO_BANK, CLOSED)
    else:
        _burst_writes(machine, 1)
    first = 1 - place
    _writes(machine, first, LEAVE_ROW, 1)
    _writes(machine, 1 - first, LEAVE_ROW, 1)
    _close(machine, 0, 0)
    _close(machine, 1, 0)
    end = max(sides[0, _PRE], sides[1, _PRE]) + 1
    if flags[2]:
        for cycle in range(T[REFI], end, T[REFI]):
            _emit(state, counts, log, cycle, OTHER_REF, NO_BANK, CLOSED)
    rows = used + (max(sides[0, _RESULTS], sides[1, _RESULTS]) + row_bursts - 1) // row_bursts
    return end, rows + 2


@compiled
def _group_estimate(T, outputs, bursts, sharing, passes, mac_cycles, register_path):  # type: ignore[no-untyped-def]
    """Return the cycles that ``sharing`` tokens that share bursts may take, refreshes left out."""
    if sharing == 0:
        return 0
    gap = max(T[MAC_GAP], sharing * mac_cycles)
    turn = T[READ_TO_WRITE] + T[WRITE_TO_READ_L] - T[CCD_L] - gap
    time = gap * outputs * bursts + passes * turn + T[CCD_L] * outputs * sharing
    # With few outputs in a pass, inputs want more column slots than MACs leave.
    if register_path:
        larger = outputs % passes
        for here, number in ((outputs // passes, passes - larger), (outputs // passes + 1, larger)):
            time += max(0, sharing - here * (gap - 1)) * number * bursts
    return time


@compiled
def _choose(T, rows, cols, channels, batch, units, lanes, sharing, per_unit, mac_cycles, additions):  # type: ignore[no-untyped-def]
    """Return slices, outputs, bursts, tokens of the layout that is estimated to be the fastest.

    additions : register path, split, unpadded.
    """
    best, slices_, outputs_, bursts_, tokens_ = FAR, 1, 1, 1, 1
    tokens = 1
    while tokens <= sharing:
        full, rest = batch // tokens, batch % tokens
        for slices in range(1, (channels if additions[1] else 1) + 1):
            if channels % slices != 0:
                continue
            outputs = (rows * slices + units * channels - 1) // (units * channels)
            inputs = (cols + lanes - 1) // lanes
            if not additions[2]:
                outputs = (outputs + per_unit - 1) // per_unit * per_unit
                inputs = (inputs + per_unit - 1) // per_unit * per_unit
            bursts = (inputs + slices - 1) // slices
            # The last group may be of fewer tokens, in passes of as many outputs.
            at_once = per_unit // min(tokens, batch)
            passes = (outputs + at_once - 1) // at_once
            time = full * _group_estimate(T, outputs, bursts, tokens, passes, mac_cycles, additions[0])
            time += _group_estimate(T, outputs, bursts, rest, passes, mac_cycles, additions[0])
            if time < best:
                best = time
                slices_, outputs_, bursts_, tokens_ = slices, outputs, bursts, tokens
        tokens *= 2
    return slices_, outputs_, bursts_, tokens_


def layout(device: PimDevice, product: Product, T: NDArray[np.int64], additions: Additions = ALL) -> Layout:
    """Return where the product's matrix lies."""
    chosen = _choose(
        T,
        product.rows,
        product.cols,
        product.channels,
        product.batch,
        device.units,
        device.lanes,
        device.tokens_per_burst,
        device.output_registers,
        device.mac_cycles,
        (additions.register_path, additions.split, additions.unpadded),
    )
    slices, outputs, bursts, tokens = (int(value) for value in chosen)
    return Layout(slices=slices, outputs=outputs, bursts=bursts, tokens=tokens)


def _run(
    device: PimDevice,
    T: NDArray[np.int64],
    where: Layout,
    batch: int,
    refresh: bool,
    additions: Additions,
    log: Log,
) -> tuple[int, int, NDArray[np.int64]]:
    dram = device.timed
    counts = np.zeros(NUM_KINDS, dtype=np.int64)
    end, rows = _kernel(
        T,
        dram.banks_per_group,
        dram.bank_groups,
        batch,
        where.outputs,
        where.bursts,
        where.tokens,
        device.output_registers,
        device.input_registers,
        device.mac_cycles,
        dram.bursts_per_row,
        (additions.prefetch, additions.register_path, refresh),
        log,
        counts,
    )
    return int(end), int(rows), counts


def visit_cycles(device: PimDevice, T: NDArray[np.int64]) -> int:
    """Return the cycles of entering and leaving the units' mode with nothing between."""
    nothing = Layout(slices=1, outputs=0, bursts=0, tokens=1)
    return _run(device, T, nothing, 0, False, ALL, np.zeros((0, 4), dtype=np.int64))[0]


def run(
    device: PimDevice,
    product: Product,
    T: NDArray[np.int64],
    *,
    refresh: bool = True,
    log: bool = False,
    additions: Additions = ALL,
) -> tuple[int, NDArray[np.int64], Log]:
    """Return cycles, the number of commands of each kind, and with ``log`` the commands of a channel."""
    dram = device.timed
    where = layout(device, product, T, additions)
    require_rows(_weight_rows(where.outputs, where.bursts, dram.bursts_per_row), dram)
    none = np.zeros((0, 4), dtype=np.int64)

    def once(place: Log) -> tuple[int, int, NDArray[np.int64]]:
        return _run(device, T, where, product.batch, refresh, additions, place)

    cycles, rows, counts = once(none)
    require_rows(rows, dram, results=True)
    if not log:
        return cycles, counts, none
    place = np.zeros((int(counts.sum()), 4), dtype=np.int64)
    end, _rows, again = once(place)
    assert end == cycles and (again == counts).all()
    # Commands are placed in the order of the column commands; a log is in the order of time.
    return cycles, counts, place[np.lexsort((place[:, 1], place[:, 0]))]


@compiled
def _weight_rows(outputs, bursts, row_bursts):  # type: ignore[no-untyped-def]
    """Return the rows of a bank that weights fill, at least."""
    return (outputs * bursts + row_bursts - 1) // row_bursts // 2


@compiled
def _many(  # type: ignore[no-untyped-def]
    T,
    banks_per_group,
    bank_groups,
    units,
    lanes,
    sharing,
    per_unit,
    entries,
    mac_cycles,
    row_bursts,
    refresh,
    products,
    cycles,
):
    """Fill the cycles of each product and return the most rows of a bank that weights and that all need."""
    log, counts = np.zeros((0, 4), dtype=np.int64), np.zeros(NUM_KINDS, dtype=np.int64)
    weights, most = 0, 0
    for i in range(products.shape[0]):
        rows, cols, channels, batch = products[i, 0], products[i, 1], products[i, 2], products[i, 3]
        _slices, outputs, bursts, tokens = _choose(
            T, rows, cols, channels, batch, units, lanes, sharing, per_unit, mac_cycles, (True, True, True)
        )
        weights = max(weights, _weight_rows(outputs, bursts, row_bursts))
        cycles[i], used = _kernel(
            T,
            banks_per_group,
            bank_groups,
            batch,
            outputs,
            bursts,
            tokens,
            per_unit,
            entries,
            mac_cycles,
            row_bursts,
            (True, True, refresh),
            log,
            counts,
        )
        most = max(most, used)
    return weights, most


def many(
    device: PimDevice, products: NDArray[np.int64], T: NDArray[np.int64], *, refresh: bool = True
) -> NDArray[np.int64]:
    """Return the cycles of many products: (n, 4) rows, cols, channels, batch -> (n,) int64."""
    dram = device.timed
    cycles = np.zeros(len(products), dtype=np.int64)
    weights, rows = _many(
        T,
        dram.banks_per_group,
        dram.bank_groups,
        device.units,
        device.lanes,
        device.tokens_per_burst,
        device.output_registers,
        device.input_registers,
        device.mac_cycles,
        dram.bursts_per_row,
        refresh,
        np.ascontiguousarray(products),
        cycles,
    )
    require_rows(int(weights), dram)
    require_rows(int(rows), dram, results=True)
    return cycles
