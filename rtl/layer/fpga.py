"""The ``fpga`` accelerator: tokens in, the MoE layer's outputs out.

::

    i --+--> gate --> dispatch --jobs--> expert --contributions--> combine --> o
        |                |                ^  ^                       ^ |
        +-- token store -----------------+  |                       | +-- freed slots
                         +--expects---------|-----------------------+
    o_ar, i_r <-- router loader / weights --+
"""

from amaranth import Mux

from rtl.expert import ExpertConfig, ExpertEngine
from rtl.layer.shell import LayerShell
from rtl.stream import connect_stream
from spec.design import DeepBlock, DesignSpec
from spec.geometry import ImageGeometry
from spec.model import ModelSpec


def expert_config(model: ModelSpec, design: DesignSpec) -> ExpertConfig:
    """Return the expert engine's configuration for a model on a design."""
    return ExpertConfig(
        image=ImageGeometry.of(model, design),
        num_slots=2 * design.window_tokens,
        max_tokens=design.window_tokens,
        act_lanes=design.tile.act_lanes,
        stream_lanes=design.stream_lanes,
        beat_bits=design.memory.width_bits,
        burst_beats=design.memory.burst_beats,
        max_outstanding=design.memory.max_outstanding,
        multiplier=design.tile.multiplier,
        pipeline=design.pipeline_of(DeepBlock.EXPERT),
    )


class FpgaLayer(LayerShell):
    """One MoE layer for an FPGA: a MAC array, its weights read through AXI4.

    Weights lie in the image that :func:`golden.layer_bf16.layer_image` describes.
    Reference: :func:`golden.layer_bf16.layer_bf16`; cycle model: :mod:`sim.layer`.

    Members
    -------
    See :class:`rtl.layer.shell.LayerShell`.
    """

    def __init__(self, model: ModelSpec, design: DesignSpec) -> None:
        self.expert = ExpertEngine(expert_config(model, design))
        super().__init__(model, design)

    def engine(self, m, registers):
        """Add the expert engine; it shares the memory with the router loader."""
        m.submodules.expert = expert = self.expert
        loader = self.loader
        connect_stream(m, self.intake.o_store, expert.i_token)
        connect_stream(m, self.dispatch.o_0, expert.i)
        connect_stream(m, expert.o, self.combine.i)

        # The memory belongs to the router loader while it is active, else to the experts.
        for port, user in ((loader, loader.active), (expert, ~loader.active)):
            m.d.comb += [
                port.o_ar.ready.eq(self.o_ar.ready & user),
                port.i_r.payload.eq(self.i_r.payload),
                port.i_r.valid.eq(self.i_r.valid & user),
            ]
        m.d.comb += [
            self.o_ar.valid.eq(Mux(loader.active, loader.o_ar.valid, expert.o_ar.valid)),
            self.o_ar.payload.addr.eq(Mux(loader.active, loader.o_ar.payload.addr, expert.o_ar.payload.addr)),
            self.i_r.ready.eq(Mux(loader.active, loader.i_r.ready, expert.i_r.ready)),
            expert.image_page.eq(registers.image_page),
            *(getattr(expert, name).eq(getattr(registers, name)) for name in registers.scales),
        ]
        streams = {"entries": self.dispatch.o_0, "contributions": expert.o}
        events = {
            "mac_active": expert.fire,
            "weight_beats": expert.beat,
            "stall_dispatch": self.dispatch.o_0.valid & ~self.dispatch.o_0.ready,
            "stall_weights": expert.wait_tile,
            "stall_accumulators": expert.wait_accumulators,
            "stall_hidden": expert.wait_hidden,
            "stall_combine": expert.o.valid & ~expert.o.ready,
        }
        return streams, events
