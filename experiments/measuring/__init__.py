"""Measuring speed: all-reduces side by side, whole trainings, speed targets, and this machine as a network."""
