"""Traffic: requests that come over time, batched step by step on a system; ``docs/serving.md``."""
