"""Verilator's coverage.dat: which lines and which toggles a run reached."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

ENTRY = re.compile(r"^C '(.*)' (\d+)$", re.DOTALL)


@dataclass
class Counts:
    """Points of one kind: how often each was reached, summed over the instances of a module."""

    reached: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    @property
    def total(self) -> int:
        """Points in all."""
        return len(self.reached)

    @property
    def hit(self) -> int:
        """Points that were reached."""
        return sum(count > 0 for count in self.reached.values())

    @property
    def missed(self) -> list[str]:
        """Points that were not."""
        return sorted(point for point, count in self.reached.items() if not count)


def read(files: Iterable[Path]) -> dict[str, Counts]:
    """Return the points of the files by kind: ``line``, ``branch``, ``toggle``, ``expr`` where there are any.

    A point is a place in the Verilog and what is counted there; the same point of several files, or of
    several
    instances, is one.
    """
    found: dict[str, Counts] = defaultdict(Counts)
    for file in files:
        for line in file.read_text().splitlines():
            entry = ENTRY.match(line)
            if entry is None:
                continue
            fields = dict(part.split("\x02", 1) for part in entry[1].split("\x01") if "\x02" in part)
            kind = fields["page"].split("/")[0].removeprefix("v_")
            module = fields["page"].partition("/")[2]
            point = f"{module}:{fields['l']}:{fields.get('n', '')}:{fields.get('o', '')}"
            found[kind].reached[point] += int(entry[2])
    return dict(found)
