"""The order in which training sees its examples, a new permutation for every epoch."""

import numpy as np
from numpy.typing import NDArray


class DataOrder:
    """The endless order in which training sees its examples: a new permutation for every epoch.

    Args:
        examples: number of training examples.
        seed: seed for the permutations.
    """

    def __init__(self, examples: int, seed: int) -> None:
        self._examples = examples
        self._seed = seed
        self._epoch = -1
        self._permutation: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def at(self, places: range) -> NDArray[np.int64]:
        """Returns the numbers of the examples at these places of the order, (len(places),)."""
        return np.array([self._example(place) for place in places], dtype=np.int64)

    def _example(self, place: int) -> int:
        epoch, offset = divmod(place, self._examples)
        if epoch != self._epoch:
            self._epoch = epoch
            self._permutation = np.random.default_rng([self._seed, epoch]).permutation(self._examples)
        return int(self._permutation[offset])
