"""The gate: router product, score, groups, top-k, weights. See ``docs/gating.md``."""

from rtl.gating.gate import BankedGate, Gate
from rtl.gating.layouts import assignment_layout, given_score_bits, token_layout

__all__ = ["BankedGate", "Gate", "assignment_layout", "given_score_bits", "token_layout"]
