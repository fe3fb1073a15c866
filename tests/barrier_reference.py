"""The published HBM-PIM kernel once more, cycle by cycle and without any haste; what tests compare with."""

from __future__ import annotations

RL, WL, BURST = 20, 8, 2
CCD_S, CCD_L, RCD_RD, RCD_WR, RP, RAS, RC = 2, 4, 14, 10, 14, 33, 47
RRD_S, RRD_L, FAW, RFC, REFI = 4, 6, 16, 350, 3900
READ_TO_PRE, WRITE_TO_PRE, READ_TO_WRITE = 3, WL + BURST + 16, RL + BURST + 1 - WL
WRITE_TO_READ_S, WRITE_TO_READ_L = WL + BURST + 4, WL + BURST + 9
LONG_AGO = -(10**6)
PARK = [("RD", (group, bank), "park") for bank in range(4) for group in range(4)]


def groups_of(rows: int, cols: int, channels: int, batch: int):
    """Yield (accesses, all-bank mode, a bank that must be closed at last); between two there is a barrier."""
    yield PARK, False, None
    yield [("WR", bank, "enter") for bank in ((0, 0), (0, 1), (2, 0), (2, 1))], False, None
    yield [("WR", (0, 1), "registers")], True, None
    inputs = -(-cols // 128)
    for output in range(-(-rows // (64 * channels))):
        for _ in range(batch):
            yield [("WR", (0, 0), "registers")], True, None
            for tile in [*range(0, inputs, 2), *range(1, inputs, 2)]:
                yield [("WR", (0, 1), "registers")] * 8, True, None
                for eighth in range(8):
                    yield [("MAC", (0, tile % 2), (output, tile, eighth // 4))] * 8, True, None
            yield [("WR", (0, 1), "results")] * 8, True, None
            yield [("WR", (0, 0), "registers")], True, None
    yield [("WR", (0, 0), "leave"), ("WR", (0, 1), "leave")], True, (0, 1)
    yield PARK, False, None


def run(rows: int, cols: int, channels: int, batch: int, *, refresh: bool = True):
    """Return the cycle of the end and the commands: (cycle, command, bank, row)."""
    opened: dict = {}
    last: dict = {}
    commands: list = []
    due, other_due = (REFI // 2, REFI) if refresh else (10**12, 10**12)
    busy = 0

    def since(name: str, *place) -> int:
        return last.get((name, *place), LONG_AGO)

    def note(name: str, cycle: int, bank, row) -> None:
        commands.append((cycle, name, bank, row))
        kind = "RD" if name == "MAC" else name
        for place in ((), (bank[0],), (bank,)):
            last[(kind, *place)] = cycle

    def accessible(name: str, bank, cycle: int) -> bool:
        group = bank[0]
        if name == "WR":
            bounds = (
                since("ACT", bank) + RCD_WR,
                since("RD") + READ_TO_WRITE,
                since("WR") + CCD_S,
                since("WR", group) + CCD_L,
            )
        else:
            bounds = (
                since("ACT", bank) + RCD_RD,
                since("WR") + WRITE_TO_READ_S,
                since("WR", group) + WRITE_TO_READ_L,
                since("RD") + CCD_S,
                since("RD", group) + CCD_L,
            )
        return cycle >= max(bounds)

    def closable(bank, cycle: int) -> bool:
        return cycle >= max(
            since("ACT", bank) + RAS, since("RD", bank) + READ_TO_PRE, since("WR", bank) + WRITE_TO_PRE
        )

    def openable(bank, all_bank: bool, cycle: int) -> bool:
        bounds = [since("PRE", bank) + RP, since("ACT", bank) + RC]
        if not all_bank:
            singles = last.setdefault("singles", [])
            bounds.append(last.get("single", LONG_AGO) + RRD_S)
            bounds.append(last.get(("single", bank[0]), LONG_AGO) + RRD_L)
            bounds.append(singles[-4] + FAW if len(singles) >= 4 else LONG_AGO)
        return cycle >= max(bounds)

    def issue(queue: list, all_bank: bool, cycle: int):
        """Issue at most one command."""
        nonlocal due, busy
        if cycle < busy:
            return
        waiting = cycle >= due
        if waiting:
            if not opened:
                commands.append((cycle, "REF", None, None))
                busy, due = cycle + RFC, due + REFI
                return
            for bank in sorted(opened):
                if closable(bank, cycle):
                    note("PRE", cycle, bank, opened.pop(bank))
                    return
        for place, (name, bank, row) in enumerate(queue):
            if place == len(queue) - 1 and len(queue) > 1 and queue[0] != queue[-1]:
                continue  # the last access waits until it is alone
            if opened.get(bank) == row:
                if accessible(name, bank, cycle):
                    note(name, cycle, bank, row)
                    queue.pop(place)
                    return
            elif bank not in opened and (not waiting or opened) and openable(bank, all_bank, cycle):
                opened[bank] = row
                note("ACT", cycle, bank, row)
                if not all_bank:
                    last["single"] = last[("single", bank[0])] = cycle
                    last["singles"].append(cycle)
                return
        needed = {(bank, row) for _, bank, row in queue}
        for bank in sorted(opened):
            if (bank, opened[bank]) not in needed and closable(bank, cycle):
                note("PRE", cycle, bank, opened.pop(bank))
                return

    cycle = 1
    for accesses, all_bank, closed_at_last in groups_of(rows, cols, channels, batch):
        queue = list(accesses)
        while queue or closed_at_last in opened:
            if cycle == other_due:
                other_due += REFI
            else:
                issue(queue, all_bank, cycle)
            cycle += 1
    return since("RD") + RL + BURST + 2, commands
