"""A matrix-vector product on banks that work in lockstep, command by command, as a device describes itself.

A MAC command reads a burst of each bank of a *set* (all banks of the channel, or some of each bank group);
each bank holds outputs of its own, and all multiply the same burst of inputs, which lies in a buffer of the
units. Rows of weights take turns over the sets: where there are several, the others close and open rows
while one computes, else each row is opened behind the MACs of the one before. Where the DRAM does not open
the banks of a set at once, they are opened one by one.

Per group of ``tokens`` that share a burst, inputs come in *chunks* that the buffer holds; for each chunk all
outputs run, as many at once as a bank has sums for, and their sums are read: the host adds those of further
chunks. Weights lie in that order, once: a last group of fewer tokens keeps chunks and outputs of the others.
On a register path of its own, entries of the buffer are written again as soon as the last MAC has read them,
and sums are read while the next ones are made. On the data bus both wait, with its turnarounds.

Refreshes are issued in the cycle in which they fall due. In each step the command issues that may issue
first. Distances are those of the DRAM's table, rounded up to whole clocks from first to first tick of
commands.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sim.gemv.commands import (
    ACT,
    EVEN,
    FAR,
    MAC,
    NO_BANK,
    NUM_KINDS,
    PRE,
    RD,
    REF,
    REG,
    Log,
    PowerLimits,
    Product,
    bus_slots,
    compiled,
    first_to_first,
    limited,
    require_rows,
)
from spec.design import RegisterPath
from spec.device import PimDevice
from spec.dram import PROTOCOLS, Command, DramSpec, Level

FIRST_COMMAND = 1
DISTANCES = (
    "mac_gap",
    "act_to_mac",
    "act_to_pre",
    "act_to_act",
    "mac_to_pre",
    "pre_to_act",
    "pre_to_pre",
    "rrd_s",
    "rrd_l",
    "faw",
    "act_gap",
    "act_to_ref",
    "pre_to_ref",
    "ref_to_any",
    "refi",
    "path",
    "mac_to_write",
    "write_to_mac",
    "mac_to_read",
    "read_to_mac",
    "write_to_read",
    "read_to_write",
    "read_end",
    "lead",
    "tail",
    "mode",
)
"""What :func:`distances` returns, in this order, in clocks.

``path`` : from a register access to the next of its kind. ``lead``, ``tail`` : slots of the command bus
that a register access takes before it, and an ACT behind it. ``read_end`` : from a read to the end of its
data.
"""
(
    _MAC_GAP,
    _ACT_TO_MAC,
    _ACT_TO_PRE,
    _ACT_TO_ACT,
    _MAC_TO_PRE,
    _PRE_TO_ACT,
    _PRE_TO_PRE,
    _RRD_S,
    _RRD_L,
    _FAW,
    _ACT_GAP,
    _ACT_TO_REF,
    _PRE_TO_REF,
    _REF_TO_ANY,
    _REFI,
    _PATH,
    _MAC_TO_WRITE,
    _WRITE_TO_MAC,
    _MAC_TO_READ,
    _READ_TO_MAC,
    _WRITE_TO_READ,
    _READ_TO_WRITE,
    _READ_END,
    _LEAD,
    _TAIL,
    _MODE,
) = range(len(DISTANCES))
# Of a set: the row of the stream that is open or being opened (-1: none), banks opened of it, first and
# last ACT, PRE, last MAC.
_ROW, _OPENED, _FIRST_ACT, _ACT, _PRE, _MAC = range(6)
ROOM = 4
"""Cycles left before a refresh, beside those in which sets close, for commands in each other's way."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a matrix lies, and in which order it is used.

    Attributes
    ----------
    slices : sets of channels that each hold a slice of the inputs; the host adds their sums.
    outputs, bursts : of a bank: outputs, and bursts of inputs for each.
    tokens : tokens that share a burst.
    sums : sums that a bank holds at once, over all tokens.
    entries : bursts of inputs that the buffer holds, over all tokens.
    """

    slices: int
    outputs: int
    bursts: int
    tokens: int
    sums: int
    entries: int


@lru_cache(maxsize=64)
def sets_of(dram: DramSpec, banks_per_mac: int) -> NDArray[np.int64]:
    """Return the banks of each set, (sets, banks), in the order in which they are opened one by one.

    A set has neighbouring banks of every bank group; neighbours in the order lie in different groups.
    """
    per_group = banks_per_mac // dram.bank_groups
    sets = dram.num_banks // banks_per_mac
    place = np.arange(banks_per_mac)
    group, within = place % dram.bank_groups, place // dram.bank_groups
    first = np.arange(sets)[:, None] * per_group
    banks: NDArray[np.int64] = group * dram.banks_per_group + first + within
    return banks


@lru_cache(maxsize=64)
def distances(device: PimDevice, limits: PowerLimits) -> NDArray[np.int64]:
    """Return :data:`DISTANCES`; nobody writes into it."""
    dram = limited(device.timed, limits)
    timing = dram.timing
    act, pre, read, write = Command.ACT, Command.PRE, Command.RD, Command.WR
    bank, group, scope = Level.BANK, Level.BANK_GROUP, Level.SCOPE
    shared = device.register_path is RegisterPath.SHARED

    def between(before: Command, after: Command, *levels: Level, window: int = 1) -> int:
        return max(first_to_first(dram, before, after, level, window) for level in levels)

    ccd = between(read, read, group, scope)
    slots = bus_slots(dram)
    values = {
        "mac_gap": max(ccd, device.mac_gap, limits.mac_gap),
        "act_to_mac": max(between(act, read, bank), device.mac_open_cycles),
        "act_to_pre": between(act, pre, bank),
        "act_to_act": between(act, act, bank),
        "mac_to_pre": between(read, pre, bank),
        "pre_to_act": between(pre, act, bank),
        "pre_to_pre": max(1, between(pre, pre, scope)),
        "rrd_s": between(act, act, scope),
        "rrd_l": between(act, act, group),
        "faw": between(act, act, scope, window=4),
        "act_gap": limits.act_gap,
        "act_to_ref": between(act, Command.REF, scope),
        "pre_to_ref": between(pre, Command.REF, scope) or timing.rp,
        "ref_to_any": between(Command.REF, act, scope),
        "refi": timing.refi,
        "path": max(ccd, between(write, write, group, scope)),
        "mac_to_write": between(read, write, scope) if shared else 1,
        "write_to_mac": between(write, read, group, scope) if shared else 1,
        "mac_to_read": ccd if shared else 1,
        "read_to_mac": ccd if shared else 1,
        "write_to_read": between(write, read, group, scope),
        "read_to_write": between(read, write, scope),
        "read_end": timing.cl + timing.burst,
        "lead": slots[Command.WR][0],
        "tail": slots[Command.ACT][1],
        "mode": device.mode_cycles,
    }
    return np.array([values[name] for name in DISTANCES], dtype=np.int64)


@compiled
def _emit(logged, counts, log, cycle, kind, bank, row):  # type: ignore[no-untyped-def]
    counts[kind] += 1
    if log.shape[0] > 0:
        log[logged, 0], log[logged, 1], log[logged, 2], log[logged, 3] = cycle, kind, bank, row
    return logged + 1


@compiled
def _next_row(place, current, rows, sets, more):  # type: ignore[no-untyped-def]
    """Return the next row of the stream in a set, also of the next group of tokens; -1: there is none."""
    row = current + (place - current) % sets
    if row < rows:
        return row
    return place if more and place < rows else -1


@compiled
def _kernel(  # type: ignore[no-untyped-def]
    D,
    banks,
    per_group,
    at_once,
    one_bus,
    own,
    batch,
    outputs,
    bursts,
    tokens,
    sums,
    entries,
    row_bursts,
    steps,
    results,
    refresh,
    log,
    counts,
):
    """Run the product and return its cycles.

    banks : (sets, banks) of each set. at_once : a set is opened by one command. steps : (tokens + 1,) least
    cycles between MACs for so many tokens. results : sums that a read returns.
    """
    sets, per_set = banks.shape
    num_groups = per_set * sets // per_group
    state = np.full((sets, 6), -FAR // 2, dtype=np.int64)
    state[:, _ROW], state[:, _OPENED] = -1, 0
    group_act = np.full(num_groups, -FAR // 2, dtype=np.int64)
    acts = np.full(4, -FAR // 2, dtype=np.int64)
    logged, now, busy = 0, FIRST_COMMAND + D[_MODE], 0
    free = np.zeros(2, dtype=np.int64)  # row bus, column bus; if they are one, the first
    column = 0 if one_bus else 1
    due = D[_REFI] // 2 if refresh else FAR
    last_pre, last_all_act = -FAR // 2, -FAR // 2
    last_mac, last_write, last_read = -FAR // 2, -FAR // 2, -FAR // 2
    rows = (outputs * bursts + row_bursts - 1) // row_bursts
    room = sets * D[_PRE_TO_PRE] + ROOM + D[_LEAD] + D[_TAIL]
    series = 0 if at_once else D[_FAW] + (per_set - 1) * max(D[_RRD_S], D[_RRD_L], (D[_FAW] + 3) // 4)
    opening = max(D[_ACT_TO_PRE], D[_ACT_TO_MAC] + D[_MAC_TO_PRE])
    last_use = due - D[_PRE_TO_REF] - D[_MAC_TO_PRE] - room
    last_open = due - max(series + opening + D[_PRE_TO_REF] + room, series + D[_ACT_TO_REF])

    # The position in the stream: group of tokens, chunk, outputs that run together, MAC of these, row and
    # column.
    total_writes = batch * bursts
    written, done_writes, freed = 0, 0, 0
    older, newer = 0, 0  # sums to be read: of the outputs before the last, of the last
    start, base, first, mac, position = 0, 0, 0, 0, 0
    # Of all groups, for bursts lie in their order.
    sharing = min(tokens, batch)
    longest, most = entries // sharing, max(1, sums // sharing)
    while True:
        macs_left = start < batch
        if macs_left:
            chunk = min(bursts - base, longest)
            here = min(outputs - first, most)
            row = position // row_bursts
            allowed = freed + entries if own else done_writes + (base + chunk) * sharing
            allowed = min(total_writes, allowed)
        else:
            row, allowed = rows, total_writes
        more = macs_left and start + sharing < batch

        best, what, which = FAR, -1, -1
        # A MAC.
        if macs_left:
            place = row % sets
            if state[place, _ROW] == row and state[place, _OPENED] == per_set:
                ready = max(
                    last_mac + max(D[_MAC_GAP], steps[sharing]),
                    state[place, _ACT] + D[_ACT_TO_MAC],
                    last_write + D[_WRITE_TO_MAC],
                    last_read + D[_READ_TO_MAC],
                    free[column],
                    busy,
                    now,
                )
                unread = older if own else older + newer
                there = written >= done_writes + (base + mac // here + 1) * sharing
                if there and (mac > 0 or unread == 0) and ready <= last_use:
                    best, what, which = ready, MAC, place
        # A read of sums, and a write of inputs.
        if older + newer > 0:
            ready = max(
                last_read + D[_PATH],
                last_mac + D[_MAC_TO_READ],
                last_write + D[_WRITE_TO_READ],
                free[column] + D[_LEAD],
                busy + D[_LEAD],
                now,
            )
            if ready < best and ready + 1 < due:
                best, what, which = ready, RD, NO_BANK
        if written < allowed:
            ready = max(
                last_write + D[_PATH],
                last_mac + D[_MAC_TO_WRITE],
                last_read + D[_READ_TO_WRITE],
                free[column] + D[_LEAD],
                busy + D[_LEAD],
                now,
            )
            if ready < best and ready + 1 < due:
                best, what, which = ready, REG, NO_BANK
        # Rows that are not needed any more, or needed next.
        any_open = False
        ready_to_use = macs_left and state[row % sets, _OPENED] == per_set and state[row % sets, _ROW] == row
        for place in range(sets):
            held = state[place, _ROW]
            any_open = any_open or held >= 0
            wanted = _next_row(place, row, rows, sets, more)
            if held >= 0 and held != wanted:
                ready = max(state[place, _MAC] + D[_MAC_TO_PRE], state[place, _ACT] + D[_ACT_TO_PRE])
                ready = max(ready, last_pre + D[_PRE_TO_PRE], free[0], now)
                if ready < best:
                    best, what, which = ready, PRE, place
            elif wanted >= 0 and state[place, _OPENED] < per_set and (ready_to_use or place == row % sets):
                # (Rows to come are opened behind the one that is needed now, or it might never be.)
                ready = max(state[place, _PRE] + D[_PRE_TO_ACT], free[0], busy, now)
                if at_once:
                    ready = max(ready, state[place, _ACT] + D[_ACT_TO_ACT], last_all_act + D[_ACT_GAP])
                else:
                    group = banks[place, state[place, _OPENED]] // per_group
                    ready = max(ready, acts[3] + D[_RRD_S], group_act[group] + D[_RRD_L], acts[0] + D[_FAW])
                    if state[place, _OPENED] == 0:
                        ready = max(ready, state[place, _ACT] + D[_ACT_TO_ACT])
                if ready < best and (state[place, _OPENED] > 0 or ready <= last_open):
                    best, what, which = ready, ACT, place
        if best == FAR and not macs_left and not any_open and older + newer == 0:
            break
        # Nothing that the refresh leaves time for: close what is open, and refresh.
        if best > due - D[_PRE_TO_REF] - room and what != PRE:
            best = FAR
            for place in range(sets):
                if state[place, _ROW] >= 0:
                    ready = max(state[place, _MAC] + D[_MAC_TO_PRE], state[place, _ACT] + D[_ACT_TO_PRE])
                    ready = max(ready, last_pre + D[_PRE_TO_PRE], free[0], now)
                    if ready < best:
                        best, what, which = ready, PRE, place
            if best == FAR:
                logged = _emit(logged, counts, log, due, REF, NO_BANK, -1)
                now = busy = due + D[_REF_TO_ANY]
                due += D[_REFI]
                last_use, last_open = last_use + D[_REFI], last_open + D[_REFI]
                continue

        now = best
        if what == MAC:
            logged = _emit(logged, counts, log, best, MAC, EVEN + which, row // sets)
            free[column] = best + 1
            last_mac = state[which, _MAC] = best
            if first + here == outputs and mac % here == here - 1:
                freed += sharing
            mac += 1
            position += 1
            if mac == chunk * here:
                older, newer = older + newer, (per_set * here * sharing + results - 1) // results
                mac, first = 0, first + here
                if first == outputs:
                    first, base = 0, base + chunk
                    if base == bursts:
                        done_writes += bursts * sharing
                        start, base, position = start + sharing, 0, 0
                        sharing = min(tokens, batch - start)
        elif what == RD:
            logged = _emit(logged, counts, log, best, RD, NO_BANK, -1)
            free[column] = best + 1
            last_read = best
            if older > 0:
                older -= 1
            else:
                newer -= 1
        elif what == REG:
            logged = _emit(logged, counts, log, best, REG, NO_BANK, -1)
            free[column] = best + 1
            last_write = best
            written += 1
        elif what == PRE:
            logged = _emit(logged, counts, log, best, PRE, EVEN + which, state[which, _ROW] // sets)
            free[0] = best + 1
            last_pre = state[which, _PRE] = best
            state[which, _ROW], state[which, _OPENED] = -1, 0
        else:
            wanted = _next_row(which, row, rows, sets, more)
            opened = state[which, _OPENED]
            bank = EVEN + which if at_once else banks[which, opened]
            logged = _emit(logged, counts, log, best, ACT, bank, wanted // sets)
            free[0] = best + 1 + D[_TAIL]
            state[which, _ACT] = best
            if opened == 0:
                state[which, _FIRST_ACT], state[which, _ROW] = best, wanted
            if at_once:
                state[which, _OPENED], last_all_act = per_set, best
            else:
                state[which, _OPENED] = opened + 1
                group_act[bank // per_group] = best
                acts[0], acts[1], acts[2], acts[3] = acts[1], acts[2], acts[3], best
    end = max(last_pre + 1, last_read + D[_READ_END])
    return end + D[_MODE]


def layout(device: PimDevice, product: Product, limits: PowerLimits) -> Layout:
    """Return where the product's matrix lies, in as many slices as are estimated to be the fastest."""
    dram = device.timed
    D = dict(zip(DISTANCES, distances(device, limits).tolist(), strict=True))
    tokens = min(product.batch, device.tokens_per_burst)
    entries = device.buffer_bytes // dram.burst_bytes
    inputs = -(-product.cols // device.burst_elements)
    shared = device.register_path is RegisterPath.SHARED
    gap = max(D["mac_gap"], device.mac_step(tokens))
    switch = D["mac_to_pre"] + D["pre_to_act"] + D["act_to_mac"] - gap
    alone = device.banks_per_mac == dram.num_banks
    best: tuple[float, Layout] | None = None
    for slices in range(1, product.channels + 1):
        if product.channels % slices:
            continue
        outputs = -(-product.rows * slices // (device.banks_per_mac * product.channels))
        bursts = -(-inputs // slices)
        chunks = -(-bursts // (entries // tokens))
        runs = chunks * -(-outputs // max(1, device.output_registers // tokens))
        reads = chunks * outputs * device.banks_per_mac * tokens * device.result_bits / (8 * dram.burst_bytes)
        rows = outputs * bursts / dram.bursts_per_row
        time = gap * outputs * bursts + (switch * rows if alone else 0)
        if shared:
            turn = D["mac_to_write"] + D["write_to_mac"] + D["path"] * min(bursts * tokens, entries)
            time += turn * chunks + D["path"] * (reads + runs)
        chosen = Layout(
            slices=slices,
            outputs=outputs,
            bursts=bursts,
            tokens=tokens,
            sums=device.output_registers,
            entries=entries,
        )
        if best is None or time < best[0]:
            best = (time, chosen)
    assert best is not None
    return best[1]


def run(
    device: PimDevice, product: Product, limits: PowerLimits, *, refresh: bool = True, log: bool = False
) -> tuple[int, NDArray[np.int64], Log]:
    """Return cycles, the number of commands of each kind, and with ``log`` the commands of a channel."""
    dram = device.timed
    where = layout(device, product, limits)
    rows = -(-where.outputs * where.bursts // dram.bursts_per_row)
    banks = sets_of(dram, device.banks_per_mac)
    require_rows(-(-rows // len(banks)), dram)
    D = distances(device, limits)
    steps = np.array([device.mac_step(sharing) for sharing in range(where.tokens + 1)], dtype=np.int64)
    none = np.zeros((0, 4), dtype=np.int64)

    def once(place: Log) -> tuple[int, NDArray[np.int64]]:
        counts = np.zeros(NUM_KINDS, dtype=np.int64)
        end = _kernel(
            D,
            banks,
            dram.banks_per_group,
            dram.all_bank_exempt,
            not PROTOCOLS[dram.protocol].row_bus,
            device.register_path is RegisterPath.OWN,
            product.batch,
            where.outputs,
            where.bursts,
            where.tokens,
            where.sums,
            where.entries,
            dram.bursts_per_row,
            steps,
            8 * dram.burst_bytes // device.result_bits,
            refresh,
            place,
            counts,
        )
        return int(end), counts

    cycles, counts = once(none)
    if not log:
        return cycles, counts, none
    place = np.zeros((int(counts.sum()), 4), dtype=np.int64)
    end, again = once(place)
    assert end == cycles and (again == counts).all()
    return cycles, counts, place[np.lexsort((place[:, 1], place[:, 0]))]
