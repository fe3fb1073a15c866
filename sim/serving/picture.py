"""A picture of a service over time: queue and batch, tokens, what found no place, load of the experts."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.figure import Figure

from sim.serving.batching import SUMS
from sim.serving.run import ServingRun


def picture(run: ServingRun) -> bytes:
    """Return a PNG file."""
    figure = Figure(figsize=(9, 8), layout="constrained")
    figure.suptitle(f"{run.model} on {run.system}, {run.batching}: {run.finished:,} requests")
    begin = run.width_s * np.arange(run.bins.shape[1])
    dropped = run.bins[SUMS.index("dropped")]
    requests, tokens, *drops, load = figure.subplots(4 if dropped.any() else 3, 1, sharex=True)
    requests.step(begin, run.queue, where="post", label="waiting")
    requests.step(begin, run.batch, where="post", label="in a step, on average")
    requests.set_ylabel("requests")
    requests.legend()
    tokens.step(begin, run.bins[SUMS.index("tokens")] / run.width_s, where="post", label="output")
    tokens.step(begin, run.bins[SUMS.index("served")] / run.width_s, where="post", label="all of steps")
    tokens.set_ylabel("tokens per second")
    tokens.legend()
    for axes in drops:
        axes.step(begin, dropped / run.width_s, where="post")
        axes.set_ylabel("assignments dropped\nper second")
    shares = run.load / np.maximum(1, run.load.sum(axis=1, keepdims=True))
    extent = (0.0, run.width_s * len(begin), run.load.shape[1] - 0.5, -0.5)
    image = load.imshow(shares.T, aspect="auto", extent=extent, interpolation="nearest")
    figure.colorbar(image, ax=load, label="share of the assignments")
    load.set_ylabel("expert")
    load.set_xlabel("seconds")
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, metadata={"Software": None})
    return out.getvalue()
