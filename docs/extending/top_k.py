"""Top-k: of each bucket, a worker sends its largest elements only, and keeps the rest for later.

bigbatch-exp docs/extending/top_k.py:TopK -n 4 --ratio 0.01
"""

from dataclasses import dataclass

from bigbatch.comm.kinds import Number
from bigbatch.comm.options import Options, option
from bigbatch.comm.parameters import Bucket
from bigbatch.comm.strategies.all_reduce import AllReduce


@dataclass(frozen=True)
class Sparsity(Options):
    """How much of a gradient is sent."""

    ratio: float = option(0.01, Number(above=0, most=1), "Share of a bucket's elements that a worker sends.")


class TopK(AllReduce):
    """Sums the k elements of each worker's bucket that are largest in size; what is not sent is added the next time.

    Cost for n elements on p workers, k = rn: two all-gathers of k elements each, of places and of values.

    Source: Aji and Heafield, "Sparse communication for distributed gradient descent" (2017), section 3.
    """

    options = Sparsity()
    exact = False

    def reduce(self, bucket: Bucket) -> None:
        """Exchange the largest elements of what this worker has not sent yet."""
        unsent = self.kept("unsent", bucket)
        unsent.add_(bucket.gradients)
        places = unsent.abs().topk(max(1, round(self.options.ratio * len(unsent)))).indices
        values = unsent[places]
        unsent[places] = 0
        unsent.nan_to_num_(0, 0, 0)  # what is not finite ends this update, and must not end those that follow
        bucket.gradients.zero_()
        everyones = zip(self.all_gather(places), self.all_gather(values), strict=True)
        for their_places, their_values in everyones:
            bucket.gradients.index_add_(0, their_places, their_values)
