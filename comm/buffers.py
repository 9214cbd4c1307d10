"""Buffers: the flat arrays that wires move; and phantoms, which have a size and no contents."""

import mmap
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from bigbatch.comm.errors import ConfigurationError

if TYPE_CHECKING:  # what moves buffers need not wait for torch
    import torch

LEAST_POWER = 36
"""Phantoms of up to 2^36 bytes all view the same addresses."""

NO_RESERVE = 0x4000 if sys.platform == "linux" else 0
"""Linux's flag MAP_NORESERVE for mmap (linux/mman.h): memory counts only once it is touched."""


class Phantom(np.ndarray[Any, Any]):
    """A flat array that has a size but no contents, for timing messages without moving data.

    It can be sliced, sent, received and added to; its memory is never read or written.

    Make one with `phantom`.
    """

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **settings: Any) -> Any:
        """Computes nothing; returns the array to write to, or else the first operand that is a phantom."""
        written = settings.get("out", ())
        return written[0] if written else next(value for value in inputs if isinstance(value, Phantom))

    def __setitem__(self, place: Any, values: Any) -> None:
        """Ignores the values, because a phantom has no contents."""

    def copy(self, order: Any = "C") -> Self:  # noqa: ARG002 - numpy's signature
        """Returns the phantom itself, because it has no contents that a copy could keep apart."""
        return self


@lru_cache(maxsize=1)
def _nowhere(nbytes: int) -> mmap.mmap:
    """Addresses without memory, for all phantoms alike: there are limits to how many of those a process may have."""
    return mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE)


def phantom(elements: int, dtype: DTypeLike = np.float32) -> Phantom:
    """Makes a phantom buffer, (elements,), which takes up no memory.

    Raises:
        ConfigurationError: it is too large even so.
    """
    kind = np.dtype(dtype)
    nbytes = elements * kind.itemsize
    try:
        nowhere = _nowhere(1 << max(LEAST_POWER, nbytes.bit_length()))
    except (OSError, OverflowError) as error:
        raise ConfigurationError(
            f"A buffer of {nbytes:,} bytes cannot be simulated on this machine, which has no addresses for so many: "
            "take a smaller model or a smaller --bytes."
        ) from error
    return np.frombuffer(nowhere, dtype=kind, count=elements).view(Phantom)


Buffer = NDArray[Any]
"""A flat, contiguous NumPy array, which is sent from and received into without a copy."""


def add_in_place(values: Buffer, arrived: Buffer) -> None:
    """Adds what arrived to `values`, both (elements,); a sum that is not finite is for the strategy to find.

    NumPy would warn of it, once for every place in the code, while the trainer counts and reports every update that
    was skipped for it.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        np.add(values, arrived, out=values)


@lru_cache(maxsize=1)
def bfloat16() -> "np.dtype[Any]":
    """NumPy's dtype for torch.bfloat16, which NumPy itself does not have."""
    import ml_dtypes

    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def array_of(tensor: "torch.Tensor") -> Buffer:
    """Views the memory of a tensor on a CPU as a NumPy array of the same shape and dtype."""
    import torch

    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(bfloat16())
    array: Buffer = tensor.numpy()
    return array


def tensor_of(array: Buffer) -> "torch.Tensor":
    """Views the memory of a NumPy array as a tensor of the same shape and dtype."""
    import torch

    if array.dtype.itemsize == 2 and array.dtype == bfloat16():
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def array_dtype(dtype: "torch.dtype") -> "np.dtype[Any]":
    """NumPy's dtype for a dtype of torch."""
    import torch

    return array_of(torch.empty(0, dtype=dtype, device="cpu")).dtype
