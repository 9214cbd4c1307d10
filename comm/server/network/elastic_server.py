"""An elastic server on a network: a shard whose workers come, go, fall silent and repeat themselves."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigbatch.comm.buffers import array_of
from bigbatch.comm.errors import MalformedError
from bigbatch.comm.server.network.ending import Ending
from bigbatch.comm.server.network.facts import difference
from bigbatch.comm.server.network.membership import MOST_WORKERS, Membership, Session
from bigbatch.comm.server.network.messages import NOTHING, Frame, Kind, Message, ProtocolError, Stage
from bigbatch.comm.server.network.shares import MOST_RANGES, Shares, ranges
from bigbatch.comm.server.network.status import Rates, status_of
from bigbatch.comm.server.report import Report, Waiting
from bigbatch.comm.server.shard import Shard
from bigbatch.comm.wires.format import WHOLE, WireFormat

LONGEST_NOTE = 64
"""The largest number of float64 values in a note."""

COUNTED = ("messages", "malformed", "refused", "repeated", "passed", "dropped workers", "turned away")
"""What a server counts: messages in all, those that were malformed, refused or repeated, gradients without effect since
their share is in already, workers that fell silent, and connections that failed for their keys or spoke no ZeroMQ."""

Outgoing = tuple[bytes, list[Frame]]
"""The address that a message goes to, and its frames."""


class NetworkServer:
    """Serves one shard to workers that come and go as they like.

    It has no sockets and no clock: `receive` and `tick` are told what time it is, and say what is to be sent. Every
    request may come late, twice, or out of order: a push counts once, and of the attempts to read only the last.

    The data are cut into shares. A worker is given the number of its next share when it reads; a share whose worker
    goes away before its gradient has come is given to the next. A gradient whose share is in already has no effect.

    Several servers that hold a part of the parameters each need not talk to each other: each knows which shares are in
    its part, the first one hands them out, and workers tell it what the others miss; see `parts`.

    Args:
        shard: the shard that is served.
        shares: how many shares of the data there are.
        announcement: JSON text that says what is trained here, for whoever asks.
        facts: (what, name, value) of what workers must have as well.
        patience: seconds of silence after which a worker takes part no more.
        expected: the number of workers that must have joined before any of them reads.
        noted: called with (session, row, time in seconds) for every note that arrives.
        tell: called with a sentence, without its full stop, whenever a worker comes or goes.
        last: whether no other work follows this one.
        part: number, from 0, of the part of the parameters that the shard is.
        parts: number of parts, each with a server of its own.
        wire: the format of gradients that arrive; parameters are sent in that precision, too. It must be among the
            facts.

    Attributes:
        shard: the shard that is served.
        shares: the shares of the data that are handed out.
        members: the workers' sessions.
        counts: how often each event of `COUNTED` has happened.
        ending: when the work has ended.
    """

    def __init__(
        self,
        shard: Shard,
        shares: int,
        announcement: str,
        facts: Sequence[tuple[str, str, str]] = (),
        patience: float = 5.0,
        expected: int = 1,
        noted: Callable[[int, NDArray[np.float64], float], None] = lambda *_: None,
        tell: Callable[[str], None] = lambda _: None,
        *,
        last: bool = True,
        part: int = 0,
        parts: int = 1,
        wire: WireFormat = WHOLE,
    ) -> None:
        self.shard = shard
        self.shares = Shares(shares)
        self.members = Membership(shard, self.shares, patience, tell)
        self.ending = Ending(self.shares, self.members, parts, tell)
        self.counts = Counter(dict.fromkeys(COUNTED, 0))
        self._announcement = announcement
        self._facts = [list(fact) for fact in facts]
        self._expected = expected
        self._noted = noted
        self._last = last
        self._part = part
        self._restored = False
        self._ended = ""
        self._rates = Rates(shard)
        self._wire = wire
        self._sent_as = wire.dtype(array_of(shard.values).dtype)
        self._copy: tuple[int, NDArray[Any]] | None = None
        self._handlers: Mapping[Kind, Callable[[bytes, Message, float], list[Outgoing]]] = {
            Kind.HELLO: self._hello,
            Kind.STATUS: self._status,
            Kind.JOIN: self._join,
            Kind.PUSH: self._within(self._push),
            Kind.READ: self._within(self._read),
            Kind.NOTE: self._within(self._note),
            Kind.HEARTBEAT: self._within(self._heartbeat),
            Kind.LEAVE: self._leave,
            Kind.MISSING: self._missing,
            Kind.RELEASE: self._release,
        }

    @property
    def largest(self) -> int:
        """Bytes of the largest frame that a worker has reason to send, parameters and the facts about them included."""
        return max(len(self.shard.values) * self._sent_as.itemsize, 4 * len(json.dumps(self._facts)), 2**16)

    @property
    def sessions(self) -> Mapping[int, Session]:
        """The sessions of all workers that the server remembers, present or gone, by session number."""
        return self.members.sessions

    @property
    def present(self) -> list[Session]:
        """The sessions of the workers that take part now."""
        return self.members.present

    @property
    def most_workers(self) -> int:
        """The largest number of workers that took part at the same time."""
        return self.members.most

    @property
    def lost(self) -> int:
        """Gradients that were acknowledged and are not in the parameters, because an earlier server was ended."""
        return self.members.lost

    @property
    def undone(self) -> int:
        """The number of shares that are not in."""
        return self.shares.undone

    @property
    def stage(self) -> Stage:
        """How far the work is."""
        return self.ending.stage

    @property
    def progress(self) -> tuple[int, ...]:
        """Numbers that change whenever there is something new to keep in a snapshot."""
        return self.shard.clocks.done, self.shares.done, self.shares.handed_out, self.shard.dropped

    def receive(self, sender: bytes, frames: Sequence[Frame], now: float) -> list[Outgoing]:
        """Handles one message that has arrived, and returns the messages to send.

        Args:
            sender: the address of the sender, to which answers go.
            frames: the frames of the message.
            now: the time in seconds.

        Returns:
            The messages to send; their buffers do not change afterwards.
        """
        self.counts["messages"] += 1
        try:
            message = Message.of(frames)
            handler = self._handlers[message.kind]
        except ProtocolError as error:
            self.counts["malformed"] += 1
            return self._refuse(sender, Message(Kind.HELLO), str(error))
        except (MalformedError, KeyError):
            self.counts["malformed"] += 1
            return []
        if self._ended:
            return [(sender, message.answer(Kind.ENDED, self._ended))]
        try:
            return handler(sender, message, now)
        except MalformedError as error:
            self.counts["malformed"] += 1
            return self._refuse(sender, message, str(error))

    def tick(self, now: float) -> list[Outgoing]:
        """Drops workers that were silent for too long, and returns what to send; call it several times a second."""
        if self._ended:
            return []
        self._rates.look(now)
        silent = self.members.silent(now)
        for session in silent:
            self.counts["dropped workers"] += 1
            self.members.lose(
                session,
                f"The server heard nothing of this worker for {now - session.heard:.1f} s and went on without it, at "
                f"version {self.shard.version}",
                now,
            )
        self.ending.look(now)
        return self._let_read(now) if silent else []

    def end(self, why: str) -> list[Outgoing]:
        """Tells the workers that the server cannot go on; from now on it answers nothing else.

        Args:
            why: the reason, as a sentence with its full stop.

        Returns:
            The messages to send.
        """
        self._ended = why
        return [
            (session.address, Message(Kind.ENDED, session.number, session.life, payload=(why.encode(),)).frames())
            for session in self.present
        ]

    def state_dict(self) -> dict[str, Any]:
        """The state to go on from later. Gradients that wait for others are not in it; their shares are."""
        return {
            "shard": self.shard.settled_state(),
            "shares": self.shares.state_dict(self.members.waiting()),
            **self.members.state_dict(),
        }

    def load_state_dict(self, state: Any) -> None:
        """Restores what `state_dict` gave; every worker must join again.

        Raises:
            MalformedError: it is no state of such a server.
        """
        if not isinstance(state, Mapping):
            raise MalformedError("it holds no server's state")
        self.shard.load_state_dict(state.get("shard"))
        self.shares.load_state_dict(state.get("shares"))
        self.members.load_state_dict(state)
        self._restored = bool(self.sessions)

    def status(self, now: float) -> dict[str, Any]:
        """The state of the server for whoever asks, in types that JSON can write; see `status_of`."""
        return status_of(self.shard, self.shares, self.members, self._rates, self.counts, now)

    # Requests that need no session.

    def _hello(self, sender: bytes, message: Message, now: float) -> list[Outgoing]:
        if self.undone:  # whoever asks may train what is missing
            self.members.heard = now
        stage = self.stage
        if stage is Stage.FINISHED and not self._last:
            stage = Stage.CLOSING
        self.members.asked(message.version, now, finished=stage is Stage.FINISHED)
        payload = (self._announcement.encode(), self._missing_here())
        welcome = Message(Kind.WELCOME, message.session, message.life, number=stage, payload=payload)
        return [(sender, welcome.frames())]

    def _missing_here(self) -> bytes:
        return json.dumps(self.shares.missing()[:MOST_RANGES]).encode()

    def _missing(self, sender: bytes, message: Message, _: float) -> list[Outgoing]:
        """Hand out again what another part misses, unless somebody computes on it."""
        self.shares.return_all(
            ranges(message.entries(), self.shares.total), {session.share for session in self.present}
        )
        return [(sender, message.answer(Kind.NOTICED))]

    def _release(self, sender: bytes, message: Message, _: float) -> list[Outgoing]:
        if message.text() == self._announcement and not self.undone:
            self.ending.released = True
        return [(sender, message.answer(Kind.RELEASED))]

    def _status(self, sender: bytes, message: Message, now: float) -> list[Outgoing]:
        return [(sender, message.answer(Kind.STATE, json.dumps(self.status(now))))]

    def _join(self, sender: bytes, message: Message, now: float) -> list[Outgoing]:
        theirs = message.entries()
        if theirs != self._facts:
            return self._refuse(sender, message, difference(theirs, self._facts))
        session = self.sessions.get(message.session, Session(message.session))
        if session.worker is None and self.members.full:
            return self._refuse(sender, message, f"{MOST_WORKERS} workers take part already")
        if message.life < session.life:
            return []
        known = session.pushed
        if message.life > session.life:
            self.members.admit(session, message.life, message.version, now)
            session.address = sender
        answer = Message(
            Kind.JOINED,
            message.session,
            message.life,
            number=session.pushed,
            attempt=session.notes_in_order,
            version=known,
            weight=self.members.patience,
            payload=(self._missing_here(),),
        )
        return [(sender, answer.frames()), *self._let_read(now)]

    def _leave(self, sender: bytes, message: Message, now: float) -> list[Outgoing]:
        session = self.sessions.get(message.session)
        if session is not None and session.life == message.life:
            self.members.remove(session, "It has left", now)
            self.members.astray.pop(session.number, None)
        self.members.ends(message.version)
        return [(sender, message.answer(Kind.LEFT)), *self._let_read(now)]

    # Requests of a session.

    def _within(
        self, handler: Callable[[bytes, Session, Message, float], list[Outgoing]]
    ) -> Callable[[bytes, Message, float], list[Outgoing]]:
        """Hand a request to `handler` if its sender takes part; else tell the sender why it does not."""

        def handle(sender: bytes, message: Message, now: float) -> list[Outgoing]:
            session = self.sessions.get(message.session)
            if session is None or session.worker is None or session.life != message.life:
                why = "The server does not know this worker" if session is None else session.why
                gone = Message(Kind.GONE, message.session, message.life, payload=(why.encode(),))
                return [(sender, gone.frames())]
            session.heard = now
            return handler(sender, session, message, now)

        return handle

    def _push(self, sender: bytes, session: Session, message: Message, now: float) -> list[Outgoing]:
        assert session.worker is not None, "who takes part has a number"
        if message.number <= session.pushed:
            self.counts["repeated"] += 1
            return [(sender, message.answer(Kind.TAKEN))]
        shard = self.shard
        gradient = message.array(0, self._sent_as, len(shard.values))
        if len(message.payload) != 1:
            raise MalformedError(f"A push came with {len(message.payload)} buffers instead of one.")
        if session.answered[0] != session.pushed or message.version != shard.has(session.worker):
            has = shard.has(session.worker) if session.answered[0] == session.pushed else "none"
            return self._refuse(
                sender,
                message,
                f"the gradient was computed on version {message.version}, but the worker has read {has}",
            )
        if message.number != session.pushed + 1 or not 0 <= message.weight < math.inf:
            return self._refuse(
                sender,
                message,
                f"push {message.number} with weight {message.weight:g} does not follow {session.pushed}",
            )
        share = session.share if message.share == NOTHING else message.share
        if share is None or share >= self.shares.total or (self._part == 0 and share != session.share):
            return self._refuse(sender, message, f"share {share} of the data is not what this worker was given")
        session.pushed, session.share = message.number, None
        if self.shares.has(share):
            self.counts["passed"] += 1
            session.waiting = Waiting(now)
            shard.pass_by(session.worker)
        else:
            landing = shard.landing()
            self._wire.decode(gradient, array_of(landing))
            outcome = shard.push(session.worker, landing, message.weight, message.loss, finite=message.flag)
            session.waiting = Waiting(now, message.weight, message.loss, outcome)
            self.shares.put(share)
            session.pushes.setdefault(session.worker, []).append(share)
        session.pushes = session.pending(shard)
        return [(sender, message.answer(Kind.TAKEN)), *self._let_read(now)]

    def _read(self, sender: bytes, session: Session, message: Message, now: float) -> list[Outgoing]:
        asked = (message.number, message.attempt)
        if asked <= session.asked:
            self.counts["repeated"] += 1
            return []
        session.asked, session.address, session.has = asked, sender, message.version
        return self._let_read(now)

    def _note(self, sender: bytes, session: Session, message: Message, now: float) -> list[Outgoing]:
        row = message.array(0, np.float64)
        if len(row) > LONGEST_NOTE:
            raise MalformedError(f"A note of {len(row)} numbers came; {LONGEST_NOTE} is the most.")
        if message.number not in session.notes:
            self._noted(message.session, row, now)
            session.notes[message.number] = (now, row.tolist())
        return [(sender, message.answer(Kind.NOTED))]

    def _heartbeat(self, sender: bytes, _: Session, message: Message, now: float) -> list[Outgoing]:  # noqa: ARG002 - like the others
        return [(sender, message.answer(Kind.ALIVE))]

    # What several requests need.

    def _let_read(self, now: float) -> list[Outgoing]:
        """Answer everyone who asks to read and may."""
        # The first part says when to begin. Workers of an earlier server may have begun, and wait at another part.
        begun = self._part > 0 or self.shares.handed_out or self._restored
        if self._expected > len(self.present) and not begun:
            return []
        return [outgoing for session in self.present for outgoing in self._answer(session, now)]

    def _answer(self, session: Session, now: float) -> Iterator[Outgoing]:
        """Yield the report and the parameters, if the session has asked for them and may have them now."""
        worker, waiting = session.worker, session.waiting
        assert worker is not None, "only those who take part ask"
        if session.asked == session.answered or session.asked[0] != session.pushed:
            return
        begins, again = session.answered[0] < 0, session.answered[0] == session.pushed
        if not (begins or again or self.shard.readable(worker)):
            return
        if session.share is None and self._part == 0:
            session.share = self.shares.take()
        fresh = session.has != self.shard.version
        report = Report.on(self.shard, worker, waiting, now, fresh=fresh)
        row = replace(report, next_update=self.shares.total if session.share is None else session.share).row()
        self.shard.read(worker)
        session.answered = session.asked
        number, attempt = session.asked
        answer = Message(
            Kind.VALUES,
            session.number,
            session.life,
            number=number,
            attempt=attempt,
            version=self.shard.version,
            payload=(row.data, self._values().view(np.uint8).data) if fresh else (row.data,),
        )
        yield session.address, answer.frames()

    def _values(self) -> NDArray[Any]:
        """The parameters as they are sent, which stay as they are; the same for all who read the same version."""
        if self._copy is None or self._copy[0] != self.shard.version:
            values = array_of(self.shard.values)
            sent = np.empty(len(values), self._sent_as)
            if self._wire.whole:
                sent[:] = values
            else:
                self._wire.of_values.encode(values, sent)
            self._copy = self.shard.version, sent
        return self._copy[1]

    def _refuse(self, sender: bytes, message: Message, why: str) -> list[Outgoing]:
        self.counts["refused"] += 1
        return [(sender, message.answer(Kind.REFUSED, why))]
