"""Membership: which workers take part, which have gone, and what the server remembers of each."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from bigbatch.comm.errors import MalformedError
from bigbatch.comm.server.network.shares import Shares
from bigbatch.comm.server.report import Waiting
from bigbatch.comm.server.shard import Shard

MOST_WORKERS = 1024
"""The largest number of workers that take part at once, and of former workers that are remembered."""


@dataclass
class Session:
    """Everything that a server knows of one worker.

    Attributes:
        number: the session's number.
        life: how often the worker has joined.
        worker: its number in the shard; None if it takes no part now.
        heard: when it was last heard, in seconds.
        pushed: the number of its last push.
        why: the reason why it takes no part, if it does not.
        share: the number of the share of the data that it computes on, if any.
        pushes: its number in the shard, now and in former lives -> the shares behind its last pushes, in order.
        asked: (number, attempt) of the read that it asks for.
        answered: (number, attempt) of the last read that was answered.
        address: the address that the answer goes to.
        has: the version of the parameters that the worker says it has.
        waiting: the gradient that it pushed last, until it reads.
        notes: number -> (when the note came, its numbers).
    """

    number: int
    life: int = 0
    worker: int | None = None
    heard: float = 0.0
    pushed: int = 0
    why: str = ""
    share: int | None = None
    pushes: dict[int, list[int]] = field(default_factory=dict)
    asked: tuple[int, int] = (-1, -1)
    answered: tuple[int, int] = (-1, -1)
    address: bytes = b""
    has: int = 0
    waiting: Waiting = field(default_factory=lambda: Waiting(0.0))
    notes: dict[int, tuple[float, list[float]]] = field(default_factory=dict)

    @property
    def notes_in_order(self) -> int:
        """How many of its notes have come, up to the first that has not."""
        return next(number for number in count() if number not in self.notes)

    def pending(self, shard: Shard) -> dict[int, list[int]]:
        """The part of `pushes` whose gradients still wait in the shard for those of other workers."""
        shares = {worker: own[max(0, len(own) - shard.pending(worker)) :] for worker, own in self.pushes.items()}
        return {worker: own for worker, own in shares.items() if own}

    def start_life(self, life: int, worker: int, acknowledged: int, now: float) -> None:
        """Begins a new life as worker `worker` of the shard; `acknowledged` of its pushes were acknowledged before."""
        self.life, self.worker, self.heard = life, worker, now
        self.pushed = max(self.pushed, acknowledged)
        self.asked = self.answered = (-1, -1)
        self.waiting = Waiting(now)


class Membership:
    """Keeps the sessions of all workers, and tells the shard and the shares who comes and goes.

    Args:
        shard: what the workers push to and read from.
        shares: the data that they compute on.
        patience: seconds of silence after which a worker takes part no more.
        tell: called with a sentence, without its full stop, whenever a worker comes or goes.

    Attributes:
        sessions: the sessions of all workers that are remembered, by session number.
        patience: seconds of silence after which a worker takes part no more.
        most: the largest number of workers that took part at the same time.
        lost: gradients that were acknowledged and are not in the parameters, because an earlier server was ended.
        heard: when a worker last went, or asked what there is to do, in seconds; None if none has since the start.
        asking: worker -> when it last asked what there is to do, for workers that do not know yet that all is done.
        told: when a worker was last told that all is done, in seconds.
        astray: session number -> when it was lost, for workers that have neither come back nor said that they leave.
    """

    def __init__(self, shard: Shard, shares: Shares, patience: float, tell: Callable[[str], None]) -> None:
        self.sessions: dict[int, Session] = {}
        self.patience = patience
        self.most = 0
        self.lost = 0
        self.heard: float | None = None
        self.astray: dict[int, float] = {}
        self.asking: dict[int, float] = {}
        self.told = -math.inf
        self._shard = shard
        self._shares = shares
        self._tell = tell
        self._next_worker = 0
        self._looked: float | None = None

    @property
    def present(self) -> list[Session]:
        """The sessions of the workers that take part now."""
        return [session for session in self.sessions.values() if session.worker is not None]

    @property
    def full(self) -> bool:
        """Whether `MOST_WORKERS` workers take part already."""
        return len(self.present) >= MOST_WORKERS

    def admit(self, session: Session, life: int, acknowledged: int, now: float) -> None:
        """Lets a worker take part from now on, under a new number in the shard.

        Args:
            session: the worker's session, new or known.
            life: the number of its new life.
            acknowledged: how many of its pushes the worker knows to be acknowledged; those of them that this server
                does not have are lost.
            now: the time in seconds.
        """
        self.remove(session, "It joins again", now)
        self._forget_some()
        self.sessions[session.number] = session
        self.astray.pop(session.number, None)
        lost = max(0, acknowledged - session.pushed)
        self.lost += lost
        worker, self._next_worker = self._next_worker, self._next_worker + 1
        session.start_life(life, worker, acknowledged, now)
        self._shard.join(worker)
        self.most = max(self.most, len(self.present))
        and_lost = f"; {lost} of its gradients are lost" if lost else ""
        self._tell(f"Worker {worker} joins, of {len(self.present)} now{and_lost}")

    def remove(self, session: Session, why: str, now: float) -> None:
        """Go on without a worker, if it takes part; the next worker computes on its share."""
        if session.worker is None:
            return
        self._shard.leave(session.worker)
        if session.share is not None:
            self._shares.give_back(session.share)
        self._tell(f"Worker {session.worker} goes: {why[0].lower()}{why[1:]}")
        session.worker, session.share, session.why = None, None, why
        self.heard = now

    def lose(self, session: Session, why: str, now: float) -> None:
        """Goes on without a worker that fell silent; it may come back."""
        self.remove(session, why, now)
        self.astray[session.number] = now

    def expected(self, now: float, seconds: float) -> bool:
        """Whether workers are there, or were in the last `seconds`, that have not been told that all is done."""
        lately = [*self.astray.values(), *self.asking.values()]
        return bool(self.present) or any(now - since < seconds for since in lately)

    def asked(self, worker: int, now: float, *, finished: bool) -> None:
        """Notes that a worker asks what there is to do, and whether it is told that all is done."""
        if finished:
            self.asking.pop(worker, None)
            self.told = now
        elif len(self.asking) < MOST_WORKERS or worker in self.asking:
            self.asking[worker] = now

    def ends(self, worker: int) -> None:
        """Notes that a worker ends, so that it need not be told that all is done."""
        self.asking.pop(worker, None)

    def alone(self, now: float) -> float:
        """For how many seconds nobody has been there or asked; call it several times a second."""
        if self.present or self.heard is None:
            self.heard = now
        return now - self.heard

    def silent(self, now: float) -> list[Session]:
        """The present workers that were silent for longer than `patience`; call it several times a second."""
        if self._looked is not None and now - self._looked > self.patience / 4:
            # The server itself was asleep: what was sent meanwhile has yet to be read.
            for session in self.present:
                session.heard += now - self._looked
        self._looked = now
        self.astray = {number: min(since, now) for number, since in self.astray.items()}
        return [session for session in self.present if now - session.heard > self.patience]

    def waiting(self) -> list[int]:
        """The shares whose gradients wait in the shard for those of other workers."""
        pending = [session.pending(self._shard) for session in self.sessions.values()]
        return [share for pushes in pending for shares in pushes.values() for share in shares]

    def state_dict(self) -> dict[str, Any]:
        """The state from which a new server can recognise the workers, without gradients that wait for others'."""
        sessions = {}
        for number, session in self.sessions.items():
            waiting = sum(map(len, session.pending(self._shard).values()))
            notes = [[key, when, *row] for key, (when, row) in session.notes.items()]
            sessions[str(number)] = {
                "life": session.life,
                "pushed": session.pushed - waiting,
                "left": session.worker is None and number not in self.astray,
                "notes": notes,
            }
        return {"sessions": sessions, "lost": self.lost}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the workers of `state_dict`; each must join again.

        Raises:
            MalformedError: it is no such state.
        """
        why = f"The server was started again and goes on from version {self._shard.version}"
        sessions: Any = state.get("sessions")
        lost: Any = state.get("lost")
        if not isinstance(sessions, Mapping) or not _is_count(lost) or not all(map(_is_session, sessions.items())):
            raise MalformedError("it does not say which workers there were")
        self.lost = lost
        for name, kept in sessions.items():
            number = int(name)
            notes = {key: (when, row) for key, when, *row in kept["notes"]}
            self.sessions[number] = Session(number, kept["life"], pushed=kept["pushed"], why=why, notes=notes)
            if not kept["left"]:
                self.astray[number] = math.inf  # since this server's first look

    def date_back(self, now: float) -> None:
        """Moves all notes back in time, if the machine's clock was set back since they came, so that none lies ahead.

        Else what comes next would seem to be earlier, and would take no time.
        """
        notes = [session.notes for session in self.sessions.values()]
        ahead = max((when for some in notes for when, _ in some.values()), default=now) - now
        if ahead > 0:
            for some in notes:
                some.update({number: (when - ahead, row) for number, (when, row) in some.items()})

    def _forget_some(self) -> None:
        """Forget the oldest of those who have gone and left no notes, if there are too many."""
        former = [n for n, session in self.sessions.items() if session.worker is None and not session.notes]
        for number in former[: max(0, len(former) - MOST_WORKERS)]:
            del self.sessions[number]


def _is_session(entry: tuple[Any, Any]) -> bool:
    """Whether an entry of what was kept is a session's."""
    name, kept = entry
    whole = isinstance(name, str) and name.isdecimal() and len(name) <= 20 and isinstance(kept, Mapping)
    return (
        whole
        and all(_is_count(kept.get(key)) for key in ("life", "pushed"))
        and type(kept.get("left")) is bool
        and isinstance(kept.get("notes"), list)
        and all(map(_is_note, kept["notes"]))
    )


def _is_note(note: Any) -> bool:
    whole = isinstance(note, list) and len(note) >= 2 and _is_count(note[0])
    return whole and all(type(value) is float for value in note[1:]) and math.isfinite(note[1])


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63
