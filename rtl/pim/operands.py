"""What the lanes multiply: weight bursts from the storage, inputs from the registers."""

from amaranth import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from rtl.arith import delay
from rtl.expert.layouts import bits_for
from rtl.expert.sequencer import InputMask, slot_layout
from rtl.pim.layouts import PimConfig
from rtl.pim.walk import mac_layout
from rtl.ram import Ram, WriteSignature, address_width


class Operands(wiring.Component):
    """Bring a tile's weights and each token's inputs to the lanes, one token every ``mac_cycles``.

    A tile's last MAC command, decided in cycle c, fires its first slot in c + ``latency``, the others
    every ``mac_cycles``. Registers hold one group's inputs and one group's hidden activations.

    Members
    -------
    mac : In(1), unit : In, tile_done : In(1), tag : In(mac_layout(config))
        A MAC command is decided; the last of its tile.
    weights : In(units * bits of a burst)
        The storage's answer, ``weight_cycles`` after the command was on the bus.
    inputs, hidden : In(WriteSignature)
        Registers: row = token and word.
    fire : Out(1), slot : Out(slot_layout(config.group)), x : Out, tile : Out
        As :class:`rtl.expert.array.MacArray` takes them.
    inputs_freed : Out(1)
        The group's last read of its inputs.
    """

    def __init__(self, config: PimConfig) -> None:
        self.config = config
        width = config.routed.cols * config.element_bits
        load = config.load_cols * config.element_bits
        granularity = config.act_lanes * config.element_bits
        weights = config.routed.tile_bytes * 8
        self.input_depth = config.group_tokens * config.token_words
        self.hidden_depth = config.group_tokens * config.hidden_words
        super().__init__(
            {
                "mac": In(1),
                "unit": In(config.unit_bits),
                "tile_done": In(1),
                "tag": In(mac_layout(config)),
                "weights": In(weights),
                "inputs": In(WriteSignature(width, self.input_depth, load)),
                "hidden": In(WriteSignature(width, self.hidden_depth, granularity)),
                "fire": Out(1),
                "slot": Out(slot_layout(config.group)),
                "x": Out(width),
                "tile": Out(weights),
                "inputs_freed": Out(1),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from the decision of a tile's last MAC command to its first slot."""
        return self.config.banks.pim.weight_cycles + 2

    def elaborate(self, platform):
        m = Module()
        config = self.config
        width, burst = len(self.x), len(self.tile) // config.units
        wait = self.latency - 1
        layout = mac_layout(config)

        # The burst: kept until the next tile's arrives.
        arrived = delay(m, self.mac, wait, "arrived", control=True)
        if config.timing.mac_steps == 1:
            with m.If(arrived):
                m.d.sync += self.tile.eq(self.weights)
        else:
            unit = delay(m, self.unit, wait, "unit")
            for number in range(config.units):
                with m.If(arrived & (unit == number)):
                    m.d.sync += self.tile.word_select(number, burst).eq(
                        self.weights.word_select(number, burst)
                    )

        # Slots of the tile: a token's inputs are read, then multiplied.
        begins = delay(m, self.tile_done, wait, "begins", control=True)
        tag_now = layout(delay(m, self.tag.as_value(), wait, "tag_begins"))
        tag_kept = Signal(layout, reset_less=True)
        active = Signal()
        next_token = Signal(bits_for(config.group_tokens))
        spacing = Signal(range(max(2, config.banks.pim.mac_cycles)))
        reads = Signal()
        last_token = Signal()
        token = Signal.like(next_token)
        slot_tag = Signal(layout)
        m.d.comb += [
            reads.eq(begins | (active & (spacing == 0))),
            token.eq(Mux(begins, 0, next_token)),
            slot_tag.eq(Mux(begins, tag_now, tag_kept)),
            last_token.eq(token == slot_tag.last_token),
            self.inputs_freed.eq(reads & last_token & slot_tag.frees_inputs),
        ]
        with m.If(begins):
            m.d.sync += tag_kept.eq(tag_now)
        with m.If(reads):
            m.d.sync += [
                active.eq(~last_token),
                next_token.eq(token + 1),
                spacing.eq(config.banks.pim.mac_cycles - 1),
            ]
        with m.Elif(active):
            m.d.sync += spacing.eq(spacing - 1)

        m.submodules.input_registers = inputs = Ram(
            width=width, depth=self.input_depth, granularity=config.load_cols * config.element_bits
        )
        m.submodules.hidden_registers = hidden = Ram(
            width=width, depth=self.hidden_depth, granularity=config.act_lanes * config.element_bits
        )
        for port, ram in ((self.inputs, inputs), (self.hidden, hidden)):
            m.d.comb += [
                ram.write.addr.eq(port.addr),
                ram.write.data.eq(port.data),
                ram.write.en.eq(port.en),
            ]
        within = Signal(address_width(max(config.token_words, config.hidden_words)))
        beyond = slot_tag.tile >= Mux(slot_tag.out, config.hidden_words, config.token_words)
        m.d.comb += [
            # A tile beyond the last word is no tile of products (or of the bias alone): what is read
            # there does not count.
            within.eq(Mux(beyond, 0, slot_tag.tile)),
            inputs.read_0.addr.eq(token * config.token_words + within),
            inputs.read_0.en.eq(reads & ~slot_tag.out),
            hidden.read_0.addr.eq(token * config.hidden_words + within),
            hidden.read_0.en.eq(reads & slot_tag.out),
        ]

        # The slot fires while its inputs stand at the read port.
        fired = Signal(layout, reset_less=True)
        fired_token = Signal.like(token, reset_less=True)
        fired_last = Signal()
        m.d.sync += [
            self.fire.eq(reads),
            fired.eq(slot_tag),
            fired_token.eq(token),
            fired_last.eq(last_token),
        ]
        m.d.comb += [
            self.slot.token.eq(fired_token),
            self.slot.parity.eq(fired.parity),
            self.slot.up.eq(fired.up),
            self.slot.first.eq(fired.first),
            self.slot.unit_done.eq(fired.unit_done & fired_last),
        ]
        if config.grouped:
            for name in ("scale", "group_first", "group_last", "first_group"):
                m.d.comb += self.slot[name].eq(fired[name])
            m.d.comb += self.slot.group_done.eq(fired.group_last & fired_last)
        operand = Mux(fired.out, hidden.read_0.data, inputs.read_0.data)
        if config.integer:
            # Weights beyond the matrix are zero, and zero times whatever is read there is zero.
            m.d.comb += [self.x.eq(operand), self.slot.scale.eq(fired.scale)]
            return m
        m.submodules.mask = mask = InputMask(config)
        m.d.comb += [
            mask.i.eq(operand),
            mask.tile.eq(fired.tile),
            mask.out.eq(fired.out),
            mask.shared.eq(fired.shared),
            *([mask.router.eq(fired.router)] if config.router else []),
            self.x.eq(mask.o),
        ]
        return m
