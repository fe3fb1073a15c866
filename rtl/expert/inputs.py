"""Inputs times weights, for models whose experts see weighted tokens."""

from amaranth import Cat, Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from rtl.arith import BF16, bf16_product
from rtl.expert.layouts import EngineConfig
from rtl.int8 import SCALE_WORD_BITS, Quantise, scale_of


class WeightedInputs(wiring.Component):
    """Multiply a word of a token's inputs with a weight, round to bf16; for integer formats then quantise.

    Latency :attr:`spec.geometry.ImageGeometry.input_cycles`, as many stages, each of which goes on when it
    is told to. References: :func:`golden.formats.bf16_product`, :func:`golden.int8.quantise`.
    Area: ``lanes`` 8x8 multipliers, in integer formats also ``lanes`` quantisers, in place of those at the
    token store.

    Parameters
    ----------
    lanes : inputs at a time, by default ``cols`` of a tile.

    Members
    -------
    en : In(input_cycles)
        The first, second, ... stage takes what is before it.
    i : In(lanes * 16)
    weight : In(16)
    scale_x : In(SCALE_WORD_BITS), in integer formats
    o : Out(lanes * element_bits)
    """

    def __init__(self, config: EngineConfig, lanes: int | None = None) -> None:
        self.config = config
        self.lanes = lanes = config.routed.cols if lanes is None else lanes
        super().__init__(
            {
                "en": In(config.image.input_cycles),
                "i": In(lanes * 16),
                "weight": In(16),
                **({"scale_x": In(SCALE_WORD_BITS)} if config.integer else {}),
                "o": Out(lanes * config.element_bits),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        assert len(self.en) == 1 + (Quantise.LATENCY if config.integer else 0)
        outputs = []
        for lane in range(self.lanes):
            product = Signal(16, name=f"product_{lane}", reset_less=True)
            value = data.View(BF16, self.i.word_select(lane, 16))
            rounded = bf16_product(m, value, data.View(BF16, self.weight), f"lane_{lane}")
            with m.If(self.en[0]):
                m.d.sync += product.eq(rounded)
            if config.integer:
                quantise = m.submodules[f"quantise_{lane}"] = Quantise(stalls=True)
                m.d.comb += [
                    quantise.en.eq(self.en[1:]),
                    quantise.i.eq(product),
                    quantise.scale.eq(scale_of(self.scale_x)),
                ]
                outputs.append(quantise.o)
            else:
                outputs.append(product)
        m.d.comb += self.o.eq(Cat(*outputs))
        return m
