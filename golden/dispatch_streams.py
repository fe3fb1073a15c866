"""What the dispatcher emits: which assignments are kept, and the exact beats of every output stream.

Pure NumPy, no loop over tokens or experts; the hardware is :mod:`rtl.dispatch`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from golden.formats import BF16_ONE
from spec.errors import require

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Job:
    """An expert's whole queue in one window: what an expert engine is given to do at a time."""

    window: int
    expert: int
    unit: int
    tokens: IntArray
    slots: IntArray
    weights: NDArray[np.uint16]


@dataclass(frozen=True)
class DispatchStreams:
    """The beats of the dispatcher's streams for one run.

    Attributes
    ----------
    top_k, window_tokens, num_units : as given.
    ids : (tokens, top_k) int64, expert of each assignment, as given.
    kept : (tokens, top_k) bool, not dropped by the capacity.
    last_token : (tokens,) bool, the token ends its batch; also a field of ``o_expect``.
    window : (tokens,) int64, number of the token's window.
    expect_slot, expect_count : (tokens,) int64, the other fields of ``o_expect``.
    entry_window, entry_token, entry_expert, entry_slot, entry_unit : (entries,) int64, in order of
        service over all units; ``entry_expert`` is ``num_experts`` for the shared expert.
    entry_weight : (entries,) uint16, bf16 bits.
    entry_last : (entries,) bool, last entry of its expert in its window.
    """

    top_k: int
    window_tokens: int
    num_units: int
    ids: IntArray
    kept: NDArray[np.bool_]
    last_token: NDArray[np.bool_]
    window: IntArray
    expect_slot: IntArray
    expect_count: IntArray
    entry_window: IntArray
    entry_token: IntArray
    entry_expert: IntArray
    entry_slot: IntArray
    entry_unit: IntArray
    entry_weight: NDArray[np.uint16]
    entry_last: NDArray[np.bool_]

    @property
    def dropped(self) -> int:
        """Number of assignments dropped."""
        return int(self.kept.size - np.count_nonzero(self.kept))

    @property
    def num_windows(self) -> int:
        """Number of windows."""
        return int(self.window[-1]) + 1 if self.window.size else 0

    def of_unit(self, unit: int) -> IntArray:
        """Return the indices of a unit's entries, in order: the beats of ``o_<unit>``."""
        return np.flatnonzero(self.entry_unit == unit)

    def jobs(self) -> list[Job]:
        """Return the jobs in order of service."""
        ends = np.flatnonzero(self.entry_last) + 1
        starts = np.concatenate([[0], ends[:-1]]) if ends.size else ends
        return [
            Job(
                window=int(self.entry_window[start]),
                expert=int(self.entry_expert[start]),
                unit=int(self.entry_unit[start]),
                tokens=self.entry_token[start:end],
                slots=self.entry_slot[start:end],
                weights=self.entry_weight[start:end],
            )
            for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
        ]


def dispatch_streams(
    ids: ArrayLike,
    weights: ArrayLike,
    *,
    num_experts: int,
    window_tokens: int,
    batch_lengths: ArrayLike | None = None,
    capacity: int = 0,
    shared: bool = False,
    num_units: int = 1,
    placement: ArrayLike | None = None,
) -> DispatchStreams:
    """Return what the dispatcher emits for a run of tokens.

    Parameters
    ----------
    ids, weights : (tokens, top_k) expert of each assignment and its bf16 bits, in order of arrival.
    num_experts, window_tokens, shared, num_units : as in the dispatcher's configuration.
    batch_lengths : (batches,) tokens of each batch, summing to the tokens; default one batch.
    capacity : most assignments that an expert takes of a batch in order of arrival, later ones are
        dropped (Switch Transformer, arXiv 2101.03961, section 2.2); 0: no limit.
    placement : (num_experts,) or, with a shared expert, (num_experts + 1,) unit of each expert;
        default all on unit 0.

    Raises
    ------
    spec.errors.InputError : shapes or values that do not fit each other.
    """
    experts = np.asarray(ids, dtype=np.int64)
    weight_bits = np.asarray(weights, dtype=np.uint16)
    require(experts.ndim == 2, f"must have shape (tokens, top_k), not {experts.shape}", key="ids")
    require(
        weight_bits.shape == experts.shape,
        f"must have the shape of ids={experts.shape}, not {weight_bits.shape}",
        key="weights",
    )
    num_tokens, top_k = experts.shape
    lengths = np.asarray([num_tokens] if batch_lengths is None else batch_lengths, dtype=np.int64)
    lengths = lengths[lengths > 0] if batch_lengths is None else lengths
    units = np.asarray(np.zeros(num_experts + 1) if placement is None else placement, dtype=np.int64)
    _check(experts, lengths, units, num_experts, shared, num_units)

    batch = np.repeat(np.arange(lengths.size), lengths)
    kept = _keep(experts, batch, num_experts, capacity)
    window, last_token = _windows(lengths, window_tokens)
    slot = np.arange(num_tokens, dtype=np.int64) % (2 * window_tokens)

    # Every entry in order of arrival, the shared expert's first; then a stable sort into queues.
    token = np.repeat(np.arange(num_tokens, dtype=np.int64), top_k)[kept.ravel()]
    expert = experts[kept]
    weight = weight_bits[kept]
    rank = expert
    if shared:
        everyone = np.arange(num_tokens, dtype=np.int64)
        token = np.concatenate([everyone, token])
        expert = np.concatenate([np.full(num_tokens, num_experts), expert])
        weight = np.concatenate([np.full(num_tokens, BF16_ONE, dtype=np.uint16), weight])
        rank = np.concatenate([np.full(num_tokens, -1), rank])
    order = np.lexsort((rank, window[token]))
    token, expert, weight = token[order], expert[order], weight[order]
    queue = window[token] * (num_experts + 1) + expert
    return DispatchStreams(
        top_k=top_k,
        window_tokens=window_tokens,
        num_units=num_units,
        ids=experts,
        kept=kept,
        last_token=last_token,
        window=window,
        expect_slot=slot,
        expect_count=np.count_nonzero(kept, axis=1).astype(np.int64) + int(shared),
        entry_window=window[token],
        entry_token=token,
        entry_expert=expert,
        entry_slot=slot[token],
        entry_unit=units[expert],
        entry_weight=weight,
        entry_last=np.append(queue[1:] != queue[:-1], np.ones(min(1, queue.size), dtype=np.bool_)),
    )


def _check(
    experts: IntArray, lengths: IntArray, units: IntArray, num_experts: int, shared: bool, num_units: int
) -> None:
    num_tokens = experts.shape[0]
    require(
        bool(np.all((experts >= 0) & (experts < num_experts))),
        f"must be in 0..num_experts-1={num_experts - 1}, not {_outside(experts, num_experts)}",
        key="ids",
    )
    require(
        bool(np.all(lengths > 0)) and int(lengths.sum()) == num_tokens,
        f"must be positive and sum to the {num_tokens} tokens, not {lengths.tolist()}",
        key="batch_lengths",
    )
    require(
        units.shape[0] >= num_experts + int(shared),
        f"must name a unit for each of {num_experts + int(shared)} experts, not {units.shape[0]}",
        key="placement",
    )
    require(
        bool(np.all((units >= 0) & (units < num_units))),
        f"must be in 0..num_units-1={num_units - 1}, not {_outside(units, num_units)}",
        key="placement",
    )


def _outside(values: IntArray, limit: int) -> int | None:
    bad = values[(values < 0) | (values >= limit)]
    return int(bad[0]) if bad.size else None


def _keep(experts: IntArray, batch: IntArray, num_experts: int, capacity: int) -> NDArray[np.bool_]:
    """Return which assignments are among the first ``capacity`` of their expert in their batch."""
    if capacity == 0 or experts.size == 0:
        return np.ones(experts.shape, dtype=np.bool_)
    group = (batch[:, None] * num_experts + experts).ravel()
    order = np.argsort(group, kind="stable")
    ordered = group[order]
    position = np.arange(ordered.size)
    start = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    rank = np.empty(ordered.size, dtype=np.int64)
    rank[order] = position - np.repeat(start, np.diff(np.append(start, ordered.size)))
    return (rank < capacity).reshape(experts.shape)


def _windows(lengths: IntArray, window_tokens: int) -> tuple[IntArray, NDArray[np.bool_]]:
    """Return each token's window number and whether it ends its batch."""
    ends = np.cumsum(lengths)
    per_batch = -(-lengths // window_tokens)
    first_window = np.cumsum(per_batch) - per_batch
    in_batch = np.arange(int(lengths.sum())) - np.repeat(ends - lengths, lengths)
    window = np.repeat(first_window, lengths) + in_batch // window_tokens
    last_token = np.zeros(int(lengths.sum()), dtype=np.bool_)
    last_token[ends - 1] = True
    return window.astype(np.int64), last_token
