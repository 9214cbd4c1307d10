"""Figures, drawn from runs and never from memory."""
