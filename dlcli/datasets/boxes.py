"""Images with boxes around the objects in them: blood cells, or the user's own Pascal VOC folder or COCO file.

Images of any size are scaled to fit into one shape, their top left corner at its corner (letterbox); boxes with them.

Letters: N images, B of them in a batch, M boxes of the one with most, C channels, H rows, W columns.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dlcli.datasets.batches.examples import Data, private_generator
from dlcli.datasets.batches.pixels import pixels_on
from dlcli.datasets.batches.records import Column, Dense, Ragged, Records, fingerprint_of, ragged
from dlcli.datasets.files import box_files
from dlcli.datasets.files.box_files import Annotated, Found, tidy
from dlcli.datasets.image_folder import FORMATS, to_mode
from dlcli.datasets.storage.cache import Decoded, cached, content_key, times_key
from dlcli.errors import ConfigError, DataError, printable

VERSION = 1  # of these readers: raise it when their output changes, and the cache is written again
TEST_SHARE = 0.2  # for data without a test split of their own
AROUND = 114  # grey of the area that a narrower image leaves free, as in YOLO
SMALLEST = 1.0  # side of a box in pixels of the scaled image


class BoxBatch(NamedTuple):
    images: Tensor  # (B, C, H, W) float32 normalised
    boxes: Tensor  # (B, M, 4) float32 xyxy in pixels, zero after each image's boxes
    labels: Tensor  # (B, M) int64, -1 where there is no box
    index: Tensor  # type: ignore[assignment]  # hides tuple.index; (B,) int64, the image's row

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The arguments that a model is called with."""
        return (self.images,)


@dataclass(frozen=True)
class Collate:
    """mean, std: per channel, of pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, taken: Mapping[str, Any], index_B: Tensor, augment: Any, keys_B: Tensor | None) -> BoxBatch:
        images, boxes, labels = taken["images"], taken["boxes"].values, taken["labels"].values
        pixels = pixels_on(self.mean, self.std, images.shape[1], images.device)
        if augment is None:
            return BoxBatch(pixels.from_bytes(images), boxes, labels, index_B)
        images, boxes, labels = augment.with_boxes(pixels.unit(images), boxes, labels, keys_B)
        return BoxBatch(pixels.normalise(images), boxes, labels, index_B)


def records(
    images: np.ndarray,
    boxes: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    *,
    mean: Sequence[float],
    std: Sequence[float],
) -> Records:
    """images: (N, C, H, W) uint8; boxes, labels: for each image (m, 4) xyxy in its pixels, and (m,)."""
    arrays = as_arrays(images, boxes, labels)
    return as_records(arrays, fingerprint_of(*arrays.values()), mean, std)


def as_arrays(images: np.ndarray, boxes: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays that `as_records` takes: all images' boxes (T, 4) and labels (T,), one image after the other; starts
    (N + 1,) says where each begins.

    In the order of a split's fingerprint.
    """
    of_boxes, of_labels = ragged(boxes, np.float32, shape=(4,)), ragged(labels, np.int64)
    values = {"boxes": of_boxes.values, "labels": of_labels.values, "starts": of_labels.starts}
    return {"images": images} | {name: tensor.numpy() for name, tensor in values.items()}


def as_records(
    arrays: Mapping[str, np.ndarray], fingerprint: str, mean: Sequence[float], std: Sequence[float]
) -> Records:
    images, boxes, labels, starts = (torch.from_numpy(arrays[name]) for name in ("images", "boxes", "labels", "starts"))
    columns: dict[str, Column] = {
        "images": Dense(images),
        "boxes": Ragged(boxes, starts),
        "labels": Ragged(labels, starts, fill=-1),
    }
    return Records(columns, Collate(tuple(mean), tuple(std)), fingerprint)


def made_up(settings: Mapping[str, Any], num_examples: int) -> Records:
    """Noise, with two boxes of random classes in each image."""
    shape, num_classes = settings["image_shape"], settings.get("num_classes") or 3
    images = torch.randint(0, 256, (num_examples, *shape), dtype=torch.uint8, device="cpu")
    corners = torch.rand(num_examples, 2, 2, 2, device="cpu") * 0.5  # two boxes, top left corner and size
    size = torch.tensor([shape[2], shape[1]], device="cpu")
    boxes = torch.cat([corners[:, :, 0], corners[:, :, 0] + 0.2 + 0.6 * corners[:, :, 1]], -1) * size.repeat(2)
    labels = torch.randint(0, num_classes, (num_examples, 2), device="cpu")
    pixels = {name: settings[name] for name in ("mean", "std")}
    return records(images.numpy(), list(boxes.numpy()), list(labels.numpy()), **pixels)


# ------------------------------------------------------------------------------------------------------------ reading


def read_blood_cells(
    root: str | None = None, *, image_shape: Sequence[int], mean: Sequence[float], std: Sequence[float]
) -> Data:
    """BCCD: 205 images to train on; the 87 of its list `val` are the test split, and validation is split off train."""
    return cached_voc("blood_cells", box_files.locate_blood_cells(root), None, image_shape, mean, std)


def read_voc(
    root: str | None = None,
    *,
    path: str | None,
    image_shape: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    classes: Sequence[str] | None = None,
    num_classes: int | None = None,
) -> Data:
    """The user's own folder or .tar in the layout of Pascal VOC. num_classes: as counted before."""
    return cached_voc("voc", box_files.locate(root, path), classes, image_shape, mean, std)


def cached_voc(
    name: str,
    place: Path,
    classes: Sequence[str] | None,
    image_shape: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
) -> Data:
    shape, wanted = checked(image_shape), None if classes is None else list(classes)
    key = content_key((), name, VERSION, shape, wanted, box_files.place_key(place))
    return to_data(cached(name, key, lambda: decode(box_files.find_voc(place, classes), shape)), mean, std)


def read_coco(
    root: str | None = None,
    *,
    path: str | None,
    images: str | None = None,
    val_path: str | None = None,
    test_path: str | None = None,
    image_shape: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    classes: Sequence[str] | None = None,
    num_classes: int | None = None,
) -> Data:
    """The user's own COCO file. images: their folder; None: the folder of the file."""
    file = box_files.locate(root, path)
    folder = file.parent if images is None else box_files.locate(root, images, setting="dataset.images")
    others = {
        split: None if name is None else box_files.locate(root, name, setting=f"dataset.{split}_path")
        for split, name in (("val", val_path), ("test", test_path))
    }
    shape, found = checked(image_shape), box_files.find_coco(file, folder, classes, **others)
    tables = [table for table in (file, *others.values()) if table is not None]
    files = times_key(folder / annotated.image for part in found.splits.values() for annotated in part)
    key = content_key(tables, "coco", VERSION, shape, found.classes, [*found.splits], files)
    return to_data(cached("coco", key, lambda: decode(found, shape)), mean, std)


def checked(image_shape: Sequence[int]) -> tuple[int, int, int]:
    channels, height, width = image_shape
    if channels not in (1, 3):
        message = f"dataset.image_shape={list(image_shape)} is not a shape of images"
        raise ConfigError(message, hint="[C, H, W] with C = 1 (grey) or 3 (RGB), such as [3, 240, 320].")
    return channels, height, width


def to_data(decoded: Decoded, mean: Sequence[float], std: Sequence[float]) -> Data:
    splits = {
        split: as_records(arrays, decoded.fingerprints[split], mean, std) for split, arrays in decoded.splits.items()
    }
    classes, notes = (tuple(decoded.facts[name]) for name in ("classes", "notes"))
    return Data(classes, splits["train"], splits["test"], splits.get("val"), notes=notes)


def decode(found: Found, shape: tuple[int, int, int]) -> Decoded:
    """The list `test` is the test split; without it the list `val` is; without both, a fixed fifth of the images."""
    parts = with_test(dict(found.splits), found.place)
    damaged: list[str] = []
    read = {split: read_split(part, found, shape, damaged) for split, part in parts.items()}
    if damaged:
        raise box_files.all_damaged(damaged, "images")
    splits = {split: as_arrays(*arrays) for split, arrays in read.items()}
    fingerprints = {split: fingerprint_of(*arrays.values()) for split, arrays in splits.items()}
    return Decoded(splits, fingerprints, {"classes": list(found.classes), "notes": list(found.defects.notes())})


def with_test(splits: dict[str, Sequence[Annotated]], place: Path) -> dict[str, Sequence[Annotated]]:
    if "test" in splits:
        return splits
    if "val" in splits:
        return {"train": splits["train"], "test": splits["val"]}
    everything = splits["train"]
    if len(everything) < 3:
        raise DataError(f"{place} has {len(everything)} images: too few to train, validate and test", hint="Add some.")
    order = torch.randperm(len(everything), generator=private_generator("test split", "boxes")).tolist()
    num_test = max(1, round(TEST_SHARE * len(everything)))
    parts = {"train": sorted(order[num_test:]), "test": sorted(order[:num_test])}
    return {split: [everything[i] for i in rows] for split, rows in parts.items()}


def read_split(
    part: Sequence[Annotated], found: Found, shape: tuple[int, int, int], damaged: list[str]
) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Images, boxes and labels. Unreadable files are added to `damaged`, so that one error reports all of them."""
    images = np.empty((len(part), *shape), dtype=np.uint8)
    label_of = {name: label for label, name in enumerate(found.classes)}
    boxes, labels = [], []
    for row, annotated in enumerate(part):
        try:
            images[row], (width, height), scale = letterbox(
                found.read(annotated.image), shape, said=annotated.size, source=annotated.image
            )
        except DataError as error:
            damaged.append(error.message.removesuffix("."))
            continue
        # Boxes are in the annotation's pixels: if the picture was scaled since then, they are scaled too.
        said = annotated.size or (width, height)
        factor = np.array([width / said[0], height / said[1]] * 2) * scale
        if said != (width, height):
            found.defects.add("images of another size than annotated, boxes scaled", annotated.image)
        kept = [
            (np.array(inside) * factor, label_of[name])
            for box, name in zip(annotated.boxes, annotated.classes, strict=True)
            if is_known(name, label_of, found, annotated)
            and (inside := tidy(box, *said, found.defects, annotated.image)) is not None
        ]
        kept = [(box, label) for box, label in kept if is_large(box, found, annotated)]
        boxes.append(np.array([box for box, _ in kept], dtype=np.float32).reshape(-1, 4))
        labels.append(np.array([label for _, label in kept], dtype=np.int64))
        if not kept:
            found.defects.add("images without boxes kept", annotated.image)
    return images, boxes, labels


def is_known(name: str, label_of: Mapping[str, int], found: Found, annotated: Annotated) -> bool:
    if name not in label_of:
        found.defects.add("boxes of classes that are not learned left out", annotated.image)
    return name in label_of


def is_large(box: np.ndarray, found: Found, annotated: Annotated) -> bool:
    if is_small := bool((box[2:] - box[:2]).min() < SMALLEST):
        found.defects.add("boxes smaller than a pixel, once scaled, left out", annotated.image)
    return not is_small


def letterbox(
    data: bytes, shape: tuple[int, int, int], *, said: tuple[int, int] | None = None, source: str
) -> tuple[np.ndarray, tuple[int, int], np.ndarray]:
    """((C, H, W) uint8, (width, height) of the file's image, scale (x, y, x, y): pixels of the result per its pixel).

    The image is turned as its EXIF says, unless it already has the size `said` without that. source begins an error.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    channels, height, width = shape
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as odd metadata: only the pixels count
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
                turned = opened if opened.size == said else ImageOps.exif_transpose(opened)
                image = to_mode(turned, "L" if channels == 1 else "RGB")
    except Exception as error:  # Pillow's decoders raise a dozen kinds: OSError, SyntaxError, ValueError, struct.error
        is_unknown = isinstance(error, UnidentifiedImageError)  # whose text is the address of a Python object
        what = "not an image of a known format" if is_unknown else f"not an image that can be read: {printable(error)}"
        message = f"{printable(source)} is {what}"
        raise DataError(message.lstrip(), hint="Replace or remove this file.") from error
    scale = min(width / image.width, height / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    scaled = np.asarray(image.resize(size, Image.Resampling.BILINEAR), dtype=np.uint8)
    result = np.full((height, width, channels), AROUND, dtype=np.uint8)
    result[: size[1], : size[0]] = scaled.reshape(size[1], size[0], channels)
    per_pixel = np.array([size[0] / image.width, size[1] / image.height] * 2)
    return np.ascontiguousarray(result.transpose(2, 0, 1)), image.size, per_pixel
