"""Agreement: the ranks tell each other what they have, and fail together or not at all."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from bigbatch.comm.errors import BigBatchError, DeadlineError, MismatchError
from bigbatch.comm.transport import Transport

Result = TypeVar("Result")

AGREEMENT_TAG = 31_000
"""Kept apart from the tags of gradients."""


def share(transport: Transport, value: Any, occasion: str = "tell the others what it has") -> list[Any]:
    """Every rank's `value`, by rank, on every rank; anything that JSON can write, and small.

    Rank 0 collects the values and sends everyone the list. It waits half of the deadline for the others, so that it
    can still tell those who came that somebody did not.

    Args:
        transport: whose ranks share.
        value: this rank's.
        occasion: what for, for the error.

    Raises:
        DeadlineError: on every rank that came, naming those that did not.
    """
    if transport.rank:
        _send(transport, 0, json.dumps(value))
        verdict = json.loads(_receive(transport, 0))
    else:
        values, missing = {0: value}, []
        with _patience(transport):
            for source in range(1, transport.size):
                try:
                    values[source] = json.loads(_receive(transport, source))
                except DeadlineError:
                    missing.append(source)
                    transport.deadline = min(transport.deadline, STRAGGLER_SECONDS)
        verdict = {"values": list(values.values()), "missing": missing}
        for target in sorted(set(values) - {0}):
            _send(transport, target, json.dumps(verdict))
    if verdict["missing"]:
        missing = verdict["missing"]
        raise DeadlineError(
            f"Rank{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))} did not come to {occasion} within "
            f"{transport.deadline / 2:g} s, as the others did. Look at what went wrong there; if nothing did, allow "
            "more with --deadline."
        )
    shared: list[Any] = verdict["values"]
    return shared


STRAGGLER_SECONDS = 1.0
"""Once one rank is missing, the others have had their time: they get this much more."""


@contextmanager
def _patience(transport: Transport) -> Iterator[None]:
    """Half of the transport's deadline."""
    deadline = transport.deadline
    transport.deadline = deadline / 2
    try:
        yield
    finally:
        transport.deadline = deadline


def _send(transport: Transport, target: int, text: str) -> None:
    content = np.frombuffer(bytearray(text.encode()), dtype=np.uint8)
    transport.isend(np.array([len(content)]), target, AGREEMENT_TAG).wait()
    transport.isend(content, target, AGREEMENT_TAG).wait()


def _receive(transport: Transport, source: int) -> str:
    length = np.empty(1, dtype=np.int64)
    transport.irecv(length, source, AGREEMENT_TAG).wait()
    content = np.empty(int(length[0]), dtype=np.uint8)
    transport.irecv(content, source, AGREEMENT_TAG).wait()
    return content.tobytes().decode()


def together(transport: Transport, attempt: Callable[[], Result]) -> Result:
    """Do something on every rank that may fail on some; then it has failed on all.

    Raises:
        BigBatchError: the error of the lowest rank that had one, on every rank, marked `everywhere`.
    """
    failure: BigBatchError | None = None
    result: list[Result] = []
    try:
        result.append(attempt())
    except BigBatchError as error:
        failure = error
    messages = share(transport, None if failure is None else str(failure))
    failed = [rank for rank, message in enumerate(messages) if message is not None]
    if not failed:
        return result[0]
    if failure is None or transport.rank != failed[0]:
        failure = BigBatchError(f"Rank {failed[0]}: {messages[failed[0]]}")
    failure.everywhere = True
    raise failure


def agree(transport: Transport, what: str, entries: Sequence[tuple[str, Any]]) -> None:
    """Make sure that every rank has the same entries, in the same order.

    Args:
        transport: whose ranks must agree.
        what: what an entry is called, for the error: "parameter", "option".
        entries: (name, value) pairs that JSON can write.

    Raises:
        MismatchError: on every rank, naming the first rank that differs from rank 0 and the first entry in which
            it does.
    """
    lists = share(transport, [[name, value] for name, value in entries], f"compare {what}s")
    for rank, theirs in enumerate(lists):
        if theirs != lists[0]:
            error = MismatchError(_difference(what, rank, theirs, lists[0]))
            error.everywhere = True
            raise error


def _difference(what: str, rank: int, theirs: list[Any], ours: list[Any]) -> str:
    advice = "Every rank must run the same program with the same options."
    for (name, value), (expected_name, expected) in zip(theirs, ours, strict=False):
        if name != expected_name:
            return f"Rank {rank} has the {what} {name!r} where rank 0 has {expected_name!r}. {advice}"
        if value != expected:
            return f"Rank {rank}'s {what} {name!r} is {_plain(value)}, but rank 0's is {_plain(expected)}. {advice}"
    name, value = (theirs if len(theirs) > len(ours) else ours)[min(len(theirs), len(ours))]
    has, lacks = (f"Rank {rank}", "rank 0") if len(theirs) > len(ours) else ("Rank 0", f"rank {rank}")
    return f"{has} has the {what} {name!r} ({_plain(value)}), which {lacks} lacks. {advice}"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
