"""What a user can choose about the model."""

from dataclasses import dataclass
from typing import ClassVar

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.kinds import Name, Whole, physical_memory
from bigbatch.comm.options import Options, option
from bigbatch.models import MODELS


@dataclass(frozen=True)
class ModelSettings(Options):
    """The options for the model: its kind and its sizes.

    Attributes:
        model: a name in the registry of models, or FILE.py:Model.
        layers: number of blocks.
        width: length of a token's vector.
        heads: number of attention heads, which divides the width.

    Raises:
        ConfigurationError: the model cannot fit into this machine's memory; or the heads do not divide the width, and
            the message names the nearest widths that they divide.
    """

    title: ClassVar[str] = "Model"

    model: str = option("decoder", Name(MODELS.names, "FILE.py:Model"), "Kind of model to train.")
    layers: int = option(2, Whole(most=10_000), "Number of Transformer blocks.")
    width: int = option(96, Whole(most=2**16), "Length of the vector that stands for a token.")
    heads: int = option(4, Whole(most=2**16), "Number of attention heads; it must divide the width.")

    def __post_init__(self) -> None:
        super().__post_init__()
        parameters, memory = 12 * self.layers * self.width**2, physical_memory()
        if 4 * parameters > memory:
            raise ConfigurationError(
                f"{self.layers:,} layers of width {self.width:,} have at least {parameters:,} parameters, "
                f"of 4 bytes each, and this machine has {memory:,} bytes of memory: take fewer --layers or a smaller "
                "--width."
            )
        if self.width % self.heads:
            near = self.width // self.heads * self.heads
            raise ConfigurationError(
                f"Width {self.width} cannot be divided by {self.heads} heads. The nearest widths that can are "
                f"{near or self.heads} and {near + self.heads}."
            )
