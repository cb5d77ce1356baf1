"""The examples that a reader returns, by split; and how a split is cut in two.

Images with one label each are held as LabelledImages, everything else as Records (records.py).

Shapes: N examples, B of them in a batch, C channels, H rows, W columns. Pixels are uint8 until they reach the device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dlcli.datasets.batches.records import Records
from dlcli.errors import ConfigError


@dataclass(frozen=True)
class LabelledImages:
    """One split: N labelled images.

    labels: (N,) int64, on the CPU.
    images: (N, C, H, W) uint8, memory-mapped from the cache if possible; None if they do not fit in memory.
    read: index -> (C, H, W) uint8; works in both cases and inside worker processes.
    fingerprint: sha256 (hex) of images and labels; of names, sizes and labels if `images` is None.
    """

    labels: Tensor
    images: Tensor | None
    read: Callable[[int], Tensor]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.labels)


Examples = LabelledImages | Records


@dataclass(frozen=True)
class Data:
    """A data set; `val` is None if it has no validation split of its own.

    classes: the names of the labels, () if they have none.
    facts: facts of the data, by the name of the `dataset` setting that must agree with each (num_classes aside).
    fitted: plain data fitted to the training split that predictions for new examples need (a tokenizer, the columns'
    means); it is saved in the checkpoint.
    notes: defects that were found and handled, with their counts, as sentences for the user.
    """

    classes: tuple[str, ...]
    train: Examples
    test: Examples
    val: Examples | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    fitted: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def fingerprints(self) -> dict[str, str]:
        """The fingerprint of each split that exists."""
        splits = {"train": self.train, "val": self.val, "test": self.test}
        return {name: split.fingerprint for name, split in splits.items() if split is not None}


class Batch(NamedTuple):
    images: Tensor  # (B, C, H, W) float32 normalised, on the device
    labels: Tensor  # (B,) int64, on the device
    index: Tensor  # type: ignore[assignment]  # hides tuple.index; (B,) int64, the example's row in its Examples, on the device

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The arguments that a model is called with."""
        return (self.images,)


@dataclass(frozen=True)
class Row:
    """Reads from images in memory."""

    images: Tensor

    def __call__(self, index: int) -> Tensor:
        return self.images[index]


def in_memory(images: np.ndarray, labels: np.ndarray, fingerprint: str | None = None) -> LabelledImages:
    """Examples of decoded arrays: images (N, C, H, W) uint8, labels (N,) int64, writable or mapped copy-on-write."""
    assert (images.ndim, images.dtype) == (4, np.uint8), (images.shape, images.dtype)
    assert (labels.shape, labels.dtype) == ((len(images),), np.int64), (labels.shape, labels.dtype)
    images_NCHW = torch.from_numpy(images)
    return LabelledImages(
        labels=torch.from_numpy(labels),
        images=images_NCHW,
        read=Row(images_NCHW),
        fingerprint=fingerprint or content_fingerprint(images, labels),
    )


def content_fingerprint(images: np.ndarray, labels: np.ndarray) -> str:
    """sha256 (hex) of shape, images and labels. 2.3 GB/s where the processor has SHA instructions."""
    digest = hashlib.sha256(f"{images.shape} {images.dtype} {labels.dtype}".encode())
    digest.update(np.ascontiguousarray(images).data)
    digest.update(np.ascontiguousarray(labels).data)
    return digest.hexdigest()


def commonest(labels: Tensor | None) -> int | None:
    """The class of most examples; None if there are no classes."""
    return None if labels is None else int(torch.bincount(labels).argmax())


def split_validation(num_examples: int, val_size: int, seed: int) -> tuple[Tensor, Tensor]:
    """(train_indices, val_indices): disjoint, ascending int64, together 0..num_examples-1; no global generator."""
    if not 0 <= val_size < num_examples:
        raise ConfigError(
            f"dataset.val_size={val_size} does not leave any of the {num_examples} training examples to train on."
            if val_size >= 0
            else f"dataset.val_size={val_size} is negative.",
            hint=f"Choose a number from 0 to {num_examples - 1}.",
        )
    order = torch.randperm(num_examples, generator=private_generator("validation split", seed))
    return order[val_size:].sort().values, order[:val_size].sort().values


def stratified_test(labels: np.ndarray, fraction: float) -> np.ndarray:
    """A fixed test part for data without one: (N,) bool, `fraction` of every class, the same for every seed.

    Every class keeps at least one example to train on, and gives one to the test split if it has two.
    """
    is_test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        order = torch.randperm(len(rows), generator=private_generator("test split", int(label))).numpy()
        num_test = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
        is_test[rows[order[:num_test]]] = True
    return is_test


def private_generator(*words: str | int) -> torch.Generator:
    """A CPU generator seeded from `words`: streams of different words are unrelated, whatever the seeds."""
    digest = hashlib.sha256(repr(words).encode()).digest()
    # The Mersenne Twister inside a CPU generator takes 32 bits of a seed.
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))
