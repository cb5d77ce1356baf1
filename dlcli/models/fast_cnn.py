"""A small convolutional network for digits, whose widths suit a processor's bfloat16 units."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dlcli.errors import ConfigError


class FastCNN(nn.Module):
    """conv 5x5, pool, conv 3x3, conv 3x3, pool, conv 3x3, dropout, fc; batch norm and ReLU after each convolution.

    Takes images (B, C, H, W) float with H, W >= 16, gives logits (B, num_classes). Three widths: of the first
    convolution, of the next two, of the last. The first and the last have no padding; poolings halve. With 28 x 28
    pixels and widths 16, 32, 64 it has 43,194 parameters and 2.5 million products an image, most of them after the
    first pooling. Two convolutions of 3 x 3 before it, instead of one of 5 x 5, took 1.6 times as long.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        image_shape: Sequence[int],
        widths: Sequence[int] = (16, 32, 64),
        dropout: float = 0.0,
    ):
        super().__init__()
        if len(widths) != 3:
            raise ConfigError(
                f"model.widths={list(widths)}: fast_cnn needs three widths", hint="model.widths=[16,32,64]"
            )
        channels, height, width = image_shape
        first, middle, last = widths
        self.conv1, self.norm1 = nn.Conv2d(channels, first, 5, bias=False), nn.BatchNorm2d(first)
        self.conv2, self.norm2 = nn.Conv2d(first, middle, 3, padding=1, bias=False), nn.BatchNorm2d(middle)
        self.conv3, self.norm3 = nn.Conv2d(middle, middle, 3, padding=1, bias=False), nn.BatchNorm2d(middle)
        self.conv4, self.norm4 = nn.Conv2d(middle, last, 3, bias=False), nn.BatchNorm2d(last)
        self.pool, self.activation, self.dropout = nn.MaxPool2d(2), nn.ReLU(), nn.Dropout(dropout)
        rows, columns = ((side - 4) // 4 - 2 for side in (height, width))
        self.head = nn.Linear(last * rows * columns, num_classes)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        features = self.pool(self.activation(self.norm1(self.conv1(images_BCHW))))
        features = self.activation(self.norm2(self.conv2(features)))
        features = self.pool(self.activation(self.norm3(self.conv3(features))))
        features = self.activation(self.norm4(self.conv4(features)))
        return self.head(self.dropout(features.flatten(1)))
