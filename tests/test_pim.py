"""A near-memory channel: hardware against golden bit for bit, against its model command by command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from amaranth import ResetInserter, Signal
from amaranth.hdl import Value

import rtl.expert.array
import rtl.pim.channel
import rtl.pim.columns
import rtl.pim.operands
import rtl.pim.readout
import rtl.pim.rows
import rtl.pim.walk
import rtl.secded
import sim.expert
import sim.pim
from golden.formats import BF16_ONE, Bits16, dot
from golden.gating_bf16 import banked_router
from golden.image import router_tiles
from golden.secded import stored
from rtl.expert.layouts import job_layout
from rtl.gating.layouts import logit_part_layout, token_layout
from rtl.pim import PimChannel, PimConfig
from rtl.pim.layouts import RowKind
from sim.dram_check import Commands, bursts_of, bursts_read, check_commands, tiles_needed, tiles_read
from sim.flips import NO_FLIPS, Flips, flip_words
from sim.pim import ChannelCycles, ChannelShape
from sim.streams import readiness
from spec.banks import BankGeometry, CommandTiming
from spec.design import GROUPS, PLAIN_FORMATS, BankMode, Ecc, Format, PimDesign, RegisterPath, RouterPlace
from spec.dram import DramSpec, DramTiming
from spec.errors import InputError
from spec.geometry import FfnGeometry, GateGeometry, ImageGeometry, RouterGeometry, ceil_div
from spec.load import load_design, load_model
from spec.model import Activation, FfnSpec, GatingSpec, Score
from tests.bfm import BankStorage, Sink, Source, WithReset, pack, run_streams
from tests.block_bench import (
    DIVERGED,
    TRAFFIC,
    arrivals_of,
    bits_of,
    first_difference,
    pattern_of,
    plant_bug,
    ready_in,
)
from tests.test_expert import (
    contributions,
    ffns,
    random_expert,
    random_ffn,
    random_patterns,
    random_scales,
    scale_words,
    weighted,
    weighted_image,
    with_own_bias,
)

TIMING = DramTiming(
    burst=1, cl=4, cwl=2, rcd_rd=5, rcd_wr=4, rp=5, ras=9, rc=14, rtp=2, wr=4, ccd_s=2, ccd_l=4,
    wtr_s=2, wtr_l=3, rtw_gap=1, rrd_s=2, rrd_l=3, faw=10, rfc=20, refi=150,
)  # fmt: skip
DRAM = DramSpec(
    name="tiny", bank_groups=2, banks_per_group=2, rows=256, row_bytes=32, burst_bytes=8, clock_ps=1000,
    timing=TIMING,
)  # fmt: skip
SETTLE = 20
PIM = PimDesign(dram=DRAM, channels=1, tokens_per_burst=2, act_lanes=2, storage_cycles=3)


def config_of(
    pim: PimDesign = PIM,
    *,
    d_model: int = 8,
    d_hidden: int = 6,
    d_shared: int = 0,
    number_format: Format = Format.BF16,
    group: int = 0,
    num_experts: int = 2,
    max_tokens: int = 4,
    stream_lanes: int = 2,
    gating: GatingSpec | None = None,
    logits_per_cycle: int = 1,
    **ffn,
) -> PimConfig:
    """Return a channel's configuration; with ``gating`` its banks hold that router too.

    ``ffn`` as in :func:`tests.test_expert.ffns`.
    """
    if gating is not None:
        num_experts = gating.num_experts
    routed, shared = ffns(d_hidden, **ffn)

    def geometry(spec: FfnSpec, size: int) -> FfnGeometry:
        return FfnGeometry(
            ffn=spec,
            d_model=d_model,
            d_hidden=size,
            rows=pim.units,
            cols=pim.lanes(number_format),
            format=number_format,
            group=group,
            bias_room=number_format.grouped and (routed.bias or (d_shared > 0 and shared.bias)),
        )

    gate = GateGeometry(
        gating=gating or GatingSpec(num_experts=num_experts, top_k=1),
        d_model=d_model,
        lanes=logits_per_cycle * stream_lanes,
        logits_per_cycle=logits_per_cycle,
        stream_lanes=stream_lanes,
        load_elements=stream_lanes,
        banked=gating is not None,
    )
    cols = pim.lanes(number_format)
    image = ImageGeometry(
        gate=gate,
        routed=geometry(routed, d_hidden),
        shared=geometry(shared, d_shared) if d_shared else None,
        burst_bytes=64,
        router=RouterGeometry(gate=gate, rows=pim.units, cols=cols) if gating is not None else None,
    )
    return PimConfig(
        image=image,
        num_slots=2 * max_tokens,
        max_tokens=max_tokens,
        act_lanes=pim.act_lanes,
        stream_lanes=stream_lanes,
        banks=BankGeometry(image=image, pim=pim),
    )


@dataclass(frozen=True)
class Case:
    """One run: channel, jobs as (expert, number of tokens), first refresh, traffic, seed.

    The shared expert is ``num_experts``, the router one more. ``flips``: words of the experts in which a bit
    is flipped, and two, where the banks hold check bits.
    """

    config: PimConfig
    jobs: tuple[tuple[int, int], ...]
    num_tokens: int = 6
    first_refresh: int = 100
    gaps: str = "none"
    stalls: str = "none"
    data: str = "normal"
    seed: int = 0
    flips: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Run:
    """What a run should give and has given."""

    expected: list[int]
    got: list[int]
    expected_logits: list[int]
    got_logits: list[int]
    model: ChannelCycles
    cycles: dict[str, np.ndarray]
    counted: tuple[int, int] = (0, 0)
    planted: Flips = NO_FLIPS


def tiles_of(config: PimConfig, images, bases: dict[int, int], rng) -> np.ndarray:
    """Return the banks' contents; ``images``: bytes of each expert. What belongs to no expert is noise."""
    banks = config.banks
    used = max(base + banks.reserved(banks.kind(number)) for number, base in bases.items())
    tiles = rng.integers(0, 256, (used * banks.bursts_per_row, config.routed.tile_bytes), dtype=np.uint8)
    for number, image in images.items():
        start = bases[number] * banks.bursts_per_row
        tiles[start : start + banks.kind(number).num_tiles] = image.reshape(-1, tiles.shape[1])
    return tiles


def random_router(rng, config: PimConfig, data: str) -> tuple[Bits16, np.ndarray | None]:
    """Return a router's rows and its logit bias, if the algebra has one."""
    gating = config.image.gate.gating
    router = random_patterns(rng, (gating.num_experts, config.d_model), data)
    bias = rng.standard_normal(gating.num_experts).astype(np.float32) if gating.logit_bias else None
    return router, bias


def logit_parts(config: PimConfig, router: Bits16, bias, tokens: Bits16) -> list[int]:
    """Return the beats of ``o_logits`` of a group: per block of places all tokens, upper half first."""
    geometry = config.router
    assert geometry is not None
    matrix = banked_router(router, bias)
    ones = np.full((len(tokens), matrix.shape[1] - config.d_model), BF16_ONE, dtype=np.uint16)
    sums = dot(np.concatenate([tokens, ones], axis=1), matrix, geometry.cols).view(np.uint32)
    gate = geometry.gate
    placed = np.zeros((len(tokens), geometry.hidden_blocks * geometry.rows), dtype=np.uint32)
    # Zeros times what is no number is none.
    placed[:] = dot(tokens, np.zeros((1, config.d_model), dtype=np.uint16), geometry.cols).view(np.uint32)
    for place in range(geometry.num_places):
        expert = gate.expert_at(*divmod(place, gate.logits_per_cycle))
        if expert is not None:
            placed[:, place] = sums[:, expert]
    layout = logit_part_layout(geometry.rows, config.group_tokens)
    return [
        bits_of(
            layout,
            valid=1,
            low=low,
            token=token,
            last_token=token == len(tokens) - 1,
            last_block=block == geometry.hidden_blocks - 1,
            data=placed[token, block * geometry.rows : (block + 1) * geometry.rows] >> (0 if low else 16)
            & 0xFFFF,
        )
        for block in range(geometry.hidden_blocks)
        for token in range(len(tokens))
        for low in range(2)
    ]


def run_case(case: Case, *, reset_after: int | None = None, recovers: bool = False) -> Run:
    config = case.config
    rng = np.random.default_rng(case.seed)
    banks = config.banks
    count = config.num_experts + (config.image.shared is not None)
    scales = random_scales(rng) if config.integer else None
    experts = [random_expert(rng, banks.kind(number), case.data, scales) for number in range(count)]
    tokens = random_patterns(rng, (case.num_tokens, config.d_model), case.data)
    [bases] = banks.bases([[0]] * count)
    kept = np.arange(max(0, case.num_tokens - config.num_slots), case.num_tokens)
    entry_layout = job_layout(config)
    entries, entry_kind, entry_last, expected, expected_logits = [], [], [], [], []
    images = {number: expert.image() for number, expert in enumerate(experts)}
    if config.router:
        router, logit_bias = random_router(rng, config, case.data)
        words = router_tiles(config.router, router, logit_bias)
        images[config.num_experts + 1] = words.view(np.uint8)
    for expert, size in case.jobs:
        chosen = np.sort(rng.permutation(kept)[:size])
        slots, weights = chosen % config.num_slots, rng.integers(0, 1 << 16, size)
        entries += [
            bits_of(entry_layout, expert=expert, slot=slots[n], weight=weights[n], last=n == size - 1)
            for n in range(size)
        ]
        entry_kind += [max(0, expert - config.num_experts + 1)] * size
        entry_last += [False] * (size - 1) + [True]
        if expert <= config.num_experts:
            inputs, weights = weighted(config, expert, tokens[chosen], weights.astype(np.uint16))
            outputs = experts[expert].outputs(inputs)
        for start in range(0, size, config.group_tokens):
            group = slice(start, start + config.group_tokens)
            if expert > config.num_experts:
                expected_logits += logit_parts(config, router, logit_bias, tokens[chosen[group]])
                continue
            expected += contributions(config, outputs[group], slots[group], weights[group])

    token_beats = ceil_div(config.d_model, config.stream_lanes)
    padded = rng.integers(0, 1 << 16, (case.num_tokens, token_beats * config.stream_lanes))
    padded[:, : config.d_model] = tokens
    beat_layout = token_layout(config.stream_lanes)
    beats = [
        bits_of(beat_layout, last=rng.integers(2)) | pack(beat)
        for beat in padded.reshape(-1, config.stream_lanes)
    ]
    arrivals = len(beats) + 2 + arrivals_of(rng, case.gaps, len(entries))
    pattern = pattern_of(rng, case.stalls)

    dut = PimChannel(config)
    reset = Signal()
    contents = tiles_of(config, images, bases, rng)
    words = None
    if banks.pim.secded:
        contents = stored(contents.reshape(len(contents), config.units, -1)).reshape(len(contents), -1)
        read = bursts_of(banks, bases, np.unique([expert for expert, _ in case.jobs]))
        single, double = case.flips
        words = flip_words(
            [contents], [read], units=config.units, single=single, double=double, seed=case.seed
        )
    storage = BankStorage(dut, contents, banks.pim.storage_cycles)
    since_reset = fires = 0
    counted = np.zeros(2, dtype=np.int64)
    commands: dict[str, list[tuple[int, ...]]] = {"rows": [], "columns": []}
    logits: list[tuple[int, int]] = []

    async def watch_logits(ctx):
        logit = dut.o_logits
        async for *_, in_reset, valid, value in ctx.tick().sample(reset, logit.valid, Value.cast(logit)):
            if valid and not in_reset:
                logits.append((since_reset - 1, int(value)))

    async def watch_flips(ctx):
        async for *_, corrected, uncorrected in ctx.tick().sample(dut.corrected, dut.uncorrected):
            counted[:] += corrected, uncorrected

    async def watch(ctx):
        nonlocal since_reset, fires
        row, column = dut.o_row, dut.o_column
        async for _, _, in_reset, fire, *seen in ctx.tick().sample(
            reset,
            dut.fire,
            *(
                Value.cast(field)
                for bus, address in ((row, row.row), (column, column.column))
                for field in (bus.kind, bus.side, bus.unit, address)
            ),
        ):
            for name, kind, *fields in (("rows", *seen[:4]), ("columns", *seen[4:])):
                if kind:
                    commands[name].append((since_reset, int(kind), *map(int, fields)))
            since_reset += 1
            fires += fire
            if in_reset:
                logits.clear()
            if in_reset and not recovers:
                since_reset = fires = 0
                for trace in commands.values():
                    trace.clear()

    async def prologue(ctx):
        for number, base in bases.items():
            ctx.set(dut.base_expert, number)
            ctx.set(dut.base_row, base // banks.sides)
            ctx.set(dut.base_we, 1)
            await ctx.tick()
        ctx.set(dut.base_we, 0)
        if reset_after is not None:
            await work_then_reset(ctx, dut, reset, beats, entries, reset_after)

    spent = 0 if reset_after is not None else len(bases)
    model = sim.pim.channel_cycles(
        ChannelShape(banks=banks),
        np.array(entry_kind),
        np.array(entry_last),
        arrivals,
        first_refresh=case.first_refresh - spent,
        ready=readiness(pattern),
        tail=SETTLE,
    )
    traces = run_streams(
        ResetInserter(reset)(dut) if recovers else WithReset(dut, reset),
        {"i_token": Source(beats, [0] * len(beats)), "i": Source(entries, arrivals.tolist())},
        {"o": Sink(len(expected), ready_in(pattern))},
        statics={"refresh_offset": case.first_refresh, **scale_words(scales)},
        prologue=prologue,
        monitors=[
            storage.run,
            watch,
            *([watch_logits] if config.router else []),
            *([watch_flips] if words is not None else []),
        ],
        # Logits are no stream: the run has to last until the last ones.
        settle=SETTLE + max(0, last_cycle(model) - int(max(model.i[-1], *model.o[-1:]))),
        max_cycles=2000 + last_cycle(model),
    )
    seen = {name: np.array(trace).reshape(-1, 5) - [spent, 0, 0, 0, 0] for name, trace in commands.items()}
    violations = check_commands(
        banks.pim, Commands(**seen), first_refresh=case.first_refresh - spent + sim.pim.ISSUE
    )
    assert not violations, f"{[str(violation) for violation in violations]}; {case}"
    if recovers:
        return Run(
            expected, traces["o"].payloads, expected_logits, [value for _, value in logits], model, seen
        )
    assert fires == model.fires, f"fires: rtl {fires}, model {model.fires}; {case}"
    entry_experts = np.repeat(*np.array(case.jobs).T)
    tiles = tiles_needed(banks, bases, entry_experts, np.array(entry_last))
    differing = first_difference(tiles_read(banks, Commands(**seen)), tiles)
    assert differing is None, f"tiles: {differing}; {case}"
    return Run(
        expected=expected,
        got=traces["o"].payloads,
        expected_logits=expected_logits,
        got_logits=[value for _, value in logits],
        model=model,
        cycles={
            "i": traces["i"].cycles,
            "o": traces["o"].cycles,
            "logits": np.array([cycle for cycle, value in logits if is_last_logit(config, value)]) - spent,
            **seen,
        },
        counted=(int(counted[0]), int(counted[1])),
        planted=words.read([bursts_read(banks, Commands(**seen), len(contents))]) if words else NO_FLIPS,
    )


def last_cycle(model: ChannelCycles) -> int:
    """Return the cycle of the last result."""
    return int(max([*model.o[-1:], *model.logits[-1:]]))


def is_last_logit(config: PimConfig, value: int) -> bool:
    """Whether a beat of ``o_logits`` ends its token's."""
    part = logit_part_layout(config.units, config.group_tokens).from_bits(value)
    return bool(part.low and part.last_block)


async def work_then_reset(ctx, dut, reset, beats, entries, cycles) -> None:
    """Start the same jobs, reset in the middle."""
    for beat in beats:
        ctx.set(Value.cast(dut.i_token.payload), beat)
        ctx.set(dut.i_token.valid, 1)
        await ctx.tick()
    ctx.set(dut.i_token.valid, 0)
    for entry in entries[: dut.config.max_tokens]:
        ctx.set(Value.cast(dut.i.payload), entry)
        ctx.set(dut.i.valid, 1)
        await ctx.tick()
    ctx.set(dut.i.valid, 0)
    for _ in range(cycles):
        await ctx.tick()
    ctx.set(reset, 1)
    await ctx.tick()
    ctx.set(reset, 0)


def check(case: Case, run: Run | None = None) -> Run:
    run = run or run_case(case)
    n = first_difference(run.got, run.expected)
    if n is not None:
        pytest.fail(
            f"pim o: beat {n} in cycle {run.cycles['o'][n]}: rtl {run.got[n]:#x}, golden"
            f" {run.expected[n]:#x}; {case}",
            pytrace=False,
        )
    n = first_difference(run.got_logits, run.expected_logits)
    if n is not None:
        pytest.fail(f"pim o_logits: beat {n} differs from golden; {case}", pytrace=False)
    end = last_cycle(run.model) + SETTLE
    for name in ("i", "rows", "columns", "o", "logits"):
        seen, model = run.cycles[name], getattr(run.model, name)
        if name in ("rows", "columns"):
            seen = seen[seen[:, 0] <= end, :3]
        n = first_difference(seen.tolist(), model.tolist())
        if n is not None:
            pytest.fail(
                f"pim {name}: {n}: rtl {seen[n] if n < len(seen) else None},"
                f" model {model[n] if n < len(model) else None}; {case}",
                pytrace=False,
            )
    return run


SECDED = replace(PIM, ecc=Ecc.SECDED)
ONE_BY_ONE = replace(
    SECDED, bank_mode=BankMode.SINGLE_BANK, banks_per_unit=2, register_path=RegisterPath.SHARED
)
ROUTED = "the router in the banks"
CHECKED = {
    "all banks, two groups of tokens": config_of(SECDED),
    "bank by bank, on the data bus": config_of(ONE_BY_ONE),
    "int8": config_of(SECDED, number_format=Format.INT8, d_model=16),
    ROUTED: config_of(SECDED, gating=GatingSpec(num_experts=3, top_k=1)),
}


@pytest.mark.parametrize("name", CHECKED)
def test_single_flips_change_nothing_and_are_counted(name: str) -> None:
    """Cycles are those of the model with check bits, which cost a cycle, results golden's bits."""
    config = CHECKED[name]
    jobs = ((0, 3), (1, 2)) if config.router is None else ((config.num_experts + 1, 2), (0, 3))
    case = Case(config, jobs, flips=(7, 0), seed=5)
    run = check(case)
    assert run.counted == (run.planted.corrected, 0)
    # A job of three tokens reads its weights twice, one of two once.
    assert 7 <= run.planted.corrected <= 14


@pytest.mark.parametrize("name", list(CHECKED)[:2])
def test_double_flips_are_counted_and_not_corrected(name: str) -> None:
    run = run_case(Case(CHECKED[name], ((0, 3), (1, 2)), flips=(4, 5), seed=5))
    assert run.counted == (run.planted.corrected, run.planted.uncorrected)
    assert run.counted[0] >= 4 and run.counted[1] >= 5
    assert len(run.got) == len(run.expected) and run.got != run.expected


def test_a_corrector_that_sees_no_flips_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A word passes as it comes."""
    case = Case(CHECKED["all banks, two groups of tokens"], ((0, 3),), flips=(7, 0))
    plant_bug(monkeypatch, rtl.secded, "self.o.eq(self.data ^ flips)", "self.o.eq(self.data)")
    with pytest.raises(DIVERGED):
        check(case)


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        (rtl.secded, "bit & seen[unit]", "bit & seen[0] & ~seen[unit]"),
        (rtl.secded, 'self.en, self.LATENCY, "seen"', 'self.en, 0, "seen"'),
        (rtl.pim.channel, 'storage_cycles, "units_read"', 'storage_cycles + 1, "units_read"'),
    ],
)
def test_words_counted_at_the_wrong_time_are_found(monkeypatch, module, old, new) -> None:
    plant_bug(monkeypatch, module, old, new)
    run = run_case(Case(CHECKED["bank by bank, on the data bus"], ((0, 3),), flips=(7, 2)))
    assert run.counted != (run.planted.corrected, run.planted.uncorrected)


@pytest.mark.parametrize("number_format", PLAIN_FORMATS)
def test_the_shared_expert_has_another_activation(number_format: Format) -> None:
    """And no biases, whose ones the others have in a tile of its own."""
    config = config_of(
        d_shared=8,
        activation=Activation.RELU2,
        bias=True,
        shared_activation=Activation.GELU,
        shared_bias=False,
        number_format=number_format,
    )
    check(Case(config, ((0, 3), (2, 3), (1, 1), (2, 2)), stalls="half"))


def test_one_token() -> None:
    for number_format in PLAIN_FORMATS:
        check(Case(config_of(number_format=number_format), ((0, 1),), num_tokens=1))


def random_case(seed: int) -> Case:
    """Return a random channel with random timings, jobs and traffic."""
    rng = np.random.default_rng(seed)

    def one_of(*choices):
        return choices[rng.integers(len(choices))]

    groups = one_of(1, 2, 4)
    rp, rcd, rtp = (int(n) for n in rng.integers(1, 8, 3))
    ras = rcd + rtp + int(rng.integers(0, 6))
    ccd_s = int(rng.integers(1, 4))
    rfc = rp + int(rng.integers(0, 30))
    timing = replace(
        TIMING,
        rcd_rd=rcd, rp=rp, rtp=rtp, ras=ras, rc=ras + rp + int(rng.integers(0, 4)),
        ccd_s=ccd_s, ccd_l=ccd_s + int(rng.integers(0, 4)), rrd_s=1, rrd_l=int(rng.integers(1, 5)),
        faw=int(rng.integers(1, 12)), cl=int(rng.integers(1, 8)), rfc=rfc,
        refi=rp + rfc + ras + rp + int(rng.integers(60, 300)),
    )  # fmt: skip
    dram = replace(
        DRAM,
        bank_groups=groups,
        banks_per_group=8 // groups,
        row_bytes=one_of(8, 16, 64),
        timing=timing,
        all_bank_exempt=bool(rng.integers(4)),
    )
    per_unit = one_of(2, 4)
    units = 8 // per_unit
    pim = PimDesign(
        dram=dram,
        channels=1,
        banks_per_unit=per_unit,
        bank_mode=one_of(*BankMode),
        tokens_per_burst=one_of(1, 2, 4),
        mac_cycles=one_of(1, 1, 2, 5),
        register_path=one_of(*RegisterPath),
        act_lanes=one_of(*(n for n in (1, 2, 4) if n <= units)),
        storage_cycles=one_of(1, 2, 5, 17),
        refresh=bool(rng.integers(5)),
    )
    max_tokens = one_of(2, 4, 8)
    config = config_of(
        pim,
        d_model=int(rng.integers(1, 20)),
        d_hidden=int(rng.integers(1, 20)),
        d_shared=one_of(0, int(rng.integers(1, 20))),
        **random_ffn(rng),
        number_format=one_of(*PLAIN_FORMATS),
        max_tokens=max_tokens,
        stream_lanes=one_of(1, 2, 4),
    )
    experts = config.num_experts + (config.image.shared is not None)
    num_tokens = int(rng.integers(1, 2 * max_tokens + 3))
    most = min(num_tokens, config.num_slots, max_tokens)
    jobs = tuple(
        (int(rng.integers(experts)), int(rng.integers(1, most + 1))) for _ in range(rng.integers(1, 6))
    )
    return Case(
        config,
        jobs,
        num_tokens=num_tokens,
        first_refresh=int(rng.integers(timing.refi)),
        gaps=one_of(*TRAFFIC),
        stalls=one_of(*TRAFFIC),
        data=one_of("normal", "normal", "patterns"),
        seed=seed,
    )


def test_a_single_unit_opens_its_banks_one_by_one() -> None:
    """Each ACT is one bank's: tRRD and tFAW count, which the flag of an all-bank ACT had switched off."""
    config = config_of(replace(PIM, banks_per_unit=4, act_lanes=1), d_model=20, d_hidden=9)
    check(Case(config, ((0, 2), (1, 1))))


@pytest.mark.parametrize("seed", [*range(5), *(pytest.param(n, marks=pytest.mark.long) for n in range(5, 7))])
def test_random_channels(seed: int) -> None:
    check(random_case(seed))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(7, 200))
def test_more_random_channels(seed: int) -> None:
    check(random_case(seed))


def ffn_of(config: PimConfig) -> dict[str, object]:
    """Return a configuration's FFNs, as ``ffns`` takes them."""
    routed, shared = config.routed.ffn, (config.image.shared or config.routed).ffn
    return {
        **{name: getattr(routed, name) for name in ("activation", "bias", "clamped", "limit")},
        "gate_matrix": routed.gated,
        "shared_activation": shared.activation,
        "shared_bias": shared.bias,
    }


def stored_case(seed: int) -> Case:
    """Return a random channel whose weights are stored in a grouped format.

    Groups of several tiles, and several in one; matrices that end within a group, a tile or a span. Two
    units, of few lanes, but for every eighth.
    """
    rng = np.random.default_rng(seed + 20_000)
    case = random_case(seed)
    plain, pim = case.config, case.config.banks.pim
    number_format = Format(rng.choice(list(GROUPS)))
    if seed % 8 != 7:
        # A row of a tile has room for an fp32 scale and a bias.
        dram = replace(pim.dram, burst_bytes=8 if number_format is Format.FP8 else 4)
        pim = replace(pim, dram=dram, banks_per_unit=4, act_lanes=min(pim.act_lanes, 2))
    ffn = ffn_of(plain)
    shared = plain.image.shared is not None
    cols, room = pim.lanes(number_format), 8 * pim.dram.burst_bytes
    if ffn["bias"] or (shared and ffn["shared_bias"]):
        room -= 16
    groups = [n for n in (1, 2, 4, 8, 16, 32) if cols // n * number_format.scale_bits <= room]
    config = config_of(
        pim,
        d_model=int(rng.integers(1, 40)),
        d_hidden=int(rng.integers(1, 24)),
        d_shared=int(rng.integers(1, 24)) if shared else 0,
        **ffn,
        number_format=number_format,
        group=int(rng.choice(groups)),
        max_tokens=plain.max_tokens,
        stream_lanes=plain.stream_lanes,
    )
    return replace(case, config=config)


@pytest.mark.parametrize(
    "seed", [*range(2), *(pytest.param(n, marks=pytest.mark.long) for n in range(2, 200))]
)
def test_random_channels_with_stored_weights(seed: int) -> None:
    check(stored_case(seed))


def weighted_case(seed: int, draw: Callable[[int], Case] | None = None) -> Case:
    """Return a random channel whose experts see weighted tokens, every other one with a router too.

    ``draw``: what draws the channel otherwise.
    """
    draw = draw or (random_router_case if seed % 4 == 3 else random_case)
    case = draw(seed)
    config, image = case.config, weighted_image(case.config.image)
    pim = config.banks.pim
    least = 2 + image.input_cycles - CommandTiming.of(pim).write_to_mac
    pim = replace(pim, storage_cycles=max(pim.storage_cycles, least))
    return replace(case, config=replace(config, image=image, banks=BankGeometry(image=image, pim=pim)))


@pytest.mark.parametrize(
    "seed", [*range(2), *(pytest.param(n, marks=pytest.mark.long) for n in range(2, 100))]
)
def test_random_weighted_inputs(seed: int) -> None:
    check(weighted_case(seed))


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.long) for n in range(1, 60))])
def test_random_weighted_inputs_with_stored_weights(seed: int) -> None:
    check(weighted_case(seed, stored_case))


@pytest.mark.parametrize("seed", range(4))
def test_biases_of_the_shared_expert_alone(seed: int) -> None:
    case = random_case(seed)
    plain = case.config
    config = config_of(
        plain.banks.pim,
        d_model=plain.d_model,
        d_hidden=plain.routed.d_hidden,
        d_shared=5,
        bias=bool(seed % 2),
        number_format=list(Format)[seed // 2],
        max_tokens=plain.max_tokens,
        stream_lanes=plain.stream_lanes,
    )
    image = with_own_bias(config.image)
    banks = BankGeometry(image=image, pim=plain.banks.pim)
    check(replace(case, config=replace(config, image=image, banks=banks), jobs=((2, 1), (0, 1), (2, 1))))


def test_weighted_inputs_must_be_there_when_they_are_read() -> None:
    pim = replace(PIM, register_path=RegisterPath.OWN, storage_cycles=1)
    image = weighted_image(config_of(pim, number_format=Format.INT8).image)
    with pytest.raises(InputError) as caught:
        BankGeometry(image=image, pim=pim)
    assert str(caught.value) == (
        "pim.storage_cycles: must be at least 4 where weights multiply the experts' inputs, not 1"
    )
    enough = replace(pim, storage_cycles=4)
    config = config_of(enough, number_format=Format.INT8)
    check(Case(replace(config, image=image, banks=BankGeometry(image=image, pim=enough)), ((0, 2), (1, 1))))


def random_router_case(seed: int) -> Case:
    """Return a random channel that has a router too, multiplied with between the other jobs."""
    rng = np.random.default_rng(seed + 10_000)
    case = random_case(seed)
    plain = case.config
    num_groups = int(rng.choice([1, 1, 2, 3]))
    gating = GatingSpec(
        num_experts=num_groups * int(rng.integers(1, 6)),
        top_k=1,
        score=Score.SIGMOID if num_groups > 1 else Score.SOFTMAX,
        num_groups=num_groups,
        logit_bias=bool(rng.integers(2)),
    )
    routed = plain.routed
    config = config_of(
        plain.banks.pim,
        d_model=plain.d_model,
        d_hidden=routed.d_hidden,
        d_shared=plain.image.shared.d_hidden if plain.image.shared else 0,
        **ffn_of(plain),
        max_tokens=plain.max_tokens,
        stream_lanes=plain.stream_lanes,
        gating=gating,
        logits_per_cycle=int(rng.choice([1, 2, 4, 8])),
    )
    jobs = [(expert % gating.num_experts, size) for expert, size in case.jobs]
    for _ in range(int(rng.integers(1, 5))):
        jobs.insert(int(rng.integers(len(jobs) + 1)), (gating.num_experts + 1, jobs[0][1]))
    return replace(case, config=config, jobs=tuple(jobs))


@pytest.mark.parametrize("seed", [*range(2), *(pytest.param(n, marks=pytest.mark.long) for n in range(2, 4))])
def test_random_channels_with_the_router(seed: int) -> None:
    check(random_router_case(seed))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4, 150))
def test_more_random_channels_with_the_router(seed: int) -> None:
    check(random_router_case(seed))


def full_size(name: str, scale: int, pim: PimDesign) -> ChannelShape:
    model = load_model(name).scaled(scale)
    design = replace(load_design("pim"), pim=pim)
    # Where the experts lie does not matter here; they need not all fit.
    return ChannelShape(banks=BankGeometry(image=ImageGeometry.of(model, design), pim=pim))


@pytest.mark.parametrize("tokens", [1, 4, 7])
@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize(("name", "scale"), [("mixtral-8x7b", 16), ("deepseek-v3", 16), ("qwen3-30b-a3b", 4)])
def test_mac_slots_are_busy_whenever_the_dram_allows(name: str, scale: int, pair: bool, tokens: int) -> None:
    """Of the time that DRAM timing and refresh leave, at least 90 % goes to MACs."""
    pim = load_design("pim").pim
    assert pim is not None
    if pair:
        pim = replace(pim, banks_per_unit=2)
    shape = full_size(name, scale, pim)
    assert shape.banks.visits(shape.banks.image.routed) >= 8
    last = np.arange(tokens) == tokens - 1
    model = sim.pim.channel_cycles(
        shape, np.zeros(tokens, dtype=bool), last, np.zeros(tokens, dtype=np.int64), first_refresh=3900
    )
    slots = model.mac_slots(CommandTiming.of(pim))
    assert slots["mac"] >= 0.9 * (slots["mac"] + slots["other"]), slots
    if pair:
        # The other bank of the pair opens its row meanwhile.
        assert slots["row"] <= 0.01 * slots["mac"], slots
    macs = model.columns[model.columns[:, 1] == sim.pim.Column.MAC][:, 0]
    assert sum(slots.values()) == macs[-1] - macs[0] + CommandTiming.of(pim).mac_gap


@pytest.mark.parametrize(
    "name", ["mixtral-8x7b", "qwen3-30b-a3b", "deepseek-v3", "gpt-oss-20b", "switch-base-128"]
)
def test_documented_router_in_the_banks(name: str) -> None:
    """Figures of the table in docs/gating.md: eight groups, one after the other."""
    design = load_design("pim")
    assert design.pim is not None
    banked = replace(design, pim=replace(design.pim, router=RouterPlace.BANKS))
    image = ImageGeometry.of(load_model(name), banked)
    group, groups = design.pim.tokens_per_burst, 9
    model = sim.pim.channel_cycles(
        ChannelShape(banks=BankGeometry(image=image, pim=design.pim)),
        np.full(group * groups, sim.pim.ROUTER),
        np.arange(group * groups) % group == group - 1,
        np.zeros(group * groups, dtype=np.int64),
        first_refresh=design.pim.dram.timing.refi,
    )
    cycles = (model.retired[-1] - model.retired[0]) / (groups - 1)
    own = group * ImageGeometry.of(load_model(name), design).gate.interval
    page = (Path(__file__).parent.parent / "docs" / "gating.md").read_text(encoding="utf-8")
    assert f"| `{name}` | {cycles:.0f} | {own} |" in page


PLANTED = {
    "the row of an ACT": (rtl.pim.rows, "self.rows[where], 0)", "self.rows[where] + 1, 0)"),
    "the column of a MAC": (
        rtl.pim.channel,
        "command.column.eq(macs.column)",
        "command.column.eq(macs.column ^ 1)",
    ),
    "a refresh one cycle late": (rtl.pim.rows, "self.refresh.eq(left == 0)", "self.refresh.eq(left == 1)"),
    "ACT too near a refresh": (rtl.pim.rows, "left >= timing.act_lead", "left >= timing.mac_lead"),
    "tRP": (rtl.pim.rows, "self.pre_last, timing.rp)", "self.pre_last, timing.rp - 1)"),
    "tRCD": (rtl.pim.rows, "self.act_last, timing.rcd)", "self.act_last, timing.rcd - 1)"),
    "MACs too near each other": (rtl.pim.columns, "after.eq(distance - 1)", "after.eq(distance - 2)"),
    "inputs not waited for": (rtl.pim.walk, "self.loaded > word", "self.loaded >= word"),
    "accumulators taken too early": (rtl.pim.walk, "(undrained == 2)", "(undrained == 3)"),
    "hidden activations not waited for": (rtl.pim.walk, ">= hidden_needed", "+ 1 >= hidden_needed"),
    "the wrong place among hidden": (rtl.pim.readout, "block >> copies_log2", "block"),
    "activation of the other": (rtl.pim.readout, "lane.shared.eq(result.shared)", "lane.shared.eq(0)"),
    "the model's activation": (sim.pim, "banks.image.shared or routed)", "routed)"),
    "the model's lanes": (sim.pim, "weight_cycles + 2", "weight_cycles + 1"),
    "the model's rows": (sim.pim, "rp_ok[side] = end + s.rp", "rp_ok[side] = end + s.rp + 1"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (n % 4 > 0)) for n, name in enumerate(PLANTED)]
)
def test_a_planted_bug_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, old, new = PLANTED[name]
    plant_bug(monkeypatch, module, old, new)
    pim = replace(PIM, storage_cycles=1, act_lanes=1, dram=replace(DRAM, banks_per_group=1))
    slow_reads = replace(pim, register_path=RegisterPath.SHARED)
    jobs = ((0, 2), (1, 2), (0, 1))
    cases = [
        Case(config_of(pim, d_model=9, d_hidden=7), jobs, first_refresh=60),
        Case(config_of(slow_reads, d_model=8, d_hidden=4), jobs),
        # MACs catch up with the inputs of four tokens.
        Case(config_of(replace(pim, tokens_per_burst=4), d_model=96, d_hidden=2), ((0, 4),)),
        Case(config_of(pim, d_shared=3, shared_activation=Activation.GELU_TANH), ((2, 2), (0, 1))),
    ]
    with pytest.raises(DIVERGED):
        [check(case) for case in cases]


def test_reset_in_the_middle_leaves_nothing_behind() -> None:
    for cycles in (1, 40, 90):
        case = Case(config_of(d_shared=5), ((0, 3), (2, 2)), stalls="half", seed=cycles)
        check(case, run_case(case, reset_after=cycles))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.long] * (name != "bank by bank, on the data bus"))
        for name in CHECKED
    ],
)
def test_a_recovery_breaks_no_rule_of_the_dram(name: str) -> None:
    """What is open is closed, refreshes come when they are due, and the work behind it has golden's results.

    The DRAM knows nothing of a reset that is inserted. Cycles are not the model's, which has all closed.
    """
    closed = refreshed = 0
    for seed, cycles in enumerate((1, 9, 22, 43, 60)):
        config = CHECKED[name]
        jobs = ((0, 3), (1, 2)) if config.router is None else ((config.num_experts + 1, 2), (0, 3))
        case = Case(config, jobs, first_refresh=60 + 17 * seed, stalls="half", seed=seed)
        run = run_case(case, reset_after=cycles, recovers=True)
        assert run.got == run.expected and run.got_logits == run.expected_logits, case
        kinds = [RowKind(kind) for kind in run.cycles["rows"][:, 1].tolist()]
        closed += kinds.count(RowKind.PRE)
        refreshed += kinds.count(RowKind.REF)
    assert closed > 0 < refreshed


INT8_PLANTED = {
    "no tile of scales": (rtl.pim.walk, "tag.scale.eq(last_tile)", "tag.scale.eq(0)"),
    "every tile of scales": (rtl.pim.walk, "tag.scale.eq(last_tile)", "tag.scale.eq(1)"),
    "slot not marked": (rtl.pim.operands, "self.slot.scale.eq(fired.scale)", "self.slot.scale.eq(0)"),
    "hidden scaled as tokens": (
        rtl.pim.channel,
        "readout.scale_h.eq(self.scale_h)",
        "readout.scale_h.eq(self.scale_x)",
    ),
    "hidden values in the wrong half": (
        rtl.pim.readout,
        "copies_log2 = (copies - 1)",
        "copies_log2 = (copies)",
    ),
    "model: quantiser": (sim.expert, "QUANTISER = 2", "QUANTISER = 3"),
}


def int8_case() -> Case:
    """Return jobs of several groups with biases; two blocks of hidden values share a register word."""
    config = config_of(d_model=9, d_hidden=11, d_shared=3, bias=True, number_format=Format.INT8)
    assert config.routed.cols == 2 * config.units
    return Case(config, ((0, 3), (2, 2), (1, 1)), stalls="half", seed=3)


def test_unbroken_int8_passes() -> None:
    check(int8_case())


@pytest.mark.parametrize("bias", [False, True])
def test_int4_weights_with_int8_inputs(bias: bool) -> None:
    """A tile's inputs are two register writes, and four blocks of hidden values share a register word."""
    config = config_of(d_model=37, d_hidden=19, d_shared=3, bias=bias, number_format=Format.W4A8)
    assert config.routed.cols == 4 * config.units and config.load_parts == 2
    check(Case(config, ((0, 3), (2, 2), (1, 1)), stalls="half", seed=4))


@pytest.mark.parametrize(
    "bug", [pytest.param(bug, marks=[pytest.mark.long] * (n % 2)) for n, bug in enumerate(INT8_PLANTED)]
)
def test_planted_int8_bug_is_found(monkeypatch: pytest.MonkeyPatch, bug: str) -> None:
    plant_bug(monkeypatch, *INT8_PLANTED[bug])
    with pytest.raises(DIVERGED):
        check(int8_case())


GROUPED_PLANTED = {
    "scales of another group": (
        rtl.expert.array,
        "scales.word_select(number, number_format",
        "scales.word_select(0, number_format",
    ),
    "scales of the tile before": (rtl.expert.array, "scales.eq(scales >> scale_bits)", "scales.eq(scales)"),
    "elements of another group": (
        rtl.expert.array,
        "decode.o.word_select(number, group * 16)",
        "decode.o.word_select(0, group * 16)",
    ),
    "bias in every group": (rtl.pim.walk, "tile < routed.group_tiles", "1"),
    "a scale tile for each tile": (rtl.pim.walk, "routed.span_tiles - 1)", "0)"),
    "a slot for each token": (rtl.pim.walk, "Mux(tag.scale, 0, group.last_token) if", "group.last_token if"),
    "the pace of one token": (rtl.pim.walk, "self.last_token.eq(group.last_token)", "self.last_token.eq(0)"),
    "a scale tile waits": (rtl.pim.walk, "inputs_ready | self.tag.scale if", "inputs_ready if"),
    "inputs not waited for": (rtl.pim.walk, "(tile + 1) * config.load_parts - 1", "tile * config.load_parts"),
    "the wrong part of a word": (rtl.pim.channel, "loads.go << part", "loads.go << (part ^ 1)"),
    "scales not told apart": (
        rtl.pim.operands,
        '("scale", "group_first", "group_last", "first_group"):',
        '("group_first", "group_last", "first_group"):',
    ),
    "model: pairs": (sim.expert, "PAIRING = 3", "PAIRING = 2"),
    "model: scale tiles": (sim.pim, "(tile + s.span - 1) // s.span", "tile // s.span"),
    "model: parts of a word": (sim.pim, "tiles * s.load_parts", "tiles"),
}


def grouped_cases() -> list[Case]:
    """Return what these bugs show in: four groups a tile and any scale, groups of two tiles, many tokens."""
    pim = replace(PIM, dram=replace(DRAM, burst_bytes=4), banks_per_unit=4, act_lanes=1, storage_cycles=1)
    many = replace(pim, tokens_per_burst=4, mac_cycles=2)
    return [
        Case(
            config_of(pim, d_model=29, d_hidden=11, number_format=Format.MXFP4, group=2),
            ((0, 2), (1, 2), (0, 1)),
            data="patterns",
        ),
        Case(
            config_of(many, d_model=40, d_hidden=9, bias=True, number_format=Format.MXFP4, group=4),
            ((0, 4), (1, 3)),
            stalls="half",
        ),
        Case(config_of(many, d_model=37, d_hidden=9, number_format=Format.INT4, group=16), ((0, 4), (1, 1))),
    ]


@pytest.mark.long
def test_unbroken_groups_pass() -> None:
    for case in grouped_cases():
        check(case)


@pytest.mark.parametrize(
    "bug",
    [pytest.param(bug, marks=[pytest.mark.long] * (n > 0)) for n, bug in enumerate(GROUPED_PLANTED)],
)
def test_planted_bug_in_groups_is_found(monkeypatch: pytest.MonkeyPatch, bug: str) -> None:
    plant_bug(monkeypatch, *GROUPED_PLANTED[bug])
    with pytest.raises(DIVERGED):
        [check(case) for case in grouped_cases()]
