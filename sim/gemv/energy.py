"""What a matrix-vector product costs: its commands times the figures of the device's table.

Events are those of :mod:`sim.energy`, counted for all channels from the commands of one. Results are read
from the device once: what of them lies in the banks is read like any data, and the host adds the sums that
are apart (of lanes, slices, chunks). The time that such reads take is not the kernel's, nor is its
background.
"""

from __future__ import annotations

from sim.energy import Counts, Energy, energy_of
from sim.gemv import barrier, lockstep, streamed
from sim.gemv.commands import Kind, timings
from sim.gemv.report import Run
from spec.device import Schedule, UnitLevel

PATHS = {
    UnitLevel.BANK: "dram_bank_bit",
    UnitLevel.BANK_PAIR: "dram_bank_bit",
    UnitLevel.BANK_GROUP: "dram_bank_group_bit",
    UnitLevel.LOGIC_DIE: "dram_logic_die_bit",
    UnitLevel.CONTROLLER: "dram_pin_bit",
}
"""Figure of a bit's way from a bank's column decoder to a unit."""
REGISTER_PATHS = {
    UnitLevel.BANK: "dram_register_bit",
    UnitLevel.BANK_PAIR: "dram_register_bit",
    UnitLevel.BANK_GROUP: "dram_group_register_bit",
    UnitLevel.LOGIC_DIE: "dram_die_register_bit",
    UnitLevel.CONTROLLER: "dram_die_register_bit",
}
"""Figure of the way of an input or a sum between a channel's controller and its units."""
ADDER_BITS = 32
"""A sum of an adder tree, read and written for each MAC of its bank."""


def gemv_energy(run: Run) -> Energy | None:
    """Return the energy of a product; None where the device has no table.

    Raises :class:`spec.errors.InputError` where the table lacks a figure.
    """
    device = run.device
    if device.energy is None:
        return None
    seconds = run.cycles * device.timed.clock_ps * 1e-12
    return energy_of(device.energy, gemv_counts(run), seconds)


def gemv_counts(run: Run) -> Counts:
    """Return the events of a product, of all channels."""
    device, product = run.device, run.product
    dram, channels = device.timed, product.channels
    counts = {kind: int(run.counts[kind]) for kind in Kind}
    burst_bits = 8 * dram.burst_bytes
    lane = _lane_events(run)
    mac_bits = counts[Kind.MAC] * lane["banks"] * burst_bits
    array_bits = lane["array_bursts"] * burst_bits
    events = {
        ("mac_int8" if device.element_bits == 8 else "mac_bf16"): float(channels * lane["macs"]),
        "sram_bit": float(channels * lane["sram_bits"]),
        "link_bit": float(_link_bits(run)),
        "dram_activate": float(channels * lane["opened"]),
        "dram_cell_bit": float(channels * (mac_bits + array_bits)),
        PATHS[device.level]: float(channels * mac_bits),
        REGISTER_PATHS[device.level]: float(channels * lane["register_bits"]),
        "dram_refresh": float(channels * counts[Kind.REF]),
        "dram_background": float(channels),
        "host_add": float(channels * lane["additions"]),
    }
    if array_bits:
        # Wherever the units are, what lies in a bank comes from the controller.
        events["dram_register_bit"] = events.get("dram_register_bit", 0.0) + channels * array_bits
    return events


def _link_bits(run: Run) -> int:
    """Return the bits of inputs and results, each once over the host's link."""
    product, device = run.product, run.device
    return product.batch * (product.cols * device.element_bits + product.rows * device.result_bits)


def _lane_events(run: Run) -> dict[str, int]:
    """Return what depends on the schedule, of one channel.

    ``banks`` : that a MAC command reads. ``opened`` : banks opened. ``macs`` : products, padding included.
    ``register_bits`` : between controller and units. ``array_bursts`` : read from or written to a bank apart
    from MACs. ``sram_bits`` : of the units' registers and buffers. ``additions`` : of the host.
    """
    device, product, dram = run.device, run.product, run.device.timed
    counts = {kind: int(run.counts[kind]) for kind in Kind}
    burst_bits = 8 * dram.burst_bytes
    if device.schedule is Schedule.PINS:
        macs = counts[Kind.MAC] * device.burst_elements
        return {
            "banks": 1,
            "opened": counts[Kind.ACT],
            # Each pass but the last has as many tokens as may share a burst.
            "macs": macs * product.batch // -(-product.batch // device.tokens_per_burst),
            "register_bits": 0,
            "array_bursts": 0,
            "sram_bits": macs * (device.element_bits + 2 * ADDER_BITS // device.burst_elements),
            "additions": 0,
        }
    if device.schedule is Schedule.LOCKSTEP:
        return _lockstep_events(run, counts, burst_bits)
    return _pair_events(run, counts, burst_bits)


def _lockstep_events(run: Run, counts: dict[Kind, int], burst_bits: int) -> dict[str, int]:
    device, product, dram = run.device, run.product, run.device.timed
    banks = device.banks_per_mac
    layout = lockstep.layout(device, product, run.options.limits)
    steps = layout.outputs * layout.bursts * product.batch  # of a bank: a burst of weights and one of inputs
    # The partial sums of a bank, and the results that the host makes of them.
    chunks = -(-layout.bursts // (layout.entries // layout.tokens))
    partial = product.batch * layout.outputs * banks * chunks
    results = layout.outputs * banks * product.batch // layout.slices
    accesses = counts[Kind.REG] + counts[Kind.RD]
    return {
        "banks": banks,
        "opened": counts[Kind.ACT] * (banks if dram.all_bank_exempt else 1),
        "macs": steps * banks * device.burst_elements,
        "register_bits": accesses * burst_bits,
        "array_bursts": 0,
        "sram_bits": (
            steps * (device.units * burst_bits + 2 * banks * ADDER_BITS)
            + counts[Kind.REG] * device.units * burst_bits
            + counts[Kind.RD] * burst_bits
        ),
        "additions": partial - results,
    }


def _pair_events(run: Run, counts: dict[Kind, int], burst_bits: int) -> dict[str, int]:
    device, product, dram = run.device, run.product, run.device.timed
    units, T = device.units, timings(dram, run.options.limits)
    if device.schedule is Schedule.BARRIER:
        singles = barrier.single_acts(device, product, T, refresh=run.options.refresh)
        outputs = barrier.tiles(device, product)[0] * device.output_registers
        steps, slices = counts[Kind.MAC], 1
        # Four writes to single banks for the mode; all others but results and two more go to registers.
        results = outputs * product.batch
        registers = counts[Kind.WR] - 4 - results - 2
        array = counts[Kind.RD] + 4 + (results + 2) * units
    else:
        layout = streamed.layout(device, product, T, run.options.additions)
        singles, slices, outputs = 4, layout.slices, layout.outputs
        steps, results = outputs * layout.bursts * product.batch, outputs * product.batch
        registers = counts[Kind.REG]
        array = 4 + (counts[Kind.WR] - 4) * units
    sums = results * units * device.lanes
    return {
        "banks": units,
        "opened": singles + (counts[Kind.ACT] - singles) * units,
        "macs": steps * units * device.lanes,
        "register_bits": registers * burst_bits,
        # The results once more, as they are read.
        "array_bursts": array + results * units,
        # For each burst of weights one of inputs, and one of sums read and written.
        "sram_bits": units * burst_bits * (3 * steps + registers + results),
        "additions": sums - sums // (device.lanes * slices),
    }


def as_text(energy: Energy) -> str:
    """Return an energy and its range in a line."""
    return f"{energy.total:.4g} J ({energy.low:.4g} to {energy.high:.4g} by table {energy.table})"
