"""Images a user names, for prediction: found, decoded as in training, classified; one bad file spoils no other."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlcli.errors import ConfigError, DataError, printable

if TYPE_CHECKING:
    from dlcli.trained import Trained

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
LARGEST_FILE = 64 * 2**20  # bytes
AT_ONCE = 256


def find_images(names: Sequence[str]) -> list[str]:
    """Files in the order given, a folder's by their names. Raises DataError for a folder without images."""
    if names.count("-") > 1:
        raise ConfigError("- stands twice; stdin holds one image", hint="Name files: dlcli predict a.png b.png")
    found: list[str] = []
    for name in names:
        path = Path(name)
        if name != "-" and path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            if not inside:
                raise DataError(
                    f"there is no image in {printable(name)}",
                    hint=f"Its files should end in one of {', '.join(SUFFIXES)}.",
                )
            found += map(str, inside)
        else:
            found.append(name)
    return found


def classify(trained: Trained, names: Sequence[str], *, top: int) -> list[dict[str, Any]]:
    """One answer per image: {image, classes: [{class, probability}]}, most probable first, or {image, error}."""
    import torch

    from dlcli.trained import predict

    answers: list[dict[str, Any]] = [{"image": "stdin" if name == "-" else name} for name in names]
    shape = tuple(trained.tree["dataset"]["image_shape"])
    for start in range(0, len(names), AT_ONCE):
        part = [
            (i, image) for i, image in _decoded(names, range(start, min(start + AT_ONCE, len(names))), shape, answers)
        ]
        if not part:
            continue
        probabilities_BK = predict(trained, torch.stack([image for _, image in part]))
        for (i, _), row_K in zip(part, probabilities_BK, strict=True):
            values, classes = row_K.topk(min(top, len(row_K)))
            named = zip(classes.tolist(), values.tolist(), strict=True)
            answers[i]["classes"] = [{"class": trained.manifest.classes[c], "probability": v} for c, v in named]
    return answers


def _decoded(
    names: Sequence[str], indices: range, shape: tuple[int, ...], answers: list[dict[str, Any]]
) -> Iterator[tuple[int, Any]]:
    import torch

    from dlcli.datasets.image_folder import decode_image

    for i in indices:
        try:
            data = _read(names[i])
            image = decode_image(io.BytesIO(data), shape, source="")  # type: ignore[arg-type]
            yield i, torch.from_numpy(image.copy())
        except (DataError, OSError) as error:
            answers[i]["error"] = error.message if isinstance(error, DataError) else f"cannot be read: {error.strerror}"


def _read(name: str) -> bytes:
    if name == "-":
        data = sys.stdin.buffer.read(LARGEST_FILE + 1)
    else:
        path = Path(name)
        if path.exists() and not path.is_file():
            raise DataError("is no ordinary file")
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    if not data or len(data) > LARGEST_FILE:
        raise DataError("is empty" if not data else f"has more than {LARGEST_FILE // 2**20} MB")
    return data
