"""What the claims are measured on: recorded layers and presets, each run once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sim.accelerator import Progress, Report, run_layer
from sim.alone import run_experts
from sim.routing import parse_routing
from sim.workload import DEFAULT_TOKENS, Workload, random_workload, scaled_model, vector_workload
from spec.design import DesignSpec
from spec.errors import require
from spec.geometry import ceil_div
from spec.load import load_design
from spec.registers import EXPERT_BITS

PRESETS = ("mixtral-8x7b", "deepseek-v3", "qwen3-30b-a3b", "gpt-oss-20b", "switch-base-128")
SCALE = 64
RANDOM = (
    *((name, DEFAULT_TOKENS, "uniform") for name in PRESETS),
    ("mixtral-8x7b", 256, "zipf:1"),
    ("deepseek-v3", 80, "uniform"),
)
"""Presets, tokens, routing; the last ones fill several windows, so that blocks hold each other up."""
ALONE_MODEL, ALONE_SCALE = "mixtral-8x7b", 16
"""An expert alone, with 16 x 56 tiles of 16 x 16."""


@dataclass(frozen=True)
class Run:
    """A layer, or an expert alone, through the exported Verilog and its cycle model."""

    name: str
    command: str
    report: Report

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
        return set(self.report.blocks) == {"expert"}

    @property
    def layer_difference(self) -> float:
        """Relative difference of the cycles in all; infinite if the Verilog did not get to the end."""
        model, rtl = self.report.cycles["model"], self.report.cycles["rtl"]
        return abs(model - rtl) / rtl if model is not None and rtl else float("inf")

    def block_difference(self, block: str) -> int | None:
        """Return model minus RTL cycles of a block, None if it was not run to the end."""
        pair = self.report.blocks[block]
        return None if pair["model"] is None or pair["rtl"] is None else pair["model"] - pair["rtl"]


@dataclass(frozen=True)
class Measurement:
    """What the links are measured on: the vectors of a folder, the design, where builds are kept."""

    vectors: Path
    root: Path
    progress: Progress

    @cached_property
    def design(self) -> DesignSpec:
        """The design of every run."""
        return load_design("fpga")

    @property
    def vector_paths(self) -> list[Path]:
        """The recorded layers."""
        paths = sorted(self.vectors.glob("*.npz"))
        require(bool(paths), "holds no .npz file", key=str(self.vectors))
        return paths

    @cached_property
    def workloads(self) -> list[tuple[str, str, Workload]]:
        """Name, command and workload: every vector, then presets at scale 64."""
        found = [
            (path.stem, f"expertbank sim --model {path}", vector_workload(str(path), None))
            for path in self.vector_paths
        ]
        for model, tokens, routing in RANDOM:
            name = f"{model} / {SCALE}, {tokens} tokens"
            self.progress(f"drawing weights and tokens of {name}")
            work = random_workload(
                scaled_model(model, SCALE), tokens, parse_routing(routing), 0, self.design.window_tokens
            )
            options = "" if routing == "uniform" else f" --routing {routing}"
            found.append((name, f"expertbank sim --model {model} --tokens {tokens}{options}", work))
        return found

    @cached_property
    def layers(self) -> list[Run]:
        """Every workload through Verilog and model."""
        runs = []
        for name, command, work in self.workloads:
            report = run_layer(
                work,
                self.design,
                engine="both",
                routing="uniform" if work.target_ids is not None else "vector",
                root=self.root,
                progress=lambda text, name=name: self.progress(f"{name}: {text}"),  # type: ignore[misc]
            )
            runs.append(Run(name, command, report))
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
