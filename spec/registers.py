"""Registers of the accelerators: names, addresses, meaning. One table for RTL, driver and documents."""

from __future__ import annotations

from spec.design import DesignSpec, Policy
from spec.errors import require

IDENTITY = 0x45423031
"""Constant of the IDENTITY register: ``EB01``."""

REGISTERS = {
    "IDENTITY": 0x00,
    "CONTROL": 0x04,
    "STATUS": 0x08,
    "IMAGE_PAGE": 0x0C,
    "CAPACITY": 0x10,
    "POLICY": 0x14,
    "PLACE_EXPERT": 0x18,
    "PLACE_ROW": 0x1C,
    "PLACE_CHANNELS": 0x20,
    "SCALE_X": 0x24,
    "SCALE_H": 0x28,
}
"""Byte addresses. IMAGE_PAGE: 4 KiB page of the weight image. CAPACITY: assignments that an expert
takes per batch, 0 = dropless. POLICY: order of service, see :data:`POLICIES`. Only for ``pim``, write
only: PLACE_EXPERT: an expert (bits 0..15; the number of routed experts means the shared one, one more a
router in the banks) and a channel (bits 16..23); PLACE_ROW: first row of that expert in that channel;
PLACE_CHANNELS: set of channels that hold that expert, one bit each. SCALE_X, SCALE_H: what turns tokens
and hidden activations into int8 (:attr:`golden.int8.FixedScale.word`); in int8 designs only, to be written
before the first token."""

POLICIES = (Policy.QUEUE_ORDER, Policy.LONGEST_QUEUE)
"""Values of POLICY, from 0. Hardware without the longest queue's logic serves in queue order."""

CAPACITY_BITS = 16
"""Bits of CAPACITY that are used."""

CONTROL_LOAD = 0
"""Bit of CONTROL: load the router from the weight image (no token may be inside)."""
CONTROL_CLEAR = 1
"""Bit of CONTROL: set all counters to zero."""


def capacity_word(expert_capacity: int, longest: int, *, key: str = "expert_capacity") -> int:
    """Return what CAPACITY holds for sequences of at most ``longest`` tokens.

    A capacity beyond the register that no sequence can reach is none; one that a sequence can reach
    raises :class:`spec.errors.InputError` for ``key``, the field that it is from. Hardware of a model
    without any place does not read it: 0.
    """
    most = (1 << CAPACITY_BITS) - 1
    if expert_capacity <= most:
        return max(0, expert_capacity)
    require(
        longest <= expert_capacity,
        f"must be at most {most} (register CAPACITY) for a sequence of {longest} tokens,"
        f" not {expert_capacity}",
        key=key,
    )
    return 0


STATUS_LOADED = 0
"""Bit of STATUS: the router is loaded."""
STATUS_BUSY = 1
"""Bit of STATUS: a token is inside."""
STATUS_READ_ERROR = 2
"""Bit of STATUS: the memory answered a read with an error since the last load."""

STATUS_REFRESHING = 3
"""Bit of STATUS: a refresh of channel 0 is under way (``pim``)."""
STATUS_UNCORRECTED = 4
"""Bit of STATUS: a word with two flipped bits was read since the counters were cleared (``pim`` with check
bits in its banks)."""

COUNTERS = {
    "cycles": "cycles with a token inside, from the first input beat to the last output beat",
    "tokens_in": "tokens taken",
    "tokens_out": "tokens given",
    "assignments": "token-expert assignments routed",
    "dropped": "assignments dropped by the capacity",
    "mac_active": "MAC slots used: a tile and a token",
    "weight_beats": "weight beats stored into tiles",
    "read_beats": "beats read from memory, padding included",
    "stall_input": "an input beat waits",
    "stall_dispatch": "a job entry waits for the expert engine",
    "stall_weights": "the array waits for a tile",
    "stall_accumulators": "the array waits for its accumulators to be added or drained",
    "stall_hidden": "the array waits for hidden activations",
    "stall_combine": "an expert's result waits for the combiner",
    "stall_output": "an output beat waits",
    "activates": "ACT commands, all channels",
    "refreshes": "REF commands",
    "mac_commands": "MAC commands",
    "register_writes": "register writes: inputs and hidden activations",
    "register_reads": "register reads: results",
}
"""Performance counters, 64 bits each; those of another engine stay 0."""

ECC_COUNTERS = {
    "corrected": "words read from the banks with one flipped bit, which was corrected",
    "uncorrected": "words read with two flipped bits, which were not",
}
"""Further counters of a ``pim`` design whose banks hold check bits."""

FIRST_COUNTER = 0x40


def counter_address(name: str) -> int:
    """Return the byte address of a counter's low word; the high word follows."""
    return FIRST_COUNTER + 8 * [*COUNTERS, *ECC_COUNTERS].index(name)


def counters_of(design: DesignSpec) -> tuple[str, ...]:
    """Return the names of a design's counters, in the order of their addresses."""
    return (*COUNTERS, *(ECC_COUNTERS if design.pim is not None and design.pim.secded else ()))


PROBE = ("tokens", "assignments", "expects", "entries", "contributions", "output", "addresses", "beats")
"""Streams whose transfers the ``probe`` port shows: two bits each, *transfer* and *waits*."""
PROBE_WAIT_TILE = 2 * len(PROBE)
"""Bit of the probe port: the array waits for a tile."""
EXPERT_BITS = 9
PROBE_EXPERT = PROBE_WAIT_TILE + 1
"""Lowest bit of the expert of the assignment that passes, 0 if none does."""
PROBE_WEIGHT = PROBE_EXPERT + EXPERT_BITS
"""Lowest bit of its bf16 weight."""
PROBE_BITS = PROBE_WEIGHT + 16

CHANNEL_PROBE = (
    "entries transferred",
    "entries wait",
    "contributions transferred",
    "contributions wait",
    "job retired",
)
"""Bits of ``probe_channels``, for each channel in turn."""

ROUTER_PROBE = (
    "router entries transferred",
    "router entries wait",
    "entries of both kinds transferred",
    "entries of both kinds wait",
    "all logits of a token",
)
"""Further bits of ``probe_channels`` where the banks hold the router, of the channel that has it."""
