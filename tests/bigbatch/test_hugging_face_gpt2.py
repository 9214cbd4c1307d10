"""The decoder on the weights of Hugging Face's GPT-2: the same logits and gradients, where `transformers` is there."""

import pytest
import torch

from bigbatch.models.blocks import TransformerShape
from bigbatch.models.decoder import Transformer

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
def test_the_decoder_is_gpt2(activation):
    """Ours has the exact GELU and no biases in attention, whose effect on GPT-2's own is zero if they are."""
    shape = TransformerShape(vocabulary=31, context=11, layers=3, width=20, heads=5)
    config = transformers.GPT2Config(
        vocab_size=31, n_positions=11, n_layer=3, n_embd=20, n_head=5, activation_function=activation,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    theirs = transformers.GPT2LMHeadModel(config).double()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in theirs.named_parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if name.endswith(("c_attn.bias", "attn.c_proj.bias")):
            parameter.data.zero_()
    ours = Transformer(shape).double()
    body = theirs.transformer
    pairs = [
        (ours.tokens.weight, body.wte.weight),
        (ours.positions.weight, body.wpe.weight),
        *zip(ours.norm.parameters(), body.ln_f.parameters(), strict=True),
    ]
    turned = []  # GPT-2's matrices are the transposes of ours
    for block, other in zip(ours.blocks, body.h, strict=True):
        pairs += zip(block.attention_norm.parameters(), other.ln_1.parameters(), strict=True)
        pairs += zip(block.network_norm.parameters(), other.ln_2.parameters(), strict=True)
        pairs += [(block.expand.bias, other.mlp.c_fc.bias), (block.contract.bias, other.mlp.c_proj.bias)]
        turned += [
            (block.attention.query_key_value.weight, other.attn.c_attn.weight),
            (block.attention.output.weight, other.attn.c_proj.weight),
            (block.expand.weight, other.mlp.c_fc.weight),
            (block.contract.weight, other.mlp.c_proj.weight),
        ]
    assert len(pairs) + len(turned) == len(list(ours.parameters()))
    for our, their in pairs:
        our.data.copy_(their.data)
    for our, their in turned:
        our.data.copy_(their.data.T)

    tokens = torch.randint(31, (4, 11), generator=generator)
    logits, expected = ours(tokens), theirs(input_ids=tokens).logits
    if activation == "gelu_new":  # the approximation that GPT-2 was trained with: close, and not equal
        assert 1e-9 < float((logits - expected).detach().abs().max()) < 0.1
        return
    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)
    for each in (logits, expected):
        torch.nn.functional.cross_entropy(each[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    for our, their in pairs:
        torch.testing.assert_close(our.grad, their.grad, rtol=1e-11, atol=1e-12)
    for our, their in turned:
        torch.testing.assert_close(our.grad, their.grad.T, rtol=1e-11, atol=1e-12)
