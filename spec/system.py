"""A whole system as data: a host, an engine near the experts' memory, the link between them, a policy.

Beside the experts it may say where attention and shared experts are computed (``outside``), and over how many
such pairs of engines the experts lie and what connects them (``exchange``). An engine is a roofline, or one
of this project's accelerators, whose models its times come from; a system of such an engine alone runs
whole MoE layers on it.

Every number is a :class:`Quantity`: it has its evidence and its source, and the range in which its sources
lie. A number that has no source is ``assumed``, and then it must have a range: ``expertbank reproduce`` shows
what it moves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from spec.design import DesignSpec
from spec.errors import InputError, require


class Evidence(StrEnum):
    """What stands behind a number.

    ``P`` read in the paper's full text, ``A`` in its abstract or in a conference's programme, ``C`` in
    released code, ``N`` in a third party's notes or another paper, ``S`` in the survey (JEIT 2025, table 4),
    ``D`` derived by arithmetic from such facts, ``M`` recalled, ``X`` measured outside the paper,
    ``assumed``: none of these.
    """

    P = "P"
    A = "A"
    C = "C"
    N = "N"
    S = "S"
    D = "D"
    M = "M"
    X = "X"
    ASSUMED = "assumed"


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A number, where it comes from, and the range in which its sources lie.

    Attributes
    ----------
    value : what is computed with; declared before a result was compared with a publication.
    evidence, source : where it comes from. Of ``assumed`` the source says why this value.
    low, high : ends of the range, the value's own where they are left out; ``assumed`` has both.
    """

    value: float
    evidence: Evidence
    source: str
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        require(bool(self.source.strip()), "must not be empty", key="source")
        require(
            self.least <= self.value <= self.most,
            f"must be in {self.least:g}..{self.most:g}, its own range, not {self.value:g}",
            key="value",
        )
        require(
            self.evidence is not Evidence.ASSUMED or self.least < self.most,
            "must have a range, low and high, to be swept over: its evidence is 'assumed'",
            key="value",
        )

    @property
    def least(self) -> float:
        """The range's lower end."""
        return self.value if self.low is None else self.low

    @property
    def most(self) -> float:
        """The range's upper end."""
        return self.value if self.high is None else self.high

    @property
    def swept(self) -> bool:
        """Whether there is a range to go over."""
        return self.least < self.most


def _positive(spec: object, *names: str) -> None:
    for name in names:
        quantity = getattr(spec, name)
        if quantity is not None:
            require(quantity.least > 0, f"must be above 0, not {quantity.least:g}", key=name)


def _not_negative(spec: object, *names: str) -> None:
    for name in names:
        quantity = getattr(spec, name)
        if quantity is not None:
            require(quantity.least >= 0, f"must not be negative, not {quantity.least:g}", key=name)


def _share(spec: object, *names: str) -> None:
    for name in names:
        quantity = getattr(spec, name)
        if quantity is not None:
            inside = quantity.least > 0 and quantity.most <= 1
            require(inside, f"must be above 0 and at most 1, not {quantity.value:g}", key=name)


def _share_or_none(spec: object, *names: str) -> None:
    for name in names:
        quantity = getattr(spec, name)
        if quantity is not None:
            inside = quantity.least >= 0 and quantity.most <= 1
            require(inside, f"must be in 0..1, not {quantity.value:g}", key=name)


def _whole(spec: object, *names: str) -> None:
    for name in names:
        quantity = getattr(spec, name)
        if quantity is not None:
            whole = quantity.value >= 1 and quantity.value == int(quantity.value)
            require(whole, f"must be a whole number from 1, not {quantity.value:g}", key=name)


@dataclass(frozen=True, kw_only=True)
class TierSpec:
    """A smaller and faster memory of an engine, for copies of experts that its memory has.

    Attributes
    ----------
    bytes_per_s : that the engine reads from it.
    bandwidth_efficiency : of these that is reached.
    capacity_bytes : of it.
    share : of the capacity that experts' weights may take.
    memory_j_per_bit : energy of a bit read from it; None: unknown.
    """

    bytes_per_s: Quantity
    bandwidth_efficiency: Quantity
    capacity_bytes: Quantity
    share: Quantity
    memory_j_per_bit: Quantity | None = None

    def __post_init__(self) -> None:
        _positive(self, "bytes_per_s", "capacity_bytes")
        _share(self, "bandwidth_efficiency")
        _share_or_none(self, "share")
        _not_negative(self, "memory_j_per_bit")


ROOFLINE = ("peak_flops", "bytes_per_s", "flops_efficiency", "bandwidth_efficiency")


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """A processor as a roofline with declared efficiencies, or an accelerator with RTL.

    Attributes
    ----------
    peak_flops : operations in a second, two for a multiplication with its addition.
    bytes_per_s : that it reads from the memory that holds the weights.
    flops_efficiency, bandwidth_efficiency : of these that are reached.
    block : an accelerator; in place of these four. Its models say how long experts take, and their energy.
    capacity_bytes : of that memory; left out where nobody asks.
    tier : a faster memory before that one; None: there is none.
    area_mm2 : of its silicon, without the memory's; None: unknown.
    expert_s : seconds that each expert takes beside: a launch, a synchronisation.
    memory_j_per_bit, flop_j : energy of a bit read from that memory, of an operation; None: unknown.
    """

    PRESET_FOLDER: ClassVar[str] = "engines"

    name: str
    peak_flops: Quantity | None = None
    bytes_per_s: Quantity | None = None
    flops_efficiency: Quantity | None = None
    bandwidth_efficiency: Quantity | None = None
    block: DesignSpec | None = None
    capacity_bytes: Quantity | None = None
    tier: TierSpec | None = None
    area_mm2: Quantity | None = None
    expert_s: Quantity | None = None
    memory_j_per_bit: Quantity | None = None
    flop_j: Quantity | None = None

    def __post_init__(self) -> None:
        beside = (*ROOFLINE, "capacity_bytes", "tier", "area_mm2", "expert_s", "memory_j_per_bit", "flop_j")
        for key in ROOFLINE if self.block is None else beside:
            given = getattr(self, key) is not None
            require(given or self.block is not None, "is missing", key=key)
            require(not (given and self.block), "must be left out beside block, which says it", key=key)
        _positive(self, "peak_flops", "bytes_per_s", "capacity_bytes", "area_mm2")
        _not_negative(self, "expert_s", "memory_j_per_bit", "flop_j")
        _share(self, "flops_efficiency", "bandwidth_efficiency")
        if self.tier is not None and self.bytes_per_s is not None:
            require(
                self.tier.bytes_per_s.value > self.bytes_per_s.value,
                f"must be above bytes_per_s={self.bytes_per_s.value:g} of the memory behind it,"
                f" not {self.tier.bytes_per_s.value:g}",
                key="tier.bytes_per_s",
            )


@dataclass(frozen=True, kw_only=True)
class LinkSpec:
    """A link, one direction: bytes take ``latency_s + bytes / (bytes_per_s * efficiency)``.

    ``j_per_bit``: energy of a bit that crosses it; None: unknown.
    """

    PRESET_FOLDER: ClassVar[str] = "links"

    name: str
    bytes_per_s: Quantity
    latency_s: Quantity
    efficiency: Quantity
    j_per_bit: Quantity | None = None

    def __post_init__(self) -> None:
        _positive(self, "bytes_per_s")
        _not_negative(self, "latency_s", "j_per_bit")
        _share(self, "efficiency")


class WeightPlace(StrEnum):
    """Where experts' weights lie when a layer begins.

    ``near``: in the near engine's memory; an expert that the host computes is moved over the link first.
    ``shared``: in one memory that both engines read.
    """

    NEAR = "near"
    SHARED = "shared"


class Sharding(StrEnum):
    """How experts lie over the near engine's units: each cut over all of them, or each in one."""

    TENSOR = "tensor"
    EXPERT = "expert"


class AttentionPlace(StrEnum):
    """Where keys and values lie and are multiplied with: in the host, near, or wherever that is faster."""

    HOST = "host"
    NEAR = "near"
    FASTER = "faster"


class SharedPlace(StrEnum):
    """When the host computes shared experts: while the near engine has routed ones, or before all these."""

    BESIDE = "beside"
    BEFORE = "before"


@dataclass(frozen=True, kw_only=True)
class OutsideSpec:
    """What a step has beside routed experts: attention, dense layers, routers, shared experts.

    The host computes all of it but what ``attention`` says.

    Attributes
    ----------
    context : tokens whose keys and values a decoded token is multiplied with.
    """

    attention: AttentionPlace
    shared: SharedPlace
    context: Quantity

    def __post_init__(self) -> None:
        _not_negative(self, "context")


class Overlap(StrEnum):
    """What runs while tokens are exchanged: nothing, or the experts of other tokens, without loss."""

    NONE = "none"
    EXPERTS = "experts"


@dataclass(frozen=True, kw_only=True)
class ExchangeSpec:
    """Several devices, each a host with its near engine: experts in order of number, tokens evenly.

    Attributes
    ----------
    devices : how many.
    link : of each to all others; a layer's tokens go to their experts over it, results come back.
    overlap : with the experts' own time.
    """

    devices: Quantity
    link: LinkSpec
    overlap: Overlap

    def __post_init__(self) -> None:
        _whole(self, "devices")


@dataclass(frozen=True, kw_only=True)
class SystemSpec:
    """A host, an engine near memory, a link, and the policy that divides a layer's experts between the two.

    Attributes
    ----------
    host, near : engines; presets' names in TOML. Without a host ``near`` is an accelerator with RTL that
        runs whole MoE layers: gate, dispatch, experts, combination.
    link : between them: moved weights towards the host, tokens both ways.
    weights : where the weights lie.
    sharding : over ``units`` of the near engine (channels); unit ``e mod units`` has expert e.
    policy : a name of ``sim.system.policies``.
    alpha : factor on the ratio of bandwidths in policy ``ratio``.
    spaces : memory spaces of policy ``look-up``: experts of one space are computed by one engine.
    cache_share : of the experts that the host holds already, the most popular ones.
    outside : what is computed beside routed experts; left out: nothing.
    exchange : devices that the experts lie on; left out: one.
    """

    PRESET_FOLDER: ClassVar[str] = "systems"

    name: str
    near: EngineSpec
    policy: str
    host: EngineSpec | None = None
    link: LinkSpec | None = None
    weights: WeightPlace = WeightPlace.NEAR
    sharding: Sharding = Sharding.TENSOR
    units: Quantity | None = None
    alpha: Quantity | None = None
    spaces: Quantity | None = None
    cache_share: Quantity | None = None
    outside: OutsideSpec | None = None
    exchange: ExchangeSpec | None = None

    def __post_init__(self) -> None:
        _positive(self, "alpha")
        _share_or_none(self, "cache_share")
        _whole(self, "units", "spaces")
        require(self.near.tier is None, "must be left out: experts near memory stay there", key="near.tier")
        if self.host is None:
            require(
                self.near.block is not None, "is missing: near is no accelerator that runs alone", key="host"
            )
            for key in ("link", "units", "alpha", "spaces", "cache_share", "outside", "exchange"):
                require(getattr(self, key) is None, "must be left out without a host", key=key)
            require(
                self.policy == ALONE, f"must be {ALONE!r} without a host, not {self.policy!r}", key="policy"
            )
            return
        require(self.link is not None, "is missing", key="link")
        require(self.host.block is None, "must be a roofline, not an accelerator", key="host")
        block = self.near.block
        require(
            block is None or self.sharding is Sharding.EXPERT,
            "must be 'expert' for an accelerator, whose units have whole experts",
            key="sharding",
        )
        require(
            self.sharding is Sharding.TENSOR or self.units is not None,
            "must be given where each expert lies in one unit",
            key="units",
        )
        require(
            block is None or self.outside is None or self.outside.attention is AttentionPlace.HOST,
            "must be 'host' beside an accelerator, which has no attention",
            key="outside.attention",
        )


ALONE = "all-near"
"""The policy of a system of one accelerator."""


def quantities(spec: object, prefix: str = "") -> Iterator[tuple[str, Quantity]]:
    """Yield the dotted name of each number in a spec, and the number."""
    if isinstance(spec, Quantity):
        yield prefix, spec
    elif isinstance(spec, Mapping):
        for key, value in spec.items():
            yield from quantities(value, f"{prefix}.{key}" if prefix else key)
    elif dataclasses.is_dataclass(spec):
        for field in dataclasses.fields(spec):
            yield from quantities(
                getattr(spec, field.name), f"{prefix}.{field.name}" if prefix else field.name
            )


def nominal(spec: object) -> dict[str, float]:
    """Return the value of each number in a spec by its dotted name."""
    return {name: quantity.value for name, quantity in quantities(spec)}


def with_changed(values: Mapping[str, float], changes: Mapping[str, float]) -> dict[str, float]:
    """Return values with some of them changed; :class:`InputError` for a name that is none."""
    for name in changes:
        if name not in values:
            raise InputError(f"is no number of this system: {name!r}", key="set")
    return {**values, **changes}
