"""Which outputs of a top an input reaches in the same cycle, asked of Yosys on the exported Verilog.

AXI allows none on its ports (IHI 0022, A3.1: no combinational paths between inputs and outputs), so that two
sides that wait for each other cannot lock, nor two parts that are right by themselves form a loop.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from sim.rtlsim import file_list, ports_of
from tests.formal.model import YOSYS, run

SCRIPT = """
read_verilog {files}
hierarchy -top {top}
proc
flatten
opt_clean
cd {top}
select -write reached.txt i:* %coe* o:* %i
"""


def reached_outputs(directory: Path, name: str) -> set[str]:
    """Return the outputs of ``eb_<name>`` as exported into ``directory`` that depend on an input at once."""
    files, top = file_list(directory, name), ports_of(directory, name)["top"]
    with tempfile.TemporaryDirectory(prefix="expertbank-") as place:
        folder = Path(place)
        for file in files:
            shutil.copy(file, folder)
        (folder / "script.ys").write_text(SCRIPT.format(files=" ".join(file.name for file in files), top=top))
        run(YOSYS, ["-q", "-s", "script.ys"], folder)
        return {line.rpartition("/")[2] for line in (folder / "reached.txt").read_text().split()}
