"""Sessions: a training loop of one's own over any strategy, in a few lines more than without.

session = attach(model, torch.optim.AdamW, lr=1e-3, strategy="ring")
for step, batch in enumerate(session.shard(loader)):
loss, tokens = summed_loss(model, batch)
session.backward(loss, tokens, last=(step + 1) % 4 == 0)
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from types import TracebackType
from typing import Any, Self, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from bigbatch.comm.parameters import FlatParameters
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.comm.strategies.strategy import StepReport, Strategy
from bigbatch.comm.transports.launch import detect
from bigbatch.comm.wires import DEFAULT_DEADLINE
from bigbatch.comm.wires.transport import Transport, current_transport
from bigbatch.optimizers.standard import factory_of
from bigbatch.training.pushes import Pushes

Item = TypeVar("Item")


def attach(
    model: nn.Module,
    optimizer: Callable[..., Optimizer],
    *,
    strategy: str = "ring",
    options: Mapping[str, Any] | None = None,
    transport: Transport | None = None,
    overlap: bool = True,
    deadline: float = DEFAULT_DEADLINE,
    **settings: Any,
) -> "Session":
    """Make a model's updates over a strategy; every rank of the job calls it, with the same model.

    The model's parameters become views of one flat buffer, and take rank 0's values. On a rank that only serves, this
    call serves, and returns when all workers have ended their sessions.

    Args:
        model: on its device already.
        optimizer: a class such as `torch.optim.AdamW`, or a function of parameters and `settings`.
        strategy: the strategy's name: "ring", "ps:async", "my_file.py:MyStrategy".
        options: the strategy's own options by name.
        transport: all ranks; None for those that mpirun, torchrun or srun started, or for the ranks of the `Cluster`
            in which this is called.
        overlap: whether buckets are sent while backward still runs.
        deadline: seconds after which a wait gives up.
        settings: what the optimiser is called with besides the parameters: `lr=1e-3`.

    Raises:
        ConfigurationError: there is no such strategy, or it cannot take this model.
        LaunchError: there are too few ranks.
        MismatchError: on every rank, if the ranks have different models.
    """
    kind: type[Strategy] = STRATEGIES.load(strategy).configured(options or {})
    parameters = FlatParameters(model)
    wires = transport or current_transport()
    own = wires is None
    if wires is None:
        wires = kind.connect(detect(), str(parameters.values.device), deadline)
    made = kind(wires)
    made.start(parameters, factory_of(optimizer, **settings))
    session = Session(made, parameters, overlap=overlap, close=wires.close if own else lambda: None)
    made.enter()
    return session


class Session:
    """A training loop's end of a strategy; `attach` makes one.

    It ends with `close`, as a context, or by itself when nobody holds it any more.

    Args:
        strategy: started.
        parameters: the model's.
        overlap: whether buckets are sent while backward still runs.
        close: gives the wires back.

    Attributes:
        strategy: that makes the updates.
        worker: this worker's number, or None on a rank that only serves.
        workers: how many train.
    """

    def __init__(
        self, strategy: Strategy, parameters: FlatParameters, *, overlap: bool, close: Callable[[], None]
    ) -> None:
        self.strategy = strategy
        self.worker = strategy.worker
        self.workers = strategy.workers
        self._parameters = parameters
        self._pushes = Pushes(strategy, overlap=overlap)
        if overlap and len(strategy.buckets) > 1:
            self._pushes.watch()
        self._tokens, self._loss = 0, 0.0
        self._pending = self._short = False
        self._end = weakref.finalize(self, _end, strategy, close)

    def shard(self, batches: Iterable[Item]) -> Iterator[Item]:
        """This worker's share of some batches: of every `workers` that follow each other, the one with its number.

        All workers must go through the same batches in the same order. When they are through, whatever gradients are
        left make one more update, so that no batch is lost; that is also when the update of a last round is made in
        which some workers have no batch.

        Args:
            batches: a data loader, or anything else to iterate over.
        """
        if self.worker is None:
            return
        remaining = iter(batches)
        while round_ := list(islice(remaining, self.workers)):
            self._short = len(round_) < self.workers
            if self.worker < len(round_):
                yield round_[self.worker]
        if self._pending or self._short:
            self._short = False
            self._update()

    def backward(self, loss: Tensor, tokens: int, *, last: bool = True) -> StepReport | None:
        """Run backward, and if it is the update's last, send the gradients and make the update.

        Args:
            loss: the loss on a batch, summed over its tokens, in nats; never their mean.
            tokens: how many those are.
            last: whether the update is made now; else the gradients are added up with the next ones.

        Returns:
            What became of the update; None if none was made yet.
        """
        now = last and not self._short
        if now:
            self._pushes.begin()
        loss.backward()  # type: ignore[no-untyped-call]
        self._tokens += tokens
        self._loss += float(loss.detach())
        self._pending = True
        return self._update() if now else None

    def _update(self) -> StepReport:
        """Push what backward has not pushed, make the update, and begin to add up anew."""
        self._pushes.finish()
        report = self.strategy.step(self._tokens, self._loss)
        self.strategy.pull()
        self._parameters.gradients.zero_()
        self._tokens, self._loss, self._pending = 0, 0.0, False
        return report

    def close(self) -> None:
        """End this rank's part; all ranks together. The model keeps its parameters, and has no gradients any more."""
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:  # else the others would wait for a rank that has failed
            self.close()


def _end(strategy: Strategy, close: Callable[[], None]) -> None:
    strategy.leave()
    strategy.close()
    close()
