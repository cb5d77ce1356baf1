"""GPT: a decoder-only Transformer that predicts the next token (Radford et al. 2019, section 2.3).

Shapes: B texts, L tokens of each, D width of a token, V tokens of the vocabulary.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcli.errors import ConfigError
from dlcli.models.layers.attention import EncoderBlock, FeedForward, attend

Cache = list[tuple[Tensor, Tensor]]  # keys and values (B, L, D) of each block, of the tokens read so far


class GPT(nn.Module):
    """Tokens and learnt positions go through `layers` pre-norm blocks; each token sees those before it.

    Takes tokens (B, L) int64 with L <= block; gives logits (B, L, V) of the token after each. feed_forward: units of
    those layers. tied: one matrix embeds the tokens and reads them out (Press and Wolf 2017).
    """

    reads_from = "last"

    def __init__(
        self,
        *,
        num_tokens: int,
        context_length: int,
        hidden_size: int = 128,
        num_layers: int = 4,
        num_heads: int = 4,
        ffn_size: int = 512,
        dropout: float = 0.0,
        tie_embeddings: bool = False,
    ):
        super().__init__()
        self.context_length, self.tie_embeddings = context_length, tie_embeddings
        self.tokens, self.positions = nn.Embedding(num_tokens, hidden_size), nn.Embedding(context_length, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            EncoderBlock(
                hidden_size, num_heads, FeedForward(hidden_size, ffn_size, dropout, "gelu"), dropout, pre_norm=True
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_size)
        self.head = None if tie_embeddings else nn.Linear(hidden_size, num_tokens, bias=False)
        self.initialise()

    def initialise(self) -> None:
        """Normal with deviation 0.02; for layers that add to the stream, divided by the root of their number."""
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                is_added = name.endswith(("attention.out.weight", "feed_forward.down.weight"))
                scale = 1 / math.sqrt(2 * len(self.blocks)) if is_added else 1.0
                nn.init.normal_(parameter, std=0.02 * scale)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens_BL: Tensor) -> Tensor:
        x_BLD = self.embed(tokens_BL)
        for block in self.blocks:
            x_BLD = block(x_BLD, is_causal=True)
        return self.read_out(x_BLD)

    def extend(self, tokens_BQ: Tensor, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        """Logits (B, V) of the token after the last of tokens_BQ, and the cache with these tokens in it.

        Without a cache the tokens begin the text; with one, they are one token that follows the cached ones.
        """
        assert cache is None or tokens_BQ.shape[1] == 1, tokens_BQ.shape
        first = 0 if cache is None else cache[0][0].shape[1]
        x_BQD, longer = self.embed(tokens_BQ, first), []
        for i, block in enumerate(self.blocks):
            before = None if cache is None else cache[i]
            x_BQD, keys_and_values = extend_block(block, x_BQD, before)  # type: ignore[arg-type]
            longer.append(keys_and_values)
        return self.read_out(x_BQD[:, -1:])[:, 0], longer

    def embed(self, tokens_BL: Tensor, first: int = 0) -> Tensor:
        """first: the position of the first token."""
        end = first + tokens_BL.shape[1]
        if end > self.context_length:
            raise ConfigError(
                f"{end} tokens are more than model.context_length={self.context_length}",
                hint=f"Give the last {self.context_length} tokens only.",
            )
        return self.dropout(self.tokens(tokens_BL) + self.positions.weight[first:end])

    def read_out(self, x_BLD: Tensor) -> Tensor:
        x_BLD = self.norm(x_BLD)
        return F.linear(x_BLD, self.tokens.weight) if self.head is None else self.head(x_BLD)

    def attention(self, tokens_BL: Tensor) -> list[Tensor]:
        """For each block, the weight of each token for each other one: (B, H, L, L); rows sum to one."""
        x_BLD, found = self.embed(tokens_BL), []
        for block in self.blocks:
            found.append(block.attention.weights(block.norm1(x_BLD), is_causal=True))  # type: ignore[union-attr,operator]
            x_BLD = block(x_BLD, is_causal=True)
        return found


def extend_block(
    block: EncoderBlock, x_BQD: Tensor, before: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The output of a pre-norm block for new tokens, which also look at the keys and values of those before."""
    attention, normed = block.attention, block.norm1(x_BQD)
    k_BKD, v_BKD = attention.k(normed), attention.v(normed)
    if before is not None:
        k_BKD, v_BKD = torch.cat([before[0], k_BKD], 1), torch.cat([before[1], v_BKD], 1)
    q_BQD = attention.q(normed)
    mixed = attend(q_BQD, k_BKD, v_BKD, attention.head_width, is_causal=before is None)
    x_BQD = x_BQD + attention.out(mixed)
    return x_BQD + block.feed_forward(block.norm2(x_BQD)), (k_BKD, v_BKD)
