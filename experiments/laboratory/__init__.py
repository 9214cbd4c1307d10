"""The laboratory: trains points once, sweeps over batch sizes, and the frame of a claim."""
