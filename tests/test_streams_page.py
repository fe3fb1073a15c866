"""docs/streams.md: a picture of each stream protocol, equal to what a run draws."""

from __future__ import annotations

import json
import re
from functools import cache

import pytest
from amaranth.lib import data, stream

from tests.test_docs import COMPONENTS, nothing_is_left, page, tables
from tests.wavedrom_axi import AXI_PICTURES, axi_source
from tests.wavedrom_pages import FOLDER, STREAMS, picture, rendered, source_text, text_of

__all__ = ["nothing_is_left"]  # a fixture of every test here too

# Components are looked at here, not elaborated.
pytestmark = pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")


@cache
def streams_of(block: str) -> dict:
    """Return the payloads of a block's streams."""
    return {
        name: member.signature.members["payload"].shape
        for name, member in COMPONENTS[block]().signature.members.items()
        if member.is_signature and isinstance(member.signature, stream.Signature)
    }


def shape_of(block: str, member: str):
    """Return a stream's payload."""
    return streams_of(block)[member]


def names_of(shape) -> tuple[str, ...]:
    return tuple(shape.members) if isinstance(shape, data.StructLayout) else ()


def test_every_stream_of_every_block_has_a_picture():
    """And the ports of one picture carry the same fields."""
    drawn = [port for one in STREAMS.values() for port in one.ports]
    assert sorted(drawn) == sorted((block, name) for block in COMPONENTS for name in streams_of(block))
    for one in STREAMS.values():
        first, *others = (set(names_of(shape_of(*port))) for port in one.ports)
        # Several units' entries and results have a rank.
        assert all(other ^ first <= {"rank"} for other in others), one.title


def test_pictures_are_those_of_a_run():
    stale = []
    for name, one in STREAMS.items():
        source = source_text(one, shape_of(*one.ports[0]))
        texts = [(FOLDER / f"{name}{suffix}").read_text() for suffix in (".json", ".svg")]
        stale += [name] if texts != [source, rendered(source)] else []
    assert not stale, "run python -m tests.wavedrom_pages"


@cache
def axi_text(name: str) -> str:
    return text_of(axi_source(AXI_PICTURES[name]))


def test_pictures_of_axi_are_those_of_a_run():
    stale = []
    for name in AXI_PICTURES:
        texts = [(FOLDER / f"{name}{suffix}").read_text() for suffix in (".json", ".svg")]
        stale += [name] if texts != [axi_text(name), rendered(axi_text(name))] else []
    assert not stale, "run python -m tests.wavedrom_pages"


def test_pictures_of_axi_show_what_they_say():
    """A waiting response stays, a refused write is told; a cut packet is marked and halts the input."""

    def rows(name: str) -> dict[str, dict]:
        groups = json.loads(axi_text(name))["signal"][1:]
        return {f"{group[0]} {row['name']}": row for group in groups for row in group[1:]}

    lite = rows("axi_lite")
    assert lite["write bresp"]["data"] == ["OKAY", "SLVERR"]
    assert lite["write bvalid"]["wave"] == "0...1..0.......10."
    assert lite["read rdata"]["data"] == ["0x2"]
    packets = rows("axi_packets")
    assert packets["s_axis ready"]["wave"].endswith("0" + "." * 14)
    assert packets["m_axis user"]["wave"].count("1") == 1
    assert packets["m_axis last"]["wave"].strip(".x")[-1] == "1"
    assert rows("axi_reads")["core last"]["wave"] == "x....0101x."


def test_no_other_pictures():
    names = (*STREAMS, *AXI_PICTURES)
    files = {f"{name}{suffix}" for name in names for suffix in (".json", ".svg")}
    assert {file.name for file in FOLDER.iterdir()} == files


def test_a_picture_shows_every_field_and_a_wait():
    """Valid and payload stay while ready is low; nothing is shown where nothing is valid."""
    one = STREAMS["assignments"]
    shape = shape_of(*one.ports[0])
    rows = {row["name"]: row for row in json.loads(source_text(one, shape))["signal"]}
    assert list(rows) == ["aclk", "valid", "ready", *shape.members]
    assert rows["valid"]["wave"] == "01...01..0."
    assert rows["ready"]["wave"] == "1.0.1..01.."
    assert rows["expert"]["wave"].startswith("x==")
    assert rows["expert"]["data"] == ["5", "1", "0", "7"]
    with pytest.raises(ValueError, match=r"^the payload's fields are .*, not expert, weights$"):
        picture(
            type(one)("", one.ports, ({"expert": 1, "weights": 2},)),
            shape,
        )


def test_the_page_has_each_picture_of_axi():
    header, *rows = tables(page("streams"), "AXI ports")[0]
    assert header == ["picture", "what"]
    for name, (picture_name, what) in zip(AXI_PICTURES, rows, strict=True):
        assert picture_name == f"`{name}`"
        assert what.endswith(f": [source](streams/{name}.json) ![{name}](streams/{name}.svg)")


def test_the_page_has_each_picture_with_its_ports():
    header, *rows = tables(page("streams"), "Pictures")[0]
    assert header == ["stream", "ports", "picture"]
    port = re.compile(r"\[(\w+)\]\(\w+\.md\) `(\w+)`")
    listed = {row[0].strip("`"): (sorted(port.findall(row[1])), row[2]) for row in rows}
    assert listed == {
        name: (sorted(one.ports), f"[source](streams/{name}.json) ![{name}](streams/{name}.svg)")
        for name, one in STREAMS.items()
    }
