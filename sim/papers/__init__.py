"""A model of each published accelerator: from a paper's numbers to what it claims; one file each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

from spec.errors import InputError
from spec.paper import PaperSpec

Model = Callable[[PaperSpec, Mapping[str, float]], dict[str, float]]
Replay = Callable[[PaperSpec, Mapping[str, float], Path], dict[str, float]]
REPLAYS = {"dynande": "sim.papers.dynande_replay"}
"""Papers of whose claims some run on files that their authors have released."""


def model_of(name: str) -> Model:
    """Return the model of a paper's preset: function ``run`` of the module with its name."""
    model: Model = import_module(f"sim.papers.{name.replace('-', '_')}").run
    return model


def replay_of(name: str) -> Replay:
    """Return what runs a paper's claims on its authors' files; :class:`InputError` if it has none."""
    if name not in REPLAYS:
        raise InputError(f"is only for {', '.join(REPLAYS)}, not {name}", key="files")
    replay: Replay = import_module(REPLAYS[name]).run
    return replay
