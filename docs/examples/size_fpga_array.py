"""Size the array of an FPGA for a model whose gate is the bound: 512 small experts, int8, a long prompt."""

from dataclasses import replace

from matplotlib import rcParams
from matplotlib.figure import Figure

from sim import load_design, load_model, simulate
from sim.points import Point, evaluate_all

MODEL, TOKENS = "qwen3-next-80b-a3b", 1024
LANES, SIDES = (64, 128, 256, 512, 1024), (16, 32, 64, 128)

# 1024 bits of weights a cycle: 12.8 GB/s at 100 MHz.
fpga = load_design("fpga", "int8")
fpga = replace(fpga, window_tokens=TOKENS, memory=replace(fpga.memory, width_bits=1024))
designs = {
    (lanes, side): replace(
        fpga,
        gate=replace(fpga.gate, lanes=lanes),
        array=replace(fpga.array, rows=side, cols=side),
    )
    for lanes in LANES
    for side in SIDES
}
model = load_model(MODEL)
points = [Point(model=model, target=design, tokens=TOKENS) for design in designs.values()]
outcomes = evaluate_all(points, workers=1)
time_ms = {name: 1e3 * outcome.seconds for name, outcome in zip(designs, outcomes, strict=True)}

print(f"{MODEL}, one MoE layer of {TOKENS} tokens: ms")
print("gate lanes".ljust(12) + "".join(f"{side} x {side}".rjust(12) for side in SIDES))
for lanes in LANES:
    print(f"{lanes:<12}" + "".join(f"{time_ms[lanes, side]:.1f}".rjust(12) for side in SIDES))
best = min(time_ms.values())
macs = {(lanes, side): lanes + side * side for lanes, side in designs}
enough = min((name for name in designs if time_ms[name] < 1.1 * best), key=lambda name: macs[name])
for lanes, side in ((64, 64), (64, 128), enough):
    report = simulate(MODEL, designs[lanes, side], tokens=TOKENS)
    blocks = ", ".join(f"{name} {1e-6 * found['model']:.1f}" for name, found in report.blocks.items())
    print(
        f"{lanes} lanes, {side} x {side}: {1e-6 * report.cycles['model']:.1f} million cycles"
        f" ({blocks}), weight port busy {report.utilisation['bandwidth']:.0%}"
    )
print(f"within a tenth of the fastest with fewest MACs: {enough[0]} lanes, {enough[1]} x {enough[1]}")

rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "example"})  # the same file every time
figure = Figure(figsize=(6, 3.5), layout="constrained")
axes = figure.subplots()
for side, style in zip(SIDES, ("-", "-", "-", "--"), strict=True):  # the last lies on the one before
    times = [time_ms[lanes, side] for lanes in LANES]
    axes.loglog(LANES, times, style, marker="o", label=f"{side} x {side}")
axes.set(xlabel="lanes of the gate", ylabel="ms of a layer", title=f"{MODEL}, {TOKENS} tokens, int8")
axes.set_xticks(LANES, [str(lanes) for lanes in LANES])
figure.legend(title="array", loc="outside right upper")
figure.savefig("size_fpga_array.svg", metadata={"Date": None, "Creator": None})
