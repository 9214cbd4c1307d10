"""An experiment: the same Transformer over one strategy, in several arms that see the same tokens."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bigbatch
from bigbatch.comm.parameters import FlatParameters, OptimizerFactory
from bigbatch.comm.strategies.strategy import Strategy
from bigbatch.comm.wires.agreement import agree, all_gather, together
from bigbatch.comm.wires.transport import Transport
from bigbatch.experiments.runs.run import RunWriter, environment
from bigbatch.experiments.training.history import History, summarise, without_unmeasured
from bigbatch.experiments.training.progress import Reporter
from bigbatch.experiments.training.settings import Settings, unmeasured
from bigbatch.experiments.training.simulated import Simulation, fastest
from bigbatch.experiments.training.tracing import Tracing
from bigbatch.models.decoder import Transformer, TransformerShape
from bigbatch.models.sizes import own_size
from bigbatch.tasks import TASKS
from bigbatch.tasks.task import Task
from bigbatch.training.batches import Arm, BatchPlan
from bigbatch.training.compute_model import ComputeModel
from bigbatch.training.memory import peak_bytes, reset_peak
from bigbatch.training.trainer import Trainer

VALIDATIONS = 8
"""How often an arm measures its validation loss while it trains, at equal distances; once before, too."""

TARGET_STEPS = 1.1
"""On the way to a target the validation loss is measured whenever the updates have become so many times as many."""


@dataclass(frozen=True)
class Experiment:
    """Everything an arm needs to know.

    Attributes:
        name: the strategy's, as the user wrote it.
        strategy: made on a transport, anew for every arm.
        choices: the strategy's own options, as chosen.
        settings: what the user asked for.
        plan: of the accumulated arm.
        device: what this rank computes on.
        folder: of the run.
        reporter: tells how far the run is.
        simulation: of which the ranks are part, if their clock is a simulated one.
    """

    name: str
    strategy: type[Strategy]
    choices: dict[str, Any]
    settings: Settings
    plan: BatchPlan
    device: torch.device
    folder: Path
    reporter: Reporter
    simulation: Simulation | None = None

    def run(self, transport: Transport) -> None:
        """Run every arm on every rank of `transport`; rank 0 writes the run's folder.

        Raises:
            BigBatchError: on every rank, if the ranks were asked for different things or one cannot do its part.
        """
        torch.set_num_threads(self.settings.threads)
        if self.settings.node_size is not None:
            node_size = self.settings.node_size
            together(transport, lambda: transport.arrange(node_size))
        options = {
            **self.settings.as_json(),
            **self.choices,
            "simulated": self.simulation.as_json() if self.simulation is not None else None,
            "plan": asdict(self.plan),
            "bigbatch version": bigbatch.__version__,
        }
        agree(transport, "option", sorted(options.items()))
        arms = self.settings.chosen_arms(self.plan)
        task = self._prepare(transport)
        for arm in arms:
            self._optimizer(task, arm)  # what it refuses, it refuses before the first arm
        writer = together(transport, lambda: RunWriter(self.folder) if transport.rank == 0 else None)
        if writer is None:
            self._run_arms(transport, task, arms, lambda _: None, Tracing(transport, self.settings, lambda _: None))
            return
        with writer:
            writer.config({"strategy": self.name, **options, "environment": environment()})
            tracing = Tracing(transport, self.settings, writer.trace)
            writer.summary(self._run_arms(transport, task, arms, writer.metric, tracing))

    def _prepare(self, transport: Transport) -> Task:
        """Rank 0 reads the corpus first; the others then find it in the cache."""
        settings = self.settings

        def prepare() -> Task:
            return task_named(settings.task, settings.text, settings.context, settings.vocabulary)

        first = together(transport, lambda: prepare() if transport.rank == 0 else None)
        task = together(transport, lambda: first or prepare())
        agree(transport, "corpus", [("sha256", task.corpus_sha256), ("vocabulary", task.vocabulary_size)])
        return task

    def _run_arms(
        self,
        transport: Transport,
        task: Task,
        arms: list[Arm],
        record: Callable[[dict[str, Any]], None],
        tracing: "Tracing",
    ) -> dict[str, Any]:
        results = [self._run_arm(transport, task, arm, record, tracing) for arm in arms]
        return {
            "strategy": self.name,
            "workers": self.plan.workers,
            "task": self.settings.task,
            "target": self.settings.target,
            "corpus_sha256": task.corpus_sha256,
            "parameters": results[0].pop("parameters"),
            "arms": [{key: value for key, value in result.items() if key != "parameters"} for result in results],
            "simulated": self.simulation.as_json() if self.simulation is not None else None,
            "environment": environment(),
        }

    def _run_arm(
        self,
        transport: Transport,
        task: Task,
        arm: Arm,
        record: Callable[[dict[str, Any]], None],
        tracing: "Tracing",
    ) -> dict[str, Any]:
        """Train one arm from the start; every rank returns the same result."""
        settings = self.settings
        reset_peak(self.device)
        shape = TransformerShape(
            task.vocabulary_size, settings.context, settings.layers, settings.width, settings.heads
        )
        model = Transformer(shape, settings.seed).to(self.device)
        parameters = FlatParameters(model)
        strategy = together(transport, lambda: self.strategy(transport))
        strategy.start(
            parameters,
            self._optimizer(task, arm),
            bucket_bytes=settings.bucket_size,
            with_squares=settings.noise_scale,
        )
        examples = settings.examples(task.example_tokens)
        trainer = Trainer(
            model,
            task,
            strategy,
            parameters,
            arm.plan,
            examples,
            settings.seed,
            overlap=settings.overlap,
            compute_model=self._compute_model(strategy, model, task, shape, arm.plan.micro_batch),
            measure_noise=settings.noise_scale,
        )
        remarks = [*strategy.remarks, *noise_remarks(settings, arm, tells_squares=strategy.tells_squares)]
        self.reporter.remark(remarks)
        with tracing.arm(arm.name, works=strategy.worker is not None):
            history = strategy.run(lambda: train(trainer, arm.name, settings, self.reporter, record))
        mine = {
            "peak": peak_bytes(self.device) if self.simulation is None else math.nan,  # of all ranks together
            "history": None if history is None else history.totals(),
            "until": None if history is None else history.until(settings.target),
            "statistics": strategy.statistics(),
        }
        ranks = all_gather(transport, mine)
        buckets = len(strategy.buckets)
        strategy.close()
        first = next(rank["until"] for rank in ranks if rank["until"] is not None)
        row = {**summarise(arm, ranks), **first, "buckets": buckets, "remarks": remarks}
        return {"parameters": parameters.values.numel(), **row}

    def _optimizer(self, task: Task, arm: Arm) -> OptimizerFactory:
        """What makes the arm's optimisers."""
        updates = arm.plan.updates(self.settings.examples(task.example_tokens))
        return self.settings.optimizer_for(arm.plan, updates, self.strategy)

    def _compute_model(
        self, strategy: Strategy, model: Transformer, task: Task, shape: TransformerShape, micro_batch: int
    ) -> ComputeModel | None:
        """How long this worker computes on a simulated clock; None on a real one, or for who does not work."""
        if self.simulation is None or strategy.worker is None:
            return None

        def seconds_per_token() -> float:
            batch = task.batch("training", np.arange(min(micro_batch, task.sizes["training"])))
            _, tokens = task.loss(model, batch)

            def compute() -> None:
                task.loss(model, batch)[0].backward()  # type: ignore[no-untyped-call]

            return fastest(compute) / tokens

        size = own_size(shape.vocabulary, shape.context, shape.layers, shape.width)
        return self.simulation.compute_model(strategy.worker, size, seconds_per_token, micro_batch)


@lru_cache(maxsize=1)
def task_named(name: str, text: Path | None, context: int, vocabulary: int) -> Task:
    """A task, prepared; the last one is kept, for a process that runs several experiments on it.

    Args:
        name: in the registry of tasks.
        text: the user's own, if there is one.
        context: tokens a model sees at once.
        vocabulary: number of different tokens, at most.
    """
    task_class: type[Task] = TASKS.load(name)
    return task_class.prepare(text, context, vocabulary)


def noise_remarks(settings: Settings, arm: Arm, *, tells_squares: bool) -> list[str]:
    """What the user should know about an arm whose noise scale was asked for."""
    remark = unmeasured(arm, tells_squares=tells_squares) if settings.noise_scale else ""
    return [remark] if remark else []


def train(
    trainer: Trainer, arm: str, settings: Settings, reporter: Reporter, record: Callable[[dict[str, Any]], None]
) -> "History":
    """Train one arm on a worker, measuring the validation loss now and then.

    Args:
        trainer: of that worker.
        arm: its name.
        settings: what the user asked for.
        reporter: tells how far it is.
        record: takes a line about every update and every validation.
    """
    history = History()
    validation_examples = math.ceil(settings.validation_tokens / trainer.task.example_tokens)
    updates = trainer.plan.updates(trainer.examples)
    stops = validation_points(updates, to_target=settings.target is not None)

    def validate(number: int) -> None:
        loss = trainer.validate(validation_examples)
        if loss is not None:  # else another worker looks
            history.validated(number, history.tokens, history.seconds, loss)
            record({"kind": "validation", "arm": arm, **asdict(history.validations[-1])})

    meet = trainer.plan.workers > 1  # once all have ended, whatever the number of their last update is
    trainer.warm_up()
    validate(0)
    with reporter.arm(arm, updates) as bar:
        for update in trainer.updates():
            history.add(update)
            line = {
                "kind": "update",
                "arm": arm,
                **asdict(update),
                "applied": update.applied,
                "noise_scale": update.noise_scale,
                "compute_seconds": update.compute_seconds,
                "total_seconds": history.seconds,
            }
            record(without_unmeasured(line))
            bar.advance(update.number, update.loss)
            passed = [stop for stop in stops if stop <= update.number]
            if passed and not (meet and trainer.ended):
                validate(passed[-1])
                stops = stops[len(passed) :]
            if history.ended(settings.target):  # for all workers alike: they have measured the same
                break
        else:
            if meet:
                validate(updates)
    return history


def validation_points(updates: int, *, to_target: bool) -> list[int]:
    """After which updates the validation loss is measured; the last is always among them.

    Args:
        updates: how many there are, at most.
        to_target: whether to measure at equal ratios, to know how many updates a loss took to that precision, instead
            of at equal distances.
    """
    if not to_target:
        return sorted(set(np.linspace(0, updates, VALIDATIONS + 1).round().astype(int).tolist()) - {0})
    points = [1]
    while points[-1] < updates:
        points.append(min(updates, math.ceil(TARGET_STEPS * points[-1])))
    return points
