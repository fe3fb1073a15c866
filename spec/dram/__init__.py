"""DRAM standards as data: organisation and timings of each, one table of constraints for all."""

from spec.dram.constraints import (
    CONSTRAINTS,
    EDGE_PAIRS,
    PROTOCOLS,
    Command,
    Constraint,
    Level,
    ProtocolRules,
    all_groups,
    clocks_between,
    constraints_of,
)
from spec.dram.standard import DramSpec, DramTiming, Protocol

__all__ = [
    "CONSTRAINTS",
    "EDGE_PAIRS",
    "PROTOCOLS",
    "Command",
    "Constraint",
    "DramSpec",
    "DramTiming",
    "Level",
    "Protocol",
    "ProtocolRules",
    "all_groups",
    "clocks_between",
    "constraints_of",
]
