"""``expertbank pim``: products on MAC units in DRAM, by their command schedules."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sim.commands.output import json_option, print_json, print_table
from sim.progress import tell
from spec.errors import require, require_range
from spec.load import load_device
from spec.program import ALL

if TYPE_CHECKING:
    from sim.gemv.commands import Product
    from sim.gemv.report import Options
    from spec.device import PimDevice

SHOWN = 20


@click.group("pim")
def command() -> None:
    """Matrix-vector products on MAC units in DRAM."""


@command.command("gemv")
@click.option(
    "--design", "design_name", required=True, help="Device with a command schedule; preset or TOML."
)
@click.option("--channels", type=int, required=True, help="(Pseudo-)channels that compute together.")
@click.option("--rows", type=int, required=True, help="Outputs.")
@click.option("--cols", type=int, required=True, help="Inputs.")
@click.option("--batch", type=int, default=1, show_default=True, help="Vectors.")
@click.option("--no-refresh", is_flag=True, help="Leave refreshes out.")
@click.option("--mac-gap", type=int, default=1, help="Least cycles from an all-bank MAC to the next.")
@click.option("--act-gap", type=int, default=1, help="Least cycles from an all-bank ACT to the next.")
@click.option("--hot", is_flag=True, help="Refreshes are due twice as often.")
@click.option(
    "--without",
    multiple=True,
    type=click.Choice(["prefetch", "register-path", "split", "unpadded"]),
    help="Leave an addition of the schedule 'streamed' out; repeatable.",
)
@click.option("--ablation", "ablate", is_flag=True, help="Also cycles without each addition of the schedule.")
@click.option("--end-to-end", "surround", is_flag=True, help="Also placement, read-back and reduction.")
@click.option("--adders", type=int, help="Of the host, per channel (default: 16); needs --end-to-end.")
@click.option("--interruptions", type=int, help="By ordinary traffic (default: 0); needs --end-to-end.")
@click.option(
    "--engine",
    type=click.Choice(["model", "rtl", "both"]),
    default="model",
    show_default=True,
    help="Also run a channel's exported Verilog with random numbers; 'both' compares its commands too.",
)
@click.option("--channel", type=int, help="Of the channels, which one the Verilog is (default: 0).")
@click.option("--seed", type=int, help="Of the random numbers (default: 0).")
@click.option("--secded", is_flag=True, help="In the Verilog the banks hold 8 check bits with 64 of data.")
@click.option("--flips", type=int, help="Words that are read in which a bit is flipped; needs --secded.")
@click.option("--double-flips", type=int, help="Words that are read in which two are; needs --secded.")
@click.option("--check", "check", is_flag=True, help="Replay the commands against the DRAM's constraints.")
@click.option(
    "--log", "log_file", type=click.Path(path_type=Path, dir_okay=False), help="Write the commands."
)
@json_option
def gemv_command(
    design_name: str,
    channels: int,
    rows: int,
    cols: int,
    batch: int,
    no_refresh: bool,
    mac_gap: int,
    act_gap: int,
    hot: bool,
    without: tuple[str, ...],
    ablate: bool,
    surround: bool,
    adders: int | None,
    interruptions: int | None,
    engine: str,
    channel: int | None,
    seed: int | None,
    secded: bool,
    flips: int | None,
    double_flips: int | None,
    check: bool,
    log_file: Path | None,
    as_json: bool,
) -> int:
    """Cycles and commands of a matrix-vector product y = W x, W of rows x cols, on a device.

    Commands are those of one channel; all have the same. Exit status 1 if --check finds a violation, or the
    Verilog differs from golden or, with --engine both, from the model.
    """
    from sim.gemv.commands import PowerLimits, Product
    from sim.gemv.energy import as_text, gemv_energy
    from sim.gemv.report import (
        Options,
        ablation,
        added_area_um2,
        added_bits,
        end_to_end,
        log_text,
        run_gemv,
    )
    from sim.toolchain import check_parent, write_atomically

    require(surround or adders is None, "needs --end-to-end", key="adders")
    require(surround or interruptions is None, "needs --end-to-end", key="interruptions")
    of_rtl = {"channel": channel, "seed": seed, "secded": secded or None}
    of_secded = {"flips": flips, "double_flips": double_flips}
    for key, value in (of_rtl | of_secded).items():
        require(engine != "model" or value is None, "needs --engine rtl or both", key=key)
    for key, value in of_secded.items():
        require(secded or value is None, "needs --secded", key=key)
    device = load_device(design_name)
    dram = device.timed
    product = Product(rows=rows, cols=cols, channels=channels, batch=batch)
    left_out = {name.replace("-", "_"): False for name in without}
    options = Options(
        limits=PowerLimits(mac_gap=mac_gap, act_gap=act_gap, hot=hot),
        refresh=not no_refresh,
        additions=replace(ALL, **left_out),
    )
    if log_file is not None:
        check_parent(log_file, "log")
    run_gemv(device, Product(rows=1, cols=1, channels=1), options)  # loads what is compiled
    start = time.perf_counter()
    run = run_gemv(device, product, options)
    wall = time.perf_counter() - start
    energy = gemv_energy(run)
    result = {
        "design": device.name,
        "channels": channels,
        "rows": rows,
        "cols": cols,
        "batch": batch,
        "cycles": run.cycles,
        "seconds": run.cycles * dram.clock_ps * 1e-12,
        "macs": product.macs,
        "utilisation": run.utilisation,
        "commands": run.commands,
        "energy_j": None if energy is None else energy.total,
        "energy": None if energy is None else energy.as_json(),
        "wall_s": wall,
    }
    if surround:
        given = {"adders": adders, "interruptions": interruptions}
        result["end_to_end"] = end_to_end(
            run, **{name: value for name, value in given.items() if value is not None}
        )
    if ablate:
        result["ablation"] = ablation(device, product, options)
        result["added_bits"] = added_bits(device)
        areas = added_area_um2(device)
        result["added_area_um2"] = areas
    differs = ""
    if engine != "model":
        bits = {key: value or 0 for key, value in of_secded.items()}
        result["rtl"], differs = _run_rtl(
            device, product, options, engine, channel=channel or 0, seed=seed or 0, secded=secded, **bits
        )
    found: Sequence[object] = []
    if check or log_file is not None:
        logged = run_gemv(device, product, options, log=True)
        if check:
            found = logged.check()
            result["violations"] = len(found)
            result["first_violations"] = [str(one) for one in found[:SHOWN]]
        if log_file is not None:
            write_atomically(log_file, log_text(logged))
    if as_json:
        print_json(result)
    else:
        shown = [(name, value) for name, value in result.items() if not isinstance(value, dict | list)]
        shown = [(name, value) for name, value in shown if not name.startswith("energy")]
        unknown = "not known: the device names no table"
        shown.append(("energy", unknown if energy is None else as_text(energy)))
        if energy is not None:
            shown += [(f"energy: {name}", joules) for name, joules in energy.components.items()]
        if ablate:
            shown += [
                (f"added area, um2: {name}", f"{area['value']:.0f} ({area['low']:.0f} to {area['high']:.0f})")
                for name, area in areas.items()
            ]
        for part in ("commands", "end_to_end", "ablation", "added_bits", "rtl"):
            table = result.get(part)
            if isinstance(table, dict):
                shown += [(f"{part.replace('_', ' ')}: {name}", value) for name, value in table.items()]
        print_table(("what", "value"), shown)
        for one in found[:SHOWN]:
            click.echo(str(one))
        if differs:
            click.echo(differs)
    return 1 if found or differs else 0


@command.command("area")
@click.option("--design", "design_name", required=True, help="Device of schedule streamed; preset or TOML.")
@json_option
def area_command(design_name: str, as_json: bool) -> int:
    """What the schedule's additions cost: cells of a channel's Verilog with each and without it, by Yosys.

    Minutes; results are kept in build/cache. MAC units and memories, the same in all, are not in it.
    """
    from dataclasses import asdict

    from sim.gemv.area import costs

    found = costs(load_device(design_name))
    everything = found["all"]
    if as_json:
        cells = {name: asdict(cost) for name, cost in found.items()}
        print_json({"design": design_name, "variants": cells})
        return 0
    rows = []
    for name, cost in found.items():
        less = everything - cost
        added = ("", "", "") if name == "all" else (less.flip_flops, less.gates, f"{less.um2:.0f}")
        rows.append((name, cost.flip_flops, cost.gates, f"{cost.um2:.0f}", *added))
    print_table(("channel", "FF", "gates", "um2", "FF saved", "gates saved", "um2 saved"), rows)
    return 0


def _run_rtl(
    device: PimDevice,
    product: Product,
    options: Options,
    engine: str,
    *,
    channel: int,
    seed: int,
    secded: bool,
    flips: int,
    double_flips: int,
) -> tuple[dict[str, object], str]:
    """Return what the exported Verilog of a channel shows, and where it differs first, or nothing."""
    from sim.gemv.program import bench_of, prepare, run_rtl
    from sim.rtlsim import DEFAULT_ROOT, check_ready

    require_range("channel", channel, 0, product.channels - 1)
    require_range("seed", seed, 0, (1 << 63) - 1)
    for key, value in (("flips", flips), ("double_flips", double_flips)):
        require_range(key, value, 0, 1 << 20)
    job = prepare(
        device,
        product,
        options,
        channel=channel,
        seed=seed,
        secded=secded,
        flips=flips,
        double_flips=double_flips,
    )
    check_ready()
    progress = tell("pim gemv")
    progress("builds the channel's bench, unless it is there")
    bench = bench_of(device, DEFAULT_ROOT, secded=secded, additions=options.additions)
    progress("runs the product through the Verilog")
    run = run_rtl(bench, job)
    shown: dict[str, object] = {
        "cycles": run.cycles,
        "commands": len(run.log),
        "mismatches": run.mismatches,
        "simulated_cycles_per_second": run.result.cycles_per_second,
    }
    if job.planted is not None:
        shown |= {"planted": job.planted.single, "planted_double": job.planted.double}
        shown |= {"corrected": run.corrected, "uncorrected": run.uncorrected}
    differs = run.divergence(bench, DEFAULT_ROOT / "waves", cycles=engine == "both")
    if differs:
        shown["divergence"] = differs
    return shown, differs
