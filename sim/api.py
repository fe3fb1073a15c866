"""The package from Python: what ``expertbank sim`` runs, as plain dataclasses and arrays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sim.accelerator import Report
from sim.request import Request
from spec.design import DesignSpec
from spec.load import load_design


def simulate(
    model: str | Path,
    design: str | Path | DesignSpec = "fpga",
    *,
    engine: str = "model",
    tokens: int | None = None,
    scale: int | str | None = None,
    number_format: str | None = None,
    phase: str | None = None,
    routing: str | None = None,
    routing_layer: int | None = None,
    seed: int = 0,
    experts: int | None = None,
    layout: Path | None = None,
    layer: str | None = None,
    progress: Callable[[str], None] = lambda _text: None,
) -> Report:
    """Run one MoE layer, or a step of all of them, and return its report.

    Parameters are the options of ``expertbank sim``, of the same meaning and with the same defaults but for
    ``engine``, which is ``model``.

    Parameters
    ----------
    model : preset, TOML, ``config.json``, vector ``.npz`` or folder with weights.
    design : preset, TOML, or a design.
    engine : ``model``, ``rtl`` or ``both``.
    scale : ``full`` or a divisor of ``d_model`` and the widths of the experts.
    number_format : of the experts, by default the design's; only where ``design`` is a name.
    progress : is told in a few words what takes long.

    Returns
    -------
    The report: ``cycles``, ``blocks``, ``seconds``, ``energy``, ... as in the JSON of the command, and
    ``activity`` (:class:`sim.activity.Activity`): spans of blocks and jobs (int64 arrays of cycles), tokens
    of each expert (layers, experts), commands of each channel. It is None with ``experts``, where beats of
    the Verilog are missing, and for ``rtl`` on a ``pim`` design.

    Raises :class:`spec.errors.InputError` for bad input, before anything runs.
    """
    chosen = design if isinstance(design, DesignSpec) else load_design(str(design), number_format)
    request = Request.of(
        str(model),
        engine=engine,
        tokens=tokens,
        scale=None if scale is None else str(scale),
        phase=phase,
        routing=routing,
        routing_layer=routing_layer,
        seed=seed,
        experts=experts,
        layout=layout,
        layer=layer,
        record=experts is None,
    )
    return request.prepare(chosen, progress)()
