"""A near-memory channel's exported Verilog under cocotb: streams and commands, bits and cycles."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rtl.expert.layouts import contribution_layout, job_layout
from rtl.pim import PimChannel, PimConfig
from rtl.pim.layouts import ColumnKind
from sim.divergence import PortCheck
from sim.dram_check import check_commands, commands_seen
from sim.pim import ISSUE, ChannelShape, channel_cycles
from sim.rtlsim import BankMemory, RunResult, RunSpec, Set, Sink, Source, Trace
from spec.design import BankMode, RegisterPath
from spec.model import Activation
from tests.bench.runner import build
from tests.bench.scenarios import MOST_CYCLES, Expected, Scenario, Traffic, mixes, run_scenarios
from tests.bench.test_expert_bench import Load, extreme, load_of, normal, random_jobs, token_beats
from tests.block_bench import bits_of
from tests.coverage.points import not_met, pim_points
from tests.test_pim import DRAM, PIM, config_of

SETTLE = 16

# No size is a multiple of a tile, a row or a group: the last ones are partial.
CONFIGS = {
    "bank": config_of(replace(PIM, tokens_per_burst=2), d_model=10, d_hidden=6, d_shared=9, num_experts=3),
    "pair": config_of(
        replace(
            PIM,
            dram=replace(DRAM, banks_per_group=4, all_bank_exempt=False),
            banks_per_unit=2,
            bank_mode=BankMode.SINGLE_BANK,
            tokens_per_burst=4,
            mac_cycles=3,
            register_path=RegisterPath.SHARED,
        ),
        d_model=7,
        d_hidden=5,
        activation=Activation.CLAMPED_SWIGLU,
        bias=True,
        num_experts=3,
    ),
}

CORNERS = {
    "all tokens to one expert": [(1, [0, 1, 2, 3]), (1, [4, 5, 6, 7])],
    "an expert with none": [(0, [0, 2]), (2, [1, 2, 3])],
    "one token": [(2, [7])],
    "a group of tokens that is not full": [(0, [1, 4, 6])],
    "highest index": [(-1, [0, 1]), (-1, [4])],  # the shared expert, if there is one
}


def contributions(config: PimConfig, load: Load, jobs, job_weights) -> list[int]:
    """Return golden's beats of ``o``: per group of a job and block of outputs, all tokens' words."""
    lanes, words = config.act_lanes, config.words
    layout = contribution_layout(config.num_slots, words, lanes)
    beats = []
    for (expert, slots), weights in zip(jobs, job_weights, strict=True):
        results = load.experts[expert].outputs(load.tokens[slots])
        padded = np.zeros((len(slots), words * lanes), dtype=np.uint16)
        padded[:, : config.d_model] = results
        for start in range(0, len(slots), config.group_tokens):
            for block in range(config.routed.out_blocks):
                for row in range(start, min(start + config.group_tokens, len(slots))):
                    beats += [
                        bits_of(
                            layout,
                            slot=slots[row],
                            word=word,
                            weight=weights[row],
                            data=padded[row, word * lanes : (word + 1) * lanes],
                            last=word == words - 1,
                        )
                        for word in range(block * config.parts, min((block + 1) * config.parts, words))
                    ]
    return beats


def scenario(
    name: str, config: PimConfig, load: Load, traffic: Traffic, *, first_row: int = 0, refresh_later: int = 0
) -> Scenario:
    """Return the run of a load under this traffic, with what golden and model say about it.

    ``first_row``: where in the banks the experts begin; ``refresh_later``: cycles by which the first refresh
    is later than it usually is.
    """
    rng, banks = traffic.rng, config.banks
    jobs = [(expert % len(load.experts), slots) for expert, slots in load.jobs]
    job_weights = [rng.integers(0, 1 << 16, len(slots), dtype=np.uint16) for _, slots in jobs]
    entries = [
        bits_of(job_layout(config), expert=expert, slot=slot, weight=weight, last=row == len(slots) - 1)
        for (expert, slots), weights in zip(jobs, job_weights, strict=True)
        for row, (slot, weight) in enumerate(zip(slots, weights, strict=True))
    ]
    [bases] = banks.bases([[0]] * len(load.experts))
    bases = {expert: base + first_row * banks.sides for expert, base in bases.items()}
    used = (
        max(base + banks.reserved(banks.kind(expert)) for expert, base in bases.items())
        * banks.bursts_per_row
    )
    tiles = rng.integers(0, 1 << 16, (used, config.units * config.routed.cols), dtype=np.uint16)
    for number, expert in enumerate(load.experts):
        image = expert.image().view(np.uint16).reshape(-1, tiles.shape[1])
        start = bases[number] * banks.bursts_per_row
        tiles[start : start + len(image)] = image
    prologue = [
        Set({"base_we": 1, "base_expert": expert, "base_row": base // banks.sides})
        for expert, base in bases.items()
    ]
    beats = token_beats(config, load, rng)
    beat_arrivals = traffic.arrivals(len(beats))
    beats_taken = np.maximum.accumulate(beat_arrivals - np.arange(len(beats))) + np.arange(len(beats))
    arrivals = traffic.arrivals(len(entries), after=int(beats_taken[-1]) + 2)
    pattern, ready = traffic.ready()
    offset = int(rng.integers(len(prologue), banks.pim.dram.timing.refi)) + refresh_later
    model = channel_cycles(
        ChannelShape(banks=banks),
        np.array([expert == config.num_experts for expert, slots in jobs for _ in slots]),
        np.array([slot == slots[-1] for _, slots in jobs for slot in slots]),
        arrivals,
        first_refresh=offset - len(prologue),
        ready=ready,
        tail=SETTLE,
    )
    outputs = contributions(config, load, jobs, job_weights)
    return Scenario(
        name,
        RunSpec(
            sources={"i_token": Source(beats, beat_arrivals), "i": Source(entries, arrivals)},
            sinks={"o": Sink(len(outputs), pattern)},
            banks={"mem": BankMemory(tiles.view(np.uint8), banks.pim.storage_cycles)},
            statics={"refresh_offset": offset},
            prologue=prologue,
            probes=["o_row", "o_column", "mem_en", "fire"],
            settle=SETTLE,
            max_cycles=MOST_CYCLES,
        ),
        {
            "i_token": Expected(beats, beats_taken),
            "i": Expected(entries, model.i, job_layout(config)),
            "o_row": Expected(cycles=model.rows[:, 0]),
            "o_column": Expected(cycles=model.columns[:, 0]),
            "o": Expected(
                outputs, model.o, contribution_layout(config.num_slots, config.words, config.act_lanes)
            ),
        },
        {"fire": model.fires},
        derived=lambda result: [units_read(config, result)],
    )


def units_read(config: PimConfig, result: RunResult) -> PortCheck:
    """Compare which banks are read with the MAC commands: those of a command's unit, or all, no others."""
    columns = commands_seen(config.banks, result.probes["o_row"], result.probes["o_column"]).columns
    macs = columns[columns[:, 1] == ColumnKind.MAC.value]
    every = config.timing.mac_steps == 1
    units = np.full(len(macs), (1 << config.units) - 1) if every else 1 << macs[:, 3]
    cycles, values = result.probes["mem_en"]
    seen = Trace(cycles, values.reshape(-1, 1))
    return PortCheck("pim", "mem_en", seen, units, macs[:, 0], payloads_of="o_column", cycles_of="o_column")


def scenarios(config: PimConfig, seed: int) -> list[Scenario]:
    """Return random jobs, every corner and extreme values under all mixes, and resets."""
    found = []
    for traffic in mixes(seed):
        label = f"gaps {traffic.gaps}, stalls {traffic.stalls}"
        rng = traffic.rng
        for name, jobs in CORNERS.items():
            found.append(scenario(f"{name}, {label}", config, load_of(config, rng, jobs, normal), traffic))
        load = load_of(config, rng, random_jobs(config, rng), extreme)
        found.append(scenario(f"extreme values, {label}", config, load, traffic))
        whole = scenario(
            f"random jobs, {label}", config, load_of(config, rng, random_jobs(config, rng)), traffic
        )
        found += [whole.cut(rng), whole]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
@pytest.mark.parametrize("name", ["bank", pytest.param("pair", marks=pytest.mark.long)])
def test_pim(name: str, seed: int) -> None:
    config = CONFIGS[name]
    rtl = build(f"pim_{name}", lambda: PimChannel(config), config=config)
    runs = scenarios(config, seed)
    results = run_scenarios(rtl, "pim", runs, seed=seed)
    if name == "bank":
        assert not_met(pim_points(config), runs, results) == []
    in_mac_burst = 0
    for run, result in zip(runs, results, strict=True):
        commands = commands_seen(config.banks, result.probes["o_row"], result.probes["o_column"])
        offset = run.spec.statics["refresh_offset"] - result.since_reset + ISSUE
        found = check_commands(config.banks.pim, commands, first_refresh=offset)
        assert not found, f"{run.name}, seed {seed}: {[str(violation) for violation in found]}"
        in_mac_burst += _refreshes_in_a_row(commands)
    assert in_mac_burst, "no refresh fell into a row that was in use"


def _refreshes_in_a_row(commands) -> int:
    """Count the rows that were closed for a refresh and opened again."""
    kinds = commands.rows[:, 1].tolist()
    return sum(before == 3 for before in kinds)
