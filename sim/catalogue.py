"""The catalogue of model presets: the table of ``expertbank models`` and the text of ``docs/models.md``."""

from __future__ import annotations

from collections.abc import Sequence

from spec.catalogue import BILLION, all_expert_params, survey_differences, total_params
from spec.hardware import lacking_terms
from spec.load import load_entry, load_sources, preset_names
from spec.model import ModelSpec

HEADER = """\
# models

The presets of `spec/models/`, and what their numbers are held against. Written by `make models-page`; do not
edit. `tests/test_catalogue.py` compares it with the presets, and the presets with their figures.

A preset's `[sources]` gives its numbers a source and a grade: A read from a release, B from the paper, C
recalled or inferred, D a choice of this project. The grade below is that of most of its numbers; exceptions
are in the file.

*Experts*: billions of parameters in the routed experts of all layers, from the preset's numbers, beside the
published figure, of which the last digit is rounded. *Total*: of the whole model, from these and from the
attention, vocabulary and dense layers of its `[backbone]`, norms and most biases left out; the published
total lies within 1 %, unless the row says `-`: [below](#not-checked) is why. *Hardware*: whether gate,
dispatcher and engines have all terms; else the fields whose values they lack ([families.md](families.md)):
float golden has them, `sim` and `verilog` refuse them in one line.

"""
SURVEY = """\
Table 1 of the survey (JEIT 2025) against the presets, which follow the releases; its rows are in the
presets' `[survey]`. Differences of rounding are left out. Its LLaMA4 of 2000B has no preset: no dimensions
are published.
"""
COLUMNS = (
    "name",
    "family",
    "MoE + dense layers",
    "d_model",
    "experts",
    "k",
    "d_expert",
    "d_shared",
    "experts (B)",
    "published (B)",
    "total (B)",
    "published (B)",
    "grade",
    "hardware",
)
LIST_COLUMNS = (
    "name",
    "family",
    "MoE layers",
    "d_model",
    "experts",
    "top_k",
    "score",
    "d_expert",
    "d_shared",
    "activation",
    "expert parameters (billions)",
    "per layer (millions)",
)


def model_rows() -> list[Sequence[object]]:
    """Return a row of ``LIST_COLUMNS`` for each preset."""
    rows: list[Sequence[object]] = []
    for name in preset_names("models"):
        model, entry = load_entry(name)
        rows.append(
            (
                name,
                (entry.catalogue.family if entry.catalogue else "") or "-",
                model.num_moe_layers,
                model.d_model,
                _experts(model),
                model.gating.top_k,
                model.gating.score,
                model.ffn.d_expert,
                model.d_shared or "-",
                model.ffn.activation,
                f"{all_expert_params(model) / BILLION:,.2f}",
                f"{model.expert_params / 1e6:,.1f}",
            )
        )
    return rows


def page() -> str:
    """Return the text of ``docs/models.md``."""
    rows, unchecked, differences, notes = [], [], [], []
    for name in preset_names("models"):
        model, entry = load_entry(name)
        published, backbone = entry.catalogue, entry.backbone
        assert published is not None
        checked = backbone is not None and not published.unchecked
        rows.append(
            (
                f"`{name}`",
                f"`{published.family}`" if published.family else "-",
                f"{model.num_moe_layers} + {model.num_dense_layers}",
                model.d_model,
                _experts(model),
                model.gating.top_k,
                model.ffn.d_expert,
                model.d_shared or "-",
                f"{all_expert_params(model) / BILLION:.2f}",
                f"{published.expert_params_b:g}" if published.expert_params_b else "-",
                f"{total_params(model, backbone) / BILLION:.2f}" if checked and backbone else "-",
                f"{published.total_params_b:g}",
                load_sources("models", name)["*"]["grade"],
                ", ".join(f"`{term}`" for term in lacking_terms(model)) or "yes",
            )
        )
        if not published.expert_params_b:
            unchecked.append((f"`{name}`", "expert parameters", "no published figure"))
        if published.unchecked:
            unchecked.append((f"`{name}`", "total", published.unchecked))
        differences += [(f"`{name}`", text) for text in survey_differences(model, entry)]
        if published.note:
            notes.append(f"- `{name}`: {published.note}")
    return "\n".join(
        [
            HEADER + _table(COLUMNS, rows),
            "## Not checked\n",
            _table(("name", "what", "why"), unchecked),
            "## Where the survey differs\n",
            SURVEY,
            _table(("name", "survey, not preset"), differences),
            "## Notes\n",
            "\n".join(notes) + "\n",
        ]
    )


def _experts(model: ModelSpec) -> object:
    """Return how many experts a model has, identity experts apart."""
    gating = model.gating
    if gating.num_identity_experts:
        return f"{gating.num_ffn_experts} + {gating.num_identity_experts}"
    return gating.num_experts


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"
