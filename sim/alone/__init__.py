"""An engine alone, the gate bypassed: the first N experts of a model, at any size, on either accelerator."""

from sim.alone.run import plan_experts, run_experts, run_plan

__all__ = ["plan_experts", "run_experts", "run_plan"]
