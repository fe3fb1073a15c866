"""Hypothesis draws the same examples in every run; simulations are compiled in a hurry."""

from __future__ import annotations

import os

from hypothesis import settings

# Before sim.toolchain is imported; commands that tests start see it too.
os.environ.setdefault("EXPERTBANK_OPTIMISE", "-O1")

settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.load_profile("repeatable")
