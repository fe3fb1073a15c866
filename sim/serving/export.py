"""What other simulators read: LLMServingSim's times of an MoE layer (``moe.csv``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from sim.progress import track
from sim.routing import Routing
from sim.routing.trace import TraceShape, make_trace
from sim.system.report import run_policies
from spec.errors import require_range
from spec.model import ModelSpec
from spec.system import SystemSpec

HEADER = "tokens,activated_experts,time_us"
"""Of LLMServingSim's ``profiler/perf/<hardware>/<model>/<variant>/tp<N>/moe.csv``."""


def powers(most: int) -> list[int]:
    """Return 1, 2, 4, ... below ``most``, and ``most``."""
    found = [1]
    while 2 * found[-1] < most:
        found.append(2 * found[-1])
    return found if most == 1 else [*found, most]


def moe_rows(
    system: SystemSpec, model: ModelSpec, tokens: Sequence[int], policy: str | None = None
) -> Iterator[tuple[int, int, float]]:
    """Yield tokens, activated experts and microseconds of one MoE layer's experts.

    Of each number of tokens: every power of two of experts that so many tokens can activate, from the top-k
    up. Their tokens are spread over them as evenly as can be: token t has the experts t k, t k + 1, ... in a
    circle. Attention, dense layers and shared experts are not part of it.
    """
    gating = model.gating
    alone = replace(model, num_moe_layers=1)
    own = replace(system, outside=None)
    for count in track(list(tokens), lambda count: f"{count} tokens"):
        require_range("tokens", count, 1, 1 << 17)
        most = min(gating.num_ffn_experts, count * gating.top_k)
        for experts in powers(most):
            if experts < gating.top_k:
                continue
            flat = np.arange(count * gating.top_k) % experts
            ids = flat.reshape(1, count, gating.top_k)
            trace = make_trace("even", ids, TraceShape(num_experts=gating.num_experts))
            chosen = [policy or system.policy]
            runs = run_policies(own, alone, count, Routing("even", trace=trace), 0, chosen)
            yield count, experts, runs.steps[chosen[0]].seconds * 1e6


def moe_csv(rows: Iterator[tuple[int, int, float]]) -> str:
    """Return the text of the file."""
    return "\n".join([HEADER, *(f"{count},{experts},{time:.6g}" for count, experts, time in rows)]) + "\n"
