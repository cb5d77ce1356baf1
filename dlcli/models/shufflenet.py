"""ShuffleNet V2 (Ma et al. 2018), from torchvision; with a stem for small images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def build_shufflenet(
    *,
    num_classes: int,
    image_shape: Sequence[int],
    multiplier: float = 1.0,
    stem: str = "cifar",
    dropout: float = 0.0,
) -> nn.Module:
    """Images (B, C, H, W) float -> logits (B, num_classes). multiplier: of the widths: 0.5, 1.0, 1.5 or 2.0.

    stem "imagenet": conv 3x3 with stride 2 and max-pooling (table 5), the last maps are 1/32 of the image; "cifar":
    stride 1 and no pooling, so that the last maps are 1/8. dropout: before the last layer.
    """
    from torchvision import models  # imported here: it costs seconds

    name = f"shufflenet_v2_x{multiplier:.1f}".replace(".", "_")
    network = getattr(models, name)(weights=None, num_classes=num_classes)
    stride = 1 if stem == "cifar" else 2
    network.conv1[0] = nn.Conv2d(image_shape[0], network.conv1[0].out_channels, 3, stride, padding=1, bias=False)
    if stem == "cifar":
        network.maxpool = nn.Identity()
    if dropout:
        network.fc = nn.Sequential(nn.Dropout(dropout), network.fc)
    return network
