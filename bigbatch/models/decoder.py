"""A decoder-only pre-norm Transformer."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor, nn

from bigbatch.models.model import Model
from bigbatch.models.settings import ModelSettings
from bigbatch.models.sizes import ModelSize, own_size
from bigbatch.tasks.task import Task


@dataclass(frozen=True)
class TransformerShape:
    """The sizes of a Transformer.

    Attributes:
        vocabulary: number of different tokens.
        context: the longest sequence, in tokens.
        layers: number of blocks.
        width: length of a token's vector; `heads` divides it.
        heads: number of attention heads.
    """

    vocabulary: int
    context: int
    layers: int
    width: int
    heads: int


class Attention(nn.Module):
    """Causal multi-head self-attention (Vaswani et al. 2017, section 3.2).

    Each head computes softmax(Q Kᵀ / √d + M) V, where d is the head's width and M is -∞ above the diagonal, so
    that a token sees itself and what came before. The projections have no bias: a key's would change nothing,
    since softmax ignores what is added to every score alike.
    """

    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.query_key_value = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.output = nn.Linear(shape.width, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, sequence, width) -> (batch, sequence, width)."""
        batch, sequence, width = x.shape
        projected = self.query_key_value(x).view(batch, sequence, 3, self.heads, width // self.heads)
        query, key, value = projected.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        output: Tensor = self.output(mixed.transpose(1, 2).reshape(batch, sequence, width))
        return output


class Block(nn.Module):
    """Attention, then a two-layer network, each on normalised input and added to the stream (pre-norm)."""

    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(shape.width)
        self.attention = Attention(shape)
        self.network_norm = nn.LayerNorm(shape.width)
        self.expand = nn.Linear(shape.width, 4 * shape.width)
        self.contract = nn.Linear(4 * shape.width, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, sequence, width) -> (batch, sequence, width)."""
        x = x + self.attention(self.attention_norm(x))
        output: Tensor = x + self.contract(F.gelu(self.expand(self.network_norm(x))))
        return output


class Transformer(nn.Module):
    """Token and position embeddings, blocks, a last norm, and the token embedding again as the output layer.

    Args:
        shape: the sizes.
        seed: of the initial weights, which are drawn on their own generator: the same whatever was drawn before.

    Initial weights follow GPT-2 (Radford et al. 2019): normal with deviation 0.02, and 0.02/√(2·layers) where a
    block adds to the stream.
    """

    def __init__(self, shape: TransformerShape, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        self.tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.positions = nn.Embedding(shape.context, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        self._initialise(torch.Generator().manual_seed(seed))

    def _initialise(self, generator: torch.Generator) -> None:
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue  # norms start at one, biases at zero
            into_stream = name.endswith(("attention.output.weight", "contract.weight"))
            deviation = 0.02 / math.sqrt(2 * self.shape.layers) if into_stream else 0.02
            nn.init.normal_(parameter, std=deviation, generator=generator)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, sequence) token numbers -> (batch, sequence, vocabulary) logits."""
        position = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.positions(position)
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)


class Decoder(Model):
    """The Transformer above, which predicts every next token of a sequence."""

    @classmethod
    def build(cls, task: Task, settings: ModelSettings, seed: int) -> Transformer:
        """A Transformer for sequences of the task's tokens, as long as its examples."""
        shape = TransformerShape(
            task.vocabulary_size, task.example_tokens, settings.layers, settings.width, settings.heads
        )
        return Transformer(shape, seed)

    @classmethod
    def size(cls, task: Task, settings: ModelSettings) -> ModelSize:
        """Its sizes by formula, see `bigbatch.models.sizes.own_size`."""
        return own_size(task.vocabulary_size, task.example_tokens, settings.layers, settings.width)
