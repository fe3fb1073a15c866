"""From rows of logits to rows of candidates: score, selection bias, groups."""

from amaranth import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from golden.functions import FRACTION_BITS, SCORE_BITS, SELECT_BITS
from golden.gating_bf16 import select_bits
from rtl.arith import delay, tree
from rtl.functions import FIXED_STAGES, Sigmoid, SqrtSoftplus, fixed_from_f32
from rtl.gating.layouts import (
    LOGIT_BITS,
    SCORE_WIDTH,
    candidate_row_layout,
    key_bits,
    logit_row_layout,
    row_shape,
)
from rtl.gating.softmax import SoftmaxShares, to_score
from rtl.gating.standard import Standardise
from rtl.gating.topk import SortedList
from rtl.ram import DelayLine, delay_line
from spec.design import Pipeline
from spec.geometry import GateGeometry
from spec.model import GroupScore, Score


class Scores(wiring.Component):
    """Turn logits into candidates.

    Where logits rank the experts, the key is the logit with 20 fraction bits. Else it is the score with 24
    fraction bits (a softmax share: 28) plus the selection bias. What the weights need goes along: the
    score, the logit, or nothing more.
    Latency ``latency`` cycles, one row per cycle.

    Members
    -------
    i : In(logit_row_layout(lanes))
    bias_row : Out, bias : In
        With a selection bias: read port of the loaded bias.
    o : Out(candidate_row_layout(...))
    """

    def __init__(self, geometry: GateGeometry) -> None:
        self.geometry = geometry
        self.shares = SoftmaxShares(geometry) if geometry.plan.shares_first else None
        self.standardise = Standardise(geometry) if geometry.gating.logit_deviation else None
        lanes = geometry.logits_per_cycle
        members = {}
        if geometry.gating.selection_bias:
            members = {"bias_row": Out(row_shape(geometry)), "bias": In(lanes * 32)}
        super().__init__(
            {
                **members,
                "i": In(logit_row_layout(lanes)),
                "o": Out(candidate_row_layout(geometry)),
            }
        )

    @property
    def score_latency(self) -> int:
        """Cycles from a row of fixed-point logits to its scores."""
        if self.shares:
            return self.shares.latency
        score = self.geometry.gating.score
        # Deep: a register behind the shift of the mantissa.
        sigmoid = Sigmoid.latency_of(self.geometry.pipeline) + self.deep
        return {Score.SIGMOID: sigmoid, Score.SQRT_SOFTPLUS: SqrtSoftplus.LATENCY}.get(score, 0)

    @property
    def latency(self) -> int:
        """Cycles from a row of logits to its candidates."""
        return self.fixed_latency + (0 if self.geometry.plan.ranked_by_logit else self.score_latency + 1)

    @property
    def fixed_latency(self) -> int:
        """Cycles from a row of logits to the same in fixed point, standardised where that is asked for."""
        return self.to_fixed + (self.standardise.latency if self.standardise else 0)

    @property
    def deep(self) -> bool:
        """Whether the gate's pipelines are deep."""
        return self.geometry.pipeline is Pipeline.DEEP

    @property
    def to_fixed(self) -> int:
        """Cycles from a row of logits to the same in fixed point."""
        return 1 + (FIXED_STAGES if self.deep else 0)

    def elaborate(self, platform):
        m = Module()
        geometry = self.geometry
        gating, plan = geometry.gating, geometry.plan
        logits = []
        for lane in range(geometry.logits_per_cycle):
            fixed = Signal(signed(32), name=f"logit_{lane}", reset_less=True)
            m.d.sync += fixed.eq(fixed_from_f32(m, self.i.logits[lane], f"logit_{lane}", deep=self.deep))
            if self.standardise:
                m.d.comb += self.standardise.logits[lane].eq(fixed)
                fixed = self.standardise.o[lane]
            candidate = self.o.lanes[lane]
            logits.append(offset_binary(fixed))
            if plan.ranked_by_logit:
                key = fixed
            else:
                score = self._score(m, lane, fixed)
                key = Signal(signed(key_bits(gating)), name=f"key_{lane}", reset_less=True)
                bias = self.bias.word_select(lane, 32).as_signed() if gating.selection_bias else 0
                if plan.carries_score:
                    m.d.comb += candidate.payload.eq(delay(m, score, 1, f"score_{lane}"))
                if gating.score is Score.NONE:
                    m.d.sync += key.eq((score << (SELECT_BITS - FRACTION_BITS)) + bias)
                else:
                    m.d.sync += key.eq((score >> (SCORE_BITS - select_bits(gating))) + bias)
            m.d.comb += candidate.key.eq(offset_binary(key))
        if plan.carries_logit:
            along = delay_line(m, Cat(*logits), self.latency - self.fixed_latency, "logits")
            for lane in range(geometry.logits_per_cycle):
                m.d.comb += self.o.lanes[lane].payload.eq(along.word_select(lane, LOGIT_BITS))

        m.d.comb += self.o.valid.eq(delay(m, self.i.valid, self.latency, "valid", control=True))
        m.submodules.walk = walk = RowWalk(geometry)
        m.d.comb += [
            walk.step.eq(self.o.valid),
            self.o.first.eq(walk.row == 0),
            self.o.last.eq(walk.row == geometry.num_rows - 1),
            self.o.index.eq(walk.index),
        ]
        for lane in range(geometry.logits_per_cycle):
            m.d.comb += self.o.lanes[lane].valid.eq(walk.present[lane])
        if self.standardise:
            m.submodules.standardise = standardise = self.standardise
            m.submodules.raw_walk = raw = RowWalk(geometry)
            row = delay(m, self.i.valid, self.to_fixed, "raw_valid", control=True)
            m.d.comb += [
                raw.step.eq(row),
                standardise.valid.eq(row),
                standardise.first.eq(raw.row == 0),
                standardise.last.eq(raw.row == geometry.num_rows - 1),
                standardise.present.eq(raw.present),
            ]
        if self.shares:
            self._rows_of_shares(m, logits)
        if geometry.gating.selection_bias:
            # The bias is added in the last stage; its read takes one cycle.
            counter = Signal(row_shape(geometry))
            before = delay(m, self.i.valid, self.latency - 2, "before", control=True)
            with m.If(before):
                m.d.sync += counter.eq(Mux(counter == geometry.num_rows - 1, 0, counter + 1))
            m.d.comb += self.bias_row.eq(counter)
        return m

    def _score(self, m, lane: int, fixed):
        """Return a lane's score ``score_latency`` cycles after its logit."""
        kind = self.geometry.gating.score
        if kind is Score.NONE:
            return fixed
        if kind is Score.SOFTMAX:
            return self.shares.shares.word_select(lane, SCORE_WIDTH)
        if kind is Score.SQRT_SOFTPLUS:
            unit = m.submodules[f"sqrt_softplus_{lane}"] = SqrtSoftplus()
            m.d.comb += unit.z.eq(fixed)
            return unit.o
        unit = m.submodules[f"sigmoid_{lane}"] = Sigmoid(self.geometry.pipeline)
        score = Signal(SCORE_WIDTH, name=f"score_{lane}")
        m.d.comb += [unit.z.eq(fixed), score.eq(to_score(unit.mantissa, unit.shift))]
        return delay(m, score, int(self.deep), f"placed_score_{lane}")

    def _rows_of_shares(self, m, logits):
        """Give the shares the rows of logits as soon as they are there."""
        geometry = self.geometry
        m.submodules.shares = shares = self.shares
        m.submodules.logit_walk = walk = RowWalk(geometry)
        valid = delay(m, self.i.valid, self.fixed_latency, "fixed_valid", control=True)
        m.d.comb += [
            walk.step.eq(valid),
            shares.i.valid.eq(valid),
            shares.i.first.eq(walk.row == 0),
            shares.i.last.eq(walk.row == geometry.num_rows - 1),
        ]
        for lane, logit in enumerate(logits):
            m.d.comb += [
                shares.i.lanes[lane].key.eq(logit),
                shares.i.lanes[lane].valid.eq(walk.present[lane]),
            ]


def offset_binary(value):
    """Return a signed value as the unsigned one of the same order."""
    return Cat(value[:-1], ~value[-1])


class RowWalk(wiring.Component):
    """Which experts lie in the current row.

    Members
    -------
    step : In(1)
        The row is passing; go on to the next.
    row : Out
    group : Out
    last_of_group : Out(1)
    index : Out
        Expert in lane 0.
    present : Out(lanes)
        Lanes that hold an expert.
    of_next_group : Out(lanes)
        Where groups share rows: lanes whose expert is of the group after ``group``.
    """

    def __init__(self, geometry: GateGeometry) -> None:
        self.geometry = geometry
        lanes = geometry.logits_per_cycle
        index_bits = max(1, (geometry.gating.num_experts - 1).bit_length())
        super().__init__(
            {
                "step": In(1),
                "row": Out(row_shape(geometry)),
                "group": Out(range(max(2, geometry.num_groups))),
                "last_of_group": Out(1),
                "index": Out(index_bits),
                "present": Out(lanes),
                **({"of_next_group": Out(lanes)} if geometry.groups_share_rows else {}),
            }
        )

    def elaborate(self, platform):
        m = Module()
        geometry = self.geometry
        last_row = Signal()
        m.d.comb += last_row.eq(self.row == geometry.num_rows - 1)
        (self._shared_rows if geometry.groups_share_rows else self._own_rows)(m, last_row)
        with m.If(self.step):
            m.d.sync += self.row.eq(self.row + 1)
            with m.If(last_row):
                m.d.sync += [self.row.eq(0), self.group.eq(0)]
        return m

    def _own_rows(self, m, last_row):
        """Groups begin on rows of their own."""
        geometry = self.geometry
        lanes = geometry.logits_per_cycle
        row_in_group = Signal(range(geometry.rows_per_group))
        base = Signal(range(geometry.gating.num_experts + 1))
        m.d.comb += [
            self.last_of_group.eq(row_in_group == geometry.rows_per_group - 1),
            self.index.eq(base + row_in_group * lanes),
        ]
        tail = geometry.experts_per_group - (geometry.rows_per_group - 1) * lanes
        for lane in range(lanes):
            m.d.comb += self.present[lane].eq(~self.last_of_group | (lane < tail))
        with m.If(self.step):
            m.d.sync += row_in_group.eq(row_in_group + 1)
            with m.If(self.last_of_group):
                m.d.sync += [
                    row_in_group.eq(0),
                    self.group.eq(self.group + 1),
                    base.eq(base + geometry.experts_per_group),
                ]
            with m.If(last_row):
                m.d.sync += base.eq(0)

    def _shared_rows(self, m, last_row):
        """All experts follow each other; a row holds one or two groups, and one ends in it at most."""
        geometry = self.geometry
        lanes, size = geometry.logits_per_cycle, geometry.experts_per_group
        within = Signal(range(size))
        m.d.comb += self.last_of_group.eq(within + lanes >= size)
        tail = geometry.gating.num_experts - (geometry.num_rows - 1) * lanes
        for lane in range(lanes):
            m.d.comb += [
                self.present[lane].eq(~last_row | (lane < tail)),
                self.of_next_group[lane].eq(within + lane >= size),
            ]
        with m.If(self.step):
            m.d.sync += [self.index.eq(self.index + lanes), within.eq(within + lanes)]
            with m.If(self.last_of_group):
                m.d.sync += [within.eq(within + lanes - size), self.group.eq(self.group + 1)]
            with m.If(last_row):
                m.d.sync += [self.index.eq(0), within.eq(0)]


class GroupMask(wiring.Component):
    """Let only the candidates of the best ``topk_groups`` groups pass, or give the others a key of 0.

    The rows wait in a delay line until their token's groups are ranked.
    Latency ``latency`` cycles, one row per cycle.

    Members
    -------
    i, o : In/Out(candidate_row_layout(...))
    o_all : Out(candidate_row_layout(...))
        Where the weights need all logits: ``o`` without the mask.
    """

    RANK_LATENCY = 4
    """From the last row of a token: best two of the row, of the group, ranked list, mask."""

    def __init__(self, geometry: GateGeometry) -> None:
        self.geometry = geometry
        layout = candidate_row_layout(geometry)
        members = {"o_all": Out(layout)} if geometry.plan.needs_all_logits else {}
        super().__init__({**members, "i": In(layout), "o": Out(layout)})

    @property
    def latency(self) -> int:
        """Cycles that a row waits."""
        return self.geometry.num_rows - 1 + self.RANK_LATENCY

    def elaborate(self, platform):
        m = Module()
        geometry = self.geometry
        gating = geometry.gating
        mask = Signal(geometry.num_groups)

        m.submodules.rank = rank = GroupRank(geometry)
        m.d.comb += [rank.i.eq(self.i), mask.eq(rank.mask)]

        layout = self.i.shape()
        m.submodules.wait = wait = DelayLine(layout, self.latency)
        m.submodules.walk = walk = RowWalk(geometry)
        m.d.comb += [
            wait.i.eq(self.i),
            self.o.eq(wait.o),
            self.o.valid.eq(delay(m, self.i.valid, self.latency, "valid", control=True)),
            walk.step.eq(self.o.valid),
        ]
        for lane in range(geometry.logits_per_cycle):
            group = walk.group
            if geometry.groups_share_rows:
                group = Mux(walk.of_next_group[lane], walk.group + 1, walk.group)
            if geometry.plan.masks_to_zero:
                zero = 1 << (key_bits(gating) - 1)
                key = wait.o.lanes[lane].key
                m.d.comb += self.o.lanes[lane].key.eq(Mux(mask.bit_select(group, 1), key, zero))
                continue
            m.d.comb += self.o.lanes[lane].valid.eq(wait.o.lanes[lane].valid & mask.bit_select(group, 1))
        if geometry.plan.needs_all_logits:
            m.d.comb += [self.o_all.eq(wait.o), self.o_all.valid.eq(self.o.valid)]
        assert gating.grouped
        return m


class GroupRank(wiring.Component):
    """Rank a token's groups by the sum of their two best keys, or by the best.

    ``mask`` holds from ``GroupMask.RANK_LATENCY`` cycles after the token's last row until the next
    token's is known. Ties go to the lower group.

    Members
    -------
    i : In(candidate_row_layout(...))
    mask : Out(num_groups)
    """

    def __init__(self, geometry: GateGeometry) -> None:
        self.geometry = geometry
        super().__init__({"i": In(candidate_row_layout(geometry)), "mask": Out(geometry.num_groups)})

    def elaborate(self, platform):
        m = Module()
        geometry = self.geometry
        bits = key_bits(geometry.gating)
        top2_sum = geometry.gating.group_score is GroupScore.TOP2_SUM
        group_bits = max(1, (geometry.num_groups - 1).bit_length())
        m.submodules.walk = walk = RowWalk(geometry)
        m.d.comb += walk.step.eq(self.i.valid)

        def merge(a, b):
            (a1, a2), (b1, b2) = a, b
            return (
                Mux(a1 >= b1, a1, b1),
                Mux(a1 >= b1, Mux(a2 >= b1, a2, b1), Mux(b2 >= a1, b2, a1)),
            )

        def best_two(takes):
            # An absent candidate is the lowest key; a group of fewer than two never asks for its second.
            keys = (Mux(take, lane.key, 0) for lane, take in zip(self.i.lanes, takes, strict=True))
            return tree([(key, Const(0, bits)) for key in keys], merge)

        present = [lane.valid for lane in self.i.lanes]
        if geometry.groups_share_rows:
            present = [
                lane.valid & ~other for lane, other in zip(self.i.lanes, walk.of_next_group, strict=True)
            ]
        row_best, row_second = best_two(present)
        s1_best = Signal(bits, reset_less=True)
        s1_second = Signal(bits, reset_less=True)
        m.d.sync += [s1_best.eq(row_best), s1_second.eq(row_second)]
        s1_valid = delay(m, self.i.valid, 1, "s1_valid", control=True)
        s1_first = delay(m, walk.row == 0, 1, "s1_first")
        s1_end = delay(m, walk.last_of_group, 1, "s1_end")
        s1_last = delay(m, self.i.last, 1, "s1_last")
        s1_group = delay(m, walk.group, 1, "s1_group")

        s2_best = Signal(bits, reset_less=True)
        s2_second = Signal(bits, reset_less=True)
        fresh = Signal()
        # What a group starts with: nothing, or its part of the row in which the group before it ended.
        begun = (0, 0)
        if geometry.groups_share_rows:
            begun = self._begun(m, best_two(walk.of_next_group), s1_valid)
        running = (
            Mux(s1_first, 0, Mux(fresh, begun[0], s2_best)),
            Mux(s1_first, 0, Mux(fresh, begun[1], s2_second)),
        )
        best, second = merge(running, (s1_best, s1_second))
        with m.If(s1_valid):
            m.d.sync += [s2_best.eq(best), s2_second.eq(second), fresh.eq(s1_end)]

        m.submodules.ranked = ranked = SortedList(
            key_bits=bits + 1, payload_bits=group_bits, size=geometry.gating.topk_groups
        )
        s2_valid = delay(m, s1_valid, 1, "s2_valid", control=True)
        s2_last = delay(m, s1_valid & s1_last, 1, "s2_last", control=True)
        m.d.comb += [
            ranked.insert.eq(s2_valid & delay(m, s1_end, 1, "s2_end")),
            ranked.valid.eq(1),
            ranked.key.eq(s2_best + s2_second if top2_sum else s2_best),
            ranked.payload.eq(delay(m, s1_group, 1, "s2_group")),
            ranked.clear.eq(ranked.insert & (ranked.payload == 0)),
        ]
        s3_last = delay(m, s2_last, 1, "s3_last", control=True)
        chosen = Signal(geometry.num_groups)
        for entry in ranked.entries:
            with m.If(entry.valid):
                m.d.comb += chosen.bit_select(entry.payload, 1).eq(1)
        with m.If(s3_last):
            m.d.sync += self.mask.eq(chosen)
        return m

    def _begun(self, m, best_two, s1_valid):
        """Return the best two of the next group in the row before the one in s1."""
        registers = []
        for name, key in zip(("best", "second"), best_two, strict=True):
            s1_key = Signal.like(key, name=f"s1_next_{name}", reset_less=True)
            begun = Signal.like(key, name=f"begun_{name}", reset_less=True)
            m.d.sync += s1_key.eq(key)
            with m.If(s1_valid):
                m.d.sync += begun.eq(s1_key)
            registers.append(begun)
        return registers
