"""The network of the fastest published trainings on CIFAR-10: a whitening convolution, then three blocks of two.

After cifar10-airbench (Jordan 2024, "94 % on CIFAR-10 in 3.29 seconds on a single GPU", arXiv 2404.00498).
Letters: B images, C channels, H rows, W columns, P patches, D = C * size * size numbers of a patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 5e-4  # added to the variance of a direction, so that noise is not blown up


class WhitenedCNN(nn.Module):
    """Takes images (B, C, H, W) float with H, W >= 10, gives logits (B, num_classes).

    whiten: conv `kernel` x `kernel` to 2 D channels, fixed by `prepare`; its bias is trained. Each width is a block:
    conv 3x3, max-pool 2, batch norm, GELU, conv 3x3, batch norm, GELU. Then the maximum of each channel, dropout, and
    a linear layer without bias. Batch norm has no scale and forgets quickly, since trainings are short; a convolution
    starts with as many filters that copy their input as it has inputs.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        image_shape: Sequence[int],
        widths: Sequence[int] = (64, 256, 256),
        kernel: int = 2,
        dropout: float = 0.0,
    ):
        super().__init__()
        depth = 2 * image_shape[0] * kernel**2
        self.whiten = nn.Conv2d(image_shape[0], depth, kernel)
        self.whiten.weight.requires_grad_(False)
        nn.init.zeros_(self.whiten.bias)  # type: ignore[arg-type]
        blocks = []
        for width in widths:
            blocks.append(Block(depth, width))
            depth = width
        self.blocks = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(depth, num_classes, bias=False)
        nn.init.normal_(self.head.weight, std=1 / depth)

    @torch.no_grad()
    def prepare(self, images_BCHW: Tensor) -> None:
        """Set the first convolution from normalised training images: its outputs are uncorrelated, with variance 1."""
        filters = whitening_filters(images_BCHW.to(self.whiten.weight.device), self.whiten.kernel_size[0])
        self.whiten.weight.copy_(torch.cat([filters, -filters]))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        device = images_BCHW.device.type
        # bfloat16 would round the pixels to one part in 256, but the weakest directions are differences times 45
        with nullcontext() if device == "meta" else torch.autocast(device, enabled=False):
            features = F.gelu(self.whiten(images_BCHW))
        return self.head(self.dropout(self.blocks(features).amax((2, 3))))


class Block(nn.Module):
    """conv 3x3, max-pool 2, norm, GELU, conv 3x3, norm, GELU: (B, C, H, W) -> (B, width, H // 2, W // 2)."""

    def __init__(self, depth: int, width: int):
        super().__init__()
        self.conv1, self.norm1 = convolution(depth, width), batch_norm(width)
        self.conv2, self.norm2 = convolution(width, width), batch_norm(width)

    def forward(self, features: Tensor) -> Tensor:
        features = F.gelu(self.norm1(F.max_pool2d(self.conv1(features), 2)))
        return F.gelu(self.norm2(self.conv2(features)))


def convolution(depth: int, width: int) -> nn.Conv2d:
    conv = nn.Conv2d(depth, width, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight[: min(depth, width)])
    return conv


def batch_norm(width: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(width, momentum=0.4)
    norm.weight.requires_grad_(False)
    return norm


def whitening_filters(images_BCHW: Tensor, size: int) -> Tensor:
    """(D, C, size, size) filters: the principal directions of the images' patches, each divided by its deviation."""
    channels = images_BCHW.shape[1]
    patches_BDL = F.unfold(images_BCHW.float(), size)
    patches_PD = patches_BDL.transpose(1, 2).reshape(-1, patches_BDL.shape[1])
    variances_D, directions_DD = torch.linalg.eigh(patches_PD.T @ patches_PD / len(patches_PD))
    return (directions_DD / (variances_D + EPS).sqrt()).T.reshape(-1, channels, size, size)
