"""Strategies by name; `bigbatch-exp NAME` runs one."""

from bigbatch.comm.registry import Registry

STRATEGIES = Registry(
    "strategy",
    "bigbatch.strategies",
    {
        "ring": "bigbatch.comm.strategies.all_reduce:Ring",
        "allreduce": "bigbatch.comm.strategies.all_reduce:TorchDistributed",
        "ps": "bigbatch.comm.strategies.parameter_server:ParameterServer",
    },
)
"""All strategies; other packages add theirs as entry points of the group "bigbatch.strategies"."""
