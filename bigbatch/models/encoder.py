"""An encoder, which reads a question and a passage, and scores each token as the start and the end of the answer."""

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

SEGMENTS = 2
"""What a token can be part of: the question, with the tokens that end a text, or the passage."""


class EncoderTransformer(nn.Module):
    """Embeddings of tokens, segments and positions, blocks in which every token sees all others, and scores.

    As in BERT, each segment has an embedding that is added to its tokens (Devlin et al. 2018, section 3). A token x is
    scored by itself and with the question q, the mean of the last states of its tokens: w·x + xᵀWq / √width. The
    product is how Chen et al., "Reading Wikipedia to answer open-domain questions" (2017), section 3.1, point to a
    span. W begins as the identity: what is like the question has a higher score from the first update on. From a random
    W a model learns late that words of the passage can be the words of the question.

    Args:
        shape: the sizes of the model.
        seed: seed for the initial weights; see `bigbatch.models.blocks.initialise`.
    """

    def __init__(self, shape: TransformerShape, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        self.tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.segments = nn.Embedding(SEGMENTS, shape.width)
        self.positions = positions(shape.positions, shape.context, shape.width)
        self.blocks = Blocks(shape, causal=False)
        self.norm = last_norm(shape)
        self.scores = nn.Linear(shape.width, SCORES)
        self.likeness = nn.Linear(shape.width, SCORES * shape.width, bias=False)
        initialise(self, 2 * shape.layers, torch.Generator().manual_seed(seed))
        with torch.no_grad():
            self.likeness.weight.copy_(torch.eye(shape.width).repeat(SCORES, 1))

    def forward(self, tokens: Tensor, passage: Tensor, mask: Tensor | None = None) -> Tensor:
        """Scores every token as the first and as the last of the answer.

        Args:
            tokens: (batch, sequence) token numbers of questions and their passages.
            passage: (batch, sequence) True at the tokens of the passage.
            mask: (batch, sequence) False at padding; None if there is none.

        Returns:
            (batch, sequence, 2) logits
        """
        embedded = self.positions(self.tokens(tokens) + self.segments(passage.long()))
        x = self.norm(self.blocks(F.dropout(embedded, self.shape.dropout, self.training), mask))
        asked = ~passage if mask is None else ~passage & mask
        question = (x * asked[:, :, None]).sum(1) / asked.sum(1, keepdim=True)
        sought = self.likeness(question).unflatten(1, (SCORES, -1))
        scores: Tensor = self.scores(x) + x @ sought.transpose(1, 2) / self.shape.width**0.5
        return scores


class Encoder(Model):
    """The Transformer above, which scores where an answer starts and where it ends."""

    recomputes = True

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
        scores, likeness = SCORES * (width + 1), SCORES * width**2
        block = block_parameters(width)
        tables = (shape.vocabulary + SEGMENTS + (shape.context if shape.positions == "learnt" else 0)) * width
        read = task.source_tokens
        # A token is multiplied with its two scores' weights and with two vectors that are made once of the question.
        multiplied = shape.layers * block + norm + scores + SCORES * width
        an_example = read * training_flops(multiplied, shape.layers, width, round(read)) + 6.0 * likeness
        parts = (scores + likeness + norm, *[block] * shape.layers, tables)
        size = ModelSize(
            "encoder",
            shape.layers,
            width,
            shape.context,
            shape.vocabulary,
            sum(parts),
            an_example / task.example_tokens,
            parts,
        )
        kept = 6.0 * (read * (scores + SCORES * width) + likeness)
        return size.recomputing(kept / task.example_tokens) if shape.recompute else size
