"""CIFAR-10 (Krizhevsky, 2009): 50,000 + 10,000 colour images of 32 x 32, from the archive or the extracted folder."""

from __future__ import annotations

import hashlib
import pickle
import tarfile
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dlcli.datasets.batches.examples import Data
from dlcli.datasets.files.image_tree import damaged_archive
from dlcli.datasets.storage.cache import content_key
from dlcli.datasets.storage.download import download as download_file
from dlcli.datasets.storage.image_cache import Images, cached_images
from dlcli.datasets.storage.roots import data_roots, download_folder, find_under, missing
from dlcli.errors import DataError

VERSION = 1  # of this reader: raise it when its output changes, and the cache is written again
ARCHIVE = "cifar-10-python.tar.gz"
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"  # as in torchvision.datasets.CIFAR10
URL = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"
FOLDER = "cifar-10-batches-py"
MEMBER_LIMIT = 64 * 2**20  # bytes; a batch has 31 million
MD5 = {  # as in torchvision.datasets.CIFAR10
    "train": {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    },
    "test": {"test_batch": "40351d587109b95175f43aff81a1287e"},
}
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# The extracted `FOLDER` is preferred: it needs no decompression.
PLACES = [f"{prefix}{name}" for prefix in ("", "CIFAR10/", "cifar10/", "CIFAR-10/") for name in (FOLDER, ARCHIVE)]


def read_cifar10(root: str | None = None, *, download: bool = True) -> Data:
    """Images (50000 and 10000, 3, 32, 32). Raises DataError when the data are missing or damaged.

    The files hold pickles, which could run code: each is loaded only after its MD5 is found to be the published one.
    """
    place = locate(root, download=download)
    files = [place / name for names in MD5.values() for name in names] if place.is_dir() else [place]
    try:
        key = content_key(files, "cifar10", VERSION)
    except OSError as error:
        raise DataError(
            f"{error.filename} cannot be read: {error.strerror}.", hint=f"Extract {ARCHIVE} again."
        ) from error
    return cached_images("cifar10", key, lambda: decode(place))


def locate(root: str | None, *, download: bool) -> Path:
    roots = data_roots(root)
    if roots[0].name in (FOLDER, ARCHIVE):
        return roots[0]
    if (found := find_under(roots, PLACES)) is not None:
        return found
    reason = "dataset.download=false"
    if download:
        try:
            return download_file([URL], download_folder() / ARCHIVE, md5=ARCHIVE_MD5, size_limit=200_000_000)
        except DataError as error:
            reason = error.message
    raise missing("CIFAR-10", f"{FOLDER}/ or {ARCHIVE}", roots, name="cifar10", reason=reason)


def decode(place: Path) -> Images:
    if place.is_dir():
        return decode_batches(place, lambda name: (place / name).read_bytes())
    try:
        with tarfile.open(place) as archive:
            # Members are read in archive order: going back would decompress from the start again.
            wanted = {f"{FOLDER}/{name}": name for names in MD5.values() for name in names}
            contents = {wanted[m.name]: read_member(archive, m) for m in archive if m.isfile() and m.name in wanted}
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise damaged_archive(place, error) from error
    return decode_batches(place, lambda name: contents.get(name, b""))


def read_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None, member.name
    return file.read(MEMBER_LIMIT)


def decode_batches(place: Path, read: Callable[[str], bytes]) -> Images:
    splits = {}
    for split, md5s in MD5.items():
        batches = [unpickle(place, name, read(name), md5) for name, md5 in md5s.items()]
        images = np.concatenate([images for images, _ in batches])
        splits[split] = (images, np.concatenate([labels for _, labels in batches]))
    return Images(CLASSES, splits)


def unpickle(place: Path, name: str, content: bytes, md5: str) -> tuple[np.ndarray, np.ndarray]:
    """images (10000, 3, 32, 32) uint8 and labels (10000,) int64 of one file, after its MD5 is verified."""
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise DataError(
            f"{name} of {place} is damaged: its MD5 is {found}, not {md5}.",
            hint=f"Replace it with an intact copy of {ARCHIVE}, or move it away to have it downloaded again.",
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy: "align should be passed as boolean", for pickles of that age
        batch = pickle.loads(content, encoding="latin1")
    images = np.asarray(batch["data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
    return images, np.asarray(batch["labels"], dtype=np.int64)
