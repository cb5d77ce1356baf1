"""The common parts of networks that read sequences: an image row by row, a sentence token by token.

Shapes: B examples, L steps, S numbers of a step, D numbers of a state. Lengths count the steps that are not padding;
padding comes after the sentence and has the token id 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dlcli.errors import ConfigError

PADDING = 0  # token id


class Steps(nn.Module):
    """Images (B, C, H, W) float -> H steps of C * W numbers; tokens (B, L) int64 -> L steps of `width` numbers.

    num_tokens: size of the vocabulary; None: the inputs are images. size: the numbers S of a step.
    """

    def __init__(self, *, image_shape: Sequence[int] | None, num_tokens: int | None, width: int):
        super().__init__()
        self.embedding = nn.Embedding(num_tokens, width, padding_idx=PADDING) if num_tokens else None
        if self.embedding is None and image_shape is None:
            raise ConfigError(
                "the model reads images or sentences; this dataset has neither an image_shape nor num_tokens",
                hint="dlcli list dataset  shows the data sets",
            )
        self.size = width if self.embedding is not None or image_shape is None else image_shape[0] * image_shape[2]

    def forward(self, inputs: Tensor) -> Tensor:
        return rows(inputs) if self.embedding is None else self.embedding(inputs)

    def lengths(self, inputs: Tensor, lengths_B: Tensor | None) -> Tensor | None:
        """The given lengths; else, for tokens, the number that are not padding; for images None: every row counts."""
        if self.embedding is None or lengths_B is not None:
            return lengths_B
        return (inputs != PADDING).sum(1)


def rows(images_BCHW: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, C * W), from the top row to the bottom one."""
    return images_BCHW.transpose(1, 2).flatten(2)


def last_step(states_BLD: Tensor, lengths_B: Tensor | None) -> Tensor:
    """(B, D): the state after the last step that is not padding; for an empty sentence, after its first."""
    if lengths_B is None:
        return states_BLD[:, -1]
    last_B11 = (lengths_B - 1).clamp(min=0)[:, None, None]
    return states_BLD.gather(1, last_B11.expand(-1, 1, states_BLD.shape[2]))[:, 0]


def step_mask(lengths_B: Tensor, size: int) -> Tensor:
    """(B, size) bool: true on steps that are not padding, at least on one."""
    return torch.arange(size, device=lengths_B.device) < lengths_B.clamp(min=1)[:, None]


def mean_step(states_BLD: Tensor, lengths_B: Tensor | None) -> Tensor:
    """(B, D): the mean of the states that are not padding."""
    if lengths_B is None:
        return states_BLD.mean(1)
    mask_BL1 = step_mask(lengths_B, states_BLD.shape[1])[:, :, None]
    return states_BLD.masked_fill(~mask_BL1, 0.0).sum(1) / mask_BL1.sum(1)
