"""Every strategy, any number of workers, any accumulation: the parameters of a plain loop in one process."""

from pathlib import Path

import pytest
import torch
from bodies import strategy_named, train
from jobs import PROGRAMS, Run, launcher, quick

from bigbatch.comm.strategies import STRATEGIES
from bigbatch.comm.transports.alone import Alone
from bigbatch.comm.transports.cluster import Cluster

WITH_WIRES_OF_THEIR_OWN = ("allreduce", "mpi")
ALL = [name for name in STRATEGIES.names() if name != "no-exchange"]  # whose workers learn different things
ON_ANY_TRANSPORT = [name for name in ALL if name not in (*WITH_WIRES_OF_THEIR_OWN, "auto")]
COLOCATED = ["ps+colocated", "ps:ssp:0+colocated", "ps:backup:0+colocated"]


# The trainer and the counting of tokens are the same for all: two strategies go through every combination.
COMBINATIONS = [
    (name, workers, accumulation)
    for name in (*ON_ANY_TRANSPORT, *COLOCATED)
    for workers in (1, 2, 3, 4, 5)
    for accumulation in (1, 2, 4)
    if name in ("ring", "ps") or accumulation == {1: 1, 2: 2, 3: 4, 4: 1, 5: 2}[workers]
]


@pytest.mark.parametrize(
    ("name", "workers", "accumulation"), quick(COMBINATIONS, lambda case: case[1] in (3, 5) or case == ("ring", 1, 1))
)
def test_on_a_cluster_in_one_process(oracle, name, workers, accumulation):
    strategy = strategy_named(name)
    bucket_bytes = {1: 25 * 2**20, 2: 1000, 4: 2000}[accumulation]
    cluster = Cluster(strategy.ranks_for(workers))
    results = cluster.run(lambda transport: train(transport, strategy, accumulation, bucket_bytes))
    expected, validation = torch.load(oracle)
    trained = [result for result in results if result is not None]
    assert len(trained) == workers
    for parameters, loss in trained:
        torch.testing.assert_close(parameters, expected, rtol=1e-12, atol=1e-14)
        assert loss == pytest.approx(validation, abs=1e-12)
        assert torch.equal(parameters, trained[0][0])  # to the last bit among themselves


def test_one_process_that_trains_and_serves(oracle):
    expected, validation = torch.load(oracle)
    parameters, loss = train(Alone(), strategy_named("ps+colocated"), accumulation=2, bucket_bytes=1000)
    torch.testing.assert_close(parameters, expected, rtol=1e-12, atol=1e-14)
    assert loss == pytest.approx(validation, abs=1e-12)


@pytest.mark.parametrize("nodes", [[[0, 1], [2, 3]], [[0, 2, 4], [1, 3]]])
def test_on_several_nodes(oracle, nodes):
    """Shared memory within nodes of one size, the schedule with nodes of different ones."""
    strategy = STRATEGIES.load("hierarchical")
    cluster = Cluster(sum(map(len, nodes)), nodes)
    expected, _ = torch.load(oracle)
    for parameters, _ in cluster.run(lambda transport: train(transport, strategy, 1, 2000)):
        torch.testing.assert_close(parameters, expected, rtol=1e-12, atol=1e-14)


def trains_like_the_oracle(run: Run, program: str, ranks: int, names: list[str], oracle: Path) -> None:
    outcome = run(*launcher(program, ranks), PROGRAMS / "on_wires.py", "train", ",".join(names), oracle, deadline=110)
    assert (outcome.status, outcome.out.strip()) == (0, "all is well"), outcome.err


@pytest.mark.slow
def test_all_under_mpirun(run: Run, oracle):
    trains_like_the_oracle(run, "mpirun", 2, [*ALL, *COLOCATED], oracle)


@pytest.mark.slow
def test_an_odd_number_of_ranks_under_mpirun(run: Run, oracle):
    names = [
        "ring",
        "recursive-doubling",
        "hierarchical",
        "mpi",
        "allreduce",
        "ps",
        "ps:ssp:0",
        "ps:backup:0",
        *COLOCATED,
    ]
    trains_like_the_oracle(run, "mpirun", 3, names, oracle)


@pytest.mark.slow
def test_more_ranks_than_cores_under_mpirun(run: Run, oracle):
    trains_like_the_oracle(run, "mpirun", 5, ["ring", "shared", "mpi", "allreduce"], oracle)


@pytest.mark.parametrize("ranks", [1, pytest.param(4, marks=pytest.mark.slow)])  # 2, 3 and 5 are above
@pytest.mark.slow
def test_torch_distributed_under_mpirun(run: Run, oracle, ranks):
    trains_like_the_oracle(run, "mpirun", ranks, ["allreduce"], oracle)


@pytest.mark.slow
def test_under_torchrun(run: Run, oracle):
    trains_like_the_oracle(run, "torchrun", 3, ["ring", "hierarchical", "allreduce", "ps"], oracle)
