"""Payloads of the expert engine's streams, and its configuration."""

from dataclasses import dataclass

from amaranth import unsigned
from amaranth.lib import data

from rtl.arith import Accumulate, Burst
from rtl.int8 import IntegerAccumulate, IntegerBurst
from spec.design import Multiplier, Pipeline
from spec.geometry import (
    PAGE_BYTES,
    SCALE_DISTANCE,
    FfnGeometry,
    ImageGeometry,
    RouterGeometry,
    array_distance,
    ceil_div,
)
from spec.model import FfnSpec

ADDRESS_BITS = 40
PAGE_BITS = ADDRESS_BITS - (PAGE_BYTES - 1).bit_length()


def bits_for(count: int) -> int:
    """Return the bits that hold 0..count-1, at least 1."""
    return max(1, (count - 1).bit_length())


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What an engine that computes experts has to know of the model on the design.

    Attributes
    ----------
    image : geometry of routed and shared experts.
    num_slots : tokens of the token store.
    max_tokens : most tokens of a job.
    act_lanes : results drained from the accumulators per cycle.
    stream_lanes : elements of a token beat.
    ranks : contributions of a token, if each carries its place among them; else 0.
    multiplier : what multiplies in the array.
    pipeline : of array, activation and the stages around them.
    """

    image: ImageGeometry
    num_slots: int
    max_tokens: int
    act_lanes: int
    stream_lanes: int
    ranks: int = 0
    multiplier: Multiplier = Multiplier.SINGLE
    pipeline: Pipeline = Pipeline.SHORT

    @property
    def deep(self) -> bool:
        """Whether the engine's pipelines are deep."""
        return self.pipeline is Pipeline.DEEP

    @property
    def burst_latency(self) -> int:
        """Cycles from a tile's products to their sum."""
        if self.integer:
            return IntegerBurst.LATENCY + self.deep
        # A tile may hold several groups, whose sums are apart.
        cols = self.routed.cols // self.routed.tile_groups if self.grouped else self.routed.cols
        return Burst.latency_of(cols, self.pipeline)

    @property
    def accumulate_latency(self) -> int:
        """Cycles from a sum of products to what it makes of the accumulator."""
        return (IntegerAccumulate if self.integer else Accumulate).latency_of(self.pipeline)

    @property
    def array_distance(self) -> int:
        """Cycles from a token's slot at a tile to its slot at the next one, at least."""
        return array_distance(self.pipeline, self.routed.format)

    @property
    def scale_distance(self) -> int:
        """Cycles from a scale tile's slot to the next one's in a grouped format, at least."""
        return self.burst_latency + self.accumulate_latency if self.deep else SCALE_DISTANCE

    @property
    def routed(self) -> FfnGeometry:
        """Geometry of a routed expert."""
        return self.image.routed

    @property
    def integer(self) -> bool:
        """Whether inputs are int8 and sums integers."""
        return self.routed.format.integer

    @property
    def grouped(self) -> bool:
        """Whether weights are stored in a grouped format."""
        return self.routed.format.grouped

    @property
    def element_bits(self) -> int:
        """Bits of what a weight is multiplied with."""
        return self.routed.element_bits

    @property
    def weighted_inputs(self) -> bool:
        """Whether inputs are multiplied with weights between token store and lanes."""
        return self.image.weighted_inputs

    @property
    def stored_bits(self) -> int:
        """Bits of a token's element in the store: those of a product are multiplied first."""
        return 16 if self.weighted_inputs else self.element_bits

    @property
    def kinds(self) -> list[FfnGeometry]:
        """Geometries of routed experts and, if there is one, the shared expert."""
        return [self.image.routed] + ([self.image.shared] if self.image.shared else [])

    @property
    def other_activation(self) -> FfnSpec | None:
        """The shared expert's FFN, if its activation is not that of the routed experts."""
        shared = self.image.shared
        differs = shared is not None and shared.ffn.activation is not self.routed.ffn.activation
        return shared.ffn if differs else None

    @property
    def scale_bytes(self) -> int:
        """Bytes of a channel's scale, and bias where some kind of expert has one, in an integer's scale tile.

        Where only one kind has biases, the other's are the zeros that fill its scale tiles up.
        """
        return max(kind.scale_bytes for kind in self.kinds)

    @property
    def num_experts(self) -> int:
        """Routed experts; the shared one has this number as its index."""
        return self.image.num_experts

    @property
    def router(self) -> RouterGeometry | None:
        """Geometry of the router, if this engine multiplies with it; its index is ``num_experts`` + 1."""
        return self.image.router

    @property
    def expert_bits(self) -> int:
        """Bits of an expert's index."""
        return bits_for(self.num_experts + (2 if self.router else 1))

    @property
    def tile_bits(self) -> int:
        """Bits of a tile's place among those of a block."""
        tiles = [max(kind.in_tiles, kind.hidden_tiles) for kind in self.kinds]
        return bits_for(max(tiles + ([self.router.in_tiles] if self.router else [])))

    @property
    def d_model(self) -> int:
        """Elements of a token."""
        return self.image.routed.d_model

    @property
    def token_words(self) -> int:
        """Words of ``cols`` elements of a token in the store."""
        return ceil_div(self.d_model, self.routed.cols)

    @property
    def hidden_words(self) -> int:
        """Words of ``cols`` elements of a token's hidden activations."""
        return max(ceil_div(kind.hidden_blocks * kind.rows, kind.cols) for kind in self.kinds)

    @property
    def contribution(self) -> data.StructLayout:
        """Payload of ``o``."""
        return contribution_layout(self.num_slots, self.words, self.act_lanes, self.ranks)

    @property
    def words(self) -> int:
        """Words of ``act_lanes`` elements of a token's result."""
        return ceil_div(self.d_model, self.act_lanes)


@dataclass(frozen=True, kw_only=True)
class ExpertConfig(EngineConfig):
    """The expert engine: ``beat_bits``, ``burst_beats``, ``max_outstanding`` of its AXI4 read master."""

    beat_bits: int
    burst_beats: int
    max_outstanding: int

    @property
    def tile_beats(self) -> int:
        """Memory beats of a tile."""
        return self.routed.tile_bytes * 8 // self.beat_bits


def job_layout(config: EngineConfig):
    """Return an entry of a job: a token for an expert; ``last`` ends the job (the expert's tokens)."""
    return data.StructLayout(
        {
            "expert": unsigned(config.expert_bits),
            "slot": unsigned(bits_for(config.num_slots)),
            **rank_member(config.ranks),
            "weight": unsigned(16),
            "last": unsigned(1),
        }
    )


def rank_member(ranks: int):
    """Return the field that tells a contribution's place among those of its token, if there is one."""
    return {"rank": range(ranks)} if ranks else {}


def contribution_layout(num_slots: int, words: int, lanes: int, ranks: int = 0):
    """Return a beat of an expert's result for a token.

    ``word`` counts ``lanes`` elements; words come in ascending order per token, ``last`` is set on
    the last of them, whose elements beyond d_model are zero. With ``ranks`` (how many there are) the
    beat names the expert's place among those that serve the token.
    """
    return data.StructLayout(
        {
            "slot": unsigned(bits_for(num_slots)),
            **rank_member(ranks),
            "word": unsigned(bits_for(words)),
            "weight": unsigned(16),
            "data": data.ArrayLayout(unsigned(16), lanes),
            "last": unsigned(1),
        }
    )


def address_layout():
    """Return a read address in bytes."""
    return data.StructLayout({"addr": unsigned(ADDRESS_BITS)})


def read_layout(beat_bits: int):
    """Return a read beat; ``resp`` is not 0 for an error, ``last`` ends the burst."""
    return data.StructLayout({"data": unsigned(beat_bits), "resp": unsigned(2), "last": unsigned(1)})
