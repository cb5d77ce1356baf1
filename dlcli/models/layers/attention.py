"""Multi-head attention and the blocks of Transformers (Vaswani et al. 2017, section 3).

Shapes: B examples, Q queries, K keys, D width of a token, H heads, E = D / H. A mask is bool, true where a query may
look, and broadcasts to (B, H, Q, K): `key_mask(lengths_B, K)` hides padding. A query that may look nowhere gets zeros.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcli.errors import ConfigError

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


class Attentive(Protocol):
    """A network that can show its attention: every network here with attention has these two.

    reads_from: the queries from which the answer is read: "pool": the only one, the pooling itself; "first": a class
    token; "mean": all of them; "last"; "each": every query has its own answer; None: this network has no attention.
    """

    reads_from: str | None

    def attention(self, *inputs: Tensor) -> list[Tensor]:
        """For each block (B, H, Q, K): the weight of each key for each query; rows sum to one. inputs: of forward."""


class Attention(nn.Module):
    """Softmax(q k^T / sqrt(E)) v of every head, then a linear layer; dropout on the weights (section 3.2).

    Self-attention if no keys are given, else cross-attention: (B, Q, D) and (B, K, D) -> (B, Q, D).
    is_causal: query i looks at keys 0 to i and no further.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        check_heads(width, heads)
        self.head_width, self.dropout = width // heads, dropout
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(
        self,
        queries_BQD: Tensor,
        keys_BKD: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        keys_BKD = queries_BQD if keys_BKD is None else keys_BKD
        q, k, v = self.q(queries_BQD), self.k(keys_BKD), self.v(keys_BKD)
        dropout = self.dropout if self.training else 0.0
        return self.out(attend(q, k, v, self.head_width, mask=mask, is_causal=is_causal, dropout=dropout))

    def weights(
        self,
        queries_BQD: Tensor,
        keys_BKD: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """(B, H, Q, K): the weight of each key for each query, without dropout; rows sum to one, or to zero."""
        keys_BKD = queries_BQD if keys_BKD is None else keys_BKD
        return weigh(self.q(queries_BQD), self.k(keys_BKD), self.head_width, mask=mask, is_causal=is_causal)


def attend(
    q_BQD: Tensor,
    k_BKD: Tensor,
    v_BKD: Tensor,
    head_width: int,
    *,
    mask: Tensor | None = None,
    is_causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """Softmax(q k^T / sqrt(E)) v of every head here, (B, Q, D): split over devices, each has only some of the heads."""
    q, k, v = (split_heads(x, head_width) for x in (q_BQD, k_BKD, v_BKD))
    if is_causal and mask is not None:  # the kernel takes one or the other
        mask, is_causal = join_masks(mask, causal_mask(q.shape[2], k.shape[2], q.device)), False
    mixed_BHQE = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal, dropout_p=dropout)
    return mixed_BHQE.transpose(1, 2).flatten(2)


def weigh(
    q_BQD: Tensor, k_BKD: Tensor, head_width: int, *, mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """The weights by which `attend` mixes its values, by the formula softmax(q k^T / sqrt(E)): (B, H, Q, K)."""
    q, k = (split_heads(x, head_width) for x in (q_BQD, k_BKD))
    scores_BHQK = q @ k.transpose(2, 3) / math.sqrt(head_width)
    if is_causal:
        mask = join_masks(mask, causal_mask(q.shape[2], k.shape[2], q.device))
    if mask is not None:
        scores_BHQK = scores_BHQK.masked_fill(~mask, -torch.inf)
    return scores_BHQK.softmax(3).nan_to_num(0.0)


def split_heads(x_BND: Tensor, head_width: int) -> Tensor:
    """(B, N, H * E) -> (B, H, N, E)."""
    return x_BND.unflatten(2, (-1, head_width)).transpose(1, 2)


def check_heads(width: int, heads: int) -> None:
    """Raise ConfigError if the heads do not divide the width."""
    if width % heads:
        raise ConfigError(
            f"model.num_heads={heads} does not divide model.hidden_size={width}",
            hint=f"model.num_heads may be {', '.join(str(n) for n in range(1, min(width, 64) + 1) if width % n == 0)}.",
        )


# --------------------------------------------------------------------------------------------------------------- masks


def key_mask(lengths_B: Tensor, size: int) -> Tensor:
    """(B, 1, 1, size) bool: true on the first `lengths_B` keys; on at least one, so that each query has a key."""
    positions_K = torch.arange(size, device=lengths_B.device)
    return (positions_K < lengths_B.clamp(min=1)[:, None])[:, None, None, :]


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """(queries, keys) bool: true on keys that are not later than the query."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril()


def join_masks(one: Tensor | None, other: Tensor) -> Tensor:
    return other if one is None else one & other


# -------------------------------------------------------------------------------------------------------------- blocks


class FeedForward(nn.Module):
    """Two linear layers with an activation between, for each token alone (section 3.3): (B, N, D) -> (B, N, D)."""

    def __init__(self, width: int, hidden: int, dropout: float = 0.0, activation: str = "relu"):
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.activation, self.drop = ACTIVATIONS[activation](), nn.Dropout(dropout)

    def forward(self, x_BND: Tensor) -> Tensor:
        return self.down(self.drop(self.activation(self.up(x_BND))))


class EncoderBlock(nn.Module):
    """Self-attention and feed-forward, each added to its input and then normalised (post-norm, section 3.1).

    feed_forward: any module (B, N, D) -> (B, N, D). pre_norm: normalise the input of each instead (Xiong et al. 2020,
    figure 1b); the caller then normalises once after the last block. is_causal makes it a decoder without a source.
    """

    def __init__(
        self, width: int, heads: int, feed_forward: nn.Module, dropout: float = 0.0, *, pre_norm: bool = False
    ):
        super().__init__()
        self.attention, self.feed_forward = Attention(width, heads, dropout), feed_forward
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.drop, self.pre_norm = nn.Dropout(dropout), pre_norm

    def forward(self, x_BND: Tensor, *, mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        if self.pre_norm:
            x_BND = x_BND + self.drop(self.attention(self.norm1(x_BND), mask=mask, is_causal=is_causal))
            return x_BND + self.drop(self.feed_forward(self.norm2(x_BND)))
        x_BND = self.norm1(x_BND + self.drop(self.attention(x_BND, mask=mask, is_causal=is_causal)))
        return self.norm2(x_BND + self.drop(self.feed_forward(x_BND)))


class DecoderBlock(nn.Module):
    """Causal self-attention, attention to the encoder's tokens, feed-forward; each added, then normalised (post-norm).

    Takes tokens (B, Q, D) and the encoder's (B, K, D); `mask` hides padding among the tokens, `source_mask` among the
    encoder's. pre_norm: as in EncoderBlock.
    """

    def __init__(
        self, width: int, heads: int, feed_forward: nn.Module, dropout: float = 0.0, *, pre_norm: bool = False
    ):
        super().__init__()
        self.attention, self.cross = Attention(width, heads, dropout), Attention(width, heads, dropout)
        self.feed_forward, self.drop, self.pre_norm = feed_forward, nn.Dropout(dropout), pre_norm
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(
        self, x_BQD: Tensor, source_BKD: Tensor, *, mask: Tensor | None = None, source_mask: Tensor | None = None
    ) -> Tensor:
        if self.pre_norm:
            x_BQD = x_BQD + self.drop(self.attention(self.norm1(x_BQD), mask=mask, is_causal=True))
            x_BQD = x_BQD + self.drop(self.cross(self.norm2(x_BQD), source_BKD, mask=source_mask))
            return x_BQD + self.drop(self.feed_forward(self.norm3(x_BQD)))
        x_BQD = self.norm1(x_BQD + self.drop(self.attention(x_BQD, mask=mask, is_causal=True)))
        x_BQD = self.norm2(x_BQD + self.drop(self.cross(x_BQD, source_BKD, mask=source_mask)))
        return self.norm3(x_BQD + self.drop(self.feed_forward(x_BQD)))


def sinusoids(length: int, width: int, device: torch.device | None = None) -> Tensor:
    """Positions as sines and cosines of wavelengths from 2 pi to 20,000 pi (section 3.5): (length, width) float32.

    Even columns are sines, odd ones cosines. Computed in each forward: no buffer to store, and no greatest length.
    """
    columns = torch.arange(0, width, 2, device=device)
    angles = torch.arange(length, device=device)[:, None] * torch.exp(columns * (-math.log(10_000.0) / width))
    return torch.stack([angles.sin(), angles.cos()], 2).flatten(1)[:, :width]
