"""Values: one place sees to it that every parameter's values are its part of the flat buffer, whole.

That buffer is what is sent, compared and saved. Whoever assigns to a parameter's `.data`, as some optimisers do, leaves
the old values there.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

MOVED = (
    "The memory of the model was moved after training had begun, by share_memory() or by sending the model to another "
    "process: give others a copy (copy.deepcopy(model))."
)
"""What is said when torch has put a flat buffer elsewhere: whoever sends and receives has its old place."""


class ValueViews:
    """Ties parameters to their parts of a flat buffer of values; from then on a parameter is a view of its part.

    Args:
        named: (name, parameter) pairs.
        memory: (elements,) the flat buffer, which takes on the parameters' values.
        starts: where in the buffer each parameter's part begins, in elements.
    """

    def __init__(self, named: Sequence[tuple[str, nn.Parameter]], memory: Tensor, starts: Sequence[int]) -> None:
        self._named = list(named)
        self._parts = [
            memory[start : start + p.numel()].view(p.shape) for (_, p), start in zip(named, starts, strict=True)
        ]
        for (_, parameter), part in zip(self._named, self._parts, strict=True):
            part.copy_(parameter.detach())
            parameter.data = part
        self._places = [_place(parameter) for _, parameter in self._named]
        self._memory, self._address = memory, memory.data_ptr()

    def restore(self) -> str:
        """Brings values that were moved elsewhere, or turned, back to their part of the buffer.

        New values count as written to the parameter (`Tensor._version`).

        Returns:
            What cannot be brought back, as a sentence; mostly nothing.
        """
        if self._memory.data_ptr() != self._address:
            return MOVED
        for (name, parameter), part, place in zip(self._named, self._parts, self._places, strict=True):
            if _place(parameter) == place:
                continue
            if (parameter.dtype, parameter.device, parameter.shape) != (part.dtype, part.device, part.shape):
                return reshaped(name, parameter, part)
            moved = parameter.detach().clone()  # for it may lie in the same memory, turned
            parameter.data = part
            if not torch.equal(part, moved):
                with torch.no_grad():
                    parameter.copy_(moved)
        return ""


def _place(tensor: Tensor) -> tuple[int, torch.Size, tuple[int, ...]]:
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def reshaped(name: str, parameter: Tensor, part: Tensor) -> str:
    """Says that a parameter is no longer like its part of the flat buffer, and what to do."""
    return (
        f"The parameter {name} became {_described(parameter)} after training had begun with {_described(part)}: "
        "convert the model, or cut its layers, first."
    )


def _described(tensor: Tensor) -> str:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"{dtype} of shape {list(tensor.shape)} on {tensor.device}"
