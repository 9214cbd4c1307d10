"""Pushing buckets while backward still runs, and looking at the gradients on their way."""

from functools import partial

from torch import Tensor

from bigbatch.comm.parameters import Bucket, FlatParameters, square, total
from bigbatch.comm.strategies.strategy import Squares, Strategy


class MicroBatchSquares:
    """Squares of the gradients that one worker computes for an update: of each micro-batch's, and of their mean.

    A micro-batch's gradients are caught as backward hands them over, before they are added to those of the
    micro-batches before, and let go when it is through: until then there are as many gradients again in memory.

    Args:
        parameters: the model's.
    """

    def __init__(self, parameters: FlatParameters) -> None:
        self._caught: list[Tensor] = []
        self.begin()
        for _, parameter in parameters.named_parameters():
            # In the midst of backward any code of ours, or of torch's, takes several times as long as after it.
            parameter.register_hook(self._caught.append)  # type: ignore[no-untyped-call]

    def begin(self) -> None:
        """An update begins: forget the last one."""
        self._caught.clear()
        self._each: list[float] = []
        self._sum: list[Tensor] = []

    def end_draw(self, tokens: int) -> None:
        """Backward is through with a micro-batch of so many tokens."""
        self._each.append(total([square(gradient) for gradient in self._caught]) / max(tokens, 1) ** 2)
        self._caught.clear()

    def complete(self, gradients: Tensor) -> None:
        """A slice of the gradients, (elements,), holds the sum over all micro-batches, and is about to be pushed."""
        self._sum.append(square(gradients))

    def of(self, tokens: int) -> Squares:
        """What came out, of an update with micro-batches and so many tokens."""
        return Squares(sum(self._each) / len(self._each), total(self._sum) / max(tokens, 1) ** 2)


class Pushes:
    """Pushes the buckets of one update, in order: each as soon as backward is through with it, the rest at the end.

    Args:
        strategy: started.
        squares: looks at every bucket before it is pushed, if anybody does.
        overlap: whether a simulated backward goes on while buckets move.
    """

    def __init__(self, strategy: Strategy, squares: MicroBatchSquares | None = None, *, overlap: bool = True) -> None:
        self._strategy = strategy
        self._squares = squares
        self._overlap = overlap
        self._left = [0] * len(strategy.buckets)
        self._next = 0
        self._watching = False

    def watch(self) -> None:
        """From now on, look at backward: torch calls us whenever the gradient of a parameter is complete."""
        for bucket in self._strategy.buckets:
            for parameter in bucket.parameters:
                completed = partial(self._completed, bucket.index)
                parameter.register_post_accumulate_grad_hook(completed)  # type: ignore[no-untyped-call]

    def begin(self) -> None:
        """The last micro-batch's backward comes next: only now are gradients complete when it is through with them."""
        self._left = [len(bucket.parameters) for bucket in self._strategy.buckets]
        self._watching = True

    def finish(self, backward: float = 0.0) -> None:
        """Backward is through: push what it did not.

        Args:
            backward: seconds that a simulated clock has still to be charged for it; a bucket is ready after its share.
        """
        self._watching = False
        spend = self._strategy.transport.spend
        if not self._overlap:
            spend(backward, "backward")
            backward = 0.0
        elements = sum(len(bucket.gradients) for bucket in self._strategy.buckets)
        for bucket in self._strategy.buckets[self._next :]:
            spend(backward * len(bucket.gradients) / elements, "backward")
            self._push(bucket)
        self._next = 0

    def _completed(self, index: int, _: Tensor) -> None:
        if not self._watching:
            return
        self._left[index] -= 1
        # In order even if a later one is ready before: all workers must push alike.
        while self._next < len(self._left) and self._left[self._next] == 0:
            self._push(self._strategy.buckets[self._next])
            self._next += 1

    def _push(self, bucket: Bucket) -> None:
        if self._squares is not None:
            self._squares.complete(bucket.gradients)
        self._strategy.push(bucket)
