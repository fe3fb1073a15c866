"""Choose one of many, in a tree."""

from amaranth import Const, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2


class FirstOf(wiring.Component):
    """Index of the lowest bit that is set, or of the one with the largest key; combinational.

    A binary tree; of equal keys the one with the lowest index is chosen.

    Members
    -------
    bits : In(width)
    keys : In(width x key_bits), by_key : In(1): choose by the key; both only with ``key_bits > 0``.
    any : Out(1), a bit is set.
    index : Out(range(width)), key : Out(key_bits), of the choice; defined while ``any``.
    """

    def __init__(self, width: int, key_bits: int = 0) -> None:
        self.width = width
        self.key_bits = key_bits
        members = {"bits": In(width), "any": Out(1), "index": Out(range(width))}
        if key_bits:
            keys = data.ArrayLayout(key_bits, width)
            members |= {"keys": In(keys), "by_key": In(1), "key": Out(key_bits)}
        super().__init__(members)

    def elaborate(self, platform):
        m = Module()
        keys = self.keys if self.key_bits else [Const(0, 0)] * self.width
        nodes = [(self.bits[n], keys[n], Const(0, 0)) for n in range(self.width)]
        for level in range(ceil_log2(self.width)):
            pairs = [nodes[n : n + 2] for n in range(0, len(nodes), 2)]
            nodes = [
                pair[0] if len(pair) == 1 else self._join(m, pair, level, n) for n, pair in enumerate(pairs)
            ]
        [(any_set, key, index)] = nodes
        m.d.comb += [self.any.eq(any_set), self.index.eq(index)]
        if self.key_bits:
            m.d.comb += self.key.eq(key)
        return m

    def _join(self, m, pair, level, n):
        (low_any, low_key, low_index), (high_any, high_key, high_index) = pair
        any_set = Signal(name=f"any_{level}_{n}")
        index = Signal(level + 1, name=f"index_{level}_{n}")
        take_low = Signal(name=f"low_{level}_{n}")
        key = low_key
        if self.key_bits:
            larger = self.by_key & high_any & (high_key > low_key)
            key = Signal(self.key_bits, name=f"key_{level}_{n}")
            m.d.comb += [take_low.eq(low_any & ~larger), key.eq(Mux(take_low, low_key, high_key))]
        else:
            m.d.comb += take_low.eq(low_any)
        m.d.comb += [
            any_set.eq(low_any | high_any),
            index.eq(Mux(take_low, low_index, (1 << level) | high_index)),
        ]
        return any_set, key, index
