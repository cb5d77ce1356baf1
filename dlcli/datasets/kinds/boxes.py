"""Images with boxes around the things in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlcli.datasets.kinds.kind import Kind

TRIED_MULTIPLE = 32  # pixels: what is left over of a side by it stays


class Boxes(Kind):
    """One image (C, H, W), and for each thing in it a box and a class."""

    name = "boxes"
    made_by = "dlcli.datasets.boxes"
    question = "IMAGE"
    size_setting = "image_shape"
    fewest = 10  # an image has many things
    is_augmented = True
    has_threshold = True

    def smallest_shape(self, settings: Mapping[str, Any], fewest: int) -> list[int] | None:
        """The longer side stays longer, and a side that 32 does not divide stays so: such mistakes are found too."""
        channels, *sides = settings["image_shape"]
        small = [_at_least(fewest, side) for side in sides]
        if sides[0] != sides[1]:
            longer, shorter = (0, 1) if sides[0] > sides[1] else (1, 0)
            small[longer] = min(sides[longer], _at_least(small[shorter] + 1, sides[longer]))
        return None if small == sides else [channels, *small]


def _at_least(fewest: int, side: int) -> int:
    """The least side, at most `side`, that leaves over by TRIED_MULTIPLE what `side` does."""
    rest = side % TRIED_MULTIPLE
    return min(side, rest + TRIED_MULTIPLE * max(0 if rest else 1, -(-(fewest - rest) // TRIED_MULTIPLE)))
