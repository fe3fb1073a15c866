"""When, and at what cost: cycle models, RTL runs, reports, the command line.

``from sim import simulate`` gives :func:`sim.api.simulate`, and so the others of :mod:`sim.api` and
what loads their presets; nothing is imported before it is asked for.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # (typing itself takes a program's first milliseconds, in which Ctrl-C is Python's)
    from typing import Any

    from sim.api import (
        compare_policies,
        load_design,
        load_model,
        load_system,
        serve,
        simulate,
        simulate_system,
    )

__all__ = [
    "compare_policies",
    "load_design",
    "load_model",
    "load_system",
    "serve",
    "simulate",
    "simulate_system",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from sim import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
