"""Sweeps: many design points, on all cores or a cluster, into one table. ``docs/sweep.md``."""
