"""Speech recognition with a bidirectional LSTM over log-mel features, for connectionist temporal classification.

Shapes: B recordings, T samples, F frames, D numbers of a frame or state, V characters, the blank first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SpeechLSTM(nn.Module):
    """Log-mel features, (fc, ReLU, dropout) twice, `layers` bidirectional LSTM layers, fc.

    Takes waves (B, T) float32 in [-1, 1] and lengths (B,) int64; gives logits (B, F, V) and the frames (B,) of each
    recording. features: gives (B, F, D) and frames (B,), zero after each end, and has `size` D. width: units of the
    first two layers and of each direction of an LSTM. Samples after a recording's end cannot change its logits.
    """

    def __init__(
        self, *, features: nn.Module, num_tokens: int, hidden_size: int = 128, num_layers: int = 2, dropout: float = 0.2
    ):
        super().__init__()
        self.features = features
        self.fc1, self.fc2 = nn.Linear(features.size, hidden_size), nn.Linear(hidden_size, hidden_size)  # type: ignore[arg-type]
        self.dropout = nn.Dropout(dropout)
        self.lstms = nn.ModuleList(
            BothWays(hidden_size if i == 0 else 2 * hidden_size, hidden_size) for i in range(num_layers)
        )
        self.head = nn.Linear(2 * hidden_size, num_tokens)

    def forward(self, waves_BT: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        x_BFD, frames_B = self.features(waves_BT, lengths_B)
        for fc in (self.fc1, self.fc2):
            x_BFD = self.dropout(fc(x_BFD).relu())
        turned_BF = turned(frames_B, x_BFD.shape[1])
        for lstm in self.lstms:
            x_BFD = lstm(x_BFD, turned_BF)
        return self.head(x_BFD), frames_B


class BothWays(nn.Module):
    """An LSTM from left to right and one from each recording's last frame back: (B, F, D) -> (B, F, 2 * width).

    The same numbers as a packed sequence through a bidirectional nn.LSTM, but that would wait for the device: it needs
    the lengths on the CPU.
    """

    def __init__(self, size: int, width: int):
        super().__init__()
        self.ahead, self.back = (nn.LSTM(size, width, batch_first=True) for _ in range(2))

    def forward(self, x_BFD: Tensor, turned_BF: Tensor) -> Tensor:
        ahead_BFD, _ = self.ahead(x_BFD)
        back_BFD, _ = self.back(take_frames(x_BFD, turned_BF))
        return torch.cat([ahead_BFD, take_frames(back_BFD, turned_BF)], 2)


def turned(frames_B: Tensor, size: int) -> Tensor:
    """(B, size) int64: the frames of each recording from its last to its first; those after its end stay in place."""
    place_F = torch.arange(size, device=frames_B.device)
    return torch.where(place_F < frames_B[:, None], frames_B[:, None] - 1 - place_F, place_F)


def take_frames(x_BFD: Tensor, index_BF: Tensor) -> Tensor:
    return x_BFD.gather(1, index_BF[:, :, None].expand_as(x_BFD))
