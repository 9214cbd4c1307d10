"""The laboratory: trains each point once, sweeps over batch sizes, and defines what a claim is."""
