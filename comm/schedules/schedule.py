"""Schedules: what moves when.

A collective is a function of the number of ranks that yields rounds; a round is a table of transfers that may
happen at once. The same rounds are executed on real wires (`execute`), proven (`prove`) and counted
(`account`).

The buffer is cut into as many chunks as the schedule names; chunk c of k holds the elements from `c·n // k` up
to `(c + 1)·n // k`, so that no element is lost if n is not a multiple of k.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import zip_longest

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.foreign import guarded

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Round:
    """Transfers that may happen at once; row i of every array describes transfer i.

    All sends of a round read the values from before the round. Several arrivals at one target are taken in the
    table's order, so that every run gives the same bytes.

    Attributes:
        source: (transfers,) the rank that sends.
        target: (transfers,) the rank that receives.
        first: (transfers,) the first chunk moved ...
        stop: (transfers,) ... and one past the last.
        reduce: (transfers,) whether the target adds what arrives (True) or replaces its own by it (False).
    """

    source: IntArray
    target: IntArray
    first: IntArray
    stop: IntArray
    reduce: BoolArray

    def __len__(self) -> int:
        return len(self.source)


Schedule = Callable[[int], Iterable[Round]]
"""A function of the number of ranks that yields rounds."""


def moved(source: ArrayLike, target: ArrayLike, *, chunk: ArrayLike, reduce: ArrayLike) -> Round:
    """A round in which every source sends one chunk.

    Args:
        source: (transfers,) the rank that sends; here and below a scalar stands for every transfer.
        target: (transfers,) the rank that receives.
        chunk: (transfers,) the chunk moved.
        reduce: (transfers,) whether the target adds (True) or replaces (False).
    """
    first = np.asarray(chunk, dtype=np.int64)
    return spanned(source, target, first=first, stop=first + 1, reduce=reduce)


def spanned(source: ArrayLike, target: ArrayLike, *, first: ArrayLike, stop: ArrayLike, reduce: ArrayLike) -> Round:
    """A round in which every source sends the chunks from `first` up to, not including, `stop`."""
    shape = np.broadcast_shapes((1,), *(np.shape(column) for column in (source, target, first, stop, reduce)))

    def column(values: ArrayLike) -> IntArray:
        return np.broadcast_to(np.asarray(values, dtype=np.int64), shape)

    reduces = np.broadcast_to(np.asarray(reduce, dtype=np.bool_), shape)
    return Round(column(source), column(target), column(first), column(stop), reduces)


def joined(rounds: Sequence[Round]) -> Round:
    """Merges rounds that happen at the same time; where both reach one rank, the earlier round comes first."""
    return Round(*(np.concatenate([getattr(round_, field.name) for round_ in rounds]) for field in fields(Round)))


def name_of(schedule: Callable[..., object]) -> str:
    """The name of a schedule or an algorithm, for messages."""
    named = getattr(schedule, "__name__", None) or getattr(getattr(schedule, "func", None), "__name__", None)
    return str(named or schedule)


WHOLE = ("source", "target", "first", "stop")
"""The columns of a round that hold whole numbers."""

MOST_CHUNKS = 1_000_000
"""The largest number of chunks: more would be smaller than an element of any buffer that is sent."""


def most_rounds(size: int) -> int:
    """The largest number of rounds that are made for `size` ranks; an all-reduce takes far fewer."""
    return min(1_000_000, 10_000 + 8 * size * size)


def rounds_of(schedule: Schedule, size: int, admit: Callable[[int, Round], None] | None = None) -> list[Round]:
    """Makes all rounds of a schedule for `size` ranks, and checks that their ranks and chunks are possible.

    Args:
        schedule: the schedule.
        size: the number of ranks.
        admit: called with each round and its number, from 1 on, before the next is made: rounds for many ranks can take
            more time and memory than there are, and an error that it raises ends that.

    Raises:
        ConfigurationError: the schedule fails for that many ranks, does not end, or a round has impossible ranks or
            chunks; names them, and the line of the schedule's source.
    """
    name, most = name_of(schedule), most_rounds(size)
    with guarded(name, f"make rounds for {size} ranks", f"made rounds for {size} ranks", schedule):
        made: list[Round] = []
        for number, round_ in enumerate(schedule(size), start=1):
            if number > most:
                raise ConfigurationError(
                    f"{name} makes more than {most:,} rounds for {size} ranks, and would perhaps never end. Look at "
                    "its loops."
                )
            made.append(_checked(round_, f"Round {number} of {name} for {size} ranks", size))
            if admit is not None:
                admit(number, made[-1])
    return made


def _checked(round_: object, where: str, size: int) -> Round:
    """The round, if its columns are flat and alike, and its ranks and chunks are possible."""
    if not isinstance(round_, Round):
        raise ConfigurationError(
            f"{where} is a {type(round_).__name__}. Yield rounds, as bigbatch.comm.schedules.schedule.moved makes them."
        )
    columns = {field.name: getattr(round_, field.name) for field in fields(Round)}
    for name, column in columns.items():
        kinds, wanted = ("b", "truth values") if name == "reduce" else ("iu", "whole numbers")
        if not isinstance(column, np.ndarray) or column.ndim != 1 or (column.dtype.kind not in kinds and len(column)):
            is_now = (
                f"an array of shape {column.shape} and type {column.dtype}"
                if isinstance(column, np.ndarray)
                else f"a {type(column).__name__}"
            )
            raise ConfigurationError(
                f"{where} has {is_now} as its {name}, which must be a flat array of {wanted}. "
                "bigbatch.comm.schedules.schedule.moved makes rounds of lists and numbers, too."
            )
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        counted = ", ".join(f"{length} of {name}" for name, length in lengths.items())
        raise ConfigurationError(
            f"{where} has columns of different lengths: {counted}. Each transfer is one row of all."
        )
    ends = np.concatenate([round_.source, round_.target])
    if len(ends) and not 0 <= ends.min() <= ends.max() < size:
        raise ConfigurationError(
            f"{where} names rank {ends.min() if ends.min() < 0 else ends.max()}, but the ranks are 0 to {size - 1}."
        )
    if (round_.source == round_.target).any():
        alone = round_.source[round_.source == round_.target][0]
        raise ConfigurationError(f"{where} has rank {alone} send to itself. What a rank has it need not send.")
    if ((round_.first < 0) | (round_.stop <= round_.first)).any():
        raise ConfigurationError(f"{where} moves chunks from below 0, or none at all.")
    if (highest := int(round_.stop.max(initial=0))) > MOST_CHUNKS:
        raise ConfigurationError(
            f"{where} names chunk {highest - 1:,}, but a buffer is cut into at most {MOST_CHUNKS:,} chunks, numbered "
            "from 0."
        )
    source, target, first, stop = (np.asarray(columns[name], np.int64) for name in WHOLE)
    return Round(source, target, first, stop, np.asarray(round_.reduce, np.bool_))


MADE_AGAIN = 3
"""How often rounds are made again to see whether they are the same; once would miss half of what a coin decides."""


def check_repeats(schedule: Schedule, size: int) -> None:
    """Makes the rounds several times, and refuses a schedule whose rounds differ from call to call.

    Raises:
        ConfigurationError: they differ; names the first round that does. And what `rounds_of` raises.
    """
    once = rounds_of(schedule, size)
    for _ in range(MADE_AGAIN):
        pairs = enumerate(zip_longest(once, rounds_of(schedule, size)), start=1)
        differs = next((number for number, (one, other) in pairs if not _same(one, other)), None)
        if differs is not None:
            raise ConfigurationError(
                f"Round {differs} of {name_of(schedule)} for {size} ranks differs from one call to the next. Every "
                "rank makes the rounds for itself, so that they must depend on nothing but the number of ranks."
            )


def _same(one: Round | None, other: Round | None) -> bool:
    if one is None or other is None:
        return False
    return all(np.array_equal(getattr(one, field.name), getattr(other, field.name)) for field in fields(Round))


def chunk_count(rounds: Iterable[Round]) -> int:
    """The number of chunks a schedule cuts the buffer into: one past the highest that any transfer names."""
    return max((int(round_.stop.max()) for round_ in rounds if len(round_)), default=1)


def chunk_bounds(elements: int, chunks: int) -> IntArray:
    """(chunks + 1,) where each chunk of a buffer begins, in elements; the last entry is the end."""
    return np.arange(chunks + 1, dtype=np.int64) * elements // chunks


PACKET_BYTES = 1024 * 1024
"""Bytes of a packet: small against a processor's cache, large against a message's latency."""


MOST_PACKETS = 64
"""The largest number of packets of one transfer; longer transfers have larger packets, as more would hide no more."""


ROUNDED_AT_ONCE = 4
"""How many times as long packets of rounded numbers are, which take longer to take in: fewer wake-ups pay more."""


def packets(round_: Round, nbytes: IntArray, *, rounded: bool = False) -> IntArray:
    """(transfers,) the number of messages in which each transfer of a round travels.

    A transfer that the target adds travels in packets of about `PACKET_BYTES`, so that the target can add one packet,
    still in its cache, while the next one arrives. A transfer remains one message in three cases: if the target
    replaces its own data, which needs no further memory; if the target must keep its own data until that was sent; or
    if anything but sums over just the same chunks arrives there too, so that whole transfers must be taken in in the
    table's order.

    If what is sent is rounded, it is sent from memory of its own and received into some, so that only the last of the
    three cases remains.

    Args:
        round_: the transfers.
        nbytes: (transfers,) the size of each transfer in bytes.
        rounded: whether numbers are sent in a format of their own.
    """
    counts = np.ones(len(round_), dtype=np.int64)
    packet = PACKET_BYTES * (ROUNDED_AT_ONCE if rounded else 1)
    long = (round_.reduce | rounded) & (nbytes > packet)
    if long.any():
        arriving = _overlapping(round_, round_.target)
        cut = long & np.where(round_.reduce, _alike(round_) == arriving, arriving == 1)
        if not rounded:
            cut &= ~sent_by_target(round_)
        counts[cut] = np.minimum(MOST_PACKETS, -(-nbytes[cut] // packet))
    return counts


def sent_by_target(round_: Round) -> BoolArray:
    """(transfers,) whether the target sends, in the same round, some of the chunks that it receives."""
    return _overlapping(round_, round_.source) > 0


def _overlapping(round_: Round, end: IntArray) -> IntArray:
    """(transfers,) how many have the target at that end of theirs, `source` or `target`, and some of the same chunks.

    Of those at the same rank, all but the ones that begin after it ends, and the ones that end before it begins.
    """
    width = int(round_.stop.max(initial=0)) + 1
    begins = np.sort(end * width + round_.first, kind="stable")
    stops = np.sort(end * width + round_.stop, kind="stable")
    here = round_.target * width
    return np.searchsorted(begins, here + round_.stop, "left") - np.searchsorted(stops, here + round_.first, "right")


def _alike(round_: Round) -> IntArray:
    """(transfers,) how many add to just the same chunks of the same target."""
    width = int(round_.stop.max(initial=0)) + 1
    keys = np.where(round_.reduce, (round_.target * width + round_.first) * width + round_.stop, -1)
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    return np.asarray(counts)[inverse]


def transfers(round_: Round) -> Iterator[tuple[int, int, int, int, bool]]:
    """The rows of a round as (source, target, first, stop, reduce), in the table's order."""
    return zip(
        round_.source.tolist(),
        round_.target.tolist(),
        round_.first.tolist(),
        round_.stop.tolist(),
        round_.reduce.tolist(),
        strict=True,
    )
