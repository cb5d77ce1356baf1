"""Finds images and their masks in a folder or archive, and reads masks in any of the usual forms, without torch.

    images/<name>.jpg             masks/<name>.png        a test part is split off, the same for every seed
    {train,val,test}/images/...   .../masks/...           used as they are; images/train/... too

A mask holds class ids (8 or 16 bits, a palette, or 0 and 255), or one RGB colour per class, or instance ids.
"""

from __future__ import annotations

import io
import tarfile
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from dlcli.datasets.files.image_tree import SPLITS, damaged_archive, is_archive, is_image, list_archive, list_folder
from dlcli.datasets.storage.cache import Decoded, cached, content_key
from dlcli.datasets.storage.roots import data_roots, exists, find_under
from dlcli.errors import DataError, printable

VERSION = 2  # of the readers of masks: raise it when their output changes, and the cache is written again
IGNORED = 255  # in an encoded mask: no class
MOST_CLASSES = 255
NAMED = 3  # files in a sentence
FEWEST_IMAGES, FEWEST_IDS = 10, 5  # with so many values, they may be ids of objects
LAYOUT = "Give a folder with images/NAME.png and masks/NAME.png, or {train,val,test}/images and .../masks."
FORMATS = ("PNG", "BMP", "GIF", "TIFF", "PPM", "JPEG", "WEBP")


@dataclass(frozen=True, order=True)
class Pair:
    image: str  # paths within the folder or archive
    mask: str


@dataclass(frozen=True)
class MaskTree:
    path: Path
    splits: dict[str, tuple[Pair, ...]]  # those of train, test, val that exist
    notes: tuple[str, ...]
    key: str  # sha256 (hex) of the content: of an archive its bytes, of a folder every file's name, size and times

    @property
    def pairs(self) -> list[Pair]:
        return [pair for pairs in self.splits.values() for pair in pairs]


@dataclass(frozen=True)
class Mask:
    """values: (H, W) int32; of an RGB mask 0xRRGGBB."""

    values: np.ndarray
    is_rgb: bool


@dataclass(frozen=True)
class Coding:
    """values: each class's value in a file, ascending. ignored: of no class. merges: all above 0 are class 1."""

    classes: tuple[str, ...]
    values: tuple[int, ...]
    is_rgb: bool = False
    is_grey_rgb: bool = False
    ignored: int | None = None
    merges: bool = False

    def encode(self, values: np.ndarray) -> np.ndarray:
        """The values of a mask as class ids and IGNORED, uint8."""
        if self.is_grey_rgb:
            values = values & 255
        if self.merges:
            encoded = (values > 0).astype(np.uint8)
        else:
            place = np.searchsorted(self.values, values).clip(max=len(self.values) - 1)
            encoded = place.astype(np.uint8)
        if self.ignored is not None:
            encoded[values == self.ignored] = IGNORED
        return encoded


def peek_masks(
    path: str | None, root: str | None = None, *, instances: bool = False, ignore_index: int | None = IGNORED
) -> dict[str, int]:
    """num_classes, from the values of all masks. Raises DataError like the reader itself."""
    if instances:
        return {"num_classes": 2}
    tree = list_masks(locate(path, root))
    key = content_key((), "mask_classes", VERSION, ignore_index, tree.key)
    return {"num_classes": cached("mask_classes", key, lambda: count_classes(tree, ignore_index)).facts["num_classes"]}


def count_classes(tree: MaskTree, ignored: int | None) -> Decoded:
    found, is_rgb = {}, {}
    for name, content in contents(tree.path, {pair.mask for pair in tree.pairs}):
        mask = decode_mask(content, source=name)
        found[name], is_rgb[name] = np.unique(mask.values), mask.is_rgb
    classes = coding_of(found, is_rgb, num_classes=None, ignored=ignored).classes
    return Decoded(splits={}, fingerprints={}, facts={"num_classes": len(classes)})


# ---------------------------------------------------------------------------------------------------------------- files


def locate(path: str | None, root: str | None) -> Path:
    """`path` as it is, or under the first data root that has it."""
    if path is None:
        raise DataError("dataset.path is not given: dlcli does not know which images and masks to read.", hint=LAYOUT)
    given, roots = Path(path).expanduser(), data_roots(root)
    found = given if exists(given) else find_under(roots, [path])
    if found is None:
        looked = ", ".join(str(folder.absolute()) for folder in (Path(), *roots))
        raise DataError(f"dataset.path={printable(path)} was not found in {looked}.", hint=LAYOUT)
    return found


def list_masks(path: Path) -> MaskTree:
    """Raises DataError if there are no pairs, or a name occurs twice."""
    files, _, key = list_archive(path) if is_archive(path) else list_folder(path)
    images, masks = by_place(path, files, "images"), by_place(path, files, "masks")
    if not images or not masks:
        lacking = "images" if not images else "masks"
        raise DataError(f"{path} has no {lacking}: there is no picture in a folder of that name.", hint=LAYOUT)
    common = images.keys() & masks.keys()
    if not common:
        message = f"{path}: none of the {len(images):,} images has a mask of its name"
        raise DataError(
            f"{message} ({printable(min(images.values()))}, {printable(min(masks.values()))}).", hint=LAYOUT
        )
    notes = [told_of([images[place] for place in images.keys() - common], "image", "has no mask and is", path)]
    notes += [told_of([masks[place] for place in masks.keys() - common], "mask", "has no image and is", path)]
    splits: dict[str | None, list[Pair]] = {}
    for place in common:
        splits.setdefault(place[0], []).append(Pair(images[place], masks[place]))
    if None in splits and "train" in splits:
        notes.append(told_of([pair.image for pair in splits.pop(None)], "image", "is in no split and", path))
    if None in splits:
        splits = {"train": [pair for pairs in splits.values() for pair in pairs]}
    if "train" not in splits:
        raise DataError(f"{path} has no training images, only {', '.join(map(str, splits))}.", hint=LAYOUT)
    ordered = {str(split): tuple(sorted(pairs)) for split, pairs in splits.items()}
    return MaskTree(path, ordered, tuple(filter(None, notes)), key)


def by_place(path: Path, files: Iterable[str], kind: str) -> dict[tuple[str | None, str], str]:
    """(split or None, name without its ending) -> file, for the pictures in folders called `kind`."""
    found: dict[tuple[str | None, str], str] = {}
    for name in sorted(files):
        *folders, last = PurePosixPath(name).parts
        if kind not in folders or not is_image(name):
            continue
        split = next((SPLITS[folder] for folder in folders if folder in SPLITS), None)
        rest = [folder for folder in folders if folder != kind and folder not in SPLITS]
        stem = last[: last.rindex(".")]
        place = (split, "/".join([*rest, stem.removesuffix("_mask") if kind == "masks" else stem]))
        if place in found:
            message = f"{path}: {printable(found[place])} and {printable(name)} have the same name"
            raise DataError(message, hint="Each image has one mask: remove one of the two.")
        found[place] = name
    return found


def told_of(names: Iterable[str], what: str, clause: str, path: Path) -> str:
    """A sentence on files that are left out, "" if there are none. clause: in the singular."""
    names = sorted(names)
    if not names:
        return ""
    if len(names) > 1:
        what, clause = what + "s", clause.replace("has ", "have ").replace("is", "are")
    return f"{path}: {len(names):,} {what} {clause} left out ({shortened(names)})"


def shortened(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(printable(name) for name in names[:NAMED]) + more


def contents(path: Path, names: set[str]) -> Iterator[tuple[str, bytes]]:
    """(name, content) of these files; an archive is read in its own order, as it can only be read forwards."""
    if not is_archive(path):
        for name in sorted(names):
            try:
                yield name, (path / name).read_bytes()
            except OSError as error:
                raise DataError(f"{path / name} cannot be read: {error.strerror or error}.") from error
        return
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = str(PurePosixPath(member.name))
                if name in names and member.isfile() and (file := archive.extractfile(member)):
                    yield name, file.read()
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise damaged_archive(path, error) from error


# --------------------------------------------------------------------------------------------------------------- values


def decode_mask(content: bytes, *, source: str) -> Mask:
    """The mask in `data`. Raises DataError, which begins with `source`, if it is not a mask."""
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
                file_format, mode = opened.format, opened.mode
                turned = ImageOps.exif_transpose(opened)
                pixels = np.asarray(turned)
    except Exception as error:  # Pillow's decoders raise a dozen kinds
        message = f"{printable(source)} cannot be read as a mask: {first_words(error)}."
        raise DataError(message, hint="Replace or remove this file.") from error
    if file_format == "JPEG":
        message = f"{printable(source)} is a JPEG, which changes the values of a mask."
        raise DataError(message, hint="Save masks as PNG.")
    return Mask(*whole_values(pixels, mode, source))


def first_words(error: Exception) -> str:
    return "not a picture of a known format" if "cannot identify" in str(error) else printable(error)


def whole_values(pixels: np.ndarray, mode: str, source: str) -> tuple[np.ndarray, bool]:
    """(H, W) int32, and whether they are colours."""
    if mode in ("RGB", "RGBA"):
        red, green, blue = (pixels[..., i].astype(np.int32) for i in range(3))
        return red << 16 | green << 8 | blue, True
    if mode == "LA":
        pixels = pixels[..., 0]
    if pixels.ndim != 2 or (mode not in ("1", "L", "LA", "P", "I", "F") and not mode.startswith("I;16")):
        message = f"{printable(source)} is a picture of the mode {mode}, which is not a mask."
        raise DataError(message, hint="Save masks as PNG: class ids of 8 or 16 bits, a palette, or RGB colours.")
    values = pixels.astype(np.int32)
    if mode in ("I", "F") and (values.min(initial=0) < 0 or (values != pixels).any()):
        raise DataError(f"{printable(source)} holds values that are not whole numbers from 0 on.")
    return values, False


def coding_of(
    found: Mapping[str, np.ndarray], is_rgb: Mapping[str, bool], *, num_classes: int | None, ignored: int | None
) -> Coding:
    """The classes of the masks. found: file -> its distinct values, at least one file. num_classes: None to count them.

    Class ids below num_classes mean themselves; other values (colours, grey levels) are classes in ascending order.
    """
    kinds = {is_rgb[name]: name for name in sorted(found, reverse=True)}
    if len(kinds) > 1:
        message = f"{printable(kinds[True])} holds RGB colours and {printable(kinds[False])} does not"
        raise DataError(message, hint="Save all masks in the same form.")
    is_colour = True in kinds
    values = set(np.concatenate(list(found.values())).tolist())
    is_grey_rgb = is_colour and all(v == (v & 255) * 0x010101 for v in values)
    if is_grey_rgb:
        values, is_colour = {v & 255 for v in values}, False
    if 255 in values and values <= {0, 255} and num_classes in (None, 2):
        return Coding(("background", "foreground"), (0, 255), is_grey_rgb=is_grey_rgb)
    if is_colour:
        ignored = None
    values.discard(ignored)
    if num_classes and not is_colour and max(values, default=0) < num_classes:
        values = set(range(num_classes))
    check_values(values, found, num_classes, is_grey_rgb=is_grey_rgb)
    if num_classes is None and (why := looks_like_objects(found.values(), ignored)):
        message = f"the masks hold {len(values):,} values, {why}: these look like ids of objects, not like classes."
        hint = f"dataset.instances=true; or, if each is a class of its own, dataset.num_classes={len(values)}"
        raise DataError(message, hint=hint)
    ordered = tuple(sorted(values))
    names = tuple(f"#{v:06x}" if is_colour else str(v) for v in ordered)
    return Coding(names, ordered, is_rgb=is_colour, is_grey_rgb=is_grey_rgb, ignored=ignored)


def check_values(
    values: set[int], found: Mapping[str, np.ndarray], num_classes: int | None, *, is_grey_rgb: bool
) -> None:
    if num_classes is not None and len(values) != num_classes:
        outside = {n: [v & 255 if is_grey_rgb else v for v in vs.tolist()] for n, vs in found.items()}
        outside = {n: [v for v in vs if num_classes <= v and v in values] for n, vs in outside.items()}
        wrong = [f"{printable(n)} holds {vs[0]}" for n, vs in sorted(outside.items()) if vs]
        message = f"{len(wrong):,} of {len(found):,} masks hold values outside dataset.num_classes={num_classes}"
        raise DataError(f"{message}: {'; '.join(wrong[:NAMED])}.", hint=f"The masks hold {len(values)} values in all.")
    if len(values) > MOST_CLASSES:
        message = f"the masks hold {len(values):,} values; up to {MOST_CLASSES} can be classes."
        raise DataError(message, hint="For ids of objects: dataset.instances=true. Smoothed edges must be saved sharp.")
    if len(values) < 2:
        message = f"the masks hold one value only ({', '.join(map(str, values)) or 'none but the ignored one'})."
        raise DataError(message, hint="Give masks of at least two classes.")


def looks_like_objects(found: Iterable[np.ndarray], ignored: int | None) -> str:
    """Why the distinct values of each mask look like ids of objects; "" if they do not.

    Classes occur again in other images, and an image need not have the first ones; ids are new in each, or begin at 1.
    """
    masks = [{*values.tolist()} - {0, ignored} for values in found]
    masks = [values for values in masks if values]
    images = Counter(value for values in masks for value in values)
    if len(masks) < FEWEST_IMAGES or len(images) < FEWEST_IDS:
        return ""
    alone = sum(count == 1 for count in images.values())
    if alone >= max(FEWEST_IDS, 2 / 3 * len(images)) and alone >= len(masks) / 2:
        return f"{alone:,} of them in one image each"
    are_counted = all(values == set(range(1, len(values) + 1)) for values in masks)
    if are_counted and max(images) >= FEWEST_IDS and len({*map(len, masks)}) > 2:
        return f"in every image 1, 2, 3 and so on, up to {max(images):,}"
    return ""
