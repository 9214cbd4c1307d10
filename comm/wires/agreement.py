"""Agreement: the ranks tell each other what they have, and fail together or not at all."""

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from bigbatch.comm import errors
from bigbatch.comm.errors import BigBatchError, DeadlineError, MismatchError
from bigbatch.comm.foreign import explained
from bigbatch.comm.wires.life import elsewhere
from bigbatch.comm.wires.transport import Transport

Result = TypeVar("Result")


def all_gather(transport: Transport, value: Any, occasion: str = "tell the others what it has") -> list[Any]:
    """Gives every rank all ranks' values, by rank; a value must be small and of types that JSON can write.

    Args:
        transport: the transport whose ranks take part.
        value: this rank's value.
        occasion: why the ranks meet, as the words that follow "did not come to" in an error.

    Raises:
        DeadlineError: on every rank that came, naming those that did not.
    """
    return _read(transport, transport.exchange(json.dumps(value)), occasion)


def _read(transport: Transport, texts: Sequence[str | None], occasion: str) -> list[Any]:
    """What every rank said, unless one did not."""
    missing = [str(rank) for rank, text in enumerate(texts) if text is None]
    if missing:
        raise DeadlineError(
            f"Rank{'s' if len(missing) > 1 else ''} {', '.join(missing)} did not come to {occasion} within "
            f"{transport.deadline / 2:g} s, as the others did. Look at what went wrong there; if nothing did, allow "
            f"more with --deadline.{elsewhere()}"
        )
    return [json.loads(text) for text in texts if text is not None]


def together(transport: Transport, attempt: Callable[[], Result]) -> Result:
    """Calls `attempt` on every rank; if it fails on some, all ranks raise the same error.

    What the user's code raises in `attempt` counts as an error of ours that names its place.

    Raises:
        BigBatchError: the error of the lowest rank that had one, on every rank and of the same kind, so that all
            processes end with the same exit status; marked `everywhere`.
    """
    failure: BigBatchError | None = None
    result: list[Result] = []
    try:
        result.append(attempt())
    except BigBatchError as error:
        failure = error
    except BaseException as error:
        failure = explained(error)
        if failure is None:
            raise
    failures = all_gather(transport, None if failure is None else [type(failure).__name__, str(failure)])
    failed = [rank for rank, theirs in enumerate(failures) if theirs is not None]
    if not failed:
        return result[0]
    if failure is None or transport.rank != failed[0]:
        kind, message = failures[failed[0]]
        failure = getattr(errors, kind, BigBatchError)(f"Rank {failed[0]}: {message}")
    failure.everywhere = True
    raise failure


def agree(transport: Transport, what: str, entries: Sequence[tuple[str, Any]]) -> None:
    """Make sure that every rank has the same entries, in the same order.

    Args:
        transport: the transport whose ranks must agree.
        what: what an entry is called, for the error: "parameter", "option".
        entries: (name, value) pairs that JSON can write.

    Raises:
        MismatchError: on every rank, naming the first rank that differs from rank 0 and the first entry in which
            it does.
    """
    text = json.dumps([[name, value] for name, value in entries])
    texts = transport.exchange(text)
    if texts.count(text) == len(texts):  # as it should be; many ranks would take long to read what many say
        return
    lists = _read(transport, texts, f"compare {what}s")
    for rank, theirs in enumerate(lists):
        if theirs != lists[0]:
            raise MismatchError(_difference(what, rank, theirs, lists[0]), everywhere=True)


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
