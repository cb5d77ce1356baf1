"""Residual networks (He, Zhang, Ren and Sun 2015), from torchvision, also with a stem for small images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def build_resnet(
    *, num_classes: int, image_shape: Sequence[int], depth: int = 18, stem: str = "cifar", dropout: float = 0.0
) -> nn.Module:
    """A ResNet of 18, 34, 50, 101 or 152 layers: images (B, C, H, W) float -> logits (B, num_classes).

    stem "cifar": conv 3x3 with stride 1 and no pooling (section 4.2 of the paper), for images of about 32 x 32;
    "imagenet": conv 7x7 with stride 2 and max-pooling (table 1).
    """
    from torchvision.models import resnet  # imported here: it costs seconds, and only this model needs it

    network = getattr(resnet, f"resnet{depth}")(weights=None, num_classes=num_classes)
    channels = image_shape[0]
    if stem == "cifar":
        network.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    elif channels != 3:
        network.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")  # like torchvision's own stem
    if dropout:
        network.fc = nn.Sequential(nn.Dropout(dropout), network.fc)
    return network
