"""``expertbank claims``: the claims page, measured anew."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from sim.commands.output import json_option, print_json, print_table
from sim.progress import tell, track
from spec.errors import InputError

MARK = "claims"


@click.command("claims")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the page to this file.")
@click.option(
    "--headlines",
    type=click.Path(path_type=Path, dir_okay=False),
    help="With --out: put the first claims between this file's marks, too.",
)
@click.option(
    "--only",
    multiple=True,
    metavar="LINK",
    help="Only this link of the chain (repeatable); with --out the page's others stay as they are.",
)
@click.option("--no-verilog", is_flag=True, help="Only the links that run no Verilog.")
@click.option(
    "--vectors",
    type=click.Path(path_type=Path),
    default=Path("tests/data"),
    show_default=True,
    help="Folder of the recorded layers.",
)
@json_option
def command(
    out: Path | None,
    headlines: Path | None,
    only: tuple[str, ...],
    no_verilog: bool,
    vectors: Path,
    as_json: bool,
) -> int:
    """Measure what is claimed of this repository, and print it or write it as a page.

    Runs recorded layers and presets at scale 64 through the Verilog of both accelerators, in all formats;
    builds that are not cached take a minute or two each. Exit status 1 if a claim does not hold.
    """
    from sim.claims import page
    from sim.claims.links import LINKS
    from sim.claims.measurement import Measurement
    from sim.marked import marked, read_page, with_marked
    from sim.rtlsim import DEFAULT_ROOT
    from sim.toolchain import write_atomically

    names = [producer.name for producer in LINKS]
    for name in only:
        if name not in names:
            raise InputError(f"must be one of {', '.join(names)}, not {name!r}", key="only")
    if out is not None and no_verilog:
        raise InputError("writes what Verilog says, too; leave out --no-verilog", key="out")
    if headlines is not None:
        if out is None:
            raise InputError("needs --out", key="headlines")
        with_marked(headlines, MARK, [])  # before minutes of work: are the marks there?
    before = None
    if out is not None and only:
        before = read_page(out)
        for name in only:
            page.rows_on(before, name)
    if out is not None and not out.resolve().parent.is_dir():
        raise InputError("is in a folder that does not exist", file=out, key="out")

    progress = tell("claims")
    measurement = Measurement(vectors, DEFAULT_ROOT, progress)
    measurement.paths()  # before anything is told
    links = []
    chosen = [
        producer
        for producer in LINKS
        if (not only or producer.name in only) and not (no_verilog and producer.needs_verilog)
    ]
    for producer in track(chosen, lambda producer: f"claims: link {producer.name}"):
        progress(f"link {producer.name}")
        links.append(producer.measure(measurement))
    claims = [(link.name, claim) for link in links for claim in link.claims]
    failed = sum(not claim.ok for _, claim in claims)
    texts = {}  # all of them before any is written
    if out is not None:
        texts[out] = page.page(links) if before is None else page.page_with(links, before)
    if headlines is not None:
        lines = page.headlines(links)
        if before is not None:
            _, table, _ = marked(read_page(headlines), MARK, file=headlines)
            lines = page.headlines_with(links, table, before)
        texts[headlines] = with_marked(headlines, MARK, lines)
    for file, text in texts.items():
        write_atomically(file, text)
    if as_json:
        print_json(
            {
                "failed": failed,
                "claims": [{"link": name, **asdict(claim)} for name, claim in claims],
                "page": str(out) if out else None,
            }
        )
    else:
        rows = [
            (claim.text, name, claim.measured, claim.bound, "yes" if claim.ok else "NO")
            for name, claim in claims
        ]
        print_table((page.SUMMARY[1], page.SUMMARY[0], *page.SUMMARY[2:5]), rows)
        click.echo(f"{len(claims) - failed} hold, {failed} do not")
    return 1 if failed else 0
