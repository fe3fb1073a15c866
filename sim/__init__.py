"""When, and at what cost: cycle models, RTL runs, reports, the command line."""
