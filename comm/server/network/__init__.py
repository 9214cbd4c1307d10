"""Servers on a network, on ZeroMQ, for workers that come and go."""
