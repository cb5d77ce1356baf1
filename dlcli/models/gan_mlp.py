"""Generator and discriminator of linear layers, for small images."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn


class Generator(nn.Module):
    """Noise (B, latent) float -> images (B, C, H, W) float, unbounded: pixels on the scale of the normalised data."""

    def __init__(self, *, image_shape: Sequence[int], latent: int = 32, hidden: Sequence[int] = (128, 256)):
        super().__init__()
        self.latent, self.image_shape = latent, tuple(image_shape)
        layers: list[nn.Module] = []
        size = latent
        for width in hidden:
            layers += [nn.Linear(size, width), nn.BatchNorm1d(width), nn.ReLU()]
            size = width
        self.layers = nn.Sequential(*layers, nn.Linear(size, prod(image_shape)))

    def forward(self, noise_BZ: Tensor) -> Tensor:
        return torch.unflatten(self.layers(noise_BZ), 1, self.image_shape)


class Discriminator(nn.Module):
    """Images (B, C, H, W) float -> one logit each (B,): above zero means real."""

    def __init__(self, *, image_shape: Sequence[int], hidden: Sequence[int] = (256, 128), dropout: float = 0.0):
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        size = prod(image_shape)
        for width in hidden:
            layers += [nn.Linear(size, width), nn.LeakyReLU(0.2)]
            layers += [nn.Dropout(dropout)] if dropout else []
            size = width
        self.layers = nn.Sequential(*layers, nn.Linear(size, 1))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.layers(images_BCHW)[:, 0]
