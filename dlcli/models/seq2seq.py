"""The Transformer (Vaswani et al. 2017): an encoder reads a sentence, a decoder writes its translation.

Shapes: B sentences, K tokens of the longest source, Q of the target, D width of a token, V tokens of the vocabulary.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcli.models.layers.attention import (
    Attention,
    DecoderBlock,
    EncoderBlock,
    FeedForward,
    attend,
    key_mask,
    sinusoids,
)


class State(NamedTuple):
    """The state from which a translation continues; the first dimension of every tensor is B.

    mask: (B, 1, 1, K) bool, true on source tokens that are not padding; source: their keys and values (B, K, D) for
    each decoder block; written: keys and values (B, L, D) of the tokens written so far, none at the beginning.
    """

    mask: Tensor
    source: list[tuple[Tensor, Tensor]]
    written: list[tuple[Tensor, Tensor]]

    def at(self, rows: Tensor) -> State:
        """The state of these sentences: (M,) int64, in another order, some of them several times."""
        source, written = ([(k[rows], v[rows]) for k, v in pairs] for pairs in (self.source, self.written))
        return State(self.mask[rows], source, written)


class Seq2SeqTransformer(nn.Module):
    """Encoder and decoder over one vocabulary, with one matrix to embed and to read out (sections 3.1 to 3.5).

    Takes source (B, K) int64 with source_lengths (B,) int64, and target (B, Q) int64; gives logits (B, Q, V) of the
    token after each target token. layers: blocks of each side; feed_forward: units of those layers.
    pre_norm: normalise the input of each layer (Xiong et al. 2020); false: its output, as in the paper.
    """

    reads_from = "each"

    def __init__(
        self,
        *,
        num_tokens: int,
        hidden_size: int = 128,
        num_layers: int = 2,
        num_heads: int = 4,
        ffn_size: int = 256,
        dropout: float = 0.0,
        pre_norm: bool = True,
    ):
        super().__init__()

        def hidden() -> FeedForward:
            return FeedForward(hidden_size, ffn_size, dropout)

        self.scale = math.sqrt(hidden_size)
        self.tokens = nn.Embedding(num_tokens, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.encoder, self.decoder = (
            nn.ModuleList(kind(hidden_size, num_heads, hidden(), dropout, pre_norm=pre_norm) for _ in range(num_layers))
            for kind in (EncoderBlock, DecoderBlock)
        )
        self.encoder_norm, self.decoder_norm = (
            nn.LayerNorm(hidden_size) if pre_norm else nn.Identity() for _ in range(2)
        )
        nn.init.normal_(self.tokens.weight, std=1 / self.scale)

    def forward(self, source_BK: Tensor, source_lengths_B: Tensor, target_BQ: Tensor) -> Tensor:
        source_BKD, mask = self.encode(source_BK, source_lengths_B)
        x_BQD = self.embed(target_BQ)  # padding comes last: no token that counts looks at it
        for block in self.decoder:
            x_BQD = block(x_BQD, source_BKD, source_mask=mask)
        return self.read_out(x_BQD)

    def encode(self, source_BK: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """The encoder's tokens (B, K, D), and the mask (B, 1, 1, K) of those that are not padding."""
        mask = key_mask(lengths_B, source_BK.shape[1])
        x_BKD = self.embed(source_BK)
        for block in self.encoder:
            x_BKD = block(x_BKD, mask=mask)
        return self.encoder_norm(x_BKD), mask

    def begin(self, source_BK: Tensor, lengths_B: Tensor) -> State:
        """The state before the first token is written."""
        source_BKD, mask = self.encode(source_BK, lengths_B)
        source = [(block.cross.k(source_BKD), block.cross.v(source_BKD)) for block in self.decoder]  # type: ignore[union-attr,operator]
        nothing = source_BKD[:, :0]
        return State(mask, source, [(nothing, nothing)] * len(self.decoder))

    def extend(self, tokens_B: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits (B, V) of the token after tokens_B, (B,) int64; and the state with these written."""
        x_B1D, written = self.embed(tokens_B[:, None], first=state.written[0][0].shape[1]), []
        for block, source, before in zip(self.decoder, state.source, state.written, strict=True):
            x_B1D, after = extend_block(block, x_B1D, source, before, state.mask)  # type: ignore[arg-type]
            written.append(after)
        return self.read_out(x_B1D)[:, 0], state._replace(written=written)

    def embed(self, tokens_BL: Tensor, first: int = 0) -> Tensor:
        """first: the position of the first token."""
        x_BLD = self.tokens(tokens_BL) * self.scale
        positions_LD = sinusoids(first + x_BLD.shape[1], x_BLD.shape[2], x_BLD.device)[first:]
        return self.dropout(x_BLD + positions_LD)

    def read_out(self, x_BLD: Tensor) -> Tensor:
        return F.linear(self.decoder_norm(x_BLD), self.tokens.weight)

    def attention(self, source_BK: Tensor, source_lengths_B: Tensor, target_BQ: Tensor) -> list[Tensor]:
        """For each decoder block, the weight of each source token for each target token: (B, H, Q, K)."""
        source_BKD, mask = self.encode(source_BK, source_lengths_B)
        x_BQD, found = self.embed(target_BQ), []
        for block in self.decoder:
            found.append(cross_weights(block, x_BQD, source_BKD, mask))  # type: ignore[arg-type]
            x_BQD = block(x_BQD, source_BKD, source_mask=mask)
        return found


def extend_block(
    block: DecoderBlock, x_B1D: Tensor, source: tuple[Tensor, Tensor], before: tuple[Tensor, Tensor], mask: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The output of a decoder block for one more token, and the keys and values with it."""
    attention, cross = block.attention, block.cross
    normed = block.norm1(x_B1D) if block.pre_norm else x_B1D
    k_BLD, v_BLD = torch.cat([before[0], attention.k(normed)], 1), torch.cat([before[1], attention.v(normed)], 1)
    if block.pre_norm:
        x_B1D = x_B1D + look(attention, normed, k_BLD, v_BLD)
        x_B1D = x_B1D + look(cross, block.norm2(x_B1D), *source, mask=mask)
        return x_B1D + block.feed_forward(block.norm3(x_B1D)), (k_BLD, v_BLD)
    x_B1D = block.norm1(x_B1D + look(attention, x_B1D, k_BLD, v_BLD))
    x_B1D = block.norm2(x_B1D + look(cross, x_B1D, *source, mask=mask))
    return block.norm3(x_B1D + block.feed_forward(x_B1D)), (k_BLD, v_BLD)


def cross_weights(block: DecoderBlock, x_BQD: Tensor, source_BKD: Tensor, mask: Tensor) -> Tensor:
    """(B, H, Q, K): the weight of each source token for each target token."""
    if block.pre_norm:
        looked_BQD = block.norm2(x_BQD + block.attention(block.norm1(x_BQD), is_causal=True))
    else:
        looked_BQD = block.norm1(x_BQD + block.attention(x_BQD, is_causal=True))
    return block.cross.weights(looked_BQD, source_BKD, mask=mask)


def look(attention: Attention, x_BQD: Tensor, k_BKD: Tensor, v_BKD: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention to keys and values that are already computed."""
    return attention.out(attend(attention.q(x_BQD), k_BKD, v_BKD, attention.head_width, mask=mask))
