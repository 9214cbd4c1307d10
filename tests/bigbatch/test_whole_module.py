"""What is trained is what the user's module says: the whole of it, whatever torch does to its gradients."""

import copy
import itertools
import math
import re
from functools import partial

import numpy as np
import pytest
import torch
from bodies import VOCABULARY, Sequences, flat, strategy_named
from jobs import PROGRAMS, Run, launcher, quick
from torch import nn
from whole_module import CASES, REFUSED, Job, Plain, Quantised, adamw, clamped

from bigbatch.comm.errors import ConfigurationError, MismatchError
from bigbatch.comm.parameters import ROW, FlatParameters, digest
from bigbatch.comm.strategies.remote import facts_about
from bigbatch.comm.transports.alone import Alone
from bigbatch.comm.transports.cluster import Cluster
from bigbatch.training.batches import BatchPlan
from bigbatch.training.compute_model import ComputeModel
from bigbatch.training.session import attach
from bigbatch.training.trainer import Trainer

IN_PROCESS = ["ring", "halving-doubling", "ps", "ps+colocated", "ps+servers=2"]


@pytest.mark.parametrize("strategy", quick(IN_PROCESS, lambda name: name in ("ring", "ps+servers=2")))
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_a_plain_loop_is_the_oracle(strategy, case):
    kind = strategy_named(strategy)
    Cluster(kind.ranks_for(3)).run(lambda transport: case(Job(kind, transport)))


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_put_right_names_the_parameter_on_every_rank(case):
    words, make = REFUSED[case]
    said = []

    def work(transport):
        Job(strategy_named("ring"), transport).refused(words, **make())
        said.append(transport.rank)

    Cluster(3).run(work)
    assert sorted(said) == [0, 1, 2]


@pytest.mark.parametrize("case", REFUSED)
def test_a_workers_fault_ends_a_job_with_servers(case):
    words, make = REFUSED[case]
    kind = strategy_named("ps")
    with pytest.raises(ConfigurationError, match=re.escape(words)):
        Cluster(3).run(lambda transport: Job(kind, transport).train(**make()))


@pytest.mark.parametrize(
    ("name", "ranks", "strategies"),
    quick(
        [
            ("mpirun", 2, "ring"),
            ("mpirun", 2, "shared"),
            ("mpirun", 3, "ps"),
            ("mpirun", 3, "ring,shared,ps+colocated,hierarchical"),
            ("mpirun", 4, "ps+servers=2"),
            ("torchrun", 2, "allreduce"),
            ("mpirun", 2, "allreduce"),
        ],
        lambda case: case == ("mpirun", 2, "ring"),
    ),
)
def test_on_real_wires(run: Run, name, ranks, strategies):
    outcome = run(*launcher(name, ranks), PROGRAMS / "whole_module.py", strategies, deadline=120)
    assert outcome.status == 0, outcome.err
    assert "all is well" in outcome.out


@pytest.mark.parametrize("case", quick(list(REFUSED), lambda case: case == "more goes than before"))
def test_faults_on_real_wires(run: Run, case):
    outcome = run(*launcher("mpirun", 2), PROGRAMS / "whole_module.py", "ring", case, deadline=90)
    assert outcome.status == 0, outcome.err
    assert "all is well" in outcome.out


def loads_in_between(module, updates):
    if updates == 3:  # no update after which all values are looked at
        module.load_state_dict(Plain().state_dict())


def turned(module, updates):
    if updates == 3:
        module.second.weight.data = module.second.weight.data.reshape(2, 2).t().reshape(1, 4)


@pytest.mark.parametrize("between", [clamped, loads_in_between, turned])
def test_servers_refuse_parameters_that_they_would_undo(between):
    kind = strategy_named("ps")
    with pytest.raises(ConfigurationError, match="which the servers would undo"):
        Cluster(3).run(lambda transport: Job(kind, transport).train(Plain(), between=between))


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        ("ps+colocated", "The parameter book has come apart from worker 0's"),
        ("ps:async", "The parameter book is frozen and was changed"),
    ],
)
def test_a_frozen_parameter_that_every_worker_moves_by_its_own_data_is_found(strategy, words):
    kind = strategy_named(strategy)
    with pytest.raises(ConfigurationError, match=re.escape(words)):
        Cluster(kind.ranks_for(3)).run(lambda transport: Job(kind, transport).train(Quantised()))


def test_workers_that_come_apart_are_found():
    """Values that worker 0 alone loads, as after a checkpoint; an optimiser that draws random numbers of its own."""

    def loads(module, updates, rank):
        if updates == 1 and rank == 0:
            module.load_state_dict(Plain().state_dict())

    class Langevin(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            for parameter in self.param_groups[0]["params"]:
                parameter.data += torch.randn_like(parameter) / 10

    def alone(transport):
        job = Job(strategy_named("ring"), transport)
        job.refused("has come apart from worker 0's", module=Plain(), between=partial(loads, rank=transport.rank))
        job.refused("has come apart", module=Plain(), make=lambda named: Langevin(named, lr=0.1))

    Cluster(3).run(alone)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(3, 5), (70, 70), (131, 257)])
def test_a_digest_tells_round_values_and_their_order(dtype, shape):
    tensor = torch.arange(math.prod(shape)).reshape(shape).fmod(37).to(dtype)
    others = [
        tensor.t(),
        tensor.flip(0),
        tensor.flip(1),
        tensor.roll(1),
        2 * tensor,
        -tensor,
        tensor * 0,
        tensor * 0 + 1,
    ]
    assert len({digest(one) for one in [tensor, *others]}) == len(others) + 1
    assert digest(tensor.t().clone()) == digest(tensor.t())
    assert digest(tensor[:0]) == digest(tensor.to("meta")) == 0
    beside = torch.zeros(math.prod(shape) + 1, dtype=dtype)
    beside[1:] = tensor.flatten()
    assert digest(beside[1:]) == digest(tensor)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_digest_tells_two_changed_signs(dtype):
    """The highest bits of two words: their sum in 64 bits would be what it was."""
    tensor = torch.ones(5 * ROW, dtype=dtype)
    random = torch.Generator().manual_seed(0)
    pairs = [torch.randperm(len(tensor), generator=random)[:2] for _ in range(60)]
    pairs += [torch.tensor([first, first + step]) for first in (0, 1, 2 * ROW) for step in (1, 2, ROW, 2 * ROW)]
    assert digest(tensor) not in {digest(tensor.index_fill(0, pair, -1)) for pair in pairs}


def test_layers_that_one_worker_alone_exchanges_are_found():
    def exchanges(module, updates, rank):
        if (updates, rank) == (1, 1):
            one, other = module.first.weight.data, module.other.weight.data
            module.first.weight.data, module.other.weight.data = other, one

    def work(transport):
        module = Plain()
        module.other = nn.Linear(3, 4).double()
        Job(strategy_named("ring"), transport).refused(
            "has come apart", module=module, between=partial(exchanges, rank=transport.rank)
        )

    Cluster(2).run(work)


def test_rounding_is_no_reason_to_refuse():
    """Processors of several kinds round differently."""

    def rounds(module, updates, rank):
        if updates == 1:
            module.first.weight.data *= 1 + 1e-7 * rank

    def work(transport):
        Job(strategy_named("ring"), transport).train(Plain(), between=partial(rounds, rank=transport.rank))

    Cluster(3).run(work)


def test_nothing_is_trained_of_a_backward_that_failed():
    """A loop that skips a batch for which memory was short has part of its gradients already."""
    module = Plain()
    session = attach(module, torch.optim.SGD, lr=0.1, transport=Alone())
    module.first.weight.register_hook(lambda _: (_ for _ in ()).throw(MemoryError))
    before = flat(module)
    with pytest.raises(MemoryError):
        session.backward(module(torch.ones(2, 3)).sum(), 2, last=False)
    module.first.weight._backward_hooks.clear()
    with pytest.raises(ConfigurationError, match="Backward was ended by an error"):
        session.backward(module(torch.ones(2, 3)).sum(), 2)
    assert torch.equal(flat(module), before)


def test_training_does_not_begin_under_inference_mode():
    model = Plain()
    with torch.inference_mode(), pytest.raises(ConfigurationError, match="begin the training outside of it"):
        attach(model, torch.optim.SGD, lr=0.1, transport=Alone())


class Noisy(nn.Module):
    """Embeddings, a norm with running means, dropout that is noted, and a norm that stays in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.table = nn.Parameter(torch.randn(VOCABULARY, 8, generator=generator))
        self.norm, self.frozen = nn.BatchNorm1d(8), nn.BatchNorm1d(8).eval()
        self.masks = []

    def forward(self, tokens):
        x = self.table[tokens]
        x = self.frozen(self.norm(x.transpose(1, 2))).transpose(1, 2)
        kept = nn.functional.dropout(torch.ones_like(x), training=self.training)
        if self.training:
            self.masks.append(kept[:2, :1].clone())
        return (x * kept) @ self.table.T


def trainer_of(transport, strategy="ring", module=None, task=None, **more):
    module = module or Noisy()
    parameters = FlatParameters(module)
    made = strategy_named(strategy)(transport)
    made.start(parameters, lambda named: torch.optim.SGD(named, lr=1e-3), bucket_bytes=100)
    plan = BatchPlan(6, 2, made.workers)
    return Trainer(module, task or Sequences(), made, parameters, plan, 5 * plan.global_batch, seed=3, **more)


def finish(trainer):
    for _ in trainer.updates():
        pass
    return trainer


def contents(trainer):
    tensors = [flat(trainer.model), *(buffer.double().reshape(-1) for buffer in trainer.model.buffers())]
    return torch.cat(tensors)


def test_every_worker_drops_others():
    """As torch's own guide to data parallelism asks for (pytorch 7068 had one mask on all)."""
    trained = Cluster(3).run(lambda transport: finish(trainer_of(transport)).model.masks)
    assert [len(masks) for masks in trained] == [10, 10, 10]
    everything = [mask for masks in trained for mask in masks]
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(everything, 2))


class Slow(ComputeModel):
    """Computes for another while on each worker, so that the ranks of a simulation take turns within an update."""

    def __init__(self, worker):
        self.seconds = 1.0 + 0.3 * worker

    def begin(self):
        pass

    def forward(self, tokens):
        return self.seconds * tokens

    backward = forward


def test_ranks_that_take_turns_in_one_process_draw_what_they_draw_by_themselves():
    def work(transport, *, slow):
        model = Slow(transport.rank) if slow else None
        return finish(trainer_of(transport, compute_model=model)).model.masks

    plain, slow = (Cluster(3).run(partial(work, slow=which)) for which in (False, True))
    for one, other in zip(plain, slow, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_warm_up_a_look_and_other_random_numbers_leave_no_trace():
    def work(transport, *, disturbed):
        trainer = trainer_of(transport)
        torch.manual_seed(transport.rank if disturbed else 99)
        if disturbed:
            trainer.warm_up()
        for _ in trainer.updates():
            if disturbed:
                trainer.validate()
                torch.rand(3)
        return contents(trainer)

    plain, disturbed = (Cluster(2).run(partial(work, disturbed=which)) for which in (False, True))
    for one, other in zip(plain, disturbed, strict=True):
        assert torch.equal(one, other)


def test_a_trainer_stops_and_goes_on_in_the_midst_of_its_random_numbers():
    whole = finish(trainer_of(Alone()))
    first, second = trainer_of(Alone()), trainer_of(Alone())
    for _ in itertools.islice(first.updates(), 2):
        pass
    second.load_state_dict(first.state_dict())
    assert torch.equal(contents(finish(second)), contents(whole))


def test_a_trainer_goes_on_with_the_frozen_parameters_that_it_had():
    """A teacher that follows what is trained, as in self-supervised learning, is part of what is saved."""

    def trained(trainer, updates):
        for _ in itertools.islice(trainer.updates(), updates):
            trainer.model.frozen.weight.data.mul_(0.9)
        return trainer

    def fresh():
        module = Noisy()
        module.frozen.weight.requires_grad_(False)
        return trainer_of(Alone(), module=module)

    whole, second = trained(fresh(), 5), fresh()
    second.load_state_dict(trained(fresh(), 2).state_dict())
    assert torch.equal(contents(trained(second, 3)), contents(whole))


class Measured(Sequences):
    """It looks at the model, and says which example it has looked at."""

    def measure(self, model, batch):
        assert not any(module.training for module in model.modules())
        assert not model(batch.tokens).requires_grad
        return [int((self.tokens[90:] == row).all(-1).nonzero()) for row in batch.tokens]


def test_a_look_puts_every_modules_mode_back():
    trainer = finish(trainer_of(Alone(), task=Measured()))
    trainer.validate()
    assert trainer.measure() == list(range(7))
    assert (trainer.model.training, trainer.model.norm.training, trainer.model.frozen.training) == (True, True, False)
    assert not any(map(torch.count_nonzero, [trainer.model.frozen.num_batches_tracked]))


@pytest.mark.parametrize("strategy", ["ring", "ps", "ps:async"])
@pytest.mark.parametrize("broadcast", [True, False])
def test_everybody_validates_the_same_model(strategy, broadcast):
    """Running means of each worker's own would make each share of the examples another model's."""

    def work(transport):
        trainer = trainer_of(transport, strategy, broadcast_buffers=broadcast)

        def train():
            loss = finish(trainer).validate()
            own = trainer.model.norm.running_mean.clone()
            return loss, own, copy.deepcopy(trainer.model)

        return trainer.strategy.run(train)

    kind = strategy_named(strategy)
    trained = [found for found in Cluster(kind.ranks_for(3)).run(work) if found is not None]
    alike = all(torch.equal(own, trained[0][1]) for _, own, _ in trained)
    assert alike == (broadcast and kind.in_step())
    model, task = trained[0][2].eval(), Sequences()
    with torch.no_grad():
        loss, tokens = task.loss(model, task.batch("validation", np.arange(7)))
    for said, *_ in trained:
        if kind.in_step():
            assert said == pytest.approx(float(loss) / tokens, rel=1e-6)


@pytest.mark.parametrize("strategy", ["ring", "ps:async"])
def test_a_look_at_models_with_other_buffers_is_refused_on_every_worker(strategy):
    said = []

    def work(transport):
        trainer = trainer_of(transport, strategy, broadcast_buffers=False)

        def train():
            finish(trainer)
            if trainer.worker == 1:
                trainer.model.register_buffer("late", torch.ones(2))
            with pytest.raises(MismatchError, match="Rank 1 has the buffer 'late'"):
                trainer.validate()
            said.append(trainer.worker)

        trainer.strategy.run(train)

    Cluster(strategy_named(strategy).ranks_for(3)).run(work)
    assert sorted(said) == [0, 1, 2]


def test_tied_columns_are_no_shared_memory():
    """Two parameters that are the columns of one matrix, as those of attention may be."""
    module, whole = Plain(), torch.randn(4, 2 * 3, dtype=torch.float64)
    module.first.weight = nn.Parameter(whole[:, :3])
    module.other = nn.Parameter(whole[:, 3:])
    assert torch.equal(FlatParameters(module).named_parameters()[0][1], whole[:, 3:])
    module.first.weight, module.other = nn.Parameter(whole[:, :3]), nn.Parameter(whole[:, 2:5])
    with pytest.raises(ConfigurationError, match="share memory"):
        FlatParameters(module)


def test_a_worker_on_a_network_must_have_the_same_fixed_tensors():
    """No server holds frozen parameters and buffers, so that nobody would give them to a worker that has others."""

    def facts(change=lambda _: None):
        module = Noisy()
        change(module)
        return facts_about(FlatParameters(module))

    assert facts() == facts()
    assert facts() == facts(lambda module: module.table.data.mul_(2)), "the servers give what is trained"
    assert facts() != facts(lambda module: module.frozen.running_mean.add_(1e-3))
    assert facts() != facts(lambda module: module.frozen.weight.requires_grad_(False))


@pytest.mark.parametrize("strategy", ["hierarchical", "ps+servers=2"])
def test_torchs_default_device_is_for_the_users_own_tensors(strategy):
    """A file may set it for itself (torch.set_default_device); buffers on the host stay there."""
    kind = strategy_named(strategy)

    def work(transport):
        kind(transport).start(parameters[transport.rank], adamw)

    parameters = [FlatParameters(Plain()) for _ in range(kind.ranks_for(2))]
    with torch.device("meta"):
        Cluster(len(parameters)).run(work)
    assert all(own.gradients.device.type == "cpu" for own in parameters)
