"""The blocks of which every Transformer here is built: attention to one's own or another sequence, and a network."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bigbatch.models.positions import rotated


@dataclass(frozen=True)
class TransformerShape:
    """The sizes and choices that define a Transformer.

    Attributes:
        vocabulary: number of different tokens.
        context: the longest sequence, in tokens.
        layers: number of blocks, of the encoder and of the decoder each.
        width: length of a token's vector; `heads` divides it.
        heads: number of attention heads.
        positions: how positions are told; see `bigbatch.models.positions`.
        pre_norm: whether a sublayer's input is normalised; if not, the sum of its input and its output is.
        dropout: share of the numbers that are dropped from a sublayer's output, while training.
        recompute: whether backward computes a block again, instead of keeping what forward has computed within it.
    """

    vocabulary: int
    context: int
    layers: int
    width: int
    heads: int
    positions: str = "learnt"
    pre_norm: bool = True
    dropout: float = 0.0
    recompute: bool = False


class KeyValueCache:
    """Keys and values that an attention has computed before, so that decoding computes each token's only once.

    Attributes:
        pair: keys and values, (batch, heads, tokens, head width) each; None as long as there are none.
    """

    def __init__(self) -> None:
        self.pair: tuple[Tensor, Tensor] | None = None

    @property
    def tokens(self) -> int:
        """Number of tokens whose keys and values are kept."""
        return 0 if self.pair is None else self.pair[0].shape[2]

    def add(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Appends the keys and values of further tokens, and returns all."""
        if self.pair is not None:
            key, value = torch.cat([self.pair[0], key], dim=2), torch.cat([self.pair[1], value], dim=2)
        self.pair = key, value
        return self.pair

    def keep(self, rows: Tensor) -> None:
        """Keeps these rows of the batch, (rows,), in this order; a row can be kept several times."""
        if self.pair is not None:
            self.pair = self.pair[0][rows], self.pair[1][rows]


class Attention(nn.Module):
    """Multi-head attention to one's own or to another sequence (Vaswani et al. 2017, section 3.2).

    Each head computes softmax(Q Kᵀ / √d + M) V, where d is the head's width, and M is -∞ where a token must not look.
    The projections have no bias: a key's bias would change nothing, since softmax ignores a constant that is added to
    every score.

    Args:
        shape: the sizes of the model.
        causal: whether a token sees itself and the tokens before it only.
    """

    def __init__(self, shape: TransformerShape, *, causal: bool = False) -> None:
        super().__init__()
        self.heads = shape.heads
        self.causal = causal
        self.rotary = shape.positions == "rotary"
        self.query_key_value = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.output = nn.Linear(shape.width, shape.width, bias=False)

    def forward(
        self,
        x: Tensor,
        other: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Looks from every token of `x` at the tokens of `other`, or at those of `x` itself.

        Args:
            x: (batch, sequence, width) the tokens that look.
            other: (batch, other sequence, width) the tokens that are looked at; None for those of `x`.
            mask: (batch, other sequence) False at tokens that must not be looked at; None if there are none.
            cache: the keys and values of earlier calls: of the tokens before `x`, or of all of `other`.

        Returns:
            (batch, sequence, width)
        """
        if other is None:
            query, key, value = self._heads(self.query_key_value(x), 3)
            first = 0 if cache is None else cache.tokens
            if self.rotary:
                query, key = rotated(query, first), rotated(key, first)
            if cache is not None:
                key, value = cache.add(key, value)
        else:
            for_query, for_key_value = self.query_key_value.weight.tensor_split([x.shape[2]])
            (query,) = self._heads(F.linear(x, for_query), 1)
            if cache is None or cache.pair is None:
                key, value = self._heads(F.linear(other, for_key_value), 2)
                if cache is not None:
                    cache.add(key, value)
            else:
                key, value = cache.pair
        causal = self.causal
        if query.shape[2] == 1:  # the newest token alone sees everything that came before
            causal = False
        wide = None if mask is None else mask[:, None, None, :]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=wide, is_causal=causal)
        output: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return output

    def _heads(self, projected: Tensor, parts: int) -> tuple[Tensor, ...]:
        """Cuts (batch, sequence, parts · width) into `parts` tensors of (batch, heads, sequence, head width)."""
        batch, sequence, together = projected.shape
        width = together // (parts * self.heads)
        return projected.view(batch, sequence, parts, self.heads, width).permute(2, 0, 3, 1, 4).unbind()


@dataclass
class BlockCache:
    """What a block keeps while a sequence is decoded.

    Attributes:
        own: keys and values of the sequence so far.
        memory: keys and values of the encoder's output.
    """

    own: KeyValueCache = field(default_factory=KeyValueCache)
    memory: KeyValueCache = field(default_factory=KeyValueCache)

    def keep(self, rows: Tensor) -> None:
        """Keeps these rows of the batch, (rows,), in this order; a row can be kept several times."""
        self.own.keep(rows)
        self.memory.keep(rows)


@dataclass(frozen=True)
class Memory:
    """An encoder's output, at which a decoder looks.

    Attributes:
        states: (batch, source sequence, width) the output.
        mask: (batch, source sequence) False at padding; None if there is none.
    """

    states: Tensor
    mask: Tensor | None


class Block(nn.Module):
    """Attention to oneself, attention to an encoder's output in some, and a two-layer network.

    Each sublayer's output is added to the residual stream. Pre-norm normalises a sublayer's input (Xiong et al. 2020),
    post-norm the sum after it (Vaswani et al. 2017, section 3.1), which learns only if the rate is warmed up.

    Args:
        shape: the sizes of the model.
        causal: whether a token sees only itself and the tokens before it.
        looks: whether the block looks at an encoder's output.
    """

    def __init__(self, shape: TransformerShape, *, causal: bool, looks: bool = False) -> None:
        super().__init__()
        self.pre_norm = shape.pre_norm
        self.dropout = shape.dropout
        self.attention_norm = nn.LayerNorm(shape.width)
        self.attention = Attention(shape, causal=causal)
        if looks:
            self.memory_norm = nn.LayerNorm(shape.width)
            self.memory_attention = Attention(shape)
        self.network_norm = nn.LayerNorm(shape.width)
        self.expand = nn.Linear(shape.width, 4 * shape.width)
        self.contract = nn.Linear(4 * shape.width, shape.width)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        memory: Memory | None = None,
        cache: BlockCache | None = None,
    ) -> Tensor:
        """Applies the block to a residual stream: (batch, sequence, width) -> (batch, sequence, width).

        Args:
            x: the stream.
            mask: (batch, sequence) False at padding; None if there is none, or nothing after it counts.
            memory: the encoder's output, for a block that looks at one.
            cache: what was computed of the tokens before `x`, if they are decoded one after the other.
        """
        own, of_memory = (None, None) if cache is None else (cache.own, cache.memory)
        x = self._added(x, self.attention_norm, lambda x: self.attention(x, mask=mask, cache=own))
        if memory is not None:
            x = self._added(
                x, self.memory_norm, lambda x: self.memory_attention(x, memory.states, memory.mask, of_memory)
            )
        return self._added(x, self.network_norm, lambda x: self.contract(F.gelu(self.expand(x))))

    def _added(self, x: Tensor, norm: nn.Module, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """Adds a sublayer's output to the residual stream."""
        output = sublayer(norm(x) if self.pre_norm else x)
        if self.dropout:
            output = F.dropout(output, self.dropout, self.training)
        total: Tensor = x + output if self.pre_norm else norm(x + output)
        return total


class Blocks(nn.ModuleList):
    """Blocks, one after the other.

    If they recompute (Chen et al., "Training deep nets with sublinear memory cost", 2016), forward keeps the input of
    each block only, and backward computes the block once more, with the same random numbers. The gradients are the
    same. Where no gradients are computed, nothing is kept anyway.

    Args:
        shape: the sizes of the model.
        causal: whether a token sees only itself and the tokens before it.
        looks: whether the blocks look at an encoder's output.
    """

    def __init__(self, shape: TransformerShape, *, causal: bool, looks: bool = False) -> None:
        super().__init__(Block(shape, causal=causal, looks=looks) for _ in range(shape.layers))
        self._recompute = shape.recompute
        self._random = shape.dropout > 0

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        memory: Memory | None = None,
        caches: Sequence[BlockCache] | None = None,
    ) -> Tensor:
        """Applies every block to a residual stream, (batch, sequence, width); the arguments are those of a block."""
        for number, block in enumerate(self):
            if caches is None and self._recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, mask, memory, use_reentrant=False, preserve_rng_state=self._random)
            elif caches is None:
                x = block(x, mask, memory)
            else:  # never compiled: each token has another length before it
                x = block.forward(x, mask, memory, caches[number])
        return x


def last_norm(shape: TransformerShape) -> nn.Module:
    """Makes the norm at the end of the residual stream, which post-norm blocks have normalised already."""
    return nn.LayerNorm(shape.width) if shape.pre_norm else nn.Identity()


def initialise(module: nn.Module, additions: int, generator: torch.Generator, deviation: float | None = None) -> None:
    """Draws initial weights from a normal distribution; biases become zero, and norms begin at one.

    The matrices whose output is added to a residual stream get 1/√additions of the others' deviation, so that the
    stream's size does not depend on its length (Radford et al. 2019).

    Args:
        module: the model.
        additions: number of outputs that are added to a residual stream: two or three in each block.
        generator: the source of random numbers. It is the model's own, so that other random numbers drawn earlier do
            not change the weights.
        deviation: standard deviation of all matrices; None for 1/√columns of each, which keeps the size of what it is
            multiplied with (LeCun et al. 1998, section 4.6).
    """
    for name, parameter in module.named_parameters():
        if parameter.dim() < 2:
            continue
        own = parameter.shape[1] ** -0.5 if deviation is None else deviation
        into_stream = name.endswith(("attention.output.weight", "contract.weight"))
        nn.init.normal_(parameter, std=own / math.sqrt(additions) if into_stream else own, generator=generator)
    for part in module.modules():
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
