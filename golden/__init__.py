"""What is computed: NumPy reference of every block, in float and in the number formats of the hardware."""
