"""Two rows' products with an input from one multiplier, which a flow for a device may replace."""

from abc import abstractmethod
from typing import ClassVar

from amaranth import ClockSignal, Instance, Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from rtl.ram import ExportPlatform


class DualProducts(wiring.Component):
    """Multiply a number with the weights of two rows. Latency 1 cycle, one pair per cycle, all exact.

    In Verilog it is an instance of the hand-written module :attr:`VERILOG`, which a flow for a device may
    replace; what is elaborated for ``amaranth.sim`` is the same arithmetic (:meth:`twin`).

    Members
    -------
    x, w_0, w_1 : In
    p_0, p_1 : Out
        ``x * w_0``, ``x * w_1`` of the cycle before.
    """

    LATENCY = 1
    VERILOG: ClassVar[str]

    def __init__(self, x, weight, product) -> None:
        weight, product = In(weight), Out(product)
        super().__init__({"x": In(x), "w_0": weight, "w_1": weight, "p_0": product, "p_1": product})

    def elaborate(self, platform):
        m = Module()
        if isinstance(platform, ExportPlatform):
            m.submodules.multiplier = Instance(
                self.VERILOG,
                i_clk=ClockSignal("sync"),
                **{f"i_{name}": getattr(self, name) for name in ("x", "w_0", "w_1")},
                **{f"o_{name}": getattr(self, name) for name in ("p_0", "p_1")},
            )
        else:
            self.twin(m)
        return m

    @abstractmethod
    def twin(self, m) -> None:
        """Drive both products, a cycle later, without the hand-written module."""
