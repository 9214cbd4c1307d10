"""Runs: writing and reading their folders, and printing their tables."""
