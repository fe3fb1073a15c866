"""The corners by name: functional cover points of each block, decided by what its ports carried and when.

Payloads and cycles of the streams, responses and pauses of the memory, the cycle of a reset. What a
scenario is called counts for nothing: :func:`corners_met` takes its name away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from golden.image import router_image
from rtl.combine import CombineConfig
from rtl.combine_ordered import OrderedConfig
from rtl.dispatch import DispatchConfig
from rtl.expert import ExpertConfig
from rtl.expert.layouts import EngineConfig
from rtl.gating import token_layout
from rtl.pim import PimConfig
from spec.geometry import GateGeometry
from tests.bench.bfm import BenchResult
from tests.bench.scenarios import Scenario

Seen = Callable[[Scenario, BenchResult], bool]
SLVERR, DECERR = 2, 3


def corners_met(
    points: Mapping[str, Seen], scenarios: Sequence[Scenario], results: Sequence[BenchResult]
) -> dict[str, int]:
    """Return for each corner how many scenarios meet it."""
    pairs = [(replace(run, name=""), result) for run, result in zip(scenarios, results, strict=True)]
    return {point: sum(seen(*pair) for pair in pairs) for point, seen in points.items()}


def not_met(points: Mapping[str, Seen], scenarios: Sequence[Scenario], results) -> list[str]:
    """Return the corners that no scenario meets."""
    return [point for point, count in corners_met(points, scenarios, results).items() if not count]


def field(values: Sequence[int], layout, name: str) -> np.ndarray:
    """Return one field of a stream's payloads."""
    member = layout[name]
    return np.array([int(value) >> member.offset & ((1 << member.width) - 1) for value in values], dtype=int)


def elements(values: Sequence[int], lanes: int) -> np.ndarray:
    """Return the (beats, lanes) bf16 patterns of a stream of tokens."""
    member = token_layout(lanes)["data"]
    beats = [[value >> member.offset + 16 * lane & 0xFFFF for lane in range(lanes)] for value in values]
    return np.array(beats, dtype=int).reshape(-1, lanes)


def fields(run: Scenario, result: BenchResult, port: str, name: str) -> np.ndarray:
    """Return one field of what a stream carried."""
    return field(result.streams[port].integers(), run.ports[port].layout, name)


def cycles(result: BenchResult, port: str) -> np.ndarray:
    """Return the handshake cycles of a stream."""
    return result.streams[port].cycles


def offered(run: Scenario, result: BenchResult, port: str) -> np.ndarray:
    """Return the cycles from which the beats that an input took were offered."""
    taken = cycles(result, port)
    arrivals = np.asarray(run.spec.sources[port].arrivals, dtype=np.int64)[: len(taken)]
    return np.maximum(arrivals, np.concatenate([[0], taken[:-1] + 1]) if len(taken) else taken)


def waits(port: str, least: int = 1) -> Seen:
    """Return "a beat at this input waits for so many cycles"."""

    def seen(run: Scenario, result: BenchResult) -> bool:
        return bool(np.any(cycles(result, port) - offered(run, result, port) >= least))

    return seen


def together(*ports: str) -> Seen:
    """Return "a beat at each of these streams in the same cycle"."""

    def seen(_run: Scenario, result: BenchResult) -> bool:
        common = cycles(result, ports[0])
        for port in ports[1:]:
            common = np.intersect1d(common, cycles(result, port))
        return bool(common.size)

    return seen


def streak(port: str, length: int) -> Seen:
    """Return "so many beats in successive cycles"."""

    def seen(_run: Scenario, result: BenchResult) -> bool:
        at = cycles(result, port)
        return len(at) >= length and bool(np.any(at[length - 1 :] - at[: 1 - length or None] == length - 1))

    return seen


def value(port: str, name: str, test: Callable[[np.ndarray], np.ndarray]) -> Seen:
    """Return "a beat whose field fulfils the test"."""

    def seen(run: Scenario, result: BenchResult) -> bool:
        payloads = result.streams[port].integers()
        return bool(payloads) and bool(np.any(test(field(payloads, run.ports[port].layout, name))))

    return seen


def pulse(probe: str) -> Seen:
    """Return "the event happens"."""
    return lambda _run, result: len(result.probes[probe][0]) > 0


def repeated(port: str, name: str) -> Seen:
    """Return "two successive beats with the same value of a field, in successive cycles"."""

    def seen(run: Scenario, result: BenchResult) -> bool:
        values = field(result.streams[port].integers(), run.ports[port].layout, name)
        at = cycles(result, port)
        return bool(np.any((np.diff(values) == 0) & (np.diff(at) == 1)))

    return seen


def commands(result: BenchResult, probe: str, bits: int = 3) -> list[int]:
    """Return the kinds of the commands on a bus, in order; ``bits``: of a kind."""
    return [int(word) & (1 << bits) - 1 for word in result.probes[probe][1].ravel()]


def kinds(probe: str, *wanted: int, bits: int = 3) -> Seen:
    """Return "commands of these kinds, one directly after the other on their bus"."""

    def seen(_run: Scenario, result: BenchResult) -> bool:
        told, length = commands(result, probe, bits), len(wanted)
        return any(tuple(told[n : n + length]) == wanted for n in range(len(told) - length + 1))

    return seen


def stalled(port: str) -> Seen:
    """Return "a beat waits at this output, valid and not ready, and is taken later"."""

    def seen(_run: Scenario, result: BenchResult) -> bool:
        waiting, taken = result.waiting[port], cycles(result, port)
        return waiting.size > 0 and taken.size > 0 and bool(taken[-1] > waiting[0])

    return seen


def reset_with(inside: Callable[[Scenario, BenchResult], int]) -> Seen:
    """Return "the reset comes while something is inside", which the function counts."""

    def seen(run: Scenario, result: BenchResult) -> bool:
        return result.cycles == run.spec.stop_cycle and inside(run, result) > 0

    return seen


def batches(run: Scenario, result: BenchResult, port: str) -> list[np.ndarray]:
    """Return the experts of the assignments of each whole batch that a stream carried."""
    experts = fields(run, result, port, "expert")
    ends = fields(run, result, port, "last") & fields(run, result, port, "last_token")
    return np.split(experts, np.flatnonzero(ends) + 1)[:-1]


# Dispatch


def entries_inside(config: DispatchConfig, units: int = 1) -> Callable[[Scenario, BenchResult], int]:
    """Return what counts the entries that are owed: of assignments taken, those neither out nor dropped."""

    def inside(run: Scenario, result: BenchResult) -> int:
        taken = len(cycles(result, "i"))
        if config.shared:
            taken += int(fields(run, result, "i", "last").sum())
        out = sum(len(cycles(result, f"o_{unit}")) for unit in range(units))
        return taken - len(result.probes["dropped"][0]) - out

    return inside


def left_out(num_experts: int) -> Seen:
    """Return "an expert has no assignment in a batch that has enough of them for all"."""

    def seen(run: Scenario, result: BenchResult) -> bool:
        return any(
            len(batch) >= num_experts and len(np.unique(batch)) < num_experts
            for batch in batches(run, result, "i")
        )

    return seen


def dispatch_points(config: DispatchConfig) -> dict[str, Seen]:
    """Return the corners of a dispatcher to one unit."""
    alone = config.top_k
    return {
        "both windows full: a beat waits": waits("i", 3),
        "push and pop in one cycle": together("i", "o_0"),
        "push, pop and announcement in one cycle": together("i", "o_0", "o_expect"),
        "an assignment is dropped": pulse("dropped"),
        "a token all of whose assignments are dropped but the shared one": value(
            "o_expect", "count", lambda c: c == 1
        ),
        "two assignments of one expert in successive cycles": repeated("i", "expert"),
        "a job of one entry": value("o_0", "last", lambda last: last == 1),
        "eight entries without a gap": streak("o_0", 8),
        "the shared expert": value("o_0", "expert", lambda e: e == config.num_experts),
        "two batches of one token, one after the other": lambda run, result: any(
            len(first) == len(second) == alone for first, second in pairwise(batches(run, result, "i"))
        ),
        "an expert with none in a batch of enough for all": left_out(config.num_experts),
        "output stalled": stalled("o_0"),
        "reset in mid-work": reset_with(entries_inside(config)),
    }


def dispatch_units_points(config: DispatchConfig) -> dict[str, Seen]:
    """Return the corners of a dispatcher to several units."""
    outs = [f"o_{unit}" for unit in range(config.num_units)]

    def one_expert_in_two(run: Scenario, result: BenchResult) -> bool:
        chosen = [set(fields(run, result, out, "expert").tolist()) for out in outs]
        return any(one & other for one, other in pairwise(chosen))

    return {
        "both windows full: a beat waits": waits("i", 3),
        "entries to two units in one cycle": together(*outs[:2]),
        "entries to all units in one cycle": together(*outs),
        "push, pop and announcement in one cycle": together("i", outs[0], "o_expect"),
        "an assignment is dropped": pulse("dropped"),
        "an expert's entries in two units": one_expert_in_two,
        "a unit that gets none beside one that does": lambda _run, result: (
            0 in (counts := [len(cycles(result, out)) for out in outs]) and any(counts)
        ),
        "four entries of a unit without a gap": lambda run, result: any(
            streak(out, 4)(run, result) for out in outs
        ),
        "each output stalled": lambda run, result: all(stalled(out)(run, result) for out in outs),
        "reset in mid-work": reset_with(entries_inside(config, config.num_units)),
    }


# Combine


def contributions_inside(run: Scenario, result: BenchResult) -> int:
    """Count the contributions begun whose tokens are not wholly out."""
    done = int(fields(run, result, "o", "token_last").sum())
    begun = np.count_nonzero(fields(run, result, "i", "word") == 0)
    return int(begun - fields(run, result, "i_expect", "count")[:done].sum())


def combine_points(config: CombineConfig) -> dict[str, Seen]:
    """Return the corners of a combiner."""
    return {
        "a beat waits for one of the same slot and word": waits("i"),
        **_combiner_points(config),
    }


def ordered_points(config: OrderedConfig) -> dict[str, Seen]:
    """Return the corners of a combiner that adds in a token's order, whose input never waits."""

    def other_order(run: Scenario, result: BenchResult) -> bool:
        slot, rank = (fields(run, result, "i", name) for name in ("slot", "rank"))
        return any(bool(np.any(np.diff(rank[slot == one]) < 0)) for one in np.unique(slot))

    return {"contributions in another order than they are added": other_order, **_combiner_points(config)}


def _combiner_points(config: CombineConfig | OrderedConfig) -> dict[str, Seen]:
    return {
        "beat in and beat out in one cycle": together("i", "o"),
        "beat in, announcement and beat out in one cycle": together("i", "i_expect", "o"),
        "a token without contributions": value("i_expect", "count", lambda c: c == 0),
        "a token with all contributions": value("i_expect", "count", lambda c: c == config.max_count),
        "tokens without a gap": streak("o", 4),
        "end of a batch": value("o", "last", lambda last: last == 1),
        "output stalled": stalled("o"),
        "reset in mid-work": reset_with(contributions_inside),
    }


# Gate

FIRST_CHOICES = 4
"""Tokens that all choose one expert first, at least."""


def places_of(geometry: GateGeometry) -> list[np.ndarray]:
    """Return for each expert where its row and its biases lie in the image of a router."""
    num_experts, found = geometry.gating.num_experts, []
    for expert in range(num_experts):
        router = np.zeros((num_experts, geometry.d_model), dtype=np.uint16)
        bias = np.zeros(num_experts, dtype=np.float32)
        router[expert], bias[expert] = 1, -1.2345  # both halves of its 32 bits are other than 0
        found.append(np.flatnonzero(router_image(geometry, router, bias, bias)))
    return found


class Tokens:
    """What a gate took and gave: tokens that came out, whole images of routers and when they were there."""

    def __init__(self, geometry: GateGeometry, run: Scenario, result: BenchResult) -> None:
        self.ends = np.flatnonzero(fields(run, result, "o", "last"))
        experts = fields(run, result, "o", "expert")
        self.chosen = experts[: len(self.ends) * geometry.gating.top_k].reshape(-1, geometry.gating.top_k)
        lanes = geometry.stream_lanes
        taken = elements(result.streams["i"].integers(), lanes).ravel()
        self.elements = taken[: len(self.ends) * geometry.input_beats * lanes]
        self.elements = self.elements.reshape(-1, geometry.input_beats * lanes)[:, : geometry.d_model]
        # A load begins with ``load_start``, whatever came of the one before.
        at, words = cycles(result, "i_load"), result.streams["i_load"].integers()
        starts = [cycle for cycle, port, value in run.spec.writes if port == "load_start" and value]
        places = np.split(np.arange(len(at)), np.searchsorted(at, starts, side="right"))
        whole = [place for place in places if len(place) == geometry.load_beats]
        self.loaded = [int(at[place[-1]]) for place in whole]
        self.images = [
            np.frombuffer(
                b"".join(words[n].to_bytes(2 * geometry.load_elements, "little") for n in place), "<u2"
            )
            for place in whole
        ]


def tie(geometry: GateGeometry) -> Seen:
    """Return "of two experts of a group whose rows and biases are equal a token chooses one alone"."""
    places, size = places_of(geometry), geometry.experts_per_group

    def seen(run: Scenario, result: BenchResult) -> bool:
        tokens = Tokens(geometry, run, result)
        if len(tokens.images) != 1:
            return False
        rows = [tokens.images[0][place].tolist() for place in places]
        return any(
            expert in chosen and other not in chosen and rows[expert] == rows[other]
            for chosen in tokens.chosen.tolist()
            for expert in chosen
            for other in range(expert // size * size, (expert // size + 1) * size)
        )

    return seen


def gating_points(geometry: GateGeometry) -> dict[str, Seen]:
    """Return the corners of a gate."""
    num_experts, per = geometry.gating.num_experts, geometry.input_beats

    def to_one(run: Scenario, result: BenchResult) -> bool:
        first = Tokens(geometry, run, result).chosen[:, :1]
        return len(first) >= FIRST_CHOICES and len(np.unique(first)) == 1

    def unchosen(run: Scenario, result: BenchResult) -> bool:
        chosen = Tokens(geometry, run, result).chosen
        return chosen.size >= num_experts and len(np.unique(chosen)) < num_experts

    def special(run: Scenario, result: BenchResult) -> bool:
        return {"NaN", "infinity"} <= kinds_of(Tokens(geometry, run, result).elements)

    def any_pattern(run: Scenario, result: BenchResult) -> bool:
        patterns = Tokens(geometry, run, result).elements
        return len(np.unique(patterns >> 11)) == 1 << 5  # sign and upper half of the exponent

    def second_router(run: Scenario, result: BenchResult) -> bool:
        tokens, out = Tokens(geometry, run, result), cycles(result, "o")
        return any(
            not np.array_equal(*images) and np.any((out > one) & (out < other)) and np.any(out > other)
            for images, (one, other) in zip(pairwise(tokens.images), pairwise(tokens.loaded), strict=True)
        )

    def early(run: Scenario, result: BenchResult) -> bool:
        loaded = Tokens(geometry, run, result).loaded
        at = offered(run, result, "i")
        return bool(loaded) and len(at) > 0 and len(cycles(result, "o")) > 0 and bool(at[0] < loaded[0])

    def inside(run: Scenario, result: BenchResult) -> int:
        return len(cycles(result, "i")) - per * len(Tokens(geometry, run, result).ends)

    return {
        "a tie decides": tie(geometry),
        "every token to one expert": to_one,
        "an expert that nobody chooses": unchosen,
        "NaN and infinities": special,
        "any pattern: all signs and upper halves of exponents": any_pattern,
        "a beat waits": waits("i"),
        "a token in while another one goes out": together("i", "o"),
        "a second router": second_router,
        "tokens before the router": early,
        "output stalled": stalled("o"),
        "reset in mid-work": reset_with(inside),
    }


# Experts


def kinds_of(patterns: np.ndarray) -> set[str]:
    """Return which of NaN, infinity, subnormal and largest are among bf16 patterns."""
    exponent, fraction = patterns >> 7 & 0xFF, patterns & 0x7F
    found = {
        "NaN": (exponent == 0xFF) & (fraction != 0),
        "infinity": (exponent == 0xFF) & (fraction == 0),
        "subnormal": (exponent == 0) & (fraction != 0),
        "largest": (exponent == 0xFE) & (fraction == 0x7F),
    }
    return {kind for kind, there in found.items() if np.any(there)}


def extremes(config: EngineConfig) -> Seen:
    """Return "the tokens of the entries hold NaN, infinities, subnormals and largest numbers"."""

    def seen(run: Scenario, result: BenchResult) -> bool:
        done = int(fields(run, result, "o", "last").sum())
        used = np.unique(fields(run, result, "i", "slot")[:done])
        taken = elements(result.streams["i_token"].integers(), config.stream_lanes)
        tokens = taken.reshape(config.num_slots, -1)[used, : config.d_model] if used.size else taken[:0]
        return len(kinds_of(tokens)) == 4

    return seen


def results_inside(run: Scenario, result: BenchResult) -> int:
    """Count the entries taken whose results are not wholly out."""
    return len(cycles(result, "i")) - int(fields(run, result, "o", "last").sum())


def jobs_of(run: Scenario, result: BenchResult) -> list[int]:
    """Return the entries of each whole job."""
    ends = np.flatnonzero(fields(run, result, "i", "last"))
    return np.diff(ends, prepend=-1).tolist()


def engine_points(config: EngineConfig) -> dict[str, Seen]:
    """Return the corners that an engine and a channel share."""
    return {
        "both job lists full: an entry waits": waits("i", 3),
        "entry in and result out in one cycle": together("i", "o"),
        "NaN, infinities, subnormals and the largest among an entry's token": extremes(config),
        "output stalled": stalled("o"),
        "reset in mid-work": reset_with(results_inside),
    }


def expert_points(config: ExpertConfig) -> dict[str, Seen]:
    """Return the corners of an array's engine."""

    def errors(run: Scenario, result: BenchResult) -> bool:
        responses = run.spec.memories["o_ar"].responses
        taken = len(result.memories["o_ar"].r_cycles)
        return responses is not None and {SLVERR, DECERR} <= set(np.resize(responses, taken).tolist())

    def gaps(run: Scenario, result: BenchResult) -> bool:
        """A beat of a burst is not there when the one before it is taken."""
        taken, pauses = result.memories["o_ar"].r_cycles, run.spec.memories["o_ar"].gaps
        if pauses is None or len(taken) < 2:
            return False
        within = np.arange(1, len(taken)) % config.burst_beats != 0
        return bool(np.any(within & (np.resize(pauses, len(taken) - 1) > 0) & (np.diff(taken) > 1)))

    def to_one(run: Scenario, result: BenchResult) -> bool:
        slots, experts = (fields(run, result, "i", name) for name in ("slot", "expert"))
        return len(np.unique(experts)) == 1 and len(np.unique(slots)) == config.num_slots

    return {
        **engine_points(config),
        "memory with errors of both kinds": errors,
        "memory with gaps in a burst": gaps,
        "an error is told": pulse("read_error"),
        "all tokens to one expert": to_one,
    }


ACT, PRE, PRE_ALL, REF = 1, 2, 3, 4
MAC, WRITE, READ = 1, 2, 3


def pim_points(config: PimConfig) -> dict[str, Seen]:
    """Return the corners of a near-memory channel."""
    return {
        "refresh while a row is in use": kinds("o_row", PRE_ALL, REF),
        "refresh with all rows closed": kinds("o_row", PRE, REF),
        "a row opened again after a refresh": kinds("o_row", REF, ACT),
        "close and open": kinds("o_row", PRE, ACT),
        "MAC after a write": kinds("o_column", WRITE, MAC, bits=2),
        "MAC after a read": kinds("o_column", READ, MAC, bits=2),
        "read after a MAC": kinds("o_column", MAC, READ, bits=2),
        "write after a read": kinds("o_column", READ, WRITE, bits=2),
        "a group that is not full": lambda run, result: any(
            entries % config.group_tokens for entries in jobs_of(run, result)
        ),
        **engine_points(config),
    }
