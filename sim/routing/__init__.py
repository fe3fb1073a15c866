"""Routing: synthetic, or read from what engines and simulators wrote. See ``docs/routing.md``."""

from sim.routing.routing import Routing, draw_ids, parse_routing, shape_of, synthetic_trace
from sim.routing.synthetic import IntArray
from sim.routing.tokens import fitted_tokens
from sim.routing.trace import Trace, TraceShape

__all__ = [
    "IntArray",
    "Routing",
    "Trace",
    "TraceShape",
    "draw_ids",
    "fitted_tokens",
    "parse_routing",
    "shape_of",
    "synthetic_trace",
]
