"""Converts between bytes, pixels in [0, 1] and normalised pixels: the one place that knows mean and std."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from dlcli.errors import ConfigError


class Pixels:
    """mean, std: one number per channel (or one for all), of pixels in [0, 1].

    Every operation rounds exactly once (a product, then a sum, never fused), so that a pixel's value depends neither on
    its place in a batch nor on the batch's size.
    """

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], *, channels: int, device: torch.device | str = "cpu"
    ) -> None:
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, channels):
                raise ConfigError(
                    f"dataset.{name} has {len(values)} numbers, but the images have {channels} channels.",
                    hint=f"Give {channels} (or one for all), of pixels in [0, 1].",
                )
        if min(std) <= 0:
            raise ConfigError(f"dataset.std={list(std)} must be above 0.", hint="Use 1 for a constant channel.")
        mean_C, std_C = (torch.tensor(list(values), dtype=torch.float64).view(1, -1, 1, 1) for values in (mean, std))
        self.scale = (1 / std_C).float().to(device)
        self.shift = (-mean_C / std_C).float().to(device)
        self.byte_scale = (1 / (255 * std_C)).float().to(device)
        self.per_byte = torch.tensor(1 / 255, device=device)

    def from_bytes(self, images_BCHW: Tensor) -> Tensor:
        """uint8 -> float32 normalised, in two operations."""
        return torch.mul(images_BCHW, self.byte_scale).add_(self.shift)

    def unit(self, images_BCHW: Tensor) -> Tensor:
        """uint8 -> float32 in [0, 1]."""
        return torch.mul(images_BCHW, self.per_byte)

    def normalise(self, images_BCHW: Tensor) -> Tensor:
        """float32 in [0, 1] -> float32 normalised."""
        return torch.mul(images_BCHW, self.scale).add_(self.shift)

    def denormalise(self, images_BCHW: Tensor) -> Tensor:
        """float32 normalised -> float32 in [0, 1], if it came from there; for showing and saving images."""
        return (images_BCHW - self.shift) / self.scale


@lru_cache(maxsize=16)
def pixels_on(mean: tuple[float, ...], std: tuple[float, ...], channels: int, device: torch.device) -> Pixels:
    """Returns the same object for the same arguments: its numbers are moved to the device once, not at every batch."""
    return Pixels(mean, std, channels=channels, device=device)
