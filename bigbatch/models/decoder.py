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
    """The sizes that define a decoder-only Transformer.

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
    that a token sees itself and the tokens before it. The projections have no bias: a key's bias would change nothing,
    since softmax ignores a constant that is added to every score.
    """

    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.query_key_value = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.output = nn.Linear(shape.width, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attends to earlier tokens: (batch, sequence, width) -> (batch, sequence, width)."""
        batch, sequence, width = x.shape
        projected = self.query_key_value(x).view(batch, sequence, 3, self.heads, width // self.heads)
        query, key, value = projected.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        output: Tensor = self.output(mixed.transpose(1, 2).reshape(batch, sequence, width))
        return output


class Block(nn.Module):
    """Attention, then a two-layer network, each on normalised input and added to the residual stream (pre-norm)."""

    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(shape.width)
        self.attention = Attention(shape)
        self.network_norm = nn.LayerNorm(shape.width)
        self.expand = nn.Linear(shape.width, 4 * shape.width)
        self.contract = nn.Linear(4 * shape.width, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block to a residual stream: (batch, sequence, width) -> (batch, sequence, width)."""
        x = x + self.attention(self.attention_norm(x))
        output: Tensor = x + self.contract(F.gelu(self.expand(self.network_norm(x))))
        return output


class Transformer(nn.Module):
    """Token and position embeddings, blocks, a last norm, and the token embedding reused as the output layer.

    Args:
        shape: the sizes of the model.
        seed: seed for the initial weights. They come from a generator of their own, so that other random numbers drawn
            earlier do not change them.

    Initial weights follow GPT-2 (Radford et al. 2019): normal with standard deviation 0.02, or 0.02/√(2·layers) for the
    matrices whose output is added to the residual stream.
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
        """Predicts every next token: (batch, sequence) token numbers -> (batch, sequence, vocabulary) logits."""
        position = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.positions(position)
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)


class Decoder(Model):
    """The Transformer above, which predicts every next token of a sequence."""

    @classmethod
    def build(cls, task: Task, settings: ModelSettings, seed: int) -> Transformer:
        """Builds a Transformer with the task's vocabulary, whose context is as long as the task's examples."""
        shape = TransformerShape(
            task.vocabulary_size, task.example_tokens, settings.layers, settings.width, settings.heads
        )
        return Transformer(shape, seed)

    @classmethod
    def size(cls, task: Task, settings: ModelSettings) -> ModelSize:
        """Computes parameters and FLOPs per token by formula; see `bigbatch.models.sizes.own_size`."""
        return own_size(task.vocabulary_size, task.example_tokens, settings.layers, settings.width)
