"""The experiment that servers on a network offer: what `ps serve` does."""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

import bigbatch
from bigbatch.comm.errors import BigBatchError, CommunicationError, ConfigurationError, MalformedError
from bigbatch.comm.foreign import same_directory
from bigbatch.comm.parameters import FlatParameters, OptimizerFactory
from bigbatch.comm.schedules.schedule import chunk_bounds
from bigbatch.comm.server.network.elastic_server import NetworkServer
from bigbatch.comm.server.network.ending import LONGEST_LINGER_SECONDS
from bigbatch.comm.server.network.messages import Stage
from bigbatch.comm.server.network.serve import serve, steady_time
from bigbatch.comm.server.network.snapshots import Snapshots
from bigbatch.comm.server.network.sockets import Listener
from bigbatch.comm.server.shard import Shard
from bigbatch.comm.strategies.remote import RemoteServers, facts_about
from bigbatch.comm.wires.format import WireFormat
from bigbatch.experiments.runs.run import Run, environment
from bigbatch.experiments.runs.writer import RunWriter
from bigbatch.experiments.training.assemble import Assembly, noise_remarks, task_of, use_threads
from bigbatch.experiments.training.history import summarise, summary_of
from bigbatch.experiments.training.served.notes import Busy, rank_of, record_of
from bigbatch.experiments.training.served.offer import OF_ONE_START, Announcement, Offer, facts_of
from bigbatch.training.batches import Arm
from bigbatch.training.memory import peak_bytes

FAREWELL_SECONDS = 3.0
"""Seconds for which a server that cannot go on tells its workers so, also those that are about to connect."""


class ServedExperiment:
    """The server's part of an experiment: it serves one arm after the other until all are trained.

    Args:
        offer: what is trained.
        listener: the socket that workers connect to.
        folder: the folder of the run.
        snapshots: where the state is kept; None to keep nothing.
        interval: seconds between two snapshots.
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
        self._server: NetworkServer | None = None  # what workers talk to

    @same_directory()
    def run(self) -> Run:
        """Serve until everything is trained, write the run's folder, and return the run.

        Raises:
            ConfigurationError: what was asked for cannot be done, or the snapshot is damaged or of another experiment.
            CommunicationError: another server does not have every share of an arm, and no worker has come for too long.
            KeyboardInterrupt: the user ended it; its state is kept in a snapshot, if there are any.
        """
        settings = self._offer.request.settings
        use_threads(settings.machine.threads, self._tell)
        assembly = Assembly(settings, task_of(settings.data))
        arms = settings.batch.chosen_arms(self._offer.plan)
        for arm in arms:
            self._offer.optimizer(assembly, arm)  # what it refuses, it refuses before anybody has come
        earlier = Earlier.of(self._snapshots, self._offer, [arm.name for arm in arms])
        with RunWriter(self._folder, self._tell) as writer:
            writer.config({**self._offer.written(), "environment": environment()})
            try:
                return self._serve_all(assembly, arms, writer, earlier)
            except Exception as error:
                self._say_farewell(
                    f"{error}" if isinstance(error, BigBatchError) else f"{type(error).__name__}: {error}"
                )
                raise

    def _serve_all(self, assembly: Assembly, arms: Sequence[Arm], writer: RunWriter, earlier: "Earlier | None") -> Run:
        results, endpoint = [] if earlier is None else earlier.results, ""
        for arm in arms[len(results) :]:
            served = ServedArm(self._offer, assembly, arm, writer, self._tell, last=arm is arms[-1])
            if earlier is not None:
                earlier.go_on(served)
                self._tell(
                    f"Went on with the arm {arm.name} from version {served.server.shard.version}, kept "
                    f"{max(0.0, time.time() - earlier.when):.1f} s ago; what may have come after that is done again"
                )
                earlier = None
            if not endpoint:
                endpoint = self._listener.open(served.server.largest)
                self._tell(f"Serving at {endpoint}, {self._listener.audience}")
            self._server = served.server
            self._serve(served, results)
            results.append(served.summary())
        workers = max(result["workers"] for result in results)
        summary = summary_of(self._offer.request, workers, assembly.task, served.parameters, results)
        writer.summary(summary)
        self._finish(served.server)
        return writer.run(summary)

    def _serve(self, served: "ServedArm", results: list[dict[str, Any]]) -> None:
        server = served.server

        def keep() -> None:
            if self._snapshots is not None:
                asked, before = json.dumps(self._offer.written()), json.dumps(results)
                arm = server.state_dict()
                self._snapshots.save({"when": time.time(), "asked": asked, "results": before, "arm": arm})

        keep()  # a disk that is too small is one before anybody has computed
        try:
            serve(self._listener, server, served.finished, keep, self._interval)
        except KeyboardInterrupt:
            keep()
            raise
        if server.ending.given_up and not served.last and self._offer.setup.servers > 1:
            raise CommunicationError(
                f"{server.ending.missing_in_words or 'Another server may miss a share of the data'}, and no worker has "
                "come. Start this server again, with the others and their workers, to go on from its snapshot."
            )

    def _finish(self, server: NetworkServer) -> None:
        """Tell the workers that everything is done, also those that were away, for a while."""
        if self._snapshots is not None:
            if server.ending.given_up:
                self._tell(f"The snapshot {self._snapshots.path} is kept: the same command goes on from it")
            else:
                self._snapshots.remove()
        ended = steady_time()
        serve(
            self._listener,
            server,
            lambda now: not server.ending.lingers(ended, now),
            lambda: None,
            LONGEST_LINGER_SECONDS,
        )

    def _say_farewell(self, why: str) -> None:
        """Tell the workers that this server cannot go on, also those that are about to connect."""
        if self._server is None:
            return
        for target, frames in self._server.end(why):
            self._listener.send(target, frames)
        until = steady_time() + FAREWELL_SECONDS
        serve(self._listener, self._server, lambda now: now > until, lambda: None, FAREWELL_SECONDS)


@dataclass(frozen=True)
class Earlier:
    """What an earlier server of the same experiment has kept.

    Attributes:
        snapshots: where it was kept.
        when: when it was kept, in seconds.
        results: the summary's rows of the arms that were trained.
        arm: the state of the arm that was served.
    """

    snapshots: Snapshots
    when: float
    results: list[dict[str, Any]]
    arm: Any

    @classmethod
    def of(cls, snapshots: Snapshots | None, offer: Offer, arms: Sequence[str]) -> Self | None:
        """Reads the newest snapshot; None if there is none.

        Args:
            snapshots: where it is kept.
            offer: what is to be trained now.
            arms: the names of the arms, in order.

        Raises:
            ConfigurationError: the snapshot is damaged, or of another experiment.
        """
        state = snapshots.newest() if snapshots is not None else None
        if snapshots is None or state is None:
            return None
        try:
            before, results, when = json.loads(state["asked"]), json.loads(state["results"]), state["when"]
            names = [result["name"] for result in results]
            whole = isinstance(before, dict) and isinstance(when, int | float) and math.isfinite(when)
            whole = whole and all(type(result["workers"]) is int for result in results)
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ConfigurationError(
                snapshots.damaged(f"it does not say what was asked for and what came out ({type(error).__name__})")
            ) from error
        now = json.loads(json.dumps(offer.written()))
        for key in sorted(now.keys() - set(OF_ONE_START)):
            if whole and before.get(key) != now[key]:
                raise ConfigurationError(
                    f"The snapshot is of another experiment: {key} was {before.get(key)!r} and is {now[key]!r} now. "
                    "Use the same options to go on, or another folder to begin anew."
                )
        if not whole or not isinstance(results, list) or names != list(arms[: len(names)]) or len(names) >= len(arms):
            raise ConfigurationError(
                snapshots.damaged("the arms that it says are trained are not those of this server")
            )
        return cls(snapshots, when, results, state.get("arm"))

    def go_on(self, served: "ServedArm") -> None:
        """Restores the arm that was served.

        Raises:
            ConfigurationError: the snapshot is damaged.
        """
        try:
            served.go_on(self.arm)
        except MalformedError as error:
            raise ConfigurationError(self.snapshots.damaged(str(error))) from error


class ServedArm:
    """The server's part of one arm; it turns the workers' notes into the run's metrics and the arm's row.

    Args:
        offer: what is trained.
        assembly: makes the parts of the experiment.
        arm: the arm.
        writer: writes the run's folder.
        tell: called with a sentence when a worker joins or leaves.
        last: whether this is the last arm.

    Attributes:
        server: the server of this arm.
        last: whether this is the last arm.
        parameters: number of parameters of the whole model.
    """

    def __init__(
        self,
        offer: Offer,
        assembly: Assembly,
        arm: Arm,
        writer: RunWriter,
        tell: Callable[[str], None],
        *,
        last: bool,
    ) -> None:
        self.last = last
        self._offer = offer
        self._arm = arm
        self._writer = writer
        self._workers: dict[int, int] = {}
        self._validated: set[float] = set()
        self._score = assembly.task.score
        self._busy = Busy()
        parameters = FlatParameters(assembly.model())
        noise = noise_remarks(assembly.settings, arm, tells_squares=RemoteServers.tells_squares)
        self._remarks = [*assembly.remarks, *noise]
        for remark in self._remarks:
            tell(remark)
        self.parameters = len(parameters.values)
        announcement = Announcement(
            bigbatch.__version__,
            assembly.settings.written(),
            arm.name,
            arm.plan.micro_batch,
            arm.plan.accumulation,
            assembly.examples,
            offer.part,
            offer.setup.servers,
        )
        task = assembly.task
        tokens = announcement.plan.expected_tokens(task.example_tokens, task.source_tokens)  # as a worker computes it
        wire = WireFormat.for_gradients(assembly.settings.wires.wire, tokens)
        wire.check(parameters.values.dtype)
        self.server = NetworkServer(
            self._shard(parameters, offer.optimizer(assembly, arm)),
            announcement.plan.updates(assembly.examples),
            json.dumps(asdict(announcement)),
            [*facts_of(assembly.task, announcement.settings), *facts_about(parameters, wire)],
            offer.patience,
            offer.plan.workers,
            self._record,
            tell,
            last=last,
            part=offer.part,
            parts=offer.setup.servers,
            wire=wire,
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

    def finished(self, now: float) -> bool:  # noqa: ARG002 - the server is told the time
        """Whether the arm is completely trained."""
        return self.server.stage is Stage.FINISHED

    def go_on(self, state: Any) -> None:
        """Restores the state that an earlier server of this arm has kept, and writes its metrics again.

        Raises:
            MalformedError: it is no state of such a server.
        """
        self.server.load_state_dict(state)
        self.server.members.date_back(steady_time())
        notes = [
            (when, number, row)
            for number, session in self.server.sessions.items()
            for when, row in session.notes.values()
        ]
        for when, number, row in sorted(notes):
            self._record(number, np.array(row), when)

    def _record(self, session: int, row: NDArray[np.float64], when: float) -> None:
        """Make a worker's note a line of the metrics; their time is that in which any worker trained."""
        record = record_of(row, self._score)
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
        """Makes the arm's row for the run's summary; see `summarise`."""
        sessions = self.server.sessions.values()
        entries = (rank_of(session.notes.values(), self._score) for session in sessions)
        ranks = [rank for rank in entries if rank is not None]
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
        row = summarise(there, [*ranks, server], tokens=shard.tokens, seconds=self._busy.seconds)
        made = shard.version + shard.skipped
        missing = self.server.ending.missing_in_words
        remarks = [*self._remarks, *([f"{missing}."] if missing else [])]
        metrics = ranks[0]["metrics"] if ranks else {}
        formats = self._offer.request.settings.formats
        about = {"metrics": metrics, **formats, "buckets": 1, "remarks": remarks}
        return {**row, "workers": there.plan.workers, "updates": made, **about}
