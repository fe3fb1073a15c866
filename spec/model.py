"""One Mixture-of-Experts layer: shape, gating algebra, expert FFN, shared branch, capacity.

A model is data. Nothing here knows hardware; :mod:`spec.design` does.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum

from spec.errors import require, require_range

MAX_EXPERTS = 512
MAX_TOP_K = 16
SCALE_MULTIPLE = 16


class Score(StrEnum):
    """What turns router logits into scores."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"


class GroupScore(StrEnum):
    """What a group of experts is ranked by."""

    TOP2_SUM = "top2_sum"
    MAX = "max"


class Normalise(StrEnum):
    """How the selected scores become weights.

    ``sum`` divides by the sum of the selected scores plus epsilon; for a softmax score this is the
    softmax over the selected logits. A sum of 0 gives weights of 0. ``none`` keeps the scores.
    """

    NONE = "none"
    SUM = "sum"


class Activation(StrEnum):
    """Activation of an expert; ``silu`` and ``clamped_swiglu`` are gated (three matrices)."""

    SILU = "silu"
    CLAMPED_SWIGLU = "clamped_swiglu"
    RELU = "relu"


class CapacityRule(StrEnum):
    """In which order the assignments of a batch claim the places that an expert has.

    ``switch``: token by token, a token's choices in turn (arXiv 2101.03961, section 2.2). ``gshard``: all
    first choices before all second ones, and so on, each in token order (arXiv 2006.16668, algorithm
    1; NLLB-MoE as released). ``batch_priority``: as ``gshard``, but tokens in descending order of their
    largest weight (V-MoE, arXiv 2106.05974, section 4; NLLB-MoE with ``batch_prioritized_routing``).
    """

    SWITCH = "switch"
    GSHARD = "gshard"
    BATCH_PRIORITY = "batch_priority"


@dataclass(frozen=True, kw_only=True)
class GatingSpec:
    """The gating algebra: score, bias, groups, top-k, weights.

    Attributes
    ----------
    num_experts, top_k : experts that the router knows, experts chosen per token.
    score : softmax over all experts, or sigmoid of each logit.
    logit_bias : a bias added to the logits (gpt-oss, Switch), seen by selection and weights.
    selection_bias : a bias added to the scores for the selection only (DeepSeek-V3, noaux_tc).
    num_groups, topk_groups : experts lie in equal groups of which only the best take part.
    group_score : what ranks the groups: the sum of the two best scores, or the best.
    normalise, epsilon, scale : weight = score / (sum + epsilon) * scale, or score * scale.
    """

    num_experts: int
    top_k: int
    score: Score = Score.SOFTMAX
    logit_bias: bool = False
    selection_bias: bool = False
    num_groups: int = 1
    topk_groups: int = 1
    group_score: GroupScore = GroupScore.TOP2_SUM
    normalise: Normalise = Normalise.SUM
    epsilon: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        require_range("num_experts", self.num_experts, 1, MAX_EXPERTS)
        require(
            1 <= self.top_k <= min(self.num_experts, MAX_TOP_K),
            f"must be in 1..min(num_experts={self.num_experts}, {MAX_TOP_K}), not {self.top_k}",
            key="top_k",
        )
        require_range("num_groups", self.num_groups, 1, self.num_experts)
        require(
            self.num_experts % self.num_groups == 0,
            f"must divide num_experts={self.num_experts}, not {self.num_groups}",
            key="num_groups",
        )
        require_range("topk_groups", self.topk_groups, 1, self.num_groups)
        require(
            self.top_k <= self.topk_groups * self.group_size,
            f"must leave top_k={self.top_k} experts to choose from, but {self.topk_groups} groups"
            f" of {self.group_size} hold {self.topk_groups * self.group_size}",
            key="topk_groups",
        )
        require(
            self.score is Score.SIGMOID or not self.selection_bias,
            "needs score='sigmoid' (a softmax score with a selection bias is not supported yet)",
            key="selection_bias",
        )
        require(
            not self.grouped or self.score is Score.SIGMOID,
            "needs score='sigmoid' (groups of softmax scores are not supported yet)",
            key="num_groups",
        )
        require(
            not (self.logit_bias and self.selection_bias),
            "cannot be combined with selection_bias",
            key="logit_bias",
        )
        require(
            self.group_score is GroupScore.MAX or not self.grouped or self.group_size >= 2,
            f"top2_sum needs groups of at least 2 experts, not {self.group_size}",
            key="group_score",
        )
        require_range("epsilon", self.epsilon, 0.0, 1e-3)
        require(0 < self.scale < 64, f"must be in 0..64 (both excluded), not {self.scale}", key="scale")

    @property
    def group_size(self) -> int:
        """Experts in a group."""
        return self.num_experts // self.num_groups

    @property
    def grouped(self) -> bool:
        """Whether groups restrict the choice at all."""
        return self.topk_groups < self.num_groups


@dataclass(frozen=True, kw_only=True)
class FfnSpec:
    """One expert's feed-forward network.

    ``silu``: ``W_down (silu(W_gate x) * (W_up x))``. ``clamped_swiglu`` (gpt-oss):
    ``g = min(g, limit)``, ``u = clip(u, -limit, limit)``, ``h = (u + 1) * g * sigmoid(alpha * g)``.
    ``relu``: ``W_down relu(W_up x)``, two matrices. ``bias`` adds a bias to every product.
    """

    d_expert: int
    activation: Activation = Activation.SILU
    bias: bool = False
    limit: float = 7.0
    alpha: float = 1.702

    def __post_init__(self) -> None:
        require_range("d_expert", self.d_expert, 1, 1 << 16)
        require_range("limit", self.limit, 0.5, 64.0)
        require_range("alpha", self.alpha, 0.25, 4.0)

    @property
    def gated(self) -> bool:
        """Whether there is a gate matrix beside the up matrix."""
        return self.activation is not Activation.RELU

    @property
    def num_matrices(self) -> int:
        """Weight matrices per expert."""
        return 3 if self.gated else 2


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """An MoE model, as far as its MoE layers go.

    Attributes
    ----------
    d_model : width of a token.
    num_moe_layers, num_dense_layers : how many layers of each kind the model has.
    gating, ffn : router and routed experts.
    d_shared : width of the shared expert's FFN, 0 if there is none. It has the routed experts' activation.
    expert_capacity : assignments an expert takes per sequence, later ones are dropped; 0 = dropless.
    capacity_rule : which ones are the later ones.
    """

    name: str
    d_model: int
    gating: GatingSpec
    ffn: FfnSpec
    d_shared: int = 0
    expert_capacity: int = 0
    capacity_rule: CapacityRule = CapacityRule.SWITCH
    num_moe_layers: int = 1
    num_dense_layers: int = 0

    def __post_init__(self) -> None:
        require_range("d_model", self.d_model, 1, 1 << 16)
        require_range("d_shared", self.d_shared, 0, 1 << 18)
        require_range("expert_capacity", self.expert_capacity, 0, 1 << 24)
        require_range("num_moe_layers", self.num_moe_layers, 1, 1024)
        require_range("num_dense_layers", self.num_dense_layers, 0, 1024)

    @property
    def expert_params(self) -> int:
        """Parameters of one layer's routed experts, biases included."""
        ffn = self.ffn
        per_expert = ffn.num_matrices * self.d_model * ffn.d_expert
        if ffn.bias:
            per_expert += (ffn.num_matrices - 1) * ffn.d_expert + self.d_model
        return self.gating.num_experts * per_expert

    def scaled(self, divisor: int) -> ModelSpec:
        """Return the model with d_model and the FFN widths divided, rounded up to multiples of 16."""
        require(divisor >= 1, f"must be 'full' or a whole number from 1, not {divisor}", key="scale")
        if divisor == 1:
            return self

        def shrink(size: int) -> int:
            return -(-size // (divisor * SCALE_MULTIPLE)) * SCALE_MULTIPLE

        return dataclasses.replace(
            self,
            d_model=shrink(self.d_model),
            ffn=dataclasses.replace(self.ffn, d_expert=shrink(self.ffn.d_expert)),
            d_shared=shrink(self.d_shared) if self.d_shared else 0,
        )
