"""Read specs: presets by name, TOML files and Hugging Face configurations by path.

A preset gives every number a source and an evidence grade (A: read from a release, B: from the
paper, C: recalled or inferred, D: a choice of this project) in its ``[sources]`` table; keys there
are dotted names of fields.
"""

from __future__ import annotations

import tomllib
import typing
from dataclasses import replace
from pathlib import Path

from spec.area import AreaTable
from spec.catalogue import TABLES, Backbone, Entry
from spec.design import DesignSpec, Format
from spec.device import PimDevice
from spec.dram import DramSpec
from spec.energy import EnergyTable
from spec.errors import InputError
from spec.families import load_config
from spec.files import load_preset, load_preset_with, preset_names, preset_path, read_toml
from spec.model import ModelSpec
from spec.paper import PaperSpec
from spec.prices import PriceTable
from spec.system import EngineSpec, LinkSpec, SystemSpec

__all__ = [
    "design_names",
    "is_device",
    "is_folder",
    "load_area",
    "load_backbone",
    "load_design",
    "load_device",
    "load_dram",
    "load_energy",
    "load_engine",
    "load_entry",
    "load_link",
    "load_model",
    "load_paper",
    "load_prices",
    "load_sources",
    "load_system",
    "preset_names",
]


def load_model(name: str) -> ModelSpec:
    """Return the model of a preset's name, a TOML file, a Hugging Face ``config.json`` or a folder with one.

    Raises :class:`InputError` on bad input.
    """
    if is_folder(name):
        return load_config(Path(name) / "config.json")
    if name.endswith(".json"):
        return load_config(Path(name))
    return load_entry(name)[0]


def load_entry(name: str) -> tuple[ModelSpec, Entry]:
    """Return the model of a preset's name or a TOML file, and what the file says beside it."""
    model, tables = load_preset_with(ModelSpec, "models", name, "model", TABLES)
    return typing.cast("ModelSpec", model), Entry(**tables)


def load_backbone(name: str) -> Backbone | None:
    """Return what a preset or a TOML file says of a model outside its experts; None of any other model."""
    return None if name.endswith(".json") or is_folder(name) else load_entry(name)[1].backbone


def is_folder(name: str) -> bool:
    """Whether a model's name is a folder; a preset's name is none, whatever folders there are."""
    return name not in preset_names("models") and Path(name).is_dir()


def load_design(name: str, number_format: str | None = None) -> DesignSpec:
    """Return the design of a preset's name or of a TOML file; :class:`InputError` on bad input.

    ``number_format``, a value of :class:`spec.design.Format`, replaces the design's own, and with it the size
    of its groups.
    """
    if name in preset_names(PimDevice.PRESET_FOLDER):
        accelerators = ", ".join(preset_names("designs"))
        raise InputError(
            f"must be an accelerator with RTL ({accelerators}), not {name!r}, a device for 'pim gemv'",
            key="design",
        )
    design = typing.cast("DesignSpec", load_preset(DesignSpec, "designs", name, "design"))
    if number_format is None or design.format == number_format:
        return design
    try:
        return replace(design, format=Format(number_format), group=None)
    except InputError as error:
        raise error.at(file=name) from None


def load_device(name: str) -> PimDevice:
    """Return the device of a preset's name or of a TOML file; :class:`InputError` on bad input."""
    if name in preset_names("designs"):
        devices = ", ".join(preset_names(PimDevice.PRESET_FOLDER))
        raise InputError(
            f"must be a device for 'pim gemv' ({devices}), not {name!r}, an accelerator with RTL",
            key="design",
        )
    return typing.cast("PimDevice", load_preset(PimDevice, PimDevice.PRESET_FOLDER, name, "design"))


def is_device(name: str) -> bool:
    """Whether a design's name is a device's: a preset, or a TOML file that says where its units lie."""
    if not name.endswith(".toml"):
        return name in preset_names(PimDevice.PRESET_FOLDER)
    try:
        return "level" in tomllib.loads(Path(name).read_text())
    except (OSError, ValueError):
        return False


def design_names() -> list[str]:
    """Return the presets of accelerators and of devices."""
    return sorted([*preset_names("designs"), *preset_names(PimDevice.PRESET_FOLDER)])


def load_dram(name: str) -> DramSpec:
    """Return the DRAM standard of a preset's name or of a TOML file; :class:`InputError` on bad input."""
    return typing.cast("DramSpec", load_preset(DramSpec, DramSpec.PRESET_FOLDER, name, "standard"))


def load_area(name: str) -> AreaTable:
    """Return the area table of a preset's name or of a TOML file; :class:`InputError` on bad input."""
    return typing.cast("AreaTable", load_preset(AreaTable, AreaTable.PRESET_FOLDER, name, "area"))


def load_energy(name: str) -> EnergyTable:
    """Return the energy table of a preset's name or of a TOML file; :class:`InputError` on bad input."""
    return typing.cast("EnergyTable", load_preset(EnergyTable, EnergyTable.PRESET_FOLDER, name, "energy"))


def load_system(name: str) -> SystemSpec:
    """Return the system of a preset's name or of a TOML file; :class:`InputError` on bad input."""
    return typing.cast("SystemSpec", load_preset(SystemSpec, SystemSpec.PRESET_FOLDER, name, "system"))


def load_engine(name: str) -> EngineSpec:
    """Return the engine of a preset's name or of a TOML file; :class:`InputError` on bad input."""
    return typing.cast("EngineSpec", load_preset(EngineSpec, EngineSpec.PRESET_FOLDER, name, "host"))


def load_link(name: str) -> LinkSpec:
    """Return the link of a preset's name or of a TOML file; :class:`InputError` on bad input."""
    return typing.cast("LinkSpec", load_preset(LinkSpec, LinkSpec.PRESET_FOLDER, name, "link"))


def load_paper(name: str) -> PaperSpec:
    """Return the paper of a preset's name or of a TOML file; :class:`InputError` on bad input."""
    return typing.cast("PaperSpec", load_preset(PaperSpec, PaperSpec.PRESET_FOLDER, name, "paper"))


def load_prices(name: str) -> PriceTable:
    """Return the table of prices of a preset's name or of a TOML file; :class:`InputError` on bad input."""
    return typing.cast("PriceTable", load_preset(PriceTable, PriceTable.PRESET_FOLDER, name, "prices"))


def load_sources(kind: str, name: str) -> dict[str, dict[str, str]]:
    """Return a preset's ``[sources]`` table: dotted field name -> source and grade."""
    table = read_toml(preset_path(kind, name, kind.removesuffix("s")))
    return typing.cast("dict[str, dict[str, str]]", table.get("sources", {}))
