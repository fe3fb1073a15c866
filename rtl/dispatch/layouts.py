"""Configuration of the dispatcher, payloads of its streams, and the ports between its parts."""

from dataclasses import dataclass

from amaranth import signed
from amaranth.lib import data, enum, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from golden.combine_bf16 import IDENTITY_MOST_SHIFT
from rtl.gating.layouts import assignment_layout
from spec.design import Pipeline, Policy
from spec.errors import require, require_range
from spec.model import CapacityRule, GatingSpec
from spec.registers import POLICIES


class ServicePolicy(enum.Enum, shape=2):
    """Order of service within a window; see :class:`spec.design.Policy`.

    Values that the configuration does not build, and reserved ones, behave as ``QUEUE_ORDER``.
    """

    QUEUE_ORDER = POLICIES.index(Policy.QUEUE_ORDER)
    LONGEST_QUEUE = POLICIES.index(Policy.LONGEST_QUEUE)


@dataclass(frozen=True, kw_only=True)
class DispatchConfig:
    """Size of a dispatcher.

    Attributes
    ----------
    num_experts, top_k : routed experts that are served by units, assignments per token.
    num_identity_experts : routed experts behind them whose result is the token: they get no queue; the sum
        of a token's weights for them is announced with the token. Capacity has to be 0 then, unless
        ``identity_places``.
    identity_places : they have places to be counted as the others do.
    window_tokens : most tokens that are dispatched together, a power of two.
    num_units : expert engines, one output stream each.
    unit_jobs : jobs that each of several units holds; one unit says with ``ready`` what it can take.
    shared : the model has a shared expert, numbered ``num_experts``, which serves every token.
    shared_gate : its weight comes with the token's assignments; else it is 1.
    capacity_bits : width of the capacity input, hence its largest value.
    capacity_rule : in which order assignments claim an expert's places.
    longest_queue : build the policy ``LONGEST_QUEUE``.
    ranks : give each entry the place of its expert among those of the token.
    no_places : every assignment is dropped, whatever the capacity.
    score_bits : bits of the score beside each assignment's weight, 0 where there is none.
    kept_gating : the gating where weights are scores over the sum of the kept ones, by its rule; None where
        they are those of the assignments.
    signed_weights : weights may be negative.
    deep : for the sake of the clock, an assignment enters its queue a cycle after the decision to keep it,
        and an entry has one more register on its way out.
    """

    num_experts: int
    top_k: int
    window_tokens: int
    num_units: int = 1
    unit_jobs: int = 2
    shared: bool = False
    shared_gate: bool = False
    capacity_bits: int = 16
    capacity_rule: CapacityRule = CapacityRule.SWITCH
    longest_queue: bool = False
    ranks: bool = False
    num_identity_experts: int = 0
    identity_places: bool = False
    no_places: bool = False
    score_bits: int = 0
    kept_gating: GatingSpec | None = None
    signed_weights: bool = False
    deep: bool = False

    def __post_init__(self) -> None:
        require_range("num_experts", self.num_experts, 1, 512)
        require(
            1 <= self.top_k <= self.num_routed,
            f"must be in 1..num_experts={self.num_routed}, not {self.top_k}",
            key="top_k",
        )
        require(
            1 <= self.window_tokens <= 1024 and self.window_tokens & (self.window_tokens - 1) == 0,
            f"must be a power of two in 1..1024, not {self.window_tokens}",
            key="window_tokens",
        )
        require_range("num_units", self.num_units, 1, 64)
        require_range("unit_jobs", self.unit_jobs, 1, 16)
        require(self.shared or not self.shared_gate, "needs a shared expert", key="shared_gate")
        require_range("capacity_bits", self.capacity_bits, 1, 32)
        require(
            self.score_bits > 0 or not (self.ranks_by_score or self.kept_gating),
            "must be above 0 where tokens are ranked or weights are normalised by their scores, not 0",
            key="score_bits",
        )

    @property
    def pipeline(self) -> Pipeline:
        """How it is cut."""
        return Pipeline.DEEP if self.deep else Pipeline.SHORT

    @property
    def num_slots(self) -> int:
        """Slots of the token store: two windows."""
        return 2 * self.window_tokens

    @property
    def max_count(self) -> int:
        """Most entries of a token."""
        return self.top_k + int(self.shared)

    @property
    def num_routed(self) -> int:
        """Experts that assignments name."""
        return self.num_experts + self.num_identity_experts

    @property
    def expert_bits(self) -> int:
        """Bits that number the experts that are served."""
        return ceil_log2(self.num_experts)

    @property
    def num_counted(self) -> int:
        """Experts whose places are counted."""
        return self.num_routed if self.identity_places else self.num_experts

    @property
    def decides(self) -> bool:
        """Whether it is decided window by window what is kept."""
        if self.no_places:
            return False
        return self.capacity_rule is not CapacityRule.SWITCH or self.kept_gating is not None

    @property
    def ranks_tokens(self) -> bool:
        """Whether the tokens of a window claim places in another order than that of arrival."""
        return self.capacity_rule in (CapacityRule.BATCH_PRIORITY, CapacityRule.SCORE_PRIORITY)

    @property
    def ranks_by_score(self) -> bool:
        """Whether that order is that of their scores."""
        return self.capacity_rule is CapacityRule.SCORE_PRIORITY and not self.no_places

    @property
    def priority_bits(self) -> int:
        """Bits of what ranks a token."""
        return self.score_bits if self.ranks_by_score else 16

    @property
    def id_bits(self) -> int:
        """Bits of a place in the entry store."""
        return self.entry_id.size

    @property
    def entry_depth(self) -> int:
        """Rows of the entry store."""
        return 1 << self.id_bits

    @property
    def counted(self) -> bool:
        """Whether the entries of each queue are counted."""
        return self.num_units > 1 or self.longest_queue

    @property
    def queue_length(self) -> range:
        """Entries of a queue."""
        return range(self.window_tokens + 1)

    @property
    def assignment(self) -> data.StructLayout:
        """Payload of ``i``."""
        return assignment_layout(self.num_routed, shared_gate=self.shared_gate, score_bits=self.score_bits)

    @property
    def decided(self) -> data.StructLayout:
        """An assignment that is kept or not."""
        assignment = assignment_layout(self.num_routed, shared_gate=self.shared_gate)
        return data.StructLayout({**assignment.members, "keep": 1})

    @property
    def expect(self) -> data.StructLayout:
        """Payload of ``o_expect``."""
        return expect_layout(self.num_slots, self.max_count, identity=self.num_identity_experts > 0)

    @property
    def entry(self) -> data.StructLayout:
        """Payload of the outputs ``o_0``, ``o_1``, ..."""
        rank = {"rank": range(self.max_count)} if self.ranks else {}
        return data.StructLayout(
            {
                "expert": range(self.num_experts + 1),
                "slot": range(self.num_slots),
                **rank,
                "weight": 16,
                "last": 1,
            }
        )

    @property
    def token_ranks(self) -> data.ArrayLayout:
        """Ranks of a token's assignments."""
        return data.ArrayLayout(range(self.max_count), self.top_k)

    @property
    def entry_id(self) -> data.StructLayout:
        """Place of an assignment in the entry store."""
        return data.StructLayout({"j": range(self.top_k), "slot": range(self.num_slots)})

    @property
    def queue_id(self) -> data.StructLayout:
        """One of the queues: an expert's, in the window of this parity."""
        return data.StructLayout({"expert": range(self.num_experts), "parity": 1})

    @property
    def job(self) -> data.StructLayout:
        """A queue to serve, and by whom; ``final`` marks the last one of its window."""
        return data.StructLayout(
            {"expert": range(self.num_experts + 1), "parity": 1, "unit": range(self.num_units), "final": 1}
        )

    @property
    def placement(self) -> data.ArrayLayout:
        """For each expert, the shared one last, the units that may serve it."""
        return data.ArrayLayout(self.num_units, self.num_experts + 1)

    def outputs(self) -> list[str]:
        """Names of the output streams, one per unit."""
        return [f"o_{unit}" for unit in range(self.num_units)]

    def retirements(self) -> list[str]:
        """Names of the inputs through which the units tell that a job is done; none for one unit."""
        return [f"retired_{unit}" for unit in range(self.num_units)] if self.num_units > 1 else []


IDENTITY_BITS = 1 + 8 + IDENTITY_MOST_SHIFT + 5
"""Bits of a sum of up to 32 weights: sign, the largest weight's significand and shift, carries."""


def expect_layout(num_slots: int, max_count: int, *, identity: bool = False) -> data.StructLayout:
    """Return what a token's slot waits for; ``last_token`` where the token ends its batch.

    ``identity``: the sum of its weights of identity experts, with ``IDENTITY_FRACTION_BITS`` fraction bits.
    """
    return data.StructLayout(
        {
            "slot": range(num_slots),
            "count": range(max_count + 1),
            "last_token": 1,
            **({"identity": signed(IDENTITY_BITS)} if identity else {}),
        }
    )


def lookup_port(config: DispatchConfig) -> wiring.Signature:
    """Name a queue."""
    return wiring.Signature({"valid": Out(1), "queue": Out(config.queue_id)})


def push_port(config: DispatchConfig) -> wiring.Signature:
    """Append an entry to a queue."""
    return wiring.Signature(
        {
            "valid": Out(1),
            "queue": Out(config.queue_id),
            "entry": Out(config.entry_id),
            "weight": Out(16),
        }
    )


def close_port(config: DispatchConfig) -> wiring.Signature:
    """Close a window of so many tokens, the last of them in ``last_slot``."""
    return wiring.Signature(
        {
            "valid": Out(1),
            "parity": Out(1),
            "last_slot": Out(range(config.num_slots)),
            "tokens": Out(config.queue_length),
        }
    )


def ranks_port(config: DispatchConfig) -> wiring.Signature:
    """Write the ranks of a token's assignments."""
    return wiring.Signature(
        {"valid": Out(1), "slot": Out(range(config.num_slots)), "ranks": Out(config.token_ranks)}
    )


def shared_weight_port(config: DispatchConfig) -> wiring.Signature:
    """Write a token's weight for the shared expert."""
    return wiring.Signature({"valid": Out(1), "slot": Out(range(config.num_slots)), "weight": Out(16)})


def queue_read_port(config: DispatchConfig) -> wiring.Signature:
    """Read head and tail of a job's queue."""
    return wiring.Signature(
        {"en": Out(1), "job": Out(config.job), "head": In(config.entry_id), "tail": In(config.entry_id)}
    )


def entry_read_port(config: DispatchConfig) -> wiring.Signature:
    """Read an entry's weight, successor and, where it has one, rank."""
    rank = {"rank": In(range(config.max_count))} if config.ranks else {}
    return wiring.Signature(
        {
            "en": Out(1),
            "entry": Out(config.entry_id),
            "next": In(config.entry_id),
            "weight": In(16),
            **rank,
        }
    )


def place_members(config: DispatchConfig) -> dict:
    """Return the write port of the placement table."""
    return {
        "place_addr": In(range(config.num_experts + 1)),
        "place_units": In(config.num_units),
        "place_we": In(1),
    }
