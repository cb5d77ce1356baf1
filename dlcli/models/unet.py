"""U-Net: "Convolutional networks for biomedical image segmentation" (Ronneberger, Fischer and Brox 2015).

Two differences: convolutions are padded, so that the answer has the image's size, and batch norm may follow each.
Letters: B images, C channels, K classes, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcli.errors import ConfigError


class UNet(nn.Module):
    """images (B, C, H, W) float, any H and W -> logits (B, K, H, W).

    widths: channels of each level, from the full size down; each level has half the rows and columns of the one above.
    dropout: at the end of the contracting path, as in section 3.1.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        image_shape: Sequence[int],
        widths: Sequence[int] = (64, 128, 256, 512, 1024),
        batch_norm: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.multiple = 2 ** (len(widths) - 1)
        if min(height, width) < self.multiple:
            message = f"model.widths has {len(widths)} levels, too many for images of {height} x {width} pixels"
            raise ConfigError(message, hint="Each level halves the image: give fewer widths.")
        pairs = list(pairwise(widths))
        self.first = two_convolutions(channels, widths[0], batch_norm)
        self.down = nn.ModuleList(two_convolutions(above, below, batch_norm) for above, below in pairs)
        self.dropout = nn.Dropout(dropout)
        self.up = nn.ModuleList(nn.ConvTranspose2d(below, above, 2, stride=2) for above, below in reversed(pairs))
        self.merge = nn.ModuleList(two_convolutions(2 * above, above, batch_norm) for above, _ in reversed(pairs))
        self.head = nn.Conv2d(widths[0], num_classes, 1)
        self.apply(initialise)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        height, width = images_BCHW.shape[-2:]
        x = self.first(padded(images_BCHW, self.multiple))
        skips = []
        for block in self.down:
            skips.append(x)
            x = block(F.max_pool2d(x, 2))
        x = self.dropout(x)
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([skips.pop(), up(x)], 1))
        return self.head(x)[..., :height, :width]


def two_convolutions(inputs: int, outputs: int, batch_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers.append(nn.Conv2d(channels, outputs, 3, padding=1, bias=not batch_norm))
        layers += [nn.BatchNorm2d(outputs)] if batch_norm else []
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def initialise(module: nn.Module) -> None:
    """Normal with variance 2 / inputs, section 3 of the paper (He et al. 2015)."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def padded(images_BCHW: Tensor, multiple: int) -> Tensor:
    """The image with its last row and column repeated until both sides are multiples."""
    bottom, right = (-size % multiple for size in images_BCHW.shape[-2:])
    return F.pad(images_BCHW, (0, right, 0, bottom), mode="replicate") if bottom or right else images_BCHW
