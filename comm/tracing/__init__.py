"""Traces: the recordings of all ranks brought together, and written for Perfetto."""
