"""A race: the same training in turns over strategies, over torch's DistributedDataParallel and without exchange."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from bigbatch.comm.schema import plain
from bigbatch.comm.strategies.no_exchange import NoExchange
from bigbatch.comm.strategies.strategy import Strategy
from bigbatch.comm.transports.launch import Launch
from bigbatch.comm.wires.agreement import all_gather, together
from bigbatch.comm.wires.transport import Transport
from bigbatch.experiments.measuring.wires import Wires, all_reduce_named
from bigbatch.experiments.runs.records import RaceRow
from bigbatch.experiments.training.assemble import Assembly, task_of
from bigbatch.experiments.training.settings import Settings
from bigbatch.optimizers.standard import optimizer_named
from bigbatch.training.batches import BatchPlan
from bigbatch.training.order import DataOrder

RACED = {"layers": 5, "width": 256, "heads": 4, "vocabulary": 1024}
"""Settings of the model that is trained, which has 4.2 million parameters."""

LEARNING_RATE = 1e-3

CPU = torch.device("cpu")

UPDATES_A_TURN = 10
"""Updates in a turn, after one that is not counted because the caches still hold another contestant's data."""

ENDLESS = 2**40
"""A number of examples that no race reaches."""

DDP, NOTHING = "DistributedDataParallel", "no exchange"


class Contestant(ABC):
    """Base class of a contestant in the race: one way to train on this rank."""

    @abstractmethod
    def update(self) -> None:
        """Make one update, together with the same contestant on the other ranks."""

    def close(self) -> None:  # noqa: B027 - ordinary memory goes with the last who uses it
        """Releases the contestant's memory; all ranks call it together."""


class OverStrategy(Contestant):
    """The contestant that trains with our trainer over a strategy."""

    def __init__(self, strategy: Strategy, assembly: Assembly, plan: BatchPlan) -> None:
        self._strategy = strategy
        make = assembly.optimizer(plan, type(strategy))
        self._updates = assembly.trainer(strategy, make, plan, CPU, examples=ENDLESS).updates()

    def update(self) -> None:
        """Make the trainer's next update."""
        next(self._updates)

    def close(self) -> None:
        """Closes the strategy, which releases its memory."""
        self._strategy.close()


class OverTorch(Contestant):
    """The contestant that trains as PyTorch's manual shows: DistributedDataParallel over gloo, backward, step."""

    def __init__(self, rank: int, assembly: Assembly, plan: BatchPlan) -> None:
        model = assembly.model()
        self._model = DistributedDataParallel(model, gradient_as_bucket_view=True)
        self._optimizer = optimizer_named("adamw", LEARNING_RATE)(list(model.named_parameters()))
        self._task, self._plan, self._rank = assembly.task, plan, rank
        self._order = DataOrder(self._task.sizes["training"], seed=0)
        self._update = 0

    def update(self) -> None:
        """Make one update on this rank's micro-batch."""
        for places in self._plan.micro_batches(self._update, self._rank, ENDLESS):
            loss, tokens = self._task.loss(self._model, self._task.batch("training", self._order.at(places)))
            (loss / tokens).backward()  # type: ignore[no-untyped-call]  # torch gives it no types
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=False)
        self._update += 1


def race(
    transport: Transport,
    launch: Launch,
    names: Sequence[str],
    micro_batch: int,
    context: int,
    turns: int,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Train the same model with every contestant, in turns of a few updates each.

    Args:
        transport: the transport between all ranks.
        launch: how the ranks were started.
        names: names of strategies of the all-reduce family; `DDP` and `NOTHING` take part in addition.
        micro_batch: number of examples that a rank computes for an update.
        context: number of tokens in an example.
        turns: number of turns of each contestant, besides one to warm up.
        say: called with a line about the progress.

    Returns:
        A row for each contestant: `contestant`, `ranks`, `parameters`, `tokens_per_update`, `tokens_per_second` (over
        all ranks, the median of the turns; `_low` and `_high` are the quartiles), and `against`: how many times as
        fast it is as `DDP` and as `NOTHING`, the median over turns.

    Raises:
        ConfigurationError: a name is not that of an all-reduce, or that of one that cannot run here.
    """
    torch.set_num_threads(1)
    strategies = [all_reduce_named(name) for name in names]
    settings = Settings.of({**RACED, "context": context})
    assembly = Assembly(settings, together(transport, lambda: task_of(settings.data)))
    task, plan = assembly.task, BatchPlan(micro_batch, 1, transport.size)
    wires = Wires(transport, launch)
    torchs = all_reduce_named("allreduce")
    wires.on(torchs, torchs.collective)  # DistributedDataParallel runs on the process group that this makes
    contestants: dict[str, Contestant] = {
        name: OverStrategy(wires.on(strategy, strategy), assembly, plan)
        for name, strategy in zip(names, strategies, strict=True)
    }
    contestants[DDP] = OverTorch(transport.rank, assembly, plan)
    contestants[NOTHING] = OverStrategy(NoExchange(transport), assembly, plan)
    tokens = round(plan.global_batch * task.example_tokens)
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(turns + 1):
        say(f"turn {turn} of {turns} ..." if turn else "warming up ...")
        for name, contestant in contestants.items():
            contestant.update()
            transport.barrier()
            started = transport.now()
            for _ in range(UPDATES_A_TURN):
                contestant.update()
            slowest = max(all_gather(transport, transport.now() - started, "end its turn"))
            if turn:
                speeds[name].append(tokens * UPDATES_A_TURN / slowest)
    for contestant in contestants.values():
        contestant.close()
    wires.close()
    parameters = sum(parameter.numel() for parameter in assembly.model().parameters())
    rows: list[RaceRow] = [
        {
            "contestant": name,
            "ranks": transport.size,
            "parameters": parameters,
            "tokens_per_update": tokens,
            "tokens_per_second": float(np.median(values)),
            "tokens_per_second_low": float(np.quantile(values, 0.25)),
            "tokens_per_second_high": float(np.quantile(values, 0.75)),
            "against": {
                other: float(np.median(np.divide(values, speeds[other]))) for other in (DDP, NOTHING) if other != name
            },
        }
        for name, values in speeds.items()
    ]
    return [plain(row) for row in rows]
