"""The page of what a design's and a model's TOML may say."""

from __future__ import annotations

from pathlib import Path

import pytest

from sim import designs_page
from sim.cli import main
from spec.design import DesignSpec, Multiplier
from spec.errors import InputError
from spec.keys import keys_of
from spec.load import load_design, load_model
from spec.model import ModelSpec

PAGE = Path(__file__).parent.parent / "docs" / "designs.md"
TINY = Path(__file__).parent / "tiny.toml"


def test_the_page_is_what_the_classes_say(tmp_path, capsys):
    assert PAGE.read_text() == designs_page.page(), "run make designs-page"
    assert main(["designs", "--page", str(tmp_path / "page.md")]) == 0
    assert capsys.readouterr().out == ""
    assert (tmp_path / "page.md").read_text() == designs_page.page()
    assert main(["designs", "--page", str(tmp_path / "none" / "page.md")]) == 2
    line = f"{tmp_path / 'none' / 'page.md'}: page: cannot be written: No such file or directory"
    assert capsys.readouterr().err == f"expertbank: {line}\n"


def test_keys_are_those_that_files_have():
    names = {key.name for key in keys_of(DesignSpec)}
    assert {"name", "array.multiplier", "memory.burst_beats", "pim.dram", "deep"} <= names
    by_name = {key.name: key for key in keys_of(ModelSpec)}
    assert by_name["gating.top_k"].default == ""
    assert by_name["ffn.limit"].default == "`7.0`"
    assert by_name["gating.score"].kind == "`softmax`, `sigmoid`, `sqrt_softplus`, `none`"
    assert all(key.meaning for key in by_name.values())


def test_the_examples_of_the_page_run(tmp_path, capsys):
    files = {"design.toml": designs_page.DESIGN, "model.toml": designs_page.MODEL}
    for name, text in files.items():
        assert f"```toml\n{text}```" in PAGE.read_text()
        (tmp_path / name).write_text(text)
    design = load_design(str(tmp_path / "design.toml"))
    assert design.array is not None
    assert design.array.multiplier is Multiplier.DUAL
    assert load_model(str(tmp_path / "model.toml")).gating.num_experts == 16
    commands = [line for line in PAGE.read_text().splitlines() if line.startswith("expertbank ")]
    assert len(commands) == 2
    for command in commands:
        words = [str(tmp_path / word) if word in (*files, "DIR") else word for word in command.split()[1:]]
        assert main(words) == 0
    assert (tmp_path / "DIR/eb_mine.v").is_file()


@pytest.mark.parametrize("name", ["a b", "", "1st", "x" * 65, "a/b", "mod\u00e9le"])
def test_a_name_that_no_module_can_have_is_refused(name, tmp_path, capsys):
    """Verilog was written, and then could not be read."""
    file = tmp_path / "design.toml"
    file.write_text(TINY.read_text().replace('name = "tiny"', f'name = "{name}"'))
    with pytest.raises(InputError, match="name: must be a letter, then at most 63 letters"):
        load_design(str(file))
    out = tmp_path / "out"
    assert main(["verilog", "--design", str(file), "--model", "mixtral-8x7b", "--out", str(out)]) == 2
    assert capsys.readouterr().err.startswith(f"expertbank: {file}: name: must be a letter, ")
    assert not out.exists()
