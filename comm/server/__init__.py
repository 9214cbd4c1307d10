"""The parameter server without its wires: what it holds, when it applies gradients, and who may read when.

`shard` is the state of one server; `consistency` says which gradients make an update and when a worker may read;
`staleness` says what becomes of a gradient that was computed on old parameters.
"""
