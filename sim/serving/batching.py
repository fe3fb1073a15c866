"""Continuous batching as a compiled loop over steps: who is in a step, how long it takes, who is done.

Each step serves requests that are running, in the order in which they were let in:

* ``chunked``: a token of each that decodes, then prompts, first come first served, up to ``step_tokens``;
* ``prefill-first``: while prompts wait, whole ones of them and nothing else (one that is longer than a step
  alone, in pieces); else a token of each that decodes.

A request is let in when it has arrived, fewer than ``max_batch`` run, and the tokens it will ever hold fit
``kv_tokens`` beside those of the others, so that none is ever evicted; nobody overtakes. One that would never
fit is refused. A prompt's last step gives the first token.

A step's tokens lie on a system's devices as :mod:`sim.system` has them: in the order of the requests, in even
shares. A prompt's tokens may be on several of them, each of which reads all that the request holds. The one
that takes longest gives the time of attention.

Time does not wait for what is read from a trace: the loop stops when it would have to know whether the next
request has come, so that only requests that have arrived and are not yet let in are held.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sim.serving.requests import Requests

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

BINS = 4096
"""Of time; a run that is longer has them twice as wide, again and again."""
FIRST_BIN_S = 1.0
FINE = 1.01
"""Ratio of a latency histogram's neighbouring edges: a percentile is off by half a percent at most."""
UNLIMITED = 1 << 60
"""Tokens of a memory without end."""
LEAST_S = 1e-7
LEVELS = 4096
LATENCIES = ("wait", "ttft", "tpot", "between", "e2e")
SUMS = ("tokens", "batch_s", "busy_s", "arrived", "admitted", "done", "joules", "steps", "served", "dropped")
"""What is added up for each bin of time: ``tokens`` that were given out, ``served`` tokens of steps, prompts'
too, ``batch_s``, requests in a step times its seconds, ``dropped`` assignments. ``batch_s`` and ``busy_s``
are in the bins in which a step ran, the others of a step in the one where it ends."""


class Order(IntEnum):
    """What a step serves; the last two are the halves of a split service."""

    CHUNKED = 0
    PREFILL_FIRST = 1
    PREFILL_ONLY = 2
    DECODE_ONLY = 3


@dataclass(frozen=True)
class Limits:
    """What fits a step and the memory: requests, tokens of a step, tokens whose keys and values are held."""

    max_batch: int
    step_tokens: int
    kv_tokens: int

    def as_json(self) -> dict[str, int | None]:
        """Return them by their names; None for a memory without end."""
        kv_tokens = None if self.kv_tokens >= UNLIMITED else self.kv_tokens
        return {"max_batch": self.max_batch, "step_tokens": self.step_tokens, "kv_tokens": kv_tokens}


@dataclass(frozen=True)
class StepCosts:
    """How long a step takes and what it costs, as the loop reads it (:mod:`sim.serving.steps`).

    Attributes
    ----------
    grid : (n,) tokens of a step, ascending from 1.
    seconds, joules : (draws, n), without attention's products; between two, in proportion. NaN: not known.
    attention : host's and near engine's bytes and operations per second, bytes of a token's keys and values,
        operations of a pair of tokens, layers, devices, joules of a byte and an operation on either; place:
        0 host, 1 near, 2 the faster.
    dropped : (draws, n) assignments of a step that find no place, of all layers; None: none.
    """

    grid: FloatArray
    seconds: FloatArray
    joules: FloatArray
    attention: FloatArray
    dropped: FloatArray | None = None


@dataclass
class Finished:
    """Requests in the order in which they ended: times (n,), tokens (n,)."""

    arrival_s: FloatArray
    first_s: FloatArray
    end_s: FloatArray
    prompt: IntArray
    output: IntArray

    def only(self, kept: NDArray[np.bool_]) -> Finished:
        """Return some of them."""
        times = (self.arrival_s[kept], self.first_s[kept], self.end_s[kept])
        return Finished(*times, self.prompt[kept], self.output[kept])


@dataclass
class Server:
    """One batcher and its state; :meth:`push` gives it requests.

    Attributes
    ----------
    now_s : the end of the last step.
    histograms : (latencies, levels) counts; ``sums``, ``most`` : of the latencies themselves.
    bins : (sums, BINS), ``width_s`` : their width.
    """

    costs: StepCosts
    limits: Limits
    order: Order
    histograms: IntArray = field(default_factory=lambda: np.zeros((len(LATENCIES), LEVELS), np.int64))
    sums: FloatArray = field(default_factory=lambda: np.zeros(len(LATENCIES)))
    most: FloatArray = field(default_factory=lambda: np.zeros(len(LATENCIES)))
    bins: FloatArray = field(default_factory=lambda: np.zeros((len(SUMS), BINS)))

    def __post_init__(self) -> None:
        size = self.limits.max_batch
        # Prompt tokens to come, tokens held, outputs to come, prompt, output; arrival, first and last token.
        self._running = np.zeros((5, size), np.int64)
        self._times = np.zeros((3, size))
        # Now, width of a bin.
        self._clock = np.array([0.0, FIRST_BIN_S])
        # Running, tokens reserved, steps, refused, finished, most waiting.
        self._counts = np.zeros(6, np.int64)
        self._left = _nothing()

    @property
    def now_s(self) -> float:
        """The end of the last step."""
        return float(self._clock[0])

    @property
    def width_s(self) -> float:
        """Width of a bin of time."""
        return float(self._clock[1])

    @property
    def steps(self) -> int:
        """Steps that were run."""
        return int(self._counts[2])

    @property
    def refused(self) -> int:
        """Requests that the memory can never hold."""
        return int(self._counts[3])

    @property
    def running(self) -> int:
        """Requests that are let in and not done."""
        return int(self._counts[0])

    def push(self, come: Arrivals | None) -> Finished:
        """Let time go on as far as the requests known allow, to the end with None; return what is done."""
        queue = self._left if come is None else _joined(self._left, come)
        arrived = 0 if come is None else len(come.arrival_s)
        room = len(queue.arrival_s) + self.limits.max_batch
        done_times, done_tokens = np.zeros((3, room)), np.zeros((2, room), np.int64)
        costs = self.costs
        dropped = np.zeros_like(costs.seconds) if costs.dropped is None else costs.dropped
        taken, done = _run(
            (queue.arrival_s, queue.origin_s, queue.first_s, queue.prompt, queue.output),
            len(queue.arrival_s) - arrived,
            come is not None,
            int(self.order),
            (self.limits.max_batch, self.limits.step_tokens, self.limits.kv_tokens),
            (costs.grid, costs.seconds, costs.joules, costs.attention, dropped),
            self._running,
            self._times,
            self._clock,
            self._counts,
            (self.histograms, self.sums, self.most, self.bins),
            (done_times, done_tokens),
        )
        self._left = queue.behind(taken)
        return Finished(*done_times[:, :done].copy(), *done_tokens[:, :done].copy())


@dataclass(frozen=True)
class Arrivals:
    """Requests as they reach a server.

    Attributes
    ----------
    arrival_s : when they reach it; ``origin_s`` when they first came.
    first_s : when they got their first token, NaN without one.
    prompt, output : tokens.
    """

    arrival_s: FloatArray
    origin_s: FloatArray
    first_s: FloatArray
    prompt: IntArray
    output: IntArray

    @staticmethod
    def of(requests: Requests) -> Arrivals:
        """Return requests that nobody has served yet."""
        none = np.full(len(requests), np.nan)
        return Arrivals(requests.arrival_s, requests.arrival_s, none, requests.prompt, requests.output)

    def behind(self, taken: int) -> Arrivals:
        """Return all but the first ones."""
        times = (self.arrival_s[taken:], self.origin_s[taken:], self.first_s[taken:])
        return Arrivals(*times, self.prompt[taken:], self.output[taken:])


def _nothing() -> Arrivals:
    none = np.zeros(0)
    return Arrivals(none, none, none, np.zeros(0, np.int64), np.zeros(0, np.int64))


def _joined(left: Arrivals, come: Arrivals) -> Arrivals:
    def joined(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(left, name), getattr(come, name)])

    return Arrivals(*map(joined, ("arrival_s", "origin_s", "first_s", "prompt", "output")))


def level_seconds(levels: NDArray[np.int64]) -> FloatArray:
    """Return the middles of a histogram's levels."""
    middles: FloatArray = np.where(levels == 0, 0.0, LEAST_S * FINE ** (levels - 0.5))
    return middles


@njit(cache=True)
def _fold(clock: FloatArray, bins: FloatArray) -> None:
    """Make bins of time twice as wide."""
    half = bins.shape[1] // 2
    for row in range(bins.shape[0]):
        for n in range(half):
            bins[row, n] = bins[row, 2 * n] + bins[row, 2 * n + 1]
        bins[row, half:] = 0.0
    clock[1] *= 2


@njit(cache=True)
def _bin(second: float, clock: FloatArray, bins: FloatArray) -> int:
    while second >= clock[1] * bins.shape[1]:
        _fold(clock, bins)
    return int(second / clock[1])


@njit(cache=True)
def _note(kind: int, seconds: float, histograms: IntArray, sums: FloatArray, most: FloatArray) -> None:
    level = 0
    if seconds > LEAST_S:
        level = min(LEVELS - 1, 1 + int(np.log(seconds / LEAST_S) / np.log(FINE)))
    histograms[kind, level] += 1
    sums[kind] += seconds
    most[kind] = max(most[kind], seconds)


@njit(cache=True)
def _spread(begin: float, spent: float, value: float, width: float, place: int, row: FloatArray) -> None:
    """Add ``value`` for each second of a step to the bins in which it ran; it ends in that at ``place``."""
    left = spent
    for n in range(int(begin / width), place):
        part = min(left, (n + 1) * width - max(begin, n * width))
        row[n] += value * part
        left -= part
    row[place] += value * left


@njit(cache=True)
def place_on_devices(
    chosen: IntArray,
    held: IntArray,
    prefills: IntArray,
    batch: int,
    tokens: int,
    attention: FloatArray,
    work: FloatArray,
) -> None:
    """Fill ``work`` (2, devices) with bytes and operations of one layer's attention, of a step's requests.

    Token n of all ``tokens`` is on device ``n * devices // tokens``, as ``sim.system.report`` has it.

    Parameters
    ----------
    chosen, held, prefills : (batch,) tokens of each request in the step, before it, of its prompt to come.
    """
    devices = work.shape[1]
    work[:] = 0.0
    first = 0
    for slot in range(batch):
        part = chosen[slot]
        if part == 0:
            continue
        if prefills[slot] > 0:
            cache, pairs = held[slot] + part, held[slot] + 0.5 * part
        else:
            cache, pairs = held[slot], 1.0 * held[slot]
        end = first + part
        while first < end:
            device = first * devices // tokens
            # The first token of the next device, rounded up.
            until = min(end, ((device + 1) * tokens + devices - 1) // devices)
            work[0, device] += attention[4] * cache
            work[1, device] += attention[5] * (until - first) * pairs
            first = until


@njit(cache=True)
def attention_of(work: FloatArray, attention: FloatArray) -> tuple[float, float]:
    """Return seconds and joules of all layers' products of queries with keys and values.

    ``work``: (2, devices) bytes and operations of one layer; the device that takes longest gives the time.
    """
    (host_bytes, host_flops, near_bytes, near_flops) = attention[:4]
    layers = attention[6]
    if layers == 0:
        return 0.0, 0.0
    host, near, num_bytes, flops = 0.0, 0.0, 0.0, 0.0
    for device in range(work.shape[1]):
        host = max(host, work[0, device] / host_bytes, work[1, device] / host_flops)
        near = max(near, work[0, device] / near_bytes, work[1, device] / near_flops)
        num_bytes += work[0, device]
        flops += work[1, device]
    host *= layers
    near *= layers
    is_near = attention[12] == 1 or (attention[12] == 2 and near < host)
    if is_near:
        return near, layers * (num_bytes * attention[10] + flops * attention[11])
    return host, layers * (num_bytes * attention[8] + flops * attention[9])


@njit(cache=True)
def _at(tokens: float, grid: FloatArray, values: FloatArray) -> float:
    above = np.searchsorted(grid, tokens)
    if above == 0:
        return float(values[0])
    if above == len(grid):
        above -= 1
    share = (tokens - grid[above - 1]) / (grid[above] - grid[above - 1])
    return float(values[above - 1] + share * (values[above] - values[above - 1]))


@njit(cache=True)
def _run(queue, known, more, order, limits, costs, running, times, clock, counts, stats, done):  # type: ignore[no-untyped-def]
    """Run steps until a request is needed that is not known; return how many were let in, how many are done.

    ``known``: requests of the queue that were counted as arrived before.
    """
    arrival, origin, first, prompt, output = queue
    max_batch, step_tokens, kv_tokens = limits
    grid, seconds, joules, attention, dropped = costs
    histograms, sums, most, bins = stats
    done_times, done_tokens = done
    to_prefill, held, to_come, prompts, outputs = running
    origins, firsts, lasts = times
    count = len(arrival)
    for n in range(known, count):
        bins[3, _bin(arrival[n], clock, bins)] += 1
    taken, ended = 0, 0
    chosen = np.zeros(max_batch, np.int64)
    work = np.zeros((2, max(1, int(attention[7]))))
    while True:
        now = clock[0]
        while taken < count and arrival[taken] <= now:
            n = taken
            need = prompt[n] + (0 if order == 2 else output[n])
            if need > kv_tokens:
                counts[3] += 1
                bins[4, _bin(now, clock, bins)] += 1
                taken += 1
                continue
            if counts[0] == max_batch or counts[1] + need > kv_tokens:
                break
            slot = counts[0]
            decodes = order == 3
            to_prefill[slot] = 0 if decodes else prompt[n]
            held[slot] = prompt[n] + 1 if decodes else 0
            to_come[slot] = output[n] - 1 if decodes else output[n]
            prompts[slot], outputs[slot] = prompt[n], output[n]
            origins[slot] = origin[n]
            firsts[slot] = first[n]
            lasts[slot] = first[n]
            counts[0] += 1
            counts[1] += need
            taken += 1
            if not decodes:
                _note(0, now - arrival[n], histograms, sums, most)
            bins[4, _bin(now, clock, bins)] += 1
        if taken == count and more:
            break
        if counts[0] == 0:
            if taken == count:
                break
            clock[0] = arrival[taken]
            continue

        # Who is served with how many tokens.
        batch = counts[0]
        tokens = 0
        prompts_wait = False
        for slot in range(batch):
            chosen[slot] = 0
            prompts_wait |= to_prefill[slot] > 0
        if not (prompts_wait and order == 1):
            for slot in range(batch):
                if to_prefill[slot] == 0:
                    chosen[slot] = 1
                    tokens += 1
        if prompts_wait:
            for slot in range(batch):
                left = to_prefill[slot]
                if left == 0:
                    continue
                part = min(left, step_tokens - tokens)
                if part <= 0 or (order != 0 and part < left and tokens > 0):
                    break
                chosen[slot] = part
                tokens += part
        draw = counts[2] % seconds.shape[0]
        place_on_devices(chosen, held, to_prefill, batch, tokens, attention, work)
        spent, energy = attention_of(work, attention)
        spent += _at(tokens, grid, seconds[draw])
        energy += _at(tokens, grid, joules[draw])
        begin = now
        clock[0] += spent
        now = clock[0]
        counts[2] += 1
        place = _bin(now, clock, bins)
        _spread(begin, spent, float(batch), clock[1], place, bins[1])
        _spread(begin, spent, 1.0, clock[1], place, bins[2])
        bins[6, place] += energy
        bins[7, place] += 1
        bins[8, place] += tokens
        bins[9, place] += _at(tokens, grid, dropped[draw])

        # What the step gave.
        finished = False
        for slot in range(batch):
            part = chosen[slot]
            if part == 0:
                continue
            held[slot] += part
            if to_prefill[slot] > 0:
                to_prefill[slot] -= part
                if to_prefill[slot] > 0:
                    continue
                held[slot] += 1
                firsts[slot] = now
                _note(1, now - origins[slot], histograms, sums, most)
            else:
                _note(3, now - lasts[slot], histograms, sums, most)
            lasts[slot] = now
            to_come[slot] -= 1
            bins[0, place] += 1
            if order == 2:
                to_come[slot] = 0
            finished |= to_come[slot] == 0
        if not finished:
            continue
        kept = 0
        for slot in range(batch):
            if to_prefill[slot] == 0 and to_come[slot] == 0:
                done_times[0, ended] = origins[slot]
                done_times[1, ended] = firsts[slot]
                done_times[2, ended] = now
                done_tokens[0, ended] = prompts[slot]
                done_tokens[1, ended] = outputs[slot]
                ended += 1
                counts[1] -= prompts[slot] + (0 if order == 2 else outputs[slot])
                if order == 2 and outputs[slot] > 1:
                    continue
                counts[4] += 1
                bins[5, place] += 1
                _note(4, now - origins[slot], histograms, sums, most)
                if outputs[slot] > 1:
                    _note(2, (now - firsts[slot]) / (outputs[slot] - 1), histograms, sums, most)
                continue
            if kept != slot:
                running[:, kept] = running[:, slot]
                times[:, kept] = times[:, slot]
            kept += 1
        counts[0] = kept
    return taken, ended
