"""Simulated time: networks, what computing takes, and schedules timed on all ranks at once."""
