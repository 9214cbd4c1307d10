"""What every transport and every strategy is put through: once in one process, once on real wires."""

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bigbatch.comm.errors import DeadlineError, MismatchError
from bigbatch.comm.parameters import FlatParameters, OptimizerFactory
from bigbatch.comm.reducers.all_gather import AllGather
from bigbatch.comm.reducers.collective import Collective
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.comm.strategies.strategy import Strategy
from bigbatch.comm.update import Outcome
from bigbatch.comm.wires.request import ANY
from bigbatch.comm.wires.transport import Transport
from bigbatch.models.decoder import Transformer, TransformerShape
from bigbatch.tasks.loss import PADDING, summed_cross_entropy
from bigbatch.tasks.task import Task, TokenBatch
from bigbatch.training.batches import BatchPlan
from bigbatch.training.order import DataOrder
from bigbatch.training.trainer import Trainer

VOCABULARY, CONTEXT, UPDATES = 11, 5, 20
BATCH = 240  # what 1 to 5 workers with 1, 2 and 4 micro-batches can share
EXAMPLES = (UPDATES - 1) * BATCH + 37  # the last batch leaves some workers little, and some nothing
SHAPE = TransformerShape(VOCABULARY, CONTEXT, layers=1, width=8, heads=2)
LEARNING_RATE = 1e-2


class Sequences(Task):
    """Random sequences of different lengths, the same on every rank."""

    corpus_sha256 = "none"
    vocabulary_size = VOCABULARY
    example_tokens = CONTEXT

    def __init__(self) -> None:
        generator = np.random.default_rng(5)
        self.tokens = torch.from_numpy(generator.integers(VOCABULARY, size=(97, CONTEXT)))
        self.targets = torch.from_numpy(generator.integers(VOCABULARY, size=(97, CONTEXT)))
        self.targets[
            torch.arange(CONTEXT) >= torch.from_numpy(generator.integers(1, CONTEXT + 1, size=97))[:, None]
        ] = PADDING
        self.sizes = {"training": 90, "validation": 7}

    @classmethod
    def prepare(cls, _: object) -> "Sequences":
        return cls()

    def batch(self, split: str, examples: np.ndarray) -> TokenBatch:
        rows = torch.from_numpy(examples) + (90 if split == "validation" else 0)
        return TokenBatch(self.tokens[rows], self.targets[rows])

    def loss(self, model: nn.Module, batch: TokenBatch) -> tuple[Tensor, int]:
        return summed_cross_entropy(model(batch.tokens), batch.targets)


def new_model() -> Transformer:
    return Transformer(SHAPE, seed=3).double()


def optimizer(parameters: Iterable[object]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1)


def plain_loop(
    make: OptimizerFactory = optimizer, touch: Callable[[list[Tensor]], object] = len
) -> tuple[Tensor, float]:
    """The oracle: one process, one example after the other, nothing of ours but the model and the order.

    Args:
        make: makes the optimiser.
        touch: may change the mean gradients before a step.
    """
    task, model = Sequences(), new_model()
    order = DataOrder(90, seed=7)
    adam = make(list(model.named_parameters()))
    for update in range(UPDATES):
        adam.zero_grad()
        count = 0
        for example in order.at(range(update * BATCH, min((update + 1) * BATCH, EXAMPLES))).tolist():
            length = int((task.targets[example] != PADDING).sum())
            logits = model(task.tokens[example : example + 1])[0, :length]
            loss = -torch.log_softmax(logits, -1)[torch.arange(length), task.targets[example, :length]].sum()
            loss.backward()
            count += length
        for parameter in model.parameters():
            parameter.grad /= count
        touch([parameter.grad for parameter in model.parameters()])
        adam.step()
    with torch.no_grad():
        total, count = 0.0, 0
        for example in range(90, 97):
            length = int((task.targets[example] != PADDING).sum())
            logits = model(task.tokens[example : example + 1])[0, :length]
            total -= float(torch.log_softmax(logits, -1)[torch.arange(length), task.targets[example, :length]].sum())
            count += length
    return flat(model), total / count


def flat(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


def strategy_named(name: str) -> type[Strategy]:
    """A strategy with flags and numbers: "ps:async+colocated", "ps+servers=2"."""
    name, *flags = name.split("+")
    choices = [flag.partition("=") for flag in flags]
    return STRATEGIES.load(name).configured({word: value or True for word, _, value in choices})


ALIKE = ("recursive-doubling", "halving-doubling", "tree", "chain", "double-tree", "direct", "naive")
"""All-reduces which only their rounds tell from the ring."""

EXTENDING = Path(__file__).parents[2] / "docs" / "extending"

ALL_STRATEGIES = [
    *(name for name in STRATEGIES.names() if name not in ("allreduce", "mpi", "auto")),
    *("ps:async", "ps:ssp:2", "ps:backup:1", "ps:async+stale=scaled", "ps:async+stale=compensated"),
    *("ps+servers=2", "ps:async+servers=2", "ps:ssp:1+servers=3", "ps+colocated", "ps:async+colocated"),
    f"{EXTENDING / 'local_averaging.py'}:LocalAveraging",
    f"{EXTENDING / 'top_k.py'}:TopK+ratio=0.1",
]
"""Every strategy that runs on any transport, in all its kinds, and the worked examples."""

RELATED = (
    *("no-exchange", "ps:ssp:2", "ps:backup:1", "ps:async+stale=scaled"),
    *("ps:async+servers=2", "ps:ssp:1+servers=3", "ps:async+colocated"),
)
"""Strategies that differ from another one in one part only, which has tests of its own."""


def train(
    transport: Transport,
    make_strategy: Callable[[Transport], Strategy],
    accumulation: int,
    bucket_bytes: int,
    *,
    overlap: bool = True,
    make: OptimizerFactory = optimizer,
) -> tuple[Tensor, float] | None:
    """A whole training over a strategy: this rank's parameters and the validation loss; None from a server."""
    model = new_model()
    if transport.rank:
        torch.nn.init.normal_(model.tokens.weight)  # start must replace these by rank 0's
    parameters = FlatParameters(model)
    strategy = make_strategy(transport)
    strategy.start(parameters, make, bucket_bytes=bucket_bytes)
    micro_batch = BATCH // (accumulation * strategy.workers)
    plan = BatchPlan(micro_batch, accumulation, strategy.workers)

    def work() -> tuple[Tensor, float]:
        trainer = Trainer(model, Sequences(), strategy, parameters, plan, EXAMPLES, seed=7, overlap=overlap)
        updates = list(trainer.updates())
        numbers = [update.number for update in updates]
        assert numbers == sorted(set(numbers))  # who came too late for an update leaves it out; nobody makes one twice
        assert numbers[-1] == UPDATES
        for update in updates:
            # An update of everybody's gradients is always made; a worker's own gradient may have come to nothing.
            mine = update.workers == 1 < strategy.workers
            allowed = [Outcome.APPLIED] if not mine else [Outcome.APPLIED, Outcome.DROPPED]
            assert update.outcome in (allowed if update.tokens else [*allowed[1:], Outcome.NO_DATA])
        return copy.deepcopy(flat(model)), trainer.validate()

    result = strategy.run(work)
    strategy.close()
    return result


def train_until(
    transport: Transport, make_strategy: Callable[[Transport], Strategy], until: int, state: dict[str, Any] | None
) -> tuple[Tensor | None, dict[str, Any]]:
    """Train until an update, from a state if there is one: this worker's parameters, and this rank's state."""
    parameters = FlatParameters(model := new_model())
    strategy = make_strategy(transport)
    strategy.start(parameters, optimizer, bucket_bytes=1000)
    trainer = None
    if strategy.worker is not None:
        plan = BatchPlan(BATCH // strategy.workers, 1, strategy.workers)
        trainer = Trainer(model, Sequences(), strategy, parameters, plan, EXAMPLES, seed=7)
    one = strategy if trainer is None else trainer
    if state is not None:
        one.load_state_dict(state)

    def work() -> Tensor:
        assert trainer is not None
        updates = trainer.updates()
        while trainer.position < until and not trainer.ended:
            next(updates)
        return flat(model).clone()

    result, kept = strategy.run(work), one.state_dict()
    strategy.close()
    return result, kept


def refuse_what_differs(make: Callable[[Transport], Collective], transport: Transport) -> None:
    """Length, dtype and order of calls that differ between ranks are refused on every rank, by name."""
    odd = transport.size - 1
    different = transport.rank == odd
    collective = make(transport)
    memory = collective.allocate(30, torch.float64, torch.device("cpu"))
    with pytest.raises(MismatchError, match=f"Rank {odd}'s .*number 1' is 9 × float64, but rank 0's is 8 × float64"):
        collective.reduce(memory[: 9 if different else 8])
    collective.close()
    collective = make(transport)
    memory = collective.allocate(8, torch.int64 if different else torch.float64, torch.device("cpu"))
    with pytest.raises(MismatchError, match=f"Rank {odd}'s .*number 1' is 8 × int64, but rank 0's is 8 × float64"):
        collective.reduce(memory)
    collective.close()
    collective = make(transport)
    memory = collective.allocate(30, torch.float64, torch.device("cpu"))
    first, second = (memory[:20], memory[20:]) if not different else (memory[20:], memory[:20])

    def both() -> None:
        started = [collective.start(first), collective.start(second)]  # here if the library moves data at once ...
        started[0].wait()  # ... or here

    with pytest.raises(MismatchError, match=f"Rank {odd}'s .*number 1' is 10 × float64, but rank 0's is 20 × float64"):
        both()
    collective.close()


def name_who_is_missing(make: Callable[[Transport], Collective], transport: Transport) -> None:
    """One rank that does not come is named on every rank that did, within the deadline."""
    transport.deadline = 3.0
    collective = make(transport)
    memory = collective.allocate(8, torch.float64, torch.device("cpu"))
    if transport.rank == 1:
        return
    with pytest.raises(DeadlineError, match="Rank 1 did not come"):
        collective.reduce(memory)


def ask_what_runs_in_a_thread(transport: Transport) -> None:
    """Every rank asks what runs beside each rank, itself included, with all questions under way at once."""
    questions = 5

    def answer(end: Transport) -> None:
        number = np.empty(2)
        for _ in range(questions * end.size):
            asker = end.irecv(number, ANY, tag=1).wait()
            end.isend(number * (end.rank + 2), asker, tag=2).wait()
        assert end.messages_sent == questions * end.size

    sent = transport.messages_sent
    answering = transport.start_thread(answer)
    for question in range(questions):
        asked, answers = np.array([transport.rank + 1.0, question + 10.0]), np.zeros((transport.size, 2))
        ranks = range(transport.size)
        hearing = [transport.irecv(answers[rank], rank, tag=2) for rank in ranks]
        asking = [transport.isend(asked, rank, tag=1) for rank in ranks]
        assert [request.wait() for request in hearing] == [request.wait() for request in asking] == list(ranks)
        np.testing.assert_array_equal(answers, np.outer(np.arange(2, transport.size + 2), asked))
    assert answering.wait() == transport.rank
    assert transport.messages_sent - sent == questions * transport.size


def distinct(rank: int, elements: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Numbers that no other rank or element has."""
    return (torch.arange(elements) * 1000 + rank).to(dtype)


def gather_everything(transport: Transport, dtype: torch.dtype = torch.float64) -> bool:
    """Tensors of equal and of different lengths, of every rank, on every rank."""
    everyone = AllGather(transport)
    rank, size = transport.rank, transport.size
    for elements in (0, 1, 7, 1003):
        parts = everyone.gather(distinct(rank, elements, dtype))
        assert [part.tolist() for part in parts] == [distinct(r, elements, dtype).tolist() for r in range(size)]
    for step in range(3):
        lengths = [(r * 5 + step * 3) % (size + 4) for r in range(size)]
        parts = everyone.gather(distinct(rank, lengths[rank], dtype), alike=False)
        assert [part.tolist() for part in parts] == [distinct(r, lengths[r], dtype).tolist() for r in range(size)]
    return True
