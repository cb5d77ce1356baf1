"""Attention: its formula, its masks, its blocks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from dlcli.errors import ConfigError
from dlcli.models.layers.attention import Attention, DecoderBlock, EncoderBlock, FeedForward, key_mask, sinusoids

B, Q, K, D, H = 3, 5, 7, 12, 4


@pytest.fixture
def attention() -> Attention:
    torch.manual_seed(0)
    return Attention(D, H).double()


def by_formula(attention: Attention, queries: Tensor, keys: Tensor, mask_BHQK: Tensor) -> tuple[Tensor, Tensor]:
    """One example and one head after the other, as the paper writes it; (output, weights)."""
    size = D // H
    q, k, v = attention.q(queries), attention.k(keys), attention.v(keys)
    mixed, weights = torch.zeros_like(q), torch.zeros(len(q), H, q.shape[1], k.shape[1], dtype=q.dtype)
    for b in range(len(q)):
        for h in range(H):
            part = slice(h * size, (h + 1) * size)
            scores = q[b, :, part] @ k[b, :, part].T / math.sqrt(size)
            weights[b, h] = torch.where(mask_BHQK[b, h], scores, torch.tensor(-1e9).double()).softmax(1)
            mixed[b, :, part] = weights[b, h] @ v[b, :, part]
    return attention.out(mixed), weights


def words(seed: int, count: int) -> Tensor:
    return torch.randn(B, count, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_it_equals_the_formula_without_a_mask(attention: Attention) -> None:
    x = words(1, Q)
    output, weights = by_formula(attention, x, x, torch.ones(B, H, Q, Q, dtype=torch.bool))
    torch.testing.assert_close(attention(x), output)
    torch.testing.assert_close(attention.weights(x), weights)


def test_it_equals_the_formula_with_keys_of_their_own_and_padding(attention: Attention) -> None:
    x, keys = words(1, Q), words(2, K)
    mask = key_mask(torch.tensor([7, 3, 1]), K)
    output, weights = by_formula(attention, x, keys, mask.expand(B, H, Q, K))
    torch.testing.assert_close(attention(x, keys, mask=mask), output)
    torch.testing.assert_close(attention.weights(x, keys, mask=mask), weights)


@pytest.mark.parametrize("padded", [False, True])
def test_it_equals_the_formula_when_causal(attention: Attention, padded: bool) -> None:
    x = words(1, Q)
    mask = key_mask(torch.tensor([5, 2, 1]), Q) if padded else None
    seen = torch.ones(Q, Q, dtype=torch.bool).tril() & (True if mask is None else mask)
    output, weights = by_formula(attention, x, x, seen.expand(B, H, Q, Q))
    torch.testing.assert_close(attention(x, mask=mask, is_causal=True), output)
    torch.testing.assert_close(attention.weights(x, mask=mask, is_causal=True), weights)


def test_it_equals_torchs_own_module(attention: Attention) -> None:
    theirs = nn.MultiheadAttention(D, H, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([attention.q.weight, attention.k.weight, attention.v.weight]))
        theirs.in_proj_bias.copy_(torch.cat([attention.q.bias, attention.k.bias, attention.v.bias]))
        theirs.out_proj.weight.copy_(attention.out.weight)
        theirs.out_proj.bias.copy_(attention.out.bias)
    x, keys = words(1, Q), words(2, K)
    output, weights = theirs(x, keys, keys, average_attn_weights=False)
    torch.testing.assert_close(attention(x, keys), output)
    torch.testing.assert_close(attention.weights(x, keys), weights)


def test_a_query_that_may_look_nowhere_gets_zeros(attention: Attention) -> None:
    x, nowhere = words(1, Q), torch.zeros(B, 1, Q, Q, dtype=torch.bool)
    assert torch.equal(attention.weights(x, mask=nowhere), torch.zeros(B, H, Q, Q).double())
    torch.testing.assert_close(attention(x, mask=nowhere), attention.out.bias.expand(B, Q, D))


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    attention, x = Attention(D, H, dropout=0.5), words(1, Q).float()
    assert not torch.equal(attention(x), attention(x))
    attention.eval()
    assert torch.equal(attention(x), attention(x))


@pytest.mark.parametrize("pre_norm", [False, True])
def test_an_encoder_block_equals_torchs_own(pre_norm: bool) -> None:
    torch.manual_seed(0)
    ours = EncoderBlock(D, H, FeedForward(D, 20), pre_norm=pre_norm).double().eval()
    theirs = nn.TransformerEncoderLayer(D, H, 20, 0.0, batch_first=True, norm_first=pre_norm).double().eval()
    with torch.no_grad():
        own = ours.attention
        theirs.self_attn.in_proj_weight.copy_(torch.cat([own.q.weight, own.k.weight, own.v.weight]))
        theirs.self_attn.in_proj_bias.copy_(torch.cat([own.q.bias, own.k.bias, own.v.bias]))
    pairs = {"self_attn.out_proj": own.out, "norm1": ours.norm1, "norm2": ours.norm2}
    pairs |= {"linear1": ours.feed_forward.up, "linear2": ours.feed_forward.down}
    for name, layer in pairs.items():
        theirs.get_submodule(name).load_state_dict(layer.state_dict())
    x, lengths = words(1, Q), torch.tensor([5, 3, 4])
    hidden = torch.arange(Q) >= lengths[:, None]
    expected = theirs(x, src_key_padding_mask=hidden)
    seen = ~hidden  # what torch puts where there is padding is its own affair
    torch.testing.assert_close(ours(x, mask=key_mask(lengths, Q))[seen], expected[seen])


def test_a_decoder_block_sees_neither_the_future_nor_padding() -> None:
    torch.manual_seed(0)
    block = DecoderBlock(D, H, FeedForward(D, 20)).double().eval()
    x, source, source_mask = words(1, Q), words(2, K), key_mask(torch.tensor([4, 4, 4]), K)
    before = block(x, source, source_mask=source_mask)
    later, longer = x.clone(), source.clone()
    later[:, 3:] += 1.0
    longer[:, 4:] += 1.0
    after = block(later, longer, source_mask=source_mask)
    torch.testing.assert_close(after[:, :3], before[:, :3])
    assert not torch.allclose(after[:, 3:], before[:, 3:])
    assert not torch.allclose(block(x, longer), block(x, source)), "without the mask it sees them"


def test_sinusoids_follow_section_3_5() -> None:
    table = sinusoids(50, 8)
    assert table.shape == (50, 8)
    for position, column in [(0, 0), (7, 2), (49, 6)]:
        angle = position / 10_000 ** (column / 8)
        assert table[position, column].item() == pytest.approx(math.sin(angle), abs=1e-5)
        assert table[position, column + 1].item() == pytest.approx(math.cos(angle), abs=1e-5)


def test_heads_that_do_not_divide_the_width_are_refused_with_those_that_do() -> None:
    with pytest.raises(ConfigError, match=r"model\.num_heads=5 does not divide model\.hidden_size=12") as caught:
        Attention(12, 5)
    assert "1, 2, 3, 4, 6, 12" in str(caught.value.hint)
