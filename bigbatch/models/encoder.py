"""An encoder, which reads a sequence and scores each of its tokens."""

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor, nn

from bigbatch.models.blocks import Blocks, TransformerShape, initialise, last_norm
from bigbatch.models.model import Model, shape_for
from bigbatch.models.positions import positions
from bigbatch.models.settings import ModelSettings
from bigbatch.models.sizes import ModelSize, block_parameters, training_flops
from bigbatch.tasks.task import Task

SCORES = 2
"""Scores of a token: that the answer starts there, and that it ends there (Devlin et al. 2018, section 4.2)."""


class EncoderTransformer(nn.Module):
    """Token and position embeddings, blocks in which every token sees all others, a last norm, and a layer of scores.

    Args:
        shape: the sizes of the model.
        seed: seed for the initial weights; see `bigbatch.models.blocks.initialise`.
    """

    def __init__(self, shape: TransformerShape, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        self.tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.positions = positions(shape.positions, shape.context, shape.width)
        self.blocks = Blocks(shape, causal=False)
        self.norm = last_norm(shape)
        self.scores = nn.Linear(shape.width, SCORES)
        initialise(self, 2 * shape.layers, torch.Generator().manual_seed(seed))

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Scores every token as the first and as the last of the answer.

        Args:
            tokens: (batch, sequence) token numbers.
            mask: (batch, sequence) False at padding; None if there is none.

        Returns:
            (batch, sequence, 2) logits
        """
        x = F.dropout(self.positions(self.tokens(tokens)), self.shape.dropout, self.training)
        scores: Tensor = self.scores(self.norm(self.blocks(x, mask)))
        return scores


class Encoder(Model):
    """The Transformer above, which scores where an answer starts and where it ends."""

    @classmethod
    def build(cls, task: Task, settings: ModelSettings, seed: int) -> EncoderTransformer:
        """Builds a Transformer with the task's vocabulary and context."""
        return EncoderTransformer(shape_for(task, settings), seed)

    @classmethod
    def size(cls, task: Task, settings: ModelSettings) -> ModelSize:
        """Computes parameters, and FLOPs per target: an example has two targets, and all of its tokens are read."""
        shape = shape_for(task, settings)
        width = shape.width
        norm = 2 * width if shape.pre_norm else 0
        scores = SCORES * (width + 1)
        block = block_parameters(width)
        tables = (shape.vocabulary + (shape.context if shape.positions == "learnt" else 0)) * width
        read = task.source_tokens
        a_token = training_flops(shape.layers * block + norm + scores, shape.layers, width, round(read))
        parts = tuple(filter(None, (scores + norm, *[block] * shape.layers, tables)))
        return ModelSize(
            "encoder",
            shape.layers,
            width,
            shape.context,
            shape.vocabulary,
            sum(parts),
            a_token * read / task.example_tokens,
            parts,
        )
