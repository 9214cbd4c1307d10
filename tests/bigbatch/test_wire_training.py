"""Training with gradients and parameters that are sent in half precision, over every strategy."""

import json
import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from halves import TOKENS, flat, new_model, trained, trains_in_half_precision
from jobs import PROGRAMS, SMALL, Run, launcher, quick
from made_up_network import FOREVER, Network
from torch import nn

import bigbatch
from bigbatch.comm.errors import ConfigurationError, MismatchError
from bigbatch.comm.parameters import FlatParameters
from bigbatch.comm.server.consistency import Synchronous
from bigbatch.comm.server.network.elastic_server import NetworkServer
from bigbatch.comm.server.network.messages import NOTHING, Kind, Message
from bigbatch.comm.server.network.remote_shard import RemoteShard
from bigbatch.comm.server.shard import Shard
from bigbatch.comm.server.staleness import StaleGradients
from bigbatch.comm.simulation.presets import network_named
from bigbatch.comm.simulation.replay import replay_phases
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.comm.strategies.all_reduce import AllReduce
from bigbatch.comm.strategies.description import Workload
from bigbatch.comm.strategies.remote import RemoteServers, facts_about
from bigbatch.comm.strategies.strategy import ANY_WIRE
from bigbatch.comm.transports.alone import Alone
from bigbatch.comm.transports.cluster import Cluster
from bigbatch.comm.wires.format import WireFormat

IN_STEP = {
    **{name: {} for name in ("ring", "recursive-doubling", "halving-doubling", "tree", "direct", "hierarchical")},
    "ps": {"servers": 2},
    "ps:sync": {"colocated": True},
}


def strategy(name, **options):
    return STRATEGIES.load(name).configured(options)


@pytest.mark.parametrize("name", quick(IN_STEP, ("ring", "recursive-doubling", "ps", "ps:sync").__contains__))
def test_ends_near_float32_and_skips_together(name):
    kind = strategy(name, **IN_STEP[name])

    def work(transport):
        if name == "hierarchical":
            transport.arrange(2)
        trains_in_half_precision(kind, transport)

    Cluster(kind.ranks_for(4)).run(work)


def test_all_workers_make_the_same_update_of_what_only_one_could_not_send():
    """With 2 servers, of which one has nothing but finite numbers; and at a server only that worker's is refused."""
    for name in ("ring", "ps", "ps:sync"):
        kind = strategy(name, **IN_STEP[name])
        everyones = Cluster(kind.ranks_for(3)).run(partial(trained, kind, wire="fp16", bad=1e9))
        outcomes = [result[1] for result in everyones if result is not None]
        assert outcomes == [["applied"] * 5 + ["not finite"] + ["applied"] * 6] * 3, name
    everyones = Cluster(4).run(partial(trained, strategy("ps:async"), wire="fp16", bad=1e9))
    skipped = [result[1].count("not finite") for result in everyones if result is not None]
    assert skipped == [0, 1, 0]


def test_sums_that_would_overflow_are_divided_beforehand():
    """fairseq 1529 and 4555, PyTorch 57410 and 59522: a sum over tokens is beyond 65504, their mean is not."""

    def work(transport, wire, expected_tokens):
        parameters = FlatParameters(nn.Linear(5, 1, bias=False))
        made = strategy("ring")(transport)
        sgd = lambda named: torch.optim.SGD([p for _, p in named], lr=0.0)  # noqa: E731
        made.start(parameters, sgd, wire=wire, expected_tokens=expected_tokens)
        parameters.gradients.fill_(3.0 * 20_000)  # a mean of 3 over 20,000 tokens of each of 4 workers
        made.push(made.buckets[0])
        outcome = str(made.step(20_000, 0.0).outcome)
        return outcome, parameters.gradients.tolist()

    assert Cluster(4).run(partial(work, wire="fp16", expected_tokens=80_000)) == [("applied", [3.0] * 5)] * 4
    assert [what for what, _ in Cluster(4).run(partial(work, wire="fp16", expected_tokens=1))] == ["not finite"] * 4


def test_a_parameter_without_a_gradient_has_none_at_the_other_end():
    """Nor does weight decay touch it; one whose gradient is too small to be sent has one."""

    def work(transport, name):
        model = nn.ModuleDict({part: nn.Linear(1, 1, bias=False) for part in ("used", "unused", "small")})
        for part in model.values():
            nn.init.ones_(part.weight)
        parameters = FlatParameters(model)
        made = strategy(name)(transport)
        sgd = lambda named: torch.optim.SGD([p for _, p in named], lr=0.5, weight_decay=0.5)  # noqa: E731
        made.start(parameters, sgd, wire="fp16", expected_tokens=1000)

        def update():
            parameters.views.begin()
            with parameters.views.adding():
                (model["used"].weight + -1e-8 * model["small"].weight).sum().backward()
            for bucket in made.buckets:
                parameters.complete(bucket)
                made.push(bucket)
            made.step(1, 0.0)
            made.pull()
            return [model[part].weight.item() for part in ("used", "unused", "small")]

        return made.run(update)

    for name in ("ring", "ps"):
        kind = strategy(name)
        for found in Cluster(kind.ranks_for(2)).run(partial(work, name=name))[:2]:
            assert found == pytest.approx([1 - 0.5 * (1 + 0.5), 1.0, 0.75], rel=2e-3), name


@pytest.mark.parametrize("name", ["ring", "ps"])
def test_float64_is_added_in_float64(name):
    kind = strategy(name)
    results = [
        Cluster(kind.ranks_for(3)).run(partial(trained, kind, wire=wire, dtype=torch.float64))[0]
        for wire in ("fp32", "bf16")
    ]
    (exact, _, whole), (near, _, halves) = results
    assert near.dtype == torch.float64
    assert (near - exact).norm() < 4e-3 * (exact - flat(new_model()).double()).norm()
    assert halves < 0.4 * whole


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_is_refused(dtype):
    with pytest.raises(ConfigurationError, match=r"sends float32 in half the bytes.* leave --wire out"):
        Cluster(2).run(partial(trained, strategy("ring"), wire="bf16", dtype=dtype))


@pytest.mark.parametrize(("first", "others"), [("bf16", "fp32"), ("fp32", "fp16"), ("bf16", "fp16")])
def test_ranks_with_different_wires_hear_so(first, others):
    def work(transport):
        trained(strategy("ring"), transport, others if transport.rank else first)

    with pytest.raises(MismatchError, match=rf"Rank 1's option 'wire' is {others}.*, but rank 0's is {first}"):
        Cluster(3).run(work)


class Silent(AllReduce):
    """Somebody's own, which says nothing about wires and sends float32."""

    def reduce(self, bucket):
        self.all_reduce(bucket.gradients)


class Telling(AllReduce):
    """Somebody's own, which sends what it sends in the wire's format."""

    wires = ANY_WIRE

    def reduce(self, bucket):
        self.all_reduce(bucket.gradients, self.wire)


def test_somebodys_own_strategy_says_that_it_knows_of_wires_or_is_refused():
    with pytest.raises(ConfigurationError, match=r"Silent does not say .* in bf16: .*wires = \(\"fp32\", \"bf16\"\)"):
        Cluster(2).run(partial(trained, Silent, wire="bf16"))
    Cluster(2).run(partial(trained, Silent, wire="fp32"))
    Cluster(3).run(partial(trains_in_half_precision, Telling))


def test_attach_sends_in_half_precision_too():
    def work(transport, **more):
        model = new_model()
        session = bigbatch.attach(model, torch.optim.SGD, lr=0.05, strategy="ring", transport=transport, **more)
        sent = transport.bytes_sent
        for update in range(5):
            draw = torch.Generator().manual_seed(10 * update + transport.rank)
            loss = (model(torch.randn(TOKENS, 37, generator=draw)) - 1).square().sum()
            assert session.backward(loss, TOKENS).applied
        values = flat(model).clone()
        return values, transport.bytes_sent - sent

    whole, bf16, fp16 = (
        Cluster(2).run(partial(work, **more))[0]
        for more in ({}, {"wire": "bf16"}, {"wire": "fp16", "expected_tokens": 2 * TOKENS})
    )
    for values, sent in (bf16, fp16):
        assert 0 < (values - whole[0]).norm() < 4e-3 * (whole[0] - flat(new_model())).norm()
        assert sent < 0.62 * whole[1]
    with pytest.raises(ConfigurationError, match="The wire"):
        bigbatch.attach(new_model(), torch.optim.SGD, lr=0.1, wire="half")


def test_a_simulated_update_is_described_as_it_is_run():
    """The described phases, on phantoms: as many seconds as the strategy takes on a cluster."""
    network, workers = network_named("ethernet-10g"), 4
    elements = (700_000, 300_000, 3)

    def work(transport):
        model = nn.Module()
        for number, count in enumerate(reversed(elements)):
            model.register_parameter(f"part{number}", nn.Parameter(torch.empty(count, device="meta")))
        parameters = FlatParameters(model)
        made = strategy("ring")(transport)
        made.start(
            parameters, lambda named: torch.optim.SGD([p for _, p in named], lr=0.1), bucket_bytes=4, wire="bf16"
        )
        transport.barrier()
        began, sent = transport.now(), transport.bytes_sent
        for bucket in made.buckets:
            made.push(bucket)
        made.step(1, 0.0)
        return transport.now() - began, transport.bytes_sent - sent

    described = strategy("ring").described(Workload(elements, (1.0,) * 3, 2, rounded=True), workers, ((0, 1, 2, 3),))
    there = Cluster(workers, network=network).run(work)
    phases = [replace(phase, ready=0.0) for phase in described.phases(0)]
    ends = replay_phases(phases, network, workers)[-1]
    np.testing.assert_allclose([seconds for seconds, _ in there], ends, rtol=0.02)
    assert all(sent < 2 * 2 * 1_000_003 for _, sent in there)


def served(wire, **more):
    """A server of one part on a made-up network, and the parameters that it has."""
    parameters = FlatParameters(new_model())
    shard = Shard(
        parameters.values.clone(),
        parameters.pieces(0, len(parameters.values)),
        lambda named: torch.optim.SGD([p for _, p in named], lr=0.05),
        Synchronous(),
        StaleGradients(),
    )
    return NetworkServer(shard, 6, "{}", facts_about(parameters, wire), FOREVER, wire=wire, **more)


def on_a_network(wire, server, told=None):
    """Trains one worker with the server; returns its last parameters and bytes sent."""
    found = []

    def work(shard: RemoteShard):
        model = new_model()
        parameters = FlatParameters(model)
        transport = Alone()
        made = RemoteServers(transport, [shard], ())
        made.start(parameters, torch.optim.SGD, wire=wire, expected_tokens=TOKENS)
        outcomes = []
        while made.next_update < 6:
            parameters.views.begin()
            draw = torch.Generator().manual_seed(made.next_update)
            with parameters.views.adding():
                (model(torch.randn(TOKENS, 37, generator=draw)) - 1).square().sum().backward()
            if told and made.next_update == 3:
                parameters.gradients[7] = told
            outcomes.append(str(made.step(TOKENS, 0.0).outcome))
        shard.leave()
        found.append((parameters.values.clone(), transport.bytes_sent, outcomes))

    network = Network(server)
    network.add(work)
    network.run()
    return found[0]


def test_servers_on_a_network_add_in_float32_and_send_in_half():
    whole_server = served(WireFormat())
    whole, bytes_whole, _ = on_a_network("fp32", whole_server)
    for precision in ("bf16", "fp16"):
        server = served(WireFormat.for_gradients(precision, TOKENS))
        values, sent, outcomes = on_a_network(precision, server)
        assert (sent, set(outcomes)) == (bytes_whole / 2, {"applied"})
        assert server.shard.values.dtype == torch.float32
        near = server.shard.values.bfloat16() if precision == "bf16" else server.shard.values.half()
        assert torch.equal(values, near.float())
        assert 0 < (values - whole).norm() < 4e-2 * (whole - flat(new_model())).norm()
        skipping = served(WireFormat.for_gradients(precision, TOKENS))
        _, _, outcomes = on_a_network(precision, skipping, told=3.4e38)
        assert (outcomes.count("not finite"), skipping.shard.skipped) == (1, 1)


def test_a_worker_with_another_wire_is_refused_by_name():
    with pytest.raises(MismatchError, match=r"format wire bf16.* where the server has the format 'wire', fp32"):
        on_a_network("bf16", served(WireFormat()))


def test_a_gradient_of_a_wrong_size_is_refused():
    server = served(WireFormat("bf16"))
    facts = json.dumps([list(fact) for fact in facts_about(FlatParameters(new_model()), WireFormat("bf16"))]).encode()
    elements = len(server.shard.values)

    def ask(message):
        return [Message.of(frames) for _, frames in server.receive(b"w", message.frames(), 0.0)]

    ask(Message(Kind.JOIN, session=1, life=1, payload=(facts,)))
    (values,) = ask(Message(Kind.READ, session=1, life=1, number=0, attempt=1, version=NOTHING))
    assert memoryview(values.payload[1]).nbytes == 2 * elements
    for nbytes in (4 * elements, 2 * elements - 2, 2 * elements + 1, 0):
        push = Message(Kind.PUSH, 1, 1, number=1, version=0, weight=1.0, flag=True, payload=(bytes(nbytes),))
        (answer,) = ask(push)
        assert answer.kind is Kind.REFUSED
        assert re.search(rf"{nbytes} bytes where {elements} \({2 * elements} bytes\) of bfloat16 belong", answer.text())


@pytest.mark.parametrize(
    ("program", "ranks", "names"),
    quick(
        [("mpirun", 3, ["ring", "ps", "ps+colocated"]), ("torchrun", 2, ["allreduce", "ring"])],
        lambda case: case[0] == "mpirun",
    ),
)
def test_on_real_wires(run: Run, program, ranks, names):
    outcome = run(*launcher(program, ranks), PROGRAMS / "on_wires.py", "half training", ",".join(names), deadline=100)
    assert (outcome.status, outcome.out.strip()) == (0, "all is well"), outcome.err


@pytest.mark.parametrize("name", quick(["shared", "no-exchange", "hierarchical"], "shared".__eq__))
def test_where_nothing_is_sent_it_is_refused_in_one_sentence(run: Run, tmp_path, name):
    outcome = run("bigbatch-exp", name, "-n", "2", "--wire", "bf16", *SMALL, "--out", tmp_path / "out", deadline=60)
    assert outcome.status == 2
    assert re.fullmatch(r"bigbatch-exp: .*--wire bf16 .*[Ll]eave it out.*", outcome.err.strip().splitlines()[-1])
    assert outcome.err.count("bigbatch-exp") == 1
    assert not (tmp_path / "out").exists()


def test_whoever_shares_memory_on_these_wires_is_refused_before_anything_is_prepared():
    """On a free network the ranks of a cluster share memory; on several nodes, or on a GPU, messages are sent."""

    def work(transport, precision="bf16", device="cpu"):
        STRATEGIES.load("hierarchical").check_wire_here(precision, transport, torch.device(device))

    with pytest.raises(ConfigurationError, match="--wire bf16 has nothing to make smaller here"):
        Cluster(2).run(work)
    Cluster(4, [[0, 1], [2, 3]]).run(work)
    Cluster(2, network=network_named("ethernet-1g")).run(work)
    Cluster(2).run(partial(work, device="cuda"))
    Cluster(2).run(partial(work, precision="fp32"))


@pytest.mark.slow
def test_a_simulated_experiment_sends_half_the_bytes(run: Run, tmp_path):
    sent = {}
    for wire in ("fp32", "bf16"):
        words = ("ring", "--simulate", "8", "--wire", wire, "--arms", "accumulated", *SMALL)
        outcome = run("bigbatch-exp", *words, "--out", tmp_path / wire, deadline=90)
        assert outcome.status == 0, outcome.err
        lines = (tmp_path / wire / "metrics.jsonl").read_text().splitlines()
        sent[wire] = [json.loads(line)["bytes_sent"] for line in lines if '"bytes_sent"' in line]
    assert all(0.5 <= half / whole < 0.52 for half, whole in zip(sent["bf16"], sent["fp32"], strict=True))
