"""Payloads packed from columns: as Amaranth's layouts lie, and as integers do."""

from __future__ import annotations

import json

import numpy as np
import pytest
from amaranth import Module, Shape, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from hypothesis import given
from hypothesis import strategies as st

from rtl.expert.layouts import contribution_layout
from rtl.export import export
from rtl.stream import connect_stream
from sim.payload import Field, fields_of, pack
from tests.block_bench import bits_of

LAYOUTS = {
    "contribution": contribution_layout(num_slots=8, words=5, lanes=4),  # 87 bits: more than a word
    "signed": data.StructLayout({"small": signed(3), "many": data.ArrayLayout(signed(13), 9), "last": 1}),
}


class Wires(wiring.Component):
    """A stream of a layout, straight through."""

    def __init__(self, layout: data.StructLayout) -> None:
        super().__init__({"i": In(stream.Signature(layout)), "o": Out(stream.Signature(layout))})

    def elaborate(self, platform):
        m = Module()
        connect_stream(m, wiring.flipped(self.i), wiring.flipped(self.o))
        return m


def integers(payloads: np.ndarray) -> list[int]:
    return [int.from_bytes(row.tobytes(), "little") for row in payloads]


@pytest.mark.parametrize("name", LAYOUTS)
def test_payloads_lie_as_the_exported_layout_says(name, tmp_path):
    layout = LAYOUTS[name]
    export(Wires(layout), "wires", tmp_path)
    described = json.loads((tmp_path / "wires.ports.json").read_text())["streams"]
    rng = np.random.default_rng(3)
    columns = {}
    for field, member in layout:
        is_array = isinstance(member.shape, data.ArrayLayout)
        element = Shape.cast(member.shape.elem_shape if is_array else member.shape)
        low = -(1 << element.width - 1) if element.signed else 0
        size = (20, member.shape.length) if is_array else 20
        columns[field] = rng.integers(low, low + (1 << element.width), size)
    expected = [bits_of(layout, **{field: values[n] for field, values in columns.items()}) for n in range(20)]
    for entry in described:
        payloads = pack(fields_of(entry["fields"]), columns)
        assert payloads.shape == (20, -(-layout.size // 64))
        assert integers(payloads) == expected


@st.composite
def payloads_of(draw):
    """Draw fields that follow each other, and three values of each."""
    fields, columns, offset = {}, {}, 0
    for n in range(draw(st.integers(1, 9))):
        width, is_signed = draw(st.integers(1, 64)), draw(st.booleans())
        fields[f"f{n}"] = Field(offset, width, is_signed)
        low, high = (-(1 << width - 1), (1 << width - 1) - 1) if is_signed else (0, (1 << width) - 1)
        values = draw(st.lists(st.integers(low, high), min_size=3, max_size=3))
        columns[f"f{n}"] = np.array(values, dtype=np.int64 if is_signed else np.uint64)
        offset += width
    return fields, columns


@given(payloads_of())
def test_every_field_comes_back(drawn):
    fields, columns = drawn
    for n, payload in enumerate(integers(pack(fields, columns))):
        assert {name: field.of(payload) for name, field in fields.items()} == {
            name: int(values[n]) for name, values in columns.items()
        }


FIELDS = {"data[0]": Field(0, 4), "data[1]": Field(4, 4), "last": Field(8, 1)}


def test_one_value_stands_for_all():
    assert integers(pack(FIELDS, {"data": [[1, 2], [3, 4]], "last": 1})) == [0x121, 0x143]
    assert pack(FIELDS, {"data": np.zeros((0, 2), dtype=np.uint16), "last": 0}).shape == (0, 1)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"data": [[1, 2]]},
            r"the payload's fields are data\[0\], data\[1\], last, not data\[0\], data\[1\]",
        ),
        ({"data": [[1, 2]], "last": 0, "more": 1}, r"the payload's fields are .*, not .*, last, more"),
        ({"data": [[1, 16]], "last": 0}, r"data\[1\] must be in 0\.\.15, but holds 16\.\.16"),
        ({"data": [[1, 2]], "last": [-1]}, r"last must be in 0\.\.1, but holds -1\.\.-1"),
    ],
)
def test_columns_that_do_not_fit_are_named(columns, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        pack(FIELDS, columns)
