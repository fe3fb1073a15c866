"""An engine alone, the gate bypassed: the first N experts of a model, at any size, on either accelerator."""

from sim.alone.run import operands_of, plan_experts, run_experts, run_plan

__all__ = ["operands_of", "plan_experts", "run_experts", "run_plan"]
