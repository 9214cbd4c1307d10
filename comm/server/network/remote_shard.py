"""The worker's side of a server on a network: a shard that the server holds."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigbatch.comm.buffers import Buffer
from bigbatch.comm.errors import CommunicationError, DeadlineError, MalformedError, MismatchError
from bigbatch.comm.server.network.messages import NOTHING, Frame, Kind, Message, Stage
from bigbatch.comm.server.network.shares import Ranges, ranges
from bigbatch.comm.server.network.wire import Wire
from bigbatch.comm.server.report import Report

FIRST_RETRY, LONGEST_RETRY = 1.0, 60.0
"""Seconds until a request that was not answered is made again; it doubles every time, so that a slow network is not
flooded."""

SMALL_RETRY = 5.0
"""The longest time until a request without a gradient is made again, which floods nobody."""

LOOK_SECONDS = 0.1
"""Seconds after which a waiting worker looks again whether its heartbeat has heard something."""


ASLEEP_SECONDS = 2.0
"""A worker that has not looked for so long was stopped; that the server is silent is no fault of the server's."""


@dataclass
class Pending:
    """A request that the server has not answered yet.

    Attributes:
        message: the message as it was last sent.
        made: when it was first sent, in seconds.
        retry: when to send it again, in seconds ...
        interval: ... and how many seconds that is after the last time.
    """

    message: Message
    made: float
    retry: float
    interval: float


class EndedError(CommunicationError):
    """Raised when the server has said that it cannot go on, and why."""


class GoneError(CommunicationError):
    """Raised when the server goes on without this worker; only `RemoteShard` sees it, and joins again."""


class RemoteShard:
    """A shard on a server elsewhere, as one worker uses it: join, then push and read in turns, at last leave.

    Requests are sent again until they are answered; the server counts them once. If the server has gone on without
    this worker, or was started again, the worker joins again by itself and says so.

    Args:
        wire: the wire to the server.
        session: a number that no other worker has.
        deadline: seconds without any answer after which it gives up.
        first_retry: seconds until a request is made again for the first time.
        tell: called with what a user should know, as sentences without their full stops.
        worker: a number that no other worker has, and that stays when the session does not.

    Attributes:
        name: the server's address.
        session: this worker's session number.
        life: the number of times that this worker has joined.
        patience: seconds of silence after which the server goes on without this worker.
        acknowledged: the number of gradients that the server has acknowledged.
        missing: the ranges of shares that were not in when this worker joined or asked last.
        rejoined: whether it has joined again since that was set to False.
        beside: other shards of this worker's, whose requests go on while it waits for this one.
        hurry: if set to True, every open request is sent again at once.
        tell: called with what a user should know, as given.
    """

    def __init__(
        self,
        wire: Wire,
        session: int,
        deadline: float,
        first_retry: float = FIRST_RETRY,
        tell: Callable[[str], None] = lambda _: None,
        worker: int = 0,
    ) -> None:
        self.name = wire.name
        self.session = session
        self.life = 0
        self.patience = float("inf")
        self.acknowledged = 0
        self.missing: Ranges = ()
        self.rejoined = False
        self.beside: Sequence[RemoteShard] = ()
        self.hurry = False
        self.tell = tell
        self._wire = wire
        self._worker = worker
        self._deadline = deadline
        self._first_retry = self._retry_after = first_retry
        self._facts: bytes = b""
        self._work = self._gone = ""
        self._ends = False
        self._pending: dict[Kind, Pending] = {}
        self._notes: list[Buffer] = []
        self._notes_open: dict[int, Pending] = {}
        self._pushed = 0
        self._version = NOTHING
        self._answers: dict[Kind, Message] = {}
        self._heard = wire.now()

    def hello(self, deadline: float | None = None) -> tuple[Any, Stage]:
        """Asks the server what is trained there and how far it is, and returns both.

        Args:
            deadline: seconds without any answer after which it gives up, if other than usual.

        Raises:
            DeadlineError: the server does not answer.
            CommunicationError: the server refuses to talk.
        """
        answer = self._ask(Message(Kind.HELLO, version=self._worker), deadline)
        self._work = answer.text()
        self.missing = self._ranges(answer, 1)
        try:
            return answer.entries(), Stage(answer.number)
        except ValueError as error:
            raise MalformedError(
                f"The server at {self.name} says that it is at stage {answer.number}, which stands for nothing."
            ) from error

    def tell_missing(self, shares: Ranges) -> None:
        """Tells the server which shares another part misses, so that it hands them out again."""
        self._request(Message(Kind.MISSING, payload=(json.dumps(shares).encode(),)))
        while Kind.MISSING in self._pending:
            with suppress(GoneError):  # what comes next hears that too, and joins again
                self._wait_for(Kind.MISSING)

    def release(self, deadline: float | None = None) -> None:
        """Tells the server that every part has every share of the work that it announced when it was asked last."""
        self._ask(Message(Kind.RELEASE, payload=(self._work.encode(),)), deadline)

    def status(self) -> Any:
        """Asks the server for its status, and returns it; see `NetworkServer.status`."""
        return self._ask(Message(Kind.STATUS)).entries()

    def join(self, facts: Sequence[tuple[str, str, str]]) -> None:
        """Joins the server, so that this worker takes part.

        Args:
            facts: (what, name, value) of what must be the same here and at the server.

        Raises:
            MismatchError: a fact differs; the message names the first that does.
        """
        self._facts = json.dumps([list(fact) for fact in facts]).encode()
        self._enter()

    def begin_read(self) -> None:
        """Asks for the parameters without waiting; `finish` waits for them."""
        self._request(Message(Kind.READ, number=self._pushed, version=self._version))

    def begin(self, gradient: Buffer, weight: float, loss: float, *, finite: bool, share: int | None = None) -> None:
        """Push a gradient, and ask for the parameters that come next; `finish` waits for both.

        Args:
            gradient: (elements,) the gradient of this shard's parameters, computed on what was last read, in the format
                of the wire; it must not change before `finish`.
            weight: tokens behind the gradient.
            loss: the loss summed over those tokens, in nats.
            finite: whether all of this worker's gradient is, the parts for other shards included.
            share: the number of the share of the data behind it; None for the one that this server handed out.
        """
        self._pushed += 1
        self._request(
            Message(
                Kind.PUSH,
                number=self._pushed,
                version=self._version,
                weight=weight,
                loss=loss,
                flag=finite,
                payload=(gradient.view(np.uint8).data,),
                share=NOTHING if share is None else share,
            )
        )
        self.begin_read()

    def finish(self, values: Buffer) -> Report:
        """Waits until this worker may read, and takes in the server's report and parameters.

        Args:
            values: (elements,) where the parameters go, in the wire's precision, unless they are there already.

        Returns:
            The server's report; about nothing (no tokens, not applied) if the gradient was lost.

        Raises:
            DeadlineError: the server does not answer any more.
            MismatchError: the server refuses what it was sent.
        """
        report = self.attempt(values)
        while report is None:
            self._join_again(self._gone)
            report = self.attempt(values)
        return report

    def attempt(self, values: Buffer) -> Report | None:
        """Does what `finish` does, but returns None if this worker must join again first, which `finish` sees to.

        Whoever has joined is waited for. So with several servers a worker joins one again when it is through with the
        others, else two workers can wait for each other at two servers.
        """
        if self._gone:
            return None
        try:
            answer = self._wait_for(Kind.READ)
        except GoneError as gone:
            self._gone = str(gone)
            return None
        report = Report.of(answer.array(0, np.float64, len(fields(Report))))
        if report.fresh:
            np.copyto(values, answer.array(1, values.dtype, len(values)))
        self._version = answer.version
        return report

    def note(self, row: NDArray[np.float64]) -> None:
        """Has the server keep a row of float64 numbers; only `leave` waits until it has."""
        self._notes.append(row)
        self._send_note(len(self._notes) - 1)

    def leave(self) -> None:
        """Leaves the server, once it has kept all notes.

        Raises:
            DeadlineError: the server does not answer any more.
        """
        while self._notes_open:
            try:
                self._until(lambda: not self._notes_open)
            except GoneError as gone:
                self._join_again(str(gone))
        self._request(Message(Kind.LEAVE, version=self._worker if self._ends else 0))
        with suppress(GoneError):  # it has heard so already, and its answer is lost
            self._wait_for(Kind.LEAVE)

    def end(self, deadline: float) -> None:
        """Says goodbye because this worker ends, whatever is left to do, so that the server does not wait for it.

        Args:
            deadline: seconds without any answer after which it ends without.
        """
        self._deadline, self._ends = deadline, True
        self._pending.clear()  # what was refused is not asked again
        with suppress(CommunicationError, MismatchError):
            self.leave()

    def close(self) -> None:
        """Closes the wire to the server."""
        self._wire.close()

    # What is under way.

    def _enter(self) -> None:
        self.life += 1
        self._gone = ""
        self._pending.clear()
        self._answers.clear()
        self._version = NOTHING
        # All of them again below: the server may have lost some.
        self._notes_open.clear()
        self._request(Message(Kind.JOIN, version=self.acknowledged, payload=(self._facts,)))
        answer = self._wait_for(Kind.JOIN)
        self.patience = answer.weight
        if (missing := self.acknowledged - answer.version) > 0:
            self.tell(f"Of this worker's gradients that {self.name} had acknowledged, {missing} are lost")
        self.acknowledged = self._pushed = answer.number
        self.missing = self._ranges(answer, 0)
        for number in range(answer.attempt, len(self._notes)):
            self._send_note(number)

    def _join_again(self, why: str) -> None:
        self.tell(f"{why}; this worker has joined {self.name} again")
        self._enter()
        self.rejoined = True
        self.begin_read()

    def _ranges(self, answer: Message, place: int) -> Ranges:
        try:
            return ranges(answer.entries(place), NOTHING)
        except MalformedError as error:
            raise MalformedError(f"The server at {self.name} does not say what it misses: {error}.") from error

    def _ask(self, message: Message, deadline: float | None = None) -> Message:
        usual, self._deadline = self._deadline, self._deadline if deadline is None else deadline
        try:
            self._request(message)
            return self._wait_for(message.kind)
        finally:
            self._deadline = usual

    def _request(self, message: Message) -> None:
        own = replace(message, session=self.session, life=self.life)
        self._answers.pop(message.kind, None)
        self._pending[message.kind] = self._sent(own)

    def _send_note(self, number: int) -> None:
        note = Message(Kind.NOTE, self.session, self.life, number, payload=(self._notes[number].data,))
        self._notes_open[number] = self._sent(note)

    def _sent(self, message: Message) -> Pending:
        self._wire.send(message.frames())
        now = self._wire.now()
        return Pending(message, now, now + self._retry_after, self._retry_after)

    def _wait_for(self, kind: Kind) -> Message:
        self._until(lambda: kind not in self._pending and (kind is not Kind.READ or Kind.PUSH not in self._pending))
        return self._answers.pop(kind)

    def _until(self, done: Callable[[], bool]) -> None:
        """Hear what comes, and make requests again that are not answered, until it is done.

        Raises:
            DeadlineError: nothing came for too long.
            GoneError: the server goes on without this worker.
        """
        self._heard = looked = self._wire.now()
        while not done():
            frames = self._wire.receive(LOOK_SECONDS)
            looked, before = self._wire.now(), looked
            now = looked
            if now - before > ASLEEP_SECONDS:  # this worker itself was: what was sent meanwhile has yet to be read
                self._heard += now - before
            if frames is not None:
                self._hear(frames, now)
            elif now - self._heard > self._deadline:
                raise DeadlineError(
                    f"The server at {self.name} has not answered for {now - self._heard:.0f} s. Is it running, is the "
                    "address right, and do other workers go on? --deadline allows more."
                )
            self._retry(now)
            for shard in self.beside:
                shard.keep_up()

    def keep_up(self) -> None:
        """Hears what has come and makes requests again, while the worker waits for another server."""
        try:
            while (frames := self._wire.receive(0.0)) is not None:
                self._hear(frames, self._wire.now())
        except GoneError as gone:
            self._gone = str(gone)
        if not self._gone:
            self._retry(self._wire.now())

    def _retry(self, now: float) -> None:
        hurry, self.hurry = self.hurry, False
        for pending in self._open():
            if hurry or now >= pending.retry:
                # Of several attempts to read only the last counts, so each has a number of its own.
                pending.message = replace(pending.message, attempt=pending.message.attempt + 1)
                self._wire.send(pending.message.frames())
                if pending.message.kind in (Kind.HELLO, Kind.JOIN) and pending.message.attempt == 1 and not hurry:
                    self.tell(f"Waiting for the server at {self.name}")
                longest = LONGEST_RETRY if pending.message.kind in (Kind.PUSH, Kind.READ) else SMALL_RETRY
                pending.interval = min(2 * pending.interval, longest)
                pending.retry = now + pending.interval

    def _open(self) -> Iterator[Pending]:
        yield from self._pending.values()
        yield from self._notes_open.values()

    def _hear(self, frames: Sequence[Frame], now: float) -> None:
        try:
            message = Message.of(frames)
        except MalformedError as error:
            raise type(error)(f"The server at {self.name} is not understood: {error}") from error
        if message.kind is Kind.ENDED:
            raise EndedError(f"The server at {self.name} has ended: {message.text()}")
        if (message.session, message.life) != (self.session, self.life):
            return  # in answer to a former life
        self._heard = now
        if message.kind is Kind.GONE:
            raise GoneError(message.text())
        if message.kind is Kind.REFUSED:
            raise MismatchError(f"The server at {self.name} refuses: {message.text()}.")
        if message.kind is Kind.NOTED:
            self._notes_open.pop(message.number, None)
            return
        request = REQUEST_OF.get(message.kind)
        if request not in self._pending:
            return
        asked = self._pending[request].message
        if request in (Kind.PUSH, Kind.READ) and message.number != asked.number:
            return
        if request is Kind.READ and message.attempt != asked.attempt:
            return
        if request is Kind.PUSH:
            self.acknowledged = message.number
        self._answered(request, message)

    def _answered(self, request: Kind, message: Message) -> None:
        if (pending := self._pending.pop(request, None)) is not None:
            self._answers[request] = message
            # What takes so long on this network is no reason to ask twice the next time.
            now = self._wire.now()
            took = now - (pending.retry - pending.interval)
            if request is Kind.READ:  # waiting for others is no work of the network's
                waited = float(message.array(0, np.float64, len(fields(Report)))[-1])
                took = min(took, max(0.0, now - pending.made - waited))
            self._retry_after = min(max(self._first_retry, 2 * took, 0.8 * self._retry_after), LONGEST_RETRY)


REQUEST_OF = {
    Kind.WELCOME: Kind.HELLO,
    Kind.STATE: Kind.STATUS,
    Kind.JOINED: Kind.JOIN,
    Kind.TAKEN: Kind.PUSH,
    Kind.VALUES: Kind.READ,
    Kind.LEFT: Kind.LEAVE,
    Kind.NOTICED: Kind.MISSING,
    Kind.RELEASED: Kind.RELEASE,
}
"""Maps each kind of answer to the kind of request that it answers."""
