"""Pushing buckets while backward still runs, and measuring the gradients before they are pushed."""

from collections import Counter
from functools import partial

import torch
from torch import Tensor, nn

from bigbatch.comm.parameters import Bucket, FlatParameters, square, total
from bigbatch.comm.strategies.strategy import Squares, Strategy
from bigbatch.training.loss_scale import LossScale


class MicroBatchSquares:
    """Squared norms of the gradients of one worker's update: of each micro-batch's gradient, and of their mean.

    Each micro-batch's summed gradient is divided by the mean number of tokens in a micro-batch, not by its own: the
    mean gradient of a few examples is far noisier where these happen to be short, so that its square would not fall
    with the number of examples as `bigbatch.training.noise` takes it to.

    A micro-batch's gradients are kept as backward computes them, before they are added to those of earlier
    micro-batches, and released when its backward has finished. Until then the gradients are in memory twice.

    Args:
        parameters: the parameters of the model.
    """

    def __init__(self, parameters: FlatParameters) -> None:
        named = parameters.named_parameters()
        self._caught: list[list[Tensor]] = [[] for _ in named]
        self.begin()
        for (_, parameter), caught in zip(named, self._caught, strict=True):
            # In the midst of backward any code of ours, or of torch's, takes several times as long as after it.
            parameter.register_hook(caught.append)  # type: ignore[no-untyped-call]  # torch gives it no types

    def begin(self) -> None:
        """Starts a new update and forgets the last one."""
        self._forget()
        self._each: list[float] = []
        self._sum: list[Tensor] = []

    def end_draw(self, factor: float = 1.0) -> None:
        """Adds the square of one micro-batch's summed gradient, after its backward has finished.

        Args:
            factor: what the loss was multiplied by.
        """
        self._each.append(total([square(_whole(goes)) for goes in self._caught if goes]) / factor**2)
        self._forget()

    def _forget(self) -> None:
        for goes in self._caught:
            goes.clear()

    def complete(self, gradients: Tensor) -> None:
        """Adds the square of a slice of the gradients, (elements,), which is summed over all micro-batches."""
        self._sum.append(square(gradients))

    def of(self, tokens: int) -> Squares:
        """Returns the squares of an update of `tokens` tokens, which must have at least one micro-batch."""
        draws = len(self._each)
        return Squares(sum(self._each) / draws / max(tokens / draws, 1) ** 2, total(self._sum) / max(tokens, 1) ** 2)


def _whole(goes: list[Tensor]) -> Tensor:
    """Adds up one parameter's gradient, which backward may have computed in several goes; see `Pushes`."""
    whole = goes[0] if len(goes) == 1 else torch.stack([go.to_dense() for go in goes]).sum(0)
    return whole.to_dense() if whole.is_sparse else whole


class Pushes:
    """Pushes the buckets of one update in order: each as soon as backward has finished it, the rest at the end.

    Before anybody looks at a bucket, its gradients are divided by what losses were multiplied by.

    A gradient may be completed in several goes: a block that is used three times under reentrant checkpointing gets
    three. So the first backward is watched only, to see how many goes each parameter's gradient takes.

    Args:
        strategy: the strategy that sends the buckets; it must be started.
        squares: measures every bucket before it is pushed; None if nothing is measured.
        scale: what losses are multiplied by before backward.
        overlap: whether buckets move while a simulated backward still runs.
    """

    def __init__(
        self,
        strategy: Strategy,
        squares: MicroBatchSquares | None = None,
        scale: LossScale | None = None,
        *,
        overlap: bool = True,
    ) -> None:
        self._strategy = strategy
        self._parameters = strategy.parameters
        self._squares = squares
        self._scale = scale or LossScale()
        self._overlap = overlap
        self._expected: dict[nn.Parameter, int] = {}
        self._goes: Counter[nn.Parameter] = Counter()
        self._left: list[int] = []
        self._next = 0
        self._watching = False

    def watch(self) -> None:
        """Registers hooks, so that torch tells when backward has finished the gradient of a parameter."""
        for bucket in self._strategy.buckets:
            for parameter in bucket.parameters:
                added = partial(self._added, bucket.index)
                parameter.register_post_accumulate_grad_hook(added)  # type: ignore[no-untyped-call]  # torch gives it no types

    def begin(self) -> None:
        """Starts pushing during backward; called before the last micro-batch, which completes the gradients."""
        self._left = [len(bucket.parameters) for bucket in self._strategy.buckets]
        self._goes.clear()
        self._watching = True

    def end(self) -> None:
        """Ends what `begin` started, because backward has finished; after the first, `begin` knows what to wait for."""
        self._watching = False
        if self._goes and not self._expected:
            self._expected = dict(self._goes)

    def finish(self, backward: float = 0.0) -> None:
        """Push the buckets that were not pushed during backward; called when backward has finished.

        Args:
            backward: seconds of backward that a simulated clock must still be charged for. Each bucket is ready after
                its share of them.
        """
        self.end()
        spend = self._strategy.transport.spend
        if not self._overlap:
            spend(backward, "backward")
            backward = 0.0
        elements = sum(len(bucket.gradients) for bucket in self._strategy.buckets)
        for bucket in self._strategy.buckets[self._next :]:
            spend(backward * len(bucket.gradients) / elements, "backward")
            self._push(bucket)
        self._next = 0

    def _added(self, index: int, parameter: nn.Parameter) -> None:
        """Torch has added to the gradient of a parameter in the bucket `index`."""
        if not self._watching:
            return
        self._goes[parameter] += 1
        if self._goes[parameter] == self._expected.get(parameter):
            self._left[index] -= 1
        # In order even if a later one is ready before: all workers must push alike.
        while self._next < len(self._left) and self._left[self._next] == 0:
            self._push(self._strategy.buckets[self._next])
            self._next += 1

    def _push(self, bucket: Bucket) -> None:
        self._parameters.complete(bucket)
        if (factor := self._scale.factor) != 1:
            bucket.gradients.mul_(1 / factor)
        if self._squares is not None:
            self._squares.complete(bucket.gradients)
        self._strategy.push(bucket)
        self._parameters.sent(bucket)
