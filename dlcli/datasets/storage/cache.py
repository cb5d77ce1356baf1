"""The cache of decoded data: a second start opens no archive and no decoder of pictures or sound.

Each data set and content has one folder, cache_folder()/decoded/<name>-<key>: a .npy for each array of a split, and
meta.json with the rest. It is written under another name and renamed, mapped into memory at loading, and verified: by
size always, by sha256 up to VERIFIED_BYTES. A cache that cannot be written or read costs time, never the run.

Needs only NumPy: answers needed before a run (how many classes masks have) are kept here too. Labelled images have
image_cache.py.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dlcli.datasets.storage.roots import cache_folder

log = logging.getLogger(__name__)

LAYOUT = 2  # raised when the files' layout changes: older folders are then not found, and written again
VERIFIED_BYTES = 512 * 2**20  # of a split, about 0.2 s of sha256; larger ones are checked by size alone
STALE_S = 24 * 3600  # an unfinished folder of that age belongs to a run that was killed
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Decoded:
    """The result of a reader.

    splits: name (train, test, maybe val) -> arrays by name. fingerprints: sha256 (hex) of each split.
    facts: the rest, as plain data: classes, notes, ...
    """

    splits: Mapping[str, Arrays]
    fingerprints: Mapping[str, str]
    facts: Mapping[str, Any] = field(default_factory=dict)


def cached(name: str, key: str, decode: Callable[[], Decoded]) -> Decoded:
    """The data kept under `key` (a sha256 of raw content and reader version), decoded and stored if they are not there.

    Arrays are mapped copy-on-write: nothing written to them reaches the file.
    """
    if (found := stored(name, key)) is not None:
        return found
    decoded = decode()
    if store(place_of(name, key), key, decoded) and (found := stored(name, key)) is not None:
        return found
    return decoded


def stored(name: str, key: str) -> Decoded | None:
    """The data kept under `key`, verified; None if there are none."""
    return load(place_of(name, key), key)


def place_of(name: str, key: str) -> Path:
    return cache_folder() / "decoded" / f"{name}-{key[:20]}"


def content_key(files: Iterable[Path], *words: object) -> str:
    """sha256 (hex) of the bytes of `files`, in order, and of `words` (the reader's version and settings)."""
    digest = hashlib.sha256(repr((LAYOUT, *words)).encode())
    for path in files:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def times_key(files: Iterable[Path]) -> str:
    """sha256 (hex) of where `files` lie, and of their sizes and times (changed contents change the ctime).

    A file without access counts as such; its reader reports why.
    """
    digest = hashlib.sha256()
    for path in files:
        try:
            stat = os.stat(path)
            seen: object = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        except OSError as error:
            seen = error.errno
        digest.update(repr((os.path.abspath(path), seen)).encode())
    return digest.hexdigest()


def load(folder: Path, key: str) -> Decoded | None:
    """The data in `folder`, verified; None if they are absent, damaged or of another key."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        if meta["key"] != key:
            return None
        splits = {split: load_split(folder, split, said) for split, said in meta["splits"].items()}
        fingerprints = {split: str(said["fingerprint"]) for split, said in meta["splits"].items()}
        return Decoded(splits, fingerprints, dict(meta["facts"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        log.info("The data cache %s is damaged (%s): the data are decoded again.", folder, error)
        return None


def load_split(folder: Path, split: str, said: Mapping[str, Any]) -> Arrays:
    """Raises ValueError if the arrays are not as meta.json says."""
    arrays = {}
    for name, (shape, dtype) in said["arrays"].items():
        is_mapped = 0 not in shape  # an empty file cannot be mapped
        array = arrays[name] = np.load(folder / f"{split}-{name}.npy", mmap_mode="c" if is_mapped else None)
        if (list(array.shape), str(array.dtype)) != (shape, dtype):
            raise ValueError(f"{split}-{name}: {array.shape} {array.dtype} is not {shape} {dtype}")
    if num_bytes(arrays) <= VERIFIED_BYTES and checksum(arrays) != said["sha256"]:
        raise ValueError(f"{split}: the content has changed")
    return arrays


def num_bytes(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays.values())


def checksum(arrays: Arrays) -> str:
    """sha256 (hex) of names and contents. 2.3 GB/s where the processor has SHA instructions."""
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name} {array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def store(folder: Path, key: str, decoded: Decoded) -> bool:
    """Write `decoded` to `folder` in one rename; False when that is not possible (no space, no permission)."""
    unfinished = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(folder.parent)
        unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder.parent))
        write_splits(unfinished, key, decoded)
        if folder.exists():  # it is damaged, or another run was faster and the content is the same
            shutil.rmtree(folder, ignore_errors=True)
        os.rename(unfinished, folder)
    except OSError as error:
        log.info("The data cache %s cannot be written (%s): the data are decoded again next time.", folder, error)
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)
        return (folder / "meta.json").is_file()  # another run may have won the rename
    return True


def write_splits(folder: Path, key: str, decoded: Decoded) -> None:
    meta: dict[str, Any] = {"key": key, "facts": decoded.facts, "splits": {}}
    for split, arrays in decoded.splits.items():
        for name, array in arrays.items():
            with open(folder / f"{split}-{name}.npy", "wb") as file:
                np.save(file, array, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
        meta["splits"][split] = {
            "arrays": {name: (array.shape, str(array.dtype)) for name, array in arrays.items()},
            "fingerprint": decoded.fingerprints[split],
            "sha256": checksum(arrays),
        }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1))


def remove_stale(parent: Path) -> None:
    for path in parent.glob(".unfinished-*"):
        if time.time() - path.stat().st_mtime > STALE_S:
            shutil.rmtree(path, ignore_errors=True)
