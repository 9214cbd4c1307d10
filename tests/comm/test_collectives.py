"""All-reduces: every algorithm, every other way to sum, simulated and on real wires; and the kit that checks them."""

from collections.abc import Iterator
from functools import partial
from math import log2

import numpy as np
import pytest
import torch
from bodies import refuse_what_differs
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs import PROGRAMS, Run, launcher, quick

from bigbatch.comm.collectives import ALGORITHMS, bind, segments_for
from bigbatch.comm.collectives.hierarchical import hierarchical
from bigbatch.comm.collectives.ring import ring
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.measuring.conformance import conform, conform_collective, on_wires, variants
from bigbatch.comm.measuring.mutants import MUTANTS, one_round_too_few, sends_after_adding, wrong_neighbour
from bigbatch.comm.reducers.collective import Collective, Scheduled, covered
from bigbatch.comm.reducers.execute import execute, part
from bigbatch.comm.reducers.shared_memory import SharedMemory
from bigbatch.comm.reducers.tuning import Tuning
from bigbatch.comm.schedules import schedule
from bigbatch.comm.schedules.account import account
from bigbatch.comm.schedules.prove import prove
from bigbatch.comm.schedules.schedule import moved
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.comm.strategies.all_reduce import AllReduce
from bigbatch.comm.strategies.auto import Fastest
from bigbatch.comm.transports.alone import Alone
from bigbatch.comm.transports.cluster import Cluster
from bigbatch.comm.wires.queue import CommunicationQueue

ALL_REDUCES = [name for name in STRATEGIES.names() if issubclass(STRATEGIES.load(name), AllReduce) and name != "auto"]
ON_ANY_TRANSPORT = [name for name in ALL_REDUCES if name not in ("mpi", "allreduce")]


@pytest.mark.parametrize("name", ALGORITHMS.names())
def test_every_algorithm_conforms(name):
    assert conform(ALGORITHMS.load(name), ranks=[1, 2, 3, 6]) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", ALGORITHMS.names())
def test_every_algorithm_conforms_on_every_number_of_ranks(name):
    assert conform(ALGORITHMS.load(name)) == {}


@pytest.fixture
def small_packets(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Packets so small that every buffer of the checks takes several."""
    monkeypatch.setattr(schedule, "PACKET_BYTES", 64)
    part.cache_clear()
    yield
    part.cache_clear()


@pytest.mark.usefixtures("small_packets")
@pytest.mark.parametrize("name", quick(ALGORITHMS.names(), lambda name: name in ("ring", "tree", "hierarchical")))
def test_every_algorithm_conforms_in_packets(name):
    assert conform(ALGORITHMS.load(name), ranks=[3, 4]) == {}


@pytest.mark.usefixtures("small_packets")
def test_what_is_added_travels_in_packets_unless_its_target_still_has_to_send_it():
    """1003 float64 over 3 ranks: chunks of 334 or 335, 42 packets of at most 64 bytes; doubling sends all, twice.

    The naive gather moves all 8,024 bytes at once: 126 such packets would be, and MOST_PACKETS are.
    """
    assert account(ring, 3, 1003, 8).messages.tolist() == [2 * 42 + 2] * 3
    assert account(ALGORITHMS.load("recursive-doubling"), 4, 1003, 8).messages.tolist() == [2] * 4
    assert account(ALGORITHMS.load("naive"), 3, 1003, 8).messages.tolist() == [2, 64, 64]


@pytest.mark.parametrize("name", ["shared", "hierarchical"])
def test_shared_memory_conforms(name):
    assert conform_collective(STRATEGIES.load(name).collective) == {}


QUICK_MUTANTS = ("adds itself twice", "chunks swapped", "tail dropped", "wrong on many ranks")


@pytest.mark.parametrize("name", quick(MUTANTS, QUICK_MUTANTS.__contains__))
def test_every_mutant_is_caught_by_the_checks_it_names(name):
    assert set(MUTANTS[name].examine()) == MUTANTS[name].caught_by


class Scribbler(Collective):
    """Right, but it writes beyond its buffer."""

    def _sum(self, tensor):
        execute(ring, self.transport, tensor.numpy())
        if tensor.storage_offset():
            torch.as_strided(tensor, (1,), (1,), tensor.storage_offset() - 1).fill_(7)


class Restless(Collective):
    """Right, but it adds in another order every time."""

    def _sum(self, tensor):
        everyone = [torch.empty_like(tensor) for _ in range(self.transport.size)]
        for rank, theirs in enumerate(everyone):
            theirs.copy_(tensor if rank == self.transport.rank else 0)
            execute(ring, self.transport, theirs.numpy())
        order = np.random.default_rng(self._calls).permutation(self.transport.size)
        tensor.copy_(torch.zeros_like(tensor))
        for rank in order.tolist():
            tensor.add_(everyone[rank])


class Halved(Collective):
    """Sums in float32 what is float64."""

    def _sum(self, tensor):
        less = tensor.float() if tensor.dtype == torch.float64 else tensor.clone()
        execute(ring, self.transport, less.numpy())
        tensor.copy_(less)


@pytest.mark.parametrize(
    ("wrong", "checks"),
    [
        (Scribbler, {"surroundings", "in flight"}),
        (Restless, {"repeatable"}),
        (Halved, {"cancellation"}),
    ],
)
def test_the_other_checks_find_what_they_look_for(wrong, checks):
    assert set(conform_collective(wrong, ranks=[1, 2, 3, 5])) == checks


@pytest.mark.parametrize("wrong", ["one round too few", "wrong neighbour", "sends after adding"])
def test_on_wires_everyone_hears_the_same_of_a_wrong_all_reduce(wrong):
    mutant = {"one round too few": one_round_too_few, "wrong neighbour": wrong_neighbour,
              "sends after adding": sends_after_adding}[wrong]  # fmt: skip
    everyones = Cluster(3).run(lambda transport: on_wires(partial(Scheduled, mutant), transport))
    assert everyones == [everyones[0]] * 3
    assert set(everyones[0]) == MUTANTS[wrong].caught_by - {"proof"}


def test_transfers_between_the_same_two_ranks_in_one_round_are_told_apart_in_packets():
    def two_at_once(size):
        assert size == 2
        yield moved([1, 1], [0, 0], chunk=[0, 1], reduce=True)
        yield moved([0, 0], [1, 1], chunk=[0, 1], reduce=False)

    collective = partial(Scheduled, two_at_once)
    assert Cluster(2).run(lambda transport: on_wires(collective, transport)) == [{}] * 2


def test_a_sum_and_a_replacement_that_meet_are_taken_in_in_the_tables_order_however_long():
    def meeting(size):
        assert size == 3
        yield moved([0, 1], [2, 2], chunk=0, reduce=True)
        yield moved([1, 2], [0, 0], chunk=0, reduce=[True, False])
        yield moved(2, 1, chunk=0, reduce=False)

    assert prove(meeting, 3).holds
    assert Cluster(3).run(lambda transport: on_wires(partial(Scheduled, meeting), transport)) == [{}] * 3


def test_a_schedule_that_changes_between_calls_is_found_by_its_count():
    calls = []

    def restless(size):
        calls.append(size)
        yield from ring(size)
        if len(calls) % 2 and size > 1:
            yield from list(ring(size))[size - 1 :]

    assert "count" in conform(restless, ranks=[3])


EQUAL_NODES = [[[0, 1], [2, 3]], [[0, 2, 4], [1, 3, 5]], [[3], [1], [2], [0]], [[5, 1], [0, 2], [4, 3]]]
UNEQUAL_NODES = [[[0, 1, 2], [3]], [[4], [0, 1, 2, 3]], [[0, 3], [1, 2, 4, 5, 6]], [[2, 1], [0], [3, 4, 5, 6, 7]]]


@pytest.mark.parametrize("nodes", EQUAL_NODES + UNEQUAL_NODES)
def test_hierarchical_is_proven_for_any_layout(nodes):
    assert prove(partial(hierarchical, nodes=nodes), sum(map(len, nodes))).holds


@pytest.mark.parametrize("nodes", EQUAL_NODES + UNEQUAL_NODES)
def test_hierarchical_sums_on_any_layout(nodes):
    def work(transport):
        collective = STRATEGIES.load("hierarchical").collective(transport)
        assert isinstance(collective, SharedMemory if nodes in EQUAL_NODES else Scheduled)
        memory = collective.allocate(1003, torch.int64, torch.device("cpu"))
        memory.copy_(torch.arange(1003) * 100 + transport.rank)
        collective.reduce(memory)
        return memory.tolist()

    ranks = sum(map(len, nodes))
    expected = [100 * ranks * element + ranks * (ranks - 1) // 2 for element in range(1003)]
    assert Cluster(ranks, nodes).run(work) == [expected] * ranks


def test_hierarchical_sends_less_between_nodes():
    """With 4 ranks on each of 2 nodes: 2((N-1)/N)(n/L) bytes a rank cross over (the docstring's formula)."""
    nodes, elements = [[0, 1, 2, 3], [4, 5, 6, 7]], 64 * 35
    counted = account(partial(hierarchical, nodes=nodes), 8, elements)
    flat = account(ring, 8, elements)
    assert counted.sent.max() == 2 * 3 / 4 * 4 * elements + 2 * 1 / 2 * 4 * elements / 4 == flat.sent.max()
    crossing = sum(
        int(round_.stop[row] - round_.first[row])
        for round_ in hierarchical(8, nodes)
        for row in range(len(round_))
        if (round_.source[row] < 4) != (round_.target[row] < 4) and round_.source[row] == 0
    )
    assert crossing / 8 == 2 * (1 / 2) / 4  # of the 8 chunks, as a share of the buffer


@pytest.mark.parametrize("size", [2, 4, 8, 16, 64])
def test_accounts_are_the_published_ones_for_powers_of_two(size):
    """Messages, bytes and rounds from the cost formulas: Patarasuk and Yuan, Thakur et al., Rabenseifner."""
    elements = 64 * 105
    n, log = 4 * elements, int(log2(size))
    bandwidth_optimal = 2 * (size - 1) * n // size
    for name, rounds, messages, sent in (
        ("ring", 2 * (size - 1), 2 * (size - 1), bandwidth_optimal),
        ("recursive-doubling", log, log, log * n),
        ("halving-doubling", 2 * log, 2 * log, bandwidth_optimal),
        ("direct", 2, 2 * (size - 1), bandwidth_optimal),
    ):
        counted = account(ALGORITHMS.load(name), size, elements)
        assert counted.rounds == rounds, name
        assert counted.messages.tolist() == [messages] * size, name
        assert counted.sent.tolist() == counted.received.tolist() == [sent] * size, name
        assert counted.lower_bound == bandwidth_optimal


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 8, 13])
def test_accounts_of_trees_chains_and_stars_for_any_number(size):
    elements, segments = 1000, 4
    n = 4 * elements
    naive = account(ALGORITHMS.load("naive"), size, elements)
    assert naive.rounds == (2 if size > 1 else 0)
    assert naive.received[0] == naive.sent[0] == (size - 1) * n
    tree = account(ALGORITHMS.load("tree"), size, elements)
    assert tree.rounds == 2 * int(np.ceil(log2(size)))
    assert tree.messages.sum() == 2 * (size - 1)
    chain = account(partial(ALGORITHMS.load("chain"), segments=segments), size, elements)
    assert chain.rounds == (2 * (size - 1 + segments - 1) if size > 1 else 0)
    assert chain.sent.sum() == 2 * (size - 1) * n
    double = account(partial(ALGORITHMS.load("double-tree"), segments=segments), size, elements)
    assert double.sent.sum() == 2 * (size - 1) * n
    assert double.sent.max() <= 2 * n  # no rank's wire carries much more than the others': about 2n each


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(ALGORITHMS.names()),
    size=st.integers(1, 17),
    elements=st.integers(0, 300),
    segments=st.integers(1, 9),
)
def test_any_size_any_ranks_any_segments(name, size, elements, segments):
    algorithm = ALGORITHMS.load(name)
    if len(variants(algorithm)) > 1:
        algorithm = partial(algorithm, segments=segments)
    assert prove(bind(algorithm, 0), size).holds

    def work(transport):
        buffer = np.arange(elements) * size + transport.rank
        execute(bind(algorithm, 0), transport, buffer)
        return buffer.tolist()

    expected = [size * size * element + size * (size - 1) // 2 for element in range(elements)]
    assert Cluster(size).run(work) == [expected] * size


def test_segments_follow_from_the_size_and_stay_within_bounds():
    assert [segments_for(nbytes) for nbytes in (0, 1000, 128 * 1024, 2**20, 2**40)] == [1, 1, 1, 8, 64]


def test_rounds_that_make_no_sense_are_refused_by_name():
    def to_nobody(size):
        yield from ring(size)
        yield next(iter(ring(size + 1)))

    def to_itself(size):
        for round_ in ring(size):
            yield type(round_)(round_.source, round_.source, round_.first, round_.stop, round_.reduce)

    with pytest.raises(ConfigurationError, match="Round 5 of to_nobody for 3 ranks names rank 3"):
        prove(to_nobody, 3)
    with pytest.raises(ConfigurationError, match="Round 1 of to_itself for 3 ranks has rank 0 send to itself"):
        Cluster(3).run(lambda transport: execute(to_itself, transport, np.zeros(3)))


@pytest.mark.parametrize("name", ON_ANY_TRANSPORT)
def test_ranks_that_differ_are_refused_by_name(name):
    Cluster(3).run(lambda transport: refuse_what_differs(STRATEGIES.load(name).collective, transport))


def all_is_well(run: Run, program: str, ranks: int, body: str, names: list[str]) -> None:
    outcome = run(*launcher(program, ranks), PROGRAMS / "on_wires.py", body, ",".join(names), deadline=100)
    assert (outcome.status, outcome.out.strip()) == (0, "all is well"), outcome.err


@pytest.mark.parametrize("ranks", [3, *(pytest.param(number, marks=pytest.mark.slow) for number in (2, 4))])
def test_all_conform_under_mpirun(run: Run, ranks):
    all_is_well(run, "mpirun", ranks, "conform", ALL_REDUCES)


def test_what_is_too_long_for_mpi_travels_in_pieces(run: Run):
    """mpi4py 575: Open MPI 5 counts in 32 bits."""
    all_is_well(run, "mpirun", 3, "pieces", ["ring", "mpi"])


@pytest.mark.slow
def test_some_conform_under_torchrun(run: Run):
    all_is_well(run, "torchrun", 3, "conform", ["ring", "hierarchical"])


def test_ranks_that_differ_are_refused_under_mpirun(run: Run):
    all_is_well(run, "mpirun", 3, "differ", ALL_REDUCES)


@pytest.mark.parametrize("name", [pytest.param("ring", marks=pytest.mark.slow), "allreduce"])  # a kind of wires each
def test_a_missing_rank_is_named_everywhere_within_the_deadline(run: Run, name):
    outcome = run(*launcher("mpirun", 3), PROGRAMS / "on_wires.py", "missing", name, deadline=40)
    assert "Traceback" not in outcome.err
    assert outcome.err.count("named") == 3  # the two that came, having seen the error, and the one that did not


def test_shared_memory_says_what_it_cannot_do():
    with pytest.raises(ConfigurationError, match="every rank on one machine, but there are 2"):
        STRATEGIES.load("shared").collective(Cluster(4, [[0, 1], [2, 3]]).transports[0])
    with pytest.raises(ConfigurationError, match="same number of ranks on every node"):
        SharedMemory(Cluster(3, [[0, 1], [2]]).transports[0])
    collective = SharedMemory(Alone())
    collective.allocate(5, torch.float32, torch.device("cpu"))
    with pytest.raises(ConfigurationError, match="does not lie in its window"):
        collective.reduce(torch.zeros(5))
    with pytest.raises(ConfigurationError, match="Use --device cpu"):
        collective.allocate(5, torch.float32, torch.device("meta"))


def test_nodes_are_pretended_but_not_across_machines():
    transport = Cluster(5).transports[3]
    transport.arrange(2)
    assert transport.nodes == ((0, 1), (2, 3), (4,))
    assert transport.node == (2, 3)
    with pytest.raises(ConfigurationError, match="would share one, but they run on different machines"):
        transport.arrange(3)


def test_auto_takes_the_fastest_that_a_table_names():
    table = Tuning("test", {1000: {"tree": 1e-6, "shared": 2e-6}, 10**6: {"shared": 1e-4, "no longer known": 1e-9}})

    def work(transport):
        collective = Fastest(transport, table)
        memory = collective.allocate(250_000, torch.float32, torch.device("cpu"))
        memory.fill_(transport.rank + 1)
        collective.reduce(memory[:100])
        collective.reduce(memory[100:])
        return [collective.choice(nbytes) for nbytes in (1, 400, 900_000, 10**9)], memory.unique().tolist()

    assert Cluster(3).run(work) == [(["tree", "tree", "shared", "shared"], [6.0])] * 3


@pytest.mark.parametrize("threaded", [True, False])
def test_a_line_keeps_the_order_and_stops_at_a_failure(threaded):
    queue, done = CommunicationQueue(threaded=threaded), []

    def fail():
        raise ValueError("broken")

    waits = [queue.submit(partial(done.append, number)) for number in range(3)]
    waits[2]()
    assert done == [0, 1, 2]
    waits[0]()
    broken, after = queue.submit(fail), queue.submit(partial(done.append, 4))
    for wait in (broken, after):
        with pytest.raises(ValueError, match="broken"):
            wait()
    assert done == [0, 1, 2]
    queue.close()


def test_covered_seconds_are_counted_once():
    assert covered([]) == 0
    assert covered([(1, 3), (2, 5), (7, 8), (7, 8)]) == 5
    assert covered([(1, 3), (2, 5), (7, 8)], 2.5, 7.5) == 3
    assert covered([(1, 2)], 3, 4) == 0
