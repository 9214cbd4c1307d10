"""Optimisers, schedules of the learning rate and scaling rules by name.

A name here stands for a factory of optimisers: the strategy makes the optimiser itself, because the strategy also
makes the updates.
"""

from bigbatch.comm.registry import Registry

OPTIMIZERS = Registry(
    "optimizer",
    "bigbatch.optimizers",
    {name: f"bigbatch.optimizers.standard:{name}" for name in ("sgd", "adam", "adamw", "lars", "lamb")},
    function="a class of torch's optimisers, or a function of the learning rate that returns a factory of optimisers",
)
"""All optimisers; other packages add theirs as entry points of the group "bigbatch.optimizers"."""

SCHEDULES = Registry(
    "schedule",
    "bigbatch.schedules",
    {name: f"bigbatch.optimizers.rates:{name}" for name in ("constant", "linear", "cosine", "noam", "wsd")},
    function="a function of (step, steps, steps of warm-up) that returns a factor of the peak rate",
)
"""All schedules; other packages add theirs as entry points of the group "bigbatch.schedules"."""

SCALING_RULES = Registry(
    "scaling rule",
    "bigbatch.scaling_rules",
    {
        "none": "bigbatch.optimizers.rates:unscaled",
        "linear": "bigbatch.optimizers.rates:linear_scaling",
        "sqrt": "bigbatch.optimizers.rates:sqrt_scaling",
    },
    function="a function of (optimiser, batch, base batch) that changes the optimiser's rates",
)
"""All scaling rules; other packages add theirs as entry points of the group "bigbatch.scaling_rules"."""
