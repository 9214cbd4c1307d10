"""A worker of servers on a network, as `ps worker` runs it."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bigbatch.comm.errors import CommunicationError, ConfigurationError, DeadlineError, MismatchError
from bigbatch.comm.server.network.heartbeat import Heartbeat
from bigbatch.comm.server.network.messages import Stage
from bigbatch.comm.server.network.parts import agree, ask, release
from bigbatch.comm.server.network.remote_shard import RemoteShard
from bigbatch.comm.server.network.wire import Wire
from bigbatch.comm.strategies.remote import RemoteServers
from bigbatch.comm.transports.alone import Alone
from bigbatch.experiments.training.arm import train
from bigbatch.experiments.training.assemble import Assembly, task_of, use_threads
from bigbatch.experiments.training.progress import Reporter
from bigbatch.experiments.training.served.notes import row_of
from bigbatch.experiments.training.served.offer import Announcement, facts_of
from bigbatch.experiments.training.settings import Settings
from bigbatch.models import MODELS
from bigbatch.models.kinds import safe
from bigbatch.models.settings import PRESETS
from bigbatch.optimizers.standard import optimizer_named
from bigbatch.tasks import TASKS
from bigbatch.training.memory import peak_bytes, reset_peak

ASK_SECONDS = 0.5
"""Seconds after which a worker that has nothing to do asks the servers again."""


FAREWELL_SECONDS = 2.0
"""Seconds for which a worker that was interrupted, refused or has failed tries to tell its servers that it ends."""


@dataclass(frozen=True)
class NetworkWorker:
    """A worker that trains whatever its servers announce, until they say that everything is trained.

    Attributes:
        addresses: addresses of the servers.
        dial: opens a connection to the server at an address.
        text: this worker's own copy of the text, if the experiment has one.
        task: this worker's own task, if it is not one of bigbatch's; a server cannot name a file to be run here.
        model: this worker's own model, if it is not one of bigbatch's.
        device: the device that the worker computes on.
        threads: number of threads that torch uses.
        deadline: seconds without an answer after which the worker gives up.
        reporter: shows the progress.
    """

    addresses: Sequence[str]
    dial: Callable[[str], Wire]
    text: Path | None
    task: str | None
    model: str | None
    device: torch.device
    threads: int
    deadline: float
    reporter: Reporter

    def run(self) -> None:
        """Train with the servers until they say that everything is trained.

        Raises:
            MismatchError: the servers do not belong together, or train something that this worker does not have.
            CommunicationError: a server refuses the connection, or does not answer any more.
        """
        use_threads(self.threads, self.reporter.tell)
        wires = [self.dial(address) for address in self.addresses]
        worker = random.SystemRandom().getrandbits(63)
        shards: list[RemoteShard] = []
        apart: float | None = None  # since when the servers train different arms
        try:
            while True:
                shards = [self._shard(wire, worker) for wire in wires]
                stage, announcement, shards = self._ask(shards)
                if stage is Stage.FINISHED:
                    return
                if announcement is not None:
                    apart = None
                elif apart is None:
                    apart = time.monotonic()
                elif time.monotonic() - apart > self.deadline:
                    raise DeadlineError(
                        f"The servers {', '.join(self.addresses)} have trained different arms for {self.deadline:g} s: "
                        "one of them was started anew, without its snapshot. Start all of them anew."
                    )
                if stage is Stage.OPEN and announcement is not None:
                    self._train(announcement, shards)
                else:
                    time.sleep(ASK_SECONDS)
        except CommunicationError:  # who has hung up hears no goodbye
            raise
        except BaseException:
            for shard in shards:
                shard.end(FAREWELL_SECONDS)
            raise
        finally:
            for wire in wires:
                wire.close()

    def _shard(self, wire: Wire, worker: int) -> RemoteShard:
        session = random.SystemRandom().getrandbits(64)
        return RemoteShard(wire, session, self.deadline, tell=self.reporter.tell, worker=worker)

    def _ask(self, shards: list[RemoteShard]) -> tuple[Stage, Announcement | None, list[RemoteShard]]:
        """How far the servers are, what all of them train now, and the servers in the order of the parameters."""
        answers = ask(shards)
        if any(stage is Stage.FINISHED for _, _, stage in answers):
            release(answers)
            return Stage.FINISHED, None, shards
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
        for shard in ordered:
            # One of them may be an arm ahead, of which each plans its batches.
            if announced[shard].arm == first.arm and replace(announced[shard], part=first.part) != first:
                raise MismatchError(
                    f"The servers {ordered[0].name} and {shard.name} do not train the same: start them with the same "
                    "options."
                )
        stages = {shard: stage for shard, _, stage in answers}
        stage = agree(ordered, [announced[shard].arm for shard in ordered], [stages[shard] for shard in ordered])
        arms = {announcement.arm for announcement in announced.values()}
        return stage, first if len(arms) == 1 else None, ordered

    def _train(self, announcement: Announcement, shards: list[RemoteShard]) -> None:
        settings = self._settings(announcement)
        assembly = Assembly(settings, task_of(settings.data))
        reset_peak(self.device)
        strategy = RemoteServers(Alone(), shards, facts_of(assembly.task, announcement.settings))

        def note(record: dict[str, Any]) -> None:
            for shard in shards:
                shard.note(row_of(record, assembly.task.score))

        heartbeat = Heartbeat(shards, self.dial)
        heartbeat.start()
        try:
            trainer = assembly.trainer(
                strategy,
                optimizer_named("sgd", settings.update.learning_rate),  # the servers make the updates, not this one
                announcement.plan,
                self.device,
                examples=announcement.examples,
                overlap=False,
            )
            train(trainer, announcement.arm, settings, self.reporter, note)
            note({"kind": "peak", "bytes": peak_bytes(self.device)})
        finally:
            heartbeat.stop()
        for shard in shards:
            shard.leave()
        strategy.close()

    def _settings(self, announcement: Announcement) -> Settings:
        """The settings that the servers announced, with this worker's own text, task and model.

        Raises:
            MismatchError: they are not settings of this bigbatch, or name what only the servers have.
        """
        own = {"text": self.text, "task": self.task, "model": self.model}
        entries = {**announcement.settings, **{name: value for name, value in own.items() if value is not None}}
        try:
            settings = Settings.of({**entries, "text": self.text})
        except ConfigurationError as error:
            raise MismatchError(
                f"The settings of the server at {self.addresses[0]} are not those of this bigbatch ({error})."
            ) from error
        if isinstance(settings.data.vocabulary, Path):
            raise MismatchError(
                f"The server at {self.addresses[0]} uses the tokenizer in its folder {settings.data.vocabulary}, which "
                "this worker does not have: servers on a network can be used with --vocabulary and a number alone."
            )
        # Never a file that a server names.
        for what, name, given, known in (
            ("task", settings.data.task, self.task, TASKS.names()),
            ("model", settings.model.model, self.model, [None, *MODELS.names(), *PRESETS]),
        ):
            if given is None and name not in known and not (what == "model" and safe(str(name))):
                raise MismatchError(
                    f"The server trains the {what} {name!r}, which is not one of bigbatch's own: name your copy of it "
                    f"with --{what}."
                )
        return settings
