"""The commands of ``expertbank``, one module each."""
