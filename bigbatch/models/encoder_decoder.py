"""An encoder–decoder Transformer, which writes one sequence after reading another (Vaswani et al. 2017)."""

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor, nn

from bigbatch.models.blocks import BlockCache, Blocks, Memory, TransformerShape, initialise, last_norm
from bigbatch.models.model import Model, shape_for
from bigbatch.models.positions import positions
from bigbatch.models.settings import STACKS, ModelSettings
from bigbatch.models.sizes import ModelSize, block_parameters, training_flops
from bigbatch.tasks.task import Task


class EncoderDecoderTransformer(nn.Module):
    """An encoder whose blocks see the whole source, and a decoder whose blocks see the target so far and the encoder.

    One table of token vectors serves both inputs and the output layer (section 3.4 of the paper).

    Args:
        shape: the sizes of the model; encoder and decoder have `layers` blocks each.
        seed: seed for the initial weights; see `bigbatch.models.blocks.initialise`.
    """

    def __init__(self, shape: TransformerShape, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        self.tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.source_positions = positions(shape.positions, shape.context, shape.width)
        self.target_positions = positions(shape.positions, shape.context, shape.width)
        self.encoder = Blocks(shape, causal=False)
        self.encoder_norm = last_norm(shape)
        self.decoder = Blocks(shape, causal=True, looks=True)
        self.decoder_norm = last_norm(shape)
        initialise(self, 3 * shape.layers, torch.Generator().manual_seed(seed))

    def forward(self, source: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Predicts every next token of the target.

        Args:
            source: (batch, source sequence) token numbers of what is read.
            target: (batch, target sequence) token numbers of what is written, from the start token on.
            mask: (batch, source sequence) False at padding; None if there is none.

        Returns:
            (batch, target sequence, vocabulary) logits
        """
        return self._decode(target, self._encode(source, mask), None)

    def generator(self, source: Tensor, mask: Tensor | None = None) -> "Writing":
        """Reads sources, as `forward` has them, and makes a generator that writes a target for each."""
        return Writing(self, self._encode(source, mask))

    def _encode(self, source: Tensor, mask: Tensor | None) -> Memory:
        x = self._dropped(self.source_positions(self.tokens(source)))
        return Memory(self.encoder_norm(self.encoder(x, mask)), mask)

    def _decode(self, target: Tensor, memory: Memory, caches: list[BlockCache] | None) -> Tensor:
        first = caches[0].own.tokens if caches else 0
        x = self._dropped(self.target_positions(self.tokens(target), first))
        x = self.decoder(x, memory=memory, caches=caches)
        return F.linear(self.decoder_norm(x), self.tokens.weight)

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.shape.dropout, self.training)


class Writing:
    """Writes targets token by token, and computes each token's keys and values only once.

    Args:
        model: the model that predicts the next token.
        memory: what its encoder made of the sources, a row each.
    """

    def __init__(self, model: EncoderDecoderTransformer, memory: Memory) -> None:
        self._model = model
        self._memory = memory
        self._caches = [BlockCache() for _ in range(model.shape.layers)]

    def advance(self, tokens: Tensor) -> Tensor:
        """Takes the newest token of every row, (rows,), and predicts the next: (rows, vocabulary) logits."""
        return self._model._decode(tokens[:, None], self._memory, self._caches)[:, -1]

    def keep(self, rows: Tensor) -> None:
        """Keeps these rows, (rows,), in this order; a row can be kept several times."""
        states, mask = self._memory.states, self._memory.mask
        self._memory = Memory(states[rows], None if mask is None else mask[rows])
        for cache in self._caches:
            cache.keep(rows)


class EncoderDecoder(Model):
    """The Transformer above, which writes a target after reading a source."""

    recomputes = True

    @classmethod
    def build(cls, task: Task, settings: ModelSettings, seed: int) -> EncoderDecoderTransformer:
        """Builds a Transformer with the task's vocabulary, which takes sources and targets as long as its context."""
        return EncoderDecoderTransformer(shape_for(task, settings, STACKS["encoder-decoder"]), seed)

    @classmethod
    def size(cls, task: Task, settings: ModelSettings) -> ModelSize:
        """Computes parameters, and FLOPs per token of the target.

        For each token of a target, a share of its source is read, too: the encoder, and the keys and values that the
        decoder makes of the encoder's output, work on `task.source_tokens` tokens an example.
        """
        shape = shape_for(task, settings, STACKS["encoder-decoder"])
        width = shape.width
        read, written = task.source_tokens, task.example_tokens
        norm = 2 * width if shape.pre_norm else 0
        block = block_parameters(width)
        looking = block + 4 * width**2 + 2 * width
        tables = (shape.vocabulary + (2 * shape.context if shape.positions == "learnt" else 0)) * width
        made_of_memory = shape.layers * 2 * width**2
        decoder = shape.layers * looking + norm - made_of_memory + shape.vocabulary * width
        encoder = shape.layers * block + norm + made_of_memory
        flops = training_flops(decoder, shape.layers, width, round(read + written))
        flops += read / written * training_flops(encoder, shape.layers, width, round(read))
        parts = (norm, *[looking] * shape.layers, norm, *[block] * shape.layers, tables)
        size = ModelSize(
            "encoder-decoder",
            2 * shape.layers,
            width,
            shape.context,
            shape.vocabulary,
            sum(parts),
            flops,
            tuple(filter(None, parts)),
        )
        return size.recomputing(6.0 * shape.vocabulary * width) if shape.recompute else size
