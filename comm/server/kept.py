"""What is kept of a shard: a schema for states that come from a file, which somebody else may have written."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from bigbatch.comm.errors import MalformedError

COUNTS = ("version", "done", "taken", "dropped", "skipped")


def check_settled(state: Any, values: Tensor) -> None:
    """Refuses what is no `settled_state` of a shard, its optimiser's state aside.

    Args:
        state: what was kept.
        values: (elements,) the parameters of the shard that it is meant for.

    Raises:
        MalformedError: an entry is missing, or it is not what belongs there; the message says which, without its full
            stop.
    """
    if not isinstance(state, Mapping):
        raise MalformedError("it holds no parameters")
    for name in (*COUNTS, "values", "tokens", "staleness", "optimizer"):
        if name not in state:
            raise MalformedError(f"the entry {name!r} is missing")
    kept = state["values"]
    if not isinstance(kept, Tensor) or (kept.shape, kept.dtype) != (values.shape, values.dtype):
        there = f"{list(kept.shape)} {kept.dtype}" if isinstance(kept, Tensor) else f"a {type(kept).__name__}"
        raise MalformedError(f"its parameters are {there} instead of {list(values.shape)} {values.dtype}")
    if not bool(torch.isfinite(kept).all()):
        raise MalformedError("its parameters are not all finite")
    for name in COUNTS:
        if not _is_count(state[name]):
            raise MalformedError(f"the entry {name!r} is {str(state[name])[:100]!r} where a count belongs")
    tokens, staleness = state["tokens"], state["staleness"]
    if type(tokens) not in (int, float) or not 0 <= tokens < math.inf:
        raise MalformedError(f"the entry 'tokens' is {str(tokens)[:100]!r} where a number of tokens belongs")
    if not isinstance(staleness, Mapping) or not all(map(_is_count, [*staleness, *staleness.values()])):
        raise MalformedError("the entry 'staleness' does not hold counts")
    if state["version"] > state["done"] or sum(staleness.values()) != state["taken"]:
        raise MalformedError("its counts of updates and gradients contradict each other")


def check_optimizer(state: Any, optimizer: Optimizer) -> None:
    """Refuses a state that is not that of such an optimiser, as far as can be seen without making a step.

    Args:
        state: what was kept of the optimiser.
        optimizer: a new optimiser of the same parameters.

    Raises:
        MalformedError: the state has other groups or parameters, or numbers that are not finite.
    """
    own = optimizer.state_dict()
    if not isinstance(state, Mapping) or not {"state", "param_groups"} <= state.keys():
        raise MalformedError("it holds no state of an optimiser")
    groups, entries = state["param_groups"], state["state"]
    if not isinstance(groups, list) or not isinstance(entries, Mapping) or len(groups) != len(own["param_groups"]):
        raise MalformedError("the optimiser has other groups of parameters")
    for theirs, ours in zip(groups, own["param_groups"], strict=True):
        whole = isinstance(theirs, Mapping) and ours.keys() <= theirs.keys() and isinstance(theirs["params"], list)
        if not whole or not all(map(_is_count, theirs["params"])) or theirs["params"] != ours["params"]:
            raise MalformedError("the optimiser has other groups of parameters")
        for name, setting in ours.items():
            if setting is not None and not _alike(theirs[name], setting):
                raise MalformedError(f"the optimiser's {name} is {str(theirs[name])[:100]!r}")
    known = {number for group in own["param_groups"] for number in group["params"]}
    if not all(map(_is_count, entries)) or not entries.keys() <= known:
        raise MalformedError("the optimiser's state is about other parameters")
    if not all(map(_finite, _leaves([groups, entries]))):
        raise MalformedError("the optimiser's state is not all finite")


def _alike(theirs: Any, ours: Any) -> bool:
    """Whether two settings are of one type; a number may be whole or not."""
    return type(theirs) is type(ours) or {type(theirs), type(ours)} == {int, float}


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for each in value:
            yield from _leaves(each)
    else:
        yield value


def _finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return bool(torch.isfinite(value).all())
    return not isinstance(value, float) or math.isfinite(value)
