"""Errors of other libraries that are told in words of ours."""

import importlib

import numpy as np
import pytest
import torch

from bigbatch.comm.errors import in_words


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: torch.empty(2**50), ": 4503599627370496 bytes more were asked for"),
        (lambda: np.empty(2**50), ": 8.00 PiB more were asked for"),
        (lambda: bytearray(2**60), ""),
    ],
)
def test_an_error_that_means_missing_memory_is_told_in_a_sentence(ask, said):
    # late-chunking 21 and many others report torch's words, which say neither what was too large nor what to do.
    with pytest.raises((MemoryError, RuntimeError)) as raised:
        ask()
    told = in_words(raised.value)
    assert told.startswith(f"There is not enough memory for this{said}. Take a smaller batch")


def test_an_error_of_a_gpu_is_told_likewise_and_other_errors_are_not():
    full = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.11 GiB."
    assert ": 20.00 MiB more were asked for. " in in_words(torch.OutOfMemoryError(full))
    for other in (
        RuntimeError("the memory format is wrong"),
        ValueError("cannot allocate 3 seats"),
        KeyError("memory"),
    ):
        assert in_words(other) == ""


def test_what_is_missing_in_an_installation_or_closed_to_the_user_is_told_by_its_name():
    """mpi4py 175: "cannot open shared object file" alone says neither whose fault it is nor what to do."""
    with pytest.raises(ImportError) as raised:
        importlib.import_module("nobody_here")
    told = in_words(raised.value)
    assert told.startswith(
        "Something that bigbatch needs cannot be imported (No module named 'nobody_here'): install it"
    )
    assert told.endswith("-m pip install --force-reinstall bigbatch.")
    assert in_words(PermissionError(13, "Permission denied", "d/run")) == "d/run cannot be used: Permission denied."
    assert in_words(OSError("no file is named")) == ""
