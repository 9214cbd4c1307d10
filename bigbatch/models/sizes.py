"""Sizes of published models: how many gradients they have, and how many operations a token costs.

A simulation needs no weights. It needs only how many there are, in which order their gradients become ready, and how
long it takes to compute them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.registry import unknown_name


@dataclass(frozen=True)
class ModelSize:
    """The numbers about a model that a simulation needs: its parameters, their order, and the cost of a token.

    Attributes:
        name: the model's name in tables and figures.
        layers: number of blocks.
        width: length of a token's vector; 0 if it is not known.
        context: the longest sequence, in tokens; 0 if it is not known.
        vocabulary: number of different tokens; 0 if it is not known.
        parameters: number of trained parameters.
        flops_per_token: floating-point operations for forward and backward of one token in a sequence of `context`.
        parts: number of parameters in each part, in the order in which backward finishes the parts: the output side of
            the model first, the embeddings last. They add up to `parameters`.
        recomputed: the share of forward's operations that backward does once more, beside `flops_per_token`.
    """

    name: str
    layers: int
    width: int
    context: int
    vocabulary: int
    parameters: int
    flops_per_token: float
    parts: tuple[int, ...]
    recomputed: float = 0.0

    def recomputing(self, kept: float) -> "ModelSize":
        """Returns the size of the same model if backward computes it once more, but for a part.

        Args:
            kept: floating-point operations for forward and backward of one token in what is not computed once more.
        """
        return replace(self, recomputed=1 - kept / self.flops_per_token)

    @property
    def beside_embeddings(self) -> int:
        """Parameters of the blocks' matrices, 12·layers·width²; all parameters if the width is not known.

        That is N of Kaplan et al., "Scaling laws for neural language models" (2020), section 2.1.
        """
        return 12 * self.layers * self.width**2 or self.parameters


def training_flops(multiplied: int, layers: int, width: int, context: int) -> float:
    """Floating-point operations for forward and backward of one token: 6N + 12·layers·width·context.

    Every parameter of a matrix is multiplied and added once forward and twice backward, six operations; attention to
    all of the context costs the rest. Kaplan et al., "Scaling laws for neural language models" (2020), section 2.1, for
    the first term; Chowdhery et al., "PaLM: scaling language modeling with pathways" (2022), appendix B, for both.

    Args:
        multiplied: N, the parameters with which a token is multiplied: all but those of tables in which it is only
            looked up. A token table that is also the output layer counts once.
        layers: number of blocks.
        width: length of a token's vector.
        context: tokens that each token attends to. Tokens that a causal mask hides are counted too, as in the paper.
    """
    return 6.0 * multiplied + 12.0 * layers * width * context


def _biased_block(width: int) -> int:
    """Parameters of a block with biases: 4d² + 4d of attention, 8d² + 5d of the two layers, 4d of two norms."""
    return 12 * width**2 + 13 * width


def _gpt(name: str, layers: int, width: int, context: int, vocabulary: int = 50257) -> ModelSize:
    """A GPT-2, and a GPT-3: blocks, a last norm of 2d, and tables of tokens, also the output layer, and positions.

    Backward has the tokens' gradient whole only when it has come back to where they are looked up.
    """
    parts = (2 * width, *[_biased_block(width)] * layers, (vocabulary + context) * width)
    flops = training_flops(sum(parts) - context * width, layers, width, context)
    return ModelSize(name, layers, width, context, vocabulary, sum(parts), flops, parts)


def _llama(name: str, layers: int, width: int, inner: int, context: int, vocabulary: int) -> ModelSize:
    """A LLaMA without grouped queries: no biases, norms of d, three matrices a network, an output layer of its own."""
    table = vocabulary * width
    parts = (table, width, *[4 * width**2 + 3 * width * inner + 2 * width] * layers, table)
    flops = training_flops(sum(parts) - table, layers, width, context)
    return ModelSize(name, layers, width, context, vocabulary, sum(parts), flops, parts)


def _bert(name: str, layers: int, width: int, context: int, vocabulary: int) -> ModelSize:
    """A BERT: a pooler, blocks, and tables of tokens, positions and two segments, with a norm.

    The heads of its pre-training are left out, in the parameters and in the FLOPs, as counts of it mostly do.
    """
    embeddings = (vocabulary + context + 2) * width + 2 * width
    parts = (width**2 + width, *[_biased_block(width)] * layers, embeddings)
    flops = training_flops(sum(parts) - embeddings, layers, width, context)
    return ModelSize(name, layers, width, context, vocabulary, sum(parts), flops, parts)


PUBLISHED: Mapping[str, ModelSize] = MappingProxyType(
    {
        size.name: size
        for size in (
            _gpt("gpt2-small", 12, 768, 1024),
            _gpt("gpt2-medium", 24, 1024, 1024),
            _gpt("gpt2-large", 36, 1280, 1024),
            _gpt("gpt2-xl", 48, 1600, 1024),
            _llama("llama2-7b", 32, 4096, 11008, 4096, 32000),
            _gpt("gpt3-175b", 96, 12288, 2048),
            _bert("bert-large", 24, 1024, 512, 30522),
        )
    }
)
"""Published models by name, with the papers that their sizes come from.

Radford et al., "Language models are unsupervised multitask learners" (2019), table 2, for GPT-2; Touvron et al.,
"Llama 2: open foundation and fine-tuned chat models" (2023), and the configuration released with it; Brown et al.,
"Language models are few-shot learners" (2020), table 2.1, for GPT-3; Devlin et al., "BERT: pre-training of deep
bidirectional Transformers for language understanding" (2019), section 3.
"""


WITHOUT_OUTPUT = frozenset({"bert-large"})
"""The published models whose output layers are not counted."""


def recomputing_blocks(size: ModelSize) -> ModelSize:
    """Returns the size of a Transformer whose blocks are computed once more in backward (Chen et al. 2016).

    The output layer, a matrix of vocabulary × width, is not. Where nobody knows how large it is, or it is not counted
    in the operations, everything is taken to be computed once more.
    """
    output = 0 if size.name in WITHOUT_OUTPUT else size.vocabulary * size.width
    return size.recomputing(6.0 * output)


def model_named(name: str) -> ModelSize:
    """Looks up a published model by name.

    Raises:
        ConfigurationError: no model has that name; the message lists the known ones.
    """
    if name not in PUBLISHED:
        raise unknown_name("model", name, PUBLISHED)
    return PUBLISHED[name]


def model_of(parameters: int, flops_per_token: float | None = None, layers: int = 32) -> ModelSize:
    """Makes the size of a model of which only these numbers are known.

    Args:
        parameters: number of trained parameters.
        flops_per_token: floating-point operations for forward and backward of one token; six per parameter if it is
            not given.
        layers: number of parts over which the parameters are spread as evenly as possible.

    Raises:
        ConfigurationError: there are fewer than one layer or fewer parameters than layers, or the FLOPs are negative.
    """
    if layers < 1 or parameters < layers:
        raise ConfigurationError(
            f"A model of {parameters} parameter(s) in {layers} layer(s) was asked for; it needs at least one layer, "
            "and one parameter for each."
        )
    flops = 6.0 * parameters if flops_per_token is None else flops_per_token
    if not (math.isfinite(flops) and flops >= 0):
        raise ConfigurationError(f"flops_per_token is {flops!r}; it must be a number of 0 or more.")
    least, over = divmod(parameters, layers)
    parts = tuple(least + (part < over) for part in range(layers))
    return ModelSize("given", layers, 0, 0, 0, parameters, flops, parts)


def block_parameters(width: int) -> int:
    """Parameters of our own block: 4d² of attention (no bias), 8d² + 5d of the two layers and 4d of the two norms."""
    return 12 * width**2 + 9 * width


def own_size(
    vocabulary: int, context: int, layers: int, width: int, *, learnt_positions: bool = True, pre_norm: bool = True
) -> ModelSize:
    """Computes the size of the Transformer in `bigbatch.models.decoder`, whose output layer is the token table.

    Args:
        vocabulary: number of different tokens.
        context: the longest sequence, in tokens.
        layers: number of blocks.
        width: d, the length of a token's vector.
        learnt_positions: whether there is a table of positions.
        pre_norm: whether there is a norm at the end, of 2d parameters.
    """
    block, norm = block_parameters(width), 2 * width if pre_norm else 0
    tables = (vocabulary + (context if learnt_positions else 0)) * width
    flops = training_flops(layers * block + norm + vocabulary * width, layers, width, context)
    parts = tuple(filter(None, (norm, *[block] * layers, tables)))
    return ModelSize("transformer", layers, width, context, vocabulary, sum(parts), flops, parts)
