"""Runs: their folders, their tables, and what makes a run what it is."""
