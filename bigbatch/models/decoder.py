"""A decoder-only Transformer."""

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor, nn

from bigbatch.models.blocks import BlockCache, Blocks, TransformerShape, initialise, last_norm
from bigbatch.models.model import Model, shape_for
from bigbatch.models.positions import positions
from bigbatch.models.settings import ModelSettings
from bigbatch.models.sizes import ModelSize, own_size
from bigbatch.tasks.task import Task

GPT2_DEVIATION = 0.02
"""Standard deviation of GPT-2's initial weights (Radford et al. 2018, section 4.1, and 2019)."""


class Transformer(nn.Module):
    """Token and position embeddings, causal blocks, a last norm, and the token embedding reused as the output layer.

    Args:
        shape: the sizes of the model.
        seed: seed for the initial weights, whose standard deviation is that of GPT-2.
    """

    def __init__(self, shape: TransformerShape, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        self.tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.positions = positions(shape.positions, shape.context, shape.width)
        self.blocks = Blocks(shape, causal=True)
        self.norm = last_norm(shape)
        initialise(self, 2 * shape.layers, torch.Generator().manual_seed(seed), GPT2_DEVIATION)

    def forward(self, tokens: Tensor) -> Tensor:
        """Predicts every next token: (batch, sequence) token numbers -> (batch, sequence, vocabulary) logits."""
        return self._logits(tokens, None)

    def _logits(self, tokens: Tensor, caches: list[BlockCache] | None) -> Tensor:
        first = caches[0].own.tokens if caches else 0
        x = self.positions(self.tokens(tokens), first)
        x = self.blocks(F.dropout(x, self.shape.dropout, self.training), caches=caches)
        return F.linear(self.norm(x), self.tokens.weight)

    def generator(self) -> "Continuation":
        """Makes a generator that continues sequences, one token after the other."""
        return Continuation(self)


class Continuation:
    """Continues sequences token by token, and computes each token's keys and values only once.

    Args:
        model: the model that predicts the next token.
    """

    def __init__(self, model: Transformer) -> None:
        self._model = model
        self._caches = [BlockCache() for _ in range(model.shape.layers)]

    def advance(self, tokens: Tensor) -> Tensor:
        """Takes the newest token of every row, (rows,), and predicts the next: (rows, vocabulary) logits."""
        return self._model._logits(tokens[:, None], self._caches)[:, -1]

    def keep(self, rows: Tensor) -> None:
        """Keeps these rows, (rows,), in this order; a row can be kept several times."""
        for cache in self._caches:
            cache.keep(rows)


class Decoder(Model):
    """The Transformer above, which predicts every next token of a sequence."""

    recomputes = True

    @classmethod
    def build(cls, task: Task, settings: ModelSettings, seed: int) -> Transformer:
        """Builds a Transformer with the task's vocabulary, whose context is as long as the task's examples."""
        return Transformer(shape_for(task, settings), seed)

    @classmethod
    def size(cls, task: Task, settings: ModelSettings) -> ModelSize:
        """Computes parameters and FLOPs per token by formula; see `bigbatch.models.sizes.own_size`."""
        shape = shape_for(task, settings)
        size = own_size(
            shape.vocabulary,
            shape.context,
            shape.layers,
            shape.width,
            learnt_positions=shape.positions == "learnt",
            pre_norm=shape.pre_norm,
        )
        return size.recomputing(6.0 * shape.vocabulary * shape.width) if shape.recompute else size
