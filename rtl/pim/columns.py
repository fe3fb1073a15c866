"""The column bus of a channel: which of the wanted commands goes, at the right distance."""

from amaranth import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from rtl.expert.layouts import bits_for
from rtl.pim.layouts import PimConfig
from spec.geometry import ACCUMULATE_DISTANCE


class ColumnEngine(wiring.Component):
    """Grant one column command per cycle: MAC, then hidden write, then result read, then input write.

    Two kinds of command keep the distance of :class:`spec.banks.CommandTiming`. After the last MAC
    command of a tile the next tile's first also waits until the lanes have multiplied the burst with
    all tokens of the group.

    Members
    -------
    want_mac, want_hidden, want_read, want_input : In(1)
    mac_last : In(1), mac_last_token : In
        The MAC is the last command of its tile; last token of its group.
    go_mac, go_hidden, go_read, go_input : Out(1)
        At most one per cycle.
    """

    def __init__(self, config: PimConfig) -> None:
        self.config = config
        names = ("mac", "hidden", "read", "input")
        super().__init__(
            {
                **{f"want_{name}": In(1) for name in names},
                **{f"go_{name}": Out(1) for name in names},
                "mac_last": In(1),
                "mac_last_token": In(bits_for(config.group_tokens)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        timing = self.config.timing
        mac_cycles = self.config.banks.pim.mac_cycles
        most_busy = max(timing.tile_gap(self.config.group_tokens * mac_cycles), timing.mac_gap)
        tile_gap = Signal(range(most_busy + 1))
        busy = Signal(range(self.config.group_tokens * mac_cycles + 1))
        least = max(timing.mac_gap, ACCUMULATE_DISTANCE)
        m.d.comb += [
            busy.eq((self.mac_last_token + 1) * mac_cycles),
            tile_gap.eq(Mux(self.mac_last, Mux(busy > least, busy, least), timing.mac_gap)),
        ]
        write = Signal()
        m.d.comb += write.eq(self.go_hidden | self.go_input)
        issued = {"mac": self.go_mac, "write": write, "read": self.go_read}
        distances = {
            "mac": {"mac": tile_gap, "write": timing.write_to_mac, "read": timing.read_to_mac},
            "write": {
                "mac": timing.mac_to_write,
                "write": timing.write_to_write,
                "read": timing.read_to_write,
            },
            "read": {"mac": timing.mac_to_read, "write": timing.write_to_read, "read": timing.read_to_read},
        }
        free = {name: self._distance(m, name, issued, distances[name], most_busy) for name in distances}
        m.d.comb += [
            self.go_mac.eq(self.want_mac & free["mac"]),
            self.go_hidden.eq(self.want_hidden & free["write"] & ~self.go_mac),
            self.go_read.eq(self.want_read & free["read"] & ~self.go_mac & ~self.go_hidden),
            self.go_input.eq(
                self.want_input & free["write"] & ~self.go_mac & ~self.go_hidden & ~self.go_read
            ),
        ]
        return m

    def _distance(self, m, name, issued, distances, most_busy):
        """Count the cycles until this kind of command may follow those issued; return "it may"."""
        constants = [value for value in distances.values() if isinstance(value, int)]
        left = Signal(range(max([most_busy, *constants]) + 1), name=f"{name}_left")
        after = Signal.like(left, name=f"{name}_after")
        decayed = Signal.like(left, name=f"{name}_decayed")
        m.d.comb += decayed.eq(Mux(left == 0, 0, left - 1))
        # At most one command is issued per cycle.
        for kind, distance in distances.items():
            with m.If(issued[kind]):
                m.d.comb += after.eq(distance - 1)
        m.d.sync += left.eq(Mux(after > decayed, after, decayed))
        return left == 0
