"""``expertbank models``: the presets of models."""

from __future__ import annotations

import click

from sim.commands.output import json_option, print_json, print_table
from spec.load import load_model, preset_names


@click.command("models")
@json_option
def command(as_json: bool) -> int:
    """List the model presets."""
    names = preset_names("models")
    if as_json:
        print_json({"names": names})
        return 0
    rows = []
    for name in names:
        model = load_model(name)
        rows.append(
            (
                name,
                model.num_moe_layers,
                model.d_model,
                model.gating.num_experts,
                model.gating.top_k,
                model.gating.score,
                model.ffn.d_expert,
                model.d_shared or "-",
                model.ffn.activation,
                f"{model.expert_params / 1e6:,.1f}",
            )
        )
    print_table(
        (
            "name",
            "MoE layers",
            "d_model",
            "experts",
            "top_k",
            "score",
            "d_expert",
            "d_shared",
            "activation",
            "expert parameters per layer (millions)",
        ),
        rows,
    )
    return 0
