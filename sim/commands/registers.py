"""``expertbank registers``: the registers at the AXI4-Lite port of a top."""

from __future__ import annotations

from pathlib import Path

import click

from sim.commands.output import json_option, print_json, print_table, write_page
from spec.registers import Top, register_map


@click.command("registers")
@click.option(
    "--top",
    "top_name",
    type=click.Choice([top.value for top in Top]),
    default=Top.FPGA.value,
    show_default=True,
    help="Which top.",
)
@click.option("--int8", is_flag=True, help="Of a design whose format is int8 or w4a8.")
@click.option(
    "--page", "page_file", type=click.Path(path_type=Path), help="Write the page of all tops to this file."
)
@json_option
def command(top_name: str, int8: bool, page_file: Path | None, as_json: bool) -> int:
    """List a top's registers: address, access, what they are.

    C header, Python constants and SystemRDL of a top come with its Verilog: 'verilog --bus axi'.
    """
    from sim import register_map as files

    if page_file is not None:
        write_page(page_file, files.page())
    registers = register_map(Top(top_name), int8=int8)
    if as_json:
        print_json({"registers": {register.name: register.address for register in registers}})
    elif page_file is None:
        rows = [
            (register.name, f"0x{register.address:03X}", register.access.value, register.meaning)
            for register in registers
        ]
        print_table(("register", "address", "access", "meaning"), rows)
    return 0
