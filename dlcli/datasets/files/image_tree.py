"""Lists the images of a folder or a .tar archive laid out by class, without torch and without decoding any.

    <class>/<image>                      a test part is split off, the same for every seed
    {train,test,val}/<class>/<image>     used as they are; without a test folder a test part is split off train

A folder around all of this is skipped. Hidden files, files that are not images, and folders beside train/test/val are
ignored.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dlcli.datasets.storage.roots import data_roots, find_under, missing
from dlcli.errors import DataError, printable

# Pillow reads more, but some of it is dangerous (EPS and PS start Ghostscript) or a mere stub (HDF5, GRIB).
# fmt: off
EXTENSIONS = frozenset((
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pcx",
    ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".sgi", ".tga", ".tif", ".tiff", ".webp", ".xbm",
))
# fmt: on
SPLITS = {"train": "train", "training": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


@dataclass(frozen=True, order=True)
class Entry:
    name: str  # path within the folder or archive
    label: int
    size: int  # bytes


@dataclass(frozen=True)
class ImageTree:
    """classes: sorted names; splits: those of train, test, val that exist, each sorted by name."""

    path: Path
    classes: tuple[str, ...]
    splits: dict[str, tuple[Entry, ...]]
    key: str  # sha256 (hex) of the content: of an archive its bytes, of a folder every file's name, size and times

    @property
    def is_archive(self) -> bool:
        return is_archive(self.path)

    def __len__(self) -> int:
        return sum(len(entries) for entries in self.splits.values())


def peek_image_folder(root: str | None, *, path: str | None = None) -> dict[str, int]:
    """num_classes, the number of classes. Raises DataError like the reader itself.

    An archive must be decompressed for its list of names: 0.1 s for 9 MB.
    """
    return {"num_classes": len(list_images(locate(root, path)).classes)}


def locate(root: str | None, path: str | None) -> Path:
    """`path` under the first data root that has it (or `root`, if it is this file itself); `root` without a path."""
    if path is None:
        if root is None:
            raise DataError(
                "dataset.root is not given: dlcli does not know which folder of images to read.",
                hint="dataset.root=PATH, a folder or .tar.gz of <class>/<image> or {train,test}/<class>/<image>.",
            )
        return data_roots(root)[0]
    roots = data_roots(root)
    name = PurePosixPath(path).name
    if root is not None and roots[0].name == name:
        return roots[0]
    found = find_under(roots, (path, name))
    if found is None:
        raise missing(
            "The image archive", path, roots, name="EXPERIMENT", reason="dlcli has no address to fetch it from"
        )
    return found


def list_images(path: Path) -> ImageTree:
    """Raises DataError when there are no images, fewer than two classes, an empty class, or no training images."""
    files, folders, key = list_archive(path) if is_archive(path) else list_folder(path)
    images = {name: size for name, size in files.items() if is_image(name)}
    if not images:
        raise DataError(
            f"{path} holds no images ({len(files)} other files).",
            hint="Expected <class>/<image> or {train,test}/<class>/<image>.",
        )
    depth = wrapper_depth(images)
    by_split = arrange(images, depth)
    check_empty(path, by_split, [PurePosixPath(folder).parts[depth:] for folder in sorted(folders)])
    check_classes(path, by_split)
    classes = tuple(sorted(by_split["train"]))
    labels = {cls: label for label, cls in enumerate(classes)}
    splits = {
        split: tuple(sorted(Entry(name, labels[cls], images[name]) for cls, names in members.items() for name in names))
        for split, members in by_split.items()
    }
    return ImageTree(path, classes, splits, key)


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVES) and path.is_file()


def list_folder(path: Path) -> tuple[dict[str, int], set[str], str]:
    """(size by file name, folder names, key). Hidden files and folders are skipped.

    The key is of names, sizes and times (changed contents change the ctime), as git's index does it: reading all
    bytes would cost as much as the decoding that the cache is there to save.
    """
    if not path.is_dir():
        raise DataError(
            f"{path} is neither a folder nor an archive ({', '.join(ARCHIVES)}).",
            hint="dataset.root=PATH of one of these.",
        )
    files: dict[str, int] = {}
    folders: set[str] = set()
    digest = hashlib.sha256(str(path.resolve()).encode())
    for parent, subfolders, names in os.walk(path):
        subfolders[:] = sorted(name for name in subfolders if not is_hidden(name))
        relative = PurePosixPath(Path(parent).relative_to(path).as_posix())
        folders.update(str(relative / name) for name in subfolders)
        for name in sorted(names):
            if is_hidden(name):
                continue
            try:
                stat = os.stat(os.path.join(parent, name))
            except OSError as error:
                raise DataError(f"{os.path.join(parent, name)} cannot be read: {error.strerror}.") from error
            files[str(relative / name)] = stat.st_size
            digest.update(repr((str(relative / name), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)).encode())
    return files, folders, digest.hexdigest()


def list_archive(path: Path) -> tuple[dict[str, int], set[str], str]:
    """(size by file name, folder names, sha256 of the archive's bytes). Links and hidden files are skipped."""
    files: dict[str, int] = {}
    folders: set[str] = set()
    try:
        key = archive_key(path)
        with tarfile.open(path) as archive:
            for member in archive:
                name = str(PurePosixPath(member.name))
                if any(is_hidden(part) for part in PurePosixPath(name).parts):
                    continue
                if member.isdir():
                    folders.add(name)
                elif member.isfile():
                    files[name] = member.size
                    folders.update(str(parent) for parent in PurePosixPath(name).parents)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise damaged_archive(path, error) from error
    return files, folders, key


def archive_key(path: Path) -> str:
    """sha256 (hex) of its bytes."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise damaged_archive(path, error) from error


def damaged_archive(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} cannot be read: {printable(error)}.", hint="Replace it with an intact copy of the archive."
    )


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in EXTENSIONS


def wrapper_depth(names: Iterable[str]) -> int:
    """The number of folders around the classes or splits: every image is in them, and they are not splits."""
    paths = [PurePosixPath(name).parts for name in names]
    depth = 0
    while min(len(parts) for parts in paths) - depth >= 3:
        heads = {parts[depth] for parts in paths}
        if len(heads) > 1 or heads & SPLITS.keys():
            break
        depth += 1
    return depth


def arrange(names: Iterable[str], depth: int) -> dict[str, dict[str, list[str]]]:
    """split -> class -> image names. Without a train folder every image belongs to train."""
    paths = {name: PurePosixPath(name).parts[depth:] for name in names}
    has_splits = any(len(parts) >= 3 and SPLITS.get(parts[0]) == "train" for parts in paths.values())
    by_split: dict[str, dict[str, list[str]]] = {"train": {}}
    for name, parts in paths.items():
        split, inner = (SPLITS.get(parts[0]), parts[1:]) if has_splits else ("train", parts)
        if split is not None and len(inner) >= 2:
            by_split.setdefault(split, {}).setdefault(inner[0], []).append(name)
    return by_split


def check_empty(path: Path, by_split: dict[str, dict[str, list[str]]], folders: list[tuple[str, ...]]) -> None:
    """Raises DataError for a class folder without images: it is usually a failed copy."""
    has_splits = not by_split["train"].keys() & {parts[0] for parts in folders if len(parts) == 1}
    for parts in folders:
        split, cls = (SPLITS.get(parts[0]), parts[1:]) if has_splits and parts else ("train", parts)
        if split is not None and len(cls) == 1 and cls[0] not in by_split.get(split, {}):
            raise DataError(
                f"The class folder {'/'.join(parts)} in {path} holds no images.",
                hint="Remove it, or put the class's images there.",
            )


def check_classes(path: Path, by_split: dict[str, dict[str, list[str]]]) -> None:
    classes = sorted(by_split["train"])
    if len(classes) < 2:
        found = f"only the class {printable(classes[0])}" if classes else "no class folders"
        raise DataError(
            f"{path} has {found}: at least two classes are needed.",
            hint="One folder per class: <class>/<image> or {train,test}/<class>/<image>.",
        )
    for split, members in by_split.items():
        if strange := sorted(members.keys() - by_split["train"].keys()):
            raise DataError(
                f"{path}: the class {printable(strange[0])} is in {split} but not in train.",
                hint=f"The training classes are {printable(', '.join(classes))}.",
            )
