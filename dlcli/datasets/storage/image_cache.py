"""Labelled images in the cache of decoded data: an array of images and one of labels for each split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dlcli.datasets.batches.examples import Data, content_fingerprint, in_memory
from dlcli.datasets.storage import cache


@dataclass(frozen=True)
class Images:
    """The result of a reader: split name (train, test, maybe val) -> images (N, C, H, W) uint8 and labels (N,) int64.

    notes: how the images were changed, as sentences for the user.
    """

    classes: tuple[str, ...]
    splits: dict[str, tuple[np.ndarray, np.ndarray]]
    notes: tuple[str, ...] = ()


def cached_images(name: str, key: str, decode: Callable[[], Images]) -> Data:
    """The data under `key`, decoded and stored if they are not there. See cache.cached."""
    return as_data(cache.cached(name, key, lambda: as_arrays(decode())))


def stored_images(name: str, key: str) -> Data | None:
    """The data under `key`, mapped copy-on-write (nothing written to them reaches the file); None when absent."""
    found = cache.stored(name, key)
    return None if found is None else as_data(found)


def as_arrays(decoded: Images) -> cache.Decoded:
    return cache.Decoded(
        splits={split: {"images": images, "labels": labels} for split, (images, labels) in decoded.splits.items()},
        fingerprints={split: content_fingerprint(*arrays) for split, arrays in decoded.splits.items()},
        facts={"classes": list(decoded.classes), "notes": list(decoded.notes)},
    )


def as_data(decoded: cache.Decoded) -> Data:
    splits = {
        split: in_memory(arrays["images"], arrays["labels"], decoded.fingerprints[split])
        for split, arrays in decoded.splits.items()
    }
    notes = tuple(decoded.facts.get("notes", ()))  # older caches have none
    return Data(tuple(decoded.facts["classes"]), splits["train"], splits["test"], splits.get("val"), notes=notes)
