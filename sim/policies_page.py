"""The text of ``docs/policies.md``: the survey's systems, the policies that carry them, what these gain."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from sim.papers import model_of
from sim.progress import track
from sim.system import caches, exchange, execution, parallel, placement, policies, widths
from sim.system.comparison import Comparison
from sim.system.families import drawn
from spec.load import load_paper, load_system
from spec.system import TierSpec, nominal

HEADER = """\
# Policies

The systems of *A Survey on System and Architecture Optimization Techniques for Mixture-of-Experts Large
Language Models* (JEIT 2025), tables 2 to 4 and the architectures that it names, the policy or preset here
that carries each one's idea, and what it gains over its baseline. Written by `make policies-page`; do
not edit. `tests/test_policies.py` compares it with the commands.

`expertbank policies FAMILY` runs all policies of a family on the same steps beside their baseline and their
bound, `--json` too; `expertbank system` those that divide experts between a host and an engine near memory.
`expertbank policies combined` runs a policy of each family at once on devices that are each such a system,
each alone and all together:

    expertbank policies combined --system duplex --model qwen3-30b-a3b --tokens 256 --devices 8 --nodes 2 \\
        --places 160 --placement eplb-global --split look-up --exchange node-forward --formats fp8

| family | policies | baseline | no policy is faster than | module |
| --- | --- | --- | --- | --- |
"""

NOTES = """
What is modelled: experts by rooflines with declared efficiencies, links by latency and bandwidth
(`spec/engines/`, `spec/links/`, each number with its source or a range). What is not: switches that many
devices share; software's own time; but for `split` ([system.md](system.md)) attention, shared experts and
dense layers. `split` and `combined` have a schedule of single experts; the others take a layer's slowest
device. Placements and `mixed` formats know the loads of the first half of the steps and are judged by the
second. Caches are judged on all steps, cold at first; `hot`, `belady` and `oracle` know the future and are
there to compare with. `in-order`, `out-of-order` and `tiles` have experts beside each other on tiles of the
engine, 16 for each expert, with these tiles' share of its operations and bandwidth; a token that begins in
order waits until all its experts are free. The other dispatchers compute one expert after another.

A drawn routing is independent from layer to layer and from token to token: `circular` can learn nothing but
popularity from it. What it predicts of a model's own routing is seen with a trace (`--routing FILE`).

Against published figures: EPLB's placement is that of its authors' example, copy for copy
(`tests/test_policies.py`); DeepEP's times are {least:.1f} to {most:.1f} times those of the links alone
([reproduce.md](reproduce.md#deepep)). The survey's results of table 3 are of whole systems on platforms whose
inputs it does not give: they stand beside ours as open, [below](#results-of-table-3), and are no test.

A policy of your own is a Python file, given where a policy's name is asked for:
[api.md](api.md#policies-of-your-own).

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


@dataclass(frozen=True, kw_only=True)
class Result:
    """A result of the survey's table 3, and what stands for it here.

    Attributes
    ----------
    platform, result : as the survey has them.
    low, high : of the published ratio; None where there is none.
    command, policy, baseline : as of :class:`Row`, with the nearest of the platforms that are here.
    unknown : inputs that the survey does not give, and what is in their place.
    """

    system: str
    platform: str
    result: str
    low: float | None
    high: float | None
    command: str
    policy: str
    baseline: str
    unknown: str


EIGHT = "--devices 8 --steps 1"
SLOW = f"{EIGHT} --engine a100 --link pcie4-x16"
PLACED = "--model deepseek-v3 --tokens 2048 --steps 2 --devices 32 --nodes 4 --places 288"
TUTEL = (
    "policies parallel --model nllb-moe-54b --tokens 32768 --steps 1 --devices 512 --nodes 64"
    " --engine a100-80gb --link nvlink3 --between rdma-hdr"
)
TUTEL_NODE = "policies dispatch --model nllb-moe-54b --tokens 8192 --steps 1 --engine a100-80gb"
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
        carries="`split`: `hot-cold`",
        command="system --system dynande --model deepseek-v2-lite --tokens 16 --routing zipf:1",
        policy="hot-cold",
        baseline="all-host",
        missing="a CPU as the near engine",
    ),
    Row(
        table="2",
        system="llama.cpp",
        carries="`cache`: `hot`; `split`: `hot-cold`; `formats`: `int4`",
        command="policies cache --system monde --model deepseek-v2-lite --tokens 1 --entries 16",
        policy="hot",
        baseline="none",
        missing="its own quantised formats; layers on either engine",
    ),
    Row(
        table="2",
        system="Megatron-LM MoE",
        carries="`parallel`: `expert-tensor-data`, or any mix; `dispatch`: `capacity`, `grouped`",
        command="policies parallel --model mixtral-8x7b --tokens 8192 --steps 1 --devices 32 --nodes 4",
        policy="expert-tensor-data",
        baseline="expert",
        missing="attention's own mix of parallelism; pipelines; training",
    ),
    Row(
        table="2, 3",
        system="DeepSpeed-MoE",
        carries="`dispatch`: `capacity` (a table of places) against `one-hot`; `parallel`: `expert-data`",
        command="policies dispatch --model gshard-37.5b --tokens 8192 --steps 1 --engine v100s",
        policy="capacity",
        baseline="one-hot",
        survey="2 to 3.2 end to end",
        missing="residual MoE",
    ),
    Row(
        table="2, 3",
        system="Tutel",
        carries="`parallel`: `adaptive`; `exchange`: `adaptive`, `chunked-2`, `-4`, `-8`",
        command=TUTEL,
        policy="adaptive",
        baseline="expert",
        survey="8.49 a layer (its authors: 2.75, and 8.49 on 8 devices), 1.4 end to end",
        missing="weights that lie alike under every mix, which make its switching free; its kernels",
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
        carries="`dispatch`: `blocks`, aligned to 16 rows; decode first and chunked prefill:"
        " `expertbank serve --batching chunked` ([serving.md](serving.md))",
        command="policies dispatch --model qwen3-30b-a3b --tokens 2048 --steps 1 --block 16",
        policy="blocks",
        baseline="largest",
        survey="up to 4.0 a layer",
        missing="its paged memory of keys and values",
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
        carries="`parallel`: `expert-tensor`, `tensor`",
        command="policies parallel --model deepseek-v3 --tokens 2048 --steps 1 --devices 32 --nodes 4",
        policy="expert-tensor",
        baseline="expert",
        survey="38.4 requests/s, no baseline",
        missing="requests",
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
        carries="`split`: `look-up`, `faster`; `placement`: `tensor`; systems `duplex`,"
        " `duplex-bank-pim`, `duplex-bank-group-pim`",
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
    Row(
        table="named",
        system="Space-Mate",
        carries="`dispatch`: `out-of-order` against `in-order` (experts on cores of their own)",
        command="policies dispatch --model mixtral-8x7b --tokens 256 --steps 2",
        policy="out-of-order",
        baseline="in-order",
        missing="its cores of two kinds, sparse inputs, and the mapping task itself",
    ),
    Row(
        table="named",
        system="M3ViT",
        carries="`dispatch`: `grouped` against `one-by-one` (expert by expert, weights read once)",
        command="policies dispatch --model mixtral-8x7b --tokens 64 --steps 1",
        policy="grouped",
        baseline="one-by-one",
        missing="gates of several tasks; Edge-MoE and UbiMoE run its model",
    ),
    Row(
        table="named",
        system="Adyna",
        carries="`dispatch`: `tiles` (by the loads before) against `out-of-order` (as many each), `sizes`",
        command="policies dispatch --model mixtral-8x7b --tokens 4096 --steps 8",
        policy="tiles",
        baseline="out-of-order",
        missing="sizes chosen by how often they occur; other operators than experts; its network",
    ),
    Row(
        table="named",
        system="SambaNova SN40L",
        carries="`cache`: `lru`, experts of DDR in HBM, of these some in SRAM; system `sn40l`",
        command="policies cache --system sn40l --model deepseek-v2-lite --tokens 1 --steps 64 --entries 16",
        policy="lru",
        baseline="none",
        missing="experts that are whole models; its fused dataflow",
    ),
)


def page() -> str:
    """Return the text of ``docs/policies.md``."""
    paper = load_paper("deepep")
    modelled = model_of("deepep")(paper, nominal(paper))
    ratios = [claim.published / modelled[name] for name, claim in paper.claims.items()]
    lines = [HEADER + "\n".join(_family_rows()), NOTES.format(least=min(ratios), most=max(ratios))]
    columns = ("table", "system", "carried by", "command", "effect", "the survey's result", "not covered")
    commands = [row.command for row in ROWS if row.baseline] + [one.command for one in TABLE_3]
    commands = list(dict.fromkeys(commands))
    found = {command: _run(command) for command in track(commands)}
    rows = [_cells(row, found) for row in ROWS]
    lines += [_line(columns), _line(["---"] * len(columns)), *map(_line, rows)]
    lines += [TABLE_3_HEADER + "\n".join(_results(found))]
    lines += [TIER_HEADER.format(command=f"expertbank {TIER}") + "\n".join(_tier_rows())]
    return "\n".join(lines) + "\n"


TABLE_3 = (
    Result(
        system="TensorRT-LLM",
        platform="2 x H100 80 GB, no baseline",
        result="up to 38.4 requests/s",
        low=None,
        high=None,
        command="policies parallel --model mixtral-8x7b --tokens 64 --steps 2 --devices 2",
        policy="expert-tensor",
        baseline="expert",
        unknown="model, requests, batch; without a baseline no ratio",
    ),
    Result(
        system="DeepSpeed-MoE",
        platform="8, 16, 32 x V100 32 GB, over PyTorch",
        result="2 to 3.2 end to end",
        low=2.0,
        high=3.2,
        command="policies dispatch --model gshard-37.5b --tokens 8192 --steps 1 --engine v100s",
        policy="capacity",
        baseline="one-hot",
        unknown="model, batch; here one device, a V100S, and a layer",
    ),
    Result(
        system="vLLM",
        platform="4 x A100 40 GB, over PyTorch",
        result="up to 4.0 a layer",
        low=4.0,
        high=4.0,
        command="policies dispatch --model mixtral-8x7b --tokens 512 --steps 1 --engine a100 --block 16",
        policy="blocks",
        baseline="largest",
        unknown="model, batch, how PyTorch computed the layer; here one device",
    ),
    Result(
        system="Tutel",
        platform="512 x A100 80 GB, over Fairseq",
        result="8.49 a layer, 1.4 end to end on average; its authors: 2.75 a layer",
        low=2.75,
        high=8.49,
        command=TUTEL,
        policy="adaptive",
        baseline="expert",
        unknown="layer, batch, routing; here a model of Fairseq's, no kernels of either",
    ),
    Result(
        system="Tutel",
        platform="8 x A100 80 GB, over Fairseq (its authors)",
        result="8.49 a layer",
        low=8.49,
        high=8.49,
        command=TUTEL_NODE,
        policy="capacity",
        baseline="one-hot",
        unknown="layer, batch; here one device's tokens placed by a table or by a mask",
    ),
    Result(
        system="Flux",
        platform="8 x H100 80 GB, over Megatron",
        result="1.96 a layer, 1.71 end to end on average",
        low=1.96,
        high=1.96,
        command=f"policies exchange --model mixtral-8x7b --tokens 8192 {EIGHT} --link nvlink4",
        policy="fused",
        baseline="direct",
        unknown="model, batch, tensor parallelism of the layer",
    ),
)
"""The survey's table 3: all of it open, since each row leaves inputs out."""

TABLE_3_HEADER = """
## Results of table 3

What the survey's table 3 reports, and the ratio of the same idea over the same kind of baseline on the
nearest platform that is modelled here. Inputs that the survey leaves out make each of them **open**: no test.
Tutel's 8.49 is not of the 512 devices that the survey names: its authors (Microsoft Research, November 2021)
report it of 8, and 2.75 of 512, in nodes of 8 with 200 Gb/s of InfiniBand for each.

"""


def _results(found: dict[str, dict[str, Any]]) -> list[str]:
    columns = ("system", "the survey's platform", "its result", "command", "here", "here over the survey's")
    lines = [_line((*columns, "state")), _line(["---"] * (len(columns) + 1))]
    for one in TABLE_3:
        of = found[one.command]["policies"]
        ratio = of[one.baseline]["seconds"] / of[one.policy]["seconds"]
        here = f"`{one.policy}`: {ratio:.2f} times `{one.baseline}`"
        over = "-"
        if one.low is not None and one.high is not None:
            ends = dict.fromkeys(f"{ratio / end:.2f}" for end in (one.high, one.low))
            over = " to ".join(ends)
        state = f"open: {one.unknown}"
        command = f"`expertbank {one.command}`"
        lines.append(_line((one.system, one.platform, one.result, command, here, over, state)))
    return lines


TIER_HEADER = """
## A third memory

A host's `[tier]` (`spec/engines/sn40l.toml`) is a faster memory before its own: a cache of the same policy,
of experts that the host holds. SN40L's SRAM has a published size; its bandwidth and the share that weights
may take are assumed, and each is moved here over its range, with all experts in HBM once they were used:
`{command}`.

"""
TIER_SYSTEM, TIER_MODEL, TIER_STEPS, TIER_ENTRIES = "sn40l", "granite-3-1b-a400m", 64, 32
TIER = (
    f"policies cache --system {TIER_SYSTEM} --model {TIER_MODEL} --tokens 1 --steps {TIER_STEPS}"
    f" --entries {TIER_ENTRIES}"
)


def _tier_rows() -> list[str]:
    """Return the table of what a tier gains, over the range of each of its numbers."""
    system, of = load_system(TIER_SYSTEM), drawn(TIER_MODEL, tokens=1, steps=TIER_STEPS)
    assert system.host is not None and system.host.tier is not None
    host, tier = system.host, system.host.tier

    def run(changed: TierSpec | None) -> Comparison:
        return caches.compare(replace(system, host=replace(host, tier=changed)), "", of.steps, TIER_ENTRIES)

    without = run(None).results
    columns = ("number", "value", "read from SRAM by `lru`", "`lru` over no SRAM", "`belady` over no SRAM")
    lines = [_line(columns), _line(["---"] * len(columns))]
    for number in ("bytes_per_s", "bandwidth_efficiency", "share"):
        quantity = getattr(tier, number)
        for value in (quantity.least, quantity.value, quantity.most):
            found = run(replace(tier, **{number: replace(quantity, value=value)})).results
            gains = [f"{without[name].seconds / found[name].seconds:.3f}" for name in ("lru", "belady")]
            rate = f"{found['lru'].measures['tier_rate']:.1%}"
            lines.append(_line((f"`tier.{number}`", f"{value:g}", rate, *gains)))
    return lines


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
        ("parallel", parallel, "parallel"),
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
