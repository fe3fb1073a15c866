"""The corners of what lies between blocks: merger, channels of programs, layers, registers, crossings.

Those of a run of scenarios as in :mod:`tests.coverage.points`. Registers and crossings have benches that are
tests of cocotb themselves, and leave logs of their ports: for each signal its value at every edge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from rtl.gemv.layouts import ColumnKind, RowKind
from rtl.pim.layouts import RowKind as BankKind
from sim.rtlsim import Set
from spec.registers import (
    CHANNEL_PROBE,
    COUNTERS,
    PROBE,
    PROBE_WAIT_TILE,
    REGISTERS,
    ROUTER_PROBE,
    STATUS_READ_ERROR,
    counter_address,
)
from tests.bench.bfm import BenchResult
from tests.bench.scenarios import Scenario
from tests.coverage.points import (
    Seen,
    commands,
    cycles,
    kinds,
    pulse,
    reset_with,
    stalled,
    streak,
    together,
    waits,
)

Log = Mapping[str, NDArray[np.int64]]
SeenInLog = Callable[[Log], bool]


RESET = "reset in mid-work"


def logs_met(points: Mapping[str, SeenInLog], logs: Sequence[Log]) -> dict[str, int]:
    """Return for each corner how many runs from a reset meet it; behind the last one there is no reset."""
    return {
        point: sum(seen(log) for log in (logs[:-1] if point == RESET else logs))
        for point, seen in points.items()
    }


# Merger


def merge_points(num_inputs: int) -> dict[str, Seen]:
    """Return the corners of a merger."""
    inputs = [f"i_{n}" for n in range(num_inputs)]

    def taken(result: BenchResult) -> int:
        return sum(len(cycles(result, port)) for port in inputs)

    def turns(_run: Scenario, result: BenchResult) -> bool:
        """The inputs have beats one after the other, the first behind the last."""
        at = np.concatenate([cycles(result, port) for port in inputs])
        whose = np.repeat(np.arange(num_inputs), [len(cycles(result, port)) for port in inputs])
        order = whose[np.argsort(at, kind="stable")].tolist()
        circle = [*range(num_inputs), 0]
        return any(order[n : n + len(circle)] == circle for n in range(len(order)))

    return {
        "all inputs offer and one is taken": lambda run, result: all(
            waits(port)(run, result) for port in inputs
        ),
        "each input in its turn, and the first again": turns,
        "one input alone, eight beats without a gap": lambda run, result: any(
            len(cycles(result, port)) == taken(result) and streak(port, 8)(run, result) for port in inputs
        ),
        "an input that has none": lambda _run, result: (
            taken(result) > 0 and any(not len(cycles(result, port)) for port in inputs)
        ),
        "eight beats out without a gap": streak("o", 8),
        "output stalled": stalled("o"),
        "reset in mid-work": reset_with(lambda _run, result: taken(result) - len(cycles(result, "o"))),
    }


# Channels of programs


def _in_a_row(probe: str, *wanted: RowKind | ColumnKind) -> Seen:
    """Return "commands of these kinds, one directly after the other on their bus"."""
    return kinds(probe, *(kind.value for kind in wanted))


def _same_cycle(_run: Scenario, result: BenchResult) -> bool:
    """A command on either bus in one cycle."""
    return bool(np.intersect1d(result.probes["o_row"][0], result.probes["o_column"][0]).size)


def _starts(run: Scenario) -> list[int]:
    return [cycle for cycle, port, value in run.spec.writes if port == "start" and value]


def _done(result: BenchResult) -> int | None:
    """Return the cycle in which a program was done."""
    at = result.probes["done"][0]
    return int(at[0]) if at.size else None


def _started_again(run: Scenario, result: BenchResult) -> bool:
    done = _done(result)
    return done is not None and any(cycle < done for cycle in _starts(run)[1:])


def _repeats(_run: Scenario, result: BenchResult) -> bool:
    """Two commands of the same word: more commands than words were read."""
    macs = commands(result, "o_column").count(ColumnKind.MAC.value)
    return macs > len(result.probes["prog_en"][0]) > 0


def _at_work(_run: Scenario, result: BenchResult) -> int:
    return 0 if _done(result) is not None else len(result.probes["o_column"][0])


def program_points(*, barrier: bool, secded: bool) -> dict[str, Seen]:
    """Return the corners of a channel of command programs, by its schedule."""
    act, pre, ref = RowKind.ACT, RowKind.PRE, RowKind.REF
    mac, reg = ColumnKind.MAC, ColumnKind.REG
    points = {
        "close and open": _in_a_row("o_row", pre, act),
        "closed, refreshed, opened": _in_a_row("o_row", pre, ref, act),
        "MACs one after the other": _in_a_row("o_column", mac, mac),
        "more MACs than words of the program: loops": _repeats,
        "no refresh": lambda _run, result: (
            RowKind.REF.value not in commands(result, "o_row") and len(result.probes["o_column"][0]) > 0
        ),
        "told to start while it runs": _started_again,
        "results as near to each other as a bank's writes can be": _results_soon,
        "reset in mid-work": reset_with(_at_work),
    }
    if barrier:
        points |= {
            "a program that asks for nothing": lambda _run, result: (
                _done(result) is not None and not len(result.probes["o_column"][0])
            ),
            "a bank read and written beside MACs": lambda _run, result: (
                {mac.value, ColumnKind.RD.value, ColumnKind.WR.value} <= set(commands(result, "o_column"))
            ),
            "a write after a read": _in_a_row("o_column", ColumnKind.RD, ColumnKind.WR),
            "a read after a write": _in_a_row("o_column", ColumnKind.WR, ColumnKind.RD),
        }
    else:
        points |= {
            "a command on both buses in one cycle": _same_cycle,
            "MAC after a register's load": _in_a_row("o_column", reg, mac),
            "a register's load after a MAC": _in_a_row("o_column", mac, reg),
            "the other channel refreshes": lambda _run, result: (
                RowKind.OTHER_REF.value in commands(result, "o_row")
            ),
        }
    if secded:
        points |= {name: pulse(probe) for name, probe in FLIPS.items()}
    return points


FLIPS = {"a word with one flipped bit": "corrected", "a word with two": "uncorrected"}


def _results_soon(run: Scenario, result: BenchResult) -> bool:
    """Results as far apart as two writes one directly after the other on the bus, which is nearest."""
    writes = np.array(commands(result, "o_column"), dtype=np.int64) == ColumnKind.WR.value
    gaps = np.diff(result.probes["o_column"][0])[writes[1:] & writes[:-1]]
    return gaps.size > 0 and bool(np.any(np.diff(cycles(result, "o")) == gaps.min()))


# Layers


def _probe(result: BenchResult, stream: str, what: int) -> NDArray[np.int64]:
    """Return the cycles in which a stream of the probe transfers (0) or waits (1)."""
    return _bit(result, "probe", 2 * PROBE.index(stream) + what)


def _bit(result: BenchResult, probe: str, bit: int) -> NDArray[np.int64]:
    """Return the cycles in which a bit of a probe is 1."""
    at, values = result.probes[probe]
    # Beyond 64 bits a value has several words.
    words = np.asarray(values, dtype=np.uint64).reshape(len(at), -1)
    word, place = divmod(bit, 64)
    if word >= words.shape[1]:
        return at[:0]
    found: NDArray[np.int64] = at[words[:, word] >> np.uint64(place) & np.uint64(1) == 1]
    return found


def _read(name: str, test: Callable[[int], bool]) -> Seen:
    """Return "a register that is read so often under this name shows this"."""

    def seen(run: Scenario, result: BenchResult) -> bool:
        shown = dict(zip(run.reads, result.reads, strict=False))
        return name in shown and test(shown[name])

    return seen


def _error_told(run: Scenario, result: BenchResult) -> bool:
    shown = dict(zip(run.reads, result.reads, strict=False))
    bit = 1 << STATUS_READ_ERROR
    return bool(shown.get("STATUS", 0) & bit) and not shown.get("STATUS after loading", bit) & bit


def _written(register: str, test: Callable[[int], bool]) -> Seen:
    """Return "this was written to a register before tokens came"."""

    def seen(run: Scenario, result: BenchResult) -> bool:
        if not len(cycles(result, "o")):
            return False
        steps = [step for step in run.spec.prologue if isinstance(step, Set) and step.values.get("reg_we")]
        return any(
            step.values["reg_addr"] == REGISTERS[register] and test(step.values["reg_wdata"])
            for step in steps
        )

    return seen


def _tokens_inside(run: Scenario, result: BenchResult) -> int:
    """Return more than 0 where of a run's input beats a larger share is in than of its output beats out."""
    spec = run.spec
    taken, given = len(cycles(result, "i")), len(cycles(result, "o"))
    return taken * spec.sinks["o"].count - given * len(spec.sources["i"].payloads)


LAYER_POINTS: dict[str, Seen] = {
    "a beat waits": waits("i"),
    "beat in and beat out in one cycle": together("i", "o"),
    "an assignment is dropped": _read("dropped", lambda count: count > 0),
    "a capacity that nobody reaches": lambda run, result: (
        _written("CAPACITY", lambda value: value > 0)(run, result)
        and _read("dropped", lambda count: count == 0)(run, result)
    ),
    "the longest queue first": _written("POLICY", lambda value: value & 3 == 1),
    "in the order of the queues": _written("POLICY", lambda value: value & 3 != 1),
    "weights from the upper half of memory": lambda _run, result: any(
        int(address) >> 39 for address in result.memories["o_ar"].ar_addrs
    ),
    "an error of the memory is told, and forgotten when it is loaded again": _error_told,
    "output stalled": stalled("o"),
    "reset in mid-work": reset_with(_tokens_inside),
}
"""The corners of any layer."""

FPGA_LAYER_POINTS: dict[str, Seen] = {
    **LAYER_POINTS,
    "an entry waits for the array": lambda _run, result: _probe(result, "entries", 1).size > 0,
    "an entry and a contribution in one cycle": lambda _run, result: bool(
        np.intersect1d(_probe(result, "entries", 0), _probe(result, "contributions", 0)).size
    ),
    "the array waits for a tile": lambda _run, result: _bit(result, "probe", PROBE_WAIT_TILE).size > 0,
    "a beat of memory while a token comes in": lambda _run, result: bool(
        np.intersect1d(_probe(result, "beats", 0), cycles(result, "i")).size
    ),
}


def pim_layer_points(channels: int) -> dict[str, Seen]:
    """Return the corners of a near-memory layer whose banks hold the router."""
    columns = [f"column_{channel}" for channel in range(channels)]
    per_channel = len(CHANNEL_PROBE)

    def of_channels(what: str) -> list[int]:
        return [per_channel * channel + CHANNEL_PROBE.index(what) for channel in range(channels)]

    def together_in(bits: Sequence[int]) -> Seen:
        def seen(_run: Scenario, result: BenchResult) -> bool:
            at = [_bit(result, "probe_channels", bit) for bit in bits]
            return bool(np.intersect1d(at[0], at[-1]).size)

        return seen

    router = [per_channel * channels + n for n in range(len(ROUTER_PROBE))]
    waits_for_both = router[ROUTER_PROBE.index("entries of both kinds wait")]

    def refreshed(_run: Scenario, result: BenchResult) -> bool:
        return all(BankKind.REF.value in commands(result, f"row_{n}") for n in range(channels))

    return {
        **LAYER_POINTS,
        "a beat of a token and a contribution in one cycle": lambda _run, result: bool(
            np.intersect1d(_probe(result, "tokens", 0), _probe(result, "contributions", 0)).size
        ),
        "commands to both channels in one cycle": lambda _run, result: bool(
            np.intersect1d(result.probes[columns[0]][0], result.probes[columns[-1]][0]).size
        ),
        "a channel's contribution waits for the other's": lambda _run, result: any(
            _bit(result, "probe_channels", bit).size for bit in of_channels("contributions wait")
        ),
        "an entry waits for its channel": lambda _run, result: any(
            _bit(result, "probe_channels", bit).size for bit in of_channels("entries wait")
        ),
        "entries to both channels in one cycle": together_in(of_channels("entries transferred")),
        "an entry of router or expert waits for the other's": lambda _run, result: bool(
            _bit(result, "probe_channels", waits_for_both).size
        ),
        "each channel is refreshed": refreshed,
        "an expert in both channels": _written("PLACE_CHANNELS", lambda value: value == (1 << channels) - 1),
    }


# Registers


def _high_words() -> list[int]:
    return [counter_address(name) + 4 for name in COUNTERS]


def _accesses(log: Log) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the word's address of each cycle and what is shown for it, a cycle later."""
    return log["reg_addr"][:-1] & ~3, log["reg_rdata"][1:]


def _write_of(log: Log, name: str) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = (log["reg_we"] == 1) & (log["reg_addr"] & ~3 == REGISTERS[name])
    return found


def _carried(log: Log) -> bool:
    """A counter's upper word is more than at its last reading."""
    address, shown = _accesses(log)
    return any(
        any(later > before > 0 for before, later in pairwise(shown[address == high]))
        for high in _high_words()
    )


def _fallen(log: Log, *, cleared: bool) -> Iterator[int]:
    """Yield what counters' upper words show where it is less than at the reading before.

    ``cleared``: of the readings between which counters were cleared, else of those between which none was.
    """
    address, shown = _accesses(log)
    clears = np.cumsum(log["clear"])[1:]
    for high in _high_words():
        for one, other in pairwise(np.flatnonzero(address == high)):
            if shown[other] < shown[one] and (clears[one] != clears[other]) == cleared:
                yield int(shown[other])


def _kept_and_read(log: Log) -> bool:
    """What was written to a register is read, later."""
    address, shown = _accesses(log)
    for name in ("IMAGE_PAGE", "CAPACITY", "POLICY", "SCALE_X", "SCALE_H"):
        writes = np.flatnonzero(_write_of(log, name))
        reads = np.flatnonzero(address == REGISTERS[name])
        if not any(
            shown[read] == log["reg_wdata"][write] for write in writes for read in reads[(reads > write)][:1]
        ):
            return False
    return True


def _placed(log: Log) -> bool:
    """An expert is named, then its row is written, then its channels."""
    expert, row, channels = (
        np.flatnonzero(_write_of(log, f"PLACE_{name}")) for name in ("EXPERT", "ROW", "CHANNELS")
    )
    rows = row[row > expert.min(initial=len(log["reg_we"]))]
    return bool(np.any(channels > rows.min(initial=len(log["reg_we"]))))


REGISTER_POINTS: dict[str, SeenInLog] = {
    "a counter carries into its upper word": _carried,
    "a counter is full and goes on from 0": lambda log: any(_fallen(log, cleared=False)),
    "counters are cleared while events come": lambda log: bool([*_fallen(log, cleared=True)]),
    "each register that is read and written shows what was written": _kept_and_read,
    "a register is written and read in one cycle": lambda log: bool(_write_of(log, "CAPACITY").any()),
    "a load and a clear by one write": lambda log: bool(np.any((log["load"] == 1) & (log["clear"] == 1))),
    "an expert's place, then its row, then its channels": _placed,
    "a write of what is only read": lambda log: bool(_write_of(log, "IDENTITY").any()),
    "a read of nothing": lambda log: bool(
        np.any(~np.isin(_accesses(log)[0], [*REGISTERS.values(), *_words_of_counters()]))
    ),
    "the lower bits of an address": lambda log: bool(np.any(log["reg_addr"] & 3)),
    "reset in mid-work": lambda log: bool((log["reg_we"] == 1).any()),
}
"""The corners of the core's registers."""


def _words_of_counters() -> list[int]:
    return [counter_address(name) + half for name in COUNTERS for half in (0, 4)]


# Crossing


def _inside(log: Log) -> NDArray[np.int64]:
    """Return the beats inside before each moment, and at the end."""
    moved = _moves(log, "write").astype(np.int64) - _moves(log, "read")
    return np.concatenate([[0], np.cumsum(moved)])


def _moves(log: Log, side: str) -> NDArray[np.bool_]:
    """Return the moments in which a beat is written or read."""
    moved: NDArray[np.bool_] = (log[side] & log[f"{side}_valid"] & log[f"{side}_ready"]) == 1
    return moved


def crossing_points(depth: int) -> dict[str, SeenInLog]:
    """Return the corners of a crossing."""

    def waited(log: Log, side: str, *, other: bool) -> bool:
        """One side's beat waits at an edge, or would be taken and is not there."""
        valid = log[f"{side}_valid"] == (0 if other else 1)
        ready = log[f"{side}_ready"] == (1 if other else 0)
        return bool(np.any((log[side] == 1) & valid & ready))

    def emptied(log: Log) -> bool:
        inside = _inside(log)
        return bool(np.any((inside[1:] == 0) & (inside[:-1] > 0)))

    def goes_on(log: Log) -> bool:
        """It was full, and a beat was written later."""
        full = np.flatnonzero(_inside(log)[:-1] == depth)
        return full.size > 0 and bool(_moves(log, "write")[full[0] :].any())

    return {
        "full: a beat waits": lambda log: waited(log, "write", other=False),
        "as many beats inside as there is room for": lambda log: bool(np.any(_inside(log) == depth)),
        "written again after it was full": goes_on,
        "the reader waits for a beat": lambda log: waited(log, "read", other=True),
        "empty after beats": emptied,
        "output stalled": lambda log: waited(log, "read", other=False),
        "both clocks rise in one moment and a beat moves on either side": lambda log: bool(
            np.any(_moves(log, "write") & _moves(log, "read"))
        ),
        "more beats than there are places: counts go round": lambda log: (
            int(_moves(log, "write").sum()) > 2 * depth
        ),
        "written while the reader is in its reset": lambda log: bool(
            np.any(_moves(log, "write") & (log["read_runs"] == 0))
        ),
        "reset in mid-work": lambda log: bool(_inside(log)[-1]),
    }
