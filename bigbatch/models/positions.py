"""How a Transformer knows where a token stands: vectors that are added to the tokens', or queries and keys turned."""

import torch
from torch import Tensor, nn

LONGEST_WAVE = 10_000.0
"""The wavelengths of the sinusoids and of the rotations go from 2π to this many times 2π positions."""


class LearntPositions(nn.Module):
    """A learnt vector for each position, as in GPT-2.

    Args:
        context: number of positions.
        width: length of a token's vector.
    """

    def __init__(self, context: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(context, width))

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        """Adds the positions from `first` on to tokens: (batch, sequence, width) -> the same."""
        added: Tensor = x + self.weight[first : first + x.shape[1]]
        return added


class SinusoidalPositions(nn.Module):
    """Sines and cosines of the position, at wavelengths that grow with the dimension.

    The tokens' vectors are multiplied by √width before the waves are added (Vaswani et al. 2017, sections 3.4 and 3.5).
    """

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        """Adds the positions from `first` on to tokens: (batch, sequence, width) -> the same."""
        width = x.shape[2]
        sines, cosines = waves(first, x.shape[1], (width + 1) // 2, x)
        added: Tensor = x * width**0.5 + torch.stack([sines, cosines], dim=-1).flatten(1)[:, :width]
        return added


class NoPositions(nn.Module):
    """Nothing is added to the tokens: rotary positions act on queries and keys; see `rotated`."""

    def forward(self, x: Tensor, first: int = 0) -> Tensor:  # noqa: ARG002 - for the others
        """Returns the tokens as they are."""
        return x


def positions(kind: str, context: int, width: int) -> nn.Module:
    """Makes the module that adds positions of a kind, one of `bigbatch.models.settings.POSITIONS`, to tokens."""
    if kind == "learnt":
        return LearntPositions(context, width)
    return {"sinusoidal": SinusoidalPositions, "rotary": NoPositions}[kind]()


def rotated(heads: Tensor, first: int = 0) -> Tensor:
    """Turns queries or keys by angles that grow with their position (rotary positions: Su et al. 2021, section 3.2).

    The two halves of a head's vector are the two coordinates of its planes. The product of a query and a key then
    depends on how far they are apart, and not on where they stand.

    Args:
        heads: (batch, heads, sequence, head width) queries or keys; the head width is even.
        first: position of the first of them.
    """
    sines, cosines = waves(first, heads.shape[2], heads.shape[3] // 2, heads)
    one, other = heads.chunk(2, dim=-1)
    return torch.cat([one * cosines - other * sines, one * sines + other * cosines], dim=-1)


def waves(first: int, length: int, number: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Computes sines and cosines of positions: (length, number) each, of the dtype and on the device of `like`."""
    position = torch.arange(first, first + length, dtype=torch.float64)
    frequency = LONGEST_WAVE ** (-torch.arange(number, dtype=torch.float64) / number)
    angles = position[:, None] * frequency
    return angles.sin().to(like), angles.cos().to(like)
