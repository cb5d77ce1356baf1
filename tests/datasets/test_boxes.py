"""Images with boxes: VOC and COCO as they are found in the world, and that boxes move with their images."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dlcli.datasets.augmentation import Augment
from dlcli.datasets.batches.examples import Data
from dlcli.datasets.batches.keyed_random import sample_keys
from dlcli.datasets.boxes import letterbox, read_blood_cells, read_coco, read_voc
from dlcli.datasets.files.box_files import find_coco, one_of, peek_coco, peek_voc
from dlcli.errors import DataError

SHAPE = {"image_shape": [3, 40, 40], "mean": [0.5], "std": [0.5]}
Box = tuple[float, float, float, float]


def write_image(path: Path, *, size: tuple[int, int] = (40, 40), box: Box | None = None) -> None:
    """Grey, with a white box."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((size[1], size[0], 3), 50, dtype=np.uint8)
    if box is not None:
        x0, y0, x1, y1 = map(int, box)
        pixels[y0:y1, x0:x1] = 255
    Image.fromarray(pixels).save(path)


def write_voc(
    folder: Path,
    name: str,
    objects: Sequence[tuple[str, Any]],
    *,
    size: tuple[int, int] = (40, 40),
    said: str | None = None,
    extra: str = "",
) -> None:
    parts = [
        f"<object><name>{label}</name>{extra}<bndbox>"
        + "".join(f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
        + "</bndbox></object>"
        for label, box in objects
    ]
    (folder / "Annotations").mkdir(parents=True, exist_ok=True)
    (folder / "Annotations" / f"{name}.xml").write_text(
        f"<annotation><filename>{said or name + '.png'}</filename>"
        f"<size><width>{size[0]}</width><height>{size[1]}</height></size>{''.join(parts)}</annotation>"
    )


def voc(folder: Path, num_images: int = 5) -> Path:
    for i in range(num_images):
        box = (4.0 + i, 6.0, 20.0 + i, 30.0)
        write_image(folder / "JPEGImages" / f"{i}.png", box=box)
        write_voc(folder, str(i), [("cat" if i % 2 else "dog", box)])
    return folder


def everything(data: Data) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, boxes and labels of all splits."""
    batches = [split.batch(torch.arange(len(split))) for split in (data.train, data.val, data.test) if split]  # type: ignore[union-attr]
    boxes = torch.cat([b.boxes[b.labels >= 0] for b in batches])
    return torch.cat([b.images for b in batches]), boxes, torch.cat([b.labels[b.labels >= 0] for b in batches])


def test_blood_cells_are_read_where_they_lie(data_root: Path) -> None:
    data = read_blood_cells(str(data_root), image_shape=[3, 48, 64], mean=[0.7], std=[0.1])
    assert data.classes == ("Platelets", "RBC", "WBC")
    assert (len(data.train), len(data.test), data.val) == (205, 87, None)
    assert data.notes == ("2 boxes without area left out (BloodImage_00343.jpg, BloodImage_00338.jpg)",)
    images, boxes, labels = everything(data)
    assert torch.bincount(labels).tolist() == [292, 3348, 301]
    assert images.shape == (292, 3, 48, 64)
    assert boxes.min() >= 0 and bool((boxes <= torch.tensor([64.0, 48, 64, 48])).all())


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    data = read_voc(path=str(voc(tmp_path)), **SHAPE)
    assert (data.classes, len(data.train), len(data.test), data.notes) == (("cat", "dog"), 4, 1, ())
    assert peek_voc(None, path=str(tmp_path)) == {"num_classes": 2}
    batch = data.train.batch(torch.arange(4))  # type: ignore[union-attr]
    for image, box in zip(batch.images, batch.boxes[:, 0].long(), strict=True):
        x0, y0, x1, y1 = box.tolist()
        assert bool((image[:, y0:y1, x0:x1] == 1).all()) and int((image[0] == 1).sum()) == (y1 - y0) * (x1 - x0)


def test_an_archive_gives_what_its_folder_gives(tmp_path: Path) -> None:
    folder = voc(tmp_path / "folder")
    with tarfile.open(tmp_path / "boxes.tar.gz", "w:gz") as archive:
        archive.add(folder, arcname="anything/inside")
    fingerprints = [read_voc(path=str(path), **SHAPE).fingerprints() for path in (folder, tmp_path / "boxes.tar.gz")]
    assert fingerprints[0] == fingerprints[1]


def test_lists_make_the_splits(tmp_path: Path) -> None:
    voc(tmp_path)
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("0\n1\n2\nghost\n")
    (lists / "val.txt").write_text("3 1\n4 -1\n")
    data = read_voc(path=str(tmp_path), **SHAPE)
    assert (len(data.train), data.val, len(data.test)) == (3, None, 2)
    assert data.notes == ("1 image of the list train without annotation left out (ghost)",)
    (lists / "test.txt").write_text("4\n")
    data = read_voc(path=str(tmp_path), **SHAPE)
    assert (len(data.train), len(data.val or ()), len(data.test)) == (3, 2, 1)


@pytest.mark.parametrize(
    ("box", "told", "becomes"),
    [
        ((5, 5, 5, 9), "1 box without area left out", None),
        ((50, 5, 60, 9), "1 box outside its image left out", None),
        (("nan", 5, 6, 9), "1 box with coordinates that are not numbers left out", None),
        (("", 5, 6, 9), "1 object without a name or a box left out", None),
        ((30, 5, 10, 9), "1 box with swapped corners set right", [10, 5, 30, 9]),
        ((-5, 5, 10, 90), "1 box cut off at the edge of its image", [0, 5, 10, 40]),
        ((3, 5, 3.5, 9), "1 box smaller than a pixel, once scaled, left out", None),
    ],
)
def test_what_is_no_box_is_told(tmp_path: Path, box: Any, told: str, becomes: list[float] | None) -> None:
    voc(tmp_path)
    write_voc(tmp_path, "0", [("dog", (1, 1, 9, 9)), ("dog", box)])
    data = read_voc(path=str(tmp_path), **SHAPE)
    assert data.notes == (f"{told} (0.{'xml' if 'object ' in told else 'png'})",)
    boxes = everything(data)[1].tolist()
    assert len(boxes) == (6 if becomes else 5)
    assert becomes is None or becomes in boxes


def test_images_and_names_that_do_not_match_are_told(tmp_path: Path) -> None:
    voc(tmp_path)
    write_voc(tmp_path, "0", [])  # an image of nothing is one to learn from
    write_voc(tmp_path, "1", [("cat", (1, 1, 9, 9))], said="other.png")
    write_voc(tmp_path, "2", [("cat", (1, 1, 9, 9))], extra="<difficult>1</difficult>")
    write_voc(tmp_path, "gone", [("cat", (1, 1, 9, 9))])
    data = read_voc(path=str(tmp_path), **SHAPE)
    assert len(data.train) + len(data.test) == 5
    assert (
        data.notes
        == (
            "1 annotation names another file: the file of its own name was taken (1.xml)",
            "1 annotation without an image left out (gone.xml)",
            "2 images without boxes kept (2.png, 0.png)",
            "1 object marked as difficult left out (2.xml)",
        )
        or "2 images without boxes kept (0.png, 2.png)" in data.notes
    )
    some = read_voc(path=str(tmp_path), classes=["dog"], **SHAPE)
    assert some.classes == ("dog",)
    assert any(note.startswith("2 boxes of classes that are not learned left out") for note in some.notes)


def test_what_cannot_be_read_says_what_would_be_right(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset\.path is not given"):
        read_voc(path=None, **SHAPE)
    with pytest.raises(DataError, match="does not exist"):
        read_voc(path=str(tmp_path / "no"), **SHAPE)
    with pytest.raises(DataError, match="no annotated images"):
        read_voc(path=str(tmp_path), **SHAPE)
    voc(tmp_path)
    with pytest.raises(DataError, match="names bird") as error:
        read_voc(path=str(tmp_path), classes=["bird"], **SHAPE)
    assert "cat" in str(error.value.hint) and "dog" in str(error.value.hint)
    (tmp_path / "JPEGImages" / "3.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"3\.png is not an image"):
        read_voc(path=str(tmp_path), **SHAPE)
    (tmp_path / "Annotations" / "3.xml").write_text("<annotation>")
    with pytest.raises(DataError, match=r"3\.xml is not XML"):
        read_voc(path=str(tmp_path), **SHAPE)


@pytest.mark.parametrize(("folder", "told"), [("JPEGImages/{}.png", "images"), ("Annotations/{}.xml", "annotations")])
def test_all_that_cannot_be_read_is_told_at_once(folder: str, told: str, tmp_path: Path) -> None:
    voc(tmp_path)
    for i in (0, 3):
        (tmp_path / folder.format(i)).write_bytes(b"no picture, no XML")
    with pytest.raises(DataError, match=rf"^2 {told} cannot be read: .*0\.\w+ is not .*; .*3\.\w+ is not ") as error:
        read_voc(path=str(tmp_path), **SHAPE)
    assert "these files" in str(error.value.hint) and "0x" not in error.value.message
    for path in (tmp_path / folder).parent.iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=rf"{told} cannot be read"):
        read_voc(path=str(tmp_path), **SHAPE)


def test_images_of_any_size_take_their_boxes_with_them(tmp_path: Path) -> None:
    voc(tmp_path)
    write_image(tmp_path / "JPEGImages" / "0.png", size=(80, 40), box=(20, 10, 60, 30))
    write_voc(tmp_path, "0", [("bird", (20, 10, 60, 30))], size=(80, 40))
    write_image(tmp_path / "JPEGImages" / "1.png", size=(20, 20))  # scaled down after it was annotated
    write_voc(tmp_path, "1", [("fish", (8, 8, 16, 24))])
    data = read_voc(path=str(tmp_path), **SHAPE)
    _, boxes, labels = everything(data)
    assert data.notes == ("1 image of another size than annotated, boxes scaled (1.png)",)
    assert boxes[labels == data.classes.index("bird")].tolist() == [[10, 5, 30, 15]]
    assert boxes[labels == data.classes.index("fish")].tolist() == [[8, 8, 16, 24]]


def test_a_turned_photograph_is_shown_upright_unless_it_was_annotated_lying() -> None:
    image = Image.new("RGB", (60, 30))
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif)
    assert letterbox(file.getvalue(), (3, 30, 30), source="a")[1] == (30, 60)
    assert letterbox(file.getvalue(), (3, 30, 30), said=(60, 30), source="a")[1] == (60, 30)


def coco(folder: Path, **more: Any) -> Path:
    for i in range(4):
        write_image(folder / "pictures" / f"{i}.png")
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 40} for i in range(4)],
        "annotations": [{"id": i, "image_id": i, "category_id": 7, "bbox": [4, 6, 10, 20]} for i in range(4)],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "bird"}],
    }
    for name, items in more.items():
        content[name] += items
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return path


def test_a_coco_file(tmp_path: Path) -> None:
    path = coco(
        tmp_path,
        images=[{"id": 9, "file_name": "gone.png"}, {"id": 10, "file_name": "../instances.json"}],
        annotations=[
            {"id": 4, "image_id": 0, "category_id": 99, "bbox": [1, 1, 9, 9]},
            {"id": 5, "image_id": 0, "category_id": 7, "bbox": [1, 1, 9, 9], "iscrowd": 1},
            {"id": 6, "image_id": 0, "category_id": 7, "bbox": [1, 1]},
            {"id": 7, "image_id": 77, "category_id": 7, "bbox": [1, 1, 9, 9]},
        ],
    )
    data = read_coco(path=str(path), images=str(tmp_path / "pictures"), test_path=str(path), **SHAPE)
    assert (data.classes, len(data.train), len(data.test)) == (("bird", "cat"), 4, 4)
    assert peek_coco(None, path=str(path)) == {"num_classes": 2}
    _, boxes, labels = everything(data)
    assert boxes.tolist() == [[4, 6, 14, 26]] * 8 and labels.tolist() == [1] * 8
    assert data.notes == (
        "2 boxes of crowds left out (annotation 5)",
        "2 boxes of unknown classes left out (annotation 4)",
        "2 boxes with coordinates that are not numbers left out (annotation 6)",
        "4 images that are missing left out (gone.png, instances.json)",
        "2 images that have boxes but are not listed (image 77)",
    )
    with pytest.raises(DataError, match="none of its 6 images"):
        read_coco(path=str(path), images=str(voc(tmp_path / "others") / "Annotations"), **SHAPE)
    path.write_text('{"images": []}')
    with pytest.raises(DataError, match="not a COCO file"):
        read_coco(path=str(path), **SHAPE)


# --------------------------------------------------------------------------------------------------------- augmentation

AUGMENTED = (
    {"flip": 0.5, "flip_vertical": 0.5},
    {"flip": 0.5, "shift": 9},
    {"crop": [0.4, 1.0], "flip": 0.5},
    {"crop": [0.6, 1.0], "flip": 0.5, "flip_vertical": 0.5, "shift": 6},
    {"rotation": 180},  # of a square that is turned, the upright box around it
    {"rotation": 30, "crop": [0.7, 1.0], "flip_vertical": 0.5, "shift": 3},
)


@pytest.mark.parametrize("settings", AUGMENTED, ids=str)
def test_a_drawn_box_moves_with_its_image(settings: dict[str, Any]) -> None:
    """The box that is given is, to a pixel, the one around what is white."""
    num, height, width = 64, 48, 64
    images = torch.zeros(num, 1, height, width)
    images[:, :, 12:30, 22:46] = 1.0
    boxes = torch.tensor([22.0, 12, 46, 30]).expand(num, 1, 4).clone()
    keys = sample_keys(3, 0, torch.arange(num))
    augment = Augment(**settings)
    moved, moved_boxes, labels = augment.with_boxes(images, boxes, torch.zeros(num, 1, dtype=torch.int64), keys)
    assert torch.equal(moved, augment(images, keys))  # the image is what it is without boxes
    assert int((labels == 0).sum()) > num // 2
    assert len({tuple(box) for box in moved_boxes[:, 0].round().tolist()}) > 3
    for image, box in zip(moved[labels[:, 0] == 0], moved_boxes[labels == 0], strict=True):
        rows, columns = (image[0] > 0.5).nonzero().unbind(1)
        drawn = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert (drawn - box).abs().max() < (2.0 if settings.get("rotation") else 1.0)


def test_a_box_that_left_the_image_is_none(tmp_path: Path) -> None:
    images, keys = torch.zeros(64, 1, 32, 32), sample_keys(0, 0, torch.arange(64))
    boxes = torch.tensor([0.0, 0, 4, 4]).expand(64, 1, 4)
    augment = Augment(shift=8)
    _, moved, labels = augment.with_boxes(images, boxes, torch.ones(64, 1, dtype=torch.int64), keys)
    gone = labels[:, 0] == -1
    assert 0 < int(gone.sum()) < 64
    assert bool((moved[gone] == 0).all()) and bool(((moved[~gone, 0, 2:] - moved[~gone, 0, :2]) > 0).all())


def test_boxes_of_an_example_do_not_depend_on_its_batch(tmp_path: Path) -> None:
    data = read_voc(path=str(voc(tmp_path)), **SHAPE)
    augment, rows = Augment(flip=0.5, crop=[0.5, 1.0]), torch.arange(4)
    together = data.train.batch(rows, augment=augment, keys_B=sample_keys(0, 1, rows))  # type: ignore[union-attr]
    for row in rows:
        alone = data.train.batch(row[None], augment=augment, keys_B=sample_keys(0, 1, row[None]))  # type: ignore[union-attr]
        assert torch.equal(alone.boxes[0], together.boxes[row]) and torch.equal(alone.images[0], together.images[row])


def test_one_is_told_as_one() -> None:
    assert one_of("images that have boxes but are not listed") == "image that has boxes but is not listed"
    assert one_of("annotations name another file: the file of their own name was taken") == (
        "annotation names another file: the file of its own name was taken"
    )
    assert one_of("boxes of classes that are not learned left out") == "box of classes that are not learned left out"


def test_a_folder_in_the_place_of_cocos_file_is_told_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder; COCO's annotations are one file") as caught:
        find_coco(tmp_path, tmp_path)
    assert caught.value.hint == f"dataset.path={tmp_path}/FILE.json dataset.images={tmp_path}"
