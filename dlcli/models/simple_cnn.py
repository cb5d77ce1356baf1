"""Small convolutional networks: blocks of conv 3x3, ReLU, max-pool 2, then linear layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dlcli.errors import ConfigError


class SimpleCNN(nn.Module):
    """Takes images (B, C, H, W) float, gives logits (B, num_classes).

    channels [32], hidden [] on 28 x 28: conv 1->32, pool, fc 32*14*14->10. channels [32, 64, 128], hidden [512],
    dropout 0.5 on 32 x 32: three blocks, fc 2048->512->10. Every block halves height and width.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        image_shape: Sequence[int],
        channels: Sequence[int] = (32, 64, 128),
        hidden: Sequence[int] = (512,),
        dropout: float = 0.0,
        batch_norm: bool = False,
    ):
        super().__init__()
        depth, height, width = image_shape
        if min(height, width) >> len(channels) == 0:
            raise ConfigError(
                f"model.channels={list(channels)}: {len(channels)} poolings leave nothing of {height} x {width} pixels",
                hint=f"Give model.channels at most {min(height, width).bit_length() - 1} blocks.",
            )
        blocks: list[nn.Module] = []
        for width_out in channels:
            blocks.append(nn.Conv2d(depth, width_out, 3, padding=1, bias=not batch_norm))
            blocks += [nn.BatchNorm2d(width_out)] if batch_norm else []
            blocks += [nn.ReLU(), nn.MaxPool2d(2)]
            depth = width_out
        self.features = nn.Sequential(*blocks)
        size = depth * (height >> len(channels)) * (width >> len(channels))
        head: list[nn.Module] = [nn.Flatten()]
        for width_out in hidden:
            head += [nn.Linear(size, width_out), nn.ReLU()]
            head += [nn.Dropout(dropout)] if dropout else []
            size = width_out
        self.head = nn.Sequential(*head, nn.Linear(size, num_classes))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.head(self.features(images_BCHW))
