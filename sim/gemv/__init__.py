"""When a matrix-vector product on MAC units in DRAM issues which commands, and how long it takes."""
