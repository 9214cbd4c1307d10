"""Half precision on the wires: what is rounded and where, against sums in float64 and exact integers."""

import math
from functools import partial

import ml_dtypes
import numpy as np
import pytest
import torch
from halves import drawn, sums_in_half_precision
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jobs import PROGRAMS, Run, launcher, quick
from torch import nn

from bigbatch.comm.buffers import phantom
from bigbatch.comm.collectives import ALGORITHMS, bind
from bigbatch.comm.collectives.direct import direct
from bigbatch.comm.collectives.ring import ring
from bigbatch.comm.errors import ConfigurationError, MismatchError
from bigbatch.comm.parameters import FlatParameters
from bigbatch.comm.reducers.all_gather import AllGather
from bigbatch.comm.reducers.collective import Scheduled
from bigbatch.comm.reducers.execute import execute, part, unrounded
from bigbatch.comm.reducers.tuning import Tuning
from bigbatch.comm.schedules import schedule
from bigbatch.comm.schedules.account import account
from bigbatch.comm.simulation.network import Network, wire
from bigbatch.comm.simulation.presets import network_named
from bigbatch.comm.simulation.replay import Phase, replay_phases
from bigbatch.comm.strategies.all_reduce import Hierarchical
from bigbatch.comm.strategies.auto import Fastest
from bigbatch.comm.strategies.parameter_server import ParameterServer
from bigbatch.comm.transports.cluster import Cluster
from bigbatch.comm.wires import format as wire_format
from bigbatch.comm.wires.format import WHOLE, WireFormat

BF16, FP16 = WireFormat("bf16"), WireFormat("fp16")


@given(
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=50),
    st.sampled_from(["bf16", "fp16"]),
    st.integers(-20, 0),
)
@example([3.39617752923046e38], "bf16", -1)  # half of it is finite in bf16, and twice that is not in float32
@settings(max_examples=200, deadline=None)
def test_what_arrives_is_the_nearest_half_precision_number(numbers, precision, power):
    """ml_dtypes and NumPy round to nearest, ties to even, as IEEE 754 has it."""
    wire = WireFormat(precision, 2.0**power)
    values = np.array(numbers, np.float32)
    with np.errstate(over="ignore"):
        expected = (values * np.float32(wire.factor)).astype(ml_dtypes.bfloat16 if precision == "bf16" else np.float16)
    sent, arrived = wire.room(values), np.empty_like(values)
    wire.encode(values, sent)
    wire.decode(sent, arrived)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(arrived, expected.astype(np.float32) / np.float32(wire.factor))
    again = arrived.copy()
    wire.round(again)
    np.testing.assert_array_equal(again, arrived)  # so that whoever passes on what it was sent changes nothing
    assert wire.all_finite(torch.from_numpy(values)) == bool(np.isfinite(arrived).all())


@pytest.mark.parametrize(
    ("tokens", "factor"),
    [(1, 1.0), (2, 0.5), (1000, 2.0**-10), (1448, 2.0**-10), (1449, 2.0**-11), (4e6, 2.0**-22), (0.3, 1.0)],
)
def test_the_factor_is_the_power_of_two_nearest_to_one_over_the_tokens(tokens, factor):
    assert WireFormat.for_gradients("fp16", tokens) == WireFormat("fp16", factor)
    assert WireFormat.for_gradients("bf16", tokens) == BF16


def test_a_small_negative_number_does_not_become_what_says_that_there_is_no_gradient(monkeypatch):
    monkeypatch.setattr(wire_format, "BLOCK_ELEMENTS", 4)
    values = np.array([-1e-12, -0.0, 0.0, 1e-12, -1.0, -3e-8, -0.0, -1e-30, -0.0], np.float32)
    sent = FP16.room(values)
    FP16.encode(values, sent, keep=True)
    assert np.signbit(sent).tolist() == [False, True, False, False, True, True, True, False, True]
    assert np.signbit(values).tolist() == np.signbit(sent).tolist()
    assert sent[5] == np.float16(-6e-8)


def test_blocks_change_nothing(monkeypatch):
    values = drawn(0, 1003).numpy()
    results = []
    for block in (1 << 17, 100):
        monkeypatch.setattr(wire_format, "BLOCK_ELEMENTS", block)
        monkeypatch.setattr(wire_format, "_scratch", wire_format._Scratch())
        wire = WireFormat("fp16", 2.0**-3)
        own, sent = values.copy(), wire.room(values)
        wire.encode(own, sent, keep=True)
        wire.add(own, sent)
        total = torch.empty(1003, dtype=torch.float16)
        wire.add_up(torch.from_numpy(np.stack([sent] * 3)), total, torch.float32)
        results.append((own.tobytes(), sent.tobytes(), total.numpy().tobytes()))
    assert results[0] == results[1]


def test_phantoms_stay_phantoms():
    values = phantom(10**10)
    sent = BF16.room(values)
    BF16.encode(values, sent, keep=True)
    BF16.add(values, sent)
    BF16.decode(sent, values)
    assert (len(sent), sent.nbytes) == (10**10, 2 * 10**10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64])
def test_what_has_no_more_bytes_already_is_refused(dtype):
    with pytest.raises(ConfigurationError, match="leave --wire out"):
        Cluster(2).run(lambda transport: Scheduled(ring, transport).reduce(torch.zeros(3, dtype=dtype), BF16))


SIMULATED = [(name, ranks) for name in ALGORITHMS.names() for ranks in range(2, 10)]


@pytest.mark.parametrize(("name", "ranks"), quick(SIMULATED, lambda case: case[1] in (2, 3, 6)))
def test_every_algorithm_sums_in_half_precision(name, ranks):
    Cluster(ranks).run(partial(sums_in_half_precision, partial(Scheduled, ALGORITHMS.load(name))))


@pytest.mark.parametrize(("ranks", "node_size"), [(4, 2), (6, 3), (7, 3)])
def test_on_several_nodes(ranks, node_size):
    def work(transport):
        transport.arrange(node_size)
        sums_in_half_precision(Hierarchical.collective, transport)

    Cluster(ranks).run(work)


@pytest.mark.parametrize("name", quick(ALGORITHMS.names(), ("ring", "recursive-doubling", "double-tree").__contains__))
def test_packets_change_nothing(name, monkeypatch):
    """Packets of 64 bytes, so that chunks that are added and chunks that replace travel in many."""
    monkeypatch.setattr(schedule, "PACKET_BYTES", 64)
    part.cache_clear()
    Cluster(5).run(partial(sums_in_half_precision, partial(Scheduled, ALGORITHMS.load(name))))
    part.cache_clear()


def test_sums_are_counted_as_planned():
    def work(transport):
        collective = Scheduled(ring, transport)
        values = torch.zeros(9 * 2**20)
        collective.introduce(values, BF16)
        messages, nbytes = transport.messages_sent, transport.bytes_sent
        collective.reduce(values, BF16)
        return transport.messages_sent - messages, transport.bytes_sent - nbytes

    counted = account(ring, 3, 9 * 2**20, 2, rounded=True)
    assert Cluster(3).run(work) == list(zip(counted.messages.tolist(), counted.sent.tolist(), strict=True))
    assert counted.messages.tolist() == [8] * 3  # 6 MB chunks in packets of 4 MB at most, those that replace, too


def test_a_rank_rounds_at_the_end_what_it_has_added_up_and_not_sent():
    assert unrounded(ring, 3, 0, 30) == ()
    assert unrounded(ALGORITHMS.load("recursive-doubling"), 4, 1, 30) == (slice(0, 30),)


def error_of(sums: torch.Tensor, exact: torch.Tensor) -> float:
    """The root mean square of the error, relative to that of the exact sums."""
    return float((sums.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt())


@pytest.mark.parametrize(("ranks", "every_hop"), [(2, 2.43e-3), pytest.param(64, 9.73e-3, marks=pytest.mark.slow)])
def test_who_adds_in_float32_and_rounds_once_has_the_same_error_for_any_number_of_ranks(ranks, every_hop):
    """The error of bf16 when each of a ring's hops rounds, against a sum that is rounded once.

    The oracle is a chain of additions in bf16, as NCCL and MPI add. Standard normal numbers, root mean squares.
    """
    everyones = [drawn(rank, 4096) for rank in range(ranks)]
    exact = torch.stack(everyones).double().sum(0)
    chain = everyones[0].bfloat16()
    for values in everyones[1:]:
        chain = chain + values.bfloat16()
    assert error_of(chain, exact) == pytest.approx(every_hop, rel=0.01)

    def work(algorithm, transport):
        values = everyones[transport.rank].clone()
        Scheduled(algorithm, transport).reduce(values, BF16)
        return values

    through_ring = error_of(Cluster(ranks).run(partial(work, ring))[0], exact)
    assert 0.8 * every_hop < through_ring < every_hop  # a hop less: a rank's own numbers are not rounded first
    once = error_of(torch.cat(everyones).bfloat16(), torch.cat(everyones).double())
    others = (ranks - 1) / ranks  # all are rounded before they are added, but for a rank's own, and the sum is
    assert error_of(Cluster(ranks).run(partial(work, direct))[0], exact) == pytest.approx(
        once * math.sqrt(1 + others), rel=0.02
    )


def test_a_server_adds_in_float32():
    """PyTorch 106395: 1 + 2^-9 + 2^-9 + ..., added in bf16, is 1 for ever."""
    elements, workers = 5, 17

    def work(transport):
        model = nn.Linear(elements, 1, bias=False)
        nn.init.zeros_(model.weight)
        parameters = FlatParameters(model)
        strategy = ParameterServer(transport)
        strategy.start(parameters, lambda named: torch.optim.SGD([p for _, p in named], lr=1.0), wire="bf16")

        def update():
            parameters.gradients.fill_(1.0 if transport.rank == 0 else 2.0**-9)
            for bucket in strategy.buckets:
                strategy.push(bucket)
            strategy.step(1 if transport.rank == 0 else 0, 0.0)
            strategy.pull()
            with strategy.newest(together=True):
                return parameters.values.clone()

        newest = strategy.run(update)
        return parameters.values.clone() if newest is None else (newest, parameters.values.clone())

    for newest, read in Cluster(workers + 1).run(work)[:workers]:
        assert (newest == -(1 + (workers - 1) * 2.0**-9)).all()  # as the server has it
        assert (read == (-(1 + (workers - 1) * 2.0**-9)) * torch.ones(1).bfloat16()).all()
        assert (read == newest.bfloat16()).all()


def test_everyone_gets_what_is_gathered_rounded_its_own_too():
    def work(transport):
        return torch.cat(AllGather(transport).gather(drawn(transport.rank, 3 + transport.rank), BF16, alike=False))

    expected = torch.cat([drawn(rank, 3 + rank) for rank in range(3)]).bfloat16().float()
    assert all(torch.equal(everyones, expected) for everyones in Cluster(3).run(work))


def test_ranks_that_send_in_different_formats_hear_so():
    def work(transport):
        Scheduled(ring, transport).reduce(torch.zeros(3), WHOLE if transport.rank else BF16)

    with pytest.raises(MismatchError, match="3 × float32, but rank 0's is 3 × float32, sent as bf16"):
        Cluster(3).run(work)


NETWORKS = {"ethernet-10g": network_named("ethernet-10g"), "adding": Network("adding", wire(1e-5, 1e9), gamma=3e-10)}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", quick(ALGORITHMS.names(), ("ring", "recursive-doubling", "tree").__contains__))
def test_a_replay_takes_as_long_as_the_rounds_themselves(name, network):
    elements, ranks = 3 * 2**20 + 5, 4
    rounds = bind(ALGORITHMS.load(name), 2 * elements)

    def work(transport):
        execute(rounds, transport, phantom(elements), wire=BF16)
        return transport.now()

    there = Cluster(ranks, network=NETWORKS[network]).run(work)
    (ends,) = replay_phases([Phase(rounds, elements, itemsize=2, rounded=True)], NETWORKS[network], ranks)
    np.testing.assert_allclose(there, ends, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "names"), [("mpirun", ["ring", "recursive-doubling", "mpi"]), ("torchrun", ["ring", "allreduce"])]
)
def test_on_real_wires(run: Run, program, names):
    outcome = run(*launcher(program, 3), PROGRAMS / "on_wires.py", "half sums", ",".join(names), deadline=100)
    assert (outcome.status, outcome.out.strip()) == (0, "all is well"), outcome.err


def test_the_fastest_all_reduce_is_one_that_sends_something():
    def work(transport):
        order = ["shared", "hierarchical", "tree", "ring"]
        fastest = Fastest(transport, Tuning("made up", {1000: dict(zip(order, range(1, 5), strict=True))}))
        fastest.allocate(250, torch.float32, torch.device("cpu"))
        whole = fastest.choice(1000)
        fastest.admit(BF16)
        fastest.allocate(250, torch.float32, torch.device("cpu"))
        halves = fastest.choice(1000)
        sums_in_half_precision(lambda _: fastest, transport)
        return whole, halves

    assert Cluster(2).run(work) == [("shared", "tree")] * 2
