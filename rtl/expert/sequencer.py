"""Order of the array's work: which token meets which tile, and when it may."""

from amaranth import Cat, Module, Mux, Signal, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from rtl.arith import delay, times
from rtl.expert.inputs import WeightedInputs
from rtl.expert.jobs import JobPointer, job_record_layout, list_bits, list_layout
from rtl.expert.layouts import EngineConfig, ExpertConfig, bits_for
from rtl.int8 import SCALE_WORD_BITS
from rtl.ram import ReadSignature, address_width


def slot_layout(config: EngineConfig):
    """Return what the array knows of a MAC slot (one token at one tile).

    ``token`` and ``parity`` name the accumulators, ``up`` the second set of a gated FFN; ``first``
    tile starts them from zero; ``unit_done`` on the first token of a unit's last tile. In integer and grouped
    formats ``scale`` marks a scale tile. In these ``group_first`` starts a group's sum from zero,
    ``group_last`` has it scaled and added, to the bias in the ``first_group``; ``group_done`` on the last
    token of a group's last tile.
    """
    names = ("group_first", "group_last", "group_done", "first_group") if config.grouped else ()
    return data.StructLayout(
        {
            "token": unsigned(bits_for(config.max_tokens)),
            "parity": unsigned(1),
            "up": unsigned(1),
            "first": unsigned(1),
            "unit_done": unsigned(1),
            **({"scale": unsigned(1)} if config.integer or config.grouped else {}),
            **dict.fromkeys(names, unsigned(1)),
        }
    )


class Sequencer(wiring.Component):
    """Walk over a job: hidden blocks (gate tiles, up tiles), then output blocks; per tile all tokens.

    A *unit* is a block of ``rows`` outputs with all its tiles. Stages, each of which may wait:

    * f0 names the token of a slot and starts the read of the job's list;
    * l, in a deep pipeline, has the list's entry, and makes the addresses of its token;
    * f1 starts the read of the token's inputs (``tokens`` or ``hidden``); the hidden ones wait until
      they have been computed;
    * w1, w2, ... where weights multiply the inputs (:class:`rtl.expert.inputs.WeightedInputs`): the hidden
      ones go along as they are;
    * f2 has the inputs and *fires* (gives the slot to the array) when the tile is there, the
      accumulators' last sum of this token is written, and, for a unit's first slot, the unit before
      the last has been drained.

    In a grouped format a scale tile is one slot, of no token: it needs no accumulators, and fires when the
    scale tile before it has gone its way through the array (``config.scale_distance``).

    The first slot of a job that waits in cycle c fires in c + 4 at the earliest, later by the stages w; then
    one slot per cycle.

    Members
    -------
    complete, records : In, from :class:`rtl.expert.jobs.JobLists`.
    list : Out(ReadSignature)
    tokens, hidden : Out(ReadSignature) of the token store and of the hidden buffer.
    hidden_bank, hidden_units : In
        Bank of the job that is being drained, and how many of its hidden blocks are complete; in a deep
        pipeline how many will be in the next cycle.
    tile_full : In(1), release : Out(1)
    unit_drained : In(1)
    fire : Out(1), slot : Out(slot_layout(config))
    x : Out(cols * element_bits)
        The inputs of the firing slot, in a deep pipeline a cycle later; in bf16 with the 1 of a bias.
    scale_x : In(SCALE_WORD_BITS), in integer formats where weights multiply the inputs
    wait_tile, wait_accumulators, wait_hidden : Out(1)
        Why nothing fires.
    """

    def __init__(self, config: ExpertConfig, *, token_depth: int, hidden_depth: int) -> None:
        self.config = config
        width = config.routed.cols * config.element_bits
        self.list_depth = 2 << bits_for(config.max_tokens)
        max_hidden = max(kind.hidden_blocks for kind in config.kinds)
        super().__init__(
            {
                "complete": In(1),
                "records": In(data.ArrayLayout(job_record_layout(config), 2)),
                "list": Out(ReadSignature(list_bits(config), self.list_depth)),
                "tokens": Out(ReadSignature(config.routed.cols * config.stored_bits, token_depth)),
                "hidden": Out(ReadSignature(width, hidden_depth)),
                "hidden_bank": In(1),
                "hidden_units": In(range(max_hidden + 1)),
                "tile_full": In(1),
                "release": Out(1),
                "unit_drained": In(1),
                "fire": Out(1),
                "slot": Out(slot_layout(config)),
                "x": Out(width),
                **({"scale_x": In(SCALE_WORD_BITS)} if config.integer and config.weighted_inputs else {}),
                "wait_tile": Out(1),
                "wait_accumulators": Out(1),
                "wait_hidden": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.walk = walk = JobWalk(config)
        m.d.comb += [
            walk.complete.eq(self.complete),
            walk.records.eq(self.records),
        ]
        tag = walk.tag.shape()
        f1_valid = Signal()
        f2_valid = Signal()
        f1 = Signal(tag, reset_less=True)
        f2 = Signal(tag, reset_less=True)
        f1_go = Signal()
        f1_leave = Signal()
        f0_go, f0_valid, f0 = f1_go, walk.valid, walk.tag
        entry = list_layout(config)(self.list.data)
        listed = {
            "token_word": entry.slot * config.token_words,
            "hidden_word": f1.slot.token * config.hidden_words,
        }
        if config.weighted_inputs:
            listed["input_weight"] = entry.input_weight
        if config.deep:
            # l: the entry is there, and the places of its token are computed.
            f0_go = Signal()
            f0_valid = Signal(name="l_valid")
            f0 = Signal(tag, name="l", reset_less=True)
            listed["token_word"] = times(entry.slot, config.token_words)
            listed["hidden_word"] = times(f0.slot.token, config.hidden_words)
            m.d.comb += f0_go.eq(~f0_valid | f1_go)
            with m.If(f0_go):
                m.d.sync += [f0_valid.eq(walk.valid), f0.eq(walk.tag)]
            for name, value in listed.items():
                listed[name] = Signal(len(value), name=name, reset_less=True)
                with m.If(f1_go):
                    m.d.sync += listed[name].eq(value)

        # f0: the list is read while the next stage is free or being left.
        m.d.comb += [
            f1_go.eq(~f1_valid | f1_leave),
            walk.go.eq(f0_go),
            self.list.addr.eq(walk.list_address),
            self.list.en.eq(walk.valid & f0_go),
        ]
        with m.If(f1_go):
            m.d.sync += [f1_valid.eq(f0_valid), f1.eq(f0)]

        # f1: the inputs are read while f2 is free or being left, hidden ones once they exist.
        hidden_ready = Signal()
        # Behind f1: the stages of the product, if there are any, then f2.
        stages = config.image.input_cycles
        valids = [Signal(name=f"w{n + 1}_valid") for n in range(stages)] + [f2_valid]
        tags = [Signal(tag, name=f"w{n + 1}", reset_less=True) for n in range(stages)] + [f2]
        leaves = [Signal(name=f"w{n + 1}_leave") for n in range(stages)] + [self.fire]

        def hidden_exist(tag):
            # The job before may not be drained yet; its count says nothing about this one.
            return ~tag.out | ((self.hidden_bank == tag.bank) & (self.hidden_units >= tag.hidden_needed))

        if config.deep:
            # Known from a register: of the slot that will be in f1, from the count of the next cycle.
            m.d.sync += hidden_ready.eq(Mux(f1_go, hidden_exist(f0), hidden_exist(f1)))
        else:
            m.d.comb += hidden_ready.eq(hidden_exist(f1))
        m.d.comb += [
            f1_leave.eq(f1_valid & (~valids[0] | leaves[0]) & hidden_ready),
            self.wait_hidden.eq(f1_valid & ~f2_valid & ~hidden_ready),
            self.tokens.addr.eq(listed["token_word"] + Mux(f1.beyond, 0, f1.tile)),
            self.tokens.en.eq(f1_leave & ~f1.out),
            self.hidden.addr.eq(listed["hidden_word"] + Mux(f1.beyond, 0, f1.tile)),
            self.hidden.en.eq(f1_leave & f1.out),
        ]
        for n in range(stages):
            m.d.comb += leaves[n].eq(valids[n] & (~valids[n + 1] | leaves[n + 1]))
        enters = [f1_leave, *leaves[:-1]]
        for n, before in enumerate([f1, *tags[:-1]]):
            with m.If(enters[n]):
                m.d.sync += [valids[n].eq(1), tags[n].eq(before)]
            with m.Elif(leaves[n]):
                m.d.sync += valids[n].eq(0)

        # f2: fire when nothing is missing.
        distance = config.array_distance
        since = Signal(range(distance + 1), init=distance)
        undrained = Signal(range(3))
        start_tile = Signal()
        start_unit = Signal()
        accumulators_free = Signal()
        summed = since == distance
        starts = [start_tile.eq(f2.slot.token == 0), start_unit.eq(start_tile & f2.slot.first & ~f2.slot.up)]
        if config.deep:
            # Known from registers.
            starts = []
            summed = Signal(init=1)
            self._find_starts(m, [f1, *tags][-2].slot, enters[-1], start_tile, start_unit)
            with m.If(self.fire & start_tile):
                m.d.sync += summed.eq(0)
            with m.Elif(since == distance - 1):
                m.d.sync += summed.eq(1)
        m.d.comb += [
            *starts,
            accumulators_free.eq((~start_tile | summed) & (~start_unit | (undrained != 2))),
            self.fire.eq(f2_valid & self.tile_full & accumulators_free),
            self.release.eq(self.fire & f2.last_token),
            self.slot.eq(f2.slot),
            self.wait_tile.eq(f2_valid & ~self.tile_full),
            self.wait_accumulators.eq(f2_valid & self.tile_full & ~accumulators_free),
        ]
        if config.grouped:
            scale_distance = config.scale_distance
            scale_since = Signal(range(scale_distance + 1), init=scale_distance)
            if not config.deep:
                m.d.comb += start_tile.eq(~f2.slot.scale & (f2.slot.token == 0))
            with m.If(f2.slot.scale):
                m.d.comb += accumulators_free.eq(scale_since == scale_distance)
            with m.If(self.fire & f2.slot.scale):
                m.d.sync += scale_since.eq(1)
            with m.Elif(scale_since != scale_distance):
                m.d.sync += scale_since.eq(scale_since + 1)
        with m.If(self.fire & start_tile):
            m.d.sync += since.eq(1)
        with m.Elif(since != distance):
            m.d.sync += since.eq(since + 1)
        m.d.sync += undrained.eq(undrained + (self.fire & start_unit) - self.unit_drained)

        hidden, tokens = self.hidden.data, self.tokens.data
        if stages:
            hidden, tokens = self._weighted(m, enters, listed["input_weight"])
        # What the inputs are: in a deep pipeline they go on through a register, a cycle behind the slot.
        read = f2
        if config.deep:
            read = tag(delay(m, f2.as_value(), 1, "f2"))
            hidden, tokens = (
                delay(m, one, 1, name) for one, name in ((hidden, "hidden"), (tokens, "tokens"))
            )
        inputs = Mux(read.out, hidden, tokens)
        if config.integer:
            # Weights beyond the matrix are zero, and zero times whatever is read there is zero.
            m.d.comb += self.x.eq(inputs)
            return m
        # Elements beyond the matrix are zero, and one of them is the 1 that a bias is multiplied with.
        m.submodules.mask = mask = InputMask(config)
        m.d.comb += [
            mask.i.eq(inputs),
            mask.tile.eq(read.tile),
            mask.out.eq(read.out),
            mask.shared.eq(read.shared),
            self.x.eq(mask.o),
        ]
        return m

    def _find_starts(self, m, slot, enters, start_tile, start_unit) -> None:
        """Register, with a slot that enters f2, whether it starts a tile that tokens meet, and a unit."""
        starts = slot.token == 0
        if self.config.grouped:
            starts = starts & ~slot.scale
        with m.If(enters):
            m.d.sync += [start_tile.eq(starts), start_unit.eq(starts & slot.first & ~slot.up)]

    def _weighted(self, m, enters, input_weight):
        """Return the hidden inputs and those of the token, times their weight, as they stand at f2."""
        config = self.config
        m.submodules.weighted = weighted = WeightedInputs(config)
        weight = Signal(16, reset_less=True)
        with m.If(enters[0]):
            m.d.sync += weight.eq(input_weight)
        m.d.comb += [
            weighted.en.eq(Cat(*enters[1:])),
            weighted.i.eq(self.tokens.data),
            weighted.weight.eq(weight),
        ]
        if config.integer:
            m.d.comb += weighted.scale_x.eq(self.scale_x)
        hidden = self.hidden.data
        for n, enter in enumerate(enters[1:]):
            register = Signal.like(hidden, name=f"hidden_{n + 2}", reset_less=True)
            with m.If(enter):
                m.d.sync += register.eq(hidden)
            hidden = register
        return hidden, weighted.o


def tag_layout(config: EngineConfig):
    """Return what a slot carries through the sequencer's stages."""
    max_hidden = max(kind.hidden_blocks for kind in config.kinds)
    return data.StructLayout(
        {
            "slot": slot_layout(config),
            "tile": unsigned(config.tile_bits),
            "beyond": unsigned(1),
            "hidden_needed": unsigned(bits_for(max_hidden + 1)),
            "out": unsigned(1),
            "bank": unsigned(1),
            "shared": unsigned(1),
            "last_token": unsigned(1),
        }
    )


class JobWalk(wiring.Component):
    """Counters over a job's slots (stage f0 of :class:`Sequencer`).

    Members
    -------
    complete, records : In
    go : In(1)
        The slot shown is taken.
    valid : Out(1), tag : Out(tag_layout(config)), list_address : Out
    """

    def __init__(self, config: ExpertConfig) -> None:
        self.config = config
        super().__init__(
            {
                "complete": In(1),
                "records": In(data.ArrayLayout(job_record_layout(config), 2)),
                "go": In(1),
                "valid": Out(1),
                "tag": Out(tag_layout(config)),
                "list_address": Out(address_width(2 << bits_for(config.max_tokens))),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        kinds = config.kinds
        rows_log2 = (config.routed.rows - 1).bit_length()
        m.submodules.jobs = jobs = JobPointer()
        bank = Signal()
        record = Signal(job_record_layout(config))
        max_units = max(max(kind.hidden_blocks, kind.out_blocks) for kind in kinds)
        unit = Signal(range(max_units))
        parity = Signal()
        up = Signal()
        out = Signal()
        tile = Signal(self.tag.tile.shape())
        token = Signal(bits_for(config.max_tokens))

        def of_kind(name: str):
            values = [getattr(kind, name) for kind in kinds]
            return Mux(record.shared, values[-1], values[0]) if len(kinds) == 2 else values[0]

        last_token = Signal()
        last_tile = Signal()
        last_matrix = Signal()
        last_unit = Signal()
        step = Signal()
        end_unit = Signal()
        end_job = Signal()
        needed = Signal(range((1 << len(tile)) * config.routed.cols + 1))
        m.d.comb += [
            jobs.complete.eq(self.complete),
            jobs.next.eq(~self.valid & jobs.waiting),
            step.eq(self.valid & self.go),
            last_token.eq(token == record.last_token),
            last_tile.eq(tile == Mux(out, of_kind("met_hidden_tiles"), of_kind("met_in_tiles")) - 1),
            last_matrix.eq(out | up | (config.routed.num_up_matrices == 1)),
            last_unit.eq(unit == Mux(out, of_kind("out_blocks"), of_kind("hidden_blocks")) - 1),
            end_unit.eq(step & last_token & last_tile & last_matrix),
            end_job.eq(end_unit & last_unit & out),
            # Hidden blocks that hold the first (tile + 1) * cols hidden elements, as far as there are.
            needed.eq((((tile + 1) * config.routed.cols) + config.routed.rows - 1) >> rows_log2),
            self.list_address.eq(token),
            self.list_address[-1].eq(bank),
        ]
        tag = self.tag
        m.d.comb += [
            tag.slot.token.eq(token),
            tag.slot.parity.eq(parity),
            tag.slot.up.eq(up),
            tag.slot.first.eq(tile == 0),
            tag.slot.unit_done.eq(last_tile & last_matrix & (token == 0)),
            tag.tile.eq(tile),
            tag.beyond.eq(tile >= Mux(out, config.hidden_words, config.token_words)),
            tag.hidden_needed.eq(Mux(needed < of_kind("hidden_blocks"), needed, of_kind("hidden_blocks"))),
            tag.out.eq(out),
            tag.bank.eq(bank),
            tag.shared.eq(record.shared),
            tag.last_token.eq(last_token),
        ]
        # The step of a token at a tile of weights.
        advance = step
        if config.integer:
            m.d.comb += tag.slot.scale.eq(last_tile)
        if config.grouped:
            advance = Signal()
            self._walk_groups(m, step, advance, tile, last_token, last_tile, last_matrix)
            m.d.comb += end_unit.eq(advance & last_token & last_tile & last_matrix)
        with m.If(jobs.next):
            m.d.sync += [
                self.valid.eq(1),
                bank.eq(jobs.bank),
                record.eq(Mux(jobs.bank, self.records[1].as_value(), self.records[0].as_value())),
                out.eq(0),
                up.eq(0),
                unit.eq(0),
                tile.eq(0),
                token.eq(0),
            ]
        with m.If(advance):
            m.d.sync += token.eq(Mux(last_token, 0, token + 1))
            with m.If(last_token):
                m.d.sync += tile.eq(Mux(last_tile, 0, tile + 1))
                with m.If(last_tile):
                    m.d.sync += up.eq(~last_matrix)
        with m.If(end_unit):
            m.d.sync += [parity.eq(~parity), unit.eq(Mux(last_unit, 0, unit + 1))]
            with m.If(last_unit):
                m.d.sync += out.eq(1)
        with m.If(end_job):
            m.d.sync += self.valid.eq(0)
        return m

    def _walk_groups(self, m, step, advance, tile, last_token, last_tile, last_matrix) -> None:
        """Count the tiles of groups and spans of a grouped format; ``tile`` counts weights alone."""
        routed, tag = self.config.routed, self.tag
        scale = Signal(init=1)
        span_tile = Signal(range(routed.span_tiles))
        group_tile = Signal(range(routed.group_tiles))
        group_last = Signal()
        m.d.comb += [
            advance.eq(step & ~scale),
            group_last.eq(last_tile | (group_tile == routed.group_tiles - 1)),
            tag.slot.scale.eq(scale),
            tag.slot.unit_done.eq(~scale & last_tile & last_matrix & (tag.slot.token == 0)),
            tag.slot.group_first.eq(group_tile == 0),
            tag.slot.group_last.eq(group_last & ~scale),
            tag.slot.group_done.eq(group_last & ~scale & last_token),
            tag.slot.first_group.eq(tile < routed.group_tiles),
            tag.last_token.eq(scale | last_token),
        ]
        with m.If(step & scale):
            m.d.sync += scale.eq(0)
        with m.If(advance & last_token):
            m.d.sync += [span_tile.eq(span_tile + 1), group_tile.eq(group_tile + 1)]
            with m.If(group_last):
                m.d.sync += group_tile.eq(0)
            with m.If(last_tile | (span_tile == routed.span_tiles - 1)):
                m.d.sync += [span_tile.eq(0), scale.eq(1)]


class InputMask(wiring.Component):
    """Zero what lies beyond the inputs and put the bias's 1 behind them. Combinational; bf16 only.

    Members
    -------
    i : In(cols * 16), o : Out(cols * 16)
    tile, out, shared : In
    router : In(1), where the engine has one
        These are inputs of the router, whose logit bias asks for several ones.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        width = config.routed.cols * 16
        super().__init__(
            {
                "i": In(width),
                "tile": In(config.tile_bits),
                "out": In(1),
                "shared": In(1),
                **({"router": In(1)} if config.router else {}),
                "o": Out(width),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        cols = config.routed.cols
        # (In a grouped format a bias lies with the scales.)
        bias = int(config.routed.ffn.bias and not config.grouped)
        # Inputs, and how many ones come behind them.
        sizes = {0: (config.d_model, bias), 1: (config.routed.d_hidden, bias)}
        own_bias = False
        if config.image.shared:
            shared_bias = int(config.image.shared.ffn.bias and not config.grouped)
            sizes[2] = (config.image.shared.d_hidden, shared_bias)
            own_bias = shared_bias != bias
        chosen = Signal(range(5 if own_bias else 4 if config.router else 3))
        m.d.comb += chosen.eq(Mux(self.out, Mux(self.shared, 2, 1), 0))
        if config.router:
            sizes[3] = (config.d_model, config.router.num_ones)
            with m.If(self.router):
                m.d.comb += chosen.eq(3)
        if own_bias:
            # The same inputs as a routed expert's, but with a bias, or without.
            sizes[4] = (config.d_model, shared_bias)
            with m.If(self.shared & ~self.out):
                m.d.comb += chosen.eq(4)
        m.d.comb += self.o.eq(self.i)
        with m.Switch(chosen):
            for number, (size, ones) in sizes.items():
                with m.Case(number):
                    # Tiles before the boundary are whole; the one at it is cut, those beyond are empty
                    # but for ones that have no place in it.
                    boundary, end = size // cols, max(size, size + ones - 1) // cols
                    for tile in range(boundary, end + 1):
                        with m.If(self.tile == tile) if tile == boundary else m.Elif(self.tile == tile):
                            for lane in range(max(0, size - tile * cols), cols):
                                one = 0x3F80 if size <= tile * cols + lane < size + ones else 0
                                m.d.comb += self.o.word_select(lane, 16).eq(one)
                    # Written out only where the tile's number reaches that far.
                    if end < (1 << len(self.tile)) - 1:
                        with m.Elif(self.tile > end):
                            m.d.comb += self.o.eq(0)
        return m
