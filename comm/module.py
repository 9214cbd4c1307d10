"""A whole module: what is trained of it, what is fixed, and whether that is still so later."""

from operator import is_, itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from bigbatch.comm.errors import ConfigurationError, quoted


def check_module(module: Any) -> None:
    """Refuses what is no module, such as the class of one.

    Raises:
        ConfigurationError: it is none.
    """
    if not isinstance(module, nn.Module):
        raise ConfigurationError(f"The model must be a torch.nn.Module, but is {quoted(module)}.")


class WholeModule:
    """Everything that a module holds: the parameters that are trained, and what no optimiser touches.

    Args:
        module: any module.

    Attributes:
        name: the name of the module's class, for messages.
        trained: (name, parameter) of every parameter that requires a gradient, in the module's order.

    Raises:
        ConfigurationError: it is no module, there is nothing to train, or a parameter has no shape yet, cannot be
            changed, or shares memory with something else.
    """

    def __init__(self, module: nn.Module) -> None:
        check_module(module)
        if torch.is_inference_mode_enabled():
            raise ConfigurationError(
                "Nothing can be trained under torch.inference_mode, in which tensors do not know of changes: begin the "
                "training outside of it."
            )
        self._module = module
        self.name = type(module).__name__
        named = list(module.named_parameters())
        for what, tensors in (("Parameter", named), ("The buffer", module.named_buffers())):
            for name, tensor in tensors:
                if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
                    raise ConfigurationError(
                        f"{what} {name} of the model {self.name} has no shape yet: let the model compute a batch first."
                    )
        for name, parameter in named:
            if parameter.is_inference():
                raise ConfigurationError(
                    f"Parameter {name} of the model {self.name} was made under torch.inference_mode, so that nothing "
                    "can train it: build the model outside of it."
                )
        for name, tensor in [*named, *module.named_buffers()]:
            if kind := _unlike_others(tensor):
                raise ConfigurationError(
                    f"The tensor {name} of the model {self.name} is {kind}, but only dense tensors with "
                    "memory for each element can be given to all ranks: keep it outside the model's buffers."
                )
        self.trained = [(name, parameter) for name, parameter in named if parameter.requires_grad]
        if not any(parameter.numel() for _, parameter in self.trained):
            raise ConfigurationError(f"The model {self.name} has no parameter that requires a gradient.")
        self._refuse_shared_memory()
        self._frozen = [(name, parameter) for name, parameter in named if not parameter.requires_grad]
        # By every module and name, whichever others share the parameter: a shared one may be replaced in one place.
        self._tables = [
            (f"{prefix}." if prefix else "", table, dict(table))
            for prefix, part in module.named_modules(remove_duplicate=False)
            for table in (part._parameters, part._modules)
        ]

    def _refuse_shared_memory(self) -> None:
        """Refuses a trained parameter whose memory is another tensor's, too: training moves it, and would part the two.

        Raises:
            ConfigurationError: names the two.
        """
        trained = {parameter for _, parameter in self.trained}
        everything = [*self._module.named_parameters(), *self._module.named_buffers()]
        spans = sorted(
            ((tensor.data_ptr(), _span(tensor), name, tensor) for name, tensor in everything if _span(tensor)),
            key=itemgetter(0),
        )
        before: list[tuple[int, str, Tensor]] = []
        for first, length, name, tensor in spans:
            before = [entry for entry in before if entry[0] > first]
            for _, other_name, other in before:
                if not trained.isdisjoint((tensor, other)) and _share_memory(tensor, other):
                    raise ConfigurationError(
                        f"{other_name} and {name} of the model {self.name} share memory, but are two tensors, which "
                        "training would part: let both names have one parameter (a.weight = b.weight, without .data), "
                        "or give one a copy (clone())."
                    )
            before.append((first + length, name, tensor))

    @property
    def frozen(self) -> list[tuple[str, Tensor]]:
        """(name, tensor) of every parameter that was frozen at the start, and so is not trained."""
        return [(name, parameter.detach()) for name, parameter in self._frozen]

    @property
    def fixed(self) -> list[tuple[str, Tensor]]:
        """(name, tensor) of what no optimiser touches: frozen parameters, and buffers."""
        return [*self.frozen, *self.buffers]

    @property
    def buffers(self) -> list[tuple[str, Tensor]]:
        """(name, tensor) of every buffer, such as the running means of norms."""
        return list(self._module.named_buffers())

    def change(self) -> str:
        """Says what was changed about the parameters so that not all are trained, in a sentence; else it is empty.

        A parameter may be frozen later, and trained again. It may not be replaced, or be added.
        """
        for prefix, table, before in self._tables:
            if len(table) == len(before) and all(map(is_, table.values(), before.values())):
                continue
            for own in {**before, **table}:
                was, now = before.get(own), table.get(own)
                if isinstance(was, nn.Parameter) and now is not was:
                    return (
                        f"The parameter {prefix}{own} was replaced or removed after training had begun, and nobody "
                        "would train a new one: change it in place."
                    )
                if now is not was:
                    return (
                        f"The model {self.name} got other parameters or parts ({prefix}{own}) after training had "
                        "begun, which nobody would train: build it whole first."
                    )
        for name, parameter in self._frozen:
            if parameter.requires_grad:
                return (
                    f"The parameter {name} was frozen when training began, so that its gradient would not be sent: let "
                    "it require a gradient then, and freeze it afterwards."
                )
        return ""


def _unlike_others(tensor: Tensor) -> str:
    """Says what keeps a tensor from being sent and written as a block of memory; mostly nothing."""
    if tensor.is_quantized:
        return "quantised"
    if tensor.is_nested or tensor.layout is not torch.strided:
        return "sparse or nested"
    if any(stride == 0 and length > 1 for stride, length in zip(tensor.stride(), tensor.shape, strict=True)):
        return "expanded"
    return ""


def _span(tensor: Tensor) -> int:
    """Bytes from a tensor's first element to the end of its last; 0 if it has none, or no memory."""
    if tensor.is_meta or not tensor.numel():
        return 0
    last = sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def _share_memory(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors, which lie in overlapping spans, have an element in common; columns of one matrix may not."""
    if all(_span(tensor) == tensor.numel() * tensor.element_size() for tensor in (one, other)):
        return True
    return bool(torch.isin(_addresses(one), _addresses(other)).any())


def _addresses(tensor: Tensor) -> Tensor:
    """(elements,) where each element lies in memory."""
    offsets = torch.zeros((), dtype=torch.int64, device="cpu")
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        offsets = offsets[..., None] + torch.arange(length, device="cpu") * stride
    return tensor.data_ptr() + offsets.flatten() * tensor.element_size()
