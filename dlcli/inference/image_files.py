"""Image files that a user names, and free names for the pictures written beside them."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlcli.errors import ConfigError, DataError, printable

if TYPE_CHECKING:
    from PIL.Image import Image


def free_path(folder: Path, stem: str) -> Path:
    path, number = folder / f"{stem}.png", 1
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}.png"
    return path


SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
LARGEST_FILE = 64 * 2**20  # bytes


def find_images(names: Sequence[str]) -> list[str]:
    """Files in the order given, a folder's by their names. Raises DataError for a folder without images."""
    if names.count("-") > 1:
        raise ConfigError("- is given twice; stdin holds one image", hint="Name files: dlcli predict a.png b.png")
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


def decoded(
    names: Sequence[str], indices: range, shape: tuple[int, ...], found: list[dict[str, Any]]
) -> Iterator[tuple[int, Any]]:
    """(place, uint8 image) of those that can be read; the others get an error among `found`."""
    import torch

    from dlcli.datasets.image_folder import decode_image

    for i in indices:
        try:
            data = read_file(names[i])
            image = decode_image(io.BytesIO(data), shape, source="")  # type: ignore[arg-type]
            yield i, torch.from_numpy(image.copy())
        except (DataError, OSError) as error:
            found[i]["error"] = error.message if isinstance(error, DataError) else f"cannot be read: {error.strerror}"


def read_file(name: str) -> bytes:
    """The content of a file, or of stdin for "-". Raises DataError for what cannot be an image."""
    if name == "-":
        data = sys.stdin.buffer.read(LARGEST_FILE + 1)
    else:
        path = Path(name)
        if path.exists() and not path.is_file():
            raise DataError("is not an ordinary file")
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    if not data or len(data) > LARGEST_FILE:
        raise DataError("is empty" if not data else f"has more than {LARGEST_FILE // 2**20} MB")
    return data


def make_folder(save: str) -> Path:
    folder = Path(save).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--save {printable(save)}: {error.strerror}", hint="Name a folder.") from error
    return folder


def free_stem(stem: str, taken: set[str]) -> str:
    """The stem, numbered where another input has it."""
    found, number = stem, 1
    while found in taken:
        number += 1
        found = f"{stem}-{number}"
    taken.add(found)
    return found


def open_picture(content: bytes) -> Image:
    """In RGB or grey, turned as its EXIF says."""
    import warnings

    from PIL import Image, ImageOps

    from dlcli.datasets.files.mask_files import first_words
    from dlcli.datasets.image_folder import FORMATS, to_mode

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
                return to_mode(ImageOps.exif_transpose(opened), "RGB")
    except Exception as error:  # Pillow's decoders raise a dozen kinds
        raise DataError(f"cannot be read: {first_words(error)}") from error
