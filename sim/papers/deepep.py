"""DeepEP (docs/legacy.md of its repository): copies of tokens over NVLink and RDMA, by links alone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sim.system.exchange import Cluster, Link
from spec.paper import PaperSpec

MICROSECONDS = 1e6


def run(paper: PaperSpec, values: Mapping[str, float]) -> dict[str, float]:
    """Return what is modelled of each claim: every device sends as much to each device."""
    v = {name.removeprefix("inputs."): value for name, value in values.items()}
    inside, between = (Link(v[f"{name}_bytes_per_s"], v[f"{name}_latency_s"]) for name in ("nvlink", "rdma"))
    found = {}
    for claim in paper.claims:
        what, devices, _ = claim.split("_")
        number = int(devices)
        cluster = Cluster(number, max(1, number // int(v["node_devices"])), inside, between)
        copies = np.full((1, number, number), v["tokens"] * v["top_k"] / number)
        found[claim] = MICROSECONDS * float(cluster.transfer(copies, v[f"{what}_bytes"])[0])
    return found
