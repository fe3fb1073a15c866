"""What ``expertbank sim`` is asked for, checked for a design before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from golden.checkpoint import CheckpointLayer
from golden.weights import check_seed, random_weights
from sim import accelerator, alone, axi_layer, pim_report, step, workload
from sim.energy import check_table
from sim.flips import NO_FLIPS, Flips
from sim.routing import IntArray, Routing, draw_ids, parse_routing, shape_of
from sim.toolchain import check_parent
from spec.banks import BankGeometry
from spec.design import DesignSpec, Engine
from spec.errors import InputError, require, require_range
from spec.geometry import ImageGeometry
from spec.layout import Placement, load_layout
from spec.load import is_folder, load_model
from spec.model import ModelSpec

Progress = Callable[[str], None]

RTL_SCALE = 64
"""What sizes are divided by for the Verilog, if nothing is said."""


class Options(TypedDict):
    """What both accelerators' runs of the Verilog are told."""

    engine: str
    routing: str
    waves: Path | None
    record: bool


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
    record : whether reports tell when what works (``activity``).
    flips : words of the banks in which bits are flipped.
    axi : through the top with AXI ports.
    """

    model_name: str
    engine: str
    tokens: int | None
    divisor: int
    experts: int | None
    phase: str | None
    routing: Routing
    seed: int
    waves: Path | None = None
    trace: Path | None = None
    layout: Path | None = None
    layer: str | None = None
    record: bool = False
    flips: Flips = NO_FLIPS
    axi: bool = False

    @classmethod
    def of(
        cls,
        model_name: str,
        *,
        engine: str | None = None,
        tokens: int | None = None,
        scale: str | None = None,
        phase: str | None = None,
        routing: str | None = None,
        routing_layer: int | None = None,
        seed: int | None = None,
        experts: int | None = None,
        layer: str | None = None,
        **more: Any,
    ) -> Request:
        """Return the request of options as ``expertbank sim`` has them; None is each one's default.

        ``more``: attributes as they are. Raises :class:`InputError` for whatever no design could run.
        """
        chosen = engine or ("model" if phase else "both")
        vector = workload.is_vector(model_name)
        # The cycle model computes no values: of a folder it needs the configuration alone.
        folder = is_folder(model_name) and (chosen != "model" or layer is not None)
        shape = None if vector else shape_of(load_model(model_name))
        request = cls(
            model_name=model_name,
            engine=chosen,
            tokens=tokens,
            divisor=workload.parse_scale(
                scale, 1 if chosen == "model" else RTL_SCALE, vector=vector, folder=folder
            ),
            experts=experts,
            phase=phase,
            routing=parse_routing(routing or "uniform", shape, layer=routing_layer),
            seed=seed or 0,
            layer=layer,
            **more,
        )
        check_seed(request.seed)
        if tokens is not None:
            require_range("tokens", tokens, 1, 1 << 20)
        require(request.waves is None or chosen != "model", "needs --engine rtl or both", key="waves")
        require(phase is None or experts is None, "cannot be combined with --phase", key="experts")
        for key, words in (("flips", request.flips.single), ("double_flips", request.flips.double)):
            require_range(key, words, 0, 1 << 20)
            require(words == 0 or chosen != "model", "needs --engine rtl or both", key=key)
        if request.axi:
            require(chosen == "rtl", f"axi needs --engine rtl, not {chosen}", key="bus")
            others = {
                "--experts": experts is not None,
                "--trace": request.trace is not None,
                "--flips": request.flips != NO_FLIPS,
                "--report, --timeline and --csv": request.record,
            }
            for option, given in others.items():
                require(not given, f"axi cannot be combined with {option}", key="bus")
        return request

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
        if self.flips != NO_FLIPS:
            require(
                design.pim is not None and design.pim.secded,
                f"needs check bits in the banks (--secded), which design {design.name} has not",
                key="flips" if self.flips.single else "double_flips",
            )
        check_table(design)
        try:
            if self.experts is not None:
                return self._experts(design, self.experts, progress)
            if self.phase is not None:
                return self._step(design)
            return self._layer(design, progress)
        except InputError as error:
            # Of several designs it is said whose banks are too small.
            if error.key != "pim.dram":
                raise
            raise error.at(file=f"design {design.name}") from None

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
            flips=self.flips,
        )

    def _step(self, design: DesignSpec) -> Callable[[], accelerator.Report]:
        require(self.engine == "model", f"needs --engine model, not {self.engine}", key="phase")
        require(self.layer is None, "cannot be combined with --phase", key="layer")
        require(
            not self.vector, f"needs a model of many layers, not the vector {self.model_name}", key="phase"
        )
        model = workload.scaled_model(self.model_name, self.divisor)
        pim = design.engine is Engine.PIM
        banks = BankGeometry.unplaced(model, design) if pim else None
        layout = None if banks is None else self._layout(banks)
        if banks is None:
            ImageGeometry.of(model, design)
        count = self.tokens or workload.DEFAULT_TOKENS
        self.routing.check_layers(model.num_moe_layers)
        draw = partial(draw_ids, model.gating, self.routing, count, phase=self.phase)
        draw(self.seed, moe_layer=0)
        if banks is not None and layout is None and not banks.fits(banks.round_robin()):
            # Each layer has its own tokens, and is placed for them.
            for number in range(model.num_moe_layers):
                banks.place(np.unique(draw(self.seed + number, moe_layer=number)).tolist())
        run = partial(step.run_step, model, design, count, self.routing, self.seed, phase=self.phase)
        return lambda: self._named(self._seeded(run(placement=layout, record=self.record)))

    def _layer(self, design: DesignSpec, progress: Progress) -> Callable[[], accelerator.Report]:
        given = workload.vector_workload(self.model_name, self.tokens) if self.vector else None
        model = given.model if given else self.model
        if design.engine is Engine.PIM:
            return self._pim_layer(model, design, given, progress)
        image = ImageGeometry.of(model, design)

        def run_layer(work: workload.Workload, routing: str) -> accelerator.Report:
            if self.axi:
                return self._at_axi_ports(work, design, routing, progress)
            options = self._options(routing)
            return accelerator.run_layer(work, design, progress=progress, **options)

        if given:
            if self.engine == "model":
                ids, lengths = given.reference_ids, given.batch_lengths
                return lambda: accelerator.run_model(
                    model, design, ids, "vector", lengths, record=self.record
                )
            return lambda: run_layer(given, "vector")
        count, name = self.tokens or workload.DEFAULT_TOKENS, self.routing.layer_name()
        ids = draw_ids(model.gating, self.routing, count, self.seed)
        if self.engine == "model":
            return lambda: self._seeded(accelerator.run_model(model, design, ids, name, record=self.record))
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
            return self._seeded(run_layer(work, name))

        return run

    def _pim_layer(
        self, model: ModelSpec, design: DesignSpec, given: workload.Workload | None, progress: Progress
    ) -> Callable[[], accelerator.Report]:
        banks = BankGeometry.unplaced(model, design)
        layout = self._layout(banks)

        def run_model(
            ids: IntArray, routing: str, lengths: list[int] | None = None
        ) -> Callable[[], accelerator.Report]:
            placement = layout or banks.place(np.unique(ids).tolist())
            run = partial(pim_report.run_pim_model, model, design, ids, routing, lengths)
            return lambda: self._named(run(placement=placement, record=self.record))

        def run_layer(work: workload.Workload, routing: str, placement: Placement) -> accelerator.Report:
            if self.axi:
                return self._named(self._at_axi_ports(work, design, routing, progress, placement))
            options = self._options(routing)
            run = partial(
                pim_report.run_pim_layer, progress=progress, trace=self.trace, flips=self.flips, **options
            )
            return self._named(run(work, design, placement=placement))

        if given:
            if self.engine == "model":
                return run_model(given.reference_ids, "vector", given.batch_lengths)
            used = workload.experts_used(banks.image, given.weights, given.tokens)
            placement = layout or banks.place(used)
            return lambda: run_layer(given, "vector", placement)
        count, name = self.tokens or workload.DEFAULT_TOKENS, self.routing.layer_name()
        if self.engine == "model":
            modelled = run_model(draw_ids(model.gating, self.routing, count, self.seed), name)
            return lambda: self._seeded(modelled())
        # The tokens come before the experts: of these only the ones that they meet are drawn or read.
        drawn = workload.draw_tokens(
            model,
            count,
            self.routing,
            self.seed,
            random_weights(model, self.seed, experts=[])
            if self.own_layer is None
            else self.own_layer.read([0]),
        )
        used = drawn.used(banks.image)
        placement = layout or banks.place(used)
        workload.check_image(banks.bytes_of(placement, used))

        def run() -> accelerator.Report:
            experts = drawn.needed(banks.image)
            if self.own_layer is None:
                progress("drawing weights and tokens")
                weights = random_weights(model, self.seed, experts=experts)
            else:
                progress(f"reading the weights of {self.own_layer.label}")
                weights = self.own_layer.read(experts)
            work = drawn.workload(weights, design.window_tokens)
            return self._seeded(run_layer(work, name, placement))

        return run

    def _at_axi_ports(
        self,
        work: workload.Workload,
        design: DesignSpec,
        routing: str,
        progress: Progress,
        placement: Placement | None = None,
    ) -> accelerator.Report:
        return axi_layer.run_axi_layer(
            work, design, routing=routing, placement=placement, waves=self.waves, progress=progress
        )

    def _options(self, routing: str) -> Options:
        return {"engine": self.engine, "routing": routing, "waves": self.waves, "record": self.record}

    def _layout(self, banks: BankGeometry) -> Placement | None:
        """Return where the experts lie if a file says so; :class:`InputError` where they do not fit."""
        return None if self.layout is None else load_layout(self.layout, banks)

    def _seeded(self, report: accelerator.Report) -> accelerator.Report:
        """Return the report with the seed of a routing that was drawn."""
        if self.routing.synthetic:
            report.routing["seed"] = self.seed
        return report

    def _named(self, report: accelerator.Report) -> accelerator.Report:
        """Return the report with the file that said where the experts lie, or with what the banks hold."""
        if report.layout is None:
            return report
        if self.layout is not None:
            report.layout["file"] = str(self.layout)
        if report.layout["only"] is not None and self.phase is None:
            report.notes.append(
                f"the banks hold only the {report.layout['only']} experts that these tokens use"
            )
        return report
