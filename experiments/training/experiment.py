"""An experiment: the same training over one strategy, in several arms that see the same tokens."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import bigbatch
from bigbatch.comm.strategies.strategy import Strategy
from bigbatch.comm.wires.agreement import agree, all_gather, together
from bigbatch.comm.wires.life import doing, now_doing
from bigbatch.comm.wires.transport import Transport
from bigbatch.experiments.runs.run import Run, environment
from bigbatch.experiments.runs.writer import RunWriter
from bigbatch.experiments.training.arm import Trained, train_and_measure
from bigbatch.experiments.training.assemble import Assembly, facts_about_task, noise_remarks, task_of, use_threads
from bigbatch.experiments.training.history import summarise, summary_of
from bigbatch.experiments.training.progress import Reporter
from bigbatch.experiments.training.settings import Request
from bigbatch.experiments.training.simulated import Simulation, fastest
from bigbatch.experiments.training.tracing import Tracing
from bigbatch.models.model import SavesItself
from bigbatch.tasks.answers import Answer, AnsweringTask
from bigbatch.tasks.task import Task
from bigbatch.training.batches import Arm, BatchPlan
from bigbatch.training.compute_model import ComputeModel
from bigbatch.training.memory import peak_bytes, reset_peak

EXAMPLES_SHOWN = 20
"""Number of held-out examples whose answers are written to the run's folder."""


@dataclass(frozen=True)
class Experiment:
    """One rank's part of an experiment.

    Attributes:
        request: what was asked for.
        strategy: the strategy with its options, of which every arm makes a new object.
        plan: how the batches of the accumulated arm are divided.
        device: the device that this rank computes on.
        place: makes the folder of the run; rank 0 calls it, when nothing else can be refused any more.
        reporter: shows the progress.
        simulation: the simulation that the ranks are part of; None on a real clock.
    """

    request: Request
    strategy: type[Strategy]
    plan: BatchPlan
    device: torch.device
    place: Callable[[], Path]
    reporter: Reporter
    simulation: Simulation | None = None

    def run(self, transport: Transport) -> Run | None:
        """Run every arm on every rank of `transport`; rank 0 writes the run's folder and returns the run.

        Returns:
            The folder, on rank 0; else None.

        Raises:
            BigBatchError: on every rank, if the ranks were asked for different things or one cannot do its part.
        """
        threads = torch.get_num_threads()
        use_threads(self.request.settings.machine.threads, self.reporter.tell)
        try:
            return self._run(transport)
        finally:
            torch.set_num_threads(threads)

    def _run(self, transport: Transport) -> Run | None:
        settings = self.request.settings
        now_doing("getting ready")
        if (node_size := settings.wires.node_size) is not None:
            together(transport, lambda: transport.arrange(node_size))
        self.strategy.check_wire_here(settings.wires.wire, transport, self.device)
        asked = {
            **self.request.written(),
            "simulated": self.simulation.as_json() if self.simulation is not None else None,
            "plan": asdict(self.plan),
            "bigbatch version": bigbatch.__version__,
        }
        agree(transport, "option", sorted(asked.items()))
        assembly = Assembly(settings, self._prepare(transport))
        arms = settings.batch.chosen_arms(self.plan)
        for arm in arms:
            assembly.optimizer(arm.plan, self.strategy)  # what it refuses, it refuses before the first arm
        together(transport, assembly.try_model)
        tell = self.reporter.tell
        self.reporter.remark(assembly.task.remarks)
        writer = together(transport, lambda: RunWriter(self.place(), tell) if transport.rank == 0 else None)
        if writer is None:
            tracing = Tracing(transport, settings.observation, lambda _: None)
            self._run_arms(transport, assembly, arms, Recorder(), tracing)
            return None
        with writer:
            writer.config({**asked, "environment": environment()})
            tracing = Tracing(transport, settings.observation, writer.trace)
            recorder = WritingRecorder(writer, assembly.task)
            summary = self._run_arms(transport, assembly, arms, recorder, tracing)
            now_doing("writing the run's folder")
            writer.summary(summary)
            recorder.finish()
            return writer.run(summary)

    def _prepare(self, transport: Transport) -> Task:
        """Prepare the task on rank 0 first; the others then find its text in the cache."""
        data = self.request.settings.data

        def prepare() -> Task:
            with doing("preparing the text", takes_its_time=True):
                return task_of(data)

        with doing("waiting for rank 0 to prepare the text" if transport.rank else "getting ready"):
            first = together(transport, lambda: prepare() if transport.rank == 0 else None)
        task = together(transport, lambda: first or prepare())
        agree(transport, "corpus", list(facts_about_task(task).items()))
        return task

    def _run_arms(
        self,
        transport: Transport,
        assembly: Assembly,
        arms: list[Arm],
        recorder: "Recorder",
        tracing: Tracing,
    ) -> dict[str, Any]:
        """Run one arm after the other; returns the run's summary."""
        results = [self._run_arm(transport, assembly, arm, recorder, tracing) for arm in arms]
        parameters = [result.pop("parameters") for result in results]
        return summary_of(
            self.request,
            self.plan.workers,
            assembly.task,
            parameters[0],
            results,
            simulated=self.simulation.as_json() if self.simulation is not None else None,
        )

    def _run_arm(
        self,
        transport: Transport,
        assembly: Assembly,
        arm: Arm,
        recorder: "Recorder",
        tracing: Tracing,
    ) -> dict[str, Any]:
        """Train one arm from the start; every rank returns the same result."""
        settings = assembly.settings
        now_doing(f"training the arm {arm.name}")
        reset_peak(self.device)
        strategy = together(transport, lambda: self.strategy(transport))
        trainer = assembly.trainer(
            strategy,
            assembly.optimizer(arm.plan, self.strategy),
            arm.plan,
            self.device,
            compute_model=self._compute_model(strategy, assembly, arm.plan.examples_at_once(assembly.task.context)),
        )
        noise = noise_remarks(settings, arm, tells_squares=strategy.tells_squares)
        remarks = [*strategy.remarks, *assembly.remarks, *noise]
        self.reporter.remark(remarks)
        with tracing.arm(arm.name, works=strategy.worker is not None):
            trained = strategy.run(
                lambda: train_and_measure(trainer, arm.name, settings, self.reporter, recorder.metric)
            )
        history = trained.history if trained is not None else None
        scores = scores_of(assembly.task, trained) if strategy.worker == 0 else None
        target = settings.observation.target
        mine = {
            "peak": peak_bytes(self.device) if self.simulation is None else math.nan,  # of all ranks together
            "history": None if history is None else history.totals(),
            "until": None if history is None else history.until(target),
            "statistics": strategy.statistics(),
            "scores": scores,
        }
        if trained is not None:
            recorder.trained(arm.name, trained)
        ranks = all_gather(transport, mine)
        buckets = len(strategy.buckets)
        parameters = trainer.parameters.values.numel()
        strategy.close()
        until = next(rank["until"] for rank in ranks if rank["until"] is not None)
        scored = next(rank["scores"] for rank in ranks if rank["scores"] is not None)
        about = {**scored, **settings.formats, "buckets": buckets, "remarks": remarks}
        row = {**summarise(arm, ranks, strategy.replicas(strategy.workers)), **until, **about}
        return {"parameters": parameters, **row}

    def _compute_model(self, strategy: Strategy, assembly: Assembly, micro_batch: int) -> ComputeModel | None:
        """How long this worker computes on a simulated clock; None on a real one, or for a rank that does not train."""
        if self.simulation is None or strategy.worker is None:
            return None

        def seconds_per_token() -> float:
            task, model = assembly.task, assembly.model()
            batch = task.batch("training", np.arange(min(micro_batch, task.sizes["training"])))
            _, tokens = task.loss(model, batch)

            def compute() -> None:
                with assembly.precision.autocast(self.device):
                    loss, _ = task.loss(model, batch)
                loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types

            return fastest(compute) / tokens

        return self.simulation.compute_model(strategy.worker, assembly.size(), seconds_per_token, micro_batch)


def scores_of(task: Task, trained: Trained | None) -> dict[str, Any]:
    """Computes the entries of a summary's row about the task's metrics, and about those of a trivial answer."""
    measured = trained.measured if trained is not None else None
    if not measured:
        return {"metrics": {}}
    baseline = {"baseline": task.baseline(measured)} if isinstance(task, AnsweringTask) else {}
    return {"metrics": task.metrics(measured), **baseline}


class Recorder:
    """Takes what a rank has to say about a run; this base class, for all ranks but rank 0, keeps nothing."""

    def metric(self, record: dict[str, Any]) -> None:
        """Takes the record of an update or of a validation."""

    def trained(self, arm: str, trained: Trained) -> None:
        """Takes what is left of an arm that was trained."""


class WritingRecorder(Recorder):
    """Takes what rank 0 has to say about a run, and writes it to the run's folder.

    Args:
        writer: writes the folder.
        task: the task that is learnt.
    """

    def __init__(self, writer: RunWriter, task: Task) -> None:
        self._writer = writer
        self._task = task
        self._answers: dict[str, list[Answer]] = {}
        self._weights: dict[str, tuple[dict[str, Tensor], SavesItself | None]] = {}

    def metric(self, record: dict[str, Any]) -> None:
        """Write the record of an update or of a validation."""
        self._writer.metric(record)

    def trained(self, arm: str, trained: Trained) -> None:
        """Keep the weights of an arm that was trained, and its answers."""
        if trained.weights is not None:
            self._weights[arm] = trained.weights, trained.model
        if trained.measured and isinstance(self._task, AnsweringTask):
            self._answers[arm] = [Answer(*entry) for entry in trained.measured[:EXAMPLES_SHOWN]]

    def finish(self) -> None:
        """Write the answers of all arms side by side, if there are any, and the weights.

        They come last, so that what they take of a small disk is not missing for results.
        """
        if self._answers:
            self._writer.examples(self._answers)
        for arm, (weights, model) in self._weights.items():
            if model is None:
                self._writer.weights(arm, weights)
            else:
                self._writer.model(arm, model, weights, self._task.vocabulary)
