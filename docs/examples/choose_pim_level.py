"""Choose a PIM level for a model: MAC units at the banks, or on the logic die, beside the same GPU."""

from matplotlib import rcParams
from matplotlib.figure import Figure

from sim import simulate_system

MODEL = "qwen3-30b-a3b"
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
SYSTEMS = {"at the banks": "duplex-bank-pim", "on the logic die": "duplex"}

# Milliseconds and joules of all experts of a step: the GPU alone, or everything near memory.
time_ms, energy_j = {}, {}
for tokens in TOKENS:
    for level, system in SYSTEMS.items():
        run = simulate_system(system, MODEL, tokens=tokens, only_experts=True)
        for name, policy in (("GPU alone", "all-host"), (level, "all-near")):
            time_ms[name, tokens] = 1e3 * run.steps[policy].seconds
            energy_j[name, tokens] = run.energies[policy].total

levels = ["GPU alone", *SYSTEMS]
print(f"{MODEL}, all experts of a step: ms (J)")
print("tokens".ljust(8) + "".join(level.rjust(20) for level in levels) + "  fastest")
for tokens in TOKENS:
    cells = [f"{time_ms[level, tokens]:.2f} ({energy_j[level, tokens]:.2f})" for level in levels]
    best = min(levels, key=lambda level: time_ms[level, tokens])
    print(f"{tokens:<8}" + "".join(cell.rjust(20) for cell in cells) + f"  {best}")
near, far = SYSTEMS
last = max(tokens for tokens in TOKENS if time_ms[near, tokens] < time_ms[far, tokens])
print(f"{near} up to {last} tokens in a step; beyond, {far} or the GPU")

rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "example"})  # the same file every time
figure = Figure(figsize=(6, 3.5), layout="constrained")
axes = figure.subplots()
for level in levels:
    axes.loglog(TOKENS, [time_ms[level, tokens] for tokens in TOKENS], marker="o", label=level)
axes.set(xlabel="tokens in a step", ylabel="ms of all experts", title=MODEL)
axes.legend()
figure.savefig("choose_pim_level.svg", metadata={"Date": None, "Creator": None})
