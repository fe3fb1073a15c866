"""A publication's claims, the band in which a model of it may lie, and the numbers that the model takes.

``spec/papers/*.toml``; ``expertbank reproduce`` runs them. Nothing in a file is fitted to a claim: inputs
were declared before they were computed with, and stay.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

from spec.errors import require, require_range
from spec.system import Evidence, Quantity, SystemSpec

WIDE = 0.25
"""An interval that is wider than this, either way of the nominal, is no test."""


class Grade(StrEnum):
    """How well a paper can be tested: whether its inputs are known. What is low to medium counts as low."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


class Bound(StrEnum):
    """What a result is, where it is no estimate: the published figure must be at least that, or at most."""

    LOWER = "lower"
    UPPER = "upper"


class Judged(StrEnum):
    """How a claim is judged.

    ``percent``: the nominal result lies within ``percent`` of the published one. ``interval``: the published
    one lies in the interval over sourced inputs. ``open``: it is printed, and not judged: inputs that decide
    it are unknown.
    """

    PERCENT = "percent"
    INTERVAL = "interval"
    OPEN = "open"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A published figure.

    Attributes
    ----------
    published : the figure; of a share or a saving the ratio that it stands for.
    what : in words, with its unit.
    evidence, source : where the figure was read.
    judged, percent : how it is judged.
    confidence : in that judgement.
    above : what the result must also be above; None: nothing.
    bound : of an open claim, whether what is modelled is a bound, which the publication must not contradict.
    needs_files : whether it is run only with files that the user has.
    unmodelled : why nothing is modelled of it; it is listed, and not run.
    cause : why a result may lie outside, where that is known.
    """

    published: float
    what: str
    evidence: Evidence
    source: str
    judged: Judged
    confidence: Grade
    percent: float = 0.0
    above: float | None = None
    bound: Bound | None = None
    needs_files: bool = False
    unmodelled: str = ""
    cause: str = ""

    def __post_init__(self) -> None:
        require(self.published > 0, f"must be above 0, not {self.published:g}", key="published")
        if self.judged is Judged.PERCENT:
            require_range("percent", self.percent, 1, 50)
        else:
            require(self.percent == 0, f"must be left out of a claim judged {self.judged}", key="percent")
        for key in ("bound", "unmodelled"):
            given = bool(getattr(self, key)) and self.judged is not Judged.OPEN
            require(not given, f"must be left out of a claim judged {self.judged}", key=key)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a paper runs: the shape of a model's MoE layers, and the devices that they lie on.

    Attributes
    ----------
    layers, dense_layers : of each kind.
    d_model, d_expert, matrices : an expert's widths and matrices.
    experts, top_k : routed.
    tokens : of what is run at a time, where the paper has one number.
    kv_share : width of keys, or of values, over d_model.
    kv_layers : with a cache of keys and values.
    nodes, devices : the system's nodes, and a node's devices.
    evidence, source : of all these numbers.
    """

    layers: int
    d_model: int
    d_expert: int
    matrices: int
    experts: int
    top_k: int
    evidence: Evidence
    source: str
    dense_layers: int = 0
    tokens: int = 0
    kv_share: float = 1.0
    kv_layers: int = 0
    nodes: int = 1
    devices: int = 1

    def __post_init__(self) -> None:
        for key in ("layers", "d_model", "d_expert", "matrices", "experts", "top_k", "nodes", "devices"):
            require_range(key, getattr(self, key), 1, 1 << 20)
        require(self.top_k <= self.experts, f"must be at most experts={self.experts}", key="top_k")

    @property
    def expert_params(self) -> int:
        """Parameters of one expert."""
        return self.matrices * self.d_model * self.d_expert


@dataclass(frozen=True, kw_only=True)
class Misreading:
    """What the survey says of the paper, and what the paper itself says."""

    survey: str
    paper: str
    source: str


@dataclass(frozen=True, kw_only=True)
class PaperSpec:
    """A paper.

    Attributes
    ----------
    grade : how well it can be tested.
    systems : presets of ``spec/systems`` by the name that the paper's model calls them.
    inputs : other numbers.
    workloads : what is run.
    claims : by name.
    misreadings : of the survey, by name.
    note : what a reader of the table should know.
    """

    PRESET_FOLDER: ClassVar[str] = "papers"

    name: str
    title: str
    grade: Grade
    claims: dict[str, Claim]
    systems: dict[str, SystemSpec] = field(default_factory=dict)
    inputs: dict[str, Quantity] = field(default_factory=dict)
    workloads: dict[str, Workload] = field(default_factory=dict)
    misreadings: dict[str, Misreading] = field(default_factory=dict)
    note: str = ""
