"""What a user can choose about the model."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.kinds import Assignments, Flag, Name, Number, Whole, physical_memory
from bigbatch.comm.options import Options, option, options_of
from bigbatch.models import MODELS

POSITIONS = ("learnt", "sinusoidal", "rotary")
"""The ways in which a model can be told where a token stands; see `bigbatch.models.positions`."""

NORMS = ("pre", "post")
"""Where a block normalises: the input of each sublayer, or the sum after it."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model.

    Attributes:
        blocks: number of blocks in all; an encoder and a decoder have half of them each.
        width: length of a token's vector.
        heads: number of attention heads.
    """

    blocks: int
    width: int
    heads: int


PRESETS: Mapping[str, Sizes] = MappingProxyType(
    {
        "tiny": Sizes(2, 96, 4),
        "small": Sizes(4, 256, 4),
        "base": Sizes(12, 512, 8),
        "big": Sizes(12, 1024, 16),
    }
)
"""Sizes by name. `base` and `big` are those of Vaswani et al. 2017, table 3; the others are for a laptop."""

DEFAULT_PRESET = "tiny"

STACKS: Mapping[str, int] = MappingProxyType({"decoder": 1, "encoder": 1, "encoder-decoder": 2})
"""Number of stacks of blocks in models that are called as one of our own kinds is."""


def value_of(text: str) -> Any:
    """What the text of an option of a model stands for: a value as JSON or Python writes it, or else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(text, text)


@dataclass(frozen=True)
class ModelSettings(Options):
    """The options for the model: its kind and its sizes.

    Attributes:
        model: a name in the registry of models, FILE.py:Model, hf:KIND for a kind of model that transformers knows, the
            folder of a model on disk, or one of `PRESETS` for the kind that the task takes; None for that kind in the
            size `DEFAULT_PRESET`. See `bigbatch.models.kinds`.
        model_option: NAME=VALUE each, for what only this kind of model knows.
        layers: number of blocks, of an encoder and of a decoder each; None for as many as the preset has.
        width: length of a token's vector; None for the preset's.
        heads: number of attention heads, which divides the width; None for the preset's.
        positions: how the model is told where a token stands, one of `POSITIONS`; None for the task's default.
        norm: one of `NORMS`.
        dropout: share of each sublayer's output that is dropped in training.
        recompute: whether a block's activations are computed again in backward instead of kept (Chen et al. 2016).

    Raises:
        ConfigurationError: the model cannot fit into this machine's memory; or the heads do not divide the width, and
            the message names the nearest widths that they divide; or a head's width is odd, which cannot be turned.
    """

    title: ClassVar[str] = "Model"

    model: str | None = option(
        None,
        Name(lambda: [*MODELS.names(), *PRESETS], "hf:KIND, FOLDER/ or FILE.py:Model"),
        "Kind of model to train, or the size of the kind that the task takes: tiny, small, base or big.",
        missing=f"what the task takes, {DEFAULT_PRESET}",
    )
    model_option: tuple[str, ...] = option(
        (),
        Assignments(),
        "Option of this kind of model alone: a field of the configuration of hf:KIND, an argument of your own module.",
        missing="none",
    )
    layers: int | None = option(
        None,
        Whole(most=10_000),
        "Number of Transformer blocks; an encoder and a decoder have as many each.",
        missing=f"{PRESETS[DEFAULT_PRESET].blocks} in all",
    )
    width: int | None = option(
        None,
        Whole(most=2**16),
        "Length of the vector that stands for a token.",
        missing=str(PRESETS[DEFAULT_PRESET].width),
    )
    heads: int | None = option(
        None,
        Whole(most=2**16),
        "Number of attention heads; it must divide the width.",
        missing=str(PRESETS[DEFAULT_PRESET].heads),
    )
    positions: str | None = option(
        None,
        Name(lambda: POSITIONS),
        "How the model is told where a token stands.",
        missing="learnt, or as the task says",
    )
    norm: str = option("pre", Name(lambda: NORMS), "Normalise the input of each sublayer, or the sum after it.")
    dropout: float = option(
        0.0, Number(least=0, most=0.9), "Share of each sublayer's output that is dropped in training."
    )
    recompute: bool = option(
        False,
        Flag(),
        "Compute each block again in backward instead of keeping its activations: less memory, more time.",
    )

    def sizes(self, stacks: int = 1) -> Sizes:
        """Finds the sizes: those that were chosen, and else the preset's.

        Args:
            stacks: number of stacks of blocks: 2 for an encoder and a decoder.
        """
        preset = PRESETS.get(self.model or DEFAULT_PRESET, PRESETS[DEFAULT_PRESET])
        blocks = preset.blocks if self.layers is None else self.layers * stacks
        return Sizes(blocks, self.width or preset.width, self.heads or preset.heads)

    def kind(self, usual: str) -> str:
        """The kind of model: the one that was chosen, else the usual one of the task."""
        return usual if self.model is None or self.model in PRESETS else self.model

    def chosen(self) -> dict[str, Any]:
        """The options that say how the model is built and that the user has set, by name, without the kind."""
        return {
            one.name: getattr(self, one.name)
            for one in options_of(type(self))
            if one.name not in ("model", "model_option") and getattr(self, one.name) != one.default
        }

    def assigned(self) -> dict[str, str]:
        """The values of `model_option` by name, as text."""
        return {name: value for name, _, value in (text.partition("=") for text in self.model_option)}

    def refuse(self, names: Collection[str], why: str) -> None:
        """Refuses options that the user has set and that a kind of model does not take.

        Args:
            names: names of the options, which may be set or not.
            why: why the model does not take one, in the middle of a sentence: "which has its own positions".

        Raises:
            ConfigurationError: one is set; the message names it.
        """
        set_ = {**self.chosen(), **({"model_option": self.model_option} if self.model_option else {})}
        for name in set_:
            if name in names:
                which = f"the model {self.model or DEFAULT_PRESET}"
                raise ConfigurationError(
                    f"--{name.replace('_', '-')} cannot be used with {which}, {why}: leave it out."
                )

    def told(self, usual: str) -> str:
        """How the model is told where a token stands: as was chosen, else as usual for the task.

        Raises:
            ConfigurationError: positions are rotary and a head's width is odd, which cannot be turned.
        """
        sizes, positions = self.sizes(), self.positions or usual
        if positions == "rotary" and sizes.width // sizes.heads % 2:
            raise ConfigurationError(
                f"Rotary positions turn pairs of numbers, but a head of width {sizes.width // sizes.heads} has one "
                f"left over: take --width {sizes.width + sizes.heads}, or other --positions."
            )
        return positions

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = self.sizes()
        parameters, memory = 12 * sizes.blocks * sizes.width**2, physical_memory()
        if 4 * parameters > memory:
            raise ConfigurationError(
                f"{sizes.blocks:,} layers of width {sizes.width:,} have at least {parameters:,} parameters, "
                f"of 4 bytes each, and this machine has {memory:,} bytes of memory: take fewer --layers or a smaller "
                "--width."
            )
        if sizes.width % sizes.heads:
            near = sizes.width // sizes.heads * sizes.heads
            raise ConfigurationError(
                f"Width {sizes.width} cannot be divided by {sizes.heads} heads. The nearest widths that can are "
                f"{near or sizes.heads} and {near + sizes.heads}."
            )
        if self.positions is not None:
            self.told(self.positions)
