"""The Transformers: torch's own on copied weights, the published formulas, decoding with a cache, and their sizes."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bigbatch.models.blocks import Attention, TransformerShape
from bigbatch.models.decoder import Decoder, Transformer
from bigbatch.models.encoder import Encoder, EncoderTransformer
from bigbatch.models.encoder_decoder import EncoderDecoder, EncoderDecoderTransformer
from bigbatch.models.positions import SinusoidalPositions, rotated
from bigbatch.models.settings import NORMS, POSITIONS, ModelSettings
from bigbatch.tasks.decoding import Recomputed, beam, greedy
from bigbatch.tasks.loss import PADDING, summed_cross_entropy

SHAPE = TransformerShape(vocabulary=17, context=9, layers=2, width=12, heads=3)
KINDS = [
    replace(SHAPE, positions=positions, pre_norm=pre_norm) for positions in POSITIONS for pre_norm in (True, False)
]
KINDS = [replace(shape, width=24) if shape.positions == "rotary" else shape for shape in KINDS]  # heads of even width
LENGTHS = ([9, 4, 1], [6, 7, 2]), ([3, 3], [1, 5]), ([1], [9])
"""Lengths of the sources and of the targets in three batches; in the second, no source is padded."""


def shaken(module):
    """A module in float64, of which no weight, bias or norm is 0 or 1."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.double().parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return module


def ragged(sources, targets, seed=0):
    """Sources, their mask, and targets with what follows each token of them."""
    generator = torch.Generator().manual_seed(seed)
    source, written = (
        torch.randint(SHAPE.vocabulary, (len(side), max(side)), generator=generator) for side in (sources, targets)
    )
    mask = torch.arange(max(sources)) < torch.tensor(sources)[:, None]
    follows = torch.randint(SHAPE.vocabulary, written.shape, generator=generator)
    follows[torch.arange(max(targets)) >= torch.tensor(targets)[:, None]] = PADDING
    return source, None if mask.all() else mask, written, follows


def pairs_of_parameters(ours, theirs):
    """Each of our parameters beside torch's."""
    looks = hasattr(ours[0], "memory_attention")
    norms = {"attention_norm": "norm1", "network_norm": "norm2"}
    attentions = {"attention": "self_attn"}
    if looks:
        norms = {"attention_norm": "norm1", "memory_norm": "norm2", "network_norm": "norm3"}
        attentions["memory_attention"] = "multihead_attn"
    for block, layer in zip(ours, theirs.layers, strict=True):
        for our, their in (*norms.items(), ("expand", "linear1"), ("contract", "linear2")):
            for kind in ("weight", "bias"):
                yield getattr(getattr(block, our), kind), getattr(getattr(layer, their), kind)
        for our, their in attentions.items():
            attention, other = getattr(block, our), getattr(layer, their)
            yield attention.query_key_value.weight, other.in_proj_weight
            yield attention.output.weight, other.out_proj.weight


class OfTorch(nn.Module):
    """`torch.nn.Transformer` with the weights of ours, the token table before and after it, and learnt positions."""

    def __init__(self, ours):
        super().__init__()
        shape = ours.shape
        choices = {
            "dim_feedforward": 4 * shape.width,
            "dropout": 0.0,
            "activation": "gelu",
            "batch_first": True,
            "norm_first": shape.pre_norm,
            "dtype": torch.float64,
        }
        encoding = nn.TransformerEncoderLayer(shape.width, shape.heads, **choices)
        decoding = nn.TransformerDecoderLayer(shape.width, shape.heads, **choices)
        # `nn.Transformer` by itself ends both stacks with a norm in any case; after post-norm ours have none.
        norms = [nn.LayerNorm(shape.width, dtype=torch.float64) if shape.pre_norm else None for _ in range(2)]
        self.stacks = nn.Transformer(
            shape.width,
            shape.heads,
            batch_first=True,
            custom_encoder=nn.TransformerEncoder(encoding, shape.layers, norms[0], enable_nested_tensor=False),
            custom_decoder=nn.TransformerDecoder(decoding, shape.layers, norms[1]),
        )
        self.tables = nn.ParameterList(
            torch.zeros(rows, shape.width, dtype=torch.float64) for rows in (shape.vocabulary, *[shape.context] * 2)
        )
        self.pairs = [
            *pairs_of_parameters(ours.encoder, self.stacks.encoder),
            *pairs_of_parameters(ours.decoder, self.stacks.decoder),
            *zip(
                (ours.tokens.weight, ours.source_positions.weight, ours.target_positions.weight),
                self.tables,
                strict=True,
            ),
        ]
        if shape.pre_norm:
            self.pairs += zip(ours.encoder_norm.parameters(), self.stacks.encoder.norm.parameters(), strict=True)
            self.pairs += zip(ours.decoder_norm.parameters(), self.stacks.decoder.norm.parameters(), strict=True)
        copied = set()
        for our, their in self.pairs:
            their.data.copy_(our.data)
            copied.add(id(their))
        for parameter in self.parameters():
            if id(parameter) not in copied:  # the biases of attention, which ours does not have
                assert parameter.dim() == 1
                parameter.data.zero_()
        assert len(self.pairs) == len(list(ours.parameters()))

    def forward(self, source, target, mask):
        tokens, of_source, of_target = self.tables
        hidden = None if mask is None else ~mask
        written = self.stacks(
            tokens[source] + of_source[: source.shape[1]],
            tokens[target] + of_target[: target.shape[1]],
            tgt_mask=torch.ones(target.shape[1], target.shape[1], dtype=torch.bool).triu(1),
            src_key_padding_mask=hidden,
            memory_key_padding_mask=hidden,
        )
        return written @ tokens.T


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_the_encoder_decoder_and_its_gradients_are_those_of_torch(norm, lengths):
    ours = shaken(EncoderDecoderTransformer(replace(SHAPE, pre_norm=norm == "pre")))
    theirs = OfTorch(ours)
    source, mask, target, follows = ragged(*lengths)
    logits, expected = ours(source, target, mask), theirs(source, target, mask)
    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)
    for each in (logits, expected):
        summed_cross_entropy(each, follows)[0].backward()
    for our, their in theirs.pairs:
        torch.testing.assert_close(our.grad, their.grad, rtol=1e-11, atol=1e-11)


def in_the_passage(tokens):
    """Of each row, the first two tokens are a question."""
    return (torch.arange(tokens.shape[1]) >= 2).expand(tokens.shape)


@pytest.mark.parametrize("shape", KINDS, ids=lambda shape: f"{shape.positions}-{shape.pre_norm}")
def test_padding_changes_nothing(shape):
    """Each example by itself, without padding, has the logits that it has in a padded batch."""
    model, reader = shaken(EncoderDecoderTransformer(shape)), shaken(EncoderTransformer(shape))
    for sources, targets in LENGTHS:
        source, mask, target, _ = ragged(sources, targets)
        together, read = model(source, target, mask), reader(source, in_the_passage(source), mask)
        for row, (reads, writes) in enumerate(zip(sources, targets, strict=True)):
            alone = model(source[row : row + 1, :reads], target[row : row + 1, :writes])
            torch.testing.assert_close(together[row, :writes], alone[0], rtol=1e-11, atol=1e-11)
            by_itself = source[row : row + 1, :reads]
            alone = reader(by_itself, in_the_passage(by_itself))
            torch.testing.assert_close(read[row, :reads], alone[0], rtol=1e-11, atol=1e-11)


def test_a_target_does_not_see_what_comes_later_and_sees_all_of_the_source():
    model = shaken(EncoderDecoderTransformer(SHAPE))
    source, _, target, _ = ragged([9], [9])
    expected = model(source, target)
    changed = target.clone()
    changed[0, 4] = (changed[0, 4] + 1) % SHAPE.vocabulary
    assert (model(source, changed) != expected).any(-1)[0].tolist() == [False] * 4 + [True] * 5
    changed = source.clone()
    changed[0, 8] = (changed[0, 8] + 1) % SHAPE.vocabulary
    assert (model(changed, target) != expected).any(-1).all()


@torch.no_grad()
def test_attention_to_another_sequence_is_the_published_formula():
    attention = shaken(Attention(SHAPE))
    generator = torch.Generator().manual_seed(2)
    x, other = (torch.randn(2, n, SHAPE.width, generator=generator, dtype=torch.float64) for n in (3, 5))
    mask = torch.tensor([[True] * 5, [True, True, False, True, False]])
    w_query, w_key, w_value = attention.query_key_value.weight.chunk(3)
    size = SHAPE.width // SHAPE.heads
    expected = torch.empty(2, 3, SHAPE.width, dtype=torch.float64)
    for row, place in itertools.product(range(2), range(3)):
        heads = []
        for head in range(SHAPE.heads):
            own = slice(head * size, head * size + size)
            query = w_query[own] @ x[row, place]
            seen = [token for keep, token in zip(mask[row], other[row], strict=True) if keep]
            weights = [math.exp(float(query @ (w_key[own] @ token)) / math.sqrt(size)) for token in seen]
            values = [w_value[own] @ token for token in seen]
            heads.append(sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights))
        expected[row, place] = attention.output.weight @ torch.cat(heads)
    torch.testing.assert_close(attention(x, other, mask), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("width", [1, 7, 12])
@pytest.mark.parametrize("first", [0, 30])
def test_sinusoidal_positions_are_the_published_formula(width, first):
    """Vaswani et al. 2017, section 3.5, and 3.4 for the factor √width of the tokens."""
    x = torch.randn(2, 5, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = SinusoidalPositions()(x, first)
    for place, dimension in itertools.product(range(5), range(width)):
        pair = dimension // 2
        # For an odd width the last wave has no partner; the formula is that of the next even width.
        angle = (first + place) / 10_000 ** (2 * pair / (width + width % 2))
        wave = math.cos(angle) if dimension % 2 else math.sin(angle)
        for row in range(2):
            expected = float(x[row, place, dimension]) * math.sqrt(width) + wave
            assert float(found[row, place, dimension]) == pytest.approx(expected, abs=1e-12)


def test_rotary_positions_turn_each_plane_by_the_published_angle():
    """Su et al. 2021, section 3.2.2: θ_i = 10000^(-2(i-1)/d); the planes are (i, i + d/2), as in GPT-NeoX."""
    heads = torch.randn(1, 2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = rotated(heads, first=3)
    for head, place, plane in itertools.product(range(2), range(4), range(3)):
        one, other = heads[0, head, place, plane], heads[0, head, place, plane + 3]
        turned = complex(one, other) * complex(math.cos(0), 0)
        angle = (3 + place) * 10_000 ** (-2 * plane / 6)
        turned *= complex(math.cos(angle), math.sin(angle))
        got = complex(found[0, head, place, plane], found[0, head, place, plane + 3])
        assert got == pytest.approx(turned, abs=1e-12)


def test_rotary_scores_depend_on_how_far_tokens_are_apart_alone():
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 1, 1, 8, dtype=torch.float64, generator=generator) for _ in range(2))
    scores = {
        (here, there): float((rotated(query, here) * rotated(key, there)).sum())
        for here, there in itertools.product(range(0, 60, 7), repeat=2)
    }
    by_distance = {}
    for (here, there), score in scores.items():
        by_distance.setdefault(here - there, []).append(score)
    for same in by_distance.values():
        assert same == pytest.approx([same[0]] * len(same), abs=1e-12)
    assert len({round(same[0], 6) for same in by_distance.values()}) == len(by_distance)


@pytest.mark.parametrize("positions", POSITIONS)
def test_only_rotary_positions_do_not_tell_where_a_sequence_begins(positions):
    model = shaken(EncoderTransformer(replace(SHAPE, positions=positions, width=24)))
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    later = torch.tensor([[9, 9, 3, 1, 4, 1, 5]])
    mask = torch.tensor([[False, False, True, True, True, True, True]])
    passage = in_the_passage(tokens)
    moved = model(later, torch.cat([passage[:, :2], passage], dim=1), mask)[:, 2:]
    assert torch.allclose(moved, model(tokens, passage), rtol=1e-11, atol=1e-11) == (positions == "rotary")


def models(dropout):
    shape = replace(SHAPE, dropout=dropout)
    source, mask, target, _ = ragged(*LENGTHS[0])
    return [
        (Transformer(shape), (target,)),
        (EncoderTransformer(shape), (source, in_the_passage(source), mask)),
        (EncoderDecoderTransformer(shape), (source, target, mask)),
    ]


@pytest.mark.parametrize("number", range(3))
def test_dropout_is_off_unless_asked_for_and_draws_from_torchs_random_numbers_in_training_only(number):
    assert TransformerShape(1, 1, 1, 1, 1).dropout == ModelSettings().dropout == 0
    model, given = models(0.0)[number]
    state = torch.get_rng_state()
    assert torch.equal(model.train()(*given), model.eval()(*given))
    assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn
    model, given = models(0.3)[number]
    other, _ = models(0.0)[number]
    state = torch.get_rng_state()
    without = model.eval()(*given)
    assert torch.equal(without, other(*given))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    one, next_one = model.train()(*given), model(*given)
    assert not torch.allclose(one, without)
    assert not torch.allclose(one, next_one)
    torch.manual_seed(5)
    assert torch.equal(model(*given), one)


@pytest.mark.parametrize("pre_norm", [True, False])
def test_dropout_drops_its_share_of_embeddings_and_of_what_is_added_to_the_stream_and_scales_the_rest(pre_norm):
    shape = replace(SHAPE, width=240, layers=1, dropout=0.3, pre_norm=pre_norm)
    model = shaken(EncoderDecoderTransformer(shape))
    seen = []
    for stack in (model.encoder, model.decoder):
        stack.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    block = model.decoder[0]
    parts = [
        (block.attention, block.attention_norm, block.memory_norm),
        (block.memory_attention, block.memory_norm, block.network_norm),
    ]
    source, _, target, _ = ragged([9] * 4, [9] * 4)
    model.eval()(source, target)
    whole = seen[:]
    seen.clear()
    torch.manual_seed(0)
    model.train()(source, target)
    for kept, all_ in zip(seen, whole, strict=True):
        dropped = kept == 0
        assert float(dropped.double().mean()) == pytest.approx(0.3, abs=0.02)
        torch.testing.assert_close(kept[~dropped], all_[~dropped] / 0.7)
    for sublayer, norm, next_norm in parts:
        caught = {}
        hooks = [
            sublayer.register_forward_hook(lambda _, __, out, caught=caught: caught.update(output=out)),
            norm.register_forward_pre_hook(lambda _, given, caught=caught: caught.update(norm=given[0])),
            next_norm.register_forward_pre_hook(lambda _, given, caught=caught: caught.update(after=given[0])),
            sublayer.register_forward_pre_hook(lambda _, given, caught=caught: caught.update(input=given[0])),
        ]
        model(source, target)
        # Pre-norm: the next norm sees the stream after the sum. Post-norm: the sublayer's own norm sees the sum.
        added = caught["after"] - caught["norm"] if pre_norm else caught["norm"] - caught["input"]
        dropped = added.abs() < 1e-12
        assert float(dropped.double().mean()) == pytest.approx(0.3, abs=0.02)
        torch.testing.assert_close(added[~dropped], caught["output"][~dropped] / 0.7)
        for hook in hooks:
            hook.remove()


def without_cache(model, source, mask):
    """The generator that computes everything anew at each step."""

    def predict(tokens, rows):
        return model(source[rows], tokens, None if mask is None else mask[rows])

    return Recomputed(predict, len(source))


@pytest.mark.parametrize("shape", KINDS, ids=lambda shape: f"{shape.positions}-{shape.pre_norm}")
@torch.no_grad()
def test_decoding_with_a_cache_is_decoding_without(shape):
    model = shaken(EncoderDecoderTransformer(shape)).eval()
    for sources, _ in LENGTHS:
        source, mask, _, _ = ragged(sources, [1])
        rows = len(sources)
        cached, plain = model.generator(source, mask), without_cache(model, source, mask)
        tokens = torch.zeros(rows, dtype=torch.int64)
        generator = torch.Generator().manual_seed(3)
        for kept in (None, [rows - 1, 0, 0], [2, 0, 1, 1], [3, 2], [1], None):
            if kept is not None:
                for each in (cached, plain):
                    each.keep(torch.tensor(kept))
                tokens = torch.randint(SHAPE.vocabulary, (len(kept),), generator=generator)
            torch.testing.assert_close(cached.advance(tokens), plain.advance(tokens), rtol=1e-10, atol=1e-10)
        start = torch.zeros(rows, dtype=torch.int64)
        both = [
            [
                greedy(made(), start, 0, shape.context),
                beam(made(), start, 0, shape.context, 3, 0.6),
            ]
            for made in (lambda: model.generator(source, mask), lambda: without_cache(model, source, mask))  # noqa: B023
        ]
        assert both[0] == both[1]


@pytest.mark.parametrize("shape", KINDS, ids=lambda shape: f"{shape.positions}-{shape.pre_norm}")
@torch.no_grad()
def test_continuing_a_text_with_a_cache_is_continuing_it_without(shape):
    model = shaken(Transformer(shape)).eval()
    start = torch.arange(4)
    cached = model.generator()
    plain = Recomputed(lambda tokens, _: model(tokens), 4)
    for kept in ([0, 1, 2, 3], [3, 3, 0], [1, 2], [0]):
        for each in (cached, plain):
            each.keep(torch.tensor(kept))
        tokens = torch.tensor(kept) + 5
        torch.testing.assert_close(cached.advance(tokens), plain.advance(tokens), rtol=1e-10, atol=1e-10)
    both = [
        [greedy(made(), start, 0, shape.context), beam(made(), start, 0, shape.context, 3, 0.6)]
        for made in (model.generator, lambda: Recomputed(lambda tokens, _: model(tokens), 4))
    ]
    assert both[0] == both[1]


class Described:
    """A task as far as a model asks."""

    default_positions = "learnt"

    def __init__(self, vocabulary, context, source_tokens, example_tokens):
        self.vocabulary_size, self.context = vocabulary, context
        self.source_tokens, self.example_tokens = source_tokens, example_tokens


@pytest.mark.parametrize("kind", [Decoder, Encoder, EncoderDecoder])
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("norm", NORMS)
def test_a_size_says_the_parameters_that_the_model_has(kind, positions, norm):
    settings = ModelSettings(layers=3, width=24, heads=3, positions=positions, norm=norm)
    task = Described(101, 13, 8.5, 5.25)
    size, built = kind.size(task, settings), kind.build(task, settings, 0)
    counted = sum(parameter.numel() for parameter in built.parameters())
    assert size.parameters == sum(size.parts) == counted
    assert (size.layers, size.width, size.vocabulary, size.context) == (3 * (1 + (kind is EncoderDecoder)), 24, 101, 13)


def counted_flops(model, given, follows):
    """What torch counts: all multiplications of matrices, those in attention included."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        logits = model(*given)
        summed_cross_entropy(logits, follows)[0].backward()
    return counter.get_total_flops()


def test_flops_are_those_that_torch_counts():
    """Biases and norms, which the formula multiplies too, are 1 % of the parameters at this width."""
    read, written = 24, 10
    task = Described(300, 32, read, written)
    settings = ModelSettings(layers=2, width=96, heads=4)
    source, target, follows = (torch.randint(300, (3, n)) for n in (read, written, written))
    size = EncoderDecoder.size(task, settings)
    counted = counted_flops(EncoderDecoder.build(task, settings, 0), (source, target), follows) / follows.numel()
    assert size.flops_per_token == pytest.approx(counted, rel=0.02)
    answers = torch.randint(read, (3, 2))
    task.example_tokens = 2
    size = Encoder.size(task, settings)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        scores = Encoder.build(task, settings, 0)(source, in_the_passage(source))
        summed_cross_entropy(scores.transpose(1, 2), answers)[0].backward()
    assert size.flops_per_token == pytest.approx(counter.get_total_flops() / answers.numel(), rel=0.02)
    task = Described(300, written, 0, written)
    size = Decoder.size(task, settings)
    counted = counted_flops(Decoder.build(task, settings, 0), (target,), follows) / follows.numel()
    assert size.flops_per_token == pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize(("preset", "width", "heads", "millions"), [("base", 512, 8, 65), ("big", 1024, 16, 213)])
def test_presets_are_those_of_vaswani(preset, width, heads, millions):
    """Attention is all you need, table 3: N = 6, with a shared vocabulary of about 37,000 tokens (section 5.1)."""
    settings = ModelSettings(model=preset)
    task = Described(37_000, 64, 20, 20)
    with torch.device("meta"):
        model = EncoderDecoder.build(task, settings, 0)
    assert (len(model.encoder), len(model.decoder), model.shape.width, model.shape.heads) == (6, 6, width, heads)
    assert model.encoder[0].expand.out_features == 4 * width
    assert EncoderDecoder.size(task, settings).parameters / 1e6 == pytest.approx(millions, rel=0.04)


@pytest.mark.parametrize("kind", [Transformer, EncoderTransformer, EncoderDecoderTransformer])
def test_initial_weights_depend_on_the_seed_alone(kind):
    made = []
    for seed, before in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(before)
        made.append(kind(SHAPE, seed).state_dict())
    for name, value in made[0].items():
        assert torch.equal(value, made[1][name]), name
        if value.dim() > 1 and name != "likeness.weight":  # it begins as the identity
            assert not torch.equal(value, made[2][name]), name


def test_initial_weights_keep_the_size_of_the_stream():
    """Each column count gives a deviation of its own; what is added to the stream is smaller (Radford et al. 2019)."""
    shape = replace(SHAPE, width=120, layers=3)
    weights = dict(EncoderDecoderTransformer(shape).named_parameters())
    for name, value in weights.items():
        if value.dim() < 2:
            assert value.unique().tolist() in ([0.0], [1.0])
            continue
        added = name.endswith(("output.weight", "contract.weight"))
        expected = value.shape[1] ** -0.5 / (math.sqrt(3 * 3) if added else 1)
        assert float(value.detach().std()) == pytest.approx(expected, rel=0.1), name
