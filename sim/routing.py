"""Synthetic routing: which experts each token goes to, seeded, within the model's group limits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from golden.archive import read_archive
from golden.gating import group_mask
from spec.errors import InputError, require
from spec.model import GatingSpec

IntArray = NDArray[np.int64]

_STREAM = 7
"""Keeps routing apart from weights and tokens of the same seed."""
_TOKENS_AT_A_TIME = 4096


@dataclass(frozen=True)
class Routing:
    """A named distribution of experts: ``uniform``, ``zipf:S`` or a file with ``ids``."""

    name: str
    exponent: float = 0.0
    ids: IntArray | None = None


def parse_routing(text: str) -> Routing:
    """Return the routing that ``uniform``, ``zipf:S`` or the path of an ``.npz`` names.

    An ``.npz`` holds ``ids``, (tokens, k) integers.
    """
    if text == "uniform":
        return Routing(text)
    if text.startswith("zipf:"):
        try:
            exponent = float(text.removeprefix("zipf:"))
        except ValueError:
            raise InputError(f"must be zipf:S with a number S, not {text!r}", key="routing") from None
        require(0 <= exponent <= 10, f"must have 0 <= S <= 10, not {text!r}", key="routing")
        return Routing(text, exponent=exponent)
    if text.endswith(".npz"):
        ids = read_archive(Path(text)).get("ids")
        if ids is None or ids.ndim != 2 or ids.dtype.kind not in "iu":
            raise InputError("must be a (tokens, k) array of integers", file=text, key="ids")
        return Routing(text, ids=ids.astype(np.int64))
    raise InputError(f"must be uniform, zipf:S or a file .npz, not {text!r}", key="routing")


def draw_ids(gating: GatingSpec, routing: Routing, num_tokens: int, seed: int) -> IntArray:
    """Return (tokens, k) experts of each token, distinct, in groups that the gating allows.

    ``zipf:S`` gives expert of rank r the popularity r**-S, ranks dealt out at random; each token's
    experts are drawn without replacement (Gumbel keys). ``uniform`` is ``zipf:0``.
    """
    if routing.ids is not None:
        return _from_file(gating, routing.name, routing.ids, num_tokens)
    rng = np.random.default_rng([seed, _STREAM])
    popularity = -routing.exponent * np.log(1 + rng.permutation(gating.num_experts))
    ids = np.empty((num_tokens, gating.top_k), dtype=np.int64)
    # Some tokens at a time: keys for all of a long prompt's tokens and experts would fill the memory.
    for start in range(0, num_tokens, _TOKENS_AT_A_TIME):
        some = ids[start : start + _TOKENS_AT_A_TIME]
        keys = popularity + rng.gumbel(size=(len(some), gating.num_experts))
        if gating.grouped:
            keys = np.where(group_mask(gating, keys), keys, -np.inf)
        some[:] = np.argsort(-keys, axis=1, kind="stable")[:, : gating.top_k]
    return ids


def _from_file(gating: GatingSpec, name: str, ids: IntArray, num_tokens: int) -> IntArray:
    def rule(ok: bool, text: str) -> None:
        if not ok:
            raise InputError(text, file=name, key="ids")

    rule(
        len(ids) >= num_tokens and ids.shape[1] == gating.top_k,
        f"must have at least {num_tokens} rows of k={gating.top_k}, not shape {ids.shape}",
    )
    ids = ids[:num_tokens]
    rule(
        bool(((ids >= 0) & (ids < gating.num_experts)).all()),
        f"must be in 0..{gating.num_experts - 1}, but hold {int(ids.min())}..{int(ids.max())}",
    )
    ordered = np.sort(ids, axis=1)
    rule(bool((ordered[:, 1:] != ordered[:, :-1]).all()), "must be distinct within a token")
    return ids


def tokens_for(ids: IntArray, router: NDArray[np.float32], seed: int) -> NDArray[np.float64]:
    """Return (tokens, d_model) tokens that lean towards their experts' router rows, plus noise.

    Where the router has more experts than dimensions no token may reach its set exactly; the load that
    comes out is reported beside the one asked for.
    """
    rng = np.random.default_rng([seed, _STREAM, 1])
    rows = router.astype(np.float64)
    directions = rows / np.maximum((rows**2).sum(axis=1, keepdims=True), 1e-30)
    wanted = 4.0 * directions[ids].sum(axis=1)
    tokens: NDArray[np.float64] = wanted + 0.25 * rng.standard_normal(wanted.shape)
    return tokens
