"""Images in folders and archives, good and bad ones; CIFAR-10's own files."""

from __future__ import annotations

import pickle
import shutil
import tarfile
from collections.abc import Callable
from hashlib import md5
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dlcli.datasets import cifar
from dlcli.datasets.files.image_tree import peek_image_folder
from dlcli.datasets.image_folder import read_image_folder
from dlcli.errors import ConfigError, DataError

SHAPE = (3, 7, 9)
Write = Callable[..., Path]


def pack(folder: Path, name: str = "images.tar.gz") -> Path:
    with tarfile.open(folder.parent / name, "w:gz") as archive:
        archive.add(folder, arcname=folder.name)
    return folder.parent / name


def test_folder_and_archive_give_the_same_images(write_images: Write) -> None:
    folder = write_images({"train/cat": 3, "train/dog": 2, "test/cat": 1, "test/dog": 2, "val/dog": 1})
    data, packed = (read_image_folder(str(root), image_shape=SHAPE) for root in (folder, pack(folder)))
    assert data.classes == packed.classes == ("cat", "dog")
    assert peek_image_folder(str(folder)) == {"num_classes": 2}
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1] and data.test.labels.tolist() == [0, 1, 1]
    assert data.val is not None and data.val.labels.tolist() == [1]
    assert data.train.fingerprint == packed.train.fingerprint and data.test.fingerprint == packed.test.fingerprint
    expected = np.asarray(Image.open(folder / "train/dog/001.png")).transpose(2, 0, 1)
    assert (data.train.read(4).numpy() == expected).all()


def test_a_test_part_is_split_off_where_there_is_none(write_images: Write) -> None:
    folder = write_images({"cat": 10, "dog": 20})
    data = read_image_folder(str(folder), image_shape=SHAPE)
    assert data.test.labels.bincount().tolist() == [2, 4] and data.train.labels.bincount().tolist() == [8, 16]
    assert read_image_folder(str(folder), image_shape=SHAPE).test.fingerprint == data.test.fingerprint
    wrapped = pack(folder)
    assert read_image_folder(str(wrapped), image_shape=SHAPE).test.fingerprint == data.test.fingerprint


def test_images_above_the_limit_are_read_one_by_one(write_images: Write) -> None:
    folder = write_images({"train/cat": 3, "train/dog": 2, "test/cat": 1})
    whole = read_image_folder(str(folder), image_shape=SHAPE)
    lazy = read_image_folder(str(folder), image_shape=SHAPE, memory_limit_mb=0)
    assert lazy.train.images is None and whole.train.images is not None
    assert torch.stack([lazy.train.read(index) for index in range(5)]).equal(whole.train.images)
    with pytest.raises(DataError, match="read from an archive"):
        read_image_folder(str(pack(folder)), image_shape=SHAPE, memory_limit_mb=0)


@pytest.mark.parametrize("packed", [False, True])
def test_second_read_decodes_nothing(packed: bool, write_images: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_images({"cat": 5, "dog": 5})
    root = str(pack(folder) if packed else folder)
    first = read_image_folder(root, image_shape=SHAPE)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(Image, "open", refuse)
    monkeypatch.setattr(tarfile, "open", refuse)
    assert read_image_folder(root, image_shape=SHAPE).train.fingerprint == first.train.fingerprint


def test_a_changed_image_is_decoded_anew(write_images: Write) -> None:
    folder = write_images({"train/cat": 2, "train/dog": 2, "test/cat": 1})
    before = read_image_folder(str(folder), image_shape=SHAPE)
    shutil.copy(folder / "train/cat/000.png", folder / "train/cat/001.png")
    assert read_image_folder(str(folder), image_shape=SHAPE).train.fingerprint != before.train.fingerprint


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1", "I;16", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_pixel_is_read(mode: str, channels: int, write_images: Write) -> None:
    folder = write_images({"train/cat": 1, "train/dog": 1, "test/cat": 1})
    grey = np.full((20, 10), 128, dtype=np.uint8)
    if mode == "I;16":
        image = Image.fromarray(np.full((20, 10), 128 * 256, dtype=np.uint16))
    else:
        rgb = Image.fromarray(grey).convert("RGB")
        image = rgb.quantize() if mode == "P" else rgb.convert(mode)
    image.save(folder / ("train/cat/000.png" if mode != "CMYK" else "train/cat/000.tiff"))
    if mode == "CMYK":
        (folder / "train/cat/000.png").unlink()
    read = read_image_folder(str(folder), image_shape=(channels, 8, 8)).train.read(0)
    assert read.shape == (channels, 8, 8) and read.dtype == torch.uint8
    if mode != "1":
        assert (read.int() - 128).abs().max() <= 2


@pytest.mark.parametrize("packed", [False, True])
def test_what_decoding_changes_is_counted_also_at_the_second_start(packed: bool, write_images: Write) -> None:
    folder = write_images({"cat": 5, "dog": 5})
    random = np.random.default_rng(1)
    Image.fromarray((random.random((7, 9)) * 65_535).astype(np.uint16)).save(folder / "cat" / "deep.png")
    for name, size in (("a", (7, 9)), ("b", (14, 18))):
        clear = random.integers(0, 255, (*size, 4), dtype=np.uint8)
        Image.fromarray(clear, "RGBA").save(folder / "dog" / f"{name}.png")
    path = str(pack(folder) if packed else folder)
    told = (
        "images not of 7 x 9 pixels, scaled to cover these and cut at the centre: 1 of 13",
        "images with an alpha channel, which is dropped: 2 of 13",
        "images of 16 bits, which are scaled to 8: 1 of 13",
    )
    for _ in range(2):
        assert read_image_folder(path, image_shape=SHAPE).notes == told
    assert "images in colour, and made grey: 12 of 13" in read_image_folder(path, image_shape=(1, 7, 9)).notes


def test_images_as_they_are_wanted_need_no_word(write_images: Write) -> None:
    assert read_image_folder(str(write_images({"cat": 3, "dog": 3})), image_shape=SHAPE).notes == ()


def test_images_are_cut_at_the_centre_not_squeezed(write_images: Write) -> None:
    folder = write_images({"train/cat": 1, "train/dog": 1, "test/cat": 1})
    stripes = np.zeros((10, 30, 3), dtype=np.uint8)
    stripes[:, 10:20] = 255
    Image.fromarray(stripes).save(folder / "train/cat/000.png")
    assert (read_image_folder(str(folder), image_shape=(3, 10, 10)).train.read(0) == 255).all()


def test_hidden_files_and_other_files_are_left_aside(write_images: Write) -> None:
    folder = write_images({"cat": 5, "dog": 5, ".thumbnails": 3, "cat/.cache": 2})
    (folder / "cat" / "._000.png").write_bytes(b"resource fork")
    (folder / "cat" / "notes.txt").write_text("no image")
    (folder / "README.png").write_bytes(b"beside the classes")
    data = read_image_folder(str(folder), image_shape=SHAPE)
    assert data.classes == ("cat", "dog") and len(data.train) + len(data.test) == 10


@pytest.mark.parametrize("limit_mb", [4096, 0])
def test_a_damaged_image_is_named(limit_mb: float, write_images: Write) -> None:
    folder = write_images({"train/cat": 2, "train/dog": 2, "test/cat": 1})
    path = folder / "train" / "cat" / "001.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"train/cat/001\.png") as caught:
        read_image_folder(str(folder), image_shape=SHAPE, memory_limit_mb=limit_mb).train.read(1)
    assert "\n" not in caught.value.message and caught.value.hint


@pytest.mark.parametrize("packed", [False, True])
def test_damaged_images_are_named_together(packed: bool, write_images: Write) -> None:
    folder = write_images({"train/cat": 9, "train/dog": 2, "test/cat": 1})
    for number in range(7):
        (folder / f"train/cat/{number:03}.png").write_text("no image")
    with pytest.raises(DataError) as caught:
        read_image_folder(str(pack(folder) if packed else folder), image_shape=SHAPE)
    assert "7 of 12 images cannot be read" in caught.value.message and "and 2 more" in caught.value.message
    assert caught.value.message.count(".png is not an image of a known format") == 5
    assert "0x" not in caught.value.message and "these files" in str(caught.value.hint)


def test_a_decompression_bomb_is_refused(write_images: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_images({"cat": 2, "dog": 2})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)  # an image has 63: warned of above 40, refused above 80
    with pytest.raises(DataError, match="decompression bomb"):
        read_image_folder(str(folder), image_shape=SHAPE)


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ({"cat": 3, "dog": 0, "eel": 2}, "dog.*holds no images"),
        ({"train/cat": 3, "train/dog": 2, "test/dog": 0, "test/cat": 1}, "test/dog.*holds no images"),
        ({"cat": 3}, "only the class cat"),
        ({"cat": 0, "dog": 0}, "holds no images"),
        ({"train/cat": 1, "train/dog": 1, "test/eel": 1}, "class eel is in test but not in train"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_that_cannot_be_right_is_refused(
    counts: dict[str, int], reason: str, packed: bool, write_images: Write
) -> None:
    folder = write_images(counts)
    with pytest.raises(DataError, match=reason):
        peek_image_folder(str(pack(folder) if packed else folder))


def test_root_must_be_given_and_exist(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not given"):
        peek_image_folder(None)
    with pytest.raises(DataError, match="does not exist"):
        peek_image_folder(str(tmp_path / "no"))
    (tmp_path / "file.txt").touch()
    with pytest.raises(DataError, match="neither a folder nor an archive"):
        peek_image_folder(str(tmp_path / "file.txt"))
    with pytest.raises(DataError, match=r"a/b\.tar\.gz"):
        peek_image_folder(None, path="a/b.tar.gz")
    with pytest.raises(ConfigError, match="image_shape"):
        read_image_folder(str(tmp_path), image_shape=(2, 8, 8))


def test_a_cut_off_archive_is_named(write_images: Write) -> None:
    archive = pack(write_images({"cat": 9, "dog": 9}))
    archive.write_bytes(archive.read_bytes()[:-500])
    with pytest.raises(DataError, match=r"images\.tar\.gz cannot be read"):
        read_image_folder(str(archive), image_shape=SHAPE)


def test_reads_the_real_archive(real_data: Path) -> None:
    path = "CIFAR10-subset/cifar10_subset_4000_1000_webp.tar.gz"
    if not (real_data / path).is_file():
        pytest.skip(f"DLCLI_DATA has no {path}")
    data = read_image_folder(image_shape=(3, 32, 32), path=path)
    assert (len(data.train), len(data.test), data.classes) == (4000, 1000, cifar.CLASSES)


@pytest.fixture
def small_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-10's folder with six batches of 20 images, their checksums taken for the published ones."""
    monkeypatch.delenv("DLCLI_DATA", raising=False)
    folder = tmp_path / "root" / cifar.FOLDER
    folder.mkdir(parents=True)
    sums: dict[str, dict[str, str]] = {}
    for split, names in cifar.MD5.items():
        for number, name in enumerate(names):
            batch = {"data": np.full((20, 3072), number, dtype=np.uint8), "labels": [number] * 20}
            content = pickle.dumps(batch, protocol=2)
            (folder / name).write_bytes(content)
            sums.setdefault(split, {})[name] = md5(content, usedforsecurity=False).hexdigest()
    monkeypatch.setattr(cifar, "MD5", sums)
    return folder


def test_cifar_is_read_from_folder_and_archive(small_cifar: Path, tmp_path: Path) -> None:
    data = cifar.read_cifar10(str(small_cifar.parent), download=False)
    assert data.train.images is not None and data.train.images.shape == (100, 3, 32, 32) and len(data.test) == 20
    assert data.train.labels.tolist() == [label for label in range(5) for _ in range(20)]
    assert (data.train.images[:, 0, 0, 0] == data.train.labels).all()
    archive = pack(small_cifar, cifar.ARCHIVE)
    packed = cifar.read_cifar10(str(archive), download=False)
    assert packed.train.fingerprint == data.train.fingerprint


def test_cifar_pickles_are_not_loaded_before_their_checksum_is_right(small_cifar: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (small_cifar / "executed",))

    (small_cifar / "data_batch_3").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(DataError, match=r"data_batch_3.*MD5"):
        cifar.read_cifar10(str(small_cifar), download=False)
    assert not (small_cifar / "executed").exists()


def test_cifar_checksums_are_torchvisions() -> None:
    from torchvision.datasets import CIFAR10

    assert dict(CIFAR10.train_list) == cifar.MD5["train"]
    assert dict(CIFAR10.test_list) == cifar.MD5["test"]
    assert (CIFAR10.tgz_md5, CIFAR10.url, CIFAR10.base_folder) == (cifar.ARCHIVE_MD5, cifar.URL, cifar.FOLDER)


def test_missing_cifar_names_the_archive() -> None:
    with pytest.raises(DataError, match=cifar.ARCHIVE):
        cifar.read_cifar10(download=False)
