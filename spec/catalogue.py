"""What a model's preset says beside its MoE layers: its name in the world, its published figures, its rest.

A preset in ``spec/models/`` may have three more tables. None of them changes what is computed; they are
what the preset's numbers are checked with (``tests/test_catalogue.py``, ``docs/models.md``).

* ``[catalogue]`` (:class:`Published`): title, maker, year, family row, published parameters.
* ``[survey]`` (:class:`SurveyRow`): the model's row in Table 1 of the survey that this project follows (JEIT
  2025), as printed; where it disagrees with the release, the preset follows the release.
* ``[backbone]`` (:class:`Backbone`): what lies outside the experts, as far as it counts parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from spec.errors import require, require_range
from spec.model import ModelSpec

BILLION = 1e9


@dataclass(frozen=True, kw_only=True)
class Published:
    """What is published of a model.

    Attributes
    ----------
    title, organisation, year : as its makers call it.
    family : its row in ``spec/families/``; empty where there is none.
    expert_params_b : billions of parameters in the routed experts of all layers, 0 where no figure is known.
        From the catalogue, rounded to its last digit.
    total_params_b : billions of parameters in all.
    unchecked : why the total is not held against the preset's numbers; empty where it is, within 1 %.
    note : what else a reader should know, differences between sources among them.
    """

    title: str
    organisation: str
    year: int
    total_params_b: float
    expert_params_b: float = 0.0
    family: str = ""
    unchecked: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        require_range("year", self.year, 2017, 2100)
        require(self.total_params_b > 0, f"must be above 0, not {self.total_params_b}", key="total_params_b")
        require_range("expert_params_b", self.expert_params_b, 0.0, 1e6)


@dataclass(frozen=True, kw_only=True)
class SurveyRow:
    """A row of the survey's Table 1 as printed; what it leaves out is 0 or empty.

    ``routed`` is text: M6-T's rows give two values.
    """

    model: str
    total_params_b: float
    dense_layers: int = 0
    moe_layers: int = 0
    d_model: int = 0
    d_ffn: int = 0
    d_expert: int = 0
    expert_params_b: float = 0.0
    experts: int = 0
    routed: str = ""
    shared: int = 0


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """What a model has outside its routed experts. Norms and biases are left out: they are below 0.1 %.

    Attributes
    ----------
    vocab_size : rows of the embedding; the output layer has as many, unless ``tied_embeddings``.
    d_dense : width of the FFNs outside the MoE layers' experts.
    dense_matrices : matrices of such an FFN.
    dense_ffns : how many there are.
    attention_layers : how many attentions there are; one of an encoder-decoder's decoder layers has two.
    heads, kv_heads, head_dim : of an attention with a key and a value head for each group of query heads.
    q_lora_rank, kv_lora_rank, d_nope, d_rope, d_value : of a multi-head latent attention (arXiv 2405.04434,
        section 2.1) instead; a q_lora_rank of 0 means that queries are projected directly.
    other_params_b : billions of parameters that none of these counts: other layers, a vision encoder.
    """

    vocab_size: int
    tied_embeddings: bool = False
    d_dense: int = 0
    dense_matrices: int = 3
    dense_ffns: int = 0
    attention_layers: int = 0
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    q_lora_rank: int = 0
    kv_lora_rank: int = 0
    d_nope: int = 0
    d_rope: int = 0
    d_value: int = 0
    other_params_b: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            require(value >= 0, f"must be at least 0, not {value}", key=field.name)

    def attention_params(self, d_model: int) -> int:
        """Return the parameters of one attention."""
        if not self.kv_lora_rank:
            return d_model * self.head_dim * 2 * (self.heads + self.kv_heads)
        query_width = self.heads * (self.d_nope + self.d_rope)
        query = d_model * query_width
        if self.q_lora_rank:
            query = self.q_lora_rank * (d_model + query_width)
        key_value = d_model * (self.kv_lora_rank + self.d_rope)
        key_value += self.kv_lora_rank * self.heads * (self.d_nope + self.d_value)
        return query + key_value + self.heads * self.d_value * d_model


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A preset's three tables; None where it has them not."""

    catalogue: Published | None = None
    survey: SurveyRow | None = None
    backbone: Backbone | None = None


TABLES = {"catalogue": Published, "survey": SurveyRow, "backbone": Backbone}


def all_expert_params(model: ModelSpec) -> int:
    """Return the parameters of the routed experts in all layers."""
    return model.num_moe_layers * model.expert_params


def total_params(model: ModelSpec, backbone: Backbone) -> int:
    """Return the parameters of a whole model, norms and the biases outside experts left out."""
    gating, h = model.gating, model.d_model
    layer = model.expert_params + gating.router_params(h) + 2 * h * model.d_latent
    layer += (2 + model.ffn.gated) * h * model.d_shared
    outside = backbone.dense_ffns * backbone.dense_matrices * h * backbone.d_dense
    outside += backbone.attention_layers * backbone.attention_params(h)
    outside += (1 if backbone.tied_embeddings else 2) * backbone.vocab_size * h
    return model.num_moe_layers * layer + outside + round(backbone.other_params_b * BILLION)


def survey_differences(model: ModelSpec, entry: Entry) -> list[str]:
    """Return where the survey's row says something else than the preset, each as ``what: survey, preset``.

    Widths of FFNs outside the experts are compared where the backbone is known, shared experts by their
    width, parameters where they differ by more than the rounding of both.
    """
    row, published = entry.survey, entry.catalogue
    if row is None or published is None:
        return []
    experts = all_expert_params(model) / BILLION
    shared = model.d_shared // model.ffn.d_expert
    pairs: list[tuple[str, object, object]] = [
        (
            "dense / MoE layers",
            f"{row.dense_layers}/{row.moe_layers}",
            f"{model.num_dense_layers}/{model.num_moe_layers}",
        ),
        ("d_model", row.d_model, model.d_model),
        ("d_expert", row.d_expert, model.ffn.d_expert),
        ("experts", row.experts, model.gating.num_experts - model.gating.num_identity_experts),
        ("shared experts", row.shared, shared),
    ]
    if str(model.gating.top_k) not in row.routed.split("/"):
        pairs.append(("experts per token", row.routed, model.gating.top_k))
    if entry.backbone is not None and entry.backbone.d_dense:
        pairs.append(("d_ffn", row.d_ffn, entry.backbone.d_dense))
    if row.expert_params_b and abs(row.expert_params_b - experts) > 0.002 * experts + 0.05:
        pairs.append(("expert parameters", f"{row.expert_params_b:g} B", f"{experts:.2f} B"))
    total = published.total_params_b
    if abs(row.total_params_b - total) > 0.01 * total + 0.05:
        pairs.append(("parameters", f"{row.total_params_b:g} B", f"{total:g} B"))
    return [f"{what}: {printed}, not {here}" for what, printed, here in pairs if printed != here]
