"""The training loop: one for every strategy."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.parameters import FlatParameters
from bigbatch.comm.strategies.strategy import Squares, Strategy
from bigbatch.comm.update import Outcome
from bigbatch.comm.wires.recording import COMPUTE
from bigbatch.tasks.task import Task
from bigbatch.training.batches import TOKENS, BatchPlan
from bigbatch.training.compiling import CompiledParts
from bigbatch.training.compute_model import ComputeModel
from bigbatch.training.division import Batches
from bigbatch.training.evaluation import Examples
from bigbatch.training.loss_scale import loss_scale_for
from bigbatch.training.noise import NoiseScale, measurable, noise_scale
from bigbatch.training.order import DataOrder
from bigbatch.training.precision import DEFAULT_PRECISION, Precision
from bigbatch.training.pushes import MicroBatchSquares, Pushes
from bigbatch.training.whole_model import RandomStream, SharedBuffers, unchanged

Found = TypeVar("Found")


@dataclass(frozen=True)
class Update:
    """The measurements of one update: outcome, loss, times and traffic. Times and bytes are this worker's.

    Attributes:
        number: number of the update, from 1; a worker that came too late for an update skips its number.
        outcome: whether the update was applied, and if not, why.
        tokens: number of tokens behind it: of all workers if all contribute to the update, else of this worker.
        loss: mean loss over those tokens before the update, in nats.
        workers: number of workers whose tokens those are.
        total_tokens: tokens behind all updates that were applied so far, of all workers.
        seconds: from the start of the update to its end; what is done between updates is not timed.
        communication_seconds: seconds that the worker stood still while data moved: exposed communication.
        total_communication_seconds: seconds in which data moved, hidden behind backward or exposed.
        waiting_seconds: seconds that the worker stood still for slower workers.
        bytes_sent: bytes that the worker sent.
        gradient_square: the estimate of |G|² so far, see `bigbatch.training.noise`; NaN where that is not measured.
        gradient_variance: the estimate of tr Σ so far, of one example; NaN where that is not measured.
        padding: share of padding among the tokens that all workers compute for the batch; NaN if nothing is padded
            because all examples are as good as equally long.
        imbalance: tokens that the worker with the most computes for the batch, over the mean; NaN in the same case.
        loss_scale: S, by which losses were multiplied; NaN if there is no dynamic scale.
    """

    number: int
    outcome: Outcome
    tokens: int
    loss: float
    workers: int
    total_tokens: int
    seconds: float
    communication_seconds: float
    total_communication_seconds: float
    waiting_seconds: float
    bytes_sent: int
    gradient_square: float = math.nan
    gradient_variance: float = math.nan
    padding: float = math.nan
    imbalance: float = math.nan
    loss_scale: float = math.nan

    @property
    def applied(self) -> bool:
        """Whether the update has changed the parameters."""
        return self.outcome is Outcome.APPLIED

    @property
    def noise_scale(self) -> float:
        """The gradient noise scale so far, in examples; NaN if it is not known."""
        return noise_scale(self.gradient_square, self.gradient_variance)

    @property
    def compute_seconds(self) -> float:
        """Seconds of computing: neither communication nor waiting, but data, forward, backward and the optimiser."""
        return self.seconds - self.communication_seconds - self.waiting_seconds


def lengths_for(plan: BatchPlan, task: Task) -> NDArray[np.int64] | None:
    """The lengths of the training examples, by which they are divided; None if they are divided in order."""
    lengths = task.lengths("training")
    if lengths is None and plan.unit == TOKENS:
        return np.full((task.sizes["training"], 1), task.context, dtype=np.int64)
    return lengths


class Trainer:
    """Trains a module on a task over a strategy, whichever these are.

    Args:
        model: the worker's own copy of the model.
        task: the task, which provides examples and computes the loss.
        strategy: the strategy, which is started on `parameters` already.
        parameters: the parameters of the model.
        plan: how a batch is divided.
        examples: number of examples to see in all; the last batch may be short.
        seed: seed for the order of the examples, and for the random numbers that the model draws, of which each worker
            has a stream of its own.
        overlap: whether to push buckets while backward still runs.
        broadcast_buffers: whether every worker's model takes worker 0's buffers after each update.
        compute_model: how long computing takes, if the clock is a simulated one.
        precision: what the model computes in; its parameters have the precision of the weights already.
        measure_noise: whether to estimate the gradient noise scale, if each update has several samples of the gradient:
            over the workers if the strategy was started `with_squares`, else over this worker's own micro-batches.
            Examples of different lengths are then divided in their order.
        compiled: the parts of the model that are compiled, if any are.

    Attributes:
        device: the device that the model computes on.

    Raises:
        ConfigurationError: the noise can be measured over the workers only, but the strategy was started without
            `with_squares`.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        strategy: Strategy,
        parameters: FlatParameters,
        plan: BatchPlan,
        examples: int,
        seed: int = 0,
        *,
        overlap: bool = True,
        broadcast_buffers: bool = True,
        compute_model: ComputeModel | None = None,
        precision: Precision = DEFAULT_PRECISION,
        measure_noise: bool = False,
        compiled: CompiledParts | None = None,
    ) -> None:
        self.model = model
        self.compiled = compiled
        self.task = task
        self.strategy = strategy
        self.parameters = parameters
        self.plan = plan
        self.examples = examples
        self._position: int | None = None
        order = DataOrder(task.sizes["training"], seed)
        # Micro-batches of similar lengths are no random draws, which the noise scale compares.
        self.batches = Batches(plan, order, examples, None if measure_noise else lengths_for(plan, task))
        self.device = parameters.values.device
        worker = -1 if strategy.worker is None else strategy.worker
        self._random = RandomStream((seed, worker + 1), self.device)
        at_once = plan.examples_at_once(task.context)
        self._examples = Examples(task, model, self.device, at_once, RandomStream((seed, 0), self.device))
        self._buffers = SharedBuffers(strategy, broadcast=broadcast_buffers)
        self._compute_model = compute_model or ComputeModel()
        self._precision = precision
        tokens = plan.micro_batch_tokens(task.example_tokens, task.source_tokens)
        self._scale = loss_scale_for(precision, tokens, alike=strategy.in_step())
        self._noise: NoiseScale | None = None
        self._micro_batch_squares: MicroBatchSquares | None = None
        if measure_noise and measurable(plan.workers, plan.accumulation, tells_squares=strategy.tells_squares):
            if not strategy.with_squares and plan.accumulation == 1:
                raise ConfigurationError(
                    "The noise scale is to be measured over the workers' gradients, but the strategy was started "
                    "without their squares: call start(..., with_squares=True)."
                )
            self._noise = NoiseScale()
            if not strategy.with_squares:
                self._micro_batch_squares = MicroBatchSquares(parameters)
        self._pushes = Pushes(strategy, self._micro_batch_squares, self._scale, overlap=overlap)
        if overlap and compute_model is None and len(strategy.buckets) > 1:
            self._pushes.watch()

    @property
    def worker(self) -> int:
        """This worker's number, from 0."""
        assert self.strategy.worker is not None, "only workers train"
        return self.strategy.worker

    @property
    def position(self) -> int:
        """The number, from 0, of the batch that this worker computes its share of next."""
        return self.strategy.next_update if self._position is None else self._position

    @property
    def ended(self) -> bool:
        """Whether this worker has made all its updates."""
        return self.position >= self.batches.updates

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that this worker needs to resume in another process as if it had never stopped.

        Call it between two updates. The state includes the strategy's, which holds the parameters. A rank that only
        serves has no trainer and saves the state of its strategy instead.
        """
        return {
            "position": self.position,
            "strategy": self.strategy.state_dict(),
            "noise": None if self._noise is None else self._noise.state_dict(),
            "random": self._random.state_dict(),
            "loss scale": self._scale.state_dict(),
            "fixed": {name: tensor.clone() for name, tensor in self.parameters.module.fixed},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned on the same rank; call it before the first update."""
        self._position = state["position"]
        for name, tensor in self.parameters.module.fixed:
            tensor.copy_(state["fixed"][name])
        self.strategy.load_state_dict(state["strategy"])
        if self._noise is not None and state["noise"] is not None:
            self._noise.load_state_dict(state["noise"])
        self._random.load_state_dict(state["random"])
        self._scale.load_state_dict(state["loss scale"])

    def updates(self) -> Iterator[Update]:
        """Makes one update per iteration until all are made; what the caller does in between is not timed.

        Raises:
            ConfigurationError: what torch wrote is not what would be trained, and cannot be put right; names the
                parameter. All workers of an all-reduce raise it. Or the gradients are not finite whatever the scale.
        """
        strategy, transport = self.strategy, self.strategy.transport
        while not self.ended:
            number, loss_scale = self.position, self._scale.value
            started, sent = transport.now(), transport.bytes_sent
            communicated, waited = strategy.communication_seconds, strategy.waiting_seconds
            communicated_in_all = strategy.total_communication_seconds
            with transport.update(number + 1):
                tokens, loss = self._accumulate(number)
                self.parameters.check()
                self._buffers.check()
                report = strategy.step(tokens, loss)
                self.parameters.refuse()
                strategy.pull()
                self._buffers.share()
            self._measure(number, tokens, report.squares)
            self._scale.follow(report.outcome)
            self._position = report.next_update
            padding, imbalance = self.batches.waste(number)
            yield Update(
                number=self.position,
                outcome=report.outcome,
                tokens=int(report.weight),
                loss=report.loss / report.weight if report.weight else float("nan"),
                workers=report.workers,
                total_tokens=int(report.total_weight),
                seconds=transport.now() - started,
                communication_seconds=strategy.communication_seconds - communicated,
                total_communication_seconds=strategy.total_communication_seconds - communicated_in_all,
                waiting_seconds=strategy.waiting_seconds - waited,
                bytes_sent=transport.bytes_sent - sent,
                gradient_square=self._noise.gradient_square if self._noise is not None else math.nan,
                gradient_variance=self._noise.gradient_variance if self._noise is not None else math.nan,
                loss_scale=loss_scale,
                padding=padding,
                imbalance=imbalance,
            )

    def _measure(self, update: int, tokens: int, squares: Squares | None) -> None:
        """Let an update count for the noise scale, if as many examples are behind every draw."""
        if self._noise is None:
            return
        plan = self.plan
        share = plan.micro_batch * plan.accumulation
        if self._micro_batch_squares is not None:
            if sum(map(len, self.batches.micro_batches(update, self.worker))) == share:
                self._noise.add(self._micro_batch_squares.of(tokens), plan.micro_batch, share)
        elif squares is not None and (update + 1) * plan.global_batch <= self.examples:
            self._noise.add(squares, share, plan.global_batch)

    def warm_up(self, precision: Precision | None = None) -> None:
        """Computes one micro-batch and discards it, so that start-up costs do not slow the first update.

        It leaves no trace: neither in the model's buffers, nor in the random numbers that are drawn later.

        Args:
            precision: what it is computed in, for a comparison; None for what is trained in.
        """
        buffers = list(self.model.buffers())
        for examples in self.batches.micro_batches(0, self.worker)[:1]:
            self.parameters.views.begin()
            with unchanged(buffers), self._random.kept(), self._random:
                loss, _ = self._loss(examples, precision or self._precision)
                self._pushes.begin()
                self._backward(loss)
                self._pushes.end()

    def _accumulate(self, update: int) -> tuple[int, float]:
        """Add up and push the gradients of this worker's micro-batches: the tokens behind them, and the summed loss."""
        self.parameters.views.begin()
        if self._micro_batch_squares is not None:
            self._micro_batch_squares.begin()
        tokens, losses = 0, [torch.zeros((), device=self.device)]
        micro_batches = self.batches.micro_batches(update, self.worker)
        span, spend, backward = self.strategy.transport.span, self.strategy.transport.spend, 0.0
        self._compute_model.begin()
        for number, examples in enumerate(micro_batches, start=1):
            spend(backward, "backward")
            # No longer than the forward: in a simulation other ranks of this process go on while this one waits.
            with span(COMPUTE, "forward"), self._random:
                loss, counted = self._loss(examples, self._precision)
            if number == len(micro_batches):
                self._pushes.begin()
            with span(COMPUTE, "backward"):
                self._backward(loss)
                if self._micro_batch_squares is not None:
                    self._micro_batch_squares.end_draw(self._scale.factor)
            spend(self._compute_model.forward(counted), "forward")
            backward = self._compute_model.backward(counted)
            tokens += counted
            losses.append(loss.detach())
        self._pushes.finish(backward)
        return tokens, float(torch.stack(losses).double().sum())

    def _loss(self, examples: NDArray[np.int64], precision: Precision) -> tuple[Tensor, int]:
        """Compute the summed loss on the training examples with these numbers, and their tokens."""
        with precision.autocast(self.device):
            return self._examples.loss("training", examples)

    def _backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss, multiplied by the scale, to those in the buffer."""
        with self.parameters.views.adding():
            loss.backward(torch.full_like(loss, self._scale.factor))  # type: ignore[no-untyped-call]  # torch has none

    def validate(self, examples: int | None = None) -> float | None:
        """Measures the mean loss per token on held-out examples, in nats, without changing anything about the training.

        If the strategy keeps the workers in step, all of them call it after the same updates and share the examples.
        Otherwise worker 0 alone validates the newest parameters while training continues, and the others do nothing.
        Once a worker has `ended`, it waits for the others, and all validate the same parameters together.

        Args:
            examples: number of held-out examples to use, the first ones; None for all.

        Returns:
            The loss, NaN if the examples have no token; None on workers that did not validate.
        """
        sums = self._look(partial(self._examples.validated, examples), self.strategy.total)
        if sums is None:
            return None
        loss, tokens = sums.tolist()
        return float(loss / tokens) if tokens else math.nan

    def measure(self, examples: int | None = None) -> list[Any] | None:
        """Measures what the task's metrics are made of on held-out examples, and changes nothing about the training.

        Who measures is as for `validate`.

        Args:
            examples: number of held-out examples to use, the first ones; None for all.

        Returns:
            What `Task.measure` has found for each example, in order; None on workers that did not measure.
        """
        found = self._look(partial(self._examples.measured, examples), self._gathered)
        return None if found is None else [entry for _, entry in sorted(found, key=lambda pair: pair[0])]

    def weights(self) -> dict[str, Tensor] | None:
        """Copies the state of the newest model to the CPU's memory; all workers call it together, once they have ended.

        Returns:
            The state by name, as `torch.nn.Module.state_dict` has it; None on all workers but worker 0.
        """
        with self.strategy.newest(together=True), self._buffers.looking(together=True):
            if self.worker != 0:
                return None
            return {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}

    def _look(self, evaluate: Callable[[int, int], Found], join: Callable[[Found], Found]) -> Found | None:
        """Look at the newest parameters: all workers together, if they can, or worker 0 alone.

        Args:
            evaluate: called with the number of a share of the examples, and the number of shares.
            join: makes of every worker's share what is found on all.
        """
        strategy = self.strategy
        together = strategy.in_step() or self.ended
        if not together and self.worker != 0:
            return None
        with strategy.newest(together=together), self._buffers.looking(together=together):
            if not together:
                return evaluate(0, 1)
            everything = strategy.transport.once(lambda: evaluate(0, 1))
            return everything if everything is not None else join(evaluate(self.worker, self.plan.workers))

    def _gathered(self, found: list[tuple[int, Any]]) -> list[tuple[int, Any]]:
        """What all workers have measured."""
        written = torch.frombuffer(bytearray(json.dumps(found).encode()), dtype=torch.uint8)
        everyones = self.strategy.all_gather(written, alike=False)
        return list(chain.from_iterable(json.loads(part.numpy().tobytes()) for part in everyones))
