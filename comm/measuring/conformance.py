"""The conformance kit: what every all-reduce must do, checked; for the algorithms here, and for yours.

    from bigbatch.comm.measuring.conformance import conform
    print(conform(my_ring))          # {} if all is well, else what each check found

Here `my_ring` is a function of the number of ranks that yields rounds; `conform_collective` takes an all-reduce that
is not written as rounds. Both run on simulated ranks in one process; `on_wires` runs the same checks between real
ones. `MUTANTS` are wrong on purpose: a check that lets them all pass is worth nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from inspect import signature
from itertools import product

import numpy as np
import torch
from torch import Tensor

from bigbatch.comm.collectives import bind
from bigbatch.comm.errors import BigBatchError
from bigbatch.comm.reducers.collective import Collective, Scheduled
from bigbatch.comm.schedules import schedule
from bigbatch.comm.schedules.account import account
from bigbatch.comm.schedules.prove import prove
from bigbatch.comm.schedules.schedule import Round
from bigbatch.comm.transports.cluster import Cluster
from bigbatch.comm.wires.agreement import all_gather
from bigbatch.comm.wires.transport import Transport

Algorithm = Callable[..., Iterable[Round]]
MakeCollective = Callable[[Transport], Collective]

RANKS = (*range(1, 10), 13)
"""Numbers of ranks that checks are executed for: all small ones, powers of two or not, and a larger prime."""

PROVEN_RANKS = range(1, 65)
SEGMENTS = (1, 3)
DTYPES = (torch.float32, torch.float64, torch.int64)
CPU = torch.device("cpu")


def sizes(ranks: int) -> list[int]:
    """Lengths of buffers, in elements: empty, around the number of ranks, and such that chunks are uneven."""
    return sorted({0, 1, ranks - 1, ranks, ranks + 1, 1000, 1003})


# What every all-reduce must do. Each check is called on every rank, with the same arguments but its own rank, and
# yields what it finds wrong. It goes on to the end whatever it finds, for the other ranks do.

Findings = Iterator[str]


def sums_exactly(collective: Collective) -> Findings:
    """Checks that every element holds the exact sum of integers that differ between ranks and elements."""
    for dtype in DTYPES:
        for elements in sizes(collective.transport.size):
            buffer = _filled(collective, _distinct(collective.transport.rank, collective.transport, elements, dtype))
            collective.reduce(buffer)
            yield from _unless_sum(collective.transport, buffer, f"{elements} × {dtype}")


def sums_what_is_long(collective: Collective) -> Findings:
    """Checks sums of buffers so long that their chunks travel in several packets, for up to three ranks."""
    transport = collective.transport
    if transport.size <= 3:
        elements = transport.size * (2 * schedule.PACKET_BYTES + 100) // 8 + 1
        buffer = _filled(collective, _distinct(transport.rank, transport, elements, torch.int64))
        collective.reduce(buffer)
        yield from _unless_sum(transport, buffer, f"{elements} × int64")


def leaves_surroundings_alone(collective: Collective) -> Findings:
    """Checks that summing an offset view of a larger buffer leaves what lies around it as it was."""
    for elements in sizes(collective.transport.size):
        memory = collective.allocate(elements + 10, torch.float64, CPU)
        memory.fill_(-1)
        memory[3 : 3 + elements] = _distinct(collective.transport.rank, collective.transport, elements, torch.float64)
        collective.reduce(memory[3 : 3 + elements])
        if not (memory[:3].eq(-1).all() and memory[3 + elements :].eq(-1).all()):
            yield (
                f"Rank {collective.transport.rank}: something outside of the {elements} elements that were to be "
                "summed has changed."
            )
        yield from _unless_sum(collective.transport, memory[3 : 3 + elements], f"{elements} elements at an offset of 3")


def keeps_float64(collective: Collective) -> Findings:
    """Checks that the ones in a sum of 1e8, 1, -1e8 and 1 over the ranks survive, as in float64 but not in less."""
    transport = collective.transport
    pattern = torch.tensor([1e8, 1.0, -1e8, 1.0], dtype=torch.float64)
    place = torch.arange(1003)
    total = torch.stack([pattern[(place + rank) % 4] for rank in range(transport.size)]).sum(0)
    buffer = _filled(collective, pattern[(place + transport.rank) % 4])
    collective.reduce(buffer)
    yield from _unless(transport, buffer, total, "1e8, 1, -1e8, 1")


def is_alike_everywhere(collective: Collective) -> Findings:
    """Checks that every rank ends with the same bytes, for numbers whose sum depends on the order."""
    buffer = _filled(collective, _random(collective.transport.rank))
    collective.reduce(buffer)
    everyone = all_gather(collective.transport, buffer.numpy().tobytes().hex())
    different = [rank for rank, result in enumerate(everyone) if result != everyone[0]]
    if different:
        yield f"Ranks {different} end with other bytes than rank 0: sums are made in different orders."


def repeats_itself(collective: Collective) -> Findings:
    """Checks that the same numbers give the same bytes, although messages may arrive in another order."""
    results = set()
    for _ in range(3):
        buffer = _filled(collective, _random(collective.transport.rank))
        collective.reduce(buffer)
        results.add(buffer.numpy().tobytes())
    if len(results) > 1:
        yield f"Rank {collective.transport.rank} got {len(results)} different results from the same numbers."


def keeps_several_apart(collective: Collective) -> Findings:
    """Checks several sums under way at once, waited for in another order on every rank."""
    transport = collective.transport
    lengths = (1003, 7, 256, 0)
    memory = collective.allocate(sum(lengths), torch.float64, CPU)
    starts = np.cumsum((0, *lengths)).tolist()
    buffers = [memory[start : start + length] for start, length in zip(starts, lengths, strict=False)]
    for elements, buffer in zip(lengths, buffers, strict=True):
        buffer.copy_(_distinct(transport.rank, transport, elements, torch.float64))
    under_way = [collective.start(buffer) for buffer in buffers]
    order = np.random.default_rng(transport.rank).permutation(len(lengths)).tolist()
    for number in order:
        under_way[number].wait()
        what = f"the sum started as number {number}, waited for in the order {order}"
        yield from _unless_sum(transport, buffers[number], what)


WIRE_CHECKS: Mapping[str, Callable[[Collective], Findings]] = {
    "sum": sums_exactly,
    "long": sums_what_is_long,
    "surroundings": leaves_surroundings_alone,
    "cancellation": keeps_float64,
    "alike": is_alike_everywhere,
    "repeatable": repeats_itself,
    "in flight": keeps_several_apart,
}
"""Checks of any all-reduce, by name."""


def counts_as_planned(algorithm: Algorithm, transport: Transport) -> Findings:
    """Checks that a rank sends as many messages and bytes as `account` counts."""
    collective = Scheduled(algorithm, transport)
    for elements in sizes(transport.size):
        buffer = torch.zeros(elements, dtype=torch.float64)
        collective.introduce(buffer)
        messages, nbytes = transport.messages_sent, transport.bytes_sent
        collective.reduce(buffer)
        counted = account(bind(algorithm, 8 * elements, transport.nodes), transport.size, elements, 8)
        sent = transport.messages_sent - messages, transport.bytes_sent - nbytes
        planned = int(counted.messages[transport.rank]), int(counted.sent[transport.rank])
        if sent != planned:
            yield (
                f"Rank {transport.rank} of {transport.size} sent {sent[0]} messages and {sent[1]} bytes of {elements} "
                f"elements, but its rounds say {planned[0]} and {planned[1]}."
            )


def is_proven(algorithm: Algorithm, ranks: Iterable[int] = PROVEN_RANKS) -> Findings:
    """Checks by proof that every rank ends with every contribution exactly once, whatever the data are."""
    for size in ranks:
        proof = prove(bind(algorithm, 0), size)
        if not proof.holds:
            yield f"{size} ranks: {proof}"


# Running the checks.


def conform(algorithm: Algorithm, ranks: Sequence[int] = RANKS) -> dict[str, str]:
    """Put an algorithm through every check, on simulated ranks.

    Args:
        algorithm: a function of the number of ranks that yields rounds.
        ranks: the numbers of ranks to execute it for; it is proven for 1 to 64.

    Returns:
        What the checks found, by name: empty if it conforms. The names are "proof", "count" and those of
        `WIRE_CHECKS`.
    """

    def proofs() -> Findings:
        for variant in variants(algorithm):
            yield from is_proven(variant)

    def counts() -> Findings:
        for size, variant in product(ranks, variants(algorithm)):
            yield from _on_cluster(size, partial(counts_as_planned, variant))

    makers = [partial(Scheduled, variant) for variant in variants(algorithm)]
    return _first_findings({"proof": proofs, **_on_clusters(makers, ranks), "count": counts})


def conform_collective(make: MakeCollective, ranks: Sequence[int] = RANKS) -> dict[str, str]:
    """Put any all-reduce, written as rounds or not, through every check that needs no rounds, on simulated ranks.

    Args:
        make: makes a `Collective` of a transport; a strategy's `collective` does.
        ranks: the numbers of ranks to execute it for.

    Returns:
        What the checks found, by name: empty if it conforms. The names are those of `WIRE_CHECKS`.
    """
    return _first_findings(_on_clusters([make], ranks))


def _first_findings(checks: Mapping[str, Callable[[], Findings]]) -> dict[str, str]:
    found = {}
    for name, check in checks.items():
        try:
            finding = next(check(), None)
        except BigBatchError as error:
            finding = str(error)
        if finding is not None:
            found[name] = finding
    return found


def _on_cluster(size: int, check: Callable[[Transport], Findings]) -> Findings:
    for findings in Cluster(size).run(lambda transport: list(check(transport))):
        yield from findings


def _examine(check: Callable[[Collective], Findings], make: MakeCollective, transport: Transport) -> Findings:
    yield from check(make(transport))


def _on_clusters(makers: Sequence[MakeCollective], ranks: Sequence[int]) -> dict[str, Callable[[], Findings]]:
    def run(check: Callable[[Collective], Findings]) -> Findings:
        for size, make in product(ranks, makers):
            yield from _on_cluster(size, partial(_examine, check, make))

    return {name: partial(run, check) for name, check in WIRE_CHECKS.items()}


def on_wires(make: MakeCollective, transport: Transport) -> dict[str, str]:
    """Put an all-reduce through every check that needs no rounds, between the ranks of a transport.

    Every rank calls it, and gets the same: what the checks found, by name.
    """
    found: dict[str, str] = {}
    for name, check in WIRE_CHECKS.items():
        collective = make(transport)
        everyones = all_gather(transport, list(check(collective))[:1], f"end the check {name!r}")
        collective.close()
        first = next((findings[0] for findings in everyones if findings), None)
        if first is not None:
            found[name] = first
    return found


def variants(algorithm: Algorithm) -> list[Algorithm]:
    """The algorithm, in several numbers of segments if it takes any."""
    if "segments" not in signature(algorithm).parameters:
        return [algorithm]
    return [partial(algorithm, segments=segments) for segments in SEGMENTS]


def _distinct(rank: int, transport: Transport, elements: int, dtype: torch.dtype) -> Tensor:
    """(elements,) integers that no other rank or element has."""
    return (torch.arange(elements) * transport.size + rank).to(dtype)


def _random(rank: int) -> Tensor:
    """(1003,) float32 of very different sizes, so that the order of additions shows."""
    generator = np.random.default_rng(rank)
    return torch.from_numpy((generator.normal(size=1003) * 10.0 ** generator.integers(-3, 4, 1003)).astype(np.float32))


def _filled(collective: Collective, values: Tensor) -> Tensor:
    memory = collective.allocate(len(values), values.dtype, CPU)
    memory.copy_(values)
    return memory


def _unless_sum(transport: Transport, buffer: Tensor, what: str) -> Findings:
    total = torch.zeros_like(buffer)
    for rank in range(transport.size):
        total += _distinct(rank, transport, len(buffer), buffer.dtype)
    yield from _unless(transport, buffer, total, what)


def _unless(transport: Transport, buffer: Tensor, total: Tensor, what: str) -> Findings:
    wrong = (buffer != total).nonzero()
    if len(wrong):
        place = int(wrong[0])
        yield (
            f"Rank {transport.rank} of {transport.size} has {buffer[place].item()} in element {place}, where the sum "
            f"is {total[place].item()}; {len(wrong)} of {len(buffer)} elements are wrong ({what})."
        )
