"""What the claims are measured on: recorded layers and presets on each accelerator, each run once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from golden.layer_bf16 import layer_routing
from golden.vectors import Vector, read_vector
from sim.accelerator import Progress, Report, build_layer, run_layer
from sim.alone import run_experts
from sim.claims.builds import build_all
from sim.pim_report import build_pim_layer, run_pim_layer
from sim.routing import parse_routing
from sim.system.alone import run_alone
from sim.workload import DEFAULT_TOKENS, Workload, random_workload, scaled_model, vector_workload
from spec.banks import BankGeometry
from spec.design import DesignSpec, Engine, Format
from spec.errors import require
from spec.geometry import ImageGeometry, ceil_div
from spec.hardware import lacking_terms
from spec.load import load_design, load_system
from spec.model import ModelSpec
from spec.registers import EXPERT_BITS

PRESETS = ("mixtral-8x7b", "deepseek-v3", "qwen3-30b-a3b", "gpt-oss-20b", "switch-base-128")
SCALE = 64
Random = tuple[str, int, str]
"""A preset at scale 64, tokens, routing."""
EVERY_PRESET: tuple[Random, ...] = tuple((name, DEFAULT_TOKENS, "uniform") for name in PRESETS)
SEVERAL_WINDOWS: tuple[Random, ...] = (("mixtral-8x7b", 256, "zipf:1"), ("deepseek-v3", 80, "uniform"))
"""Blocks hold each other up."""
EACH_FFN = ("mixtral_s0", "deepseek_v3_s0", "gpt_oss_s0", "switch_transformers_s0")
"""A gated expert, one beside a shared one, a clamped one with biases, a ReLU."""
ON_BOTH = ("deepseek_v3", "gpt_oss", "mixtral", "nllb_moe", "qwen3_moe", "switch_transformers")
"""Families whose recorded layers all run on both accelerators in bf16.

Of each other family that the hardware has, the first recorded layer runs on ``fpga``.
"""


STORED = (
    (Format.FP8, "deepseek-v3"),
    (Format.MXFP4, "gpt-oss-20b"),
    (Format.INT4, "mixtral-8x7b"),
    (Format.W4A8, "gpt-oss-20b"),
)
"""Formats of weights of few bits, each with a preset; two of the models are released in theirs."""
DEEP = "fpga-ecp5"
"""Design whose pipelines are all deep: the one that is routed (``docs/synthesis.md``)."""
SMALL = "pim-small"
"""Near-memory design for these: ``pim`` has eight times as many MACs a channel, a build takes ten minutes."""


@dataclass(frozen=True)
class Suite:
    """What runs on a design in a number format.

    Attributes
    ----------
    vectors : whether a recorded layer runs, by its name and its family.
    random : presets with random weights and tokens.
    """

    design: str
    format: Format
    vectors: Callable[[str, str], bool]
    random: tuple[Random, ...]


_LAYERS = EVERY_PRESET + SEVERAL_WINDOWS
# Each hardware is built once, for a minute or two; int8 is run on every kind of expert rather than
# everything, and at float's side every layer is compared (link int8).
SUITES = (
    Suite("fpga", Format.BF16, lambda name, family: family in ON_BOTH or name.endswith("_s0"), _LAYERS),
    Suite("pim", Format.BF16, lambda _name, family: family in ON_BOTH, _LAYERS),
    Suite("fpga", Format.INT8, lambda name, _family: name in EACH_FFN, EVERY_PRESET[:1]),
    Suite("pim", Format.INT8, lambda name, _family: name in EACH_FFN, EVERY_PRESET[:1]),
    Suite(DEEP, Format.BF16, lambda _name, _family: False, EVERY_PRESET),
    *(
        Suite(design, number_format, lambda _name, _family: False, ((name, DEFAULT_TOKENS, "uniform"),))
        for design in ("fpga", SMALL)
        for number_format, name in STORED
    ),
)
SYSTEMS = ("fpga", "pim")
"""Designs that are systems by themselves, of the same names (``spec/systems``), in bf16."""
ALONE_MODEL, ALONE_SCALE = "mixtral-8x7b", 16
"""An expert alone, with 16 x 56 tiles of 16 x 16."""


@dataclass(frozen=True)
class Run:
    """A layer, or an expert alone, through the exported Verilog and its cycle model.

    ``system_cycles``: of a system that is this accelerator alone; None where that was not run.
    """

    name: str
    command: str
    report: Report
    system_cycles: int | None = None

    @property
    def on(self) -> str:
        """Accelerator and number format."""
        return f"{self.report.design} {self.report.format}"

    @property
    def bits(self) -> int:
        """Bits that are compared with golden: outputs, and unless the gate is bypassed ids and weights."""
        report = self.report
        experts = report.routing["experts_used"] if self.alone else 1
        routing = 0 if self.alone else report.top_k * (EXPERT_BITS + 16)
        return report.tokens * (experts * report.d_model * 16 + routing)

    @property
    def alone(self) -> bool:
        """Whether the expert engine runs alone."""
        return len(self.report.blocks) == 1

    @property
    def layer_difference(self) -> float:
        """Relative difference of the cycles in all; infinite if the Verilog did not get to the end."""
        model, rtl = self.report.cycles["model"], self.report.cycles["rtl"]
        return abs(model - rtl) / rtl if model is not None and rtl else float("inf")

    @property
    def system_difference(self) -> float | None:
        """Relative difference of the system's time; None if there is none, infinite as of the layer."""
        if self.system_cycles is None:
            return None
        rtl = self.report.cycles["rtl"]
        return abs(self.system_cycles - rtl) / rtl if rtl else float("inf")

    def block_difference(self, block: str) -> int | None:
        """Return model minus RTL cycles of a block, None if it was not run to the end."""
        pair = self.report.blocks[block]
        return None if pair["model"] is None or pair["rtl"] is None else pair["model"] - pair["rtl"]


@dataclass(frozen=True)
class Planned:
    """A layer to be run: workload and design."""

    name: str
    command: str
    work: Workload
    design: DesignSpec

    @property
    def on(self) -> str:
        """Accelerator and number format."""
        return f"{self.design.name} {self.design.format}"

    @property
    def hardware(self) -> tuple[ModelSpec, DesignSpec]:
        """What the Verilog is made of; names and layers do not matter to it."""
        model = dataclasses.replace(self.work.model, name="model", num_moe_layers=1, num_dense_layers=0)
        return model, self.design

    @property
    def is_system(self) -> bool:
        """Whether its design alone is a preset of ``expertbank system``, and its model one with a preset."""
        design = self.design
        return self.work.target_ids is not None and design.name in SYSTEMS and design.format is Format.BF16

    def system_cycles(self) -> int | None:
        """Return the cycles of the system of this accelerator alone, None where there is none.

        For the experts that golden's gate chooses, which may be others than those asked for.
        """
        if not self.is_system:
            return None
        model, _ = self.hardware
        near = load_system(self.design.name).near.block
        assert near is not None
        image = ImageGeometry.of(model, near) if near.pim is None else BankGeometry.of(model, near).image
        ids = layer_routing(image, self.work.weights, self.work.tokens).ids
        step, _, _ = run_alone(model, near, ids[None].astype(np.int64), "chosen")
        return round(step.seconds * near.clock_hz)

    def run(self, root: Path, progress: Progress) -> Run:
        """Run it through the Verilog and the models."""
        run = run_pim_layer if self.design.engine is Engine.PIM else run_layer
        report = run(
            self.work,
            self.design,
            engine="both",
            routing="uniform" if self.work.target_ids is not None else "vector",
            root=root,
            progress=lambda text: progress(f"{self.name} on {self.on}: {text}"),
        )
        return Run(self.name, self.command, report, self.system_cycles())


@dataclass(frozen=True)
class Measurement:
    """What the links are measured on: the vectors of a folder, the designs, where builds are kept."""

    vectors: Path
    root: Path
    progress: Progress

    @cached_property
    def design(self) -> DesignSpec:
        """The design on which an expert runs alone; layers are drawn for its windows."""
        return load_design("fpga")

    def paths(self) -> list[Path]:
        """Return the files of the folder; :class:`spec.errors.InputError` if there are none."""
        paths = sorted(self.vectors.glob("*.npz"))
        require(bool(paths), "holds no .npz file", key=str(self.vectors))
        return paths

    @cached_property
    def folder(self) -> dict[str, Vector]:
        """All recorded layers of the folder by their names."""
        return {path.stem: read_vector(path) for path in self.paths()}

    @cached_property
    def recorded(self) -> dict[str, Workload]:
        """The recorded layers that the hardware has, by their names."""
        return {
            name: vector_workload(str(self.vectors / f"{name}.npz"), None)
            for name in self.folder
            if name not in self.refused
        }

    @cached_property
    def refused(self) -> dict[str, list[str]]:
        """The terms that the hardware lacks of each recorded layer that it has not."""
        lacking = {name: lacking_terms(vector.model) for name, vector in self.folder.items()}
        return {name: terms for name, terms in lacking.items() if terms}

    @cached_property
    def drawn(self) -> dict[Random, Workload]:
        """Presets at scale 64, with random weights and tokens."""
        found = {}
        for model, tokens, routing in dict.fromkeys(one for suite in SUITES for one in suite.random):
            self.progress(f"drawing weights and tokens of {random_name(model, tokens)}")
            found[model, tokens, routing] = random_workload(
                scaled_model(model, SCALE), tokens, parse_routing(routing), 0, self.design.window_tokens
            )
        return found

    @cached_property
    def workloads(self) -> dict[str, Workload]:
        """Every layer by its name: vectors, then presets."""
        random = {random_name(model, tokens): work for (model, tokens, _), work in self.drawn.items()}
        return self.recorded | random

    @cached_property
    def planned(self) -> list[Planned]:
        """Every layer on every accelerator that it runs on."""
        found = []
        for suite in SUITES:
            design = load_design(suite.design, suite.format)
            require(
                design.window_tokens == self.design.window_tokens,
                f"must be {self.design.window_tokens} as in {self.design.name}, not {design.window_tokens}",
                key=f"{design.name}: window_tokens",
            )
            options = ("" if suite.design == "fpga" else f" --design {suite.design}") + (
                "" if suite.format is Format.BF16 else f" --format {suite.format}"
            )
            for name, work in self.recorded.items():
                if suite.vectors(name, self.folder[name].family):
                    command = f"expertbank sim --model {self.vectors / name}.npz{options}"
                    found.append(Planned(name, command, work, design))
            for model, tokens, routing in suite.random:
                command = f"expertbank sim --model {model} --tokens {tokens}{options}"
                command += "" if routing == "uniform" else f" --routing {routing}"
                work = self.drawn[model, tokens, routing]
                found.append(Planned(random_name(model, tokens), command, work, design))
        return found

    @cached_property
    def layers(self) -> list[Run]:
        """Every planned layer through Verilog and model."""
        wanted = {plan.hardware: plan for plan in self.planned}
        jobs = [(f"{plan.name} on {plan.on}", (*plan.hardware, self.root)) for plan in wanted.values()]
        build_all(_build, jobs, self.progress)
        runs = []
        for number, plan in enumerate(self.planned, 1):
            self.progress(f"layer {number} of {len(self.planned)}")
            runs.append(plan.run(self.root, self.progress))
        return runs

    @cached_property
    def experts(self) -> list[Run]:
        """One full-width expert alone, with as many tokens as a tile's load has cycles, and with one."""
        return [self.expert_alone(tokens, "both") for tokens in (self.covering_tokens, 1)]

    @property
    def covering_tokens(self) -> int:
        """Tokens that keep the array busy for as long as the next tile takes to come."""
        array = self.design.tile
        return ceil_div(array.rows * array.cols, self.design.memory.beat_elements)

    def expert_alone(self, tokens: int, engine: str) -> Run:
        """Return a run of the first expert of a large model."""
        name = f"expert of {ALONE_MODEL} / {ALONE_SCALE}, {tokens} token{'s' if tokens > 1 else ''}"
        command = f"expertbank sim --model {ALONE_MODEL} --scale {ALONE_SCALE} --experts 1 --tokens {tokens}"
        report = run_experts(
            ALONE_MODEL,
            self.design,
            1,
            tokens,
            ALONE_SCALE,
            engine=engine,
            seed=0,
            root=self.root,
            progress=lambda text: self.progress(f"{name}: {text}"),
        )
        return Run(name, command, report)


def _build(model: ModelSpec, design: DesignSpec, root: Path) -> None:
    """Build a layer's Verilog, as its run does."""
    (build_pim_layer if design.engine is Engine.PIM else build_layer)(model, design, root)


def random_name(model: str, tokens: int) -> str:
    """Return the name of a preset's layer."""
    return f"{model} / {SCALE}, {tokens} tokens"
