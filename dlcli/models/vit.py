"""A small Vision Transformer (Dosovitskiy et al. 2021, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcli.errors import ConfigError
from dlcli.models.layers.attention import attend, check_heads, weigh


class ViT(nn.Module):
    """Patches of the image and a class token go through `layers` pre-norm blocks; the class token is read out.

    Takes images (B, C, H, W) float, gives logits (B, num_classes). patch: side of a patch in pixels, which divides H
    and W; width: D, of every token; heads: which divides D. Shapes: N = 1 + patches, E = D / heads.
    """

    reads_from = "first"

    def __init__(
        self,
        *,
        num_classes: int,
        image_shape: Sequence[int],
        patch: int = 4,
        hidden_size: int = 128,
        num_layers: int = 4,
        num_heads: int = 4,
        dropout: float = 0.0,
    ):
        super().__init__()
        channels, height, width_px = image_shape
        if height % patch or width_px % patch:
            sides = [n for n in range(1, min(height, width_px) + 1) if height % n == width_px % n == 0]
            raise ConfigError(
                f"model.patch={patch}: images of {height} x {width_px} pixels do not divide into patches of that side",
                hint=f"model.patch may be {', '.join(map(str, sides))}.",
            )
        check_heads(hidden_size, num_heads)
        self.num_heads, self.patch = num_heads, patch
        self.patches = nn.Conv2d(channels, hidden_size, patch, stride=patch)
        num_tokens = 1 + (height // patch) * (width_px // patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, hidden_size))
        self.positions = nn.Parameter(torch.empty(1, num_tokens, hidden_size))
        nn.init.trunc_normal_(self.positions, std=0.02)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(hidden_size, num_heads, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(hidden_size)
        self.head = nn.Linear(hidden_size, num_classes)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        x_BND = self.embed(images_BCHW)
        for block in self.blocks:
            x_BND = block(x_BND)
        return self.head(self.norm(x_BND[:, 0]))

    def embed(self, images_BCHW: Tensor) -> Tensor:
        """(B, N, D): the class token, then the patches row by row."""
        patches_BND = self.patches(images_BCHW).flatten(2).transpose(1, 2)
        class_B1D = self.class_token.expand(len(patches_BND), -1, -1)
        return self.dropout(torch.cat([class_B1D, patches_BND], 1) + self.positions)

    def attention(self, images_BCHW: Tensor) -> list[Tensor]:
        """For each block, the weight of each token for each other one: (B, H, N, N); rows sum to one."""
        x_BND, found = self.embed(images_BCHW), []
        for block in self.blocks:
            found.append(block.weights(block.norm1(x_BND)))  # type: ignore[operator]
            x_BND = block(x_BND)
        return found

    def tensor_parallel_plan(self) -> dict[str, str]:
        """The split of its layers over devices: by columns (whole heads each), and then by rows."""
        split = {"q": "colwise", "k": "colwise", "v": "colwise", "out": "rowwise", "up": "colwise", "down": "rowwise"}
        return {f"blocks.{i}.{layer}": how for i in range(len(self.blocks)) for layer, how in split.items()}


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); the MLP is four times as wide, with GELU."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.head_width, self.dropout = width // heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x_BND: Tensor) -> Tensor:
        x_BND = x_BND + self.drop(self.out(self.attend(self.norm1(x_BND))))
        return x_BND + self.drop(self.down(self.drop(F.gelu(self.up(self.norm2(x_BND))))))

    def attend(self, x_BND: Tensor) -> Tensor:
        """The heads on this device: split over devices, each has only some of them."""
        dropout = self.dropout if self.training else 0.0
        return attend(self.q(x_BND), self.k(x_BND), self.v(x_BND), self.head_width, dropout=dropout)

    def weights(self, x_BND: Tensor) -> Tensor:
        """(B, H, N, N): the weights by which `attend` mixes the values."""
        return weigh(self.q(x_BND), self.k(x_BND), self.head_width)
