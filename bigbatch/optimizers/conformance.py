"""The conformance kit for optimisers and schedules of the learning rate: what a strategy relies on, checked.

from bigbatch.optimizers.conformance import conform_optimizer, conform_schedule
print(conform_optimizer(my_factory), conform_schedule(my_schedule))  # {} {} if all is well
"""

import copy
import random
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bigbatch.comm.measuring.conformance import examined
from bigbatch.comm.parameters import OptimizerFactory, WholeFactory
from bigbatch.optimizers.rates import Schedule, wrong_factor

Findings = Iterator[str]
Named = list[tuple[str, nn.Parameter]]

STEPS = 4
SHAPES = {"weight": (6, 5), "bias": (6,), "embedding": (9, 4)}
"""The parameters on which an optimiser is examined."""

TRAININGS = ((1, 0), (1, 1), (2, 1), (10, 0), (10, 3), (10, 10), (97, 13), (1000, 100))
"""(steps, steps of warm-up) of the trainings for which a schedule is looked at."""

OPTIMIZERS_NOT_LOOKED_AT = ("whether it converges", "GPUs and dtypes other than float32", "sparse gradients")
SCHEDULES_NOT_LOOKED_AT = (
    f"trainings of other lengths than {', '.join(str(steps) for steps in dict.fromkeys(s for s, _ in TRAININGS))} "
    "steps: each step is looked at again while it trains",
    "whether the rates are good ones",
)
"""What the two kits do not look at, each as a phrase."""


def conform_optimizer(make: OptimizerFactory) -> dict[str, str]:
    """Put a factory of optimisers through every check; see `optimizer_named` for one of a class or a file.

    Returns:
        What the checks found, by name, one sentence each: empty if it conforms.
    """
    return dict(found for found in examined(checks_of_optimizer(make)) if found[1])


def conform_schedule(schedule: Schedule) -> dict[str, str]:
    """Put a schedule of the learning rate through every check; returns what they found, by name."""
    return dict(found for found in examined(checks_of_schedule(schedule)) if found[1])


def checks_of_optimizer(make: OptimizerFactory) -> dict[str, Callable[[], Findings]]:
    """The checks of `conform_optimizer`, by name; each yields what it finds wrong."""
    return {name: partial(check, make) for name, check in OPTIMIZER_CHECKS.items()}


def parameters() -> Named:
    """Parameters with fixed values."""
    generator = torch.Generator().manual_seed(3)
    return [(name, nn.Parameter(torch.randn(shape, generator=generator))) for name, shape in SHAPES.items()]


def gradient(name: str, step: int) -> Tensor:
    """The gradient of a parameter at a step, from 0."""
    generator = torch.Generator().manual_seed(100 * step + len(name))
    return torch.randn(SHAPES[name], generator=generator)


def trained(make: OptimizerFactory, named: Named, first: int = 0, stop: int = STEPS) -> Optimizer:
    """Makes an optimiser, and has it step with the gradients of some steps."""
    optimizer = make(named)
    step(optimizer, named, first, stop)
    return optimizer


def step(optimizer: Optimizer, named: Named, first: int = 0, stop: int = STEPS) -> None:
    """Steps with the gradients of some steps, in whatever order the parameters come."""
    for number in range(first, stop):
        for name, parameter in named:
            parameter.grad = gradient(name, number)
        optimizer.step()


def owns_every_parameter(make: OptimizerFactory) -> Findings:
    """Checks that the factory makes an optimiser of torch's kind, for each parameter once."""
    named = parameters()
    made: Any = make(named)
    if not isinstance(made, Optimizer):
        yield f"The factory makes a {type(made).__name__}, not an optimiser derived from torch.optim.Optimizer."
        return
    held = [id(parameter) for group in made.param_groups for parameter in group["params"]]
    for name, parameter in named:
        if (times := held.count(id(parameter))) != 1:
            yield f"The optimiser holds the parameter {name} {times} times, but must hold each once."


def steps_in_place(make: OptimizerFactory) -> Findings:
    """Checks that a step changes the parameters where they lie, and leaves the gradients where and what they are."""
    named = parameters()
    optimizer = make(named)
    for name, parameter in named:
        parameter.grad = gradient(name, 0)
    before = {name: (p.data_ptr(), p.detach().clone(), p.grad) for name, p in named}
    optimizer.step()
    for name, parameter in named:
        place, values, its_gradient = before[name]
        if parameter.data_ptr() != place:
            yield f"A step moves the parameter {name} to other memory: change it in place, as with add_."
        if parameter.grad is not its_gradient or parameter.grad is None or not bool(parameter.grad.any()):
            yield f"A step takes away or zeroes the gradient of {name}: the trainer does that, before the next one."
        if torch.equal(parameter.detach(), values):
            yield f"A step does not move the parameter {name}, whose gradient is not zero."
        if not bool(torch.isfinite(parameter).all()):
            yield f"After a step the parameter {name} is not finite."


def leaves_what_has_no_gradient(make: OptimizerFactory) -> Findings:
    """Checks that a parameter without a gradient stays as it is, also after it had one."""
    for had in (0, 1):
        named = parameters()
        optimizer = make(named)
        step(optimizer, named, 0, had)
        name, parameter = named[0]
        before = parameter.detach().clone()
        for other, theirs in named:
            theirs.grad = gradient(other, had)
        parameter.grad = None
        optimizer.step()
        if not torch.equal(parameter.detach(), before):
            yield f"A step moves the parameter {name}, which has no gradient{' any more' if had else ''}."


def heeds_no_order(make: OptimizerFactory) -> Findings:
    """Checks that the parameters may come in any order."""
    one, other = parameters(), parameters()[::-1]
    trained(make, one)
    trained(make, other)
    for name, parameter in one:
        if not torch.allclose(parameter, dict(other)[name], rtol=1e-4, atol=1e-6):
            yield f"The parameter {name} ends elsewhere if the parameters come in another order."


def treats_elements_alone(make: OptimizerFactory) -> Findings:
    """Checks that halves of parameters move as the whole does, unless the factory says that it looks at the whole."""
    if isinstance(make, WholeFactory):
        return
    whole, halves = parameters(), []
    for name, parameter in parameters():
        half = len(parameter) // 2
        halves += [(f"{name}", nn.Parameter(part.clone())) for part in (parameter[:half], parameter[half:])]
    trained(make, whole)
    optimizer = make(halves)
    for number in range(STEPS):
        for place, (name, parameter) in enumerate(halves):
            half = len(gradient(name, number)) // 2
            parameter.grad = gradient(name, number)[half:] if place % 2 else gradient(name, number)[:half]
        optimizer.step()
    for place, (name, parameter) in enumerate(whole):
        together = torch.cat([halves[2 * place][1], halves[2 * place + 1][1]])
        if not torch.allclose(parameter, together, rtol=1e-4, atol=1e-6):
            yield (
                f"The parameter {name} ends elsewhere if it is given in two halves, as servers do: make the optimiser "
                "by a bigbatch.comm.parameters.WholeFactory, which says so."
            )


def follows_its_rate(make: OptimizerFactory) -> Findings:
    """Checks that every group has a learning rate `lr`, and that nothing moves if it is 0, as a schedule may want."""
    named = parameters()
    optimizer = make(named)
    if any("lr" not in group for group in optimizer.param_groups):
        yield "A group of the optimiser has no learning rate 'lr', so that no schedule can change it."
        return
    for group in optimizer.param_groups:
        group["lr"] = torch.zeros_like(group["lr"]) if isinstance(group["lr"], Tensor) else 0.0
    before = [parameter.detach().clone() for _, parameter in named]
    step(optimizer, named, 0, 1)
    for (name, parameter), values in zip(named, before, strict=True):
        if not torch.equal(parameter.detach(), values):
            yield f"The parameter {name} moves at a learning rate of 0: schedules and scaling rules change group['lr']."


def repeats_itself(make: OptimizerFactory) -> Findings:
    """Checks that the same gradients give the same parameters, whatever random numbers were drawn before."""
    results = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - this is the state that an optimiser must not depend on
        torch.manual_seed(seed)
        named = parameters()
        trained(make, named)
        results.append(named)
    for (name, one), (_, other) in zip(*results, strict=True):
        if not torch.equal(one, other):
            yield f"The parameter {name} ends elsewhere when the same steps are made again, as every worker makes them."


def goes_on_from_its_state(make: OptimizerFactory) -> Findings:
    """Checks that an optimiser with another's state goes on as that one does."""
    whole, parts = parameters(), parameters()
    trained(make, whole)
    first = trained(make, parts, stop=STEPS // 2)
    second = make(parts)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    step(second, parts, STEPS // 2, STEPS)
    for (name, one), (_, other) in zip(whole, parts, strict=True):
        if not torch.equal(one, other):
            yield f"The parameter {name} ends elsewhere after a stop in between: state_dict lacks something."


OPTIMIZER_CHECKS: Mapping[str, Callable[[OptimizerFactory], Findings]] = {
    "parameters": owns_every_parameter,
    "in place": steps_in_place,
    "no gradient": leaves_what_has_no_gradient,
    "order": heeds_no_order,
    "elements": treats_elements_alone,
    "rate": follows_its_rate,
    "repeatable": repeats_itself,
    "state": goes_on_from_its_state,
}
"""Checks of a factory of optimisers, by name."""


def checks_of_schedule(schedule: Schedule) -> dict[str, Callable[[], Findings]]:
    """The checks of `conform_schedule`, by name; each yields what it finds wrong."""

    def factors() -> Findings:
        for steps, warm_up in TRAININGS:
            found = [wrong_factor(schedule(number, steps, warm_up)) for number in range(1, steps + 1)]
            for number, wrong in enumerate(found, start=1):
                if wrong:
                    yield f"At step {number} of {steps}, {warm_up} of them warm-up, the factor is {wrong}."

    def function() -> Findings:
        for steps, warm_up in TRAININGS:
            numbers = range(1, steps + 1)
            once = [schedule(number, steps, warm_up) for number in numbers]
            again = [schedule(number, steps, warm_up) for number in reversed(numbers)][::-1]
            for number, (one, other) in enumerate(zip(once, again, strict=True), start=1):
                if one != other:
                    yield (
                        f"At step {number} of {steps} the factor is {one}, and {other} when asked again: it must "
                        "depend on the step alone, because whoever resumes, and every server, asks for its own steps."
                    )

    def moves() -> Findings:
        for steps, warm_up in TRAININGS:
            if not any(schedule(number, steps, warm_up) for number in range(1, steps + 1)):
                yield f"All factors are 0 in a training of {steps} steps, {warm_up} of them warm-up: nothing moves."

    return {"factors": factors, "function": function, "moves": moves}
