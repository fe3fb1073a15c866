"""Routing traces for tests: what the files of ``tests/data/routing`` hold, and traces drawn at random."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sim.routing import TraceShape
from sim.routing.trace import DECODE, PREFILL, Trace, make_trace

FOLDER = Path(__file__).parent / "data" / "routing"

# Three tokens, two routed layers (1 and 2 of a model whose layer 0 is dense), two of four experts each.
FIRST = [[3, 1], [0, 2], [1, 0]]
SECOND = [[2, 0], [1, 3], [3, 2]]
KNOWN = TraceShape(top_k=2, num_layers=3)


def random_trace(
    *,
    num_layers: int = 3,
    num_tokens: int = 40,
    num_experts: int = 16,
    top_k: int = 4,
    requests: int = 3,
    phases: bool = True,
    weights: bool = True,
    seed: int = 0,
) -> Trace:
    """Return a trace whose requests follow each other, each a prompt and decoded tokens."""
    rng = np.random.default_rng(seed)
    ids = rng.permuted(np.tile(np.arange(num_experts), (num_layers, num_tokens, 1)), axis=2)[:, :, :top_k]
    request = np.sort(np.append(np.arange(requests), rng.integers(0, requests, num_tokens - requests)))
    starts = np.searchsorted(request, np.arange(requests))
    position = np.arange(num_tokens) - starts[request]
    descending = -np.sort(-rng.uniform(0.01, 1, ids.shape), axis=2).astype(np.float32)
    return make_trace(
        "drawn",
        ids,
        TraceShape(num_experts=num_experts),
        request=request,
        position=position,
        phase=np.where(position < 5, PREFILL, DECODE).astype(np.uint8) if phases else None,
        weights=descending if weights else None,
    )
