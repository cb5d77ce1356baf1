"""LeNet-5 (LeCun, Bottou, Bengio and Haffner 1998, section II.B), with a softmax loss in place of the RBF output."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class LeNet5(nn.Module):
    """conv 6 5x5, pool, conv 16 5x5, pool, conv 120 5x5, fc 84, fc K; tanh, average pooling.

    Takes images (B, C, H, W) float with H, W >= 28, gives logits (B, num_classes). Images of 28 x 28 are padded to
    32 x 32 as in the paper. Its partial connections from 6 to 16 maps are full here, as in most implementations.
    """

    def __init__(self, *, num_classes: int, image_shape: Sequence[int], dropout: float = 0.0, batch_norm: bool = False):
        super().__init__()
        channels, height, width = image_shape
        pad = 2 if min(height, width) < 32 else 0

        def conv(inputs: int, outputs: int, padding: int = 0) -> list[nn.Module]:
            norm = [nn.BatchNorm2d(outputs)] if batch_norm else []
            return [nn.Conv2d(inputs, outputs, 5, padding=padding), *norm, nn.Tanh()]

        self.features = nn.Sequential(
            *conv(channels, 6, pad), nn.AvgPool2d(2), *conv(6, 16), nn.AvgPool2d(2), *conv(16, 120)
        )
        sides = [((side + 2 * pad - 4) // 2 - 4) // 2 - 4 for side in (height, width)]
        self.dropout = nn.Dropout(dropout)
        self.fc1 = nn.Linear(120 * sides[0] * sides[1], 84)
        self.fc2 = nn.Linear(84, num_classes)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        hidden_BD = torch.tanh(self.fc1(torch.flatten(self.features(images_BCHW), 1)))
        return self.fc2(self.dropout(hidden_BD))
