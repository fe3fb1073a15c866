"""A DRAM controller in plain Python, tick by tick, against which the event engine is held.

Every rule is written out as ``docs/dram.md`` has it, each ready tick computed anew from when commands were
issued: no table of constraints, no jump in time, nothing remembered but the history. Reads only.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from spec.dram import DramSpec, Protocol

NEVER = -(1 << 40)


@dataclass
class Request:
    """A read."""

    bank: int
    row: int
    column: int


@dataclass
class Bank:
    """What a bank remembers: its row and when its commands were issued."""

    row: int | None = None
    owner: Request | None = None
    activating: bool = False
    last: dict[str, int] = field(default_factory=dict)


class NaiveChannel:
    """One channel of a standard; :meth:`run` gives the clock, what was served, and the commands."""

    def __init__(self, dram: DramSpec, *, refresh: bool, queue_size: int = 32) -> None:
        self.dram, self.refresh, self.queue_size = dram, refresh, queue_size
        self.t = dram.timing
        self.m = 2 if dram.protocol is Protocol.HBM3 else 1
        self.per_scope = dram.num_banks
        self.scopes = dram.pseudo_channels
        self.banks = [Bank() for _ in range(self.scopes * self.per_scope)]
        self.acts: list[list[int]] = [[] for _ in range(self.scopes)]
        self.scope_last: list[dict[str, int]] = [{} for _ in range(self.scopes)]
        self.group_last: dict[tuple[int, str], int] = {}
        self.queue: list[Request] = []
        self.opened: list[tuple[int, Request]] = []
        self.number: dict[int, int] = {}
        self.refreshes: list[int] = []
        self.bus_free = {"row": 0, "column": 0}
        self.pair = (-1, -1, -1)
        self.log: list[tuple[int, str, int, int, int]] = []
        self.clock = 0
        self.served = 0
        self.act_2: tuple[int, int] | None = None
        self.write_clock_until = 0
        self.after_cas: tuple[str, Request] | None = None

    # Buses and widths.

    @property
    def two_buses(self) -> bool:
        return self.dram.protocol in (Protocol.HBM2, Protocol.HBM3)

    def width(self, command: str) -> int:
        wide = {
            Protocol.DDR5: {"ACT": 2, "RD": 2},
            Protocol.HBM2: {"ACT": 2},
            Protocol.HBM3: {"ACT": 3, "RD": 2},
        }
        return wide.get(self.dram.protocol, {}).get(command, 1)

    def bus(self, command: str) -> str:
        return "column" if self.two_buses and command == "RD" else "row"

    def after(self, first: str, then: str, when: int, clocks: int) -> int:
        return when + self.m * clocks + (self.width(first) - 1) - (self.width(then) - 1)

    # Ready ticks.

    def ready(self, command: str, number: int) -> int:
        """Return the first tick that the timings leave for a command; PREA and REF: any bank of the scope."""
        t, dram = self.t, self.dram
        scope = number // self.per_scope
        bank, here = self.banks[number], self.scope_last[scope]
        group = number // dram.banks_per_group
        gddr6 = dram.protocol is Protocol.GDDR6
        ticks = [0]

        def wait(first: str, when: int | None, clocks: int) -> None:
            if when is not None:
                ticks.append(self.after(first, command, when, clocks))

        if command == "RD":
            wait("RD", here.get("RD"), max(t.ccd_s, t.burst))
            wait("RD", self.group_last.get((group, "RD")), t.ccd_l)
            wait("ACT", bank.last.get("ACT"), t.rcd_rd)
        elif command == "ACT":
            wait("ACT", bank.last.get("ACT"), t.rc)
            wait("ACT", self.group_last.get((group, "ACT")), t.rrd_l)
            wait("ACT", here.get("ACT"), t.rrd_s)
            if len(self.acts[scope]) >= 4:
                wait("ACT", self.acts[scope][-4], t.faw)
            wait("PRE", bank.last.get("PRE"), t.rp)
            all_banks = t.rp_ab if dram.protocol is Protocol.LPDDR5 else t.rp
            wait("PREA", here.get("PREA"), all_banks)
            wait("REF", here.get("REF"), t.rfc)
        elif command in ("PRE", "PREA"):
            scoped = command == "PREA"
            wait("ACT", here.get("ACT") if scoped else bank.last.get("ACT"), t.ras)
            wait("RD", here.get("RD") if scoped else bank.last.get("RD"), t.rtp)
            if dram.protocol in (Protocol.DDR5, Protocol.HBM3, Protocol.LPDDR5, Protocol.GDDR6):
                wait("PRE", here.get("PRE"), t.ppd)
                wait("PREA", here.get("PREA"), t.ppd)
            if scoped:
                wait("REF", here.get("REF"), t.rfc)
        elif command == "REF":
            wait("ACT", here.get("ACT"), t.rc)
            wait("PREA", here.get("PREA"), t.rp)
            if not gddr6:
                wait("PRE", here.get("PRE"), t.rp)
        if gddr6:
            wait("REF", here.get("REF"), t.rfc)
        return max(ticks)

    def may_issue(self, command: str, number: int) -> bool:
        if self.clock < self.bus_free[self.bus(command)] or self.ready(command, number) > self.clock:
            return False
        if self.dram.protocol is Protocol.HBM3 and self.clock % 2 == 0:
            if command not in ("PRE", "PREA"):
                return False
            tick, scope, bank = self.pair
            if tick == self.clock and scope == number // self.per_scope:
                return command == "PRE" and bank not in (-1, number)
        return True

    # The scheduler.

    def needed(self, request: Request) -> str | None:
        bank = self.banks[request.bank]
        if bank.activating:
            return None
        if bank.row is None:
            return None if self.act_2 else "ACT"
        if bank.row == request.row:
            return "RD"
        return None if bank.owner else "PRE"

    def choose(self, commands: set[str]) -> tuple[str, str, Request | int] | None:
        """Return (source, command, request or bank): opened rows first, then refresh, then the queue."""
        if "RD" in commands:
            for _, request in sorted(self.opened, key=lambda pair: pair[0]):
                if not self.banks[request.bank].activating and self.may_issue("RD", request.bank):
                    return "opened", "RD", request
        if self.refreshes:
            scope = self.refreshes[0]
            banks = self.banks[scope * self.per_scope : (scope + 1) * self.per_scope]
            closed = all(bank.row is None for bank in banks)
            if not any(bank.owner or bank.activating for bank in banks):
                command = "REF" if closed else "PREA"
                if command in commands and self.may_issue(command, scope * self.per_scope):
                    return "refresh", command, scope * self.per_scope
            return None
        for request in self.queue:
            needed = self.needed(request)
            if needed in commands and self.may_issue(needed, request.bank):
                return "queue", needed, request
        return None

    def issue(self, source: str, command: str, what: Request | int) -> None:
        number = what.bank if isinstance(what, Request) else what
        scope, group = number // self.per_scope, number // self.dram.banks_per_group
        bank = self.banks[number]
        row, column = -1, -1
        self.bus_free[self.bus(command)] = self.clock + self.width(command)
        if command == "RD":
            assert isinstance(what, Request)
            row, column = what.row, what.column
            self.served += 1
            if source == "opened":
                self.opened = [pair for pair in self.opened if pair[1] is not what]
                bank.owner = None
            else:
                self.queue.remove(what)
            until = self.clock + self.t.cl + self.t.burst + self.t.wck_post
            self.write_clock_until = max(self.write_clock_until, until)
        elif command == "ACT":
            assert isinstance(what, Request)
            row = what.row
            self.queue.remove(what)
            self.opened.append((self.number[id(what)], what))
            bank.row, bank.owner = row, what
            self.acts[scope].append(self.clock)
            if self.dram.protocol is Protocol.LPDDR5:
                bank.activating = True
                self.act_2 = (number, self.clock + self.t.aad)
        elif command == "PRE":
            bank.row = None
        elif command == "PREA":
            for other in self.banks[scope * self.per_scope : (scope + 1) * self.per_scope]:
                other.row = None
        elif command == "REF":
            self.refreshes.pop(0)
        elif command == "ACT_2":
            bank.activating = False
            self.act_2 = None
        if command in ("RD", "ACT", "PRE"):
            bank.last[command] = self.clock
            self.group_last[group, command] = self.clock
        if command not in ("ACT_2", "CAS"):
            self.scope_last[scope][command] = self.clock
        if self.dram.protocol is Protocol.HBM3 and command != "RD" and self.clock % 2:
            distance = 3 if command == "ACT" else 1
            self.pair = (self.clock + distance, scope, -1 if command in ("PREA", "REF") else number)
        self.log.append((self.clock, command, number, row, column))

    def tick(self) -> None:
        if self.two_buses:
            for commands in ({"RD"}, {"ACT", "PRE", "PREA", "REF"}):
                if chosen := self.choose(commands):
                    self.issue(*chosen)
            return
        if self.after_cas:
            source, request = self.after_cas
            self.after_cas = None
            self.issue(source, "RD", request)
            return
        if self.act_2 and self.clock >= self.act_2[1]:
            self.issue("", "ACT_2", self.act_2[0])
            return
        chosen = self.choose({"RD", "ACT", "PRE", "PREA", "REF"})
        if chosen is None:
            if self.act_2:
                self.issue("", "ACT_2", self.act_2[0])
            return
        source, command, what = chosen
        needs_cas = self.dram.protocol is Protocol.LPDDR5 and command == "RD"
        if needs_cas and self.clock >= self.write_clock_until:
            assert isinstance(what, Request)
            if self.act_2 and self.act_2[1] <= self.clock + 1:
                self.issue("", "ACT_2", self.act_2[0])
            else:
                self.after_cas = (source, what)
                self.issue("", "CAS", what.bank)
            return
        self.issue(*chosen)

    def run(self, requests: list[Request]) -> tuple[int, int]:
        """Return (clock ticks when the last request was accepted, requests read by then)."""
        accepted = 0
        interval = self.m * self.t.refi
        while True:
            if len(self.queue) < self.queue_size:
                self.number[id(requests[accepted])] = accepted
                self.queue.append(requests[accepted])
                accepted += 1
                if accepted == len(requests):
                    return self.clock, self.served
            self.clock += 1
            if self.refresh and self.clock % interval == 0:
                self.refreshes += range(self.scopes)
            self.tick()
