"""Synthetic routing: which experts each token goes to, seeded, within the model's group limits.

Nearly every kind is one draw: an expert's popularity (a logarithm), plus what the kind adds for some tokens
and experts, plus Gumbel noise; a token takes the k largest of the groups that its gate would allow. That is a
draw of k experts without replacement, so that every token, the only one of a batch too, has exactly k.
``docs/routing.md`` has the table of kinds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from golden.gating import group_mask, top_k
from spec.errors import InputError, require
from spec.model import GatingSpec

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

STREAM = 7
"""Keeps routing apart from weights and tokens of the same seed."""
_OF_THE_KIND = 2
"""A stream of its own for what a kind draws, so that one kind's draws do not move another's."""
TOKENS_AT_A_TIME = 4096
HOT = 1e4
"""Added to a hot expert's key: more than all popularity and noise, twice over."""
DEFAULT_GROUPS = 4


@dataclass(frozen=True)
class Parameter:
    """A number in a kind's name: what it is called, its default, its limits, whether it is whole."""

    name: str
    default: float
    low: float
    high: float
    whole: bool = False


@dataclass(frozen=True)
class Draw:
    """What a kind gets to know: the gating, its parameters, how many tokens, a random stream of its own."""

    gating: GatingSpec
    parameters: tuple[float, ...]
    num_tokens: int
    rng: np.random.Generator


Extra = Callable[[IntArray], FloatArray | None]
"""For tokens by number, what is added to their (tokens, experts) keys, or None for nothing."""


@dataclass(frozen=True)
class Kind:
    """A kind of routing.

    Attributes
    ----------
    parameters : those of its name, in order.
    popularity : (experts,) from the rank of each, or None where all are equal.
    extra : makes what is added for some tokens and experts.
    """

    parameters: tuple[Parameter, ...] = ()
    popularity: Callable[[Draw, IntArray], FloatArray] | None = None
    extra: Callable[[Draw], Extra] | None = None


def draw_synthetic(
    gating: GatingSpec, kind: str, parameters: tuple[float, ...], num_tokens: int, seed: int
) -> IntArray:
    """Return (tokens, k) experts of each token, distinct, in groups and prototypes as the gating has them."""
    if kind == BALANCED:
        return balanced(gating, num_tokens, np.random.default_rng([seed, STREAM, _OF_THE_KIND]))
    row = KINDS[kind]
    rng = np.random.default_rng([seed, STREAM])
    own = np.random.default_rng([seed, STREAM, _OF_THE_KIND])
    draw = Draw(gating, parameters, num_tokens, own)
    rank = rng.permutation(gating.num_experts)
    popularity = row.popularity(draw, rank) if row.popularity else np.zeros(gating.num_experts)
    extra = row.extra(draw) if row.extra else None
    ids = np.empty((num_tokens, gating.top_k), dtype=np.int64)
    # Some tokens at a time: keys for all of a long prompt's tokens and experts would fill the memory.
    for start in range(0, num_tokens, TOKENS_AT_A_TIME):
        some = ids[start : start + TOKENS_AT_A_TIME]
        keys = popularity + rng.gumbel(size=(len(some), gating.num_experts))
        added = extra(np.arange(start, start + len(some))) if extra else None
        if added is not None:
            keys += added
        if gating.grouped:
            keys = np.where(group_mask(gating, keys), keys, -np.inf)
        some[:] = _largest(gating, keys)
    return ids


def _largest(gating: GatingSpec, keys: FloatArray) -> IntArray:
    """Return the (tokens, k) experts of the largest keys, those of each prototype on their own."""
    own = gating.of_prototype
    best = top_k(keys.reshape(-1, own.num_experts), own.top_k)
    return _of_prototypes(gating, best.reshape(len(keys), gating.num_prototypes, -1))


def _of_prototypes(gating: GatingSpec, chosen: IntArray) -> IntArray:
    """Return the (tokens, k) experts that (tokens, prototypes, k / prototypes) of each prototype are."""
    first = gating.of_prototype.num_experts * np.arange(gating.num_prototypes)[:, None]
    ids: IntArray = (chosen + first).reshape(-1, gating.top_k)
    return ids


def _zipf(draw: Draw, rank: IntArray) -> FloatArray:
    popularity: FloatArray = -draw.parameters[0] * np.log(1 + rank)
    return popularity


def _log_normal(draw: Draw, rank: IntArray) -> FloatArray:
    return draw.parameters[0] * draw.rng.standard_normal(len(rank))


def _hot_expert(draw: Draw) -> Extra:
    """Give each of some experts to a share of the tokens, each expert's tokens drawn on their own."""
    share, count = draw.parameters[0], int(draw.parameters[1])
    gating = draw.gating
    require(
        count <= gating.top_k,
        f"must have at most top_k={gating.top_k} hot experts, not {count}",
        key="routing",
    )
    hot = _experts_together(draw, count)
    chosen = draw.rng.random((draw.num_tokens, count)) < share

    def extra(tokens: IntArray) -> FloatArray:
        added = np.zeros((len(tokens), gating.num_experts))
        added[:, hot] = HOT * chosen[tokens]
        return added

    return extra


def _experts_together(draw: Draw, count: int) -> IntArray:
    """Return ``count`` distinct experts that one token can have, in no more groups than it may have."""
    gating = draw.gating
    groups = draw.rng.permutation(gating.num_groups)[: gating.topk_groups]
    pool = (groups[:, None] * gating.group_size + np.arange(gating.group_size)).ravel()
    return draw.rng.permutation(pool)[:count]


def _hot_group(draw: Draw) -> Extra:
    """Give a share of the tokens all the experts of one group that they can have."""
    share, wanted = draw.parameters[0], int(draw.parameters[1])
    gating = draw.gating
    count = wanted or (
        gating.num_groups if gating.num_groups > 1 else min(DEFAULT_GROUPS, gating.num_experts)
    )
    require(
        count <= gating.num_experts,
        f"must have at most num_experts={gating.num_experts} groups, not {count}",
        key="routing",
    )
    group = int(draw.rng.integers(count))
    first, end = (gating.num_experts * edge // count for edge in (group, group + 1))
    chosen = draw.rng.random(draw.num_tokens) < share

    def extra(tokens: IntArray) -> FloatArray:
        added = np.zeros((len(tokens), gating.num_experts))
        added[:, first:end] = HOT * chosen[tokens][:, None]
        return added

    return extra


def _rotating(draw: Draw) -> Extra:
    """Give a share of the tokens one hot expert, another one after each period."""
    share, period = draw.parameters[0], int(draw.parameters[1])
    order = draw.rng.permutation(draw.gating.num_experts)
    chosen = draw.rng.random(draw.num_tokens) < share
    return _one_each(draw.gating, lambda tokens: order[tokens // period % len(order)], chosen)


def _burst(draw: Draw) -> Extra:
    """Give a share of the tokens of each burst one hot expert, the burst's own."""
    share, length, gap = draw.parameters[0], int(draw.parameters[1]), int(draw.parameters[2])
    every = length + gap
    hot = draw.rng.integers(draw.gating.num_experts, size=draw.num_tokens // every + 1)
    inside = np.arange(draw.num_tokens) % every >= gap
    chosen = inside & (draw.rng.random(draw.num_tokens) < share)
    return _one_each(draw.gating, lambda tokens: hot[tokens // every], chosen)


def _one_each(gating: GatingSpec, expert: Callable[[IntArray], IntArray], chosen: NDArray[np.bool_]) -> Extra:
    def extra(tokens: IntArray) -> FloatArray:
        added = np.zeros((len(tokens), gating.num_experts))
        added[np.arange(len(tokens)), expert(tokens)] = HOT * chosen[tokens]
        return added

    return extra


def _ragged(draw: Draw) -> Extra:
    """Give each of the requests, of unequal lengths, experts that it prefers."""
    exponent, count = draw.parameters[0], int(draw.parameters[1])
    lengths = request_lengths(draw.num_tokens, exponent, count)
    experts = draw.gating.num_experts
    preference = draw.rng.permuted(np.tile(np.arange(experts), (len(lengths), 1)), axis=1)
    popularity = -np.log(1.0 + preference)
    request = np.arange(len(lengths)).repeat(lengths)
    return lambda tokens: popularity[request[tokens]]


def request_lengths(num_tokens: int, exponent: float, count: int) -> IntArray:
    """Return how many of ``num_tokens`` tokens each request of ``ragged`` has.

    Request r has the share r**-exponent, at least 1 token; there are fewer requests where there are fewer
    tokens. Nothing is random, so that all layers agree.
    """
    count = min(count, num_tokens)
    shares = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    ends = np.cumsum(shares) / shares.sum() * (num_tokens - count)
    # What rounding takes from one request the next gets: the ends are rounded, not the lengths.
    rounded = np.rint(ends).astype(np.int64)
    rounded[-1] = num_tokens - count
    lengths: IntArray = 1 + np.diff(rounded, prepend=0)
    return lengths


def balanced(gating: GatingSpec, num_tokens: int, rng: np.random.Generator) -> IntArray:
    """Return (tokens, k) experts with loads that differ by at most 1.

    All experts are dealt out in a random order, k to a token, again and again. With group limits the order
    keeps as many groups together as a token may have, mixed, if their experts are a multiple of k;
    otherwise group by group, if k neighbours never lie in too many groups. Gatings that have neither are
    filled token by token with the experts that have least so far; their loads may differ by more.
    Each prototype's experts are dealt out on their own.
    """
    if gating.num_prototypes > 1:
        own = [balanced(gating.of_prototype, num_tokens, rng) for _ in range(gating.num_prototypes)]
        return _of_prototypes(gating, np.stack(own, axis=1))
    experts, size, k = gating.num_experts, gating.group_size, gating.top_k
    together = [
        groups
        for groups in range(1, gating.topk_groups + 1)
        if gating.num_groups % groups == 0 and groups * size % k == 0
    ]
    if not gating.grouped:
        width, mixed = experts, True
    elif together:
        width, mixed = together[-1] * size, True
    elif min(2 + (k - 2) // size, k) <= gating.topk_groups:
        width, mixed = size, False
    else:
        return _least_loaded(gating, num_tokens, rng)
    # A round ends where a token and a pass over the experts end together.
    passes = k // math.gcd(experts, k)
    per_round = passes * experts // k
    rounds = -(-num_tokens // per_round)
    group_order = rng.permuted(np.tile(np.arange(gating.num_groups), (rounds, 1)), axis=1)
    inside = rng.permuted(np.tile(np.arange(size), (rounds, gating.num_groups, 1)), axis=2)
    order = group_order[:, :, None] * size + inside
    if mixed:
        blocks = experts // width
        order = order.reshape(rounds, blocks, -1)
        # With one block all experts are one pool; with several each block's groups are mixed.
        order = rng.permuted(order, axis=2)
    dealt = np.tile(order.reshape(rounds, experts), (1, passes))
    ids: IntArray = dealt.reshape(rounds * per_round, k)[:num_tokens]
    return np.ascontiguousarray(ids)


def _least_loaded(gating: GatingSpec, num_tokens: int, rng: np.random.Generator) -> IntArray:
    load = np.zeros(gating.num_experts)
    ids = np.empty((num_tokens, gating.top_k), np.int64)
    for token in range(num_tokens):
        keys = (rng.random(gating.num_experts) - load)[None]
        if gating.grouped:
            keys = np.where(group_mask(gating, keys), keys, -np.inf)
        ids[token] = top_k(keys, gating.top_k)[0]
        load[ids[token]] += 1
    return ids


BALANCED = "balanced"
RAGGED = "ragged"
_SHARE = Parameter("H", 0.5, 0, 1)
KINDS = {
    "uniform": Kind(),
    BALANCED: Kind(),
    "zipf": Kind((Parameter("S", 1.0, 0, 10),), popularity=_zipf),
    "lognormal": Kind((Parameter("S", 1.0, 0, 10),), popularity=_log_normal),
    "hot_expert": Kind((_SHARE, Parameter("N", 1, 1, 64, whole=True)), extra=_hot_expert),
    "hot_group": Kind((_SHARE, Parameter("G", 0, 0, 512, whole=True)), extra=_hot_group),
    RAGGED: Kind((Parameter("S", 1.0, 0, 10), Parameter("R", 8, 1, 4096, whole=True)), extra=_ragged),
    "rotating": Kind((_SHARE, Parameter("P", 16, 1, 1 << 20, whole=True)), extra=_rotating),
    "burst": Kind(
        (
            Parameter("H", 1.0, 0, 1),
            Parameter("L", 8, 1, 1 << 20, whole=True),
            Parameter("Q", 24, 0, 1 << 20, whole=True),
        ),
        extra=_burst,
    ),
}
"""The kinds by name."""


def parse_kind(text: str) -> tuple[str, str, tuple[float, ...]] | None:
    """Return full name, kind and parameters of a name such as ``zipf:1.2``; None if it is of no kind.

    Parameters follow behind colons, in order; those left out have their defaults, which the full name shows.
    """
    kind, *given = text.split(":")
    if kind not in KINDS:
        return None
    known = KINDS[kind].parameters
    form = ":".join([kind, *(parameter.name for parameter in known)])
    if len(given) > len(known):
        raise InputError(f"must be {form}, not {text!r}", key="routing")
    values = []
    for parameter, value in zip(known, given, strict=False):
        number = _number(value, form, parameter, text)
        limits = f"{parameter.low:g} <= {parameter.name} <= {parameter.high:g}"
        require(parameter.low <= number <= parameter.high, f"must have {limits}, not {text!r}", key="routing")
        values.append(number)
    left_out = known[len(given) :]
    name = ":".join([text, *(f"{parameter.default:g}" for parameter in left_out)])
    return name, kind, (*values, *(parameter.default for parameter in left_out))


def _number(value: str, form: str, parameter: Parameter, text: str) -> float:
    try:
        return int(value) if parameter.whole else float(value)
    except ValueError:
        what = "whole number" if parameter.whole else "number"
        raise InputError(
            f"must be {form} with a {what} {parameter.name}, not {text!r}", key="routing"
        ) from None
