"""A whole module: what is trained of it, what is fixed, and whether that is still so later."""

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from bigbatch.comm.errors import ConfigurationError


class WholeModule:
    """Everything that a module holds: the parameters that are trained, and what no optimiser touches.

    Args:
        module: any module.

    Attributes:
        name: the name of the module's class, for messages.
        trained: (name, parameter) of every parameter that requires a gradient, in the module's order.

    Raises:
        ConfigurationError: there is nothing to train, or a parameter has no shape yet.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.name = type(module).__name__
        named = list(module.named_parameters())
        for name, parameter in named:
            if isinstance(parameter, UninitializedParameter):
                raise ConfigurationError(
                    f"Parameter {name} of the model {self.name} has no shape yet: let the model compute a batch first."
                )
        self.trained = [(name, parameter) for name, parameter in named if parameter.requires_grad]
        if not any(parameter.numel() for _, parameter in self.trained):
            raise ConfigurationError(f"The model {self.name} has no parameter that requires a gradient.")
        modules = dict(module.named_modules())
        self._tables = [table for part in modules.values() for table in (part._parameters, part._modules)]
        self._sizes = list(map(len, self._tables))
        self._places = []
        for name, parameter in named:
            owner, _, own = name.rpartition(".")
            self._places.append((modules[owner]._parameters, own, name, parameter, parameter.requires_grad))

    @property
    def fixed(self) -> list[tuple[str, Tensor]]:
        """(name, tensor) of what no optimiser touches: frozen parameters, and buffers."""
        trained = {parameter for _, parameter in self.trained}
        frozen = [(name, p.detach()) for name, p in self._module.named_parameters() if p not in trained]
        return [*frozen, *self.buffers]

    @property
    def buffers(self) -> list[tuple[str, Tensor]]:
        """(name, tensor) of every buffer, such as the running means of norms."""
        return list(self._module.named_buffers())

    def change(self) -> str:
        """Says what was changed about the parameters so that not all are trained, in a sentence; else it is empty.

        A parameter may be frozen later, and trained again. It may not be replaced, or be added.
        """
        if list(map(len, self._tables)) != self._sizes:
            return (
                f"The model {self.name} got other parameters or parts after training had begun, which nobody would "
                "train: build it whole first."
            )
        for table, own, name, parameter, trained in self._places:
            if table.get(own) is not parameter:
                return (
                    f"The parameter {name} was replaced after training had begun, and nobody would train the new one: "
                    "change it in place."
                )
            if not trained and parameter.requires_grad:
                return (
                    f"The parameter {name} was frozen when training began, so that its gradient would not be sent: let "
                    "it require a gradient then, and freeze it afterwards."
                )
        return ""
