"""Experiments over the trainer: the command line, runs, figures, measurements and reports."""
