"""Images with one label each."""

from __future__ import annotations

from dlcli.datasets.kinds.kind import POOLING_MODELS, Kind


class Images(Kind):
    """One image (C, H, W) and one label."""

    name = "images"
    made_by = "dlcli.datasets.made_up"
    question = "IMAGE"
    required = ("num_classes", "image_shape", "mean", "std", "num_workers", "in_memory", "download")
    is_one_image = True
    is_augmented = True
    attending_models = ("vit", *POOLING_MODELS)
