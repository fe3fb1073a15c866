"""``expertbank dram stream``, ``trace`` and ``check --format``: what they print, read, write and refuse."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.cli import main
from sim.dram.engine import RefreshMode
from sim.dram.stream import pattern_requests, run_requests
from sim.dram.traces import (
    MAPPINGS,
    Form,
    Mapping,
    commands_header,
    commands_lines,
    read_commands,
    read_requests,
    requests_lines,
)
from spec.errors import InputError
from spec.load import load_dram, preset_names
from tests.test_dram_channel import REFERENCE

STANDARDS = preset_names("dram")
POINT = next(point for point in REFERENCE["points"] if point["requests"] == 2000)


def said(capsys, *arguments: str) -> dict:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def stream(standard: str = "hbm2-2000", pattern: str = "random", requests: str = "500") -> list[str]:
    return ["dram", "stream", "--standard", standard, "--pattern", pattern, "--requests", requests]


# What is printed.


def test_a_stream_is_told(capsys) -> None:
    found = said(capsys, *stream(POINT["standard"], POINT["pattern"], "2000"))
    assert found["cycles"] == POINT["cycles"]
    assert isinstance(found["cycles"], int)
    assert (found["requests"], found["served"], found["violations"]) == (2000, POINT["served"], 0)
    assert found["cycles_per_request"] == POINT["cycles"] / POINT["served"]
    assert found["bandwidth_fraction"] == pytest.approx(POINT["bandwidth_fraction"], abs=5e-5)
    assert found["commands"]["RD"] == POINT["served"]
    assert found["refresh"] == "all-bank"
    assert said(capsys, *stream(), "--no-refresh")["refresh"] == "none"
    same, other = (said(capsys, *stream(), "--seed", seed)["cycles"] for seed in ("12345", "8"))
    assert (same == said(capsys, *stream())["cycles"]) and same != other
    assert said(capsys, *stream(), "--refresh", "per-bank")["commands"]["REF_BANK"] > 0
    assert main([*stream("hbm3-6400"), "--policy", "closed"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^DRAM rules broken +0$", text, re.MULTILINE)
    assert re.search(r"^cycles per request +\d\.\d{4}$", text, re.MULTILINE)


def test_half_a_clock_is_told(capsys) -> None:
    """HBM3's tick is half a clock."""
    cycles = [said(capsys, *stream("hbm3-6400", requests=str(n)))["cycles"] for n in range(100, 110)]
    assert all(cycle * 2 == int(cycle * 2) for cycle in cycles)
    assert any(isinstance(cycle, float) for cycle in cycles)


def test_a_stream_that_is_over_at_once(capsys) -> None:
    """All requests fit into the queue: no time has passed, or none has been served."""
    found = said(capsys, *stream(requests="1"))
    assert (found["cycles"], found["served"]) == (0, 0)
    assert found["cycles_per_request"] is None
    assert found["bandwidth_fraction"] is None
    assert main(stream(requests="1")) == 0
    assert re.search(r"^cycles per request +-$", capsys.readouterr().out, re.MULTILINE)


def test_a_run_that_is_not_checked_says_so(capsys, tmp_path) -> None:
    """The same clocks and commands; nothing is said of rules."""
    checked, other = (said(capsys, *stream(), *more) for more in ((), ("--no-check",)))
    assert (checked["violations"], checked["first_violations"]) == (0, [])
    assert other["violations"] is other["first_violations"] is None
    assert [other[name] for name in ("cycles", "served", "commands")] == [
        checked[name] for name in ("cycles", "served", "commands")
    ]
    requests = tmp_path / "f"
    requests.write_text("LD 0x40\n")
    assert said(capsys, "dram", "trace", str(requests), *TRACE[3:], "--no-check")["violations"] is None
    assert main([*stream(), "--no-check"]) == 0
    assert re.search(r"^DRAM rules broken +-$", capsys.readouterr().out, re.MULTILINE)


def test_a_smaller_queue_is_slower(capsys) -> None:
    cycles = {queue: said(capsys, *stream(), "--queue", str(queue))["cycles"] for queue in (8, 32)}
    assert cycles[8] > cycles[32]


# Files.


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("name", STANDARDS)
def test_commands_are_read_as_they_were_written(name: str, form: Form, tmp_path) -> None:
    dram, path = load_dram(name), tmp_path / "commands"
    parts: list = []
    lines = commands_lines(dram, form)
    with path.open("w") as file:
        file.write(commands_header(dram, form))
        run_requests(
            dram,
            pattern_requests(dram, "random", 3000),
            sinks=(lambda log: parts.append(log.copy()), lambda log: file.writelines(lines(log))),
        )
    assert np.array_equal(read_commands(path, dram, form), np.concatenate(parts))


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("name", STANDARDS)
def test_requests_are_read_as_they_were_written(name: str, form: Form, tmp_path) -> None:
    dram, path = load_dram(name), tmp_path / "requests"
    requests, mapping = pattern_requests(dram, "random", 300), Mapping(dram, MAPPINGS[form])
    path.write_text("".join(requests_lines(dram, requests, form, mapping)))
    back = read_requests(path, dram, form, mapping)
    assert back.total == 300
    parts = []
    for one in (pattern_requests(dram, "random", 300), back):
        banks, keys = np.empty(300, dtype=np.int64), np.empty(300, dtype=np.int64)
        one.fill(0, banks, keys)
        parts.append((banks, keys))
    assert np.array_equal(parts[0], parts[1])
    ticks = 2 if name.startswith("hbm3") else 1
    expected = [ticks * number for number in range(300)] if form is Form.DRAMSIM3 else []
    assert back.arrivals.tolist() == expected


def test_the_formats_of_both_simulators(tmp_path) -> None:
    """Lines as their documents show them."""
    dram = load_dram("ddr4-3200")
    for form, text in (
        (Form.RAMULATOR, "LD 0x1000040\nST 64\nR 0,0,1,2,3,4\nW 0,0,3,3,65535,127\n"),
        (Form.DRAMSIM3, "0x1000040 READ 0\n0x40 WRITE 7\n"),
    ):
        path = tmp_path / form
        path.write_text(text)
        mapping = Mapping(dram, MAPPINGS[form])
        requests = read_requests(path, dram, form, mapping)
        banks, keys = np.empty(requests.total, dtype=np.int64), np.empty(requests.total, dtype=np.int64)
        requests.fill(0, banks, keys)
        found = list(zip(banks.tolist(), (keys >> 20).tolist(), (keys >> 1 & 0x7FFFF).tolist(), strict=True))
        if form is Form.RAMULATOR:
            # Column 7 bits, bank group 2, bank 2, row: 0x1000040 / 64 = 0b1_000_0000_0000_0000_0001.
            assert found == [(0, 128, 1), (0, 0, 1), (1 * 4 + 2, 3, 4), (15, 65535, 127)]
            assert (keys & 1).tolist() == [0, 1, 0, 1]
        else:
            # Bank group 2 bits, column 7... as rochrababgco: column, bank group, bank, rank, channel, row.
            assert found == [(0, 128, 1), (0, 0, 1)]
            assert requests.arrivals.tolist() == [0, 7]


@pytest.mark.parametrize("form", Form)
def test_a_stream_through_files(form: Form, capsys, tmp_path, monkeypatch) -> None:
    """Requests and commands are written; read back, they give the same commands, and break no rule."""
    monkeypatch.chdir(tmp_path)
    files = ["--format", form.value, "--commands", "commands", "--trace", "requests"]
    written = said(capsys, *stream("lpddr5-6400", requests="400"), *files)
    checked = said(capsys, "dram", "check", "commands", "--standard", "lpddr5-6400", "--format", form.value)
    assert checked["commands"] == written["commands"]
    assert checked["violations"] == 0
    again = ["--standard", "lpddr5-6400", "--format", form.value, "--commands", "again"]
    drained = said(capsys, "dram", "trace", "requests", *again)
    assert drained["served"] == drained["requests"] == 400
    early = said(capsys, "dram", "trace", "requests", *again[:4], "--no-drain")
    if form is Form.RAMULATOR:
        # Offered like those of a stream, they end like one.
        assert (early["cycles"], early["served"]) == (written["cycles"], written["served"])
    assert early["cycles"] < drained["cycles"]
    first = (tmp_path / "commands").read_text().splitlines()
    assert (tmp_path / "again").read_text().splitlines()[: len(first)] == first
    assert said(capsys, *stream("lpddr5-6400", requests="400"))["cycles"] == written["cycles"]


@pytest.mark.parametrize("form", Form)
def test_a_spoiled_file_is_seen(form: Form, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*stream("ddr5-4800"), "--format", form.value, "--commands", "c", "--no-refresh"]) == 0
    lines = Path("c").read_text().splitlines(keepends=True)
    place = next(number for number, line in enumerate(lines) if re.search(r"\bRD\b|\bread\b", line))
    clock = re.match(r"\d+", lines[place])
    assert clock
    # The line stays where it is: files are put in order of time.
    lines[place] = str(int(clock[0]) - 1) + lines[place][clock.end() :]
    Path("c").write_text("".join(lines))
    capsys.readouterr()
    command = ["dram", "check", "c", "--standard", "ddr5-4800", "--format", form.value, "--refresh", "none"]
    assert main([*command, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["violations"] >= 1
    assert "tRCD" in [one["rule"] for one in found["first_violations"]]
    assert main(command) == 1
    assert re.search(
        r"^tRCD: broken 1 times, first at tick \d+: 33, at least 34$", capsys.readouterr().out, re.M
    )


@given(
    st.integers(0, 2**33), st.sampled_from(STANDARDS), st.permutations(["ro", "ba", "bg", "ra", "ch", "co"])
)
def test_an_address_is_split_and_joined(address: int, name: str, fields: list[str]) -> None:
    dram = load_dram(name)
    mapping = Mapping(dram, "".join(fields))
    address %= mapping.num_bytes
    bank, row, column = mapping.split(address)
    assert 0 <= bank < dram.pseudo_channels * dram.num_banks
    assert mapping.join(bank, row, column) == address // dram.burst_bytes * dram.burst_bytes


# Bad input.

KNOWN = ", ".join(STANDARDS)
CHECK = ["dram", "check", "f", "--standard", "hbm2-2000", "--format", "ramulator"]
TRACE = ["dram", "trace", "f", "--standard", "hbm2-2000"]
REFUSED = {
    "standard": (stream("hbm9"), rf"standard: is neither a preset \({KNOWN}\) nor a \.toml file: 'hbm9'"),
    "pattern": (
        stream(pattern="zigzag"),
        "pattern: must be one of seq_bankfast, seq_colfast, rowthrash, random, not 'zigzag'",
    ),
    "no requests": (stream(requests="0"), r"requests: must be in 1\.\.4294967296, not 0"),
    "fewer": (stream(requests="-5"), r"requests: must be in 1\.\.4294967296, not -5"),
    "too many": (stream(requests="4294967297"), r"requests: must be in 1\.\.4294967296, not 4294967297"),
    "no number": (stream(requests="x"), "Invalid value for '--requests': 'x' is not a valid integer."),
    "too many for a file": (
        [*stream(requests="16777217"), "--commands", "c"],
        r"requests: must be in 1\.\.16777216, not 16777217",
    ),
    "seed": ([*stream(), "--seed", "-1"], r"seed: must be in 0\.\.18446744073709551615, not -1"),
    "seed of another": (
        [*stream(pattern="rowthrash"), "--seed", "1"],
        "seed: is of pattern random, not of rowthrash",
    ),
    "queue": ([*stream(), "--queue", "0"], r"queue: must be in 1\.\.64, not 0"),
    "policy": ([*stream(), "--policy", "ajar"], "policy: must be one of open, closed, not 'ajar'"),
    "refresh": (
        [*stream(), "--refresh", "never"],
        "refresh: must be one of none, all-bank, per-bank, not 'never'",
    ),
    "both": (
        [*stream(), "--refresh", "none", "--no-refresh"],
        "refresh: cannot be combined with --no-refresh",
    ),
    "no refresh of a bank": (
        [*stream("ddr4-2400"), "--refresh", "per-bank"],
        (
            "refresh: must be all-bank or none for ddr4-2400, whose banks are not refreshed one by one;"
            " not per-bank"
        ),
    ),
    "format": ([*stream(), "--format", "csv"], "format: must be one of ramulator, dramsim3, not 'csv'"),
    "mapping": (
        [*stream(), "--mapping", "rorobabgraco"],
        "mapping: must have each of ro, ba, bg, ra, ch, co once, not 'rorobabgraco'",
    ),
    "folder": ([*stream(), "--commands", "a/c"], "a/c: commands: is in a folder that does not exist"),
    "folder of requests": ([*stream(), "--trace", "a/c"], "a/c: trace: is in a folder that does not exist"),
    "missing": (TRACE, "f: cannot be read: No such file or directory"),
    "missing commands": (CHECK, "f: cannot be read: No such file or directory"),
    "no standard": (["dram", "check", "f", "--format", "ramulator"], "format: needs --standard"),
    "no format": (["dram", "check", "f", "--refresh", "none"], "refresh: needs --format"),
}


def refused(capsys, place: Path, message: str, arguments: list[str]) -> None:
    before = sorted(place.rglob("*"))
    for flags in ([], ["--json"]):
        assert main([*arguments, *flags]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert re.fullmatch(rf"expertbank: {message}\n", err), err
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_bad_options_are_one_line(capsys, tmp_path, monkeypatch, arguments, message) -> None:
    monkeypatch.chdir(tmp_path)
    refused(capsys, tmp_path, message, arguments)


HEADER = "clock,command,Channel,PseudoChannel,BankGroup,Bank,Row,Column,type,source"
SIM3 = ["--format", "dramsim3"]
SIZE = "must be below 0x80000000, the size of hbm2-2000, not 0x80000000"
BAD_FILES = {
    "empty": (TRACE, "", "f: holds no request"),
    "empty, dramsim3": ([*TRACE, "--format", "dramsim3"], "", "f: holds no request"),
    "empty first line": (TRACE, "\nLD 0x40\n", "f: line 1: must have 2 fields, not 0"),
    "empty line": (TRACE, "LD 0x40\n\nLD 0x40\n", "f: line 2: must have 2 fields, not 0"),
    "word": (TRACE, "LD 0x40\nLOAD 0x40\n", "f: line 2: request: must be one of LD, ST, R, W, not 'LOAD'"),
    "address": (
        TRACE,
        "LD 0xg\n",
        "f: line 1: address: must be a number, or 0x and a hexadecimal one, not '0xg'",
    ),
    "negative": (
        TRACE,
        "LD -64\n",
        "f: line 1: address: must be a number, or 0x and a hexadecimal one, not '-64'",
    ),
    "beyond": (TRACE, "LD 0x80000000\n", rf"f: line 1: address: {SIZE}"),
    "levels": (
        TRACE,
        "R 0,0,0,0,0\n",
        r"f: line 1: must have 6 numbers \(Channel, PseudoChannel, BankGroup, Bank, Row, Column\), not 5",
    ),
    "bank": (TRACE, "W 0,1,0,4,0,0\n", r"f: line 1: Bank: must be a whole number in 0\.\.3, not '4'"),
    "column": (TRACE, "R 0,1,0,3,0,32\n", r"f: line 1: Column: must be a whole number in 0\.\.31, not '32'"),
    "text": (TRACE, "R 0,1,0,x,0,0\n", r"f: line 1: Bank: must be a whole number in 0\.\.3, not 'x'"),
    "no clock": ([*TRACE, *SIM3], "0x40 READ\n", "f: line 1: must have 3 fields, not 2"),
    "other word": (
        [*TRACE, *SIM3],
        "0x40 LD 0\n",
        "f: line 1: request: must be one of READ, WRITE, not 'LD'",
    ),
    "clock": (
        [*TRACE, *SIM3],
        "0x40 READ 1.5\n",
        r"f: line 1: clock: must be a whole number in 0\.\.281474976710656, not '1\.5'",
    ),
    "earlier": (
        [*TRACE, *SIM3],
        "0x40 READ 5\n0x40 READ 4\n",
        "f: line 2: clock: must be at least 5, that of the line above, not 4",
    ),
    "header": (
        CHECK,
        "1,ACT,0,0,0,0,0,-1,0,0\n",
        f"f: line 1: must be {HEADER}, not '1,ACT,0,0,0,0,0,-1,0,0'",
    ),
    "no command": (CHECK, f"{HEADER}\n", "f: holds no command"),
    "fields": (CHECK, f"{HEADER}\n1,ACT,0\n", "f: line 2: must have 10 fields, not 3"),
    "command": (
        CHECK,
        f"{HEADER}\n1,MAC,0,0,0,0,0,0,0,0\n",
        (
            "f: line 2: command: must be one of ACT, PREpb, PREab, RD, WR, REFab, REFpb, ACT1, PRE, PREA,"
            " REF, not 'MAC'"
        ),
    ),
    "row": (
        CHECK,
        f"{HEADER}\n1,ACT,0,0,0,0,-1,-1,0,0\n",
        r"f: line 2: Row: must be a whole number in 0\.\.65535, not '-1'",
    ),
    "tick": (
        CHECK,
        f"{HEADER}\n-1,ACT,0,0,0,0,0,-1,0,0\n",
        r"f: line 2: clock: must be a whole number in 0\.\.281474976710656, not '-1'",
    ),
    "fields of a command": (
        [*CHECK[:-1], "dramsim3"],
        "1 activate 0 0 0 0 0x0\n",
        "f: line 1: must have 8 fields, not 7",
    ),
    "channel": (
        [*CHECK[:-1], "dramsim3"],
        "1 activate 2 0 0 0 0x0 0x0\n",
        r"f: line 1: channel: must be a whole number in 0\.\.1, not '2'",
    ),
    "hexadecimal": (
        [*CHECK[:-1], "dramsim3"],
        "1 activate 0 0 0 0 17 0x0\n",
        r"f: line 1: row: must be hexadecimal, 0x0\.\.0xffff, not '17'",
    ),
    "not text": (TRACE, "\udcff", "f: is not UTF-8: invalid start byte"),
    "a line without end": (TRACE, "L" * 1000, "f: line 1: must have at most 256 characters"),
}


@pytest.mark.parametrize(("arguments", "content", "message"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_file_is_one_line(capsys, tmp_path, monkeypatch, arguments, content, message) -> None:
    monkeypatch.chdir(tmp_path)
    Path("f").write_bytes(content.encode("utf-8", "surrogateescape"))
    refused(capsys, tmp_path, message, arguments)


TEXT = st.text(alphabet="0123456789-,ACTPREFDLSWRx \n\x00\"'éabce", max_size=60)


@given(st.lists(TEXT, max_size=6), st.sampled_from(Form), st.sampled_from(["hbm2-2000", "lpddr5-6400"]))
def test_any_text_is_read_or_refused(tmp_path_factory, lines: list[str], form: Form, name: str) -> None:
    path, dram = tmp_path_factory.mktemp("fuzz") / "f", load_dram(name)
    for first, read in (
        ("", lambda: read_requests(path, dram, form, Mapping(dram, MAPPINGS[form]))),
        (commands_header(dram, form), lambda: read_commands(path, dram, form)),
    ):
        path.write_text(first + "\n".join(lines), encoding="utf-8")
        refusal = None
        try:
            read()
        except InputError as error:
            refusal = str(error)
        empty = (f"{path}: holds no command", f"{path}: holds no request")
        assert refusal is None or refusal.startswith((f"{path}: line ", *empty))


@given(
    st.lists(st.tuples(st.integers(0, 15), st.integers(0, 3), st.integers(0, 31), st.booleans()), max_size=60)
)
def test_any_requests_are_served(items) -> None:
    """Reads and writes, some in the same rows; the checker finds nothing."""
    dram = load_dram("gddr6-14000")

    def fill(first: int, banks, keys) -> None:
        for place, (bank, row, column, write) in enumerate(items[first : first + len(banks)]):
            banks[place], keys[place] = bank, row << 20 | column << 1 | write

    requests = pattern_requests(dram, "random", 1)
    requests = type(requests)(len(items), fill)
    if not items:
        return
    run = run_requests(dram, requests, refresh=RefreshMode.ALL_BANK, drain=True)
    assert (run.served, run.broken) == (len(items), [])
