"""The parameter server, apart from any wire: what it holds, what it applies when, and who may read when.

`shard` is the state of one server; `consistency` says which gradients make an update and when a worker may read;
`staleness` says what becomes of a gradient that was computed on old parameters.
"""
