"""How long an accelerator of this project takes for an expert beside a host: its engine's cycle model.

The engine is given jobs of one expert after another: an expert's time is what one more job adds to a queue of
equal ones, weights of the next loaded while one is computed. Tokens beyond a window are a further job, and
the weights are read again. Refreshes count by their share of the time. Against the engine's own model of
unlike jobs in a queue, which equals the RTL in every cycle, the sum is off by what the first and the last
job do not share: docs/system.md.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from sim.energy import Counts, energy_of, fpga_engine_counts, pim_engine_counts
from sim.expert import EngineShape, ExpertModel
from sim.pim import ROUTED, ChannelShape, channel_cycles
from sim.system.costs import FloatArray, IntArray
from spec.banks import BankGeometry, CommandTiming
from spec.design import DesignSpec, Engine, RouterPlace
from spec.geometry import ImageGeometry
from spec.model import ModelSpec

FEW, MORE = 2, 5
"""Jobs of the queues that are compared, where nothing is periodic beside them."""
INTERVALS = 3
"""Refresh intervals that the further jobs cover, where there are refreshes."""
MOST_JOBS = 64


@dataclass(frozen=True)
class Job:
    """One expert with some tokens: seconds, and joules, what the design draws all the time included."""

    seconds: float
    joules: float | None


def num_units(design: DesignSpec) -> int:
    """Return how many units of a design have whole experts: the array, or its channels."""
    return 1 if design.pim is None else design.pim.channels


def one_unit(design: DesignSpec) -> DesignSpec:
    """Return one unit of a design beside a host: the array, or one channel. What routes is the host."""
    if design.pim is None:
        return design
    return dataclasses.replace(
        design, pim=dataclasses.replace(design.pim, channels=1, router=RouterPlace.OWN)
    )


class JobTimes:
    """Jobs of a model's experts on one unit of a design: the array, or a channel; each size once.

    The model's routed experts; its shared ones are the host's.
    """

    def __init__(self, model: ModelSpec, design: DesignSpec, experts: int) -> None:
        """Raise :class:`InputError` where a unit does not hold so many of the model's experts."""
        self.design = one_unit(design)
        if self.design.pim is not None:
            self.banks = BankGeometry.unplaced(model, self.design)
            visits = experts * self.banks.reserved(self.banks.image.routed)
            # (Copies among them: there may be more than the model has experts.)
            if visits > self.banks.max_visits:
                raise self.banks.no_room(0, visits, f"{experts} experts")
        self.image = ImageGeometry.of(model, self.design)
        self._jobs: dict[int, Job] = {}

    def of(self, tokens: int) -> Job:
        """Return an expert's job with so many tokens."""
        if tokens not in self._jobs:
            window = self.design.window_tokens
            if tokens > window:
                whole, rest = self.of(window), self.of(tokens - window)
                joules = None if whole.joules is None else whole.joules + (rest.joules or 0.0)
                self._jobs[tokens] = Job(whole.seconds + rest.seconds, joules)
            else:
                run = self._channel if self.design.engine is Engine.PIM else self._array
                cycles, counts = run(tokens)
                seconds, table = cycles / self.design.clock_hz, self.design.energy
                joules = None if table is None else energy_of(table, counts, seconds).total
                self._jobs[tokens] = Job(seconds, joules)
        return self._jobs[tokens]

    def experts(self, counts: IntArray) -> FloatArray:
        """Return each expert's seconds, 0 without tokens."""
        return self._each(counts, "seconds")

    def joules(self, counts: IntArray) -> FloatArray | None:
        """Return each expert's joules; None where the design has no table of energies."""
        return None if self.design.energy is None else self._each(counts, "joules")

    def _each(self, counts: IntArray, what: str) -> FloatArray:
        sizes, place = np.unique(counts, return_inverse=True)
        # Smallest first: the larger ones are made of them.
        found = [getattr(self.of(size), what) if size else 0.0 for size in sizes.tolist()]
        return np.array(found, dtype=np.float64)[place].reshape(counts.shape)

    def _array(self, tokens: int) -> tuple[float, Counts]:
        shape = EngineShape.of_design(self.image, self.design)

        def run(jobs: int) -> tuple[int, int, int]:
            model = ExpertModel(shape, self.design.memory.latency_cycles)
            ran = model.run(
                np.zeros(jobs * tokens, bool), _ends(jobs, tokens), np.zeros(jobs * tokens, np.int64)
            )
            return int(ran.results[-1]), ran.fires, ran.read_beats

        (end, fires, beats), (later, more, further) = run(FEW), run(MORE)
        jobs = MORE - FEW
        counts = fpga_engine_counts(
            self.design,
            fires=(more - fires) // jobs,
            read_beats=(further - beats) // jobs,
            hidden_values=tokens * self.image.routed.d_hidden,
        )
        return (later - end) / jobs, counts

    def _channel(self, tokens: int) -> tuple[float, Counts]:
        refi = CommandTiming.of(self.banks.pim).refi
        shape = ChannelShape(banks=self.banks)

        def run(jobs: int) -> tuple[int, dict[str, int]]:
            ran = channel_cycles(
                shape,
                np.full(jobs * tokens, ROUTED),
                _ends(jobs, tokens),
                np.zeros(jobs * tokens, np.int64),
                first_refresh=refi,
                told=False,
            )
            totals = ran.totals
            return int(ran.o[-1]), {
                "fires": totals.fires,
                "activates": totals.activates,
                "mac_commands": totals.macs,
                "register_writes": totals.writes,
                "register_reads": totals.reads,
            }

        end, events = run(1)
        jobs = min(MOST_JOBS, max(MORE, 1 + INTERVALS * refi // end))
        later, more = run(1 + jobs)
        cycles = (later - end) / jobs
        of_one = {name: (more[name] - count) / jobs for name, count in events.items()}
        fires = round(of_one.pop("fires"))
        counts = pim_engine_counts(
            self.design,
            fires=fires,
            commands={name: round(count) for name, count in of_one.items()},
            cycles=round(cycles),
            hidden_values=tokens * self.image.routed.d_hidden,
        )
        return cycles, counts


def _ends(jobs: int, tokens: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    ends = np.zeros(jobs * tokens, dtype=bool)
    ends[tokens - 1 :: tokens] = True
    return ends
