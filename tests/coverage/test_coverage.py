"""The reader of coverage.dat, and cover points that a run can miss, whatever it is called."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from sim.rtlsim import MemoryTrace, RunSpec, Sink, Source, Trace
from tests.bench import test_combine_bench as combine
from tests.bench import test_dispatch_bench as dispatch
from tests.bench import test_expert_bench as expert
from tests.bench import test_gating_bench as gating
from tests.bench import test_pim_bench as pim
from tests.bench.bfm import BenchResult
from tests.bench.scenarios import EXTREMES, Expected, Scenario, Traffic
from tests.coverage.dat import read
from tests.coverage.points import corners_met, not_met, stalled, streak, together, waits
from tests.coverage.run import EXPERT, GATE, PIM, POINTS, Covered, page

DAT = (
    "# SystemC::Coverage-3\n"
    "C '\x01f\x02a.v\x01l\x027\x01n\x023\x01page\x02v_line/top\x01o\x02if\x01h\x02top.x' 0\n"
    "C '\x01f\x02a.v\x01l\x027\x01n\x023\x01page\x02v_line/top\x01o\x02if\x01h\x02top.y' 5\n"
    "C '\x01f\x02a.v\x01l\x029\x01n\x023\x01page\x02v_toggle/top\x01o\x02q[0]:0->1\x01h\x02top.x' 0\n"
)


def test_instances_of_a_module_are_one_point(tmp_path):
    (tmp_path / "coverage.dat").write_text(DAT)
    counts = read([tmp_path / "coverage.dat"])
    assert (counts["line"].hit, counts["line"].total) == (1, 1)
    assert counts["toggle"].missed == ["top:9:3:q[0]:0->1"]


def result_of(*, waiting=(), **streams) -> SimpleNamespace:
    return SimpleNamespace(
        streams={
            name: Trace(np.array(cycles, dtype=np.int64), np.zeros((len(cycles), 1), dtype=np.uint64))
            for name, cycles in streams.items()
        },
        waiting={"o": np.array(waiting, dtype=np.int64)},
    )


def test_points_tell_runs_apart():
    run = Scenario("any", RunSpec(sources={"i": Source([0, 0, 0], [0, 1, 5])}))
    assert not waits("i")(run, result_of(i=[0, 1, 5]))
    assert waits("i")(run, result_of(i=[0, 1, 6]))
    assert not waits("i", 2)(run, result_of(i=[0, 1, 6]))
    assert together("i", "o")(run, result_of(i=[0, 1, 5], o=[5]))
    assert not together("i", "o")(run, result_of(i=[0, 1, 5], o=[2]))
    assert streak("i", 2)(run, result_of(i=[0, 1, 5]))
    assert not streak("i", 3)(run, result_of(i=[0, 1, 5]))


def test_an_output_is_stalled_where_a_beat_waits_and_not_where_the_sink_only_could():
    run = Scenario("output stalled", RunSpec(sinks={"o": Sink(2, [0, 1])}))
    assert not stalled("o")(run, result_of(o=[1, 3]))
    assert not stalled("o")(run, result_of(o=[1, 3], waiting=[4]))
    assert stalled("o")(run, result_of(o=[1, 3], waiting=[2]))


def test_page_counts_what_was_met():
    text = page([Covered("dispatch", 3, {}, {"a": 2, "b": 0}, 1.0)], "abc")
    assert "| dispatch | 3 |" in text and "| 1 of 2 | 1 | abc |" in text and "a (2); b (0)" in text


def test_rows_of_other_blocks_stay_on_the_page():
    first = page([Covered(name, 3, {}, {"a": 2}, 1.0) for name in ("gate_axi", "dispatch")], "abc")
    both = page([Covered("dispatch", 4, {}, {"b": 5}, 1.0)], "def", first)
    assert "2 blocks and tops" in both
    assert "| gate_axi | 3 |" in both and "**gate_axi**: a (2)." in both
    assert "| dispatch | 4 |" in both and "**dispatch**: b (5)." in both and "| dispatch | 3 |" not in both
    assert page([], "ghi", both) == both


def test_every_block_has_a_reset_among_its_corners():
    assert all("reset in mid-work" in points for points in POINTS.values())


def test_a_name_is_no_evidence():
    """A point that asks for the scenario's name is never met."""
    run = Scenario("reset in the middle of random", RunSpec())
    points = {"named": lambda run, _result: "reset" in run.name, "any": lambda _run, _result: True}
    assert corners_met(points, [run], [None]) == {"named": 0, "any": 1}
    assert not_met(points, [run], [None]) == ["named"]


def traffic(seed: int = 1) -> Traffic:
    return Traffic("none", "none", np.random.default_rng(seed))


def ideal(run: Scenario, *, later: int = 0) -> BenchResult:
    """Return what a run shows where it does what golden and the model say, up to the reset if there is one.

    ``later``: cycles lost before each beat of the memory.
    """
    stop = run.spec.stop_cycle
    ends = []

    def trace(name: str, wanted: Expected) -> Trace:
        payloads = [int(payload) for payload in wanted.payloads]
        at = wanted.cycles
        if at is None:
            source = run.spec.sources.get(name)
            at = np.arange(len(payloads)) if source is None else source.arrivals
        at = np.asarray(at, dtype=np.int64)
        ends.append(at[-1] + 1 if at.size else 0)
        at = at if stop is None else at[at < stop]
        raw = b"".join(payload.to_bytes(32, "little") for payload in payloads[: len(at)])
        return Trace(at, np.frombuffer(raw, dtype="<u8").reshape(-1, 4))

    streams = {
        name: trace(name, run.ports[name])
        for name in (*run.spec.sources, *run.spec.sinks)
        if name in run.ports
    }
    beats = np.asarray(run.ports["i_r"].cycles) if "i_r" in run.ports else np.zeros(0, dtype=np.int64)
    beats = beats + later * np.arange(len(beats))
    empty = (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint64))
    return BenchResult(
        cycles=int(max(ends)) if stop is None else min(stop, int(max(ends))),
        since_reset=0,
        streams=streams,
        memories={"o_ar": MemoryTrace(empty[0], empty[1], beats)},
        probes={name: (np.zeros(count, dtype=np.int64), empty[1]) for name, count in run.pulses.items()},
        reads=[],
        timeout=None,
        violations=[],
        cycles_per_second=0,
        zero_ns=0,
    )


def dispatched(ids, **settings) -> Scenario:
    return dispatch.scenario("", dispatch.corner(ids, **settings), traffic())


def gated(load, *more, seed: int = 1, **settings) -> Scenario:
    """Return the run of the load of this kind, twelve tokens of it or fewer, and of more of them."""
    under = traffic(seed)
    loads = [kind(GATE, under.rng) for kind in (load, *more)]
    return gating.scenario("", GATE, loads, under, **settings)


def random_tokens(geometry, rng) -> gating.Load:
    """As a random load, and so many tokens that each expert is somebody's."""
    load = gating.random_load(geometry, rng)
    tokens = rng.standard_normal((48, geometry.d_model)).astype(np.float32)
    return gating.Load(load.router, 0 * load.bias, (tokens.view(np.uint32) >> 16).astype(np.uint16))


def patterns(geometry, rng) -> gating.Load:
    """So many tokens of any pattern that each kind of it is there."""
    load = random_tokens(geometry, rng)
    return replace(load, tokens=rng.integers(0, 1 << 16, load.tokens.shape, dtype=np.uint16))


def limits(geometry, rng) -> gating.Load:
    """NaN and infinities."""
    load = random_tokens(geometry, rng)
    return replace(load, tokens=rng.choice(EXTREMES, load.tokens.shape))


def infinities(geometry, rng) -> gating.Load:
    load = random_tokens(geometry, rng)
    return replace(load, tokens=rng.choice(EXTREMES[:-1], load.tokens.shape))


def router_of_limits(geometry, rng) -> gating.Load:
    """The same in the router alone, of which the tokens know nothing."""
    load = random_tokens(geometry, rng)
    return replace(load, router=rng.choice(EXTREMES, load.router.shape))


def engine(jobs, values=expert.normal, seed: int = 1) -> Scenario:
    under = traffic(seed)
    return expert.scenario("", EXPERT, expert.load_of(EXPERT, under.rng, jobs, values), under)


def channel(jobs, values=expert.normal, seed: int = 1) -> Scenario:
    under = traffic(seed)
    return pim.scenario("", PIM, expert.load_of(PIM, under.rng, jobs, values), under)


def combined(counts) -> Scenario:
    return combine.scenario("", counts, combine.ORDERS[0], "normal", traffic())


def of_memory(**settings) -> Scenario:
    """Return a run of the engine whose memory is so."""
    run = engine(EVERYBODY)
    memory = replace(run.spec.memories["o_ar"], **settings)
    return replace(run, spec=replace(run.spec, memories={"o_ar": memory}))


EVERYBODY = [(1, [0, 1, 2, 3]), (1, [4, 5, 6, 7])]
TWO = [(0, [0, 1, 2, 3]), (1, [4, 5, 6, 7])]
NONE = "an expert with none in a batch of enough for all"
LIMITS = "NaN, infinities, subnormals and the largest among an entry's token"
# The corner, runs that meet it, and runs that do not and could be called so.
CORNERS = [
    (
        "dispatch",
        "two batches of one token, one after the other",
        lambda: [dispatched([[0, 1], [1, 2], [3, 1]], batches=[1] * 3)],
        lambda: [
            dispatched([[0, 1], [1, 2], [3, 1]], batches=[1, 2]),
            dispatched([[0, 1], [1, 2], [3, 1]], batches=[3]),
        ],
    ),
    (
        "dispatch",
        NONE,
        lambda: [dispatched([[0, 4]] * 3), dispatched([[0, 4]] * 3 + [[1, 2], [2, 3]] * 2, batches=[3, 4])],
        # Nobody is left out, of one batch or of each; too few to choose all.
        lambda: [
            dispatched([[0, 1], [2, 3], [4, 0]]),
            dispatched([[0, 1], [2, 3], [4, 0]] * 2, batches=[3, 3]),
            dispatched([[0, 4]] * 2),
        ],
    ),
    (
        "gating_sigmoid",
        "a tie decides",
        lambda: [gated(gating.all_equal), gated(gating.ties, seed=2)],
        lambda: [gated(random_tokens)],
    ),
    (
        "gating_sigmoid",
        "every token to one expert",
        lambda: [gated(gating.all_to_one, seed=2)],
        lambda: [gated(random_tokens)],
    ),
    (
        "gating_sigmoid",
        "an expert that nobody chooses",
        lambda: [gated(gating.never_chosen, seed=2)],
        lambda: [gated(random_tokens)],
    ),
    (
        "gating_sigmoid",
        "NaN and infinities",
        lambda: [gated(limits)],
        lambda: [gated(random_tokens), gated(infinities), gated(router_of_limits)],
    ),
    (
        "gating_sigmoid",
        "any pattern: all signs and upper halves of exponents",
        lambda: [gated(patterns)],
        lambda: [gated(random_tokens), gated(limits)],
    ),
    (
        "gating_sigmoid",
        "a second router",
        lambda: [gated(random_tokens, random_tokens)],
        lambda: [
            gated(random_tokens),
            gated(random_tokens, begun=[3]),
            gating.scenario("", GATE, [gating.random_load(GATE, np.random.default_rng(1))] * 2, traffic()),
        ],
    ),
    (
        "gating_sigmoid",
        "tokens before the router",
        lambda: [gated(random_tokens, early=True)],
        lambda: [gated(random_tokens)],
    ),
    (
        "expert_relu",
        "memory with errors of both kinds",
        lambda: [of_memory(responses=[0, 3, 0, 2])],
        lambda: [of_memory(), of_memory(responses=[0]), of_memory(responses=[0, 2])],
    ),
    (
        "expert_relu",
        "all tokens to one expert",
        lambda: [engine(EVERYBODY)],
        lambda: [engine(TWO), engine(EVERYBODY[:1])],
    ),
    (
        "expert_relu",
        LIMITS,
        lambda: [engine(EVERYBODY, expert.extreme, seed=2)],
        lambda: [engine(EVERYBODY), engine([(1, [0])], expert.extreme, seed=2)],
    ),
    (
        "pim_bank",
        LIMITS,
        lambda: [channel(EVERYBODY, expert.extreme, seed=2)],
        lambda: [channel(EVERYBODY), channel([(1, [0])], expert.extreme, seed=2)],
    ),
    (
        "pim_bank",
        "a group that is not full",
        lambda: [channel([(0, [1, 4, 6])])],
        lambda: [channel([(0, [1, 4]), (1, [0, 6])])],
    ),
]


@pytest.mark.parametrize(("block", "point", "meeting", "missing"), CORNERS, ids=[c[1][:24] for c in CORNERS])
def test_a_corner_is_decided_by_what_the_ports_carry(block, point, meeting, missing):
    seen = POINTS[block][point]
    for run in meeting():
        assert seen(run, ideal(run))
    for run in missing():
        assert not seen(run, ideal(run))


def test_memory_has_gaps_where_a_beat_of_a_burst_comes_late():
    seen = POINTS["expert_relu"]["memory with gaps in a burst"]
    late, between = of_memory(gaps=[1]), of_memory(gaps=[0, 1])
    assert seen(late, ideal(late, later=1))
    assert not seen(late, ideal(late))
    # Behind each burst of two; and not by the memory.
    assert not seen(between, ideal(between, later=1))
    assert not seen(of_memory(), ideal(of_memory(), later=1))


@pytest.mark.parametrize(
    ("block", "run"),
    [
        ("dispatch", lambda: dispatched([[0, 1], [1, 2], [3, 1]] * 3)),
        ("combine", lambda: combined([2, 0, 1, 3])),
        ("gating_sigmoid", lambda: gated(random_tokens)),
        ("expert_relu", lambda: engine(TWO)),
        ("pim_bank", lambda: channel(TWO)),
    ],
)
def test_a_reset_is_in_mid_work_where_something_is_inside(block, run):
    seen, whole = POINTS[block]["reset in mid-work"], run()
    inputs = np.asarray(whole.ports["i"].cycles)
    out = int(max(np.asarray(whole.ports[name].cycles)[-1] for name in whole.spec.sinks))

    def at(stop: int) -> bool:
        cut = replace(whole, spec=replace(whole.spec, stop_cycle=stop))
        return seen(cut, ideal(cut))

    # Nothing has come yet; the first beat has; the last one has not left; all have.
    first = int(inputs[0])
    assert not seen(whole, ideal(whole))
    assert not first or not at(first)
    assert at(first + 1) and at(out)
    assert not at(out + 1)
