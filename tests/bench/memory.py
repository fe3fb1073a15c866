"""The largest resident set of a process."""

from pathlib import Path


def largest_megabytes() -> float:
    """Return that of this process since its program began, in MiB (VmHWM, proc(5)).

    ``getrusage`` would count what the process was before, a fork of whoever began it.
    """
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) / 1024
