"""The cache of decoded images: a second run touches no archive, no image decoder and no torchvision.

One folder per data set and content, under cache_folder()/decoded/<name>-<key>: for each split an images and a labels
.npy, and meta.json with classes, sizes and fingerprints. It is written beside and renamed, mapped into memory at
loading, and verified: by size always, by sha256 up to VERIFIED_BYTES. A cache that cannot be written or read costs
time, never the run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dlcli.datasets.examples import Data, content_fingerprint, in_memory
from dlcli.datasets.roots import cache_folder

log = logging.getLogger(__name__)

LAYOUT = 1  # counted up when the files' layout changes: older folders are then not found, and written anew
VERIFIED_BYTES = 512 * 2**20  # about 0.2 s of sha256; larger images are checked by size alone
STALE_S = 24 * 3600  # an unfinished folder of that age belongs to a run that was killed


@dataclass(frozen=True)
class Decoded:
    """What a reader decodes: by split name (train, test, maybe val) images (N, C, H, W) uint8 and labels (N,) int64."""

    classes: tuple[str, ...]
    splits: dict[str, tuple[np.ndarray, np.ndarray]]


def cached(name: str, key: str, decode: Callable[[], Decoded]) -> Data:
    """The data under `key` (a sha256 of raw content and reader version), decoded and stored when they are not there."""
    if (data := stored(name, key)) is not None:
        return data
    decoded = decode()
    if store(place_of(name, key), key, decoded) and (data := stored(name, key)) is not None:
        return data
    return to_image_data(decoded)


def stored(name: str, key: str) -> Data | None:
    """The data under `key`, mapped copy-on-write (nothing written to them reaches the file); None when absent."""
    return load(place_of(name, key), key)


def place_of(name: str, key: str) -> Path:
    return cache_folder() / "decoded" / f"{name}-{key[:20]}"


def to_image_data(decoded: Decoded, fingerprints: dict[str, str] | None = None) -> Data:
    splits = {
        split: in_memory(images, labels, (fingerprints or {}).get(split))
        for split, (images, labels) in decoded.splits.items()
    }
    return Data(classes=decoded.classes, train=splits["train"], test=splits["test"], val=splits.get("val"))


def content_key(files: Iterable[Path], *words: object) -> str:
    """sha256 (hex) of the bytes of `files`, in order, and of `words` (the reader's version and settings)."""
    digest = hashlib.sha256(repr((LAYOUT, *words)).encode())
    for path in files:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def load(folder: Path, key: str) -> Data | None:
    """The data in `folder`, verified; None when they are absent, damaged or of another key."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        if meta["key"] != key:
            return None
        splits, fingerprints = {}, {}
        for split, stored in meta["splits"].items():
            images = np.load(folder / f"{split}-images.npy", mmap_mode="c")
            labels = np.load(folder / f"{split}-labels.npy")
            if list(images.shape) != stored["shape"] or images.dtype != np.uint8 or len(labels) != len(images):
                raise ValueError(f"{split}: {images.shape} {images.dtype} is not {stored['shape']} uint8")
            if images.nbytes <= VERIFIED_BYTES and content_fingerprint(images, labels) != stored["fingerprint"]:
                raise ValueError(f"{split}: the content has changed")
            splits[split], fingerprints[split] = (images, labels), stored["fingerprint"]
        return to_image_data(Decoded(tuple(meta["classes"]), splits), fingerprints)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, EOFError, AssertionError) as error:
        log.info("The data cache %s is damaged (%s): decoding anew.", folder, error)
        return None


def store(folder: Path, key: str, decoded: Decoded) -> bool:
    """Write `decoded` to `folder` in one rename; False when that is not possible (no space, no permission)."""
    unfinished = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(folder.parent)
        unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder.parent))
        write_splits(unfinished, key, decoded)
        if folder.exists():  # damaged, or another run was faster: the content is the same
            shutil.rmtree(folder, ignore_errors=True)
        os.rename(unfinished, folder)
    except OSError as error:
        log.info("The data cache %s cannot be written (%s): the data are decoded again next time.", folder, error)
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)
        return (folder / "meta.json").is_file()  # another run may have won the rename
    return True


def write_splits(folder: Path, key: str, decoded: Decoded) -> None:
    meta: dict = {"key": key, "classes": list(decoded.classes), "splits": {}}
    for split, (images, labels) in decoded.splits.items():
        for kind, array in (("images", images), ("labels", labels)):
            with open(folder / f"{split}-{kind}.npy", "wb") as file:
                np.save(file, array, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
        meta["splits"][split] = {"shape": list(images.shape), "fingerprint": content_fingerprint(images, labels)}
    (folder / "meta.json").write_text(json.dumps(meta, indent=1))


def remove_stale(parent: Path) -> None:
    for path in parent.glob(".unfinished-*"):
        if time.time() - path.stat().st_mtime > STALE_S:
            shutil.rmtree(path, ignore_errors=True)
