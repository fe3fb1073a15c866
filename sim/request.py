"""What ``expertbank sim`` is asked for, checked for a design before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sim import accelerator, alone, pim_report, step, workload
from sim.routing import Routing, draw_ids
from spec.banks import BankGeometry
from spec.design import DesignSpec, Engine
from spec.errors import InputError
from spec.geometry import ImageGeometry
from spec.model import ModelSpec

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A run of one model, to be made on one design or on several.

    Attributes
    ----------
    model_name : preset, TOML, ``config.json`` or vector ``.npz``.
    engine : ``model``, ``rtl`` or ``both``.
    tokens : how many; None for the default.
    divisor : of ``d_model`` and the widths of the experts.
    experts : run the first so many alone; None for a layer.
    phase : ``prefill`` or ``decode`` for one step over all layers; None for a layer.
    waves : folder for a VCD.
    """

    model_name: str
    engine: str
    tokens: int | None
    divisor: int
    experts: int | None
    phase: str | None
    routing: Routing
    seed: int
    waves: Path | None

    @property
    def vector(self) -> bool:
        """Whether weights and tokens are a vector's."""
        return workload.is_vector(self.model_name)

    def prepare(self, design: DesignSpec, progress: Progress) -> Callable[[], accelerator.Report]:
        """Return what makes the run; :class:`InputError` now for whatever does not fit the design."""
        if self.experts is not None:
            return self._experts(design, self.experts, progress)
        if self.phase is not None:
            return self._step(design)
        return self._layer(design, progress)

    def _experts(
        self, design: DesignSpec, experts: int, progress: Progress
    ) -> Callable[[], accelerator.Report]:
        if design.engine is Engine.PIM:
            raise InputError(f"runs on engine fpga only, not on design {design.name}", key="experts")
        return alone.prepare(
            self.model_name,
            design,
            experts,
            self.tokens,
            self.divisor,
            engine=self.engine,
            seed=self.seed,
            waves=self.waves,
            progress=progress,
        )

    def _step(self, design: DesignSpec) -> Callable[[], accelerator.Report]:
        if self.engine != "model" or self.vector:
            raise InputError("runs with --engine model and a model of many layers only", key="phase")
        model = workload.scaled_model(self.model_name, self.divisor)
        _geometry(model, design)
        count = self.tokens or workload.DEFAULT_TOKENS
        draw_ids(model.gating, self.routing, count, self.seed)
        return lambda: step.run_step(model, design, count, self.routing, self.seed)

    def _layer(self, design: DesignSpec, progress: Progress) -> Callable[[], accelerator.Report]:
        pim = design.engine is Engine.PIM
        run_model = pim_report.run_pim_model if pim else accelerator.run_model
        run_layer = pim_report.run_pim_layer if pim else accelerator.run_layer
        if self.vector:
            given = workload.vector_workload(self.model_name, self.tokens)
            _geometry(given.model, design)
            if self.engine == "model":
                return lambda: run_model(
                    given.model, design, given.reference_ids, "vector", given.batch_lengths
                )
            return lambda: run_layer(
                given, design, engine=self.engine, routing="vector", waves=self.waves, progress=progress
            )
        model = workload.scaled_model(self.model_name, self.divisor)
        image = _geometry(model, design)
        count = self.tokens or workload.DEFAULT_TOKENS
        ids = draw_ids(model.gating, self.routing, count, self.seed)
        if self.engine == "model":
            return lambda: run_model(model, design, ids, self.routing.name)
        workload.check_image(image.num_bytes)

        def run() -> accelerator.Report:
            progress("drawing weights and tokens")
            work = workload.random_workload(model, count, self.routing, self.seed, design.window_tokens)
            return run_layer(
                work,
                design,
                engine=self.engine,
                routing=self.routing.name,
                waves=self.waves,
                progress=progress,
            )

        return run


def _geometry(model: ModelSpec, design: DesignSpec) -> ImageGeometry:
    """Return the weight image's geometry; :class:`InputError` where model or experts do not fit."""
    if design.engine is Engine.PIM:
        return BankGeometry.of(model, design).image
    return ImageGeometry.of(model, design)
