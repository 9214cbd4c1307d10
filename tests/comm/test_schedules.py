"""The rounds themselves: proven, counted and executed in one process."""

import numpy as np
import pytest

from bigbatch.comm.collectives.broadcast import broadcast
from bigbatch.comm.collectives.ring import ring
from bigbatch.comm.measuring.mutants import adds_itself_twice
from bigbatch.comm.reducers.execute import execute
from bigbatch.comm.schedules.prove import prove
from bigbatch.comm.schedules.schedule import moved
from bigbatch.comm.transports.cluster import Cluster


def test_proof_names_what_is_missing_and_what_is_doubled():
    def one_round_too_few(size):
        yield from list(ring(size))[:-1]

    missing = prove(one_round_too_few, 3)
    assert not missing.holds
    assert len(missing.missing) > 0
    assert "misses the contribution of rank" in str(missing)
    doubled = prove(adds_itself_twice, 3)
    assert set(doubled.doubled) == {(rank, chunk, chunk) for rank in range(3) for chunk in range(3)}
    assert "counts twice" in str(doubled)


@pytest.mark.parametrize("size", [*range(1, 10), 13, 64])
def test_broadcast_reaches_everyone_in_logarithmically_many_rounds(size):
    def work(transport):
        buffer = np.arange(17.0) if transport.rank == 0 else np.full(17, -1.0)
        execute(broadcast, transport, buffer)
        return buffer.tolist()

    assert Cluster(size).run(work) == [list(range(17))] * size
    assert len(list(broadcast(size))) == int(np.ceil(np.log2(size)))


def test_a_round_reads_the_values_from_before_it():
    def swap(size):
        assert size == 2
        yield moved([0, 1], [1, 0], chunk=0, reduce=[False, True])

    results = Cluster(2).run(lambda t: _executed(swap, t, np.array([10.0, 20.0])[[t.rank]]))
    assert results == [[30.0], [10.0]]


def test_several_arrivals_at_one_rank_are_taken_in_the_tables_order():
    def all_to_first(size):
        yield moved(np.arange(1, size), 0, chunk=0, reduce=True)

    # 1e8 + 1 - 1e8 in float32 depends on the order.
    values = np.array([0, 1e8, 1, -1e8], dtype=np.float32)
    results = Cluster(4).run(lambda t: _executed(all_to_first, t, values[[t.rank]]))
    assert results[0] == [np.float32(np.float32(np.float32(1e8) + np.float32(1)) - np.float32(1e8))]


def _executed(schedule, transport, buffer):
    execute(schedule, transport, buffer)
    return buffer.tolist()
