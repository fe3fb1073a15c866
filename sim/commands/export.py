"""``expertbank export``: figures in the formats of other simulators."""

from __future__ import annotations

from pathlib import Path

import click

from sim.commands.output import json_option, print_json


@click.group("export", context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Write figures in the formats of other simulators."""


@command.command("llmservingsim")
@click.option("--system", "system_name", required=True, help="Preset of spec/systems or a TOML file.")
@click.option("--model", "model_name", required=True, help="Preset, TOML or config.json.")
@click.option("--policy", help="Who computes which expert. [default: the system's]")
@click.option("--most", type=int, default=2048, show_default=True, help="Tokens: powers of two up to this.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="moe.csv")
@json_option
def llmservingsim(
    system_name: str, model_name: str, policy: str | None, most: int, out: Path, as_json: bool
) -> int:
    """Write LLMServingSim's moe.csv: tokens, activated experts, microseconds of an MoE layer."""
    from sim.serving.export import moe_csv, moe_rows, powers
    from sim.toolchain import check_parent, write_atomically
    from spec.errors import require_range
    from spec.load import load_model, load_system

    require_range("most", most, 1, 1 << 17)
    check_parent(out, "out")
    system, model = load_system(system_name), load_model(model_name)
    rows = list(moe_rows(system, model, powers(most), policy))
    write_atomically(out, moe_csv(iter(rows)))
    if as_json:
        print_json({"file": str(out), "rows": len(rows)})
    else:
        print(f"wrote {out}: {len(rows)} rows of {model.name} on {system.name}")
    return 0
