"""Sessions: a loop of one's own over strategies, against a plain loop in one process."""

import copy
import math

import numpy as np
import pytest
import torch
from jobs import PROGRAMS, Run, launcher, quick
from torch import nn

import bigbatch
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.transports.alone import Alone
from bigbatch.comm.transports.cluster import Cluster

FEATURES, OUTPUTS = 5, 3


def data(batches: int, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of different sizes, each with numbers of its own."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(1, 5, size=batches)
    return [
        (torch.from_numpy(generator.normal(size=(n, FEATURES))), torch.from_numpy(generator.normal(size=(n, OUTPUTS))))
        for n in sizes
    ]


def model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, OUTPUTS)).double()


def summed_loss(module: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, int]:
    inputs, targets = batch
    return ((module(inputs) - targets) ** 2).sum(), len(inputs)


def flat(module: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in module.parameters()])


def plain(batches, workers: int, every: int, epochs: int) -> torch.Tensor:
    """The oracle: one process, and torch's optimiser on means over all tokens of an update."""
    module = model(0)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    for _ in range(epochs):
        for start in range(0, len(batches), workers * every):
            optimizer.zero_grad()
            count = 0
            for batch in batches[start : start + workers * every]:
                loss, tokens = summed_loss(module, batch)
                loss.backward()
                count += tokens
            for parameter in module.parameters():
                parameter.grad /= count
            optimizer.step()
    return flat(module)


def train(batches, every: int, epochs: int, strategy: str, **more) -> torch.Tensor:
    module = model(0)
    session = bigbatch.attach(module, torch.optim.AdamW, lr=1e-2, strategy=strategy, **more)
    for _ in range(epochs):
        for step, batch in enumerate(session.shard(batches)):
            loss, tokens = summed_loss(module, batch)
            session.backward(loss, tokens, last=(step + 1) % every == 0)
    return flat(module)


@pytest.mark.parametrize("strategy", ["ring", "halving-doubling", "ps"])
@pytest.mark.parametrize(("workers", "count", "every"), [(1, 7, 2), (3, 12, 1), (4, 13, 1), (3, 17, 2), (2, 9, 4)])
def test_a_loop_of_ones_own_is_a_plain_loop(strategy, workers, count, every):
    batches = data(count)
    ranks = workers + (strategy == "ps")
    trained = Cluster(ranks).run(lambda _: train(batches, every, 2, strategy))[:workers]
    for parameters in trained:
        torch.testing.assert_close(parameters, plain(batches, workers, every, 2), rtol=1e-12, atol=1e-13)


def test_an_asynchronous_server_takes_every_workers_gradients():
    batches = data(11)

    def work(_):
        module = model(0)
        with bigbatch.attach(module, torch.optim.SGD, lr=1e-3, strategy="ps:async") as session:
            reports = [session.backward(*summed_loss(module, batch)) for batch in session.shard(batches)]
        return session.worker, len(reports), flat(module)

    outcomes = Cluster(4).run(work)
    assert [worker for worker, *_ in outcomes] == [0, 1, 2, None]
    assert [made for _, made, _ in outcomes] == [4, 4, 3, 0]
    assert not torch.equal(outcomes[0][2], flat(model(0)))


def test_a_server_beside_every_worker_serves_a_session():
    batches = data(9)
    trained = Cluster(3).run(lambda _: train(batches, 1, 1, "ps", options={"colocated": True}))
    for parameters in trained:
        torch.testing.assert_close(parameters, plain(batches, 3, 1, 1), rtol=1e-12, atol=1e-13)


def test_alone_it_needs_no_launcher():
    batches = data(6)
    torch.testing.assert_close(train(batches, 3, 1, "ring"), plain(batches, 1, 3, 1), rtol=1e-12, atol=1e-13)


def test_what_is_no_strategy_is_refused():
    with pytest.raises(ConfigurationError, match="Unknown strategy 'rnig'"):
        bigbatch.attach(model(0), torch.optim.SGD, lr=0.1, strategy="rnig")
    with pytest.raises(ConfigurationError, match="has no option 'servers'"):
        bigbatch.attach(model(0), torch.optim.SGD, lr=0.1, strategy="ring", options={"servers": 2})


@pytest.mark.parametrize(
    ("name", "ranks", "strategy"),
    quick([("mpirun", 3, "ps"), ("torchrun", 2, "allreduce")], lambda case: case[0] == "mpirun"),
)
def test_a_session_under_a_launcher(run: Run, tmp_path, name, ranks, strategy):
    outcome = run(*launcher(name, ranks), PROGRAMS / "own_loop.py", strategy, tmp_path, deadline=90)
    assert outcome.status == 0, outcome.err
    workers = ranks - (strategy == "ps")
    expected = plain(data(13), workers, 2, 2)
    for worker in range(workers):
        trained = torch.load(tmp_path / f"{worker}.pt", weights_only=True)
        torch.testing.assert_close(trained, expected, rtol=1e-12, atol=1e-13)


def test_gradients_that_were_removed_are_sent_all_the_same():
    batches = data(8)

    def work(_):
        module = model(0)
        session = bigbatch.attach(module, torch.optim.AdamW, lr=1e-2, strategy="ring")
        for batch in session.shard(batches):
            module.zero_grad()  # as loops do out of habit; it takes the gradients away
            session.backward(*summed_loss(module, batch))
        return flat(module)

    for parameters in Cluster(2).run(work):
        torch.testing.assert_close(parameters, plain(batches, 2, 1, 1), rtol=1e-12, atol=1e-13)


def test_a_gradient_that_was_given_counts_as_torch_counts_it():
    module, expected, batch = model(0), model(0), data(1)[0]
    session = bigbatch.attach(module, torch.optim.SGD, lr=0.1)
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.1)
    for one in (module, expected):
        one[0].weight.grad = torch.ones_like(one[0].weight)
    session.backward(*summed_loss(module, batch))
    loss, tokens = summed_loss(expected, batch)
    loss.backward()
    for parameter in expected.parameters():
        parameter.grad /= tokens
    optimizer.step()
    torch.testing.assert_close(flat(module), flat(expected), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("to_none", [True, False])
def test_two_models_are_trained_against_each_other(to_none):
    """A generator's loss reaches its critic's parameters (Lightning 591): `zero_grad` removes that, as in torch."""
    torch.manual_seed(3)
    maker, critic = nn.Linear(FEATURES, FEATURES).double(), nn.Linear(FEATURES, 1).double()
    models = [maker, critic, copy.deepcopy(maker), copy.deepcopy(critic)]
    sessions = [bigbatch.attach(m, torch.optim.SGD, lr=0.1, transport=Alone()) for m in models[:2]]
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in models[2:]]

    def losses(maker, critic, x):
        yield 1, lambda: critic(x).sum() - critic(maker(x).detach()).pow(2).sum()
        yield 0, lambda: critic(maker(x)).pow(2).sum()

    for x, _ in data(4):
        for which, loss in losses(*models[:2], x):
            models[which].zero_grad(set_to_none=to_none)
            sessions[which].backward(loss(), len(x))
        for which, loss in losses(*models[2:], x):
            optimizers[which].zero_grad()
            (loss() / len(x)).backward()
            optimizers[which].step()
    for trained, expected in zip(models[:2], models[2:], strict=True):
        torch.testing.assert_close(flat(trained), flat(expected), rtol=1e-12, atol=1e-13)


def test_a_session_that_has_ended_is_refused():
    module = model(0)
    session = bigbatch.attach(module, torch.optim.SGD, lr=0.1)
    session.close()
    with pytest.raises(ConfigurationError, match="The session has ended"):
        session.backward(*summed_loss(module, data(1)[0]))


def test_what_no_optimiser_touches_is_rank_0s_too():
    def work(transport):
        module = nn.Sequential(model(transport.rank), nn.BatchNorm1d(OUTPUTS).double())
        module[0][0].weight.requires_grad_(False)
        module[1].running_mean += transport.rank
        module[1].num_batches_tracked += 5 * transport.rank
        bigbatch.attach(module, torch.optim.SGD, lr=0.1)
        return flat(module), module[1].running_mean.clone(), int(module[1].num_batches_tracked)

    first, *others = Cluster(3).run(work)
    for other in others:
        assert torch.equal(other[0], first[0])
        assert torch.equal(other[1], first[1])
        assert other[2] == first[2] == 0


def test_the_last_update_of_a_round_is_reported():
    module, batches = model(0), data(5)
    session = bigbatch.attach(module, torch.optim.SGD, lr=0.1)
    assert session.report is None
    for step, batch in enumerate(session.shard(batches)):
        session.backward(*summed_loss(module, batch), last=(step + 1) % 2 == 0)
    assert session.report.version == 3
    assert session.report.weight == len(batches[-1][0])


def test_a_wrong_word_for_the_optimiser_is_found_before_anybody_waits():
    with pytest.raises(ConfigurationError, match="lrr"):
        bigbatch.attach(model(0), torch.optim.SGD, lrr=0.1, strategy="ring")


def test_an_error_of_one_rank_ends_the_job(run: Run, tmp_path):
    program = tmp_path / "fails.py"
    program.write_text(
        "import bigbatch, torch\n"
        "module = torch.nn.Linear(2, 1)\n"
        "session = bigbatch.attach(module, torch.optim.SGD, lr=0.1)\n"
        "for step in range(3):\n"
        "    if session.worker == 1 and step == 1: raise ValueError('no such batch')\n"
        "    session.backward(module(torch.ones(4, 2)).sum(), 4)\n"
    )
    outcome = run(*launcher("mpirun", 3), program)
    assert outcome.status != 0
    assert "ValueError: no such batch" in outcome.err
    assert outcome.seconds < 30, "the others' deadline is 300 s"


HOSTILE: dict[str, object] = {
    # a rate that YAML reads as text, allennlp 1429; infinite ones, which torch takes; True is a number to Python
    "lr": (math.nan, math.inf, "1e-3", None, torch.tensor(math.nan), 10**400),
    "momentum": (math.nan, "x"),
    "deadline": (math.nan, -1, "x", True),
    "overlap": ("no", 1),
    "broadcast_buffers": ("yes", 2),
    "options": ([1], {3: 4}, {"bucket": 1}),
    "strategy": (5, "rings"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_setting_is_refused_in_a_sentence_before_anybody_waits(name):
    for value in HOSTILE[name]:
        settings = {"lr": 0.1, name: value}
        with pytest.raises(ConfigurationError, match=r"^[^\n]{10,400}$"):
            bigbatch.attach(model(0), torch.optim.SGD, **settings)
    with pytest.raises(ConfigurationError, match=r"is made as an object of the type int, but must be a torch\.optim"):
        bigbatch.attach(model(0), lambda _: 3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda loss, _: (loss, math.nan), "tokens behind the loss cannot be nan"),
        (lambda loss, _: (loss, -1), "cannot be -1"),
        (lambda loss, _: (loss, 2.5), "cannot be 2.5"),
        (lambda loss, _: (loss, 2**60), "at most 9,007,199,254,740,992"),
        (lambda loss, _: (loss, None), "cannot be None"),
        (lambda loss, tokens: (loss.repeat(3), tokens), "a tensor of 3 numbers"),
        (lambda loss, tokens: (loss.item(), tokens), "must be one number in a tensor"),
        (lambda loss, tokens: (loss.detach(), tokens), "has no gradient"),
    ],
)
def test_what_is_no_loss_or_no_number_of_tokens_is_refused_before_backward(change, said):
    module = model(0)
    with bigbatch.attach(module, torch.optim.SGD, lr=0.1) as session:
        loss, tokens = summed_loss(module, data(1)[0])
        with pytest.raises(ConfigurationError, match=said):
            session.backward(*change(loss, tokens))
        assert session.backward(loss, np.int64(tokens)).weight == tokens


def test_a_session_that_a_failed_simulation_left_behind_disturbs_no_later_one():
    """It ends when it is collected: at any time, in whatever greenlet runs then."""
    left = []

    def failing(transport):
        model = nn.Linear(2, 1)
        left.append(bigbatch.attach(model, torch.optim.SGD, lr=0.1, strategy="ps", transport=transport))
        raise KeyError(transport.rank)

    def collecting(transport):
        left.clear()
        transport.barrier()
        return transport.rank

    with pytest.raises(KeyError):
        Cluster(3).run(failing)
    assert Cluster(2).run(collecting) == [0, 1]
