"""Claims about batches and their cost, each in a module of its own that examines it and draws a figure.

A module here has a class `Figure`, derived from `bigbatch.experiments.laboratory.claim.Claim`. The figure's name is
the module's, with dashes for underscores. There is nothing else to register.
"""

import pkgutil

from bigbatch.comm.registry import Registry

CLAIMS = Registry(
    "figure",
    "bigbatch.figures",
    {module.name.replace("_", "-"): f"{__name__}.{module.name}:Figure" for module in pkgutil.iter_modules(__path__)},
)
"""All figures; other packages add theirs as entry points of the group "bigbatch.figures"."""
