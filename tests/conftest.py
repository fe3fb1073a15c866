"""Hypothesis draws the same examples in every run; ``make test-long`` draws wider ones."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.load_profile("repeatable")
