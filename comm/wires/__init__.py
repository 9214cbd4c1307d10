"""The wires: transports, requests and queues; agreement between ranks; and recording what a rank does."""

DEFAULT_DEADLINE = 300.0
"""Seconds after which a wait gives up, and a job ends of which a rank gives no sign of life."""
