"""An accelerator's times for experts in each format of their weights, between which policies choose.

Each format is that of the hardware (``docs/numbers.md``), the design otherwise the same: what is multiplied
with is int8 in the integer formats, else bf16. Times are those of :mod:`sim.system.blocks`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from sim.system.blocks import JobTimes
from sim.system.costs import BYTES, Expert, FloatArray, IntArray
from sim.system.widths import bits_of
from spec.design import DesignSpec, Format
from spec.errors import InputError
from spec.model import ModelSpec

BY_BITS = {bits_of(one): one for one in Format}
"""Formats by the bits of an element with its part of a scale, which differ."""


class StoredJobs:
    """Jobs of a model's experts on one unit of a design, in any format."""

    def __init__(self, model: ModelSpec, design: DesignSpec, experts: int) -> None:
        """Raise :class:`InputError` where a unit does not hold so many experts in the design's own format."""
        self.model, self.design, self.held = model, design, experts
        self._of: dict[Format, JobTimes] = {}
        self.of(design.format)

    def of(self, stored: Format) -> JobTimes:
        """Return the jobs of experts in a format."""
        if stored not in self._of:
            design = self.design
            if design.format is not stored:
                design = replace(design, format=stored, group=None)
            self._of[stored] = JobTimes(self.model, design, self.held)
        return self._of[stored]

    @property
    def bytes_per_s(self) -> float:
        """Bytes of bf16 weights a second of a unit, as it reads an expert for one token."""
        jobs = self.of(Format.BF16)
        return BYTES * self.model.expert_params / self.model.gating.num_ffn_experts / jobs.of(1).seconds

    def experts(self, counts: IntArray, bits: FloatArray) -> FloatArray:
        """Return seconds of experts with weights of so many bits, 0 without tokens; arrays of one shape."""
        seconds = np.zeros(counts.shape)
        for width in np.unique(bits).tolist():
            if width not in BY_BITS:
                known = ", ".join(f"{one:g}" for one in sorted(BY_BITS))
                raise InputError(
                    f"must have weights of {known} bits beside an accelerator, not {width:g}", key="formats"
                )
            some = bits == width
            seconds[some] = self.of(BY_BITS[width]).experts(counts[some])
        return seconds

    def least(self, counts: IntArray) -> FloatArray:
        """Return seconds that no format of the design and no cut of an expert's tokens into jobs is below.

        As much for each token as in the job that is best for it, and not less than the shortest job: what the
        lanes share a burst with fills them best in whole groups.
        """
        per_token, shortest = self._best
        return np.where(counts > 0, np.maximum(counts * per_token, shortest), 0.0)

    @cached_property
    def _all(self) -> list[JobTimes]:
        """Return the jobs in each format that the design has: its tiles may be too small for a scale."""
        found = []
        for stored in Format:
            try:
                found.append(self.of(stored))
            except InputError:
                if stored is self.design.format:
                    raise
        return found

    @cached_property
    def _best(self) -> tuple[float, float]:
        pim, window = self.design.pim, self.design.window_tokens
        group = 1 if pim is None else min(pim.tokens_per_burst, window)
        sizes = np.unique([1, *range(group, window + 1, group), window])
        each = np.array([jobs.experts(sizes) for jobs in self._all])
        return float((each / sizes).min()), float(each.min())


@dataclass(frozen=True)
class OneUnit:
    """One unit of an accelerator where other devices have a roofline."""

    jobs: StoredJobs

    def experts(self, counts: IntArray, expert: Expert) -> FloatArray:
        """Return the time of each expert in the design's own format, 0 where it has no tokens."""
        return self.jobs.of(self.jobs.design.format).experts(counts)
