"""Where a run stands under the roof of its engine: MACs a cycle against bytes of weights a cycle."""

from __future__ import annotations

from dataclasses import dataclass

from sim.accelerator import Report
from spec.banks import CommandTiming
from spec.design import DesignSpec


@dataclass(frozen=True)
class Roofline:
    """An engine's peaks and what a run used of them.

    Attributes
    ----------
    peak_macs : MACs a second of all lanes.
    peak_bytes : bytes of weights a second: of the weight port, or of the banks by back-to-back MAC commands.
    macs, bytes : what the run used a second.
    """

    peak_macs: float
    peak_bytes: float
    macs: float
    bytes: float

    @classmethod
    def of(cls, report: Report, design: DesignSpec) -> Roofline:
        """Return the roofline of a run; an engine alone is one channel of a ``pim`` design."""
        macs = float(design.tile.rows * design.tile.cols)
        if design.pim is None:
            read = design.memory.width_bits / 8
        else:
            pim, timing = design.pim, CommandTiming.of(design.pim)
            channels = pim.channels if len(report.blocks) > 1 else 1
            macs *= channels / pim.mac_cycles
            read = channels * pim.units * pim.dram.burst_bytes / (timing.mac_steps * timing.mac_gap)
        peak_macs, peak_bytes = macs * design.clock_hz, read * design.clock_hz
        use = report.utilisation
        return cls(peak_macs, peak_bytes, use["mac"] * peak_macs, use["bandwidth"] * peak_bytes)

    @property
    def ridge(self) -> float:
        """MACs per byte from which on lanes are the limit."""
        return self.peak_macs / self.peak_bytes

    @property
    def intensity(self) -> float | None:
        """MACs per byte of the run; None where no weight was read."""
        return self.macs / self.bytes if self.bytes and self.macs else None

    @property
    def bound_share(self) -> float:
        """The least time that lanes and weights allow over that of the run, 1 at most."""
        return max(self.macs / self.peak_macs, self.bytes / self.peak_bytes)

    @property
    def limit(self) -> str:
        """What the bound is of."""
        return "MACs" if self.macs / self.peak_macs >= self.bytes / self.peak_bytes else "weights"
