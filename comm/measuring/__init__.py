"""Measuring: this machine as a network, servers beside all-reduces, and the kit that every algorithm must pass."""
