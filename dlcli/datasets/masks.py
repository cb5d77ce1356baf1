"""Images with a class for every pixel: reading, batches, and made-up ones.

Letters: N examples, B of them in a batch, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import io
import json
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dlcli.datasets.batches.examples import Data, stratified_test
from dlcli.datasets.batches.pixels import pixels_on
from dlcli.datasets.batches.records import Dense, Records, fingerprint_of
from dlcli.datasets.files.image_tree import archive_key, is_archive
from dlcli.datasets.files.mask_files import (
    IGNORED,
    VERSION,
    Coding,
    Mask,
    MaskTree,
    Pair,
    coding_of,
    contents,
    decode_mask,
    first_words,
    list_masks,
    locate,
    shortened,
)
from dlcli.datasets.image_folder import FORMATS, TEST_FRACTION, changes_of, to_mode, told_of_changes
from dlcli.datasets.storage.cache import Decoded, cached, content_key, stored
from dlcli.datasets.storage.roots import data_roots, find_under, missing
from dlcli.errors import ConfigError, DataError, printable

NUCLEI = ("nuclei/nuclei_dev_200.tar.gz", "nuclei_dev_200.tar.gz")


class MaskBatch(NamedTuple):
    images: Tensor  # (B, C, H, W) float32 normalised
    masks: Tensor  # (B, H, W) int64: classes; IGNORED where there is none
    index: Tensor  # type: ignore[assignment]  # hides tuple.index; (B,) int64

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return (self.images,)


@dataclass(frozen=True)
class Collate:
    """Stored bytes -> a batch: augmented as pixels in [0, 1], then normalised. mean, std: per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, taken: Mapping[str, Tensor], index_B: Tensor, augment: Any, keys_B: Tensor | None) -> MaskBatch:
        images_BCHW, masks_BHW = taken["images"], taken["masks"].long()
        pixels = pixels_on(self.mean, self.std, images_BCHW.shape[1], images_BCHW.device)
        if augment is None:
            return MaskBatch(pixels.from_bytes(images_BCHW), masks_BHW, index_B)
        images_BCHW, masks_BHW = augment.with_masks(pixels.unit(images_BCHW), masks_BHW, keys_B)
        return MaskBatch(pixels.normalise(images_BCHW), masks_BHW, index_B)


def as_records(images: Tensor, masks: Tensor, mean: Sequence[float], std: Sequence[float], fingerprint: str) -> Records:
    """images: (N, C, H, W) uint8; masks: (N, H, W) uint8."""
    columns = {"images": Dense(images), "masks": Dense(masks)}
    return Records(columns, Collate(tuple(mean), tuple(std)), fingerprint)


def made_up(settings: Mapping[str, Any], num_examples: int) -> Records:
    """Noise, with a random class for each pixel."""
    channels, height, width = settings["image_shape"]
    images = torch.randint(256, (num_examples, channels, height, width), dtype=torch.uint8)
    masks = torch.randint(settings["num_classes"], (num_examples, height, width), dtype=torch.uint8)
    return as_records(images, masks, settings["mean"], settings["std"], "made up")


def read_nuclei(
    root: str | None = None, *, image_shape: Sequence[int], mean: Sequence[float], std: Sequence[float]
) -> Data:
    """200 microscope images of the 2018 Data Science Bowl (Caicedo et al. 2019), cut to 256 x 256 pixels.

    splits.json beside the archive names the 40 that are held out ("val"): they are the test split here.
    """
    roots = data_roots(root)
    found = find_under(roots, NUCLEI)
    if found is None:
        raise missing("nuclei", NUCLEI[0], roots, name="nuclei", reason="dlcli has no address to fetch it from")
    names = {"train": read_names(found, "train"), "test": read_names(found, "val")}

    def decode() -> Decoded:
        tree = list_masks(found)
        splits = {split: tuple(p for p in tree.pairs if Path(p.image).stem in of) for split, of in names.items()}
        coding = Coding(("background", "nucleus"), (0, 1), merges=True)
        return decoded(replace(tree, splits=splits), image_shape, lambda *_: coding)

    listed = {split: sorted(of) for split, of in names.items()}
    key = content_key((), "nuclei", VERSION, [*image_shape], listed, str(found), archive_key(found))
    return to_data(cached("nuclei", key, decode), mean, std)


def read_names(archive: Path, split: str) -> set[str]:
    place = archive.with_name("splits.json")
    try:
        return set(json.loads(place.read_text())[split])
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f"{place} does not say which images are in the split {split}: {printable(repr(error))}."
        raise DataError(message, hint="Put the file beside the archive: {train: [names], val: [names]}.") from error


def read_masks(
    path: str | None,
    root: str | None = None,
    *,
    num_classes: int,
    image_shape: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    instances: bool = False,
    ignore_index: int | None = IGNORED,
    memory_limit_mb: float = 4096,
) -> Data:
    """The user's own images and masks; see mask_files for the layouts and the forms of a mask.

    instances: a mask holds ids of objects: 0 is the background, all others are one class. ignored: the id that counts
    as no class, unless the masks hold just 0 and 255. Without a test split, a fixed fifth is the test split.
    """
    place = locate(path, root)

    def key_of(content: str) -> str:  # with the place, because notes name it
        return content_key(
            (), "masks", VERSION, [*image_shape], num_classes, instances, ignore_index, str(place), content
        )

    if is_archive(place) and (found := stored("masks", key_of(archive_key(place)))) is not None:
        return to_data(found, mean, std)  # the archive need not be decompressed for its list of names
    tree = list_masks(place)
    needed_mb = len(tree.pairs) * (image_shape[0] + 1) * image_shape[1] * image_shape[2] / 1e6
    if needed_mb > memory_limit_mb:
        size = f"{len(tree.pairs):,} images are {needed_mb:,.0f} MB decoded, above the limit of {memory_limit_mb:,.0f}"
        raise DataError(
            f"{tree.path}: {size}",
            hint="Give a smaller dataset.image_shape, or a larger dataset.reader.memory_limit_mb.",
        )
    if "test" not in tree.splits:
        tree = with_test(tree)

    def code(found: dict[str, np.ndarray], is_rgb: dict[str, bool]) -> Coding:
        if instances:
            return Coding(("background", "object"), (0, 1), merges=True)
        return coding_of(found, is_rgb, num_classes=num_classes, ignored=ignore_index)

    return to_data(cached("masks", key_of(tree.key), lambda: decoded(tree, image_shape, code)), mean, std)


def with_test(tree: MaskTree) -> MaskTree:
    train = tree.splits["train"]
    if len(train) < 3:
        message = f"{tree.path} has {len(train)} training images and no test images"
        raise DataError(message, hint="Give at least three, to hold one out and validate on another.")
    is_test = stratified_test(np.zeros(len(train), dtype=np.int64), TEST_FRACTION)
    parts = {
        split: tuple(pair for pair, chosen in zip(train, is_test, strict=True) if chosen == (split == "test"))
        for split in ("train", "test")
    }
    return replace(tree, splits={**tree.splits, **parts})


# ------------------------------------------------------------------------------------------------------------- decoding


class Sized(NamedTuple):
    """pixels: resized; size: (H, W) in the file. changes: other losses, see image_folder.told_of_changes."""

    pixels: np.ndarray
    size: tuple[int, int]
    changes: tuple[str, ...] = ()


def decoded(
    tree: MaskTree,
    image_shape: Sequence[int],
    code: Callable[[dict[str, np.ndarray], dict[str, bool]], Coding],
) -> Decoded:
    """Every image and mask, in one pass over the folder or archive. code: finds which value is which class."""
    if image_shape[0] not in (1, 3):
        message = f"dataset.image_shape={list(image_shape)} is not a shape of images."
        raise ConfigError(message, hint="[C, H, W] with C = 1 (grey) or 3 (RGB), such as [3, 256, 256].")
    is_mask = {pair.image: False for pair in tree.pairs} | {pair.mask: True for pair in tree.pairs}
    read: dict[str, Sized] = {}
    found: dict[str, np.ndarray] = {}
    is_rgb: dict[str, bool] = {}
    damaged: list[str] = []
    for name, content in contents(tree.path, set(is_mask)):
        try:
            if is_mask[name]:
                mask = decode_mask(content, source=name)
                found[name], is_rgb[name] = np.unique(mask.values), mask.is_rgb
                read[name] = resized_mask(mask, image_shape)
            else:
                read[name] = decode_image(content, image_shape, source=name)
        except DataError as error:  # the others are read too, so that one error reports all of them
            damaged.append(error.message.removesuffix("."))
    if damaged:
        more = f"; and {len(damaged) - 5:,} more" if len(damaged) > 5 else ""
        message = f"{tree.path}: {len(damaged):,} of {len(is_mask):,} files: {'; '.join(damaged[:5])}{more}."
        raise DataError(message, hint="Replace or remove these files.")
    coding = code(found, is_rgb)
    splits = {split: stacked(pairs, read, coding) for split, pairs in tree.splits.items()}
    return Decoded(
        splits,
        fingerprints={split: fingerprint_of(*arrays.values()) for split, arrays in splits.items()},
        facts={
            "classes": list(coding.classes),
            "values": list(coding.values),
            "is_rgb": coding.is_rgb,
            "notes": [*tree.notes, *told_of_sizes(tree, read, image_shape)],
        },
    )


def stacked(pairs: Sequence[Pair], read: Mapping[str, Sized], coding: Coding) -> dict[str, np.ndarray]:
    if not pairs:
        raise DataError("a split is empty.", hint="dlcli doctor  shows which data are found")
    return {
        "images": np.stack([read[pair.image].pixels for pair in pairs]),
        "masks": np.stack([coding.encode(read[pair.mask].pixels) for pair in pairs]),
    }


def to_data(found: Decoded, mean: Sequence[float], std: Sequence[float]) -> Data:
    splits = {
        split: as_records(
            torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["masks"]), mean, std, found.fingerprints[split]
        )
        for split, arrays in found.splits.items()
    }
    return Data(
        tuple(found.facts["classes"]),
        splits["train"],
        splits["test"],
        splits.get("val"),
        fitted={name: found.facts[name] for name in ("values", "is_rgb")},
        notes=tuple(found.facts["notes"]),
    )


def told_of_sizes(tree: MaskTree, read: Mapping[str, Sized], image_shape: Sequence[int]) -> list[str]:
    """Sentences that say what was resized, and what else decoding changed."""
    images = [pair.image for pair in tree.pairs if read[pair.image].size != tuple(image_shape[1:])]
    masks = [pair.mask for pair in tree.pairs if read[pair.mask].size != read[pair.image].size]
    height, width = image_shape[1:]
    sentences = []
    if images:
        sentences.append(f"{len(images):,} of {len(tree.pairs):,} images were resized to {height} x {width} pixels")
    changes = Counter(change for pair in tree.pairs for change in read[pair.image].changes)
    sentences += told_of_changes(changes, len(tree.pairs), image_shape)
    if masks:
        sizes = f"{len(masks):,} masks had another size than their images and were resized ({shortened(masks)})"
        sentences.append(sizes)
    return sentences


def resized_mask(mask: Mask, image_shape: Sequence[int]) -> Sized:
    """(H, W) int32, resized by nearest pixels, which keeps the values."""
    from PIL import Image

    size = mask.values.shape
    picture = Image.fromarray(mask.values)
    if size != tuple(image_shape[1:]):
        picture = picture.resize((image_shape[2], image_shape[1]), Image.Resampling.NEAREST)
    return Sized(np.asarray(picture), (size[0], size[1]))


def decode_image(content: bytes, image_shape: Sequence[int], *, source: str) -> Sized:
    """(C, H, W) uint8: the whole picture, since cutting it would cut the mask; turned as its EXIF says."""
    from PIL import Image, ImageOps

    channels, height, width = image_shape
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as odd metadata: only the pixels count
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
                picture = to_mode(ImageOps.exif_transpose(opened), "L" if channels == 1 else "RGB")
                changes = tuple(changes_of(opened, picture, picture.size))
            size = (picture.height, picture.width)
            if size != (height, width):
                picture = picture.resize((width, height), Image.Resampling.BILINEAR)
            pixels = np.asarray(picture, dtype=np.uint8).reshape(height, width, channels).transpose(2, 0, 1)
    except Exception as error:  # Pillow's decoders raise a dozen kinds
        message = f"{printable(source)} cannot be read: {first_words(error)}."
        raise DataError(message.lstrip(), hint="Replace or remove this file.") from error
    return Sized(pixels, size, changes)
