"""Servers on a network, on ZeroMQ, for workers that come and go.

`messages` is what travels; `sockets` and `keys` move it. On the server's side `elastic_server` answers requests, with
what `membership` knows of the workers and `shares` of the data, and `status` says how things are; `serve` is its loop,
`snapshots` what it keeps. On the worker's side `remote_shard` asks, and `heartbeat` says that the worker is alive.
"""
