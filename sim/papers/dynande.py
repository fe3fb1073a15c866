"""DynaNDE (arXiv 2609.00407): its prefix scan with a cache of experts against MoNDE's rule without."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sim.papers.routed import counts_of, expert_of, system_values
from sim.system.costs import BoolArray, IntArray
from sim.system.step import least_frequent_leave, run_step, system_costs
from spec.paper import PaperSpec, Workload

ZIPF = (0.0, 1.0)
LAYERS = 4
BASES = {"monde": "ratio", "npu": "all-host", "ndp": "all-near"}
"""What DynaNDE is compared with: MoNDE's rule, the NPU alone, the near-data cores alone; without a cache."""
OTHER_BATCHES = (16, 64)


def run(paper: PaperSpec, values: Mapping[str, float]) -> dict[str, float]:
    """Return what is modelled of each claim; the replay is :mod:`sim.papers.dynande_replay`."""
    system, own = paper.systems["dynande"], system_values(values, "dynande")

    def speeds(work: Workload, counts: IntArray, cached: BoolArray | None) -> list[float]:
        """Return how much faster DynaNDE's policy with its cache is than each base without."""
        expert = expert_of(work)
        plain = system_costs(system, counts, expert, own)
        known = system_costs(system, counts, expert, own, cached=cached)
        mine = run_step(known, system.policy).seconds
        return [run_step(plain, base).seconds / mine for base in BASES.values()]

    def mean(phase: str, tokens: int) -> dict[str, float]:
        found = []
        for work in paper.workloads.values():
            for zipf in ZIPF:
                if phase == "prefill":
                    found.append(speeds(work, counts_of(work, tokens, zipf, LAYERS)[0], None))
                    continue
                counts = counts_of(work, tokens, zipf, LAYERS, int(values["inputs.decode_steps"]))
                flat = counts.reshape(-1, work.experts)
                cached = least_frequent_leave(counts, int(own["cache_share"] * work.experts))
                found.append(speeds(work, flat, cached.reshape(flat.shape)))
        return dict(zip(BASES, np.mean(found, axis=0).tolist(), strict=True))

    decode = mean("decode", int(values["inputs.decode_batch"]))
    prompt = int(values["inputs.prefill_requests"] * values["inputs.prefill_tokens"])
    prefill = mean("prefill", prompt)
    return {
        **{f"decode_over_{base}": speed for base, speed in decode.items()},
        **{f"prefill_over_{base}": speed for base, speed in prefill.items()},
        **{f"decode_over_monde_{batch}": mean("decode", batch)["monde"] for batch in OTHER_BATCHES},
    }
