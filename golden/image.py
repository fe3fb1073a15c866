"""Memory images: how weights lie in the memory that the hardware reads.

The one description of the layout; the RTL reads it, the packer writes it.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from golden.expert_grouped import ExpertGrouped
from golden.expert_int8 import ExpertInt8
from golden.formats import Bits16, f32_flush
from golden.gating_bf16 import banked_router, selection_bias_fixed, with_shared_gate
from golden.grouped import MatrixGrouped
from golden.int8 import MatrixInt8
from spec.geometry import FfnGeometry, GateGeometry, RouterGeometry, ceil_div

_Element = TypeVar("_Element", bound=np.generic)


def router_image(
    geometry: GateGeometry,
    router: Bits16,
    logit_bias: NDArray[np.float32] | None = None,
    selection_bias: NDArray[np.float32] | None = None,
    shared_gate: Bits16 | None = None,
) -> NDArray[np.uint16]:
    """Return the router's image as 16-bit elements, ``load_beats * load_elements`` of them.

    Words in the order of the product: all rows of the first ``cols`` inputs, then of the next; a
    word holds the row's experts after each other, ``cols`` inputs each. Then a padded word of 32-bit
    biases for each row, those of the logits before those of the selection. The gate of a shared expert,
    (1, d_model), is one more expert, behind the others. What belongs to no expert or input is zero, as
    is the rest of a word. Where the banks hold the router (:func:`router_tiles`), only the words of a
    selection bias are left.
    """
    if shared_gate is not None:
        router, logit_bias = with_shared_gate(router, logit_bias, shared_gate)
        if selection_bias is not None:
            selection_bias = np.append(selection_bias, np.float32(0))
    rows, lanes, cols, beats = (
        geometry.num_rows,
        geometry.logits_per_cycle,
        geometry.cols,
        geometry.num_beats,
    )
    places = [[geometry.output_at(row, lane) for lane in range(lanes)] for row in range(rows)]
    present = np.array([[place is not None for place in row] for row in places])
    experts = np.array([[place or 0 for place in row] for row in places], dtype=np.int64)

    parts = [np.zeros(0, dtype=np.uint16)]
    if not geometry.banked:
        padded = np.zeros((len(router), beats * cols), dtype=np.uint16)
        padded[:, : geometry.d_model] = router
        words = np.where(present[:, :, None], padded[experts], 0)  # (rows, lanes, beats * cols)
        words = words.reshape(rows, lanes, beats, cols).transpose(2, 0, 1, 3)
        words = words.reshape(beats * rows, lanes * cols)
        parts.append(np.pad(words, ((0, 0), (0, geometry.lanes - lanes * cols))).ravel())
    biases = []
    if geometry.loads_logit_bias:
        assert logit_bias is not None
        biases.append(f32_flush(logit_bias).view(np.uint32))
    if geometry.gating.selection_bias:
        assert selection_bias is not None
        fixed = selection_bias_fixed(geometry.gating, selection_bias)
        biases.append(fixed.astype(np.int32).view(np.uint32))
    for bias in biases:
        word = np.zeros((rows, geometry.bias_row_beats * geometry.load_elements // 2), dtype=np.uint32)
        word[:, :lanes] = np.where(present, bias[experts], 0)
        parts.append(word.view(np.uint16).ravel())
    return np.concatenate(parts).astype(np.uint16)


def router_tiles(
    geometry: RouterGeometry,
    router: Bits16,
    logit_bias: NDArray[np.float32] | None = None,
    shared_gate: Bits16 | None = None,
) -> NDArray[np.uint16]:
    """Return the router's tiles as 16-bit elements, in the order in which the banks' lanes take them.

    Parameters
    ----------
    router : (experts, d_model) bf16 patterns.
    logit_bias : (experts,) float32, where the algebra has it.
    shared_gate : (1, d_model) bf16 patterns, where the shared expert has a gate.
    """
    gate = geometry.gate
    if shared_gate is not None:
        router, logit_bias = with_shared_gate(router, logit_bias, shared_gate)
    matrix = banked_router(router, logit_bias)
    placed = np.zeros((geometry.num_places, matrix.shape[1]), dtype=np.uint16)
    for place in range(geometry.num_places):
        expert = gate.output_at(*divmod(place, gate.logits_per_cycle))
        if expert is not None:
            placed[place] = matrix[expert]
    return tiles(placed, geometry.rows, geometry.cols).ravel()


def tiles(matrix: NDArray[_Element], rows: int, cols: int) -> NDArray[_Element]:
    """Return (row blocks, col blocks, rows, cols) tiles of a matrix, zero-padded."""
    row_blocks, col_blocks = -(-matrix.shape[0] // rows), -(-matrix.shape[1] // cols)
    padded = np.zeros((row_blocks * rows, col_blocks * cols), dtype=matrix.dtype)
    padded[: matrix.shape[0], : matrix.shape[1]] = matrix
    return padded.reshape(row_blocks, rows, col_blocks, cols).transpose(0, 2, 1, 3)


def expert_image(
    geometry: FfnGeometry,
    gate: Bits16 | None,
    up: Bits16,
    down: Bits16,
    gate_bias: Bits16 | None = None,
    up_bias: Bits16 | None = None,
    down_bias: Bits16 | None = None,
) -> NDArray[np.uint16]:
    """Return one expert's tiles as 16-bit elements, in the order in which the array takes them.

    Parameters
    ----------
    gate, up : (d_hidden, d_model) bf16 patterns; gate is None where the FFN has two matrices.
    down : (d_model, d_hidden) bf16 patterns.
    gate_bias, up_bias, down_bias : bf16 patterns, where the FFN has biases; they become the column
        that is multiplied with 1.
    """

    def with_bias(matrix: Bits16, bias: Bits16 | None) -> Bits16:
        return matrix if bias is None else np.concatenate([matrix, bias[:, None]], axis=1)

    rows, cols = geometry.rows, geometry.cols
    hidden = [tiles(with_bias(up, up_bias), rows, cols)]
    if gate is not None:
        hidden.insert(0, tiles(with_bias(gate, gate_bias), rows, cols))
    first = np.stack(hidden, axis=1)  # (hidden blocks, matrices, in tiles, rows, cols)
    second = tiles(with_bias(down, down_bias), rows, cols)
    return np.concatenate([first.ravel(), second.ravel()]).astype(np.uint16)


def scale_tiles(matrix: MatrixInt8, geometry: FfnGeometry) -> NDArray[np.uint8]:
    """Return the scale tiles of a matrix, (row blocks, bytes of a tile).

    A row holds its channel's mantissa (unsigned 16 bits), its shift (signed 16 bits) and, where the FFN
    has biases, its bias (signed 32 bits), low bytes first; the rest is zero, as are rows beyond the
    matrix.
    """
    parts = [matrix.mantissa.astype("<u2").view(np.uint8), matrix.shift.astype("<i2").view(np.uint8)]
    if matrix.bias is not None:
        parts.append(matrix.bias.astype("<i4").view(np.uint8))
    channels = np.concatenate([part.reshape(len(matrix.values), -1) for part in parts], axis=1)
    blocks = tiles(channels, geometry.rows, geometry.tile_bytes // geometry.rows)
    return blocks.reshape(len(blocks), geometry.tile_bytes)


def expert_image_int8(geometry: FfnGeometry, expert: ExpertInt8) -> NDArray[np.uint8]:
    """Return one expert's tiles as bytes, in the order in which the array takes them.

    As :func:`expert_image`, elements packed lowest bits first, with the scale tile behind the tiles of each
    block and matrix.
    """

    def with_scales(matrix: MatrixInt8) -> NDArray[np.uint8]:
        top = 1 << (geometry.format.bits - 1)
        assert -top <= matrix.values.min() and matrix.values.max() < top
        values = _packed(matrix.values.view(np.uint8), geometry)
        return np.concatenate([values, scale_tiles(matrix, geometry)[:, None]], axis=1)

    hidden = [with_scales(matrix) for matrix in (expert.gate, expert.up) if matrix is not None]
    first = np.stack(hidden, axis=1)  # (hidden blocks, matrices, in tiles, bytes)
    return np.concatenate([first.ravel(), with_scales(expert.down).ravel()])


def grouped_scale_tiles(matrix: MatrixGrouped, geometry: FfnGeometry) -> NDArray[np.uint8]:
    """Return the scale tiles of a matrix in a grouped format, (row blocks, spans, bytes of a tile).

    A row holds, lowest bits first, its output's bias (bf16, in every scale tile) where the FFN has biases,
    then the scales of the span's groups; the rest is zero, as are rows beyond the matrix.
    """
    number_format, groups = geometry.format, geometry.span_groups
    num_rows, num_groups = matrix.scales.shape
    blocks, spans = ceil_div(num_rows, geometry.rows), ceil_div(num_groups, groups)
    padded = np.zeros((blocks * geometry.rows, spans * groups), np.uint32)
    padded[:num_rows, :num_groups] = matrix.scales
    bits = np.zeros((len(padded), spans, geometry.cols * number_format.bits), np.uint8)
    scales = padded.reshape(len(padded), spans, groups)
    places = bits[..., geometry.bias_bits : geometry.bias_bits + groups * number_format.scale_bits]
    places[...] = _bits_of(scales, number_format.scale_bits)
    if matrix.bias is not None:
        bits[:num_rows, :, : geometry.bias_bits] = _bits_of(matrix.bias[:, None], geometry.bias_bits)[:, None]
    by_block = bits.reshape(blocks, geometry.rows, spans, -1).transpose(0, 2, 1, 3)
    return np.packbits(by_block.reshape(blocks, spans, -1), axis=-1, bitorder="little")


def _packed(codes: NDArray[np.uint8], geometry: FfnGeometry) -> NDArray[np.uint8]:
    """Return the tiles of a matrix, (row blocks, col blocks, bytes of a tile); of codes the low bits."""
    elements = tiles(codes, geometry.rows, geometry.cols)
    elements = elements.reshape(*elements.shape[:2], -1)
    if geometry.format.bits == 8:
        return elements
    assert geometry.format.bits == 4
    return (elements[..., ::2] & np.uint8(15)) | (elements[..., 1::2] << np.uint8(4))


def _bits_of(values: NDArray[np.integer], bits: int) -> NDArray[np.uint8]:
    """Return the bits of unsigned numbers, (..., n) to (..., n * bits), the lowest first."""
    places = (values.astype(np.uint64)[..., None] >> np.arange(bits, dtype=np.uint64)) & np.uint64(1)
    return places.astype(np.uint8).reshape(*values.shape[:-1], -1)


def expert_image_grouped(geometry: FfnGeometry, expert: ExpertGrouped) -> NDArray[np.uint8]:
    """Return one expert's tiles as bytes, in the order in which the array takes them.

    As :func:`expert_image`, elements packed lowest bits first, with a scale tile before each span of the
    tiles of a block and matrix.
    """

    def with_scales(matrix: MatrixGrouped) -> NDArray[np.uint8]:
        weights = _packed(matrix.codes, geometry)
        scales = grouped_scale_tiles(matrix, geometry)
        parts = []
        for span in range(scales.shape[1]):
            first = span * geometry.span_tiles
            parts += [scales[:, span : span + 1], weights[:, first : first + geometry.span_tiles]]
        return np.concatenate(parts, axis=1)

    hidden = [with_scales(matrix) for matrix in (expert.gate, expert.up) if matrix is not None]
    first = np.stack(hidden, axis=1)  # (hidden blocks, matrices, in tiles, bytes)
    return np.concatenate([first.ravel(), with_scales(expert.down).ravel()])
