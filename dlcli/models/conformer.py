"""Conformer (Gulati et al. 2020): attention for distant frames, convolution for near ones; small, for CTC.

Shapes: B recordings, T samples, F frames, D numbers of a frame, V characters, the blank first.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from dlcli.errors import ConfigError
from dlcli.models.layers.attention import Attention, FeedForward, key_mask, sinusoids


class Conformer(nn.Module):
    """Log-mel features, fc, positions as sinusoids, `layers` Conformer blocks, fc.

    Takes waves (B, T) float32 in [-1, 1] and lengths (B,) int64; gives logits (B, F, V) and the frames (B,) of each
    recording. features: gives (B, F, D) and frames (B,), zero after each end, and has `size` D. Samples after a
    recording's end cannot change its logits. Unlike in the paper, positions are absolute, features are stacked instead
    of subsampled by convolutions, and layer norm takes the place of batch norm (see `Convolution`).
    """

    reads_from = "each"

    def __init__(
        self,
        *,
        features: nn.Module,
        num_tokens: int,
        hidden_size: int = 96,
        num_layers: int = 3,
        num_heads: int = 4,
        ffn_size: int = 192,
        kernel: int = 9,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.features = features
        self.project = nn.Linear(features.size, hidden_size)  # type: ignore[arg-type]
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            ConformerBlock(hidden_size, num_heads, ffn_size, kernel, dropout) for _ in range(num_layers)
        )
        self.head = nn.Linear(hidden_size, num_tokens)

    def forward(self, waves_BT: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        x_BFD, frames_B = self.embed(waves_BT, lengths_B)
        mask = key_mask(frames_B, x_BFD.shape[1])
        for block in self.blocks:
            x_BFD = block(x_BFD, mask)
        return self.head(x_BFD), frames_B

    def embed(self, waves_BT: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Frames (B, F, D) with their positions, and the number of frames (B,) of each recording."""
        x_BFD, frames_B = self.features(waves_BT, lengths_B)
        x_BFD = self.project(x_BFD)
        return self.dropout(x_BFD + sinusoids(x_BFD.shape[1], x_BFD.shape[2], x_BFD.device)), frames_B

    def attention(self, waves_BT: Tensor, lengths_B: Tensor) -> list[Tensor]:
        """For each block, the weight of each frame for each other one: (B, H, F, F); rows sum to one."""
        x_BFD, frames_B = self.embed(waves_BT, lengths_B)
        mask, found = key_mask(frames_B, x_BFD.shape[1]), []
        for block in self.blocks:
            found.append(block.weights(x_BFD, mask))  # type: ignore[operator]
            x_BFD = block(x_BFD, mask)
        return found


class ConformerBlock(nn.Module):
    """Half a feed-forward, self-attention, convolution, the other half, layer norm; each is added to its input
    (section 2.4). mask: (B, 1, 1, F) bool, true on frames that are not padding.
    """

    def __init__(self, width: int, heads: int, feed_forward: int, kernel: int, dropout: float):
        super().__init__()
        self.first, self.last = (FeedForward(width, feed_forward, dropout, "silu") for _ in range(2))
        self.attention, self.convolution = Attention(width, heads, dropout), Convolution(width, kernel)
        self.norm1, self.norm2, self.norm3, self.norm4, self.norm5 = (nn.LayerNorm(width) for _ in range(5))
        self.drop = nn.Dropout(dropout)

    def forward(self, x_BFD: Tensor, mask: Tensor) -> Tensor:
        x_BFD = x_BFD + self.drop(self.first(self.norm1(x_BFD))) / 2
        x_BFD = x_BFD + self.drop(self.attention(self.norm2(x_BFD), mask=mask))
        x_BFD = x_BFD + self.drop(self.convolution(self.norm3(x_BFD), mask))
        x_BFD = x_BFD + self.drop(self.last(self.norm4(x_BFD))) / 2
        return self.norm5(x_BFD)

    def weights(self, x_BFD: Tensor, mask: Tensor) -> Tensor:
        """(B, H, F, F): the weights of its attention."""
        x_BFD = x_BFD + self.first(self.norm1(x_BFD)) / 2
        return self.attention.weights(self.norm2(x_BFD), mask=mask)


class Convolution(nn.Module):
    """Pointwise with a gate, depthwise over time, norm, SiLU, pointwise (section 2.2): (B, F, D) -> (B, F, D).

    The norm is a layer norm: the statistics of the paper's batch norm would include padding and other recordings.
    """

    def __init__(self, width: int, kernel: int):
        super().__init__()
        if kernel % 2 == 0:
            raise ConfigError(f"model.kernel={kernel} has no middle", hint=f"model.kernel={kernel + 1}")
        self.gated, self.out = nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x_BFD: Tensor, mask: Tensor) -> Tensor:
        x_BFD = F.glu(self.gated(x_BFD), dim=2).masked_fill(~mask[:, 0, 0, :, None], 0.0)
        x_BFD = self.depthwise(x_BFD.transpose(1, 2)).transpose(1, 2)
        return self.out(F.silu(self.norm(x_BFD)))
