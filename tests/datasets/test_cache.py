"""Recordings and pictures with boxes or masks in the cache of decoded data: the same bits, without a decoder."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from dlcli.datasets import boxes, masks, speech
from dlcli.datasets.batches.examples import Data
from dlcli.datasets.files.mask_files import peek_masks
from dlcli.errors import DataError

COUNT = 6
PIXELS: dict[str, Any] = {"image_shape": [3, 24, 32], "mean": [0.5] * 3, "std": [0.25] * 3}


def write_picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_speech(folder: Path) -> Path:
    for i in range(COUNT):
        wave = np.random.default_rng(i).integers(-9_000, 9_000, (700 + 50 * i, 1)).astype(np.int16)
        folder.mkdir(exist_ok=True)
        soundfile.write(folder / f"{i}.wav", wave, 8_000 if i else 16_000)  # one is resampled, which is noted
    (folder / "transcripts.csv").write_text("file,transcript\n" + "".join(f"{i}.wav,ab{i}\n" for i in range(COUNT)))
    return folder


def write_voc(folder: Path) -> Path:
    for i in range(COUNT):
        write_picture(folder / "JPEGImages" / f"{i}.png", i)
        (folder / "Annotations").mkdir(exist_ok=True)
        box = f"<xmin>{i}</xmin><ymin>2</ymin><xmax>30</xmax><ymax>20</ymax>"
        objects = "".join(f"<object><name>cell</name><bndbox>{box}</bndbox></object>" for _ in range(i))  # one has none
        (folder / "Annotations" / f"{i}.xml").write_text(f"<annotation>{objects}</annotation>")
    return folder


def write_archive(folder: Path) -> Path:
    place = folder.with_suffix(".tar")
    with tarfile.open(place, "w") as archive:
        archive.add(write_voc(folder), "cells")
    shutil.rmtree(folder)
    return place


def write_coco(folder: Path) -> Path:
    for i in range(COUNT):
        write_picture(folder / "images" / f"{i}.png", i)
    content = {
        "images": [{"id": i, "file_name": f"{i}.png"} for i in range(COUNT)],
        "annotations": [{"id": i, "image_id": i, "category_id": 7, "bbox": [1, 2, 9 + i, 9]} for i in range(COUNT)],
        "categories": [{"id": 7, "name": "cell"}],
    }
    (folder / "instances.json").write_text(json.dumps(content))
    return folder


def write_masks(folder: Path) -> Path:
    for i in range(COUNT):
        write_picture(folder / "images" / f"{i}.png", i)
        (folder / "masks").mkdir(exist_ok=True)
        mask = np.random.default_rng(i).integers(0, 3, (30, 40), dtype=np.uint8)
        Image.fromarray(mask).save(folder / "masks" / f"{i}.png")
    return folder


def read_masks(place: Path) -> Data:
    found = peek_masks(str(place))
    return masks.read_masks(str(place), **found, **PIXELS)


KINDS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Data], str]] = {  # write, read, a file that is read
    "speech": (write_speech, lambda place: speech.read_speech(str(place), sample_rate=8_000, frame_ms=20), "3.wav"),
    "voc": (write_voc, lambda place: boxes.read_voc(path=str(place), **PIXELS), "JPEGImages/3.png"),
    "voc archive": (write_archive, lambda place: boxes.read_voc(path=str(place), **PIXELS), ""),
    "coco": (
        write_coco,
        lambda place: boxes.read_coco(path=str(place / "instances.json"), images=str(place / "images"), **PIXELS),
        "images/3.png",
    ),
    "masks": (write_masks, read_masks, "masks/3.png"),
}
ALL = pytest.mark.parametrize("kind", KINDS)


def content_of(data: Data) -> list[Any]:
    """Everything that a run sees of the data: batches in full, and the rest."""
    found: list[Any] = [data.classes, data.facts, data.fitted, data.notes, data.fingerprints()]
    for split in (data.train, data.test):
        batch = split.batch(torch.arange(len(split)))  # type: ignore[union-attr]
        found += [(name, part.dtype, part.numpy().tobytes()) for name, part in batch._asdict().items()]
        assert split.lengths is None or split.lengths.tolist() == batch.lengths.tolist()  # type: ignore[union-attr]
    return found


def files_in(place: Path) -> dict[Path, tuple[int, int, bytes]]:
    files = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino, path.read_bytes()) for path in files}


@pytest.fixture
def no_decoder(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Called, it takes away every decoder: whoever needs one from then on fails."""

    def refuse(*_: object, **__: object) -> Any:
        raise AssertionError("decoded again")

    def take_away() -> None:
        monkeypatch.setattr(soundfile, "SoundFile", refuse)
        monkeypatch.setattr(Image, "open", refuse)
        monkeypatch.setattr(tarfile, "open", refuse)

    return take_away


@ALL
def test_a_second_start_gives_the_same_bits_without_a_decoder(
    kind: str, tmp_path: Path, cache: Path, no_decoder: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    write, read, _ = KINDS[kind]
    place = write(tmp_path / "own")
    before = files_in(place)
    (tmp_path / "occupied").touch()
    monkeypatch.setenv("DLCLI_CACHE", str(tmp_path / "occupied"))
    without = content_of(read(place))
    monkeypatch.setenv("DLCLI_CACHE", str(cache))
    cold = content_of(read(place))
    no_decoder()
    assert without == cold == content_of(read(place))
    assert files_in(place) == before, "the data are left as they are"


@ALL
def test_a_changed_file_is_seen(kind: str, tmp_path: Path) -> None:
    write, read, name = KINDS[kind]
    place = write(tmp_path / "own")
    before = content_of(read(place))
    if kind == "voc archive":
        place.unlink()
        write_voc(tmp_path / "own")
        write_picture(tmp_path / "own" / "JPEGImages" / "3.png", 99)
        with tarfile.open(place, "w") as archive:
            archive.add(tmp_path / "own", "cells")
    elif kind == "speech":
        wave = np.random.default_rng(99).integers(-9_000, 9_000, (850, 1)).astype(np.int16)
        stat, size = (place / name).stat(), (place / name).stat().st_size
        soundfile.write(place / name, wave, 8_000)
        assert (place / name).stat().st_size == size, "of the same size"
        os.utime(place / name, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # and time, as a copy that keeps times has
    elif kind == "masks":
        Image.fromarray(np.full((30, 40), 2, dtype=np.uint8)).save(place / name)
    else:
        write_picture(place / name, 99)
    assert content_of(read(place)) != before


@pytest.mark.parametrize("change", ["transcript", "annotation", "json", "another"])
def test_changed_words_about_the_same_pictures_and_recordings_are_seen(change: str, tmp_path: Path) -> None:
    kind = {"transcript": "speech", "json": "coco"}.get(change, "voc")
    write, read, _ = KINDS[kind]
    place = write(tmp_path / "own")
    before = content_of(read(place))
    if change == "another":
        (place / "Annotations" / "stray.xml").write_text("<annotation></annotation>")
        assert "stray" in str(read(place).notes)
        return
    name = {"transcript": "transcripts.csv", "annotation": "Annotations/3.xml", "json": "instances.json"}[change]
    old, new = {"transcript": ("ab3", "ba3"), "annotation": (">2<", ">4<"), "json": ("[1, 2, 12", "[3, 2, 12")}[change]
    (place / name).write_text((place / name).read_text().replace(old, new))
    assert content_of(read(place)) != before


@ALL
def test_a_cut_off_cache_is_written_anew(
    kind: str, tmp_path: Path, cache: Path, no_decoder: Callable[[], None]
) -> None:
    write, read, _ = KINDS[kind]
    place = write(tmp_path / "own")
    before = content_of(read(place))
    arrays = sorted((cache / "decoded").glob("*/train-*.npy"))
    assert len(arrays) >= 2
    for array in arrays:
        os.truncate(array, array.stat().st_size - 1)
    for meta in (cache / "decoded").glob("mask_classes-*/meta.json"):
        os.truncate(meta, 20)
    assert content_of(read(place)) == before
    no_decoder()
    assert content_of(read(place)) == before, "it is whole again"


def test_other_settings_are_other_data(tmp_path: Path) -> None:
    spoken = write_speech(tmp_path / "speech")
    fast, slow = (speech.read_speech(str(spoken), sample_rate=rate, frame_ms=20) for rate in (8_000, 4_000))
    assert fast.fitted["sample_rate"] == 8_000 and slow.fitted["sample_rate"] == 4_000
    place = write_voc(tmp_path / "voc")
    large = boxes.read_voc(path=str(place), **PIXELS | {"image_shape": [3, 48, 64]})
    small = boxes.read_voc(path=str(place), **PIXELS)
    assert large.train.batch(torch.arange(1)).images.shape[2:] == (48, 64)  # type: ignore[union-attr]
    assert small.train.batch(torch.arange(1)).images.shape[2:] == (24, 32)  # type: ignore[union-attr]


def test_normalisation_is_none_of_the_cache(tmp_path: Path, cache: Path) -> None:
    place = write_masks(tmp_path / "own")
    first, second = (
        masks.read_masks(str(place), num_classes=3, **PIXELS | {"mean": mean}) for mean in ([0.5] * 3, [0.0] * 3)
    )
    assert len(list((cache / "decoded").glob("masks-*"))) == 1
    images = [data.train.batch(torch.arange(2)).images for data in (first, second)]  # type: ignore[union-attr]
    assert torch.allclose(images[0] + 0.5 / 0.25, images[1], atol=1e-5)


def test_data_that_cannot_be_read_are_not_kept(tmp_path: Path, cache: Path) -> None:
    place = write_speech(tmp_path / "own")
    (place / "3.wav").write_bytes(b"RIFF")
    for _ in range(2):
        with pytest.raises(DataError, match=r"3\.wav"):
            KINDS["speech"][1](place)
    assert not (cache / "decoded").exists()


def test_writing_to_a_batch_or_a_column_does_not_reach_the_cache(tmp_path: Path) -> None:
    place = write_masks(tmp_path / "own")
    before = content_of(read_masks(place))
    read_masks(place).train.columns["images"].values.zero_()  # type: ignore[union-attr, attr-defined]
    assert content_of(read_masks(place)) == before
