"""Execute a schedule: one rank's part of every round, on a transport and a buffer."""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from bigbatch.comm.schedule import Schedule, chunk_bounds, chunk_count, rounds_of, transfers
from bigbatch.comm.transport import Buffer, Request, Transport


class Move(NamedTuple):
    """One transfer as one of its two ends sees it."""

    peer: int
    first: int
    stop: int
    reduce: bool


@dataclass(frozen=True)
class Step:
    """What one rank does in one round."""

    sends: tuple[Move, ...]
    receives: tuple[Move, ...]


@dataclass(frozen=True)
class Part:
    """One rank's part of a schedule, over a buffer cut into `chunks`."""

    chunks: int
    steps: tuple[Step, ...]


@lru_cache(maxsize=256)
def part(schedule: Schedule, size: int, rank: int) -> Part:
    """Pick out of every round what `rank` sends and receives."""
    rounds = rounds_of(schedule, size)
    steps = []
    for round_ in rounds:
        rows = list(transfers(round_))
        step = Step(
            sends=tuple(
                Move(target, first, stop, reduce) for source, target, first, stop, reduce in rows if source == rank
            ),
            receives=tuple(
                Move(source, first, stop, reduce) for source, target, first, stop, reduce in rows if target == rank
            ),
        )
        if step.sends or step.receives:
            steps.append(step)
    return Part(chunk_count(rounds), tuple(steps))


def execute(schedule: Schedule, transport: Transport, buffer: Buffer, tag: int = 0) -> None:
    """Run this rank's part of `schedule`, in place; every rank of the transport must call it.

    Args:
        schedule: the rounds as a function of the number of ranks.
        transport: moves the chunks.
        buffer: (elements,) this rank's values; on return, the collective's result.
        tag: keeps apart the messages of schedules that run at the same time.

    Raises:
        DeadlineError: a peer did not send or take its message in time.
    """
    mine = part(schedule, transport.size, transport.rank)
    bounds = chunk_bounds(len(buffer), mine.chunks).tolist()
    for step in mine.steps:
        _run(step, transport, buffer, bounds, tag)


def _run(step: Step, transport: Transport, buffer: Buffer, bounds: list[int], tag: int) -> None:
    """One round: receive and send at once, then take in what arrived, in the table's order."""
    arriving: list[tuple[Request, Buffer, Buffer, bool]] = []
    direct = len(step.receives) == 1
    landings = transport.scratch(sum(bounds[move.stop] - bounds[move.first] for move in step.receives), buffer.dtype)
    for move in step.receives:
        own = buffer[bounds[move.first] : bounds[move.stop]]
        # What replaces a chunk that nobody reads in this round may land where it belongs.
        in_place = direct and not move.reduce and not any(_overlap(move, sent) for sent in step.sends)
        landing = own if in_place else landings[: len(own)]
        landings = landings[len(own) :]
        arriving.append((transport.irecv(landing, move.peer, tag), landing, own, move.reduce))
    leaving = [transport.isend(buffer[bounds[move.first] : bounds[move.stop]], move.peer, tag) for move in step.sends]
    for request, _, _, _ in arriving:
        request.wait()
    for request in leaving:
        request.wait()
    for _, landing, own, reduce in arriving:
        if reduce:
            np.add(own, landing, out=own)
        elif landing is not own:
            own[:] = landing


def _overlap(one: Move, other: Move) -> bool:
    return one.first < other.stop and other.first < one.stop
