"""Hypothesis draws the same examples in every run; simulations are compiled in a hurry."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# Before sim.toolchain is imported; commands that tests start see it too.
os.environ.setdefault("EXPERTBANK_OPTIMISE", "-O1")

settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture
def no_waveform(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave a near-memory layer's divergence as it is: a waveform would need another build."""
    import sim.pim_report

    monkeypatch.setattr(sim.pim_report, "with_waveform", lambda found, *_arguments, **_named: found.message)
