"""What ``expertbank sim`` is asked for, checked for a design before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TypedDict

from golden.checkpoint import CheckpointLayer
from sim import accelerator, alone, pim_report, step, workload
from sim.energy import check_table
from sim.routing import IntArray, Routing, draw_ids
from sim.toolchain import check_parent
from spec.banks import BankGeometry
from spec.design import DesignSpec, Engine
from spec.errors import InputError, require
from spec.geometry import ImageGeometry
from spec.layout import Placement, load_layout
from spec.model import ModelSpec

Progress = Callable[[str], None]


class Options(TypedDict):
    """What both accelerators' runs of the Verilog are told."""

    engine: str
    routing: str
    waves: Path | None


@dataclass(frozen=True, kw_only=True)
class Request:
    """A run of one model, to be made on one design or on several.

    Attributes
    ----------
    model_name : preset, TOML, ``config.json``, vector ``.npz`` or folder with weights.
    engine : ``model``, ``rtl`` or ``both``.
    tokens : how many; None for the default.
    divisor : of ``d_model`` and the widths of the experts.
    experts : run the first so many alone; None for a layer.
    phase : ``prefill`` or ``decode`` for one step over all layers; None for a layer.
    waves : folder for a VCD.
    trace : file for the DRAM commands of a ``pim`` design's run; None for no file.
    layout : file that says where experts lie in a ``pim`` design; None for the default.
    layer : of a folder, the layer whose weights are run.
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
    trace: Path | None = None
    layout: Path | None = None
    layer: str | None = None

    @cached_property
    def own_layer(self) -> CheckpointLayer | None:
        """The layer of a folder that is run; the cycle model needs none, since it computes no values."""
        if self.engine == "model" and self.layer is None:
            return None
        return workload.checkpoint_layer(self.model_name, self.layer)

    @property
    def model(self) -> ModelSpec:
        """The model of a layer that is no vector's."""
        if self.own_layer is not None:
            return self.own_layer.model
        return workload.scaled_model(self.model_name, self.divisor)

    @property
    def vector(self) -> bool:
        """Whether weights and tokens are a vector's."""
        return workload.is_vector(self.model_name)

    def prepare(self, design: DesignSpec, progress: Progress) -> Callable[[], accelerator.Report]:
        """Return what makes the run; :class:`InputError` now for whatever does not fit the design."""
        for key in ("layout", "trace"):
            if getattr(self, key) is not None and design.engine is not Engine.PIM:
                raise InputError(f"is for engine pim, not for design {design.name}", key=key)
        if self.trace is not None:
            require(self.engine != "model", "needs --engine rtl or both", key="trace")
            check_parent(self.trace, "trace")
        if self.layout is not None:
            require(self.experts is None, "cannot be combined with --experts", key="layout")
        check_table(design)
        if self.experts is not None:
            return self._experts(design, self.experts, progress)
        if self.phase is not None:
            return self._step(design)
        return self._layer(design, progress)

    def _experts(
        self, design: DesignSpec, experts: int, progress: Progress
    ) -> Callable[[], accelerator.Report]:
        planned = alone.plan_experts(
            self.model_name,
            design,
            experts,
            self.tokens,
            self.divisor,
            engine=self.engine,
            own_layer=self.own_layer,
        )
        return partial(
            alone.run_plan,
            planned,
            engine=self.engine,
            seed=self.seed,
            waves=self.waves,
            trace=self.trace,
            progress=progress,
        )

    def _step(self, design: DesignSpec) -> Callable[[], accelerator.Report]:
        require(self.engine == "model", f"needs --engine model, not {self.engine}", key="phase")
        require(self.layer is None, "cannot be combined with --phase", key="layer")
        require(
            not self.vector, f"needs a model of many layers, not the vector {self.model_name}", key="phase"
        )
        model = workload.scaled_model(self.model_name, self.divisor)
        _, placement = self._place(model, design)
        count = self.tokens or workload.DEFAULT_TOKENS
        self.routing.check_layers(model.num_moe_layers)
        draw_ids(model.gating, self.routing, count, self.seed, moe_layer=0, phase=self.phase)
        run = partial(step.run_step, model, design, count, self.routing, self.seed, phase=self.phase)
        return lambda: self._named(self._seeded(run(placement=placement)))

    def _layer(self, design: DesignSpec, progress: Progress) -> Callable[[], accelerator.Report]:
        given = workload.vector_workload(self.model_name, self.tokens) if self.vector else None
        model = given.model if given else self.model
        image, placement = self._place(model, design)
        pim = design.engine is Engine.PIM

        def run_model(ids: IntArray, routing: str, lengths: list[int] | None = None) -> accelerator.Report:
            if not pim:
                return accelerator.run_model(model, design, ids, routing, lengths)
            report = pim_report.run_pim_model(model, design, ids, routing, lengths, placement=placement)
            return self._named(report)

        def run_layer(work: workload.Workload, routing: str) -> accelerator.Report:
            options: Options = {"engine": self.engine, "routing": routing, "waves": self.waves}
            if not pim:
                return accelerator.run_layer(work, design, progress=progress, **options)
            return self._named(
                pim_report.run_pim_layer(
                    work, design, progress=progress, placement=placement, trace=self.trace, **options
                )
            )

        if given:
            if self.engine == "model":
                return lambda: run_model(given.reference_ids, "vector", given.batch_lengths)
            return lambda: run_layer(given, "vector")
        count = self.tokens or workload.DEFAULT_TOKENS
        ids = draw_ids(model.gating, self.routing, count, self.seed)
        if self.engine == "model":
            return lambda: self._seeded(run_model(ids, self.routing.layer_name()))
        workload.check_image(image.num_bytes)

        def run() -> accelerator.Report:
            weights = None
            if self.own_layer is not None:
                progress(f"reading the weights of {self.own_layer.label}")
                weights = self.own_layer.read()
            progress("drawing weights and tokens" if weights is None else "drawing tokens")
            work = workload.random_workload(
                model, count, self.routing, self.seed, design.window_tokens, weights
            )
            return self._seeded(run_layer(work, self.routing.layer_name()))

        return run

    def _place(self, model: ModelSpec, design: DesignSpec) -> tuple[ImageGeometry, Placement | None]:
        """Return the weights' geometry, and where a ``pim`` design holds the experts if a file says so.

        Raises :class:`InputError` where model or experts do not fit.
        """
        if design.engine is not Engine.PIM:
            return ImageGeometry.of(model, design), None
        if self.layout is None:
            return BankGeometry.of(model, design).image, None
        banks = BankGeometry.unplaced(model, design)
        return banks.image, load_layout(self.layout, banks)

    def _seeded(self, report: accelerator.Report) -> accelerator.Report:
        """Return the report with the seed of a routing that was drawn."""
        if self.routing.synthetic:
            report.routing["seed"] = self.seed
        return report

    def _named(self, report: accelerator.Report) -> accelerator.Report:
        """Return the report with the file that said where the experts lie."""
        if report.layout is not None and self.layout is not None:
            report.layout["file"] = str(self.layout)
        return report
