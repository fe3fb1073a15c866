"""Sizes that follow from a model on a design: rows, beats, tiles, and the weight image in memory.

Golden, RTL, packer and cycle model all take them from here, so that they cannot disagree.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

from spec.design import DeepBlock, DesignSpec, Format, Pipeline, RouterPlace
from spec.errors import InputError, require
from spec.gate_plan import GatePlan
from spec.hardware import check_hardware
from spec.model import AppliedTo, FfnSpec, GatingSpec, ModelSpec

# Cycles from reading an fp32 accumulator to reading the sum: RAM read, 3 adder stages (rtl.arith).
ACCUMULATE_DISTANCE = 4
# The same where the pipelines are deep: RAM read and its register, 7 adder stages.
DEEP_ACCUMULATE_DISTANCE = 9
# The same of a deep MAC array, in which no accumulator is read while it is written; of integers, whose
# additions are as long as scaling a sum.
DEEP_ARRAY_DISTANCE, DEEP_INTEGER_DISTANCE = 10, 12
# From a scale tile's slot to the next one's, in a grouped format: until then its scales wait for the tokens
# that fired before it to reach the multiplication (burst 5, accumulator 3).
SCALE_DISTANCE = 8
# An input times its weight, rounded to bf16; into int8 behind it (rtl.expert.inputs).
INPUT_PRODUCT_CYCLES = 1
INPUT_QUANTISER_CYCLES = 2
PAGE_BYTES = 4096
# An fp32 logit bias as bf16 inputs of the router: their significands have 24 bits together.
LOGIT_BIAS_INPUTS = 3
BIAS_BITS = 32
# A channel's scale in an integer format: 16-bit mantissa, 16-bit signed shift; where the FFN has biases, an
# int32 behind.
SCALE_BYTES = 4
SCALE_BIAS_BYTES = 4
# Before the scales of an output in a grouped format, where the FFN has biases: bf16.
GROUPED_BIAS_BITS = 16


def accumulate_distance(pipeline: Pipeline) -> int:
    """Return the cycles from reading an accumulator to reading the sum, at least."""
    return DEEP_ACCUMULATE_DISTANCE if pipeline is Pipeline.DEEP else ACCUMULATE_DISTANCE


def array_distance(pipeline: Pipeline, number_format: Format) -> int:
    """Return the cycles from a token's slot at a tile to its slot at the next one, at least."""
    if pipeline is Pipeline.SHORT:
        return ACCUMULATE_DISTANCE
    return DEEP_INTEGER_DISTANCE if number_format.integer else DEEP_ARRAY_DISTANCE


def ceil_div(a: int, b: int) -> int:
    """Return ``ceil(a / b)`` for non-negative integers."""
    return -(-a // b)


def _gating(model: ModelSpec) -> GatingSpec:
    """Return a model's gating with the factor of the experts' outputs in its weights, where it is applied."""
    factor = model.expert_output_scale
    if factor == 1.0:
        return model.gating
    return dataclasses.replace(model.gating, scale=model.gating.scale * factor)


@dataclass(frozen=True, kw_only=True)
class GateGeometry:
    """How the router product lies on the gate's MACs.

    ``logits_per_cycle`` rows of the router (lanes ``p``) are multiplied at once, ``cols`` inputs
    each; a *row* is such a set of experts. The product goes over all rows for the first ``cols``
    inputs, then for the next: consecutive additions to one accumulator are ``beat_distance`` cycles
    apart, which must be at least :func:`accumulate_distance`. Where that is more than the rows, tokens
    overlap: the bursts of one fill the gaps of the others.

    Attributes
    ----------
    gating, d_model : the model's router.
    lanes : MACs.
    logits_per_cycle : experts of a row, at most what the design offers (:meth:`of` lowers it).
    stream_lanes : elements of an input beat.
    load_elements : bf16 elements of a beat of the load stream.
    banked : the products are made in the banks (:class:`RouterGeometry`); what stays of the walk is to
        read the rows of logits, once.
    shared_gate : the shared expert has a gate: one more product, behind those of the experts.
    gives_scores : assignments carry their scores beside their weights (:attr:`ModelSpec.drops_need_scores`).
    pipeline : of its arithmetic.
    """

    gating: GatingSpec
    d_model: int
    lanes: int
    logits_per_cycle: int
    stream_lanes: int
    load_elements: int
    banked: bool = False
    shared_gate: bool = False
    gives_scores: bool = False
    pipeline: Pipeline = Pipeline.SHORT

    def __post_init__(self) -> None:
        require(
            self.cols % self.stream_lanes == 0 or self.num_beats == 1,
            f"must divide lanes / logits_per_cycle = {self.cols}, not {self.stream_lanes}",
            key="stream_lanes",
        )
        require(
            self.lanes % self.load_elements == 0,
            f"must divide lanes = {self.lanes}, not {self.load_elements}",
            key="load_elements",
        )

    @classmethod
    def of(cls, model: ModelSpec, design: DesignSpec) -> GateGeometry:
        """Return the fastest geometry within the design's lanes and logits per cycle.

        Fewer logits per cycle are better where they leave less of the last row or step empty, or the
        accumulators more time: a half, a quarter, and so on, or as many as have all their inputs at once.
        Of equally fast ones the one with the shorter product is taken, of those the one with more logits
        per cycle.
        """
        most = design.gate.logits_per_cycle
        banked = design.pim is not None and design.pim.router is RouterPlace.BANKS
        counts = [most >> n for n in range(most.bit_length())]
        if not banked:
            # (Units of a channel are a power of two.)
            counts.append(min(most, design.gate.lanes // model.d_model) or 1)
        choices = [
            cls(
                gating=_gating(model),
                d_model=model.d_model,
                lanes=design.gate.lanes,
                logits_per_cycle=logits_per_cycle,
                stream_lanes=design.stream_lanes,
                load_elements=design.memory.beat_elements,
                banked=banked,
                shared_gate=model.d_shared > 0 and model.shared_expert_gate,
                gives_scores=model.drops_need_scores,
                pipeline=design.pipeline_of(DeepBlock.GATE),
            )
            for logits_per_cycle in counts
        ]
        fitting = [choice for choice in choices if choice.prototypes_fit]
        return min(fitting, key=lambda choice: (choice.interval, choice.product_cycles))

    @property
    def plan(self) -> GatePlan:
        """What the gating asks of scores, selection and weights."""
        return GatePlan(self.gating, self.gives_scores)

    @property
    def cols(self) -> int:
        """Inputs multiplied per cycle and expert."""
        return self.lanes // self.logits_per_cycle

    @property
    def num_groups(self) -> int:
        """Groups, 1 where they do not restrict the choice; or prototypes, each on rows of its own."""
        return self.gating.num_groups if self.gating.grouped else self.gating.num_prototypes

    @property
    def of_prototype(self) -> GateGeometry:
        """The rows of one prototype: what selects sees them as a token's."""
        if self.gating.num_prototypes == 1:
            return self
        return dataclasses.replace(self, gating=self.gating.of_prototype, shared_gate=False)

    @property
    def prototypes_fit(self) -> bool:
        """Whether a prototype's choices can leave while the next one's rows pass."""
        gating = self.gating
        return gating.num_prototypes == 1 or self.rows_per_group >= gating.of_prototype.top_k

    @property
    def experts_per_group(self) -> int:
        """Experts of such a group."""
        return self.gating.num_experts // self.num_groups

    @property
    def groups_share_rows(self) -> bool:
        """Whether some row holds the end of a group and the begin of the next.

        Groups smaller than a row have one each, so that no more than one ends in it; and so have prototypes.
        """
        lanes, group = self.logits_per_cycle, self.experts_per_group
        return self.gating.grouped and group > lanes and group % lanes != 0

    @property
    def rows_per_group(self) -> int:
        """Rows of a group, where groups share none."""
        return ceil_div(self.experts_per_group, self.logits_per_cycle)

    @property
    def of_experts(self) -> GateGeometry:
        """The same for the experts alone, without what the gate of a shared expert adds."""
        return dataclasses.replace(self, shared_gate=False) if self.shared_gate else self

    @property
    def expert_rows(self) -> int:
        """Rows that hold experts."""
        if self.groups_share_rows:
            return ceil_div(self.gating.num_experts, self.logits_per_cycle)
        return self.num_groups * self.rows_per_group

    @property
    def _last_row_experts(self) -> int:
        """Experts of the last row that holds any."""
        if self.groups_share_rows:
            return self.gating.num_experts - (self.expert_rows - 1) * self.logits_per_cycle
        return self.experts_per_group - (self.rows_per_group - 1) * self.logits_per_cycle

    @property
    def shared_gate_lane(self) -> int:
        """Lane of the shared expert's gate: behind the last expert, lane 0 of a row of its own if need be."""
        return self._last_row_experts % self.logits_per_cycle

    @property
    def num_rows(self) -> int:
        """Rows of the product."""
        return self.expert_rows + (self.shared_gate and self.shared_gate_lane == 0)

    @property
    def num_beats(self) -> int:
        """Steps of ``cols`` inputs over a token."""
        return 1 if self.banked else ceil_div(self.d_model, self.cols)

    @property
    def num_words(self) -> int:
        """Bursts of a token's product, all lanes at once."""
        return self.num_rows * self.num_beats

    @property
    def interval(self) -> int:
        """Initiation interval of a token in cycles."""
        return max(self.num_words, self.gating.top_k, 0 if self.banked else self.input_beats)

    @cached_property
    def beat_distance(self) -> int:
        """Cycles from a row's burst to the next one of that row.

        Burst ``b`` of row ``r`` is ``b * beat_distance + r`` cycles after the token's first. Where rows are
        too few for the accumulators it is the least distance with which all these are different modulo
        the interval: so tokens that are multiples of it apart never want the MACs in the same cycle. There is
        one, ``interval * n + num_rows`` for a large ``n`` if none is smaller.
        """
        distance = accumulate_distance(self.pipeline)
        if self.num_beats == 1 or self.num_rows >= distance:
            return self.num_rows
        while self._slots(distance) < self.num_words:
            distance += 1
        return distance

    def _slots(self, distance: int) -> int:
        """Return how many different cycles, modulo the interval, a token's bursts take."""
        first = range(0, self.num_beats * distance, distance)
        interval, rows = self.interval, range(self.num_rows)
        return len({(cycle + row) % interval for cycle in first for row in rows})

    @property
    def product_cycles(self) -> int:
        """Cycles from a token's first burst to its last, both included."""
        return (self.num_beats - 1) * self.beat_distance + self.num_rows

    @property
    def num_token_buffers(self) -> int:
        """Tokens held at once: those being multiplied, and one coming in, one per interval."""
        held = self.product_cycles + 1 + self.input_beats
        return max(2, ceil_div(held, self.interval))

    @property
    def input_beats(self) -> int:
        """Input beats of a token."""
        return ceil_div(self.d_model, self.stream_lanes)

    @property
    def loads_logit_bias(self) -> bool:
        """Whether a logit bias is loaded after the router; in the banks it lies with the router."""
        return self.gating.logit_bias and not self.banked

    @property
    def has_bias(self) -> bool:
        """Whether a bias is loaded after the router."""
        return self.num_biases > 0

    @property
    def num_biases(self) -> int:
        """Biases loaded after the router, each for all experts: that of the logits first."""
        return self.loads_logit_bias + self.gating.selection_bias

    @property
    def router_load_beats(self) -> int:
        """Beats of the load stream that carry the router."""
        return 0 if self.banked else self.num_words * (self.lanes // self.load_elements)

    @property
    def bias_row_beats(self) -> int:
        """Beats of the load stream that carry the biases of one row."""
        return ceil_div(self.logits_per_cycle * BIAS_BITS, self.load_elements * 16)

    @property
    def load_beats(self) -> int:
        """Beats of the load stream in all."""
        return self.router_load_beats + self.num_biases * self.num_rows * self.bias_row_beats

    def expert_at(self, row: int, lane: int) -> int | None:
        """Return the expert that lies at a row and lane, None where none does."""
        if self.groups_share_rows:
            expert = row * self.logits_per_cycle + lane
            return expert if expert < self.gating.num_experts else None
        group, row_in_group = divmod(row, self.rows_per_group)
        within = row_in_group * self.logits_per_cycle + lane
        if within >= self.experts_per_group or row >= self.expert_rows:
            return None
        return group * self.experts_per_group + within

    def output_at(self, row: int, lane: int) -> int | None:
        """Return as :meth:`expert_at`, and ``num_experts`` for the shared expert's gate."""
        if self.shared_gate and (row, lane) == (self.num_rows - 1, self.shared_gate_lane):
            return self.gating.num_experts
        return self.expert_at(row, lane)


@dataclass(frozen=True, kw_only=True)
class RouterGeometry:
    """How the router lies in the banks: ``rows`` logits x ``cols`` inputs a tile, as one more matrix.

    Its rows are the lanes of the gate's rows in their order: *place* ``n`` is lane ``n %
    logits_per_cycle`` of row ``n // logits_per_cycle`` (:meth:`GateGeometry.expert_at`). For each block
    of ``rows`` places its tiles across the inputs follow each other. A logit bias is
    ``LOGIT_BIAS_INPUTS`` more inputs, each always 1. What belongs to no expert or input is zero.

    Names are those of :class:`FfnGeometry`, whose first blocks these tiles are like.
    """

    gate: GateGeometry
    rows: int
    cols: int

    @property
    def num_ones(self) -> int:
        """Inputs behind the token's that are always 1."""
        return LOGIT_BIAS_INPUTS if self.gate.gating.logit_bias else 0

    @property
    def num_places(self) -> int:
        """Rows of the matrix."""
        return self.gate.num_rows * self.gate.logits_per_cycle

    @property
    def hidden_blocks(self) -> int:
        """Blocks of ``rows`` logits."""
        return ceil_div(self.num_places, self.rows)

    @property
    def in_tiles(self) -> int:
        """Tiles of a block."""
        return ceil_div(self.gate.d_model + self.num_ones, self.cols)

    @property
    def met_in_tiles(self) -> int:
        """Those that a token meets: all."""
        return self.in_tiles

    @property
    def num_tiles(self) -> int:
        """Tiles of the router."""
        return self.hidden_blocks * self.in_tiles


@dataclass(frozen=True, kw_only=True)
class FfnGeometry:
    """How one expert's matrices lie on the MAC array: ``rows`` outputs x ``cols`` inputs a tile.

    Tiles follow each other in memory as the array needs them: for each block of ``rows`` hidden
    outputs its gate tiles, then its up tiles; then for each block of ``rows`` outputs of the down
    matrix its tiles. A tile is row-major; rows and columns beyond the matrix are zero.

    In bf16 a bias is one more input that is always 1. In an integer format a *scale tile* comes behind the
    tiles of each block and matrix: its row has in its first bytes what turns that output's integer sum into
    bf16 (:func:`golden.image.scale_tiles`), the bias included.

    In a grouped format a *scale tile* comes before the tiles of each *span* of a block and matrix: its row
    holds that output's scales of the span's groups (:func:`golden.image.grouped_scale_tiles`). A span is as
    many whole tiles and groups as a row has room for scales; the last one of a block may be shorter, as may
    its last group.

    Attributes
    ----------
    group : inputs that share a scale, whole tiles or a whole part of one; 0 where the format has no groups.
    bias_room : whether scale tiles of a grouped format have room for biases though these outputs have none:
        where another kind of expert on the array has.
    """

    ffn: FfnSpec
    d_model: int
    d_hidden: int
    rows: int
    cols: int
    format: Format = Format.BF16
    group: int = 0
    bias_room: bool = False

    def __post_init__(self) -> None:
        if self.format.grouped:
            require(
                self.group > 0 and (self.group % self.cols == 0 or self.cols % self.group == 0),
                f"must be whole tiles of cols={self.cols} inputs, or divide one (a tile must not split a"
                f" group), not {self.group}",
                key="group",
            )
            room, bias = self.cols * self.format.bits - self.bias_bits, " and a bias" * bool(self.bias_bits)
            require(
                room >= self.format.scale_bits,
                f"must be at least {ceil_div(self.bias_bits + self.format.scale_bits, self.format.bits)} in"
                f" {self.format} (a row of a tile holds a scale{bias}), not {self.cols}",
                key="cols",
            )
            # Each group as large as this has room for its scale.
            least = ceil_div(self.cols * self.format.scale_bits, room)
            require(
                self.span_groups >= 1,
                f"must be at least {1 << (least - 1).bit_length()} in {self.format} with cols={self.cols} (a"
                f" row of a tile holds the scales of a tile's groups{bias}), not {self.group}",
                key="group",
            )
        require(
            not self.format.integer or self.cols * self.format.bits >= 8 * self.scale_bytes,
            f"must be at least {8 * self.scale_bytes // self.format.bits} in {self.format} (a row of a tile"
            f" holds a channel's scale{' and bias' if self.ffn.bias else ''}), not {self.cols}",
            key="cols",
        )

    @property
    def scale_bytes(self) -> int:
        """Bytes of a channel's scale, and bias where there is one, in a scale tile."""
        return SCALE_BYTES + (SCALE_BIAS_BYTES if self.ffn.bias else 0)

    @property
    def bias_bits(self) -> int:
        """Bits of an output's bias in a scale tile of a grouped format."""
        return GROUPED_BIAS_BITS if self.ffn.bias or self.bias_room else 0

    @property
    def group_tiles(self) -> int:
        """Tiles of a group, at least 1."""
        return max(1, self.group // self.cols)

    @property
    def tile_groups(self) -> int:
        """Groups of a tile, at least 1."""
        return max(1, self.cols // self.group)

    @property
    def span_groups(self) -> int:
        """Groups whose scales lie in one scale tile: those of whole tiles."""
        groups = (self.cols * self.format.bits - self.bias_bits) // self.format.scale_bits
        return groups // self.tile_groups * self.tile_groups

    @property
    def span_tiles(self) -> int:
        """Tiles of weights behind a scale tile; 0 where the format has no groups."""
        return self.span_groups * self.group_tiles // self.tile_groups if self.format.grouped else 0

    @property
    def element_bits(self) -> int:
        """Bits of what a weight is multiplied with."""
        return self.format.operand_bits

    @property
    def tile_bytes(self) -> int:
        """Bytes of a tile, which are whole ones."""
        return self.rows * self.cols * self.format.bits // 8

    def _met_tiles(self, inputs: int) -> int:
        """Return the tiles of a block with so many inputs that tokens meet."""
        if self.format.integer:
            return ceil_div(inputs, self.cols) + 1
        return ceil_div(inputs + (self.ffn.bias and not self.format.grouped), self.cols)

    def _tiles(self, inputs: int) -> int:
        """Return the tiles of a block with so many inputs."""
        met = self._met_tiles(inputs)
        return met + (ceil_div(met, self.span_tiles) if self.format.grouped else 0)

    @property
    def hidden_blocks(self) -> int:
        """Blocks of ``rows`` hidden outputs."""
        return ceil_div(self.d_hidden, self.rows)

    @property
    def in_tiles(self) -> int:
        """Tiles of a gate or up block: across the inputs, and the scale tiles."""
        return self._tiles(self.d_model)

    @property
    def out_blocks(self) -> int:
        """Blocks of ``rows`` outputs."""
        return ceil_div(self.d_model, self.rows)

    @property
    def hidden_tiles(self) -> int:
        """Tiles of a down block: across the inputs, and the scale tiles."""
        return self._tiles(self.d_hidden)

    @property
    def met_in_tiles(self) -> int:
        """Those of a gate or up block that a token meets: without the scale tiles of a grouped format."""
        return self._met_tiles(self.d_model)

    @property
    def met_hidden_tiles(self) -> int:
        """Those of a down block that a token meets."""
        return self._met_tiles(self.d_hidden)

    @property
    def num_up_matrices(self) -> int:
        """Matrices before the activation: 2 with a gate, else 1."""
        return self.ffn.num_matrices - 1

    @cached_property
    def num_tiles(self) -> int:
        """Tiles of an expert."""
        return self.hidden_blocks * self.num_up_matrices * self.in_tiles + self.out_blocks * self.hidden_tiles

    @property
    def num_met_tiles(self) -> int:
        """Tiles of an expert that a token meets."""
        hidden = self.hidden_blocks * self.num_up_matrices * self.met_in_tiles
        return hidden + self.out_blocks * self.met_hidden_tiles

    @property
    def num_bytes(self) -> int:
        """Bytes of an expert's tiles."""
        return self.num_tiles * self.tile_bytes


@dataclass(frozen=True, kw_only=True)
class ImageGeometry:
    """The weight image in memory: router, routed experts, shared expert, each on whole 4 KiB pages.

    An expert's tiles are padded to whole bursts; the padding is read and thrown away. Where the banks
    hold the ``router``, its part of the image is a selection bias at most. An output bias follows the router.
    """

    gate: GateGeometry
    routed: FfnGeometry
    shared: FfnGeometry | None
    burst_bytes: int
    router: RouterGeometry | None = None
    output_bias: bool = False

    @classmethod
    def of(cls, model: ModelSpec, design: DesignSpec) -> ImageGeometry:
        """Return the image of a model on a design.

        Raises InputError where the design is too small, or the hardware lacks a term of the model.
        """
        check_hardware(model)
        design.check_model(model.d_model, model.ffn.d_expert, model.d_shared, model.gating.num_experts)

        kinds = [model.ffn] + ([model.shared_ffn] if model.shared_ffn else [])

        def ffn(spec: FfnSpec, d_hidden: int) -> FfnGeometry:
            try:
                return FfnGeometry(
                    ffn=spec,
                    d_model=model.d_model,
                    d_hidden=d_hidden,
                    rows=design.tile.rows,
                    cols=design.tile.cols,
                    format=design.format,
                    group=design.scale_group,
                    bias_room=design.format.grouped and any(kind.bias for kind in kinds),
                )
            except InputError as error:
                key = "array.cols" if error.key == "cols" and design.array else error.key
                raise InputError(error.rule, file=design.name, key=key) from None

        gate = GateGeometry.of(model, design)
        tile = design.tile
        return cls(
            gate=gate,
            routed=ffn(model.ffn, model.ffn.d_expert),
            shared=ffn(model.shared_ffn, model.d_shared) if model.shared_ffn else None,
            burst_bytes=design.memory.burst_bytes,
            router=RouterGeometry(gate=gate, rows=tile.rows, cols=tile.cols) if gate.banked else None,
            output_bias=model.output_bias,
        )

    @property
    def num_experts(self) -> int:
        """Routed experts that have an FFN: those of the dispatcher and of what is behind it."""
        return self.gate.gating.num_ffn_experts

    @property
    def weighted_inputs(self) -> bool:
        """Whether weights multiply the routed experts' inputs, and their outputs are added with weight 1."""
        return self.gate.gating.weight_applied_to is AppliedTo.INPUT

    @property
    def input_cycles(self) -> int:
        """Cycles that the product with their weights takes inputs between token store and lanes."""
        if not self.weighted_inputs:
            return 0
        return INPUT_PRODUCT_CYCLES + (INPUT_QUANTISER_CYCLES if self.routed.format.integer else 0)

    @property
    def router_cols(self) -> int:
        """Products per burst of the router's."""
        return self.router.cols if self.router else self.gate.cols

    def _pages(self, num_bytes: int) -> int:
        whole_bursts = ceil_div(num_bytes, self.burst_bytes) * self.burst_bytes
        return ceil_div(whole_bursts, PAGE_BYTES)

    @property
    def bias_beats(self) -> int:
        """Beats of the output bias, fp32 values, behind the router's."""
        return ceil_div(2 * self.gate.d_model, self.gate.load_elements) if self.output_bias else 0

    @property
    def load_beats(self) -> int:
        """Beats of what is loaded before the first token: the router's, and the output bias."""
        return self.gate.load_beats + self.bias_beats

    @property
    def router_pages(self) -> int:
        """Pages of the router's image; it starts at page 0."""
        return self._pages(self.load_beats * self.gate.load_elements * 2)

    @property
    def expert_pages(self) -> int:
        """Pages from one routed expert to the next."""
        return self._pages(self.routed.num_bytes)

    def expert_page(self, expert: int) -> int:
        """Return the page at which an expert starts; :attr:`num_experts` means the shared one."""
        return self.router_pages + expert * self.expert_pages

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole image."""
        pages = self.expert_page(self.num_experts)
        return (pages + (self._pages(self.shared.num_bytes) if self.shared else 0)) * PAGE_BYTES
