"""A service: requests, one server or a split pair, and what comes of it."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sim.progress import show
from sim.routing import Routing, draw_ids
from sim.serving.batching import (
    BINS,
    LATENCIES,
    SUMS,
    UNLIMITED,
    Arrivals,
    Finished,
    FloatArray,
    IntArray,
    Limits,
    Order,
    Server,
    level_seconds,
)
from sim.serving.requests import Requests, Skipped
from sim.serving.steps import StepTable, kv_room, step_table, turned
from sim.toolchain import written_aside
from spec.catalogue import Backbone
from spec.errors import InputError, require, require_range
from spec.model import ModelSpec
from spec.system import LinkSpec, SystemSpec

PERCENTILES = (50, 90, 95, 99)
POINTS = 60
"""Of what is shown over time, at most."""
SAMPLE = 4096
"""Tokens that are routed for the load of a point; the load is that of all its tokens, in proportion."""
COLUMNS = ("arrival_s", "first_token_s", "end_s", "prompt_tokens", "output_tokens")


@dataclass(frozen=True)
class Transfer:
    """The link that keys and values take from the one that prefills to the one that decodes."""

    bytes_per_s: float
    latency_s: float


@dataclass
class Service:
    """One server, or one that prefills and one that decodes; :meth:`run` serves requests once.

    What the one that decodes can never hold is refused before it is prefilled (``turned_away``).
    """

    prefill: Server
    decode: Server | None = None
    transfer: Transfer | None = None
    kv_bytes: float = 0.0
    finished: int = 0
    tokens: int = 0
    prompts: int = 0
    came: int = 0
    turned_away: int = 0
    _ready_s: float = field(default=0.0, init=False)

    @property
    def servers(self) -> list[Server]:
        """All servers."""
        return [self.prefill] if self.decode is None else [self.prefill, self.decode]

    @property
    def refused(self) -> int:
        """Requests that a memory can never hold."""
        return self.turned_away + sum(server.refused for server in self.servers)

    def run(self, requests: Iterable[Requests]) -> Iterator[Finished]:
        """Yield finished requests, as they end; the servers hold the statistics."""
        for chunk in requests:
            self.came += len(chunk)
            show("requests", self.finished, self.came)
            yield from self._push(Arrivals.of(self._let_in(chunk)))
        yield from self._push(None)
        running = sum(server.running for server in self.servers)
        if running or self.finished + self.refused != self.came:
            raise ArithmeticError(
                f"{self.came} requests came, {self.finished} ended, {self.refused} were refused"
            )

    def _let_in(self, chunk: Requests) -> Requests:
        if self.decode is None:
            return chunk
        fits = (chunk.output == 1) | (chunk.prompt + chunk.output <= self.decode.limits.kv_tokens)
        self.turned_away += int((~fits).sum())
        return Requests(chunk.arrival_s[fits], chunk.prompt[fits], chunk.output[fits])

    def _push(self, come: Arrivals | None) -> Iterator[Finished]:
        done = self.prefill.push(come)
        if self.decode is None:
            yield self._counted(done)
            return
        one = done.output == 1
        yield self._counted(done.only(one))
        go = done.only(~one)
        if len(go.end_s):
            yield self._counted(self.decode.push(self._moved(go)))
        if come is None:
            yield self._counted(self.decode.push(None))

    def _moved(self, done: Finished) -> Arrivals:
        """Return prefilled requests when their keys and values have come, one after another over the link."""
        assert self.transfer is not None
        ready = np.empty(len(done.end_s))
        spent = done.prompt * self.kv_bytes / self.transfer.bytes_per_s
        # ready[n] = max(ready[n - 1], end[n]) + spent[n], as a running maximum.
        total = np.cumsum(spent)
        began = np.maximum.accumulate(np.maximum(done.end_s, self._ready_s) - (total - spent))
        ready = began + total
        self._ready_s = float(ready[-1])
        return Arrivals(ready + self.transfer.latency_s, done.arrival_s, done.end_s, done.prompt, done.output)

    def _counted(self, done: Finished) -> Finished:
        self.finished += len(done.end_s)
        self.tokens += int(done.output.sum())
        self.prompts += int(done.prompt.sum())
        return done


@dataclass(frozen=True)
class ServingRun:
    """What a service did.

    Attributes
    ----------
    seconds : from the first request to the last token.
    latencies : name -> mean, percentiles, largest, in seconds; None where nothing has it.
    energy_j : None where a figure is not known.
    bins : (sums, points) of :data:`sim.serving.batching.SUMS` over time; of both servers of a split service.
    load : (points, experts) assignments of the first MoE layer, those that found no place among them.
    limits : of the server, or of the one that prefills; ``decode_limits`` of the one that decodes.
    """

    model: str
    system: str
    batching: str
    requests: int
    finished: int
    refused: int
    skipped: Skipped
    prompt_tokens: int
    output_tokens: int
    steps: int
    seconds: float
    latencies: dict[str, dict[str, float] | None]
    energy_j: float | None
    bins: FloatArray
    width_s: float
    load: IntArray
    servers: int
    limits: Limits
    decode_limits: Limits | None
    off: float
    notes: tuple[str, ...]
    wall_s: float

    @property
    def queue(self) -> FloatArray:
        """(points,) requests that wait at the end of each point of time."""
        waiting: FloatArray = np.cumsum(self.bins[SUMS.index("arrived")] - self.bins[SUMS.index("admitted")])
        return waiting

    @property
    def batch(self) -> FloatArray:
        """(points,) requests in a step, on average over the point's time."""
        batch: FloatArray = self.bins[SUMS.index("batch_s")] / self.width_s
        return batch

    @property
    def dropped(self) -> float:
        """Assignments that found no place, of all layers, as steps of that size had them on average."""
        return float(self.bins[SUMS.index("dropped")].sum())

    @property
    def requests_per_s(self) -> float:
        """Requests that were finished, over all the time."""
        return self.finished / max(self.seconds, 1e-30)

    @property
    def joules_per_token(self) -> float | None:
        """Energy over all tokens, prompts' too; None where it is not known."""
        tokens = self.prompt_tokens + self.output_tokens
        return None if self.energy_j is None or not tokens else self.energy_j / tokens

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object of ``expertbank serve``."""
        seconds = max(self.seconds, 1e-30)
        points = self.bins.shape[1]
        busy_s = float(self.bins[SUMS.index("busy_s")].sum())
        return {
            "model": self.model,
            "system": self.system,
            "batching": self.batching,
            "requests": self.requests,
            "finished": self.finished,
            "refused": self.refused,
            "skipped": {"failed": self.skipped.failed, "odd": self.skipped.odd},
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "steps": self.steps,
            "seconds": self.seconds,
            "requests_per_s": self.requests_per_s,
            "output_tokens_per_s": self.output_tokens / seconds,
            "busy": busy_s / (seconds * self.servers),
            "mean_batch": float(self.bins[SUMS.index("batch_s")].sum()) / max(busy_s, 1e-30),
            "latency_s": self.latencies,
            "dropped": self.dropped,
            "dropped_per_step": self.dropped / max(self.steps, 1),
            "energy_j": self.energy_j,
            "joules_per_token": self.joules_per_token,
            "over_time": {
                "width_s": self.width_s,
                "begin_s": (self.width_s * np.arange(points)).tolist(),
                "queue": self.queue.tolist(),
                "batch": self.batch.tolist(),
                "output_tokens_per_s": (self.bins[SUMS.index("tokens")] / self.width_s).tolist(),
                "dropped": self.bins[SUMS.index("dropped")].tolist(),
                "expert_load": self.load.tolist(),
            },
            "limits": self.limits.as_json(),
            "decode_limits": None if self.decode_limits is None else self.decode_limits.as_json(),
            "step_interpolation_error": self.off,
            "notes": list(self.notes),
            "wall_s": self.wall_s,
        }


def service_of(
    systems: Sequence[SystemSpec],
    model: ModelSpec,
    backbone: Backbone | None,
    routing: Routing,
    seed: int,
    *,
    batching: str,
    limits: Limits,
    link: LinkSpec | None = None,
    policy: str | None = None,
    draws: int = 4,
) -> tuple[Service, list[StepTable]]:
    """Return a service on a system, or on one that prefills and one that decodes, and the costs of steps.

    Parameters
    ----------
    batching : a key of :data:`ORDERS`.
    limits : of each; where they leave the memory open, what its system has room for.
    link : between two systems.
    """
    require(batching in ORDERS, f"must be one of {', '.join(ORDERS)}, not {batching!r:.40}", key="batching")
    tables: list[StepTable] = []
    servers: list[Server] = []
    for number, system in enumerate(systems):
        if number and system == systems[0]:
            table = tables[0]
        else:
            most = limits.max_batch if number else limits.step_tokens
            table = step_table(system, model, backbone, routing, seed, most=most, draws=draws, policy=policy)
        room = kv_room(system, model, table.kv_bytes) if limits.kv_tokens >= UNLIMITED else None
        own = limits if room is None else replace(limits, kv_tokens=room)
        tables.append(table)
        servers.append(Server(table.costs, own, Order.DECODE_ONLY if number else ORDERS[batching]))
    if link is None:
        return Service(servers[0]), tables
    transfer = Transfer(link.bytes_per_s.value * link.efficiency.value, link.latency_s.value)
    return Service(servers[0], servers[1], transfer, kv_bytes=tables[0].kv_bytes), tables


def run_service(
    service: Service,
    requests: Iterable[Requests],
    model: ModelSpec,
    tables: list[StepTable],
    routing: Routing,
    seed: int,
    *,
    system: str,
    batching: str,
    skipped: Skipped | None = None,
    csv_file: Path | None = None,
    started: float | None = None,
) -> ServingRun:
    """Serve requests and return what came of it; ``csv_file`` gets a row for each request, as they end."""
    started = time.perf_counter() if started is None else started
    rows = service.run(requests)
    if csv_file is None:
        for _ in rows:
            pass
    else:
        _write_csv(csv_file, rows)
    servers = service.servers
    bins, width = merged(servers)
    histograms = np.sum([server.histograms for server in servers], axis=0)
    sums = np.sum([server.sums for server in servers], axis=0)
    most = np.max([server.most for server in servers], axis=0)
    latencies = {
        name: statistics(histograms[kind], float(sums[kind]), float(most[kind]))
        for kind, name in enumerate(LATENCIES)
    }
    joules = float(bins[SUMS.index("joules")].sum())
    served = bins[SUMS.index("served")].astype(np.int64)
    return ServingRun(
        model=model.name,
        system=system,
        batching=batching,
        requests=service.came,
        finished=service.finished,
        refused=service.refused,
        skipped=Skipped() if skipped is None else skipped,
        prompt_tokens=service.prompts,
        output_tokens=service.tokens,
        steps=sum(server.steps for server in servers),
        seconds=max(server.now_s for server in servers),
        latencies=latencies,
        energy_j=None if np.isnan(joules) else joules,
        bins=bins,
        width_s=width,
        load=expert_load(model, routing, seed, served),
        servers=len(servers),
        limits=service.prefill.limits,
        decode_limits=None if service.decode is None else service.decode.limits,
        off=max(table.off for table in tables),
        notes=tuple(dict.fromkeys(note for table in tables for note in table.notes)),
        wall_s=time.perf_counter() - started,
    )


def statistics(histogram: IntArray, total: float, most: float) -> dict[str, float] | None:
    """Return mean, percentiles (within half a percent) and the largest of what a histogram has."""
    count = int(histogram.sum())
    if not count:
        return None
    below = np.cumsum(histogram)
    found = {"mean": total / count}
    for percent in PERCENTILES:
        level = np.searchsorted(below, np.ceil(count * percent / 100))
        found[f"p{percent}"] = min(most, float(level_seconds(np.array(level))))
    return found | {"max": most}


def merged(servers: list[Server]) -> tuple[FloatArray, float]:
    """Return the sums over time of all servers in at most ``POINTS`` points, and a point's seconds."""
    width = max(server.width_s for server in servers)
    total = np.zeros((len(SUMS), BINS))
    for server in servers:
        bins = server.bins
        for _ in range(round(np.log2(width / server.width_s))):
            half = bins.reshape(len(SUMS), -1, 2).sum(axis=2)
            bins = np.concatenate([half, np.zeros_like(half)], axis=1)
        total += bins
    end = max(server.now_s for server in servers)
    # Whole bins for each point, so many that few are left.
    together = max(1, -(-int(end // width + 1) // POINTS))
    points = int(end // (width * together)) + 1
    padded = np.zeros((len(SUMS), points * together))
    kept = min(BINS, padded.shape[1])
    padded[:, :kept] = total[:, :kept]
    return padded.reshape(len(SUMS), points, together).sum(axis=2), width * together


def expert_load(model: ModelSpec, routing: Routing, seed: int, served: IntArray) -> IntArray:
    """Return (points, experts) assignments of the first MoE layer, of (points,) tokens that were served.

    At most ``SAMPLE`` tokens of a point are routed and stand for all of it; of a trace its tokens come one
    after another, from the begin again behind its end. The sum is the tokens' assignments.
    """
    gating = model.gating
    load = np.zeros((len(served), gating.num_experts), np.int64)
    place = 0
    for point, tokens in enumerate(served):
        sample = min(int(tokens), SAMPLE)
        if not sample:
            continue
        if routing.trace is None:
            ids = draw_ids(gating, routing, sample, seed + point)
        else:
            ids = draw_ids(gating, turned(routing, sample, place), sample, seed)
            place += sample
        counts = np.bincount(ids.ravel(), minlength=gating.num_experts)
        exact = counts * (int(tokens) / sample)
        whole = np.floor(exact).astype(np.int64)
        short = int(tokens) * gating.top_k - int(whole.sum())
        whole[np.argsort(whole - exact, kind="stable")[:short]] += 1
        load[point] = whole
    return load


def _write_csv(file: Path, rows: Iterator[Finished]) -> None:
    """Write a row for each request; the file appears when all are there."""
    try:
        with written_aside(file) as aside:
            for text in _csv_texts(rows):
                aside.write(text.encode())
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", file=file, key="requests_csv") from None


def _csv_texts(rows: Iterator[Finished]) -> Iterator[str]:
    yield ",".join(COLUMNS) + "\n"
    for done in rows:
        text = io.StringIO()
        columns = (done.arrival_s, done.first_s, done.end_s, done.prompt, done.output)
        rows_of = zip(*(column.tolist() for column in columns), strict=True)
        csv.writer(text, lineterminator="\n").writerows(rows_of)
        yield text.getvalue()


def limits_of(max_batch: int, step_tokens: int, kv_tokens: int | None) -> Limits:
    """Return the limits of a server; :class:`InputError` for ones that nothing can be served with."""
    require_range("max_batch", max_batch, 1, 1 << 16)
    require_range("step_tokens", step_tokens, 1, 1 << 17)
    require(
        step_tokens >= max_batch,
        f"must be at least max_batch, {max_batch}: each of a batch decodes a token, not {step_tokens}",
        key="step_tokens",
    )
    if kv_tokens is not None:
        require_range("kv_tokens", kv_tokens, 1, UNLIMITED)
    return Limits(max_batch, step_tokens, UNLIMITED if kv_tokens is None else kv_tokens)


ORDERS = {"chunked": Order.CHUNKED, "prefill-first": Order.PREFILL_FIRST, "split": Order.PREFILL_ONLY}
"""What ``--batching`` names."""
