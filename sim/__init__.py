"""When, and at what cost: cycle models, RTL runs, reports, the command line.

``from sim import simulate`` gives :func:`sim.api.simulate`; nothing is imported before it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sim.api import simulate

__all__ = ["simulate"]


def __getattr__(name: str) -> Any:
    if name == "simulate":
        from sim.api import simulate

        return simulate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
