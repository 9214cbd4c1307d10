"""All-gather: proven, executed in one process and under mpirun, and timed as its formula says."""

import numpy as np
import pytest
import torch
from bodies import distinct, gather_everything
from jobs import PROGRAMS, Run, launcher

from bigbatch.comm.collectives.all_gather import all_gather
from bigbatch.comm.collectives.ring import ring
from bigbatch.comm.errors import ConfigurationError, MismatchError
from bigbatch.comm.reducers.all_gather import AllGather
from bigbatch.comm.schedules.prove import prove_all_gather
from bigbatch.comm.schedules.schedule import Round, moved
from bigbatch.comm.simulation.network import Network, wire
from bigbatch.comm.simulation.replay import replay
from bigbatch.comm.transports.cluster import Cluster

ALPHA, BANDWIDTH = 5e-6, 12.5e9
ONE_SWITCH = Network("one switch", wire(ALPHA, BANDWIDTH), 1 / 40e9)


@pytest.mark.parametrize("size", range(1, 65))
def test_every_rank_ends_with_every_ranks_chunk_once(size):
    proof = prove_all_gather(all_gather, size)
    assert proof.holds, proof
    assert str(proof) == f"proven: all {size} ranks end with the chunk of every rank once"


def one_round_too_few(size):
    yield from list(all_gather(size))[:-1]


def wrong_chunk(size):
    rank = np.arange(size)
    for step in range(size - 1):
        yield moved(rank, (rank + 1) % size, chunk=(rank - step + 1) % size, reduce=False)


def adds(size):
    for round_ in all_gather(size):
        yield Round(round_.source, round_.target, round_.first, round_.stop, np.ones(len(round_), dtype=np.bool_))


def twice(size):
    yield from all_gather(size)
    yield from adds(size)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (one_round_too_few, "rank 0 misses the contribution of rank 1 in chunk 1"),
        (wrong_chunk, "misses the contribution"),
        (adds, "has where it does not belong what lay there before in chunk"),
        (twice, "has where it does not belong the contribution"),
        (ring, "has where it does not belong what lay there before in chunk"),
    ],
)
def test_what_is_no_all_gather_is_refuted(wrong, message):
    proof = prove_all_gather(wrong, 5)
    assert not proof.holds
    assert message in str(proof)


def test_an_all_gather_has_a_chunk_for_each_rank():
    def halves(_):
        yield moved(0, 1, chunk=0, reduce=False)

    with pytest.raises(ConfigurationError, match="move 1 chunks"):
        prove_all_gather(halves, 3)


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize(("ranks", "nbytes"), [(2, 1000), (5, 1003), (8, 960_000), (64, 7)])
def test_replay_takes_as_long_as_the_formula_says(ranks, nbytes, one_by_one):
    seconds = (ranks - 1) * (ALPHA + nbytes / BANDWIDTH)
    assert replay(all_gather, ONE_SWITCH, ranks, ranks * nbytes, itemsize=1).max() == pytest.approx(seconds, rel=1e-9)
    if one_by_one:

        def work(transport):
            gather = AllGather(transport)
            tensor = torch.zeros(nbytes, dtype=torch.uint8)
            gather.gather(tensor)
            transport.barrier()
            transport.spend(1.0 - transport.now())
            gather.gather(tensor)
            return transport.now() - 1.0

        assert max(Cluster(ranks, network=ONE_SWITCH).run(work)) == pytest.approx(seconds, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13])
def test_equal_and_different_lengths_in_one_process(size, dtype):
    assert all(Cluster(size).run(lambda transport: gather_everything(transport, dtype)))


@pytest.mark.parametrize("size", [*range(1, 65, 7), 64])
def test_every_size(size):
    def work(transport):
        parts = AllGather(transport).gather(distinct(transport.rank, 3))
        return torch.stack(parts)

    expected = torch.stack([distinct(rank, 3) for rank in range(size)])
    assert all(torch.equal(result, expected) for result in Cluster(size).run(work))


def test_what_a_rank_has_is_not_touched_and_phantoms_keep_their_size():
    def work(transport):
        own = distinct(transport.rank, 5)
        parts = AllGather(transport).gather(own)
        parts[transport.rank].zero_()
        assert own.tolist() == distinct(transport.rank, 5).tolist()
        return [len(part) for part in AllGather(transport).gather(torch.empty(10**9, device="meta"))]

    assert Cluster(3, network=ONE_SWITCH).run(work) == [[10**9] * 3] * 3


def test_lengths_that_differ_unannounced_are_refused_everywhere():
    def work(transport):
        with pytest.raises(MismatchError, match="Rank 2's tensor of all-gather 'number 1' is 4 × float64"):
            AllGather(transport).gather(torch.zeros(4 if transport.rank == 2 else 3, dtype=torch.float64))

    Cluster(3).run(work)


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_under_mpirun(run: Run, ranks):
    outcome = run(*launcher("mpirun", ranks), PROGRAMS / "on_wires.py", "gather", "ring", deadline=60)
    assert (outcome.status, outcome.out.strip()) == (0, "all is well"), outcome.err
