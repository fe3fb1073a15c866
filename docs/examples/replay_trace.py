"""Replay a serving trace on two designs, as it is and faster: where MAC units pay, and until which load."""

from pathlib import Path

from matplotlib import rcParams
from matplotlib.figure import Figure

from sim import serve

TRACE = Path(__file__).parent / "requests.csv"
MODEL = "olmoe-1b-7b"
SYSTEMS = {"at the banks": "duplex-bank-pim", "on the logic die": "duplex"}
SPEEDS = (1, 6, 12)

print(f"{MODEL}: first token and time per token in ms, half of them and 99 of 100 below")
print("units             speed  requests/s   first 50 %        99 %    token 50 %        99 %   J/token")
found = {}
for name, system in SYSTEMS.items():
    for speed in SPEEDS:
        run = serve(system, MODEL, trace=TRACE, speed=speed, step_tokens=512, draws=1)
        first, token = run.latencies["ttft"], run.latencies["tpot"]
        figures = [1e3 * part[level] for part in (first, token) for level in ("p50", "p99")]
        rate, joules = run.requests_per_s, run.joules_per_token
        found[name, speed] = (rate, *figures, joules)
        cells = "".join(f"{figure:>12.2f}" for figure in (rate, *figures))
        print(f"{name:<18}{speed:>5}{cells}{joules:>10.4f}")

near, far = (found[name, 1] for name in SYSTEMS)
print(
    f"as it is, {' over '.join(SYSTEMS)}: first token {near[1] / far[1]:.2f} times,"
    f" token {near[3] / far[3]:.2f} times, energy {near[5] / far[5]:.2f} times"
)
near, far = (found[name, SPEEDS[-1]][0] for name in SYSTEMS)
print(f"{SPEEDS[-1]} times as fast: {near:.1f} and {far:.1f} requests/s are served")

rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "example"})  # the same file every time
figure = Figure(figsize=(7, 3.2), layout="constrained")
for axes, column, label in zip(figure.subplots(1, 2), (2, 4), ("first token", "time per token"), strict=True):
    for name in SYSTEMS:
        rates = [found[name, speed][0] for speed in SPEEDS]
        axes.plot(rates, [found[name, speed][column] for speed in SPEEDS], marker="o", label=name)
    axes.set(xlabel="requests/s served", ylabel=f"ms, {label}, 99 %")
    axes.legend()
figure.savefig("replay_trace.svg", metadata={"Date": None, "Creator": None})
