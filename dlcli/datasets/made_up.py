"""Made-up data in the shapes that a dataset's settings name: to try shapes, to time steps, to test a whole run.

One function per kind of data, in the file of that kind: (settings, num_examples) -> Records or LabelledImages, drawn
from torch's global generator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from dlcli.datasets.batches.examples import Batch
from dlcli.datasets.batches.records import Dense, Records
from dlcli.datasets.kinds import KINDS, kind_of
from dlcli.errors import ConfigError, nearest


def made_up_data(settings: Mapping[str, Any], num_examples: int) -> Records:
    """So many examples of what the dataset gives. Raises ConfigError for a kind that nobody makes."""
    kind = kind_of(settings)
    if not kind.made_by:
        better = nearest(kind.name, list(KINDS))
        message = f"dataset {settings['name']}: facts.gives={kind.name} is not a kind of data ({', '.join(KINDS)})"
        raise ConfigError(message, hint=f"gives: {better}" if better else None)
    kind.check_size(settings)
    make: Callable[[Mapping[str, Any], int], Records] = import_module(kind.made_by).made_up
    return make(settings, num_examples)


def made_up(settings: Mapping[str, Any], num_examples: int) -> Records:
    """Noise for images, as a network sees them: normalised."""
    images = torch.randn(num_examples, *settings["image_shape"])
    labels = torch.randint(settings["num_classes"], (num_examples,))
    return Records({"images": Dense(images), "labels": Dense(labels)}, as_batch, "made up", labels)


def as_batch(taken: Mapping[str, Tensor], index_B: Tensor, augment: object, keys_B: object) -> Batch:
    return Batch(taken["images"], taken["labels"], index_B)
