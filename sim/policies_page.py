"""The text of ``docs/policies.md``: the survey's systems, the policies that carry them, what these gain."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sim.papers import model_of
from sim.progress import track
from sim.system import caches, exchange, execution, placement, policies, widths
from spec.load import load_paper
from spec.system import nominal

HEADER = """\
# Policies

The systems of *A Survey on System and Architecture Optimization Techniques for Mixture-of-Experts Large
Language Models* (JEIT 2025), tables 2 to 4 and the architectures that it names, the policy or preset here
that carries each one's idea, and what it gains over its baseline. Written by `make policies-page`; do
not edit. `tests/test_policies.py` compares it with the commands.

`expertbank policies FAMILY` runs all policies of a family on the same steps beside their baseline and their
bound, `--json` too; `expertbank system` those that divide experts between a host and an engine near memory.

| family | policies | baseline | no policy is faster than | module |
| --- | --- | --- | --- | --- |
"""

NOTES = """
What is modelled: experts by rooflines with declared efficiencies, links by latency and bandwidth
(`spec/engines/`, `spec/links/`, each number with its source or a range). What is not: attention, shared
experts and dense layers; switches that many devices share; software's own time. `split` alone has a
schedule of single experts; the others take a layer's slowest device. Placements and `mixed` formats know the
loads of the first half of the steps and are judged by the second. Caches are judged on all steps, cold at
first; `hot`, `belady` and `oracle` know the future and are there to compare with.

A drawn routing is independent from layer to layer and from token to token: `circular` can learn nothing but
popularity from it. What it predicts of a model's own routing is seen with a trace (`--routing FILE`).

Against published figures: EPLB's placement is that of its authors' example, copy for copy
(`tests/test_policies.py`); DeepEP's times are {least:.1f} to {most:.1f} times those of the links alone
([reproduce.md](reproduce.md#deepep)). The survey's results of table 3 are of whole systems on platforms whose
inputs it does not give: they stand beside ours as open, and are no test of them.

*Effect*: times as fast as the baseline named, by the command before it; then the family's other measures,
of the baseline and of the policy. Below 1: slower, in this case. *Not covered*: what else the system does.
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A system of the survey.

    Attributes
    ----------
    table : of the survey; ``named`` without a row in one.
    carries : the policies or presets; empty: none.
    command : without ``expertbank``; empty: nothing runs it.
    policy, baseline : of the command's result; of ``reproduce`` a claim, and nothing.
    survey : the result of table 3 or 4.
    missing : what is not covered.
    """

    table: str
    system: str
    carries: str = ""
    command: str = ""
    policy: str = ""
    baseline: str = ""
    survey: str = ""
    missing: str = ""


EIGHT = "--devices 8 --steps 1"
SLOW = f"{EIGHT} --engine a100 --link pcie4-x16"
PLACED = "--model deepseek-v3 --tokens 2048 --steps 2 --devices 32 --nodes 4 --places 288"
ROWS = (
    Row(
        table="2",
        system="EPLB",
        carries="`placement`: `eplb-hierarchical`, `eplb-global`",
        command=f"policies placement {PLACED}",
        policy="eplb-global",
        baseline="round-robin",
        missing="moving experts when loads change",
    ),
    Row(
        table="2",
        system="DeepEP",
        carries="`exchange`: `direct` (low latency), `node-forward` (high throughput)",
        command="policies exchange --model deepseek-v3 --tokens 2048 --steps 1 --devices 32 --nodes 4"
        " --link nvlink-h800",
        policy="node-forward",
        baseline="direct",
        missing="fp8 on the way there, in `exchange`",
    ),
    Row(
        table="2, 3",
        system="Flux",
        carries="`exchange`: `fused`",
        command=f"policies exchange --model mixtral-8x7b --tokens 8192 {EIGHT} --link nvlink4",
        policy="fused",
        baseline="direct",
        survey="1.96 a layer, 1.71 on average",
        missing="tensor-parallel reductions",
    ),
    Row(
        table="2",
        system="KTransformers",
        carries="`split`: `ratio` (popular experts on the host)",
        command="system --system monde --model deepseek-v2-lite --tokens 16 --routing zipf:1",
        policy="ratio",
        baseline="all-host",
        missing="a CPU as the near engine",
    ),
    Row(
        table="2",
        system="llama.cpp",
        carries="`cache`: `hot`; `formats`: `int4`",
        command="policies cache --system monde --model deepseek-v2-lite --tokens 1 --entries 16",
        policy="hot",
        baseline="none",
        missing="its own quantised formats; layers on either engine",
    ),
    Row(
        table="2",
        system="Megatron-LM MoE",
        carries="`placement`: `round-robin` against `tensor`; `dispatch`: `capacity`, `grouped`",
        command="policies dispatch --model mixtral-8x7b --tokens 4096 --steps 1",
        policy="grouped",
        baseline="largest",
        missing="mixes of expert, tensor and data parallelism; training",
    ),
    Row(
        table="2, 3",
        system="DeepSpeed-MoE",
        carries="`dispatch`: `capacity` (a table of places) against `one-hot`",
        command="policies dispatch --model gshard-37.5b --tokens 8192 --steps 1",
        policy="capacity",
        baseline="one-hot",
        survey="2 to 3.2 end to end",
        missing="residual MoE; data-parallel mixes",
    ),
    Row(
        table="2, 3",
        system="Tutel",
        carries="`exchange`: `adaptive`, `chunked-2`, `-4`, `-8`; `dispatch`: `largest`",
        command=f"policies exchange --model mixtral-8x7b --tokens 8192 {SLOW}",
        policy="adaptive",
        baseline="direct",
        survey="8.49 a layer, 1.4 end to end",
        missing="switching between kinds of parallelism",
    ),
    Row(
        table="2",
        system="MegaBlocks",
        carries="`dispatch`: `blocks`, 128 rows",
        command="policies dispatch --model qwen3-30b-a3b --tokens 2048 --steps 1",
        policy="blocks",
        baseline="largest",
        missing="sparse products of the backward pass",
    ),
    Row(
        table="2, 3",
        system="vLLM",
        carries="`dispatch`: `blocks`, aligned to 16 rows",
        command="policies dispatch --model qwen3-30b-a3b --tokens 2048 --steps 1 --block 16",
        policy="blocks",
        baseline="largest",
        survey="up to 4.0 a layer",
        missing="scheduling of requests: decode first, chunked prefill",
    ),
    Row(
        table="2",
        system="SGLang",
        carries="`exchange`: `chunked-2` (two batches)",
        command=f"policies exchange --model mixtral-8x7b --tokens 8192 {SLOW}",
        policy="chunked-2",
        baseline="direct",
        missing="attention, and so its overlap and its data parallelism",
    ),
    Row(
        table="2, 3",
        system="TensorRT-LLM",
        carries="`placement`: `tensor` against `round-robin`",
        command="policies placement --model mixtral-8x7b --tokens 16 --steps 4 --devices 2",
        policy="tensor",
        baseline="round-robin",
        survey="38.4 requests/s, no baseline",
        missing="both in one layer; requests",
    ),
    Row(
        table="2",
        system="LMDeploy",
        carries="`formats`: `int4`",
        command="policies formats --model mixtral-8x7b --tokens 16 --steps 2",
        policy="int4",
        baseline="bf16",
        missing="KV cache",
    ),
    Row(
        table="2",
        system="FastMoE",
        carries="`exchange`: `shadowed`, `chunked-2`, `-4`, `-8`",
        command=f"policies exchange --model switch-base-128 --tokens 16384 {SLOW} --routing zipf:2",
        policy="shadowed",
        baseline="direct",
        missing="training",
    ),
    Row(
        table="2",
        system="Huggingface-MoE",
        carries="families: configurations, weights and layers ([families.md](families.md))",
        command="check tests/data",
        missing="no policy",
    ),
    Row(
        table="2",
        system="Fairseq-MoE",
        carries="`dispatch`: `capacity`, twice an even share",
        command="policies dispatch --model gshard-37.5b --tokens 2048 --steps 1 --capacity-factor 2",
        policy="capacity",
        baseline="largest",
        missing="training",
    ),
    Row(
        table="4",
        system="FLAME",
        carries="`cache`: `circular`; paper `flame`",
        command="policies cache --system monde --model switch-base-128 --tokens 1 --steps 256 --entries 2",
        policy="circular",
        baseline="none",
        survey="1.49 over an RTX 3090",
        missing="N:M sparsity as a policy; its prediction, whose table is not published",
    ),
    Row(
        table="4",
        system="Edge-MoE",
        carries="paper `edge-moe` ([reproduce.md](reproduce.md#edge-moe))",
        command="reproduce edge-moe",
        policy="latency_ms",
        survey="0.40 over an RTX A6000",
    ),
    Row(
        table="4",
        system="UbiMoE, ZCU102",
        carries="paper `ubimoe` ([reproduce.md](reproduce.md#ubimoe))",
        command="reproduce ubimoe",
        policy="zcu102_over_edge_moe",
        survey="1.56 over a V100S",
    ),
    Row(
        table="4",
        system="UbiMoE, U280",
        carries="paper `ubimoe` ([reproduce.md](reproduce.md#ubimoe))",
        command="reproduce ubimoe",
        policy="u280_over_edge_moe",
        survey="3.88 over a V100S",
    ),
    Row(
        table="4",
        system="MoNDE",
        carries="`split`: `ratio`; system and paper `monde`",
        command="system --system monde --model nllb-moe-54b --tokens 512 --routing zipf:1",
        policy="ratio",
        baseline="all-host",
        survey="1.1 to 6.7 over an A100",
    ),
    Row(
        table="4",
        system="Duplex",
        carries="`split`: `look-up`, `faster`; `placement`: `tensor`; systems `duplex`, `duplex-bank-pim`",
        command="system --system duplex --model qwen3-30b-a3b --tokens 64",
        policy="look-up",
        baseline="all-host",
        survey="1.36 to 2.67 over an H100",
    ),
    Row(
        table="4",
        system="PIMoE",
        carries="`split`: `busiest-channel`; system and paper `pimoe`",
        command="system --system pimoe --model qwen3-30b-a3b --tokens 16",
        policy="busiest-channel",
        baseline="all-host",
        survey="1.6 to 8.47 over an A100",
    ),
    Row(
        table="named",
        system="Pre-gated MoE",
        carries="`cache`: `next-layer-gate`",
        command="policies cache --system monde --model switch-base-128 --tokens 1 --steps 256 --entries 2",
        policy="next-layer-gate",
        baseline="none",
        missing="the other work of a layer, behind which most of a move is hidden",
    ),
    Row(
        table="named",
        system="Hydra",
        carries="`placement`: `popularity`",
        command=f"policies placement {PLACED}",
        policy="popularity",
        baseline="round-robin",
        missing="chiplets and their network",
    ),
    Row(table="named", system="Space-Mate", missing="all of it"),
    Row(table="named", system="M3ViT", missing="all of it; Edge-MoE and UbiMoE run its model"),
    Row(table="named", system="Adyna", missing="all of it"),
    Row(table="named", system="SambaNova SN40L", missing="all of it"),
)


def page() -> str:
    """Return the text of ``docs/policies.md``."""
    paper = load_paper("deepep")
    modelled = model_of("deepep")(paper, nominal(paper))
    ratios = [claim.published / modelled[name] for name, claim in paper.claims.items()]
    lines = [HEADER + "\n".join(_family_rows()), NOTES.format(least=min(ratios), most=max(ratios))]
    columns = ("table", "system", "carried by", "command", "effect", "the survey's result", "not covered")
    commands = list(dict.fromkeys(row.command for row in ROWS if row.baseline))
    found = {command: _run(command) for command in track(commands)}
    rows = [_cells(row, found) for row in ROWS]
    lines += [_line(columns), _line(["---"] * len(columns)), *map(_line, rows)]
    return "\n".join(lines) + "\n"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _family_rows() -> list[str]:
    split_bound = "work that may be cut anywhere; the longest expert on its faster engine"
    rows: list[tuple[str, Iterable[str], str, str, str]] = [
        ("split (`expertbank system`)", policies.POLICIES, "all-host", split_bound, "sim/system/policies/")
    ]
    for name, family, module in (
        ("cache", caches, "caches"),
        ("placement", placement, "placement"),
        ("exchange", exchange, "exchange"),
        ("dispatch", execution, "execution"),
        ("formats", widths, "widths"),
    ):
        rows.append((name, family.POLICIES, family.BASELINE, family.BOUND, f"sim/system/{module}.py"))
    return [
        _line((name, ", ".join(f"`{policy}`" for policy in known), f"`{baseline}`", bound, f"`{module}`"))
        for name, known, baseline, bound, module in rows
    ]


def _cells(row: Row, found: dict[str, dict[str, Any]]) -> tuple[str, ...]:
    command = f"`expertbank {row.command}`" if row.command else ""
    return (
        row.table,
        row.system,
        row.carries or "none",
        command,
        effect(row, found),
        row.survey,
        row.missing,
    )


def _run(command: str) -> dict[str, Any]:
    """Return what a command prints with ``--json``."""
    from sim.cli import main

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = main([*command.split(), "--json"])
    if status:
        raise ArithmeticError(f"expertbank {command} ended with status {status}")
    result: dict[str, Any] = json.loads(printed.getvalue())
    return result


def effect(row: Row, found: dict[str, dict[str, Any]]) -> str:
    """Return what a row's policy gains, in words, from the commands' results."""
    if row.command.startswith("reproduce "):
        paper = load_paper(row.command.split()[1])
        claim = paper.claims[row.policy]
        modelled = model_of(paper.name)(paper, nominal(paper))[row.policy]
        return f"{claim.what}: {modelled:.3g}, published {claim.published:g}"
    if not row.baseline:
        return ""
    of = found[row.command]["policies"]
    base, mine = (
        of[name] if isinstance(of[name], dict) else {"seconds": of[name]}
        for name in (row.baseline, row.policy)
    )
    parts = [f"`{row.policy}`: {base['seconds'] / mine['seconds']:.2f} times `{row.baseline}`"]
    parts += [
        f"{name.replace('_', ' ')} {base[name]:.3g} to {mine[name]:.3g}"
        for name in mine
        if name not in ("seconds", "bound_s", "speed")
    ]
    return "; ".join(parts)
