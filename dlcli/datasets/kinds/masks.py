"""Images with a class for each pixel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlcli.datasets.kinds.kind import Kind

TRIED_SIDE = 128  # pixels


class Masks(Kind):
    """One image (C, H, W), and a mask (H, W) of classes."""

    name = "masks"
    made_by = "dlcli.datasets.masks"
    question = "IMAGE"
    size_setting = "image_shape"
    fewest = 10  # an image has many pixels
    is_augmented = True

    def convolved_shape(self, settings: Mapping[str, Any]) -> list[int] | None:
        """Sides stay multiples of 32. Other sides stay as they are, so that a side that does not fit is found."""
        channels, height, width = settings["image_shape"]
        by = max(height, width) / TRIED_SIDE
        if by <= 1 or height % 32 or width % 32:
            return None
        return [channels, *(max(32, int(side / by) // 32 * 32) for side in (height, width))]
