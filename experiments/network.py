"""Experiments over servers on a network: what `ps serve` and `ps worker` do."""

import dataclasses
import json
import math
import random
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

import bigbatch
from bigbatch.batches import Arm, BatchPlan
from bigbatch.comm.errors import CommunicationError, ConfigurationError, MalformedError, MismatchError
from bigbatch.comm.parameters import FlatParameters, OptimizerFactory, refuse_parts
from bigbatch.comm.schedule import chunk_bounds
from bigbatch.comm.server.heartbeat import Heartbeat
from bigbatch.comm.server.messages import Stage
from bigbatch.comm.server.network_server import NetworkServer
from bigbatch.comm.server.remote_shard import RemoteShard, Wire
from bigbatch.comm.server.serve import serve
from bigbatch.comm.server.shard import Shard
from bigbatch.comm.server.snapshots import Snapshots
from bigbatch.comm.server.sockets import Listener
from bigbatch.comm.strategies.parameter_server import ParameterServer, Setup
from bigbatch.comm.strategies.remote_servers import Facts, RemoteServers, facts_about
from bigbatch.comm.transports.alone import Alone
from bigbatch.experiments.experiment import NOISE, History, noise_remarks, summarise, train, without_unmeasured
from bigbatch.experiments.progress import Reporter
from bigbatch.experiments.run import RunWriter, environment
from bigbatch.experiments.settings import Settings
from bigbatch.memory import peak_bytes, reset_peak
from bigbatch.model import Transformer, TransformerShape
from bigbatch.optimizers import optimizer_named
from bigbatch.tasks import TASKS, Task
from bigbatch.trainer import Trainer, Update

LINGER_SECONDS = 3.0
"""How long a server that is done tells so to its workers, who ask twice a second."""

ASK_SECONDS = 0.5
"""How often a worker that has nothing to do asks whether there is more."""


FAREWELL_SECONDS = 2.0
"""How long a worker that is interrupted tries to say so."""


@dataclass(frozen=True)
class Announcement:
    """What a server tells whoever asks what is trained there.

    Attributes:
        version: of bigbatch.
        settings: the experiment's, as JSON has them.
        arm: the name of the arm that is trained now.
        micro_batch: examples that a worker computes at once.
        accumulation: micro-batches behind a gradient.
        examples: to be seen in all.
        part: which part of the parameters the server holds ...
        parts: ... of how many.
    """

    version: str
    settings: dict[str, Any]
    arm: str
    micro_batch: int
    accumulation: int
    examples: int
    part: int
    parts: int

    @classmethod
    def of(cls, entries: Any, name: str) -> Self:
        """As the server at `name` has sent it.

        Raises:
            MismatchError: it is of another version of bigbatch.
        """
        try:
            announcement = cls(**entries)
            announcement.plan.updates(announcement.examples)
            if announcement.version != bigbatch.__version__:
                raise ValueError(announcement.version)
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise MismatchError(
                f"The server at {name} announces what this bigbatch, version {bigbatch.__version__}, does not "
                f"understand ({error}). Install the same version on both sides."
            ) from error
        return announcement

    @property
    def plan(self) -> BatchPlan:
        """A batch is one worker's share: the server says which one is next."""
        return BatchPlan(self.micro_batch, self.accumulation, workers=1)


def model_of(settings: Settings, task: Task) -> Transformer:
    """The model that an experiment trains."""
    return Transformer(
        TransformerShape(task.vocabulary_size, settings.context, settings.layers, settings.width, settings.heads),
        settings.seed,
    )


def facts_of(task: Task) -> Facts:
    """What servers and workers must have alike besides the parameters."""
    return [("corpus", "sha256", task.corpus_sha256), ("vocabulary", "size", str(task.vocabulary_size))]


@dataclass(frozen=True)
class Offer:
    """What a server trains, and how.

    Attributes:
        name: the strategy's, as the user wrote it.
        setup: what kind of server.
        settings: what the user asked for.
        plan: of the accumulated arm, with as many workers as must be there to begin.
        part: which part of the parameters this server holds; `setup` says of how many.
        patience: seconds of silence after which a worker takes part no more.
    """

    name: str
    setup: Setup
    settings: Settings
    plan: BatchPlan
    part: int
    patience: float

    @property
    def strategy(self) -> type[ParameterServer]:
        """The same kind of server among ranks."""
        return ParameterServer.configured(asdict(self.setup))

    def optimizer(self, task: Task, arm: Arm) -> OptimizerFactory:
        """What makes an arm's optimiser, for this server's part.

        Raises:
            ConfigurationError: it must see the whole, and there are several servers; or as `Settings.optimizer_for`.
        """
        updates = arm.plan.updates(self.settings.examples(task.example_tokens))
        made = self.settings.optimizer_for(arm.plan, updates, self.strategy)
        refuse_parts(made, self.setup.servers)
        return made

    def as_json(self) -> dict[str, Any]:
        """In types that JSON can write."""
        return {
            **self.settings.as_json(),
            **asdict(self.setup),
            "plan": asdict(self.plan),
            "part": self.part,
            "patience": self.patience,
            "bigbatch version": bigbatch.__version__,
        }


OF_ONE_START = ("device", "threads", "deadline", "patience")
"""What a server that goes on from a snapshot may do differently."""


class ServedExperiment:
    """The server's part of an experiment: arm after arm, until all is trained.

    Args:
        offer: what is trained.
        listener: where workers come.
        folder: of the run.
        snapshots: where to keep what must not be lost, if anywhere ...
        interval: ... every so many seconds.
        tell: called with what the user should know, in sentences without their full stops.
    """

    def __init__(
        self,
        offer: Offer,
        listener: Listener,
        folder: Path,
        snapshots: Snapshots | None,
        interval: float,
        tell: Callable[[str], None],
    ) -> None:
        self._offer = offer
        self._listener = listener
        self._folder = folder
        self._snapshots = snapshots
        self._interval = interval
        self._tell = tell

    def run(self) -> None:
        """Serve until everything is trained, and write the run's folder.

        Raises:
            ConfigurationError: what was asked cannot be done, or the snapshot is of something else.
            KeyboardInterrupt: somebody ended it; what it has is kept in a snapshot.
        """
        settings = self._offer.settings
        torch.set_num_threads(settings.threads)
        task_class: type[Task] = TASKS.load(settings.task)
        task = task_class.prepare(settings.text, settings.context, settings.vocabulary)
        arms = settings.chosen_arms(self._offer.plan)
        for arm in arms:
            self._offer.optimizer(task, arm)  # what it refuses, it refuses before anybody has come
        earlier, endpoint = self._earlier(), ""
        results: list[dict[str, Any]] = json.loads(earlier["results"]) if earlier else []
        with RunWriter(self._folder) as writer:
            writer.config({"strategy": self._offer.name, **self._offer.as_json(), "environment": environment()})
            for arm in arms[len(results) :]:
                served = ServedArm(self._offer, task, arm, writer, self._tell, last=arm is arms[-1])
                if earlier is not None:
                    served.go_on(earlier["arm"])
                    self._tell(
                        f"Went on with the arm {arm.name} from version {served.server.shard.version}, kept "
                        f"{time.time() - earlier['when']:.1f} s ago; what may have come after that is done again"
                    )
                    earlier = None
                if not endpoint:
                    endpoint = self._listener.open(served.server.largest)
                    self._tell(f"Serving at {endpoint}, {self._listener.audience}")
                self._serve(served, results)
                results.append(served.summary())
            writer.summary(
                {
                    "strategy": self._offer.name,
                    "workers": max(result["workers"] for result in results),
                    "task": settings.task,
                    "corpus_sha256": task.corpus_sha256,
                    "parameters": served.parameters,
                    "arms": results,
                    "environment": environment(),
                }
            )
        if self._snapshots is not None:
            self._snapshots.remove()
        until = time.time() + LINGER_SECONDS
        serve(self._listener, served.server, lambda now: now > until, lambda: None, LINGER_SECONDS)

    def _serve(self, served: "ServedArm", results: list[dict[str, Any]]) -> None:
        def keep() -> None:
            if self._snapshots is not None:
                asked, before = json.dumps(self._offer.as_json()), json.dumps(results)
                arm = served.server.state_dict()
                self._snapshots.save({"when": time.time(), "asked": asked, "results": before, "arm": arm})

        try:
            serve(self._listener, served.server, served.finished, keep, self._interval)
        except KeyboardInterrupt:
            keep()
            raise

    def _earlier(self) -> dict[str, Any] | None:
        """What an earlier server of the same experiment has kept."""
        state = self._snapshots.newest() if self._snapshots is not None else None
        if state is None:
            return None
        before, now = json.loads(state["asked"]), json.loads(json.dumps(self._offer.as_json()))
        for key in now.keys() - set(OF_ONE_START):
            if before.get(key) != now[key]:
                raise ConfigurationError(
                    f"The snapshot is of another experiment: {key} was {before.get(key)!r} and is {now[key]!r} now. "
                    "Use the same options to go on, or another folder to begin anew."
                )
        return state


class ServedArm:
    """One arm, as its server sees it: the workers' notes become the run's metrics and the arm's row.

    Args:
        offer: what is trained.
        task: what is learnt.
        arm: which arm.
        writer: of the run.
        tell: called with who comes and goes.
        last: whether it is the last.

    Attributes:
        server: of this arm.
        parameters: elements of the whole model.
    """

    def __init__(
        self, offer: Offer, task: Task, arm: Arm, writer: RunWriter, tell: Callable[[str], None], *, last: bool
    ) -> None:
        self._offer = offer
        self._arm = arm
        self._writer = writer
        self._workers: dict[int, int] = {}
        self._validated: set[float] = set()
        self._busy = Busy()
        self._remarks = noise_remarks(offer.settings, arm, tells_squares=RemoteServers.tells_squares)
        for remark in self._remarks:
            tell(remark)
        self._examples = offer.settings.examples(task.example_tokens)
        parameters = FlatParameters(model_of(offer.settings, task))
        self.parameters = len(parameters.values)
        announcement = Announcement(
            bigbatch.__version__,
            offer.settings.as_json(),
            arm.name,
            arm.plan.micro_batch,
            arm.plan.accumulation,
            self._examples,
            offer.part,
            offer.setup.servers,
        )
        self.server = NetworkServer(
            self._shard(parameters, offer.optimizer(task, arm)),
            announcement.plan.updates(self._examples),
            json.dumps(asdict(announcement)),
            [*facts_of(task), *facts_about(parameters)],
            offer.patience,
            offer.plan.workers,
            self._noted,
            tell,
            last=last,
        )

    def _shard(self, parameters: FlatParameters, optimizer: OptimizerFactory) -> Shard:
        setup = self._offer.setup
        bounds = chunk_bounds(len(parameters.values), setup.servers).tolist()
        first, stop = bounds[self._offer.part : self._offer.part + 2]
        return Shard(
            parameters.values[first:stop].clone(),
            parameters.pieces(first, stop),
            optimizer,
            setup.rule(),
            setup.treatment(),
        )

    def finished(self, now: float) -> bool:
        """Whether the arm is trained."""
        return self.server.stage(now) is Stage.FINISHED

    def go_on(self, state: dict[str, Any]) -> None:
        """From what an earlier server of this arm has kept."""
        self.server.load_state_dict(state)
        notes = [
            (when, number, row)
            for number, session in self.server.sessions.items()
            for when, row in session.notes.values()
        ]
        for when, number, row in sorted(notes):
            self._record(number, np.array(row), when)

    def _noted(self, session: int, row: NDArray[np.float64]) -> None:
        """A worker has noted something."""
        self._record(session, row, time.time())

    def _record(self, session: int, row: NDArray[np.float64], when: float) -> None:
        """Make a note a line of the metrics; their time is that in which any worker trained."""
        record = record_of(row)
        worker = self._workers.setdefault(session, len(self._workers))
        if record["kind"] == "update":
            self._busy.add(when - record["seconds"], when)
            record["total_seconds"] = self._busy.seconds
        if record["kind"] == "validation":
            record["seconds"] = self._busy.seconds
            if record["update"] in self._validated:  # one worker's is enough
                return
            self._validated.add(record["update"])
        if record["kind"] != "peak":
            self._writer.metric({**record, "arm": self._arm.name, "worker": worker})

    def summary(self) -> dict[str, Any]:
        """The arm's row."""
        sessions = self.server.sessions.values()
        ranks = [rank for rank in (rank_of(session.notes.values()) for session in sessions) if rank is not None]
        ranks.sort(key=lambda rank: -rank["history"]["tokens"])
        shard = self.server.shard
        statistics = {
            "consistency": self._offer.setup.consistency,
            **shard.statistics(),
            "gradients_lost": self.server.lost,
            "shares_undone": self.server.undone,
            "counts": dict(self.server.counts),
        }
        server = {"peak": peak_bytes(torch.device("cpu")), "history": None, "statistics": statistics}
        there = replace(self._arm, plan=replace(self._arm.plan, workers=max(1, self.server.most_workers)))
        row = summarise(there, [*ranks, server], shard.tokens, self._busy.seconds)
        made = shard.version + shard.skipped
        return {**row, "workers": there.plan.workers, "updates": made, "buckets": 1, "remarks": self._remarks}


UPDATE, VALIDATION, PEAK = 0.0, 1.0, 2.0
"""The first number of a note."""

UPDATE_FIELDS = [field.name for field in dataclasses.fields(Update)]
NOTED: dict[float, list[str]] = {
    UPDATE: [*UPDATE_FIELDS, "noise_scale", "compute_seconds", "total_seconds"],
    VALIDATION: ["update", "tokens", "seconds", "loss"],
    PEAK: ["bytes"],
}
KINDS = {UPDATE: "update", VALIDATION: "validation", PEAK: "peak"}
WHOLE = {"number", "tokens", "workers", "total_tokens", "bytes_sent", "update", "bytes"}
"""What is counted, and so must be a finite number."""


def row_of(record: dict[str, Any]) -> NDArray[np.float64]:
    """A line of metrics as a note."""
    kind = next(number for number, name in KINDS.items() if name == record["kind"])
    complete = {**dict.fromkeys(NOISE, math.nan), **record}
    return np.array([kind, *(complete[name] for name in NOTED[kind])], dtype=np.float64)


def record_of(row: NDArray[np.float64]) -> dict[str, Any]:
    """A note as a line of metrics.

    Raises:
        MalformedError: it is none.
    """
    try:
        kind, *numbers = row.tolist()
        values: dict[str, Any] = dict(zip(NOTED[kind], numbers, strict=True))
        for name in WHOLE & values.keys():
            values[name] = int(values[name])
    except (KeyError, ValueError, OverflowError) as error:
        raise MalformedError(f"A note of {len(row)} numbers says nothing that is known here") from error
    if "applied" in values:
        values["applied"] = bool(values["applied"])
        values = without_unmeasured(values)
    return {"kind": KINDS[kind], **values}


def rank_of(notes: Iterable[tuple[float, Sequence[float]]]) -> dict[str, Any] | None:
    """What one worker's notes say about it, as `summarise` takes it; None if it never made an update."""
    history, peak = History(), 0
    for _, row in notes:
        record = record_of(np.array(row))
        if record["kind"] == "update":
            history.add(Update(**{name: record[name] for name in UPDATE_FIELDS if name in record}))
        elif record["kind"] == "validation":
            history.validated(record["update"], record["tokens"], record["seconds"], record["loss"])
        else:
            peak = record["bytes"]
    return {"peak": peak, "history": history.totals(), "statistics": {}} if history.updates else None


class Busy:
    """How long at least one worker was at an update, of which one hears when it ends.

    Attributes:
        seconds: so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._reached = -math.inf

    def add(self, begin: float, end: float) -> None:
        """An update from `begin` to `end`, in seconds on any clock; no earlier one ended later."""
        self.seconds += max(0.0, end - max(begin, self._reached))
        self._reached = max(self._reached, end)


@dataclass(frozen=True)
class NetworkWorker:
    """A worker's part: train whatever the servers announce, until they say that all is done.

    Attributes:
        addresses: of the servers.
        dial: makes a wire to one of them.
        text: this worker's own copy of the text, if the experiment has one.
        task: the task, if it is not one of bigbatch's own; a server cannot name a file to be run here.
        device: what it computes on.
        threads: of torch.
        deadline: seconds without an answer after which it gives up.
        reporter: tells how far it is.
    """

    addresses: Sequence[str]
    dial: Callable[[str], Wire]
    text: Path | None
    task: str | None
    device: torch.device
    threads: int
    deadline: float
    reporter: Reporter

    def run(self) -> None:
        """Work until all is done.

        Raises:
            MismatchError: the servers do not belong together, or train what this worker has not.
            CommunicationError: a server refuses to talk, or does not answer any more.
        """
        torch.set_num_threads(self.threads)
        wires = [self.dial(address) for address in self.addresses]
        try:
            while True:
                shards = [self._shard(wire) for wire in wires]
                stage, announcement, shards = self._ask(shards)
                if stage is Stage.FINISHED:
                    return
                if stage is Stage.OPEN:
                    self._train(announcement, shards)
                else:
                    time.sleep(ASK_SECONDS)
        finally:
            for wire in wires:
                wire.close()

    def _shard(self, wire: Wire) -> RemoteShard:
        session = random.SystemRandom().getrandbits(64)
        return RemoteShard(wire, session, self.deadline, tell=self.reporter.tell)

    def _ask(self, shards: list[RemoteShard]) -> tuple[Stage, Announcement, list[RemoteShard]]:
        """How far the servers are, what they train, and the servers in the order of the parameters."""
        answers = [(shard, *shard.hello()) for shard in shards]
        announced = {shard: Announcement.of(entries, shard.name) for shard, entries, _ in answers}
        first = next(iter(announced.values()))
        ordered = sorted(shards, key=lambda shard: announced[shard].part)
        parts = [announced[shard].part for shard in ordered]
        if parts != list(range(first.parts)):
            raise MismatchError(
                f"The servers {', '.join(self.addresses)} hold the parts "
                f"{', '.join(str(part + 1) for part in parts)} of {first.parts}. Name every server of one "
                "experiment, with a --server each."
            )
        stages = {shard: stage for shard, _, stage in answers}
        if stages[ordered[0]] is Stage.FINISHED:  # it hands out the work
            return Stage.FINISHED, first, ordered
        for shard in ordered:
            if replace(announced[shard], part=first.part) != first:
                if announced[shard].arm != first.arm:
                    return Stage.CLOSING, first, ordered  # one of them is an arm ahead
                raise MismatchError(
                    f"The servers {ordered[0].name} and {shard.name} do not train the same: start them with the same "
                    "options."
                )
        stage = Stage.CLOSING if len(set(stages.values())) > 1 else stages[ordered[0]]
        return stage, first, ordered

    def _train(self, announcement: Announcement, shards: list[RemoteShard]) -> None:
        settings = self._settings(announcement)
        task_class: type[Task] = TASKS.load(settings.task)
        task = task_class.prepare(self.text, settings.context, settings.vocabulary)
        reset_peak(self.device)
        model = model_of(settings, task).to(self.device)
        parameters = FlatParameters(model)
        strategy = RemoteServers(Alone(), shards, facts_of(task))
        strategy.start(parameters, optimizer_named("sgd", settings.learning_rate))

        def note(record: dict[str, Any]) -> None:
            for shard in shards:
                shard.note(row_of(record))

        heartbeat = Heartbeat(shards, self.dial)
        heartbeat.start()
        try:
            trainer = Trainer(
                model,
                task,
                strategy,
                parameters,
                announcement.plan,
                announcement.examples,
                settings.seed,
                overlap=False,
                measure_noise=settings.noise_scale,
            )
            train(trainer, announcement.arm, settings, self.reporter, note)
            note({"kind": "peak", "bytes": peak_bytes(self.device)})
        except KeyboardInterrupt:
            for shard in shards:
                with suppress(CommunicationError):
                    shard.leave(FAREWELL_SECONDS)
            raise
        finally:
            heartbeat.stop()
        for shard in shards:
            shard.leave()
        strategy.close()

    def _settings(self, announcement: Announcement) -> Settings:
        try:
            settings = Settings(**{**announcement.settings, "text": self.text})
        except TypeError as error:
            raise MismatchError(f"The server's settings are not those of this bigbatch ({error}).") from error
        if self.task is not None:
            return replace(settings, task=self.task)
        if settings.task not in TASKS.names():
            raise MismatchError(
                f"The server trains the task {settings.task!r}, which is not one of bigbatch's own: name your copy of "
                "it with --task."
            )
        return settings
