"""What the user describes: MoE models, hardware designs, and the files they come from."""
