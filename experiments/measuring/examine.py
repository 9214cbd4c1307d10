"""Examining what a user has written: which kit fits it, on simulated ranks and between real ones."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bigbatch.comm.collectives import ALGORITHMS
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.foreign import guarded
from bigbatch.comm.measuring import conformance
from bigbatch.comm.reducers.collective import Collective, Scheduled
from bigbatch.comm.registry import Registry, import_object, unknown_name
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.comm.strategies.all_reduce import AllReduce
from bigbatch.comm.strategies.strategy import Strategy
from bigbatch.comm.transports.launch import Launch
from bigbatch.comm.wires.agreement import all_gather
from bigbatch.comm.wires.transport import Transport
from bigbatch.experiments.measuring.kits import KITS
from bigbatch.experiments.training.assemble import task_of
from bigbatch.models import MODELS
from bigbatch.models.kinds import kind_named, safe
from bigbatch.models.model import Model
from bigbatch.models.settings import ModelSettings
from bigbatch.optimizers import OPTIMIZERS, SCHEDULES
from bigbatch.optimizers import conformance as of_optimizers
from bigbatch.optimizers.standard import optimizer_named
from bigbatch.tasks import TASKS
from bigbatch.tasks.settings import DataSettings
from bigbatch.tasks.task import Task
from bigbatch.training import conformance as of_tasks
from bigbatch.training import strategy_conformance as of_strategies

Checks = Mapping[str, Callable[[], Iterator[str]]]

RATE = 1e-2
"""The learning rate of an optimiser that is examined."""


@dataclass(frozen=True)
class Subject:
    """Something that is examined, and the kit that fits it.

    Attributes:
        kind: what it is: "algorithm", "task".
        checks: makes the checks in one process, by name.
        on_wires: makes the checks between the ranks of a transport, by name; all ranks call it together, and find the
            same.
        left_out: what the kit does not look at, each as a phrase.
        strategy: connects the ranks, and says which launchers can start them.
    """

    kind: str
    checks: Callable[[], Checks]
    on_wires: Callable[[Transport], Checks]
    left_out: Sequence[str] = ()
    strategy: type[Strategy] = field(default_factory=lambda: STRATEGIES.load("ring"))

    def connect(self, launch: Launch, deadline: float) -> Transport:
        """Connects the ranks that a launcher started."""
        return self.strategy.connect(launch, "cpu", deadline)


def subject_named(name: str, kind: str | None, data: DataSettings, model: ModelSettings) -> Subject:
    """Finds what a name stands for, and the kit that fits it.

    Args:
        name: a registered name, or FILE.py:Name.
        kind: what it is; None to find out.
        data: the data for a task, and the task for a model.
        model: the model for a task, and the sizes of a model.

    Raises:
        ConfigurationError: nothing has the name, or there is no kit for what has it.
    """
    kind = kind or kind_of(name)
    made: Subject = import_object(KITS[kind])(name, data, model)
    return made


def kind_of(name: str) -> str:
    """Finds out what a name stands for: by the registries, or by looking at the object in a file.

    Raises:
        ConfigurationError: there is no such object, or it is none of the things that have a kit.
    """
    registries = {
        "algorithm": ALGORITHMS,
        "strategy": STRATEGIES,
        "task": TASKS,
        "model": MODELS,
        "optimizer": OPTIMIZERS,
        "schedule": SCHEDULES,
    }
    for kind, registry in registries.items():
        if name in registry.names():
            return kind
    if name.partition(":")[0] in STRATEGIES.names():
        return "strategy"
    if safe(name) or Path(name).is_dir():
        return "model"
    if ":" not in name:
        known = dict.fromkeys(known for registry in registries.values() for known in registry.names())
        raise unknown_name("name", name, known, "; or name your own as FILE.py:Name")
    found = Registry("object", "", {}).load(name)
    for kind, base in (
        *(("strategy", Strategy), ("task", Task), ("model", Model), ("model", torch.nn.Module)),
        ("optimizer", torch.optim.Optimizer),
    ):
        if inspect.isclass(found) and issubclass(found, base):
            return kind
    if inspect.isclass(found) or not callable(found):
        raise ConfigurationError(
            f"{name!r} is {'a class' if inspect.isclass(found) else 'of the type ' + type(found).__name__}, for which "
            f"there is no kit. There are kits for: {', '.join(KITS)}."
        )
    return _kind_of_function(name, found)


def _kind_of_function(name: str, found: Callable[..., Any]) -> str:
    """What a function is, by the number of its parameters, and by what it returns for one number."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [
        one for one in inspect.signature(found).parameters.values() if one.kind in kinds and one.default is one.empty
    ]
    if len(needed) == 3:
        return "schedule"
    if inspect.isgeneratorfunction(found) or {"segments", "nodes"} & set(inspect.signature(found).parameters):
        return "algorithm"
    with guarded(name, "be called with the number 1", "was called with the number 1", found):
        made = found(1)
    return "optimizer" if callable(made) else "algorithm"


def algorithm_subject(name: str, _: DataSettings, __: ModelSettings) -> Subject:
    """An algorithm of rounds: proven, and executed as an all-reduce."""
    algorithm = ALGORITHMS.load(name)
    return Subject(
        "algorithm",
        partial(conformance.checks_of, algorithm),
        lambda transport: _sums(partial(Scheduled, algorithm), transport),
        conformance.NOT_LOOKED_AT,
    )


def _sums(make: Callable[[Transport], Collective], transport: Transport) -> Checks:
    """The checks of an all-reduce between the ranks of a transport."""

    def run(check: Callable[[Collective], Iterator[str]]) -> Iterator[str]:
        collective = make(transport)
        everyones = all_gather(transport, list(check(collective))[:1], "end a check")
        collective.close()
        yield from (finding for findings in everyones for finding in findings)

    return {name: partial(run, check) for name, check in conformance.WIRE_CHECKS.items()}


def strategy_subject(name: str, _: DataSettings, __: ModelSettings) -> Subject:
    """A strategy: trained with, and its all-reduce, if it has one."""
    kind: type[Strategy] = STRATEGIES.load(name)
    make = kind.collective if issubclass(kind, AllReduce) and kind.reduce is AllReduce.reduce else None

    refusals = of_strategies.refused_on_cluster(name)

    def checks() -> Checks:
        workers = [count for count in of_strategies.WORKERS if count not in refusals]
        if not workers:
            return {}
        trained = of_strategies.checks_of_strategy(name, of_strategies.on_cluster, workers)
        return {**(conformance.checks_of_collective(make) if make and not refusals else {}), **trained}

    def on_wires(transport: Transport) -> Checks:
        def on_ranks(_: int, work: of_strategies.Work) -> list[dict[str, Any]]:
            return all_gather(transport, work(transport), "end a training")

        workers = [kind.workers_among(transport.size)]
        trained = of_strategies.checks_of_strategy(name, on_ranks, workers)
        return {**(_sums(make, transport) if make else {}), **trained}

    refused = (f"{count} workers on simulated ranks: {str(error).rstrip('.')}" for count, error in refusals.items())
    left_out = (*refused, *of_strategies.NOT_LOOKED_AT, *(conformance.NOT_LOOKED_AT[1:3] if make else ()))
    return Subject("strategy", checks, on_wires, left_out, kind)


def task_subject(name: str, data: DataSettings, model: ModelSettings) -> Subject:
    """A task with the model that the settings name."""

    def made() -> tuple[Task, torch.nn.Module]:
        task = task_of(data.changed({"task": name}))
        return task, kind_named(model.kind(task.default_model)).build(task, model, 0)

    def values(_: Transport) -> list[Any]:
        task, module = made()
        subject = of_tasks.Subject(task, module.eval())
        losses = [subject.value(subject.examples(split), split) for split in of_tasks.SPLITS]
        return [task.corpus_sha256, dict(task.sizes), task.vocabulary_size, losses]

    return Subject(
        "task", lambda: of_tasks.checks_of_task(*made()), _alike("data and losses", values), of_tasks.NOT_LOOKED_AT
    )


def model_subject(name: str, data: DataSettings, model: ModelSettings) -> Subject:
    """A kind of model with the task that the settings name."""
    kind, model = kind_named(name), replace(model, model=name)

    def values(_: Transport) -> list[Any]:
        module = kind.build(task_of(data), model, 0)
        return [(key, value.double().sum().item()) for key, value in module.state_dict().items()]

    return Subject(
        "model",
        lambda: of_tasks.checks_of_model(kind, task_of(data), model),
        _alike("initial weights", values),
        of_tasks.NOT_LOOKED_AT,
    )


def optimizer_subject(name: str, _: DataSettings, __: ModelSettings) -> Subject:
    """An optimiser, by its factory."""

    def values(_: Transport) -> list[Any]:
        named = of_optimizers.parameters()
        of_optimizers.trained(optimizer_named(name, RATE), named)
        return [(key, parameter.detach().flatten().tolist()) for key, parameter in named]

    return Subject(
        "optimizer",
        lambda: of_optimizers.checks_of_optimizer(optimizer_named(name, RATE)),
        _alike("parameters after some steps", values),
        of_optimizers.OPTIMIZERS_NOT_LOOKED_AT,
    )


def schedule_subject(name: str, _: DataSettings, __: ModelSettings) -> Subject:
    """A schedule of the learning rate."""
    schedule = SCHEDULES.load(name)

    def values(_: Transport) -> list[Any]:
        return [float(schedule(step, 100, 10)) for step in range(1, 101)]

    return Subject(
        "schedule",
        lambda: of_optimizers.checks_of_schedule(schedule),
        _alike("factors", values),
        of_optimizers.SCHEDULES_NOT_LOOKED_AT,
    )


def _alike(what: str, values: Callable[[Transport], list[Any]]) -> Callable[[Transport], Checks]:
    """The check between ranks that all of them have the same values."""

    def checks(transport: Transport) -> Checks:
        def run() -> Iterator[str]:
            everyones = all_gather(transport, values(transport), "compare what they have")
            for rank, theirs in enumerate(everyones):
                if theirs != everyones[0]:
                    yield f"Rank {rank} has other {what} than rank 0: nothing may depend on the process."

        return {"alike on all ranks": run}

    return checks
