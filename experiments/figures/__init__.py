"""Figures, which are drawn from the files of runs and measurements."""
