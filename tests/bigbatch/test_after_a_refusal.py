"""A training that was refused leaves nothing behind that would hold up the next one on the same wires."""

import pytest
from after_a_refusal import refuse_an_update, refuse_to_start, train
from jobs import PROGRAMS, Run, launcher, quick

from bigbatch.comm.transports.cluster import Cluster


@pytest.mark.parametrize(
    ("program", "ranks", "names"),
    quick(
        [("mpirun", 2, "shared"), ("mpirun", 3, "shared,ring,hierarchical,mpi"), ("torchrun", 2, "ring,allreduce")],
        lambda case: case[2] == "shared",
    ),
)
def test_the_next_training_begins_whenever_a_rank_collects_the_one_before(run: Run, program, ranks, names):
    """MPI frees a window of shared memory on all ranks together: one whose collector came first waited for ever."""
    outcome = run(*launcher(program, ranks), PROGRAMS / "after_a_refusal.py", names, deadline=90)
    assert (outcome.status, outcome.out.strip()) == (0, "all is well"), outcome.err


@pytest.mark.parametrize("name", ["shared", "ring"])
def test_in_one_process(name):
    def work(transport):
        for refused in (refuse_to_start, refuse_an_update):
            with pytest.raises(Exception, match=r"learning rate|was replaced"):
                refused(name, transport)
            train(name, transport)

    Cluster(2).run(work)
