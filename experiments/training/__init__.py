"""Experiments: the same training in several arms, in processes, in simulated time, or over servers on a network."""
