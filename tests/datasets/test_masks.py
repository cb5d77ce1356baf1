"""Images with masks: every usual form of a mask, defects that are told or refused, and that both are moved alike."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dlcli.datasets.augmentation import IGNORED, Augment
from dlcli.datasets.batches.examples import Data
from dlcli.datasets.batches.keyed_random import sample_keys
from dlcli.datasets.files.mask_files import peek_masks
from dlcli.datasets.masks import read_masks, read_nuclei
from dlcli.errors import DataError

SIDE = 16
RED, GREEN = (255, 0, 0), (0, 255, 0)


def ids(*values: int) -> np.ndarray:
    """(16, 16): stripes of the values, from the left."""
    return np.array(values)[np.arange(SIDE) * len(values) // SIDE][None].repeat(SIDE, 0)


def write(folder: Path, masks: dict[str, Image.Image], sizes: tuple[int, int] = (SIDE, SIDE)) -> Path:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "masks").mkdir(exist_ok=True)
    for i, (name, mask) in enumerate(masks.items()):
        Image.new("RGB", sizes, (10 * i, 20, 30)).save(folder / "images" / f"{name}.jpg")
        mask.save(folder / "masks" / f"{name}.png")
    return folder


def read(path: Path, **settings: Any) -> Data:
    asked = {k: settings[k] for k in ("instances", "ignore_index") if k in settings}
    if "num_classes" not in settings:
        settings = {"num_classes": peek_masks(str(path), **asked)["num_classes"]} | settings
    return read_masks(str(path), image_shape=[3, SIDE, SIDE], mean=[0.5], std=[0.5], **settings)


def masks_of(data: Data) -> torch.Tensor:
    """(N, H, W) int64, of all splits."""
    splits = [split for split in (data.train, data.val, data.test) if split is not None]
    return torch.cat([split.batch(torch.arange(len(split))).masks for split in splits])


def grey(array: np.ndarray) -> Image.Image:
    return Image.fromarray(array.astype(np.uint8))


def paletted(array: np.ndarray) -> Image.Image:
    mask = grey(array).convert("P")
    mask.putpalette([0, 0, 0, *RED, *GREEN] + [0] * 759)
    return mask


def coloured(array: np.ndarray) -> Image.Image:
    return Image.fromarray(np.array([(0, 0, 0), GREEN, RED], dtype=np.uint8)[array])


FORMS = {
    "ids": (lambda: grey(ids(0, 1, 2)), {}, ("0", "1", "2"), [0, 1, 2]),
    "palette": (lambda: paletted(ids(0, 1, 2)), {}, ("0", "1", "2"), [0, 1, 2]),
    "16 bits": (lambda: Image.fromarray(ids(0, 1, 2).astype(np.uint16)), {}, ("0", "1", "2"), [0, 1, 2]),
    "0 and 255": (lambda: grey(ids(0, 255)), {}, ("background", "foreground"), [0, 1]),
    "one bit": (lambda: grey(ids(0, 255)).convert("1"), {}, ("0", "1"), [0, 1]),
    "grey as RGB": (lambda: grey(ids(0, 255)).convert("RGB"), {}, ("background", "foreground"), [0, 1]),
    "RGB": (lambda: coloured(ids(0, 1, 2)), {}, ("#000000", "#00ff00", "#ff0000"), [0, 1, 2]),
    "255 is no class": (lambda: grey(ids(0, 1, 255)), {}, ("0", "1"), [0, 1, IGNORED]),
    "255 is a class": (lambda: grey(ids(0, 128, 255)), {"ignore_index": None}, ("0", "128", "255"), [0, 1, 2]),
    "grey levels": (lambda: grey(ids(0, 100, 200)), {}, ("0", "100", "200"), [0, 1, 2]),
    "absent classes": (lambda: grey(ids(0, 2)), {"num_classes": 4}, ("0", "1", "2", "3"), [0, 2]),
    "instances": (
        lambda: Image.fromarray(ids(0, 7, 900, 40_000).astype(np.uint16)), {"instances": True},
        ("background", "object"), [0, 1, 1, 1],
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_usual_form_of_a_mask_is_read(form: str, tmp_path: Path) -> None:
    make, settings, classes, expected = FORMS[form]
    data = read(write(tmp_path, {f"{i}": make() for i in range(5)}), **settings)
    assert data.classes == classes
    assert (len(data.train), len(data.test)) == (4, 1)
    assert (masks_of(data) == torch.from_numpy(ids(*expected))).all()


OBJECTS = {
    "new in each image": (lambda i: (0, 300 + i), "12 of them in one image each"),
    "counted from 1": (lambda i: range(2 + i % 5), "in every image 1, 2, 3 and so on, up to 5"),
}


@pytest.mark.parametrize("form", OBJECTS)
def test_ids_of_objects_are_not_taken_for_classes(form: str, tmp_path: Path) -> None:
    values, why = OBJECTS[form]
    make = {f"{i}": Image.fromarray(ids(*values(i)).astype(np.uint16)) for i in range(12)}
    path = write(tmp_path, make)
    with pytest.raises(DataError, match=f"{why}: these look like ids of objects") as caught:
        read(path)
    num_values = len({value for i in range(12) for value in values(i)})
    assert caught.value.hint == (
        f"dataset.instances=true; or, if each is a class of its own, dataset.num_classes={num_values}"
    )
    assert read(path, instances=True).classes == ("background", "object")
    assert len(read(path, num_classes=num_values).classes) == num_values


@pytest.mark.parametrize(
    "values",
    [
        lambda i: (0, 1 + i % 7, 1 + i * 3 % 7),  # any classes
        lambda i: (0, 1, 2, 3, 4, 5, 6),  # always all of them
        lambda i: (0, 1 + i % 2, 10 + i) if i < 4 else (0, 1 + i % 2),  # some rare ones
        lambda i: range(2 + i % 2),  # 1, and sometimes 2
    ],
)
def test_classes_are_not_taken_for_ids_of_objects(values: Any, tmp_path: Path) -> None:
    path = write(tmp_path, {f"{i}": grey(ids(*sorted({*values(i)}))) for i in range(12)})
    assert len(read(path).classes) == len({value for i in range(12) for value in values(i)})


def test_a_batch_is_normalised_images_and_whole_numbers(tmp_path: Path) -> None:
    batch = read(write(tmp_path, {f"{i}": grey(ids(0, 255)) for i in range(5)})).train.batch(torch.tensor([0, 3]))
    assert (batch.images.shape, batch.images.dtype) == ((2, 3, SIDE, SIDE), torch.float32)
    assert (batch.masks.shape, batch.masks.dtype) == ((2, SIDE, SIDE), torch.int64)
    assert batch.images[:, 1].unique().item() == pytest.approx((20 / 255 - 0.5) / 0.5, abs=0.02)
    assert batch.index.tolist() == [0, 3]


def test_folders_by_split_and_archives_of_them(tmp_path: Path) -> None:
    for split, number in (("train", 3), ("val", 2), ("test", 1)):
        write(tmp_path / "set" / split, {f"{i}": grey(ids(0, 255)) for i in range(number)})
    with tarfile.open(tmp_path / "set.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "set", "set")
    folder, packed = read(tmp_path / "set"), read(tmp_path / "set.tar.gz")
    assert folder.val is not None
    assert (len(folder.train), len(folder.val), len(folder.test)) == (3, 2, 1)
    assert folder.fingerprints() == packed.fingerprints()


def test_alpha_channels_and_16_bits_of_images_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path, {f"{i}": grey(ids(0, 255)) for i in range(5)})
    for name, picture in (("0", Image.new("RGBA", (SIDE, SIDE))), ("1", Image.new("I;16", (SIDE, SIDE)))):
        (path / "images" / f"{name}.jpg").unlink()
        picture.save(path / "images" / f"{name}.png")
    assert read(path).notes == (
        "images with an alpha channel, which is dropped: 1 of 5",
        "images of 16 bits, which are scaled to 8: 1 of 5",
    )


def test_other_sizes_are_resized_without_new_values_and_counted(tmp_path: Path) -> None:
    write(tmp_path, {"a": grey(ids(0, 1, 2)), "b": grey(ids(0, 1, 2)), "c": grey(ids(0, 1, 2))}, sizes=(40, 24))
    grey(ids(0, 1, 2)).resize((40, 24), Image.Resampling.NEAREST).save(tmp_path / "masks" / "b.png")
    data = read(tmp_path)
    assert masks_of(data).unique().tolist() == [0, 1, 2]
    assert data.notes == (
        "3 of 3 images were resized to 16 x 16 pixels",
        "2 masks had another size than their images and were resized (masks/a.png, masks/c.png)",
    )


def test_what_has_no_counterpart_is_left_out_and_counted(tmp_path: Path) -> None:
    write(tmp_path, {f"{i}": grey(ids(0, 255)) for i in range(6)})
    (tmp_path / "masks" / "1.png").unlink()
    (tmp_path / "masks" / "2.png").unlink()
    (tmp_path / "images" / "3.jpg").unlink()
    data = read(tmp_path)
    assert len(data.train) + len(data.test) == 3
    assert data.notes[0].endswith("2 images have no mask and are left out (images/1.jpg, images/2.jpg)")
    assert data.notes[1].endswith("1 mask has no image and is left out (masks/3.png)")


def spoil_nothing_matches(folder: Path) -> None:
    for path in (folder / "masks").iterdir():
        path.rename(path.with_name(f"x{path.name}"))


def spoil_jpeg(folder: Path) -> None:
    (folder / "masks" / "1.png").unlink()
    grey(ids(0, 255)).save(folder / "masks" / "1.jpg")


def spoil_twice(folder: Path) -> None:
    Image.new("RGB", (SIDE, SIDE)).save(folder / "images" / "1.png")


def put(content: bytes, name: str) -> Any:
    return lambda folder: (folder / name).write_bytes(content)


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


DEFECTS = {
    "no match": (spoil_nothing_matches, {}, "none of the 5 images has a mask of its name"),
    "lossy mask": (spoil_jpeg, {}, "masks/1.jpg is a JPEG"),
    "two images": (spoil_twice, {}, "images/1.jpg and images/1.png have the same name"),
    "damaged mask": (put(b"no picture", "masks/1.png"), {}, "masks/1.png cannot be read as a mask: not a picture of a"),
    "cut mask": (put(png(grey(ids(0, 255)))[:45], "masks/1.png"), {}, "masks/1.png cannot be read"),
    "damaged image": (put(b"", "images/1.jpg"), {}, "1 of 10 files: images/1.jpg cannot be read"),
    "outside": (
        put(png(grey(ids(0, 1, 9))), "masks/1.png"), {"num_classes": 2},
        "values outside dataset.num_classes=2: masks/1.png holds 9",
    ),
    "mixed": (put(png(coloured(ids(0, 1))), "masks/1.png"), {}, "1.png holds RGB colours and masks/0.png does not"),
    "instances": (
        put(png(Image.fromarray(np.arange(SIDE * SIDE).reshape(SIDE, SIDE).astype(np.uint16) * 9)), "masks/1.png"), {},
        "up to 255 can be classes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("defect", DEFECTS)
def test_defects_are_named(defect: str, tmp_path: Path) -> None:
    spoil, settings, told = DEFECTS[defect]
    spoil(write(tmp_path, {f"{i}": grey(ids(0, 1)) for i in range(5)}))
    with pytest.raises(DataError, match=told) as raised:
        read(tmp_path, **settings)
    assert raised.value.hint


def test_one_class_alone_is_nothing_to_learn(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"one value only \(0\)"):
        peek_masks(str(write(tmp_path, {"a": grey(ids(0))})))


def test_nuclei_are_split_as_their_file_says(data_root: Path) -> None:
    data = read_nuclei(str(data_root), image_shape=[1, 256, 256], mean=[0.05], std=[0.07])
    assert (len(data.train), len(data.test), data.val, data.notes) == (160, 40, None, ())
    assert masks_of(data).unique().tolist() == [0, 1]
    names = json.loads((data_root / "nuclei" / "splits.json").read_text())["val"]
    with tarfile.open(data_root / "nuclei" / "nuclei_dev_200.tar.gz") as archive:
        file = archive.extractfile(f"nuclei/masks/{sorted(names)[5]}.png")
        assert file is not None
        instances = np.asarray(Image.open(io.BytesIO(file.read())))
    assert instances.max() > 1
    assert (data.test.batch(torch.tensor([5])).masks[0].numpy() == (instances > 0)).all()


# --------------------------------------------------------------------------------------------------------- augmentation


def blocks(number: int, side: int = 64) -> torch.Tensor:
    """(N, 1, side, side) of 0 and 1: coarse squares, so that few pixels lie at an edge."""
    coarse = torch.randint(2, (number, 1, 4, 4), generator=torch.Generator().manual_seed(0)).float()
    return coarse.repeat_interleave(side // 4, 2).repeat_interleave(side // 4, 3)


@pytest.mark.parametrize(
    ("settings", "agreement"),
    [
        ({"flip": 0.5}, 1.0),
        ({"flip": 0.5, "shift": 5}, 1.0),
        ({"shift": 5, "padding_mode": "reflect"}, 1.0),
        ({"rotation": 30}, 0.98),
        ({"rotation": 30, "flip": 0.5, "crop": [0.5, 0.9], "shift": 3, "padding_mode": "reflect"}, 0.98),
    ],
)
def test_a_mask_moves_as_its_image_does(settings: dict[str, Any], agreement: float) -> None:
    """A mask that is its thresholded image stays it: exactly by whole pixels, else but for pixels at edges."""
    images, keys = blocks(16), sample_keys(0, 3, torch.arange(16))
    augment = Augment(**settings)
    moved, masks = augment.with_masks(images, images[:, 0].long(), keys)
    assert moved.equal(augment(images, keys))
    assert (moved != images).any()
    known = masks != IGNORED
    agrees = (moved[:, 0] > 0.5) == (masks == 1)
    assert agrees[known].float().mean() >= agreement
    assert masks.unique().tolist() == ([0, 1] if known.all() else [0, 1, IGNORED])
    assert known.all() == (settings.get("padding_mode") == "reflect" or set(settings) == {"flip"})


def test_what_is_erased_is_no_class_and_light_changes_no_mask() -> None:
    images, keys = torch.ones(16, 1, 32, 32), sample_keys(0, 0, torch.arange(16))
    moved, masks = Augment(erase=1.0).with_masks(images, torch.ones(16, 32, 32, dtype=torch.int64), keys)
    assert ((masks == IGNORED) == (moved[:, 0] == 0)).all()
    assert 0.01 < (masks == IGNORED).float().mean() < 0.3
    truth = blocks(16)[:, 0].long()
    assert Augment(jitter=0.4).with_masks(blocks(16), truth, keys)[1].equal(truth)
