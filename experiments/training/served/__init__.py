"""Experiments over servers on a network: what `bigbatch-exp ps serve` and `ps worker` do."""
