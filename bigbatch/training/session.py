"""Sessions: your own training loop over any strategy, with a few extra lines.

    session = attach(model, torch.optim.AdamW, lr=1e-3, strategy="ring")
    for step, batch in enumerate(session.shard(loader)):
        loss, tokens = summed_loss(model, batch)
        session.backward(loss, tokens, last=(step + 1) % 4 == 0)

Every rank runs this loop; `Session.shard` says what it asks of the loader.
"""

import atexit
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from itertools import islice
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bigbatch.comm.errors import ConfigurationError, DeadlockError, quoted
from bigbatch.comm.kinds import SECONDS, Flag, Name, Number, Whole, checked
from bigbatch.comm.parameters import FlatParameters
from bigbatch.comm.precisions import BYTES, FP32
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.comm.strategies.strategy import StepReport, Strategy
from bigbatch.comm.transports.launch import detect
from bigbatch.comm.wires import DEFAULT_DEADLINE
from bigbatch.comm.wires.format import TOKENS_A_WORKER
from bigbatch.comm.wires.life import now_doing
from bigbatch.comm.wires.transport import Transport, current_transport
from bigbatch.optimizers.standard import factory_of
from bigbatch.tasks.loss import checked_loss
from bigbatch.training.loss_scale import LossScale, loss_scale_for
from bigbatch.training.precision import DEFAULT_PRECISION, PRECISIONS, Precision
from bigbatch.training.pushes import Pushes
from bigbatch.training.whole_model import SharedBuffers

Item = TypeVar("Item")

OWN_WEIGHTS = tuple(name for name, precision in PRECISIONS.items() if precision.weights == FP32)
"""Names of the precisions that leave a model's weights as they are."""


def attach(
    model: nn.Module,
    optimizer: Callable[..., Optimizer],
    *,
    strategy: str = "ring",
    options: Mapping[str, Any] | None = None,
    transport: Transport | None = None,
    overlap: bool = True,
    broadcast_buffers: bool = True,
    precision: str = FP32,
    wire: str = FP32,
    expected_tokens: float | None = None,
    accumulation: int = 1,
    deadline: float = DEFAULT_DEADLINE,
    **settings: Any,
) -> "Session":
    """Starts a session, which trains a model over a strategy; every rank of the job calls this with the same model.

    The model's parameters become views of one flat buffer, and take rank 0's values. On a rank that only serves, this
    call serves, and returns when all workers have ended their sessions.

    Args:
        model: the model, which is on its device already.
        optimizer: a class such as `torch.optim.AdamW`, or a function of parameters and `settings`.
        strategy: the strategy's name: "ring", "ps:async", "my_file.py:MyStrategy".
        options: the strategy's own options by name.
        transport: the transport between all ranks; None for the ranks that mpirun, torchrun or srun started, or for
            those of the `Cluster` in which this is called.
        overlap: whether buckets are sent while backward still runs.
        broadcast_buffers: whether every worker's model takes worker 0's buffers, such as the running means of norms,
            after each update; workers that are not in step keep their own.
        precision: what the model computes in within `Session.autocast`: "fp32", "bf16" or "fp16".
        wire: the precision in which gradients are sent, and parameters by servers: "fp32", "bf16" or "fp16".
        expected_tokens: about how many tokens of all workers are behind an update, for fp16, which has no room for
            sums over tokens: what is computed or sent in it is divided by about that. It need not be exact: by default
            1024 for each worker, which suits 64 to a million if no element of the mean gradient is above 60. A larger
            element than that is sent as infinite, and its update skipped on all ranks.
        accumulation: number of micro-batches, which are calls of `Session.backward`, that a worker adds up before an
            update, for fp16 alone: each is computed with a scale for its own part of the expected tokens.
        deadline: seconds after which a wait gives up.
        settings: the keyword arguments that the optimiser is called with, such as `lr=1e-3`.

    Raises:
        ConfigurationError: there is no such strategy, it cannot train this model or send its gradients in that
            precision, or the optimiser does not take its settings.
        LaunchError: there are too few ranks.
        MismatchError: on every rank, if the ranks have different models, or send gradients in different formats.
    """
    wire = checked("The wire", Name(lambda: BYTES), wire)
    if expected_tokens is not None:
        expected_tokens = checked("The expected tokens", Number(above=0), expected_tokens)
    accumulation = checked("The accumulation", Whole(), accumulation)
    deadline = checked("The deadline", SECONDS, deadline)
    overlap = checked("overlap", Flag(), overlap)
    broadcast_buffers = checked("broadcast_buffers", Flag(), broadcast_buffers)
    computes = PRECISIONS[checked("The precision", Name(lambda: OWN_WEIGHTS), precision)]
    kind: type[Strategy] = STRATEGIES.load(strategy).configured(options or {})
    make = factory_of(optimizer, **settings)
    parameters = FlatParameters(model)
    if transport is not None and not isinstance(transport, Transport):
        raise ConfigurationError(
            f"The transport cannot be {quoted(transport)}: give that of a rank, as Cluster.run passes it, or None."
        )
    wires = current_transport() if transport is None else transport
    own = wires is None
    if wires is None:
        wires = kind.connect(detect(), str(parameters.values.device), deadline)
    made = kind(wires)
    try:
        made.start(parameters, make, wire=wire, expected_tokens=expected_tokens)
    except Exception:
        made.close()  # its memory may hold the model's gradients by now
        raise
    close = wires.close if own else lambda: None
    tokens = TOKENS_A_WORKER if expected_tokens is None else expected_tokens / made.workers
    scale = loss_scale_for(computes, tokens / accumulation, alike=made.in_step())
    session = Session(
        made,
        parameters,
        overlap=overlap,
        broadcast_buffers=broadcast_buffers,
        close=close,
        precision=computes,
        scale=scale,
    )
    if own and wires.size > 1:
        atexit.register(_abort_after_an_error, weakref.ref(session))
    now_doing("training in a loop of its own")
    made.enter()
    return session


class Session:
    """Connects your own training loop to a strategy; `attach` makes one.

    A session ends when `close` is called, when its `with` block ends without an error, or when it is garbage-collected.

    Args:
        strategy: the strategy, which is started already.
        parameters: the parameters of the model.
        overlap: whether buckets are sent while backward still runs.
        broadcast_buffers: whether every worker's model takes worker 0's buffers after each update.
        close: closes the transport when the session ends.
        precision: what the model computes in within `autocast`.
        scale: what losses are multiplied by before backward; None to leave them as they are.

    Attributes:
        strategy: the strategy that makes the updates.
        worker: this worker's number, or None on a rank that only serves.
        workers: how many train.
        report: what became of the last update, which `shard` may have made; None before the first.
    """

    def __init__(
        self,
        strategy: Strategy,
        parameters: FlatParameters,
        *,
        overlap: bool,
        broadcast_buffers: bool,
        close: Callable[[], None],
        precision: Precision = DEFAULT_PRECISION,
        scale: LossScale | None = None,
    ) -> None:
        self.strategy = strategy
        self.worker = strategy.worker
        self.workers = strategy.workers
        self._parameters = parameters
        self._buffers = SharedBuffers(strategy, broadcast=broadcast_buffers)
        self._precision, self._scale = precision, scale or LossScale()
        self._pushes = Pushes(strategy, scale=self._scale, overlap=overlap)
        if overlap and len(strategy.buckets) > 1:
            self._pushes.watch()
        self.report: StepReport | None = None
        self._tokens, self._loss = 0, 0.0
        self._pending = self._short = False
        self._end = weakref.finalize(self, _end_uncalled, strategy, close)

    def shard(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Yields this worker's share of the batches: one of every `workers` batches in a row, by the worker's number.

        All workers must go through the same batches in the same order, and through all of them: a loader that shuffles
        needs a seed that is the same on every rank. When they are through, whatever gradients are left make one more
        update, so that no batch is lost; that is also when the update of a last round is made in which some workers
        have no batch. So count micro-batches from each call of `shard` anew, as `enumerate` does.

        Args:
            batches: a data loader, or any other iterable.
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

    def autocast(self) -> AbstractContextManager[None]:
        """Within the context the model's forward computes in the session's precision; `backward` stays outside."""
        return self._precision.autocast(self._parameters.values.device)

    def backward(self, loss: Tensor, tokens: int, *, last: bool = True) -> StepReport | None:
        """Run backward; if it is the last one of an update, send the gradients and make the update.

        In fp16 the loss is multiplied by a scale, and gradients are divided by it: leave torch's GradScaler out.

        Args:
            loss: the loss on a batch, summed over its tokens, in nats; never their mean.
            tokens: number of tokens that the loss is summed over.
            last: whether to make the update now; otherwise the gradients are added to the next ones.

        Returns:
            What became of the update; None if none was made yet: in a last round in which some workers have no batch,
            `shard` makes it. See `report`.

        Raises:
            ConfigurationError: the session has ended; the loss is none, or the tokens no count; or what torch wrote is
                not what would be trained, and cannot be put right.
        """
        if not self._end.alive:
            raise ConfigurationError("The session has ended: call attach again to go on.")
        loss, tokens = checked_loss("The loss", (loss, tokens))
        now = last and not self._short
        if now:
            self._pushes.begin()
        self._pending = True  # even if backward fails: what is wrong with the update is told when it is made
        with self._parameters.views.adding():
            loss.backward(torch.full_like(loss, self._scale.factor))  # type: ignore[no-untyped-call]  # torch has none
        self._tokens += tokens
        self._loss += float(loss.detach())
        return self._update() if now else None

    def _update(self) -> StepReport:
        """Push what backward has not pushed, make the update, and begin to add up anew."""
        self._pushes.finish()
        self._parameters.check()
        self._buffers.check()
        self.report = report = self.strategy.step(self._tokens, self._loss)
        self._scale.follow(report.outcome)
        self._parameters.refuse()
        self.strategy.pull()
        self._buffers.share()
        self._parameters.views.begin()
        self._tokens, self._loss, self._pending = 0, 0.0, False
        return report

    def close(self) -> None:
        """End this rank's session; all ranks call it together. The model keeps its parameters, not its gradients."""
        if ended := self._end.detach():
            _, _, (strategy, close), _ = ended
            _end(strategy, close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:  # else the others would wait for a rank that has failed
            self.close()


def _abort_after_an_error(reference: weakref.ref[Session]) -> None:
    """End the whole job if an error ends this process: the others would wait for it."""
    session = reference()
    if session is not None and session._end.alive and getattr(sys, "last_value", None) is not None:
        session.strategy.transport.abort(1)


def _end_uncalled(strategy: Strategy, close: Callable[[], None]) -> None:
    """Ends a session that nobody has closed; if its simulation has ended before, nobody is left to be told."""
    with suppress(DeadlockError):
        _end(strategy, close)


def _end(strategy: Strategy, close: Callable[[], None]) -> None:
    strategy.leave()
    strategy.close()
    close()
