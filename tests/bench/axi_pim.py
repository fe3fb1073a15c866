"""Weight storage of a near-memory top in the simulator."""

from __future__ import annotations

from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import RisingEdge

from golden.banks import channel_image
from golden.weights import LayerWeights
from spec.banks import BankGeometry


def pim_image(banks: BankGeometry, weights: LayerWeights) -> np.ndarray:
    """Return the storage of the only channel, experts round robin."""
    placement = banks.round_robin()
    return channel_image(banks, weights, banks.bases(placement)[0])


class BankPorts:
    """Answers ``mem_0_*``: what is asked for stands at the data port ``storage_cycles`` later, only."""

    def __init__(self, dut: Any, banks: BankGeometry, image: np.ndarray) -> None:
        self.dut = dut
        self.latency = banks.pim.storage_cycles
        self.content = image.tobytes()
        self.width = banks.image.routed.tile_bytes
        cocotb.start_soon(self._answer())

    async def _answer(self) -> None:
        dut, due = self.dut, [None] * self.latency
        while True:
            await RisingEdge(dut.aclk)
            due.append(int(dut.mem_0_addr.value) if int(dut.mem_0_en.value) else None)
            address = due.pop(1)
            data = b"\xa5" * self.width
            if address is not None:
                data = self.content[address * self.width :][: self.width].ljust(self.width, b"\0")
            dut.mem_0_data.value = int.from_bytes(data, "little")
