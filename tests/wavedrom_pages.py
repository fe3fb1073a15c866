"""The pictures of the stream protocols: drawn from runs of a stream register with each stream's payload.

``python -m tests.wavedrom_pages`` writes ``docs/streams/<stream>.json`` (WaveDrom's source) and ``.svg``
(rendered); a test compares them, and asks for a picture of every stream of every block.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import wavedrom
from amaranth.hdl import Shape, UnusedElaboratable, Value
from amaranth.lib import data

from rtl.stream import StreamRegister
from sim.toolchain import write_atomically
from tests.bfm import Sink, Source, run_streams
from tests.wavedrom_axi import AXI_PICTURES, axi_source

FOLDER = Path(__file__).parent.parent / "docs" / "streams"
OFFERED = (0, 1, 5, 6)
"""Cycles from which the four beats of a picture are offered to the register."""
STALLED = (2, 3, 7)
"""Cycles in which the beat that is offered by the register is not taken."""
CYCLES = 11
SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
ElementTree.register_namespace("", SVG[1:-1])
ElementTree.register_namespace("xlink", XLINK[1:-1])
Beats = Sequence[Mapping[str, int]]


@dataclass(frozen=True)
class Stream:
    """A stream protocol: what it carries, the ports that have it (block, member), four beats of it.

    A beat's fields that are not said are 0; of an array it is the first element.
    """

    title: str
    ports: tuple[tuple[str, str], ...]
    beats: Beats


STREAMS = {
    "tokens": Stream(
        "tokens: a token of two beats, then one that ends its batch",
        (("gating", "i"), ("expert", "i_token"), ("pim", "i_token"), ("layer", "i")),
        ({"data": 0x3F80}, {"data": 0xBF00}, {"data": 0x4000}, {"data": 0x3E80, "last": 1}),
    ),
    "router": Stream(
        "router: words of its image",
        (("gating", "i_load"),),
        ({"": 0x3F803F00}, {"": 0xBF803E80}, {"": 0x40003D00}, {"": 0x3F00BE00}),
    ),
    "assignments": Stream(
        "assignments: two tokens, two experts each; the second token ends its batch",
        (("gating", "o"), ("dispatch", "i")),
        (
            {"expert": 5, "weight": 0x3F20},
            {"expert": 1, "weight": 0x3EC0, "last": 1},
            {"expert": 0, "weight": 0x3F40, "last_token": 1},
            {"expert": 7, "weight": 0x3E80, "last": 1, "last_token": 1},
        ),
    ),
    "expects": Stream(
        "expects: how many results each token gets; the fourth ends its batch",
        (("dispatch", "o_expect"), ("combine", "i_expect")),
        (
            {"slot": 0, "count": 2},
            {"slot": 1, "count": 2},
            {"slot": 2, "count": 1},
            {"slot": 3, "count": 2, "last_token": 1},
        ),
    ),
    "entries": Stream(
        "entries: a job of three tokens, then one of one",
        (("dispatch", "o_0"), ("dispatch", "o_1"), ("expert", "i"), ("pim", "i")),
        (
            {"expert": 1, "slot": 0, "weight": 0x3EC0},
            {"expert": 1, "slot": 2, "weight": 0x3F00},
            {"expert": 1, "slot": 3, "weight": 0x3F40, "last": 1},
            {"expert": 5, "slot": 0, "weight": 0x3F20, "last": 1},
        ),
    ),
    "addresses": Stream(
        "addresses: bursts of 512 bytes",
        (("expert", "o_ar"), ("layer", "o_ar")),
        ({"addr": 0x19000}, {"addr": 0x19200}, {"addr": 0x19400}, {"addr": 0x19600}),
    ),
    "beats": Stream(
        "beats: two bursts of two, an error in the second",
        (("expert", "i_r"), ("layer", "i_r")),
        (
            {"data": 0x3F803F00},
            {"data": 0xBF803E80, "last": 1},
            {"data": 0x40003D00, "resp": 2},
            {"data": 0x3F00BE00, "last": 1},
        ),
    ),
    "contributions": Stream(
        "contributions: two words of the results of two tokens",
        (("expert", "o"), ("pim", "o"), ("combine", "i")),
        (
            {"slot": 0, "word": 0, "weight": 0x3EC0, "data": 0x3F80},
            {"slot": 0, "word": 1, "weight": 0x3EC0, "data": 0xBF00, "last": 1},
            {"slot": 2, "word": 0, "weight": 0x3F00, "data": 0x4000},
            {"slot": 2, "word": 1, "weight": 0x3F00, "data": 0x3E80, "last": 1},
        ),
    ),
    "results": Stream(
        "results: two tokens of two words; the second ends its batch",
        (("combine", "o"),),
        (
            {"data": 0x3F80},
            {"data": 0xBF00, "token_last": 1},
            {"data": 0x4000},
            {"data": 0x3E80, "token_last": 1, "last": 1},
        ),
    ),
    "output": Stream(
        "output: two tokens of two words; the second ends its batch",
        (("layer", "o"),),
        ({"data": 0x3F80}, {"data": 0xBF00}, {"data": 0x4000}, {"data": 0x3E80, "last": 1}),
    ),
}


def fields_of(shape: Any) -> dict[str, tuple[int, int, int]]:
    """Return lowest bit, width and elements of each field of a payload; a plain number has one, ``""``."""
    if not isinstance(shape, data.StructLayout):
        return {"": (0, Shape.cast(shape).width, 1)}
    fields = {}
    for name, member in shape:
        array = isinstance(member.shape, data.ArrayLayout)
        count = member.shape.length if array else 1
        fields[name] = (member.offset, member.width // count, count)
    return fields


def picture(stream: Stream, shape: Any) -> dict[str, Any]:
    """Return WaveDrom's source: what stands at a stream register's output, cycle by cycle.

    A payload is shown where it is valid. ``ValueError`` for a beat with a field that ``shape`` has not.
    """
    fields = fields_of(shape)
    for beat in stream.beats:
        if not beat.keys() <= fields.keys():
            raise ValueError(f"the payload's fields are {', '.join(fields)}, not {', '.join(beat)}")
    payloads = [sum(value << fields[name][0] for name, value in beat.items()) for beat in stream.beats]
    register = StreamRegister(shape)
    seen: list[tuple[int, int, int]] = []

    async def watch(ctx: Any) -> None:
        output = register.o
        watched = (output.valid, output.ready, Value.cast(output.payload))
        async for _, reset, *sample in ctx.tick().sample(*watched):
            assert not reset
            seen.append(tuple(map(int, sample)))

    run_streams(
        register,
        {"i": Source(payloads, OFFERED)},
        {"o": Sink(len(payloads), lambda cycle: cycle not in STALLED)},
        monitors=[watch],
    )
    cycles = seen[:CYCLES]
    assert not any(valid for valid, *_ in seen[CYCLES:])
    rows: list[dict[str, Any]] = [
        {"name": "aclk", "wave": "p" + "." * (CYCLES - 1)},
        {"name": "valid", "wave": _levels([valid for valid, *_ in cycles])},
        {"name": "ready", "wave": _levels([ready for _, ready, _ in cycles])},
    ]
    for name, (low, width, _) in fields.items():
        values = [payload >> low & (1 << width) - 1 if valid else None for valid, _, payload in cycles]
        rows.append(row_of(name or "payload", values, width))
    return {"signal": rows, "config": {"hscale": 2}, "head": {"text": stream.title, "tick": 0}}


def _levels(bits: Sequence[int | None]) -> str:
    """Return a wave of single bits, ``x`` where there is none."""
    states = ["x" if bit is None else str(bit) for bit in bits]
    return "".join("." if n and state == states[n - 1] else state for n, state in enumerate(states))


def row_of(name: str, values: Sequence[int | None], width: int) -> dict[str, Any]:
    """Return a line of values, each shown where it begins; None where there is none."""
    if width == 1:
        return {"name": name, "wave": _levels(values)}
    wave, shown = "", []
    for n, value in enumerate(values):
        if n and value == values[n - 1]:
            wave += "."
        elif value is None:
            wave += "x"
        else:
            wave += "="
            shown.append(f"{value:#x}" if width >= 16 else str(value))
    return {"name": name, "wave": wave, "data": shown}


def source_text(stream: Stream, shape: Any) -> str:
    """Return the JSON file's text, a signal on each line."""
    return text_of(picture(stream, shape))


def text_of(whole: dict[str, Any]) -> str:
    """Return the JSON file's text of WaveDrom's source, a signal or a group of them on each line."""
    lines = ",\n".join(f"  {json.dumps(row)}" for row in whole["signal"])
    rest = ",\n".join(f'"{key}": {json.dumps(whole[key])}' for key in ("config", "head"))
    return f'{{"signal": [\n{lines}\n],\n{rest}}}\n'


def rendered(source: str) -> str:
    """Return the SVG of a JSON file's text, without the shapes of WaveDrom's that it does not use."""
    svg = ElementTree.fromstring(wavedrom.render(source).tostring())
    used = {use.get(f"{XLINK}href") for use in svg.iter(f"{SVG}use")}
    for defs in svg.iter(f"{SVG}defs"):
        for shape in [one for one in defs if one.tag == f"{SVG}g" and f"#{one.get('id')}" not in used]:
            defs.remove(shape)
    return ElementTree.tostring(svg, encoding="unicode") + "\n"


def main() -> None:
    """Write every picture."""
    from tests.test_streams_page import shape_of

    # The blocks are looked at, not elaborated.
    warnings.simplefilter("ignore", UnusedElaboratable)
    FOLDER.mkdir(exist_ok=True)
    for name, stream in STREAMS.items():
        source = source_text(stream, shape_of(*stream.ports[0]))
        write_atomically(FOLDER / f"{name}.json", source)
        write_atomically(FOLDER / f"{name}.svg", rendered(source))
    for name, one in AXI_PICTURES.items():
        source = text_of(axi_source(one))
        write_atomically(FOLDER / f"{name}.json", source)
        write_atomically(FOLDER / f"{name}.svg", rendered(source))


if __name__ == "__main__":
    main()
