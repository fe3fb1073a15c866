"""One Mixture-of-Experts layer: shape, gating algebra, expert FFN, shared branch, capacity.

A model is data. Nothing here knows hardware; :mod:`spec.design` does, and :mod:`spec.hardware` says which
of these terms the hardware has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import ceil, floor

from spec.errors import require, require_range

MAX_EXPERTS = 4096
MAX_TOP_K = 64
MAX_LAYERS = 1024
MAX_WIDTH = 1 << 16
"""Of tokens and of a routed expert."""
MAX_SCALE = 1 << 16
"""Of weights and of experts' outputs."""
SCALE_MULTIPLE = 16
SHARE_DIGITS = 9
"""Decimals of a share of the tokens, where it is rounded down."""
NO_PLACES = -1
"""An ``expert_capacity`` that drops every assignment; 0 drops none."""


class Score(StrEnum):
    """What turns router logits into scores; ``none``: the score is the logit."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"
    SQRT_SOFTPLUS = "sqrt_softplus"
    NONE = "none"


class Router(StrEnum):
    """What gives a token its logits, one for each expert.

    ``linear``: a matrix product. ``attention``: three of them, query, key and value, a number for each
    expert; an expert's logit is the mean of the values, weighted by a softmax over its query times the
    keys (Yuan 2.0-M32, arXiv 2405.17976, section 2.2). ``mlp``: two of them, one after the other, with a
    tanh between (LLaMA-MoE, arXiv 2406.16554; an option of Skywork-MoE).
    """

    LINEAR = "linear"
    ATTENTION = "attention"
    MLP = "mlp"


class Selection(StrEnum):
    """How a token's experts are chosen.

    ``top_k``: the largest selection scores. ``sparse_mixer``: one after another, the largest logit of those
    left; the weight is a softmax over those left whose logits are near it (SparseMixer-v2, arXiv 2409.12136,
    in evaluation). ``hash``: a table from token id to experts (arXiv 2106.04426); scores give weights only.
    """

    TOP_K = "top_k"
    SPARSE_MIXER = "sparse_mixer"
    HASH = "hash"


class GroupScore(StrEnum):
    """What a group of experts is ranked by."""

    TOP2_SUM = "top2_sum"
    MAX = "max"


class GroupMask(StrEnum):
    """What becomes of the selection scores of groups that lose: minus infinity, or 0.

    With ``zero`` an expert of a losing group still beats one whose selection score is negative.
    """

    MINUS_INFINITY = "minus_infinity"
    ZERO = "zero"


class Normalise(StrEnum):
    """How the selected scores become weights.

    ``sum`` divides by the sum of the selected scores and epsilon; for a softmax score this is the
    softmax over the selected logits. A sum of 0 gives weights of 0. ``p_norm`` divides by the norm of the
    order ``norm_order`` instead. ``none`` keeps the scores.
    """

    NONE = "none"
    SUM = "sum"
    P_NORM = "p_norm"


class Epsilon(StrEnum):
    """Whether epsilon is added to the denominator or is its least value."""

    ADDED = "added"
    CLAMPED = "clamped"


class AppliedTo(StrEnum):
    """What a weight multiplies: an expert's output, or its input."""

    OUTPUT = "output"
    INPUT = "input"


class Activation(StrEnum):
    """Activation of an expert.

    ``gelu`` is the exact one, ``gelu_tanh`` its approximation by tanh, ``quick_gelu`` that by a sigmoid of
    1.702 x, ``relu2`` the square of relu, ``linear`` none. ``clamped_swiglu`` is gpt-oss's
    (:class:`FfnSpec`). ``relu`` and ``relu2`` have no gate matrix unless the FFN says so.
    """

    SILU = "silu"
    CLAMPED_SWIGLU = "clamped_swiglu"
    RELU = "relu"
    RELU2 = "relu2"
    GELU = "gelu"
    GELU_TANH = "gelu_tanh"
    QUICK_GELU = "quick_gelu"
    SIGMOID = "sigmoid"
    TANH = "tanh"
    LINEAR = "linear"


class CapacityRule(StrEnum):
    """In which order the assignments of a batch claim the places that an expert has.

    ``switch``: token by token, a token's choices in turn (arXiv 2101.03961, section 2.2). ``gshard``: all
    first choices before all second ones, and so on, each in token order (arXiv 2006.16668, algorithm
    1; NLLB-MoE as released). ``batch_priority``: as ``gshard``, but tokens in descending order of their
    largest weight (V-MoE, arXiv 2106.05974, section 4); ``score_priority``: of their largest score, before
    it is normalised (NLLB-MoE with ``batch_prioritized_routing``).
    """

    SWITCH = "switch"
    GSHARD = "gshard"
    BATCH_PRIORITY = "batch_priority"
    SCORE_PRIORITY = "score_priority"


class CapacityScope(StrEnum):
    """Whether an expert's places count for each sequence, or for all tokens of a batch."""

    SEQUENCE = "sequence"
    BATCH = "batch"


class CapacityRounding(StrEnum):
    """How a share of the tokens becomes a number of places.

    ``up``: to the next whole number. ``even``: down to a whole number, and an odd one up by one (OpenMoE).
    """

    UP = "up"
    EVEN = "even"


@dataclass(frozen=True, kw_only=True)
class GatingSpec:
    """The gating algebra: score, bias, groups, top-k, weights.

    Attributes
    ----------
    num_experts, top_k : experts that the router knows, experts chosen per token.
    num_identity_experts : so many of them, the last ones, return their input (zero-computation experts,
        arXiv 2410.07348; LongCat-Flash).
    router : the matrix product, the attention router, or two layers.
    router_width : with ``router = mlp``, the width between its two layers; else 0.
    logit_deviation : where above 0, a token's logits are shifted and scaled to a mean of 0 and this
        standard deviation (over the experts) before the score (Skywork-MoE, arXiv 2406.06563, section 3.1).
    num_prototypes : the experts lie in so many equal groups, each with a softmax of its own, of which each
        gives the same number of experts (M6-T, arXiv 2105.15082, section 3.2).
    score : softmax over all experts, sigmoid or sqrt(softplus) of each logit, or the logit itself.
    weight_score : the score that becomes the weight, where it is another one than that of the selection.
    selection : the largest selection scores, SparseMixer or a hash table.
    jitter : SparseMixer's tolerance: logits within ``2 * jitter`` of the largest (relative) are near it.
    hash_tokens : token ids in the hash table, 0 without one.
    logit_bias : a bias added to the logits (gpt-oss, Switch), seen by selection and weights.
    selection_bias : a bias added to the scores for the selection only (DeepSeek-V3, noaux_tc).
    num_groups, topk_groups : experts lie in equal groups of which only the best take part.
    group_score : what ranks the groups: the sum of the two best scores, or the best.
    group_mask : what becomes of the scores of the others.
    normalise, epsilon, epsilon_rule, norm_order, scale : weight = score / (sum + epsilon) * scale,
        score / max(sum, epsilon) * scale, score / p-norm * scale, or score * scale.
    normalise_kept : the sum is over the assignments that found a place at their expert (NLLB-MoE).
    weight_applied_to : the expert's output or its input.
    """

    num_experts: int
    top_k: int
    num_identity_experts: int = 0
    router: Router = Router.LINEAR
    router_width: int = 0
    logit_deviation: float = 0.0
    num_prototypes: int = 1
    score: Score = Score.SOFTMAX
    weight_score: Score | None = None
    selection: Selection = Selection.TOP_K
    jitter: float = 0.0
    hash_tokens: int = 0
    logit_bias: bool = False
    selection_bias: bool = False
    num_groups: int = 1
    topk_groups: int = 1
    group_score: GroupScore = GroupScore.TOP2_SUM
    group_mask: GroupMask = GroupMask.MINUS_INFINITY
    normalise: Normalise = Normalise.SUM
    epsilon: float = 0.0
    epsilon_rule: Epsilon = Epsilon.ADDED
    norm_order: float = 1.0
    scale: float = 1.0
    normalise_kept: bool = False
    weight_applied_to: AppliedTo = AppliedTo.OUTPUT

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
        require_range("num_identity_experts", self.num_identity_experts, 0, self.num_experts - 1)
        require(
            self.group_score is GroupScore.MAX or not self.grouped or self.group_size >= 2,
            f"top2_sum needs groups of at least 2 experts, not {self.group_size}",
            key="group_score",
        )
        require_range("num_prototypes", self.num_prototypes, 1, self.top_k)
        require(
            self.num_experts % self.num_prototypes == 0 and self.top_k % self.num_prototypes == 0,
            f"must divide num_experts={self.num_experts} and top_k={self.top_k}, not {self.num_prototypes}",
            key="num_prototypes",
        )
        require_range("router_width", self.router_width, 0, MAX_WIDTH)
        require(
            (self.router_width > 0) is (self.router is Router.MLP),
            f"must be above 0 with router='mlp', and 0 without, not {self.router_width}",
            key="router_width",
        )
        require_range("logit_deviation", self.logit_deviation, 0.0, MAX_SCALE)
        require_range("epsilon", self.epsilon, 0.0, 1.0)
        require(self.norm_order > 0, f"must be above 0, not {self.norm_order}", key="norm_order")
        require(
            0 < self.scale < MAX_SCALE,
            f"must be in 0..{MAX_SCALE} (both excluded), not {self.scale}",
            key="scale",
        )
        require_range("jitter", self.jitter, 0.0, 1.0)
        require_range("hash_tokens", self.hash_tokens, 0, 1 << 24)
        require(
            (self.hash_tokens > 0) is (self.selection is Selection.HASH),
            f"must be above 0 with selection='hash', and 0 without, not {self.hash_tokens}",
            key="hash_tokens",
        )
        ranks = self.selection is Selection.TOP_K
        require(
            ranks or not (self.selection_bias or self.grouped or self.num_prototypes > 1),
            f"must be 'top_k' with a selection bias, groups or prototypes, not {self.selection.value!r}",
            key="selection",
        )
        require(
            self.num_prototypes == 1 or not self.grouped,
            f"must be 1 with groups, of which only some take part, not {self.num_prototypes}",
            key="num_prototypes",
        )
        own_weights = self.selection is Selection.SPARSE_MIXER
        require(
            not own_weights or (self.normalise is Normalise.NONE and self.weight_score is None),
            "must be 'none', and weight_score absent, with selection='sparse_mixer', which has weights of"
            f" its own, not {self.normalise.value!r}",
            key="normalise",
        )
        require(
            not self.normalise_kept or self.normalise is not Normalise.NONE,
            "needs weights that are normalised",
            key="normalise_kept",
        )

    @property
    def num_ffn_experts(self) -> int:
        """Experts that have an FFN: all but the identity experts."""
        return self.num_experts - self.num_identity_experts

    @property
    def of_prototype(self) -> GatingSpec:
        """The gating among the experts of one prototype, where scores and choices end with it."""
        if self.num_prototypes == 1:
            return self
        return dataclasses.replace(
            self,
            num_experts=self.num_experts // self.num_prototypes,
            top_k=self.top_k // self.num_prototypes,
            num_prototypes=1,
            num_groups=1,
            topk_groups=1,
            num_identity_experts=0,
        )

    def router_params(self, d_model: int) -> int:
        """Return the parameters of the router's matrices for tokens of this width."""
        if self.router is Router.MLP:
            return self.router_width * (d_model + self.num_experts)
        return (3 if self.router is Router.ATTENTION else 1) * self.num_experts * d_model

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

    With a gate matrix: ``W_down (f(W_gate x) * (W_up x))``, ``f`` the activation (SwiGLU is that of silu,
    arXiv 2002.05202); without: ``W_down f(W_up x)``.

    Attributes
    ----------
    d_expert : width of the hidden layer.
    activation : ``f``; ``clamped_swiglu`` (gpt-oss) is ``h = (u + 1) * g * sigmoid(alpha * g)`` of values
        that are cut as by ``clamped``.
    gate_matrix : whether there is one; by default as is usual for the activation (none for relu and relu2).
    second_up : a fourth matrix V: ``W_down (f(W_gate x) * (W_up x) * (V x))`` (OpenMoE as released).
    bias : a bias for every product.
    clamped : cuts before the activation: ``g = min(g, limit)``, ``u = clip(u, -limit, limit)``.
    limit, alpha : of what is clamped.
    """

    d_expert: int
    activation: Activation = Activation.SILU
    gate_matrix: bool | None = None
    second_up: bool = False
    bias: bool = False
    clamped: bool = False
    limit: float = 7.0
    alpha: float = 1.702

    def __post_init__(self) -> None:
        require_range("d_expert", self.d_expert, 1, MAX_WIDTH)
        require(
            0 < self.limit < 1 << 16, f"must be in 0..65536 (both excluded), not {self.limit}", key="limit"
        )
        require_range("alpha", self.alpha, 0.25, 4.0)
        if self.gate_matrix is self._usually_gated:
            # One spelling: two FFNs are equal if they compute the same.
            object.__setattr__(self, "gate_matrix", None)
        clamped = self.clamped or self.activation is Activation.CLAMPED_SWIGLU
        require(
            self.gated or not clamped,
            f"must be true where values are clamped (activation={self.activation.value!r}), not false",
            key="gate_matrix",
        )
        require(
            not self.second_up or (self.gated and not self.bias and not clamped),
            "needs a gate matrix, no biases and nothing that is clamped",
            key="second_up",
        )

    @property
    def gated(self) -> bool:
        """Whether there is a gate matrix beside the up matrix."""
        return self._usually_gated if self.gate_matrix is None else self.gate_matrix

    @property
    def _usually_gated(self) -> bool:
        return self.activation not in (Activation.RELU, Activation.RELU2)

    @property
    def num_matrices(self) -> int:
        """Weight matrices per expert."""
        return 2 + self.gated + self.second_up


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """An MoE model, as far as its MoE layers go.

    Attributes
    ----------
    name : what reports call it.
    d_model : width of a token.
    num_moe_layers, num_dense_layers : how many layers of each kind the model has.
    gating, ffn : router and routed experts.
    d_latent : width of the experts' inputs and outputs where that is not d_model, else 0: tokens are
        projected before the experts, sums of their outputs behind (LatentMoE, Nemotron-H).
    latent_bias : whether these two projections have a bias.
    d_shared : width of the shared expert's FFN, 0 if there is none. It reads the token itself.
    shared_activation : its activation, where that is not the routed experts'.
    shared_bias : whether its matrices have biases.
    shared_expert_gate : its output is multiplied with a sigmoid of a product with the token (Qwen2-MoE).
    expert_input_scale : factor of every routed expert's input (Skywork-MoE has one of 2 as an option).
    expert_output_scale : factor of every routed expert's output (NLLB-MoE: 1 - its token dropout).
    output_bias : a bias added once to each token's sum (JetMoE).
    expert_capacity : assignments an expert takes, later ones are dropped; 0 = dropless, -1 = it takes none.
    capacity_fraction : where positive, the capacity is this share of the tokens instead.
    capacity_rounding, capacity_minimum : how that share becomes a whole number, and the least it can be.
    capacity_scope : of which tokens: each sequence's, or all.
    capacity_rule : which ones are the later ones.
    """

    name: str
    d_model: int
    gating: GatingSpec
    ffn: FfnSpec
    d_latent: int = 0
    latent_bias: bool = False
    d_shared: int = 0
    shared_activation: Activation | None = None
    shared_bias: bool = False
    shared_expert_gate: bool = False
    expert_input_scale: float = 1.0
    expert_output_scale: float = 1.0
    output_bias: bool = False
    expert_capacity: int = 0
    capacity_fraction: float = 0.0
    capacity_rounding: CapacityRounding = CapacityRounding.UP
    capacity_minimum: int = 0
    capacity_scope: CapacityScope = CapacityScope.SEQUENCE
    capacity_rule: CapacityRule = CapacityRule.SWITCH
    num_moe_layers: int = 1
    num_dense_layers: int = 0

    def __post_init__(self) -> None:
        require_range("d_model", self.d_model, 1, MAX_WIDTH)
        require_range("d_latent", self.d_latent, 0, MAX_WIDTH)
        require_range("d_shared", self.d_shared, 0, 1 << 18)
        require(
            0 < self.expert_input_scale < MAX_SCALE,
            f"must be in 0..{MAX_SCALE} (both excluded), not {self.expert_input_scale}",
            key="expert_input_scale",
        )
        require_range("expert_output_scale", self.expert_output_scale, 0.0, MAX_SCALE)
        require_range("expert_capacity", self.expert_capacity, NO_PLACES, 1 << 24)
        require(
            self.capacity_fraction <= 1 << 16,
            f"is too large: {self.capacity_fraction}",
            key="capacity_fraction",
        )
        require_range("capacity_minimum", self.capacity_minimum, 0, 1 << 24)
        plain = self.capacity_rounding is CapacityRounding.UP and not self.capacity_minimum
        require(
            plain or self.capacity_fraction > 0,
            f"must be above 0 with a rounding or a minimum of its own, not {self.capacity_fraction}",
            key="capacity_fraction",
        )
        require_range("num_moe_layers", self.num_moe_layers, 1, MAX_LAYERS)
        require_range("num_dense_layers", self.num_dense_layers, 0, MAX_LAYERS)
        identity = self.gating.num_identity_experts
        require(
            not (identity and self.d_latent),
            f"must be 0 with {identity} identity experts, whose inputs are tokens, not {self.d_latent}",
            key="d_latent",
        )

    @property
    def expert_width(self) -> int:
        """Width of the routed experts' inputs and outputs."""
        return self.d_latent or self.d_model

    @property
    def has_capacity(self) -> bool:
        """Whether experts take a limited number of assignments, or none."""
        return self.expert_capacity != 0 or self.capacity_fraction > 0

    @property
    def capacity_key(self) -> str:
        """The field from which the capacity is."""
        return "capacity_fraction" if self.capacity_fraction > 0 else "expert_capacity"

    @property
    def no_places(self) -> bool:
        """Whether every assignment is dropped."""
        return self.expert_capacity == NO_PLACES and self.capacity_fraction <= 0

    @property
    def weights_of_kept(self) -> bool:
        """Whether weights depend on which assignments are dropped."""
        gating = self.gating
        drops = self.has_capacity and not self.no_places
        return drops and gating.normalise is not Normalise.NONE and gating.normalise_kept

    @property
    def drops_need_scores(self) -> bool:
        """Whether what is dropped, or the weights of what is not, depends on the scores themselves."""
        return self.weights_of_kept or (
            self.capacity_rule is CapacityRule.SCORE_PRIORITY and not self.no_places
        )

    @property
    def shared_ffn(self) -> FfnSpec | None:
        """The shared expert's FFN but for its width, which is ``d_shared``; None where there is none."""
        if not self.d_shared:
            return None
        return dataclasses.replace(
            self.ffn,
            activation=self.shared_activation or self.ffn.activation,
            gate_matrix=self.ffn.gated,
            second_up=False,
            bias=self.shared_bias,
        )

    def capacity_of(self, num_tokens: int) -> int:
        """Return an expert's capacity among so many tokens; 0 and -1 as in ``expert_capacity``."""
        if self.capacity_fraction > 0:
            share = self.capacity_fraction * num_tokens
            if self.capacity_rounding is CapacityRounding.UP:
                return max(ceil(share), self.capacity_minimum)
            # As a product of k, factor and tokens, divided by the experts, it may have been exact.
            places = floor(round(share, SHARE_DIGITS))
            places = max(places + places % 2, self.capacity_minimum)
            return places if places or not num_tokens else NO_PLACES
        return self.expert_capacity

    def capacity_for(self, lengths: Sequence[int]) -> int:
        """Return the capacity that an expert has for each of these sequences, as the hardware has it: one.

        Raises :class:`InputError` where it is a share of the tokens and they differ too much.
        """
        capacities = sorted({self.capacity_of(length) for length in lengths})
        require(
            len(capacities) <= 1,
            f"must give all sequences of a run the same capacity in hardware, not {capacities}"
            f" (model {self.name})",
            key="capacity_fraction",
        )
        return capacities[0] if capacities else 0

    @property
    def expert_params(self) -> int:
        """Parameters of one layer's routed experts, biases included."""
        ffn = self.ffn
        per_expert = ffn.num_matrices * self.expert_width * ffn.d_expert
        if ffn.bias:
            per_expert += (ffn.num_matrices - 1) * ffn.d_expert + self.expert_width
        return self.gating.num_ffn_experts * per_expert

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
            d_latent=shrink(self.d_latent) if self.d_latent else 0,
            d_shared=shrink(self.d_shared) if self.d_shared else 0,
        )
