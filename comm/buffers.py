"""Buffers: the flat arrays that wires move; and phantoms, which have a size and no contents."""

import mmap
import sys
from functools import lru_cache
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

LEAST_POWER = 36
"""Phantoms of up to 2^36 bytes have the same addresses."""

NO_RESERVE = 0x4000 if sys.platform == "linux" else 0
"""mmap's flag for memory that is not counted before it is touched, as linux/mman.h has it."""


class Phantom(np.ndarray[Any, Any]):
    """A flat array that can be cut, sent, received and added to, all of which leaves its memory untouched.

    Make one with `phantom`.
    """

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **settings: Any) -> Any:
        """Nothing is computed; the result is the array to write to, or an operand that has no contents either."""
        written = settings.get("out", ())
        return written[0] if written else next(value for value in inputs if isinstance(value, Phantom))

    def __setitem__(self, place: Any, values: Any) -> None:
        """Nothing is kept."""

    def copy(self, order: Any = "C") -> Self:  # noqa: ARG002 - numpy's signature
        """Itself: there is nothing to keep apart."""
        return self


@lru_cache(maxsize=1)
def _nowhere(nbytes: int) -> mmap.mmap:
    """Addresses without memory, for all phantoms alike: there are limits to how many of those a process may have."""
    return mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE)


def phantom(elements: int, dtype: DTypeLike = np.float32) -> Phantom:
    """A buffer of so many elements, (elements,), that takes room in no memory."""
    kind = np.dtype(dtype)
    powers = max(LEAST_POWER, (elements * kind.itemsize).bit_length())
    return np.frombuffer(_nowhere(1 << powers), dtype=kind, count=elements).view(Phantom)


Buffer = NDArray[Any]
"""A flat, contiguous NumPy array; it is sent from and received into where it lies."""
