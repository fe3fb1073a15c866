"""A channel's share of a matrix-vector product: what lies in its banks, what it computes, bit for bit.

A unit's sum starts at zero and takes one burst of ``lanes`` products after the other, in the order of the
schedule (:func:`golden.formats.dot`); a result is one fp32 number, where the published units leave one for
each lane to the host. Results come burst by burst, one of each unit.

In both schedules channel ``c`` of a set's holds, in unit ``u``, rows of the matrix that follow each other.
Sets of channels (``slices``) share the inputs; the host adds their results.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from golden.formats import F32, Bits16, dot
from golden.secded import stored
from spec.device import PimDevice
from spec.program import TILE_INPUTS, TILE_ROWS

UInt8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Share:
    """A channel's part of a product.

    Attributes
    ----------
    banks : (rows, 2, bursts of a row, units, lanes) bf16 patterns: the weights.
    inputs : (words, lanes) bf16 patterns, in the order in which programs count them.
    results : (bursts, units) float32, in the order in which they are written.
    """

    banks: Bits16
    inputs: Bits16
    results: F32

    def bank_image(self, *, secded: bool = False) -> UInt8:
        """Return the banks as they lie in a memory, one burst of all units a word; (bursts, bytes) uint8."""
        units, lanes = self.banks.shape[3:]
        image = self.banks.astype("<u2").reshape(-1, units, lanes).view(np.uint8)
        return (stored(image) if secded else image).reshape(len(image), -1)

    def input_image(self) -> UInt8:
        """Return the inputs as they lie in a memory; (words, bytes) uint8."""
        return self.inputs.astype("<u2").view(np.uint8)


def streamed_share(
    device: PimDevice,
    weights: Bits16,
    x: Bits16,
    *,
    outputs: int,
    bursts: int,
    tokens: int,
    slices: int,
    channels: int,
    channel: int,
) -> Share:
    """Return a channel's share in our schedule.

    Parameters
    ----------
    weights : (rows, cols) bf16 patterns. x : (batch, cols) bf16 patterns.
    outputs, bursts, tokens, slices : the layout; ``channel`` of ``channels``, those of a slice in a row.
    """
    units, lanes, row_bursts = device.units, device.lanes, device.timed.bursts_per_row
    batch = len(x)
    per_slice = channels // slices
    first_row, first_col = channel % per_slice * units * outputs, channel // per_slice * bursts * lanes
    mine = _window(weights, first_row, first_col, units * outputs, bursts * lanes)
    x = _window(x, 0, first_col, batch, bursts * lanes)
    # (units, outputs, bursts, lanes) and in the order of use (pass, burst, output).
    blocks = mine.reshape(units, outputs, bursts, lanes)
    groups = [min(tokens, batch - start) for start in range(0, batch, tokens)]
    # Of all groups: a last one of fewer tokens reads the bursts in the order in which they lie.
    passes = _passes(outputs, device.output_registers // groups[0])
    used: list[Bits16] = []
    results: list[F32] = []
    # The first row of the even banks; a pass that ends with a row stays on its side.
    rows = [0, 0]
    side = column = 0
    places: list[tuple[NDArray[np.int64], ...]] = []
    for start, stop in _ranges(passes):
        count = (stop - start) * bursts
        used.append(blocks[:, start:stop].transpose(2, 1, 0, 3).reshape(count, units, lanes))
        done = 0
        while done < count:
            part = min(count - done, row_bursts - column)
            places.append((np.full(part, rows[side]), np.full(part, side), column + np.arange(part)))
            done, column = done + part, column + part
            if column == row_bursts:
                rows[side], column = rows[side] + 1, 0
                side = 1 - side if done < count else side
    banks = np.zeros((max(rows) + 1, 2, row_bursts, units, lanes), dtype=np.uint16)
    row, of_side, place = (np.concatenate(axis) for axis in zip(*places, strict=True))
    banks[row, of_side, place] = np.concatenate(used)
    first = 0
    for sharing in groups:
        sums = dot(x[first : first + sharing], mine, lanes).reshape(sharing, units, outputs)
        for start, stop in _ranges(passes):
            results.append(sums[:, :, start:stop].transpose(2, 0, 1).reshape(-1, units))
        first += sharing
    words = [
        x[start : start + tokens].reshape(-1, bursts, lanes).transpose(1, 0, 2).reshape(-1, lanes)
        for start in range(0, batch, tokens)
    ]
    return Share(banks, np.concatenate(words), np.concatenate(results))


def barrier_share(
    device: PimDevice,
    weights: Bits16,
    x: Bits16,
    *,
    outputs: int,
    inputs: int,
    channels: int,
    channel: int,
) -> Share:
    """Return a channel's share in the published kernel, of tiles of ``outputs`` x ``inputs``; as above."""
    units, lanes, row_bursts = device.units, device.lanes, device.timed.bursts_per_row
    entries, batch = device.output_registers, len(x)
    cols = inputs * TILE_INPUTS * lanes
    tile_rows = [(tile * channels + channel) * units * entries for tile in range(outputs)]
    order = np.array([*range(0, inputs, 2), *range(1, inputs, 2)])
    x = (
        _window(x, 0, 0, batch, cols)
        .reshape(batch, inputs, TILE_INPUTS * lanes)[:, order]
        .reshape(batch, cols)
    )
    half = -(-inputs // 2)
    banks = np.zeros((outputs, half, 2, TILE_ROWS * row_bursts, units, lanes), dtype=np.uint16)
    results: list[F32] = []
    for tile, first in enumerate(tile_rows):
        mine = _window(weights, first, 0, units * entries, cols)
        # A tile's bursts: the sums of an input burst one behind the other, then the next input burst.
        blocks = mine.reshape(units, entries, inputs, TILE_INPUTS, lanes).transpose(2, 3, 1, 0, 4)
        for number in range(inputs):
            banks[tile, number // 2, number % 2] = blocks[number].reshape(-1, units, lanes)
        ordered = mine.reshape(-1, inputs, TILE_INPUTS * lanes)[:, order].reshape(-1, cols)
        results += list(dot(x, ordered, lanes).reshape(batch, units, entries).transpose(0, 2, 1))
    placed = banks.reshape(outputs * half, 2, TILE_ROWS, row_bursts, units, lanes).transpose(0, 2, 1, 3, 4, 5)
    return Share(
        np.ascontiguousarray(placed).reshape(-1, 2, row_bursts, units, lanes),
        x.reshape(-1, lanes),
        np.concatenate(results),
    )


def _passes(outputs: int, at_once: int) -> tuple[int, ...]:
    """Return the outputs of each pass, larger ones first."""
    count = -(-outputs // at_once)
    return tuple(outputs // count + (number < outputs % count) for number in range(count))


def _ranges(passes: tuple[int, ...]) -> list[tuple[int, int]]:
    ends = np.cumsum(passes).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _window(matrix: Bits16, row: int, col: int, rows: int, cols: int) -> Bits16:
    """Return a part of a matrix, zero outside of it."""
    out = np.zeros((rows, cols), dtype=np.uint16)
    part = matrix[row : row + rows, col : col + cols]
    out[: part.shape[0], : part.shape[1]] = part
    return out
