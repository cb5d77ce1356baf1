"""MobileNet V2 (Sandler et al. 2018) and V3 (Howard et al. 2019), from torchvision; with a stem for small images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def build_mobilenet(
    *,
    num_classes: int,
    image_shape: Sequence[int],
    version: str = "v3_small",
    multiplier: float = 1.0,
    stem: str = "cifar",
    dropout: float = 0.0,
) -> nn.Module:
    """Images (B, C, H, W) float -> logits (B, num_classes). version: v2, v3_small or v3_large.

    multiplier: of every width. stem "imagenet": as published, the last maps are 1/32 of the image; "cifar": the first
    two convolutions of stride 2 get stride 1, so that the last maps are 1/8: 4 x 4 for 32 x 32 pixels.
    """
    from torchvision import models  # imported here: it costs seconds

    make = getattr(models, f"mobilenet_{version}")
    network = make(weights=None, num_classes=num_classes, width_mult=multiplier, dropout=dropout)
    first = network.features[0][0]
    if image_shape[0] != first.in_channels:
        network.features[0][0] = first = nn.Conv2d(
            image_shape[0], first.out_channels, 3, stride=2, padding=1, bias=False
        )
        nn.init.kaiming_normal_(first.weight, mode="fan_out")  # like torchvision's own
    if stem == "cifar":
        strided = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
        for conv in strided[:2]:
            conv.stride = (1, 1)
    return network
