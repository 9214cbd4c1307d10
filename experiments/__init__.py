"""The bench: commands, runs, figures and reports."""
