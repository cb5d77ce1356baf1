"""MNIST and Fashion-MNIST: 60,000 + 10,000 grey images of 28 x 28 in IDX files, read from .gz without extracting them.

The digits were collected by LeCun, Cortes and Burges; Fashion-MNIST by Xiao, Rasul and Vollgraf (arXiv 1708.07747).
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dlcli.datasets.batches.examples import Data
from dlcli.datasets.storage.cache import content_key
from dlcli.datasets.storage.download import download as download_file
from dlcli.datasets.storage.image_cache import Images, cached_images
from dlcli.datasets.storage.roots import data_roots, download_folder, exists, missing
from dlcli.errors import DataError

VERSION = 1  # of this reader: raise it when its output changes, and the cache is written again

FILES = {  # kind -> (images, labels, number of examples)
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", 60_000),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", 10_000),
}
NAMES = [name for images, labels, _ in FILES.values() for name in (images, labels)]


@dataclass(frozen=True)
class Edition:
    """One data set in this format. By file name, md5: of the .gz; payload: sha256 of the decompressed file."""

    name: str
    title: str
    folders: tuple[str, ...]
    mirrors: tuple[str, ...]
    classes: tuple[str, ...]
    md5: dict[str, str]
    payload: dict[str, str]


MNIST = Edition(
    name="mnist",
    title="MNIST",
    folders=("MNIST/raw", "mnist/raw", "MNIST", "mnist", "raw", ""),
    mirrors=("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
    classes=tuple("0123456789"),
    md5={  # as in torchvision.datasets.MNIST
        "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
    },
    payload={  # sha256 of the decompressed files, so that a copy compressed by another program is accepted too
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
)

FASHION_MNIST = Edition(
    name="fashion_mnist",
    title="Fashion-MNIST",
    folders=("FashionMNIST/raw", "fashion_mnist/raw", "FashionMNIST", "fashion_mnist", "fashion-mnist", "raw", ""),
    mirrors=("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
    # the order of its labels
    classes=("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"),
    md5={  # as in torchvision.datasets.FashionMNIST; no digests of the decompressed files are published
        "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
    },
    payload={},
)


def read_mnist(root: str | None = None, *, download: bool = True) -> Data:
    """MNIST: images (60000 and 10000, 1, 28, 28). Raises DataError when it is missing, damaged or not MNIST."""
    return read_edition(MNIST, root, download=download)


def read_fashion_mnist(root: str | None = None, *, download: bool = True) -> Data:
    """Fashion-MNIST, in the same form and under the same names as MNIST: ten kinds of clothes."""
    return read_edition(FASHION_MNIST, root, download=download)


def read_edition(edition: Edition, root: str | None, *, download: bool) -> Data:
    roots = data_roots(root)
    paths = find_files(edition, roots) or fetch_files(edition, roots, download=download)
    key = content_key((paths[name] for name in NAMES), edition.name, VERSION)
    return cached_images(edition.name, key, lambda: decode(edition, paths))


def decode(edition: Edition, paths: dict[str, Path]) -> Images:
    splits = {}
    for split, (images_name, labels_name, count) in FILES.items():
        images = read_idx(paths[images_name], (count, 28, 28), edition)
        labels = read_idx(paths[labels_name], (count,), edition)
        if labels.max() > 9:
            raise damaged(paths[labels_name], f"holds the label {labels.max()}, but there are ten classes")
        splits[split] = (images.reshape(count, 1, 28, 28), labels.astype(np.int64))
    return Images(edition.classes, splits)


def find_files(edition: Edition, roots: Sequence[Path]) -> dict[str, Path] | None:
    """The four files of the first folder that has them all (.gz preferred: their checksums are known)."""
    for root in roots:
        for folder in edition.folders:
            paths = {name: path for name in NAMES if (path := first_existing(root / folder, name)) is not None}
            if len(paths) == len(NAMES):
                return paths
    return None


def first_existing(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / f"{name}.gz", folder / name) if exists(path)), None)


def fetch_files(edition: Edition, roots: Sequence[Path], *, download: bool) -> dict[str, Path]:
    """The four .gz files in the download folder, verified by MD5; those already there are not fetched again."""
    if not download:
        raise missing_files(edition, roots, "dataset.download=false")
    folder = download_folder() / edition.folders[0]
    paths = {name: folder / f"{name}.gz" for name in NAMES}
    try:
        for name, path in paths.items():
            if not path.exists():
                urls = [f"{mirror}{name}.gz" for mirror in edition.mirrors]
                download_file(urls, path, md5=edition.md5[name], size_limit=30_000_000)
    except DataError as error:
        raise missing_files(edition, roots, error.message) from error
    return paths


def missing_files(edition: Edition, roots: Sequence[Path], reason: str) -> DataError:
    """Says which of the four files are missing if only some are found: usually a copy was interrupted."""
    expected = ", ".join(f"{name}.gz" for name in NAMES) + f" (there or in its {edition.folders[0]}/)"
    for root in roots:
        for folder in edition.folders:
            absent = [name for name in NAMES if first_existing(root / folder, name) is None]
            if len(absent) < len(NAMES):
                reason = f"{(root / folder).absolute()} lacks {', '.join(f'{name}.gz' for name in absent)}; {reason}"
    return missing(edition.title, expected, roots, name=edition.name, reason=reason)


def read_idx(path: Path, shape: tuple[int, ...], edition: Edition) -> np.ndarray:
    """The uint8 array of `shape` in an IDX file: big-endian magic 0x0800 + rank, a uint32 per dimension, bytes."""
    header_size = 4 + 4 * len(shape)
    payload = read_payload(path, header_size + int(np.prod(shape)), edition)
    magic, *sizes = np.frombuffer(payload[:header_size], dtype=">u4").tolist()
    if magic != 0x0800 + len(shape):
        raise damaged(
            path, f"starts with the number {magic}, not {0x0800 + len(shape)}: it is not an IDX file of this kind"
        )
    if tuple(sizes) != shape:
        raise damaged(path, f"says it holds {sizes}, but {edition.title} has {list(shape)}")
    verify_payload(path, payload, edition)
    return np.frombuffer(payload, dtype=np.uint8, offset=header_size).reshape(shape)


def read_payload(path: Path, size: int, edition: Edition) -> bytearray:
    """The decompressed content, which must have `size` bytes; at most one byte more than that is decompressed."""
    try:
        if path.suffix == ".gz":
            verify_gz(path, edition)
            with gzip.open(path) as file:
                payload = read_at_most(file, size + 1)
        else:
            with open(path, "rb") as file:
                payload = read_at_most(file, size + 1)
    except EOFError as error:
        raise damaged(path, "is cut off: the compressed data end too early") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise damaged(path, f"cannot be decompressed ({error})") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.", hint="Check its permissions.") from error
    if len(payload) != size:
        found = f"more than {size:,}" if len(payload) > size else f"{len(payload):,}"
        raise damaged(path, f"holds {found} bytes, not the {size:,} of {edition.title}")
    return payload


def read_at_most(file: BinaryIO | gzip.GzipFile, limit: int) -> bytearray:
    """At most `limit` bytes, in a buffer that may be written: torch warns about arrays that may not."""
    payload = bytearray()
    while len(payload) < limit and (chunk := file.read(min(1 << 20, limit - len(payload)))):
        payload += chunk
    return payload


def verify_gz(path: Path, edition: Edition) -> None:
    """Verified by the checksum of the .gz only if the payload's is not known."""
    name = path.name.removesuffix(".gz")
    if name in edition.payload:
        return
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != edition.md5[name]:
        raise damaged(path, f"has MD5 {found}, but that of {edition.title} is {edition.md5[name]}")


def verify_payload(path: Path, payload: bytearray, edition: Edition) -> None:
    expected = edition.payload.get(path.name.removesuffix(".gz"))
    if expected is not None and (found := hashlib.sha256(payload).hexdigest()) != expected:
        raise damaged(path, f"is not {edition.title}: the sha256 of its content is {found[:16]}…, not {expected[:16]}…")


def damaged(path: Path, reason: str) -> DataError:
    return DataError(
        f"{path} {reason}.", hint="Replace it with an intact copy, or move it away to have it downloaded again."
    )
