"""Made-up data in the shapes that a dataset's settings name: to try shapes, to time steps, to test a whole run.

One function per kind of data, in the file of that kind: (settings, num_examples) -> Records or LabelledImages, drawn
from torch's global generator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from math import prod
from typing import Any

import torch
from torch import Tensor

from dlcli.datasets.examples import Batch
from dlcli.datasets.kinds import MADE_UP, gives
from dlcli.datasets.records import Dense, Records
from dlcli.errors import ConfigError, nearest

MOST_NUMBERS = 16 * 2**20  # in one example: a picture of 3 x 2,364 x 2,364
MOST_SCORES = 2**30  # of one example: each place in a text has one for each token


def check_size(settings: Mapping[str, Any]) -> None:
    """Raise ConfigError for examples so large that making one up, or scoring it, takes gigabytes. Images are free."""
    kind = gives(settings)
    names = {"boxes": "image_shape", "masks": "image_shape", "stream": "block", "sentences": "max_length",
             "pairs": "max_length", "speech": "sample_rate", "table": "num_features"}  # fmt: skip
    name = names.get(kind)
    if name is None or settings.get(name) is None:
        return
    numbers = prod(settings[name]) if name == "image_shape" else settings[name]
    scores = numbers * (settings.get("num_tokens") or 1) if kind in ("stream", "pairs") else 0
    if numbers > MOST_NUMBERS or scores > MOST_SCORES:
        said = str(settings[name]).replace(" ", "")
        what = f"{numbers:,} numbers" if numbers > MOST_NUMBERS else f"{scores:,} scores"
        told = f"dataset.{name}={said} makes one example of {what}, too large to train on"
        raise ConfigError(told, hint=f"A smaller dataset.{name}.")


def made_up_data(settings: Mapping[str, Any], num_examples: int) -> Records:
    """So many examples of what the dataset gives. Raises ConfigError for a kind that nobody makes."""
    kind = gives(settings)
    if kind not in MADE_UP:
        better = nearest(kind, list(MADE_UP))
        told = f"dataset {settings['name']}: facts.gives={kind} is no kind of data ({', '.join(MADE_UP)})"
        raise ConfigError(told, hint=f"gives: {better}" if better else None)
    check_size(settings)
    make: Callable[[Mapping[str, Any], int], Records] = import_module(MADE_UP[kind]).made_up
    return make(settings, num_examples)


def made_up(settings: Mapping[str, Any], num_examples: int) -> Records:
    """Noise for images, as a network sees them: normalised."""
    images = torch.randn(num_examples, *settings["image_shape"])
    labels = torch.randint(settings["num_classes"], (num_examples,))
    return Records({"images": Dense(images), "labels": Dense(labels)}, as_batch, "made up", labels)


def as_batch(taken: Mapping[str, Tensor], index_B: Tensor, augment: object, keys_B: object) -> Batch:
    return Batch(taken["images"], taken["labels"], index_B)
