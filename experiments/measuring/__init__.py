"""Measuring speed: benches, races, targets, and this machine as a network."""
