"""Command programs: a product's commands as loops, and the compilers that make them.

A program is a list of 64-bit words. The lowest four bits are the operation (:class:`Op`), the fields of
:data:`FIELDS` follow from bit 4 on, lowest first. A program names commands and their order; when each is
issued is the hardware's affair (:mod:`rtl.gemv`), and so are refreshes. The same hardware runs the programs
of all products that fit its banks. Loops nest :data:`LOOP_DEPTH` deep and run at least once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from spec.device import PimDevice, Schedule

MODE_ROW, REGISTER_ROW, LEAVE_ROW, PARK_ROW, RESULT_ROW = -2, -3, -4, -5, -6
"""Rows that are no weights': to enter all-bank mode, of the registers, to leave the mode, read at first and
last, of the results, and further ones below it."""
TILE_INPUTS, TILE_ROWS = 8, 2
"""Bursts of inputs in a tile of the published kernel (entries of GRF_A), and rows of a bank that a block's
part of a tile fills."""
LOOP_DEPTH = 4
WORD_BITS, OP_BITS, ROW_BITS = 64, 4, 18


@dataclass(frozen=True, kw_only=True)
class Additions:
    """What the schedule adds to the published kernel's, each to be left out.

    Attributes
    ----------
    prefetch : the idle banks open their next row while the others compute; without it, behind the last MAC.
    register_path : register writes take a column slot; without it they are writes on the data bus, as many
        at once as there are entries, with its turnarounds.
    split : the inputs are split over sets of channels where that is faster.
    unpadded : units hold as many outputs and inputs as there are; without it, whole tiles.
    """

    prefetch: bool = True
    register_path: bool = True
    split: bool = True
    unpadded: bool = True

    @property
    def in_hardware(self) -> Additions:
        """Those that a channel has hardware for: which inputs it gets is the host's affair."""
        return replace(self, split=True)


ALL = Additions()


class Op(IntEnum):
    """An operation of a program; the second group is the published kernel's, the third is ours."""

    STOP = 0
    LOOP = 1
    """The words up to its END, ``count`` times."""
    END = 2
    LIMITS = 3
    """First word: refreshes, and what keeps a device within its power."""

    ACCESS = 4
    """``count`` equal accesses of a group; ``fence`` ends the group. With ``counted`` the row is the row
    counter's, which moves on by one."""
    ORIGIN = 5
    """The row counter starts at the base again."""
    ADVANCE = 6
    """The base moves on by ``rows``; the inputs start at the first again."""

    MODE = 8
    """ACT and WR of a single bank."""
    REGISTERS = 9
    """Register writes that carry no inputs."""
    INPUTS = 10
    """The next group of tokens: bursts of a pass, and the words of inputs that they are for all tokens."""
    GROUP = 11
    """What its tokens share; weights are read from the first row of the even banks on."""
    PASS = 12
    """MACs of a pass, with the inputs that they need."""
    RESULTS = 13
    """Results into the banks that are not needed next: those of the other parity than the next MAC's, which
    is even with ``even_next`` and of the last one's otherwise."""
    WRITE = 14
    """A write to the banks of the last results (``same``) or to the others."""
    CLOSE = 15
    """PRE of all banks."""


class Role(IntEnum):
    """What an access of a group is for; all but READ and MAC are writes."""

    READ = 0
    MAC = 1
    WRITE = 2
    CLEAR = 3
    """A write that makes the next sums start at zero."""
    INPUT = 4
    RESULT = 5


_ROW = ("row", ROW_BITS)
FIELDS: dict[Op, tuple[tuple[str, int], ...]] = {
    Op.STOP: (),
    Op.LOOP: (("count", 24),),
    Op.END: (),
    Op.LIMITS: (("refi", 20), ("refresh", 1), ("mac_gap", 11), ("act_gap", 11)),
    Op.ACCESS: (
        ("role", 3),
        ("bank", 6),
        _ROW,
        ("count", 12),
        ("register", 6),
        ("counted", 1),
        ("all_banks", 1),
        ("fence", 1),
        ("closed", 1),
    ),
    Op.ORIGIN: (),
    Op.ADVANCE: (("rows", ROW_BITS),),
    Op.MODE: (("bank", 6), _ROW, ("apart", 1)),
    Op.REGISTERS: (("count", 7),),
    Op.INPUTS: (("bursts", 20), ("words", 24)),
    Op.GROUP: (("tokens", 7), ("gap", 13), ("registers", 7)),
    Op.PASS: (("outputs", 7),),
    Op.RESULTS: (("count", 7), _ROW, ("even_next", 1)),
    Op.WRITE: (("same", 1), _ROW),
    Op.CLOSE: (),
}
"""Fields of each operation and their widths; rows are signed."""

Program = list[int]


def word(op: Op, **values: int) -> int:
    """Return a word of a program; fields that are not named are 0."""
    packed, place = int(op), OP_BITS
    for name, width in FIELDS[op]:
        value = values.pop(name, 0)
        least = -(1 << (width - 1)) if (name, width) == _ROW else 0
        if not least <= value < (1 << width) + least:
            raise ValueError(
                f"{name} of {op.name} must be in {least}..{(1 << width) + least - 1}, not {value}"
            )
        packed |= (value & ((1 << width) - 1)) << place
        place += width
    if values:
        raise ValueError(f"{op.name} has no field {', '.join(values)}")
    return packed


def words(program: Program) -> NDArray[np.uint8]:
    """Return a program as it lies in memory: (words, 8) uint8, lowest byte first."""
    return np.array(program, dtype="<u8").view(np.uint8).reshape(-1, WORD_BITS // 8)


def _loop(count: int, body: Program) -> Program:
    if count == 0:
        return []
    return body if count == 1 else [word(Op.LOOP, count=count), *body, word(Op.END)]


def _limits(device: PimDevice, refi: int | None, mac_gap: int, act_gap: int) -> int:
    timing = device.timed.timing
    return word(
        Op.LIMITS,
        refi=refi or timing.refi,
        refresh=int(refi is not None),
        mac_gap=max(timing.ccd_l, mac_gap),
        act_gap=act_gap,
    )


def mode_banks(device: PimDevice) -> list[int]:
    """Return the banks whose mode rows are written: two in each of two bank groups, even ones first."""
    dram = device.timed
    other = dram.bank_groups // 2 * dram.banks_per_group
    return [side + group * other for side in range(2) for group in range(2)]


def park_banks(device: PimDevice) -> list[int]:
    """Return all banks in the order in which they are read at first and last: group after group."""
    dram = device.timed
    groups, members = dram.bank_groups, dram.banks_per_group
    return [i % groups * members + i // groups for i in range(dram.num_banks)]


def streamed_program(
    device: PimDevice,
    *,
    outputs: int,
    bursts: int,
    tokens: int,
    batch: int,
    refi: int | None,
    mac_gap: int = 1,
    act_gap: int = 1,
) -> Program:
    """Return our schedule's program: ``bursts`` of inputs for each of a unit's ``outputs``.

    Parameters
    ----------
    tokens : tokens that share a burst.
    refi : cycles from a refresh to the next, or None for no refreshes.
    mac_gap, act_gap : least cycles between all-bank MACs, ACTs.
    """
    # A last group of fewer tokens has the passes of the others: weights lie in the order of these.
    passes = -(-outputs // (device.output_registers // min(tokens, batch)))
    fewer, larger = outputs // passes, outputs % passes

    def group(sharing: int, *, final: bool) -> Program:
        registers = device.input_registers // sharing * sharing

        def one(here: int, even_next: int = 0) -> Program:
            results = word(Op.RESULTS, count=here * sharing, row=RESULT_ROW, even_next=even_next)
            return [word(Op.PASS, outputs=here), results]

        return [
            word(Op.INPUTS, bursts=bursts, words=bursts * sharing),
            word(
                Op.GROUP,
                tokens=sharing,
                gap=max(device.timed.timing.ccd_l, mac_gap, sharing * device.mac_cycles),
                registers=registers,
            ),
            *_loop(larger, one(fewer + 1)),
            *_loop(passes - larger - 1, one(fewer)),
            *one(fewer, even_next=int(not final)),
        ]

    groups = [min(tokens, batch - start) for start in range(0, batch, tokens)]
    return [
        _limits(device, refi, mac_gap, act_gap),
        *(
            word(Op.MODE, bank=bank, row=MODE_ROW, apart=int(number == 3))
            for number, bank in enumerate(mode_banks(device))
        ),
        word(Op.REGISTERS, count=2),
        *_loop(len(groups) - 1, group(groups[0], final=False)),
        *group(groups[-1], final=True),
        word(Op.REGISTERS, count=1),
        word(Op.WRITE, same=0, row=LEAVE_ROW),
        word(Op.WRITE, same=1, row=LEAVE_ROW),
        word(Op.CLOSE),
        word(Op.STOP),
    ]


def barrier_program(
    device: PimDevice,
    *,
    outputs: int,
    inputs: int,
    batch: int,
    refi: int | None,
    mac_gap: int = 1,
    act_gap: int = 1,
) -> Program:
    """Return the published kernel's program for tiles of ``outputs`` x ``inputs``; see above for the rest."""
    dram = device.timed
    entries = device.output_registers

    def group(accesses: Sequence[tuple[Role, int, int]], *, all_banks: int = 0, closed: int = 0) -> Program:
        return [
            word(
                Op.ACCESS,
                role=role,
                bank=bank,
                row=row,
                count=1,
                all_banks=all_banks,
                fence=int(number == len(accesses) - 1),
                closed=closed,
            )
            for number, (role, bank, row) in enumerate(accesses)
        ]

    def access(role: Role, bank: int, row: int, count: int = 1) -> int:
        return word(Op.ACCESS, role=role, bank=bank, row=row, count=count, all_banks=1, fence=1)

    def weights(side: int, part: int) -> int:
        return word(
            Op.ACCESS,
            role=Role.MAC,
            bank=side,
            count=dram.bursts_per_row,
            register=part * TILE_INPUTS // TILE_ROWS,
            counted=1,
            all_banks=1,
            fence=1,
        )

    def side_tiles(side: int) -> Program:
        tile = [access(Role.INPUT, 1, REGISTER_ROW, entries), *(weights(side, n) for n in range(TILE_ROWS))]
        return [word(Op.ORIGIN), *_loop((inputs + 1 - side) // 2, tile)]

    item = [
        access(Role.CLEAR, 0, REGISTER_ROW),
        *side_tiles(0),
        *side_tiles(1),
        access(Role.RESULT, 1, RESULT_ROW, entries),
        access(Role.WRITE, 0, REGISTER_ROW),
    ]
    park = group([(Role.READ, bank, PARK_ROW) for bank in park_banks(device)])
    return [
        _limits(device, refi, mac_gap, act_gap),
        *park,
        *group([(Role.WRITE, bank, MODE_ROW) for bank in _pairs(mode_banks(device))]),
        access(Role.WRITE, 1, REGISTER_ROW),
        *_loop(outputs, [*_loop(batch, item), word(Op.ADVANCE, rows=(inputs + 1) // 2 * TILE_ROWS)]),
        *group([(Role.WRITE, side, LEAVE_ROW) for side in range(2)], all_banks=1, closed=1),
        *park,
        word(Op.STOP),
    ]


def _pairs(banks: list[int]) -> list[int]:
    """Return the mode's banks bank group by bank group."""
    return [banks[0], banks[2], banks[1], banks[3]]


STREAMED_LEAD = 256
"""Cycles from the start of our schedule's hardware to the model's cycle 0: its planner gets ahead."""
REGISTERED = 2
"""Cycles from the start to the first count, and from a command's decision to the bus."""


def lead(device: PimDevice) -> int:
    """Return the cycles from the start to the model's cycle 0 inside the hardware.

    In the published kernel's it loads the first group.
    """
    return STREAMED_LEAD if device.schedule is Schedule.STREAMED else 4 * device.timed.num_banks + 32


def first_cycle(device: PimDevice) -> int:
    """Return the cycle in which the model's cycle 0 is on the buses; that of ``start`` is 0."""
    return lead(device) + REGISTERED
