"""The page of what a design's and a model's TOML may say (``expertbank designs --page``)."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from spec.design import DesignSpec
from spec.keys import Key, keys_of
from spec.model import ModelSpec

DESIGN = """\
name = "mine"
engine = "fpga"
format = "w4a8"
stream_lanes = 8
window_tokens = 8
clock_hz = 100e6

[gate]
lanes = 16
logits_per_cycle = 2

[array]
rows = 4
cols = 16
act_lanes = 4
multiplier = "dual"

[memory]
width_bits = 128
latency_cycles = 20
"""
MODEL = """\
name = "mine"
d_model = 64

[gating]
num_experts = 16
top_k = 2

[ffn]
d_expert = 32
"""
PAGE = f"""\
# designs

What a design's TOML (`--design my.toml`) and a model's (`--model my.toml`) may say. Written by `make
designs-page` from the classes that read them (`spec/design.py`, `spec/model.py`); do not edit. A key with a
dot is in the table before it: `array.rows` is `rows` in `[array]`. What breaks a rule is one line with
file, key, rule and value, as is a key that there is not; `-` by default means that it has to be there.
Presets lie in `spec/designs` and `spec/models` (`expertbank designs`, `expertbank models`), and say where
their numbers come from in `[sources]`, which a file of yours need not have. A Hugging Face `config.json`
will do for a model, too ([families.md](families.md)).

A small array of your own with a model of your own (`test_the_examples_of_the_page_run`):

```toml
{DESIGN}```

```toml
{MODEL}```

```
expertbank sim --design design.toml --model model.toml --scale full --tokens 4 --engine model
expertbank verilog --design design.toml --model model.toml --scale full --out DIR
```

## A design

{{design}}

## A model

{{model}}
"""
COLUMNS = ("key", "values", "by default", "what")


def rows_of(cls: type[Any]) -> list[tuple[str, str, str, str]]:
    """Return a table's rows: keys that are described together have one."""
    rows = []
    for meaning, group in groupby(keys_of(cls), key=lambda key: key.meaning):
        keys: list[Key] = list(group)
        kinds = list(dict.fromkeys(key.kind for key in keys))
        defaults = [key.default or "-" for key in keys]
        rows.append(
            (
                ", ".join(f"`{key.name}`" for key in keys),
                "; ".join(kinds),
                ", ".join(defaults if len(set(defaults)) > 1 else defaults[:1]),
                meaning,
            )
        )
    return rows


def _table(cls: type[Any]) -> str:
    lines = [COLUMNS, ("---",) * len(COLUMNS), *rows_of(cls)]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def page() -> str:
    """Return ``docs/designs.md``. A key without a default has to be there."""
    return PAGE.format(design=_table(DesignSpec), model=_table(ModelSpec))
