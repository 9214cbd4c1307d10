"""Parts: how the workers of several servers bring these to agree on which shares of the data are in.

Every server holds a part of the parameters and decides for itself which shares are in it. The first hands out shares. A
worker pushes each share's gradient to all of them, and a part that has that share already lets it pass. So each part
takes each share once, whatever is lost on the way and whichever server goes on from an old snapshot. What a part misses
in the end, the first server hands out again; when all parts have every share, and have kept that state, a worker
releases them.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from bigbatch.comm.errors import DeadlineError
from bigbatch.comm.server.network.messages import Stage
from bigbatch.comm.server.network.remote_shard import RemoteShard

FAREWELL_SECONDS = 5.0
"""Seconds for which a worker that has heard of the end tries to tell the other servers."""


def ask(shards: Sequence[RemoteShard]) -> list[tuple[RemoteShard, Any, Stage]]:
    """Asks servers what they train and how far they are.

    Returns:
        The shards with what they announce and their stage. When one has finished, others may have ended already; those
        are left out.

    Raises:
        DeadlineError: a server does not answer.
        CommunicationError: a server refuses to talk.
    """
    answers: list[tuple[RemoteShard, Any, Stage]] = []
    for shard in shards:
        ended = any(stage is Stage.FINISHED for _, _, stage in answers)
        try:
            answers.append((shard, *shard.hello(FAREWELL_SECONDS if ended else None)))
        except DeadlineError:
            if not ended:
                raise
    return answers


def release(answers: Iterable[tuple[RemoteShard, Any, Stage]]) -> None:
    """Tells servers that have not finished that another one has, as far as they still answer."""
    for shard, _, stage in answers:
        if stage is not Stage.FINISHED:
            with suppress(DeadlineError):
                shard.release(FAREWELL_SECONDS)


def agree(shards: Sequence[RemoteShard], works: Sequence[str], stages: Sequence[Stage]) -> Stage:
    """Has servers agree on what is in, as far as one worker can now.

    Args:
        shards: the servers in the order of their parts, each just asked by `hello`.
        works: the name of what each of them trains.
        stages: how far each of them is; none has finished.

    Returns:
        What a worker does next: train (OPEN), or ask again a little later (CLOSING).

    Raises:
        CommunicationError: a server does not answer any more, or refuses to.
    """
    every = list(zip(shards, works, stages, strict=True))
    for shard, work, stage in every:
        # Who trains something else is ahead, for which it was told that all parts had every share of this.
        if stage is Stage.COMPLETE and all(their != work or theirs is stage for _, their, theirs in every):
            shard.release()
    if len(set(works)) > 1:
        return Stage.CLOSING
    if stages[0] is Stage.COMPLETE:
        tell_missing(shards[0], shards[1:])
        return Stage.CLOSING
    return stages[0]


def tell_missing(first: RemoteShard, others: Iterable[RemoteShard]) -> None:
    """Tells the first server which shares others have said to miss."""
    for shard in others:
        if shard.missing:
            first.tell_missing(shard.missing)
