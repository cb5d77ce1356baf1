"""Transformer encoder (Vaswani et al. 2017) as a classifier of images read row by row, and of sentences."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from dlcli.models.layers.attention import EncoderBlock, FeedForward, key_mask, sinusoids
from dlcli.models.layers.sequences import Steps, mean_step


class Transformer(nn.Module):
    """Steps and their positions go through `layers` post-norm blocks; their mean is read out.

    Takes images (B, C, H, W) float, read row by row, or tokens (B, L) int64 with lengths (B,) int64 (see `Steps`);
    gives logits (B, num_classes). width: D, of every step; heads: which divides D; feed_forward: units of those layers.
    make_block: gives a block (B, L, D) -> (B, L, D) that takes `mask`; other kinds of block make other models.
    """

    reads_from = "mean"

    def __init__(
        self,
        *,
        num_classes: int,
        image_shape: Sequence[int] | None = None,
        num_tokens: int | None = None,
        hidden_size: int = 128,
        num_layers: int = 2,
        num_heads: int = 4,
        ffn_size: int = 256,
        dropout: float = 0.0,
        make_block: Callable[[], nn.Module] | None = None,
    ):
        super().__init__()

        def block() -> nn.Module:
            return EncoderBlock(hidden_size, num_heads, FeedForward(hidden_size, ffn_size, dropout), dropout)

        self.steps = Steps(image_shape=image_shape, num_tokens=num_tokens, width=hidden_size)
        self.project = nn.Linear(self.steps.size, hidden_size) if self.steps.embedding is None else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList((make_block or block)() for _ in range(num_layers))
        self.head = nn.Linear(hidden_size, num_classes)

    def forward(self, inputs: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        x_BLD, lengths_B = self.embed(inputs), self.steps.lengths(inputs, lengths_B)
        mask = None if lengths_B is None else key_mask(lengths_B, x_BLD.shape[1])
        for block in self.blocks:
            x_BLD = block(x_BLD, mask=mask)
        return self.head(mean_step(x_BLD, lengths_B))

    def embed(self, inputs: Tensor) -> Tensor:
        x_BLD = self.project(self.steps(inputs))
        return self.dropout(x_BLD + sinusoids(x_BLD.shape[1], x_BLD.shape[2], x_BLD.device))

    def attention(self, inputs: Tensor, lengths_B: Tensor | None = None) -> list[Tensor]:
        """For each block, the weight of each step for each other one: (B, H, L, L); rows sum to one."""
        x_BLD, lengths_B = self.embed(inputs), self.steps.lengths(inputs, lengths_B)
        mask = None if lengths_B is None else key_mask(lengths_B, x_BLD.shape[1])
        found = []
        for block in self.blocks:
            found.append(block.attention.weights(x_BLD, mask=mask))  # type: ignore[union-attr, operator]
            x_BLD = block(x_BLD, mask=mask)
        return found

    def tensor_parallel_plan(self) -> dict[str, str]:
        """The split of its layers over devices: by columns (whole heads each), and then by rows."""
        split = {f"attention.{name}": "colwise" for name in "qkv"} | {"attention.out": "rowwise"}
        split |= {"feed_forward.up": "colwise", "feed_forward.down": "rowwise"}
        return {f"blocks.{i}.{layer}": how for i in range(len(self.blocks)) for layer, how in split.items()}
