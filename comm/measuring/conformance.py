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

from bigbatch.comm.bounds import StillRunning
from bigbatch.comm.collectives import Nodes, bind
from bigbatch.comm.errors import BigBatchError
from bigbatch.comm.foreign import guarded
from bigbatch.comm.reducers.collective import Collective, Scheduled
from bigbatch.comm.schedules import schedule
from bigbatch.comm.schedules.account import account
from bigbatch.comm.schedules.prove import prove, wrong_sum
from bigbatch.comm.schedules.schedule import Round, Schedule, check_repeats
from bigbatch.comm.transports.cluster import Cluster
from bigbatch.comm.wires.agreement import all_gather
from bigbatch.comm.wires.transport import Transport, consecutive_nodes

Algorithm = Callable[..., Iterable[Round]]
MakeCollective = Callable[[Transport], Collective]

RANKS = (*range(1, 10), 13)
"""Numbers of ranks that checks are executed for: all small ones, powers of two or not, and a larger prime."""

PROVEN_RANKS = range(1, 65)
MANY_RANKS = (65, 66, 67, 96, 97, 100, 127, 128, 129, 193, 255, 256, 257)
"""Numbers of ranks above those that are proven, for which random sums are made: primes, and powers of two ± 1."""

SEGMENTS = (1, 3)
ALL_SEGMENTS = (2, 4, 5, 7, 8, 16, 33, 64)
"""Further numbers of segments, for which the rounds of few ranks are looked at."""

FEW_RANKS = (2, 3, 5, 8)
NODES = (
    (4, 2),
    (6, 2),
    (6, 3),
    (7, 3),
    (8, 4),
    (9, 4),
    (12, 4),
    (12, 5),
    (24, 8),
    (40, 8),
    (65, 8),
    (66, 33),
    (128, 8),
)
"""(ranks, ranks a node) for which the rounds of an algorithm that asks for the nodes are looked at."""

NODES_EXECUTED = ((4, 2), (7, 3))
SECONDS = 60.0
"""Seconds that one check may take; one that takes longer ends the examination."""

NOT_LOOKED_AT = (
    f"more than {MANY_RANKS[-1]} ranks, and numbers of ranks between {PROVEN_RANKS[-1]} and that which are none of "
    f"{', '.join(map(str, MANY_RANKS))}",
    f"execution on more than {RANKS[-1]} ranks: for more, the rounds alone are looked at",
    "buffers of more than a few megabytes a rank, dtypes other than float32, float64 and int64, and GPUs",
    "how fast it is",
    "rounds that depend on more than the number of ranks, such as the time, where that does not show in two calls",
)
"""What `conform` does not look at, each as a phrase."""
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
    """Checks a sum over a buffer of more than a megabyte; for few ranks each chunk of it travels in several packets."""
    transport = collective.transport
    nbytes = transport.size * (2 * schedule.PACKET_BYTES + 100) if transport.size <= 4 else LONG_BYTES
    elements = nbytes // 8 + 1
    buffer = _filled(collective, _distinct(transport.rank, transport, elements, torch.int64))
    collective.reduce(buffer)
    yield from _unless_sum(transport, buffer, f"{elements} × int64")


LONG_BYTES = 3 * 2**19
"""Bytes of a buffer that is long for any algorithm, and not too long for many ranks in one process."""


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


def adds_up(algorithm: Algorithm) -> Findings:
    """Checks by sums of random numbers what a proof would take too long for: many ranks, all segments and nodes."""
    names = signature(algorithm).parameters
    pieces = [partial(algorithm, segments=segments) for segments in ALL_SEGMENTS if "segments" in names]
    tried: list[tuple[str, Schedule, int]] = [("", bind(algorithm, 0), size) for size in MANY_RANKS]
    for size, cut in product(FEW_RANKS, pieces):
        tried.append((f" in {cut.keywords['segments']} segments", bind(cut, 0), size))
    for size, local in NODES if "nodes" in names else ():
        layouts = consecutive_nodes(size, local), tuple(tuple(range(first, size, local)) for first in range(local))
        tried.extend((f" on nodes of {_sizes(nodes)}", bind(algorithm, 0, nodes), size) for nodes in layouts)
    for what, schedule_, size in tried:
        found = wrong_sum(schedule_, size)
        if found:
            yield f"{size} ranks{what}: {found}"


def _sizes(nodes: Nodes) -> str:
    return ", ".join(str(len(node)) for node in nodes)


def repeats_its_rounds(algorithm: Algorithm, ranks: Iterable[int]) -> Findings:
    """Checks that the rounds are the same whenever they are made, because every rank makes them for itself."""
    for size in ranks:
        check_repeats(bind(algorithm, 0), size)
    yield from ()


# Running the checks.


def conform(algorithm: Algorithm, ranks: Sequence[int] = RANKS) -> dict[str, str]:
    """Put an algorithm through every check, on simulated ranks.

    Args:
        algorithm: a function of the number of ranks that yields rounds.
        ranks: the numbers of ranks to execute it for. It is proven for 1 to 64, and added up by its rounds for some
            numbers above, see `MANY_RANKS`.

    Returns:
        What the checks found, by name: empty if it conforms. The names are "rounds", "proof", "count" and those of
        `WIRE_CHECKS`. `NOT_LOOKED_AT` says what they do not look at.
    """
    return _first_findings(checks_of(algorithm, ranks))


def checks_of(algorithm: Algorithm, ranks: Sequence[int] = RANKS) -> dict[str, Callable[[], Findings]]:
    """The checks of `conform`, by name; each yields what it finds wrong."""

    def proofs() -> Findings:
        for variant in variants(algorithm):
            yield from is_proven(variant)
        yield from adds_up(algorithm)

    def counts() -> Findings:
        for size, variant in product(ranks, variants(algorithm)):
            yield from _on_cluster(size, partial(counts_as_planned, variant))

    makers = [partial(Scheduled, variant) for variant in (algorithm, *variants(algorithm)[1:])]
    layouts = NODES_EXECUTED if "nodes" in signature(algorithm).parameters else ()
    return {
        "rounds": partial(repeats_its_rounds, algorithm, ranks),
        "proof": proofs,
        **_on_clusters(makers, ranks, layouts),
        "count": counts,
    }


def conform_collective(make: MakeCollective, ranks: Sequence[int] = RANKS) -> dict[str, str]:
    """Put any all-reduce, written as rounds or not, through every check that needs no rounds, on simulated ranks.

    Args:
        make: makes a `Collective` of a transport; a strategy's `collective` does.
        ranks: the numbers of ranks to execute it for.

    Returns:
        What the checks found, by name: empty if it conforms. The names are those of `WIRE_CHECKS`.
    """
    return _first_findings(checks_of_collective(make, ranks))


def checks_of_collective(make: MakeCollective, ranks: Sequence[int] = RANKS) -> dict[str, Callable[[], Findings]]:
    """The checks of `conform_collective`, by name; each yields what it finds wrong."""
    return _on_clusters([make], ranks)


def _first_findings(checks: Mapping[str, Callable[[], Findings]]) -> dict[str, str]:
    return dict(found for found in examined(checks) if found[1])


def examined(checks: Mapping[str, Callable[[], Iterator[str]]], seconds: float = SECONDS) -> Iterator[tuple[str, str]]:
    """Makes one check after the other; yields the name of each and the first thing that it finds, or an empty text.

    What the code under examination raises, and that it takes too long, is a finding too; after the latter nothing else
    is examined.

    Args:
        checks: the checks by name; each yields what it finds wrong, one sentence each.
        seconds: seconds that a check may take.
    """
    for name, check in checks.items():
        endless = False
        try:
            with guarded(f"What the check {name!r} examines", "be examined", "was examined", seconds=seconds):
                finding = next(check(), "")
        except BigBatchError as error:
            finding = str(error)
            endless = isinstance(error.__cause__, StillRunning)
        yield name, finding
        if endless:
            return


def _on_cluster(
    size: int, check: Callable[[Transport], Findings], node_size: int = 0, *, late: bool = False
) -> Findings:
    cluster = Cluster(size, consecutive_nodes(size, node_size) if node_size else (), late=late)
    for findings in cluster.run(lambda transport: list(check(transport))):
        yield from (f"{finding}{' Sends were read late.' if late else ''}" for finding in findings)


def _examine(check: Callable[[Collective], Findings], make: MakeCollective, transport: Transport) -> Findings:
    yield from check(make(transport))


READ_LATE = ("sum", "in flight")
"""The checks that are made once more on a cluster that reads messages late, behind whatever the sender adds."""

MOST_READ_LATE = 6
"""The largest number of ranks of such a cluster."""


def _on_clusters(
    makers: Sequence[MakeCollective], ranks: Sequence[int], layouts: Sequence[tuple[int, int]] = ()
) -> dict[str, Callable[[], Findings]]:
    def run(name: str, check: Callable[[Collective], Findings]) -> Findings:
        for late in (False, True) if name in READ_LATE else (False,):
            counted = [(size, 0) for size in ranks if size <= MOST_READ_LATE or not late]
            for (size, local), make in product([*counted, *layouts], makers):
                yield from _on_cluster(size, partial(_examine, check, make), local, late=late)

    return {name: partial(run, name, check) for name, check in WIRE_CHECKS.items()}


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
