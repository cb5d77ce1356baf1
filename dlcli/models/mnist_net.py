"""The convolutional network of PyTorch's MNIST example (pytorch/examples, mnist/main.py)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MnistNet(nn.Module):
    """conv C->32 3x3, ReLU, conv 32->64 3x3, ReLU, max-pool 2, dropout/2, fc ->128, ReLU, dropout, fc ->K.

    Takes images (B, C, H, W) float with H, W >= 6, gives logits (B, num_classes). With 28 x 28 pixels the first linear
    layer has 9,216 inputs. `dropout` comes before the last layer, half of it before the first linear one (0.25, 0.5).
    """

    def __init__(self, *, num_classes: int, image_shape: Sequence[int], dropout: float = 0.5, batch_norm: bool = False):
        super().__init__()
        channels, height, width = image_shape
        self.conv1 = nn.Conv2d(channels, 32, 3)
        self.norm1 = nn.BatchNorm2d(32) if batch_norm else nn.Identity()
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.norm2 = nn.BatchNorm2d(64) if batch_norm else nn.Identity()
        self.dropout1 = nn.Dropout(dropout / 2)
        self.fc1 = nn.Linear(64 * ((height - 4) // 2) * ((width - 4) // 2), 128)
        self.dropout2 = nn.Dropout(dropout)
        self.fc2 = nn.Linear(128, num_classes)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        features = F.relu(self.norm1(self.conv1(images_BCHW)))
        features = F.max_pool2d(F.relu(self.norm2(self.conv2(features))), 2)
        hidden_BD = F.relu(self.fc1(torch.flatten(self.dropout1(features), 1)))
        return self.fc2(self.dropout2(hidden_BD))
