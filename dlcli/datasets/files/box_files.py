"""Reads annotated boxes: a Pascal VOC folder or archive (one XML per image), or a COCO file (one JSON for all images).

Neither torch nor an image decoder is needed. Boxes are (x0, y0, x1, y1) in pixels of the annotated image; `tidy` mends
or drops what is not a valid box.
"""

from __future__ import annotations

import json
import math
import tarfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

from dlcli.datasets.files.image_tree import archive_key, damaged_archive, is_archive, is_hidden, is_image
from dlcli.datasets.storage.cache import times_key
from dlcli.datasets.storage.roots import data_roots, find_under, missing
from dlcli.errors import DataError, first_of, printable

Box = tuple[float, float, float, float]
NAMED = 3  # examples in a note
BLOOD_CELLS = ("BCCD/bccd_trainval.tar.gz", "bccd_trainval.tar.gz", "BCCD", "BCCD_Dataset/BCCD")


@dataclass(frozen=True)
class Annotated:
    """An image and its boxes. size: (width, height) as the annotation says, None where it does not."""

    image: str
    boxes: tuple[Box, ...]
    classes: tuple[str, ...]
    size: tuple[int, int] | None = None


@dataclass
class Defects:
    """Defects of the annotations: kind -> places. The kinds are clauses: "boxes without area left out"."""

    met: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, kind: str, where: str) -> None:
        self.met[kind].append(where)

    def notes(self) -> tuple[str, ...]:
        return tuple(
            f"{len(places)} {kind if len(places) > 1 else one_of(kind)} ({_some(places)})"
            for kind, places in sorted(self.met.items())
        )


def one_of(kind: str) -> str:
    """The kind in the singular: "images that have boxes but are not listed": "image that has boxes but is not ..."."""
    first, _, rest = kind.partition(" ")
    for many, one in (("that are ", "that is "), ("that have ", "that has "), ("name ", "names ")):
        if rest.startswith(many):
            rest = one + rest.removeprefix(many)
            break
    rest = rest.replace("but are ", "but is ").replace("their ", "its ")
    return f"{first.removesuffix('es') if first == 'boxes' else first.removesuffix('s')} {rest}"


def _some(places: Sequence[str]) -> str:
    distinct = list(dict.fromkeys(PurePosixPath(place).name for place in places))
    more = ", ..." if len(distinct) > NAMED else ""
    return printable(", ".join(distinct[:NAMED])) + more


@dataclass(frozen=True)
class Found:
    """classes: in the order of their ids, or by name; splits: train, val, test as far as they exist; read: an image."""

    place: Path
    classes: tuple[str, ...]
    splits: Mapping[str, Sequence[Annotated]]
    read: Callable[[str], bytes]
    defects: Defects


def tidy(box: Box, width: float, height: float, defects: Defects, where: str) -> Box | None:
    """The box with its corners in order and inside the image; None when nothing is left of it."""
    if not all(map(math.isfinite, box)):
        defects.add("boxes with coordinates that are not numbers left out", where)
        return None
    (x0, x1), (y0, y1) = sorted((box[0], box[2])), sorted((box[1], box[3]))
    if x1 <= x0 or y1 <= y0:
        defects.add("boxes without area left out", where)
        return None
    if (x0, y0) != box[:2]:
        defects.add("boxes with swapped corners set right", where)
    inside = max(x0, 0.0), max(y0, 0.0), min(x1, width), min(y1, height)
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        defects.add("boxes outside their image left out", where)
        return None
    if inside != (x0, y0, x1, y1):
        defects.add("boxes cut off at the edge of their image", where)
    return inside


# --------------------------------------------------------------------------------------------------- where things are


def locate_blood_cells(root: str | None) -> Path:
    """The downloaded archive, or its folder; under a data root, or the root itself."""
    roots = data_roots(root)
    if root is not None and (is_archive(roots[0]) or (roots[0] / "Annotations").is_dir()):
        return roots[0]
    found = find_under(roots, BLOOD_CELLS)
    if found is None:
        reason = "dlcli has no address to fetch it from"
        raise missing("BCCD, the blood cells,", BLOOD_CELLS[0], roots, name="blood_cells", reason=reason)
    return found


def locate(root: str | None, path: str | None, *, setting: str = "dataset.path") -> Path:
    """The path that a user gave: as it is, or under a data root."""
    if path is None:
        raise DataError(f"{setting} is not given: dlcli does not know which data to read", hint=f"{setting}=PATH")
    given = Path(path).expanduser()
    found = given if given.exists() else find_under(data_roots(root), [path])
    if found is None:
        looked = ", ".join(str(r.absolute()) for r in data_roots(root))
        raise DataError(f"{setting}={printable(path)} does not exist, here or in {looked}", hint=f"{setting}=PATH")
    return found


def files_of(place: Path) -> dict[str, Callable[[], bytes]]:
    """Name -> a function that reads it, for every file. An archive is held in memory: it can only be read forwards."""
    if is_archive(place):
        return {name: lambda data=data: data for name, data in _members(place)}  # type: ignore[misc]
    if not place.is_dir():
        raise DataError(
            f"{place} is neither a folder nor a .tar", hint="Give a folder with Annotations and JPEGImages."
        )
    inside = sorted(p for p in place.rglob("*") if not any(map(is_hidden, p.relative_to(place).parts)))
    return {p.relative_to(place).as_posix(): lambda p=p: _bytes(p) for p in inside if p.is_file()}  # type: ignore[misc]


def place_key(place: Path) -> str:
    """sha256 (hex) of an archive's bytes, or of the names, sizes and times of a folder's files."""
    return archive_key(place) if is_archive(place) else times_key(place / name for name in files_of(place))


def _members(place: Path) -> Iterable[tuple[str, bytes]]:
    try:
        with tarfile.open(place) as archive:
            for member in archive:
                if member.isfile() and (file := archive.extractfile(member)):
                    yield str(PurePosixPath(member.name)), file.read()
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise damaged_archive(place, error) from error


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


def chosen(found: Iterable[str], wanted: Sequence[str] | None, place: Path) -> tuple[str, ...]:
    """The classes: all that occur, or those of dataset.classes."""
    found = list(dict.fromkeys(found))
    if not found:
        raise DataError(f"{place} holds no boxes", hint="Give annotations with boxes, as .xml or JSON.")
    if strange := [name for name in wanted or () if name not in found]:
        message = f"dataset.classes names {printable(', '.join(strange))}, but {place} has no box of that class"
        raise DataError(message, hint=f"It has {printable(', '.join(found))}.")
    return tuple(wanted or found)


# ----------------------------------------------------------------------------------------------------------- Pascal VOC


def find_voc(place: Path, classes: Sequence[str] | None = None) -> Found:
    """Annotations/*.xml, their images by the file's stem, ImageSets/Main/{train,val,test}.txt where there are some.

    If there is a list of training images, images that no list names are not used. The classes are all names that
    occur, or those of `classes`. Objects marked as difficult are left out.
    """
    files = files_of(place)
    defects = Defects()
    images = {PurePosixPath(name).stem: name for name in files if is_image(name)}
    by_stem: dict[str, Annotated] = {}
    damaged = []
    for name, read in files.items():
        if name.lower().endswith(".xml"):
            stem = PurePosixPath(name).stem
            try:
                annotated = _voc_image(name, stem, read(), images, defects)
            except DataError as error:  # the others are read too, so that one error reports all of them
                damaged.append(error.message.removesuffix("."))
                continue
            if annotated is not None:
                by_stem[stem] = annotated
    if damaged:
        raise all_damaged(damaged, "annotations")
    if not by_stem:
        message = f"{place} holds no annotated images: {len(images)} images, but no .xml of the same name"
        raise DataError(message, hint="Give a folder with Annotations/NAME.xml and JPEGImages/NAME.jpg.")
    lists = {PurePosixPath(n).stem: read for n, read in files.items() if "/Main/" in f"/{n}" and n.endswith(".txt")}
    splits = _voc_splits(lists, by_stem, defects)
    names = sorted({c for part in splits.values() for annotated in part for c in annotated.classes})
    return Found(place, chosen(names, classes, place), splits, lambda name: files[name](), defects)


def all_damaged(damaged: Sequence[str], what: str) -> DataError:
    """One error for all the files that cannot be read. damaged: a sentence on each, without its full stop."""
    count = f"{len(damaged):,} {what} cannot be read: " if len(damaged) > 1 else ""
    hint = "Mend these files or remove them." if count else "Mend it or remove it."
    return DataError(f"{count}{first_of(damaged)}", hint=hint)


def _voc_image(name: str, stem: str, data: bytes, images: Mapping[str, str], defects: Defects) -> Annotated | None:
    try:
        tree = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise DataError(f"{printable(name)} is not XML: {error}", hint="Mend it or remove it.") from error
    said = PurePosixPath(tree.findtext("filename") or "").stem
    image = images.get(stem) or images.get(said)
    if image is None:
        defects.add("annotations without an image left out", name)
        return None
    if said and said != stem:
        defects.add("annotations name another file: the file of their own name was taken", name)
    boxes, classes = [], []
    for node in tree.iter("object"):
        box, label = _voc_box(node), (node.findtext("name") or "").strip()
        if box is None or not label:
            defects.add("objects without a name or a box left out", name)
        elif (node.findtext("difficult") or "0").strip() == "1":
            defects.add("objects marked as difficult left out", name)
        else:
            boxes.append(box)
            classes.append(label)
    return Annotated(image, tuple(boxes), tuple(classes), _voc_size(tree))


def _voc_box(node: ElementTree.Element) -> Box | None:
    try:
        x0, y0, x1, y1 = (float(node.findtext(f"bndbox/{key}") or "") for key in ("xmin", "ymin", "xmax", "ymax"))
    except ValueError:
        return None
    return x0, y0, x1, y1


def _voc_size(tree: ElementTree.Element) -> tuple[int, int] | None:
    try:
        width, height = (int(float(tree.findtext(f"size/{key}") or 0)) for key in ("width", "height"))
    except ValueError:
        return None
    return (width, height) if width > 0 and height > 0 else None


def _voc_splits(
    lists: Mapping[str, Callable[[], bytes]], by_stem: Mapping[str, Annotated], defects: Defects
) -> dict[str, list[Annotated]]:
    if "train" not in lists and "trainval" not in lists:
        return {"train": list(by_stem.values())}
    splits: dict[str, list[Annotated]] = {}
    for split in ("train", "val", "test"):
        listed = lists.get(split) or (lists.get("trainval") if split == "train" else None)
        stems = (
            [line.split()[0] for line in listed().decode(errors="replace").splitlines() if line.strip()]
            if listed
            else []
        )
        for stem in stems:
            if stem not in by_stem:
                defects.add(f"images of the list {split} without annotation left out", stem)
        if part := [by_stem[stem] for stem in stems if stem in by_stem]:
            splits[split] = part
    if "train" not in splits:
        raise DataError("the list of training images names no annotated image", hint="ImageSets/Main/train.txt")
    return splits


# ----------------------------------------------------------------------------------------------------------------- COCO


def find_coco(
    path: Path, images: Path, classes: Sequence[str] | None = None, *, val: Path | None = None, test: Path | None = None
) -> Found:
    """instances.json, and the files to validate and to test on if there are any; images: the folder of all images.

    Classes in the order of their ids in the first file. Boxes of crowds (iscrowd) are left out.
    """
    defects = Defects()
    names: list[str] = []
    splits = {}
    for split, file in (("train", path), ("val", val), ("test", test)):
        if file is not None:
            splits[split], found = _coco_split(file, images, defects)
            names = names or found
    return Found(path, chosen(names, classes, path), splits, lambda name: _bytes(images / name), defects)


def _coco_split(path: Path, images: Path, defects: Defects) -> tuple[list[Annotated], list[str]]:
    content = _coco_content(path)
    names = {category["id"]: str(category["name"]) for category in content["categories"]}
    boxes: dict[Any, list[tuple[Box, str]]] = defaultdict(list)
    for one in content["annotations"]:
        where = f"annotation {one.get('id')}"
        if one.get("category_id") not in names:
            defects.add("boxes of unknown classes left out", where)
        elif one.get("iscrowd"):
            defects.add("boxes of crowds left out", where)
        elif (box := _coco_box(one.get("bbox"))) is None:
            defects.add("boxes with coordinates that are not numbers left out", where)
        else:
            boxes[one.get("image_id")].append((box, names[one["category_id"]]))
    split = []
    for one in content["images"]:
        found = boxes.pop(one["id"], [])
        name = _coco_image(images, str(one["file_name"]))
        if name is None:
            defects.add("images that are missing left out", str(one["file_name"]))
            continue
        size = (int(one.get("width") or 0), int(one.get("height") or 0))
        split.append(
            Annotated(name, tuple(b for b, _ in found), tuple(c for _, c in found), size if all(size) else None)
        )
    for image_id in boxes:
        defects.add("images that have boxes but are not listed", f"image {image_id}")
    if not split:
        message = f"{path}: none of its {len(content['images'])} images is in {images}"
        raise DataError(message, hint="dataset.images=FOLDER, the folder that holds the file_names")
    return split, [names[key] for key in sorted(names, key=lambda key: (str(type(key)), key))]


def _coco_content(path: Path) -> dict[str, Any]:
    if path.is_dir():
        message = f"dataset.path={printable(path)} is a folder; COCO's annotations are one file"
        raise DataError(message, hint=f"dataset.path={printable(path / 'FILE.json')} dataset.images={printable(path)}")
    try:
        content = json.loads(_bytes(path))
        for key, parts in (("images", ("id", "file_name")), ("annotations", ()), ("categories", ("id", "name"))):
            if not all(part in one for one in content[key] for part in parts):
                raise ValueError(f"{key} without {' or '.join(parts)}")
        return content
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        message = f"{path} is not a COCO file of boxes: {printable(repr(error))}"
        raise DataError(message, hint="Give a JSON file with images, annotations and categories.") from error


def _coco_box(bbox: Any) -> Box | None:
    """(x, y, width, height) -> corners."""
    try:
        x, y, width, height = map(float, bbox)
    except (TypeError, ValueError):
        return None
    return x, y, x + width, y + height


def _coco_image(images: Path, name: str) -> str | None:
    """The file's path in the folder, or its bare name there; never a file outside the folder."""
    for candidate in (name, PurePosixPath(name).name):
        place = PurePosixPath(candidate)
        if not place.is_absolute() and ".." not in place.parts and (images / place).is_file():
            return candidate
    return None


# ------------------------------------------------------------------------------------- what only the data can tell


def peek_voc(root: str | None, *, path: str | None, classes: Sequence[str] | None = None) -> dict[str, int]:
    """num_classes. Raises DataError like the reader itself."""
    return {"num_classes": len(classes or find_voc(locate(root, path)).classes)}


def peek_coco(root: str | None, *, path: str | None, classes: Sequence[str] | None = None) -> dict[str, int]:
    """num_classes."""
    return {"num_classes": len(classes or _coco_content(locate(root, path))["categories"])}
