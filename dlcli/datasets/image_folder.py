"""Images in folders by class, or in a .tar archive of such folders: any common format, decoded once to one shape."""

from __future__ import annotations

import hashlib
import io
import tarfile
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dlcli.datasets.batches.examples import Data, LabelledImages, stratified_test
from dlcli.datasets.files.image_tree import (
    Entry,
    ImageTree,
    archive_key,
    damaged_archive,
    is_archive,
    list_images,
    locate,
)
from dlcli.datasets.storage.cache import content_key
from dlcli.datasets.storage.image_cache import Images, cached_images, stored_images
from dlcli.errors import ConfigError, DataError, printable

if TYPE_CHECKING:
    from PIL import Image

VERSION = 2  # of this reader: raise it when its output changes, and the cache is written again
TEST_FRACTION = 0.2
DAMAGED_NAMED = 5  # in an error
MEMBER_LIMIT = 512 * 2**20  # bytes of one image file in an archive
# fmt: off
FORMATS = (  # not EPS: it starts Ghostscript
    "AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP",
    "XBM",
)
# fmt: on


def read_image_folder(
    root: str | None = None,
    *,
    image_shape: Sequence[int],
    path: str | None = None,
    memory_limit_mb: float = 4096,
) -> Data:
    """The images of `root`, or of `path` under the first data root that has it; see image_tree for the layouts.

    image_shape: (C, H, W) with C 1 (grey) or 3 (RGB); images are scaled and cut at the centre to fit it.
    Up to `memory_limit_mb` decoded, they are decoded once, into the cache; above that, each time they are read.
    """
    channels, height, width = image_shape
    if channels not in (1, 3) or height < 1 or width < 1:
        raise ConfigError(
            f"dataset.image_shape={list(image_shape)} is not a shape of images.",
            hint="[C, H, W] with C = 1 (grey) or 3 (RGB), such as [3, 64, 64].",
        )
    shape = (channels, height, width)
    place = locate(root, path)
    if is_archive(place) and (data := stored_images("image_folder", cache_key(shape, archive_key(place)))) is not None:
        return data  # the archive need not be decompressed for its list of names
    tree = with_test(list_images(place))
    decoded_mb = len(tree) * channels * height * width / 1e6
    if decoded_mb <= memory_limit_mb:
        return cached_images("image_folder", cache_key(shape, tree.key), lambda: decode(tree, shape))
    if tree.is_archive:
        raise DataError(
            f"{tree.path} holds {len(tree):,} images, {decoded_mb:,.0f} MB decoded; "
            f"up to {memory_limit_mb:,.0f} MB are read from an archive.",
            hint="Extract it and give the folder as dataset.root, or raise dataset.reader.memory_limit_mb.",
        )
    return lazy(tree, shape)


def cache_key(shape: tuple[int, int, int], tree_key: str) -> str:
    return content_key((), "image_folder", VERSION, shape, tree_key)


def with_test(tree: ImageTree) -> ImageTree:
    """The tree with a test split: its own, or a fixed fifth of every training class."""
    if "test" in tree.splits:
        return tree
    train = tree.splits["train"]
    is_test = stratified_test(np.array([entry.label for entry in train]), TEST_FRACTION)
    test = tuple(entry for entry, chosen in zip(train, is_test, strict=True) if chosen)
    rest = tuple(entry for entry, chosen in zip(train, is_test, strict=True) if not chosen)
    return ImageTree(tree.path, tree.classes, {**tree.splits, "train": rest, "test": test}, tree.key)


def decode(tree: ImageTree, shape: tuple[int, int, int]) -> Images:
    """Every image, in one pass over the archive or folder."""
    places = {}
    splits = {}
    for split, entries in tree.splits.items():
        images = np.empty((len(entries), *shape), dtype=np.uint8)
        splits[split] = (images, np.array([entry.label for entry in entries], dtype=np.int64))
        places.update({entry.name: (images, row) for row, entry in enumerate(entries)})
    damaged: list[str] = []
    changes: Counter[str] = Counter()
    for name, file in open_all(tree):
        if name in places:
            images, row = places[name]
            try:
                images[row] = decode_image(file, shape, source=name, changes=changes)
            except DataError as error:  # the others are read too, so that one error reports all of them
                damaged.append(error.message.removesuffix("."))
    if damaged:
        raise damaged_images(tree, damaged)
    return Images(tree.classes, splits, told_of_changes(changes, len(tree), shape))


def told_of_changes(changes: Counter[str], num_images: int, shape: Sequence[int]) -> tuple[str, ...]:
    """Sentences that say what decoding changed, and in how many images."""
    _, height, width = shape
    what = {
        "size": f"not of {height} x {width} pixels, scaled to cover these and cut at the centre",
        "alpha": "with an alpha channel, which is dropped",
        "bits": "of 16 bits, which are scaled to 8",
        "colour": "in colour, and made grey",
    }
    return tuple(
        f"images {clause}: {changes[change]:,} of {num_images:,}" for change, clause in what.items() if changes[change]
    )


def damaged_images(tree: ImageTree, damaged: Sequence[str]) -> DataError:
    """One error for all the images that cannot be read; it quotes the first few."""
    message = "; ".join(damaged[:DAMAGED_NAMED])
    if len(damaged) == 1:
        return DataError(f"{tree.path}: {message}.", hint="Replace or remove this file.")
    more = f"; and {len(damaged) - DAMAGED_NAMED:,} more" if len(damaged) > DAMAGED_NAMED else ""
    count = f"{len(damaged):,} of {len(tree):,} images cannot be read"
    return DataError(f"{tree.path}: {count}: {message}{more}.", hint="Replace or remove these files.")


def open_all(tree: ImageTree) -> Iterator[tuple[str, IO[bytes]]]:
    """(name, open file) of every regular file; an archive is read in its own order, as it can only be read forwards."""
    if not tree.is_archive:
        for entry in sorted(entry for entries in tree.splits.values() for entry in entries):
            yield entry.name, io.BytesIO(read_bytes(tree.path / entry.name))
        return
    try:
        with tarfile.open(tree.path) as archive:
            for member in archive:
                if member.isfile() and member.size <= MEMBER_LIMIT and (file := archive.extractfile(member)):
                    yield str(Path(member.name).as_posix()), file
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise damaged_archive(tree.path, error) from error


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


def decode_image(
    file: IO[bytes], shape: tuple[int, int, int], *, source: str, changes: Counter[str] | None = None
) -> np.ndarray:
    """(C, H, W) uint8: turned as its EXIF says, scaled to cover H x W, cut at the centre. `source` begins the error.

    changes: counts what images lost, see told_of_changes.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    channels, height, width = shape
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as odd metadata: only the pixels count
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as opened:
                image = to_mode(ImageOps.exif_transpose(opened), "L" if channels == 1 else "RGB")
            if changes is not None:
                changes.update(changes_of(opened, image, (width, height)))
            if image.size != (width, height):
                image = ImageOps.fit(image, (width, height), method=Image.Resampling.BILINEAR)
            return np.asarray(image, dtype=np.uint8).reshape(height, width, channels).transpose(2, 0, 1)
    except Exception as error:  # Pillow's decoders raise a dozen kinds: OSError, SyntaxError, ValueError, struct.error
        unknown = isinstance(error, UnidentifiedImageError)  # whose text is the address of a Python object
        what = "not an image of a known format" if unknown else f"not an image that can be read: {printable(error)}"
        raise DataError(f"{printable(source)} is {what}.".lstrip(), hint="Replace or remove this file.") from error


def changes_of(opened: Image.Image, image: Image.Image, size: tuple[int, int]) -> Iterator[str]:
    """The changes between an image as opened and in its new mode. size: (W, H)."""
    if image.size != size:
        yield "size"
    if "A" in opened.getbands() or "transparency" in opened.info:
        yield "alpha"
    if opened.mode.startswith("I"):
        yield "bits"
    if image.mode == "L" and len(set(opened.getbands()) - {"A"}) > 1:
        yield "colour"


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """The image in "L" or "RGB". 16-bit grey is scaled to 8 bits (Pillow would cut it off at 255)."""
    from PIL import Image

    if image.mode.startswith("I;16") or image.mode == "I":
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    return image.convert(mode)


@dataclass(frozen=True)
class FileImages:
    """Reads and decodes one file each time."""

    folder: Path
    names: tuple[str, ...]
    shape: tuple[int, int, int]

    def __call__(self, index: int) -> Tensor:
        path = self.folder / self.names[index]
        image = decode_image(io.BytesIO(read_bytes(path)), self.shape, source=str(path))
        return torch.from_numpy(np.ascontiguousarray(image))


def lazy(tree: ImageTree, shape: tuple[int, int, int]) -> Data:
    splits = {split: lazy_examples(tree.path, entries, shape) for split, entries in tree.splits.items()}
    return Data(tree.classes, splits["train"], splits["test"], splits.get("val"))


def lazy_examples(folder: Path, entries: Sequence[Entry], shape: tuple[int, int, int]) -> LabelledImages:
    """Examples whose fingerprint is of names, sizes and labels: reading all content would take as long as an epoch."""
    digest = hashlib.sha256(repr(shape).encode())
    for entry in entries:
        digest.update(repr((entry.name, entry.size, entry.label)).encode())
    return LabelledImages(
        labels=torch.tensor([entry.label for entry in entries], dtype=torch.int64),
        images=None,
        read=FileImages(folder, tuple(entry.name for entry in entries), shape),
        fingerprint=digest.hexdigest(),
    )
