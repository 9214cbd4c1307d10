"""Transports, launchers and agreement."""

import numpy as np
import pytest
import torch
from bodies import ask_what_runs_in_a_thread
from jobs import PROGRAMS, Run, launcher
from torch import nn

from bigbatch.comm.errors import (
    BigBatchError,
    CommunicationError,
    ConfigurationError,
    DeadlockError,
    MismatchError,
)
from bigbatch.comm.parameters import FlatParameters
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.comm.transports import mpi
from bigbatch.comm.transports.alone import Alone
from bigbatch.comm.transports.cluster import Cluster
from bigbatch.comm.transports.meeting import nobody
from bigbatch.comm.transports.torch_distributed import TorchTransport
from bigbatch.comm.wires.agreement import agree, all_gather, together
from bigbatch.comm.wires.request import ANY
from bigbatch.comm.wires.transport import Group


def test_a_deadlock_says_who_waits_for_whom():
    def everyone_sends_first(transport):
        buffer = np.zeros(3)
        transport.isend(buffer, (transport.rank + 1) % 3).wait()
        transport.irecv(buffer, (transport.rank - 1) % 3).wait()

    with pytest.raises(DeadlockError, match="rank 2 waits to send to rank 0 \\(tag 0, 24 bytes\\)"):
        Cluster(3).run(everyone_sends_first)


def test_a_cluster_moves_the_values_at_the_time_of_the_meeting_and_its_clock_with_them():
    def work(transport):
        if transport.rank == 0:
            transport.spend(2.0)
            transport.isend(np.array([5.0]), 1).wait()
        else:
            buffer = np.zeros(1)
            assert transport.irecv(buffer, ANY).wait() == 0
            assert buffer[0] == 5
        return transport.now()

    assert Cluster(2).run(work) == [2.0, 2.0]


def test_messages_of_another_size_are_refused_by_name():
    def work(transport):
        buffer = np.zeros(3 + transport.rank)
        (transport.isend(buffer, 1) if transport.rank == 0 else transport.irecv(buffer, 0)).wait()

    with pytest.raises(CommunicationError, match="Rank 0 sent 3 × float64 to rank 1, which expected 4"):
        Cluster(2).run(work)


def test_only_flat_buffers_and_ranks_that_exist():
    transport = Cluster(2).transports[0]
    with pytest.raises(ConfigurationError, match="flat"):
        transport.isend(np.zeros((2, 2)), 1)
    with pytest.raises(ConfigurationError, match="flat"):
        transport.isend(np.zeros(4)[::2], 1)
    with pytest.raises(ConfigurationError, match="the ranks are 0 to 1"):
        transport.irecv(np.zeros(1), 2)
    with pytest.raises(CommunicationError, match="only rank"):
        Alone().isend(np.zeros(1), 0)


def test_a_rank_that_fails_ends_the_cluster():
    def work(transport):
        if transport.rank == 1:
            raise ValueError("broken")
        transport.barrier()

    with pytest.raises(ValueError, match="broken"):
        Cluster(3).run(work)


def test_barrier_holds_everyone_until_the_last_has_come():
    def work(transport):
        transport.spend(transport.rank)
        transport.barrier()
        return transport.now()

    assert Cluster(5).run(work) == [4.0] * 5


def test_a_group_renumbers_its_ranks():
    def work(transport):
        if transport.rank == 1:
            return None
        group = Group(transport, [3, 0, 2])
        buffer = np.zeros(1)
        receiving = group.irecv(buffer, (group.rank - 1) % 3)
        group.isend(np.array([float(transport.rank)]), (group.rank + 1) % 3).wait()
        receiving.wait()
        return buffer[0]

    assert Cluster(4).run(work) == [3.0, None, 0.0, 2.0]


def test_a_group_hears_from_any_of_its_ranks_by_their_new_numbers_and_from_nobody_else():
    def work(transport):
        if transport.rank == 1:
            transport.isend(np.zeros(1), 2, tag=7).wait()
            return None
        group = Group(transport, [3, 0, 2])
        if group.rank < 2:
            group.isend(np.full(1, 10.0 + group.rank), 2).wait()
            return None
        buffer = np.zeros(1)
        heard = {(group.irecv(buffer, ANY).wait(), buffer[0]) for _ in range(2)}
        with pytest.raises(CommunicationError, match="Rank 1 sent a message with the tag 7 to a rank of the group"):
            group.irecv(buffer, ANY, tag=7).wait()
        return heard

    assert Cluster(4).run(work)[2] == {(0, 10.0), (1, 11.0)}


@pytest.mark.parametrize("size", [1, 2, 5])
def test_work_beside_a_ranks_own_answers_everyone_on_a_cluster(size):
    Cluster(size).run(ask_what_runs_in_a_thread)


def test_work_beside_the_only_rank_answers_it():
    ask_what_runs_in_a_thread(Alone())


@pytest.mark.parametrize("ranks", [1, 3])
def test_work_beside_a_ranks_own_answers_everyone_under_mpirun(run: Run, ranks):
    outcome = run(*launcher("mpirun", ranks), PROGRAMS / "on_wires.py", "beside", "ring")
    assert (outcome.status, outcome.out.strip()) == (0, "all is well"), outcome.err


def test_work_beside_a_ranks_own_has_a_clock_of_its_own_from_then_on():
    def work(transport):
        transport.spend(1.0)
        working = transport.start_thread(lambda end: end.spend(5.0))
        transport.spend(2.0)
        before = transport.now()
        working.wait()
        return before, transport.now()

    assert Cluster(2).run(work) == [(3.0, 6.0)] * 2


def test_a_deadlock_of_work_beside_a_ranks_own_is_told_too():
    def work(transport):
        transport.start_thread(lambda end: end.irecv(np.zeros(1), 0, tag=7).wait()).wait()

    with pytest.raises(
        DeadlockError,
        match="rank 0 waits for the work beside its own; "
        "rank 0, beside its own work, waits to receive from rank 0 \\(tag 7, 8 bytes\\)",
    ):
        Cluster(1).run(work)


@pytest.mark.parametrize("run", [Cluster(1).run, lambda work: work(Alone())], ids=["cluster", "alone"])
def test_an_error_of_work_beside_a_ranks_own_ends_the_ranks_wait(run):
    def fail(_):
        raise ValueError("broken")

    def work(transport):
        transport.start_thread(fail)
        transport.irecv(np.zeros(1)).wait()

    with pytest.raises(ValueError, match="broken"):
        run(work)


def test_transports_that_do_one_thing_at_a_time_refuse_another():
    with pytest.raises(ConfigurationError, match="so that no rank can train and serve: start them with mpirun"):
        Group(Cluster(2).transports[0], [0, 1]).start_thread(lambda _: None)
    transport = TorchTransport(0, 1, nobody())
    with pytest.raises(ConfigurationError, match="TorchTransport does nothing beside"):
        transport.start_thread(lambda _: None)
    transport.close()


@pytest.mark.parametrize("transport", [Alone(), Cluster(2).transports[0]], ids=["alone", "cluster"])
def test_leaving_a_transports_context_closes_it_unless_the_rank_has_failed(transport, monkeypatch):
    """Under mpirun and torchrun, tests/programs/on_wires.py leaves every transport in this way."""
    closed = []
    monkeypatch.setattr(transport, "close", lambda: closed.append(transport))
    with transport as entered:
        assert entered is transport
        assert closed == []
    assert closed == [transport]
    with pytest.raises(KeyError), transport:
        raise KeyError
    assert closed == [transport], "the others would not come to close"


def test_long_buffers_are_cut_into_pieces_of_whole_elements(monkeypatch):
    monkeypatch.setattr(mpi, "LARGEST_MESSAGE", 100)
    for elements, lengths in ((0, [0]), (12, [12]), (13, [12, 1]), (36, [12, 12, 12])):
        buffer = np.arange(elements, dtype=np.float64)
        cut = mpi.pieces(buffer)
        assert [len(piece) for piece in cut] == lengths
        assert np.concatenate(cut).tolist() == buffer.tolist()
        assert all(np.shares_memory(piece, buffer) for piece in cut if elements)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_sharing_gives_everyone_everything(size):
    values = Cluster(size).run(lambda t: all_gather(t, {"rank": t.rank, "text": "ä" * t.rank}))
    assert values == [[{"rank": rank, "text": "ä" * rank} for rank in range(size)]] * size


def test_together_fails_everywhere_with_the_first_ranks_reason():
    def attempt(rank):
        if rank in (1, 2):
            raise ConfigurationError(f"no file on {rank}")
        return rank

    def work(transport):
        with pytest.raises(BigBatchError) as caught:
            together(transport, lambda: attempt(transport.rank))
        return caught.value.everywhere, str(caught.value)

    assert Cluster(3).run(work) == [
        (True, "Rank 1: no file on 1"),
        (True, "no file on 1"),
        (True, "Rank 1: no file on 1"),
    ]
    assert Cluster(3).run(lambda t: together(t, lambda: t.rank)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ([("a", 1), ("b", 2)], [("a", 1), ("b", 3)], "Rank 2's option 'b' is 3, but rank 0's is 2"),
        ([("a", 1)], [("c", 1)], "Rank 2 has the option 'c' where rank 0 has 'a'"),
        ([("a", 1)], [("a", 1), ("b", 2)], "Rank 2 has the option 'b' \\(2\\), which rank 0 lacks"),
        ([("a", 1), ("b", 2)], [("a", 1)], "Rank 0 has the option 'b' \\(2\\), which rank 2 lacks"),
    ],
)
def test_a_disagreement_names_rank_and_entry(ours, theirs, message):
    def work(transport):
        with pytest.raises(MismatchError, match=message) as caught:
            agree(transport, "option", theirs if transport.rank == 2 else ours)
        assert caught.value.everywhere

    Cluster(3).run(work)


@pytest.mark.parametrize("name", ["ring", "ps"])
@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            lambda: nn.Linear(3, 5),
            "Rank 1's parameter 'weight' is \\[5, 3\\] float32, but rank 0's is \\[4, 3\\] float32",
        ),
        (lambda: nn.Linear(3, 4).double(), "Rank 1's parameter 'weight' is \\[4, 3\\] float64"),
        (lambda: nn.Linear(3, 4, bias=False), "Rank 0 has the parameter 'bias'"),
        (lambda: nn.Sequential(nn.Linear(3, 4)), "Rank 1 has the parameter '0.weight' where rank 0 has 'weight'"),
    ],
)
def test_models_that_differ_are_refused_at_the_start(name, other, message):
    def work(transport):
        model = other() if transport.rank == 1 else nn.Linear(3, 4)
        strategy = STRATEGIES.load(name)(transport)
        with pytest.raises(MismatchError, match=message):
            strategy.start(FlatParameters(model), lambda named: torch.optim.SGD(named, lr=1))

    Cluster(3).run(work)


@pytest.mark.parametrize("name", ["ring", "ps"])
def test_a_gradient_that_is_not_finite_skips_the_update_everywhere(name):
    def work(transport):
        model = nn.Linear(2, 1, bias=False)
        nn.init.ones_(model.weight)
        parameters = FlatParameters(model)
        strategy = STRATEGIES.load(name)(transport)
        strategy.start(parameters, lambda named: torch.optim.SGD(named, lr=1))

        def update(gradient, weight):
            parameters.gradients.fill_(gradient)
            for bucket in strategy.buckets:
                strategy.push(bucket)
            report = strategy.step(weight, 0.0)
            return report.applied, report.version, strategy.pull(), model.weight.detach()[0, 0].item()

        def train():
            bad = {0: float("nan"), 1: float("inf"), 2: 1.0}[transport.rank]
            return [update(bad, 1), update(0.0, 0), update(float(transport.rank), 2 * transport.rank)]

        return strategy.run(train)

    workers = 3
    results = Cluster(STRATEGIES.load(name).ranks_for(workers)).run(work)[:workers]
    # A NaN, then no tokens at all, then (0 + 1 + 2) / (0 + 2 + 4).
    assert results == [[(False, 0, 0, 1.0), (False, 0, 0, 1.0), (True, 1, 1, 0.5)]] * workers


def test_gradients_are_written_where_the_wires_read():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    parameters = FlatParameters(model)
    model(torch.ones(5, 3)).sum().backward()
    begin, end = parameters.gradients.data_ptr(), parameters.gradients.data_ptr() + parameters.nbytes
    assert all(begin <= parameter.grad.data_ptr() < end for parameter in model.parameters())
    assert parameters.names == ["1.bias", "1.weight", "0.bias", "0.weight"]
    assert parameters.gradients[:2].tolist() == [5.0, 5.0]
    for bucket_bytes, expected in ((1, [2, 8, 4, 12]), (40, [10, 16]), (10**6, [26])):
        buckets = parameters.buckets(bucket_bytes)
        assert [len(bucket.gradients) for bucket in buckets] == expected
        assert all(begin <= bucket.gradients.data_ptr() < end for bucket in buckets)


def test_a_model_of_two_dtypes_and_one_without_parameters_are_refused():
    with pytest.raises(ConfigurationError, match=r"Parameter 0.bias is torch.float32.*1.bias is torch.float64"):
        FlatParameters(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1).double()))
    with pytest.raises(ConfigurationError, match="no parameter"):
        FlatParameters(nn.ReLU())


@pytest.mark.parametrize("name", ["ring", pytest.param("allreduce", marks=pytest.mark.slow)])  # a kind of wires each
def test_a_rank_that_does_not_come_is_named_within_the_deadline(run: Run, tmp_path, name):
    program = tmp_path / "late.py"
    program.write_text(
        "import sys, time\n"
        "from bigbatch.comm.transports.launch import detect\n"
        "from bigbatch.comm.strategies import STRATEGIES\n"
        "from bigbatch.comm.errors import CommunicationError\n"
        f"t = STRATEGIES.load({name!r}).connect(detect(), 'cpu', deadline=3)\n"
        "import numpy as np\n"
        "try:\n"
        "    if t.rank == 1: time.sleep(30)\n"
        "    t.irecv(np.zeros(1), 1).wait()\n"
        "except CommunicationError as error:\n"
        "    print(error, file=sys.stderr, flush=True)\n"
        "    t.abort(1)\n"
    )
    outcome = run("mpirun", "-n", "3", "python", program, deadline=30)
    assert outcome.status != 0
    assert "receive from rank 1" in outcome.err
    assert outcome.seconds < 20
