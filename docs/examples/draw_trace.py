"""Write requests.csv: a small trace in the format of Azure's LLM inference traces, drawn by seed."""

from datetime import datetime, timedelta
from pathlib import Path

from sim.serving.requests import draw_requests

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
BEGIN = datetime.fromisoformat("2024-01-01T12:00:00.000000")

rows = []
for some in draw_requests("gamma:8:2", "lognormal:800:0.7", "lognormal:120:0.6", requests=400, seed=8):
    for second, prompt, output in zip(some.arrival_s, some.prompt, some.output, strict=True):
        when = BEGIN + timedelta(microseconds=round(1e6 * second))
        rows.append(f"{when.isoformat(sep=' ', timespec='microseconds')},{prompt},{output}\n")
Path("requests.csv").write_text(HEADER + "".join(rows))
