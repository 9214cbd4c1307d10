"""Every strategy, any number of workers, any accumulation: the parameters of a plain loop in one process."""

from pathlib import Path

import pytest
import torch
from conftest import PROGRAMS, Run, launcher
from programs.bodies import plain_loop, train

from bigbatch.comm.strategies import STRATEGIES
from bigbatch.comm.transports.cluster import Cluster

ON_ANY_TRANSPORT = [name for name in STRATEGIES.names() if name != "allreduce"]


@pytest.fixture(scope="session")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with what the plain loop ends with; it takes seconds, so it runs once."""
    path = tmp_path_factory.mktemp("oracle") / "oracle.pt"
    torch.save(plain_loop(), path)
    return path


@pytest.mark.parametrize("accumulation", [1, 2, 4])
@pytest.mark.parametrize("workers", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", ON_ANY_TRANSPORT)
def test_on_a_cluster_in_one_process(oracle, name, workers, accumulation):
    strategy = STRATEGIES.load(name)
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


# Those that run on a cluster have been through all numbers of workers there.
@pytest.mark.parametrize(
    ("name", "workers"),
    [(name, n) for name in STRATEGIES.names() for n in ((2, 5) if name in ON_ANY_TRANSPORT else (1, 2, 3, 4, 5))],
)
def test_under_mpirun(run: Run, oracle, name, workers):
    ranks = STRATEGIES.load(name).ranks_for(workers)
    outcome = run(*launcher("mpirun", ranks), PROGRAMS / "on_wires.py", "train", name, oracle, deadline=90)
    assert (outcome.status, outcome.out.strip()) == (0, "all is well"), outcome.err


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_under_torchrun(run: Run, oracle, name):
    outcome = run(*launcher("torchrun", 3), PROGRAMS / "on_wires.py", "train", name, oracle, deadline=90)
    assert (outcome.status, outcome.out.strip()) == (0, "all is well"), outcome.err


@pytest.mark.parametrize(("program", "ranks"), [("mpirun", 1), ("mpirun", 3), ("mpirun", 4), ("torchrun", 3)])
def test_ring_on_real_wires(run: Run, program, ranks):
    outcome = run(*launcher(program, ranks), PROGRAMS / "on_wires.py", "reduce", "ring", deadline=60)
    assert (outcome.status, outcome.out.strip()) == (0, "all is well"), outcome.err
