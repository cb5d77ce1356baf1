"""MNIST from the real files, and everything that can be wrong with them."""

from __future__ import annotations

import gzip
import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dlcli.datasets import mnist
from dlcli.datasets.mnist import MNIST, NAMES, read_at_most, read_fashion_mnist, read_idx, read_mnist
from dlcli.datasets.storage import download
from dlcli.errors import DataError

LABELS = "t10k-labels-idx1-ubyte"


@pytest.fixture
def copy(real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the .gz files in <root>/MNIST/raw, and no other root; returns that folder."""
    monkeypatch.delenv("DLCLI_DATA")
    folder = tmp_path / "root" / "MNIST" / "raw"
    shutil.copytree(real_data / "MNIST" / "raw", folder, copy_function=shutil.copyfile)
    return folder


def test_reads_the_real_files(real_data: Path) -> None:
    data = read_mnist(download=False)
    assert data.train.images is not None and data.test.images is not None
    assert data.train.images.shape == (60_000, 1, 28, 28) and data.test.images.shape == (10_000, 1, 28, 28)
    assert data.train.labels[:8].tolist() == [5, 0, 4, 1, 9, 2, 1, 3]
    assert data.train.labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert data.train.images[:1000].float().mean().item() / 255 == pytest.approx(0.13, abs=0.01)
    assert data.train.fingerprint != data.test.fingerprint and len(data.train.fingerprint) == 64
    assert data.val is None and data.classes == tuple("0123456789")


def test_second_read_opens_no_archive_and_gives_the_same(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read_mnist(download=False)
    monkeypatch.setattr(gzip, "open", refuse)
    monkeypatch.setattr(gzip, "GzipFile", refuse)
    second = read_mnist(download=False)
    assert first.train.images is not None and second.train.images is not None
    assert second.train.images.equal(first.train.images) and second.test.labels.equal(first.test.labels)
    assert second.train.fingerprint == first.train.fingerprint


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("the archive was opened again")


@pytest.mark.parametrize("place", ["MNIST/raw", "mnist", "", "raw"])
def test_is_found_in_the_usual_folders(place: str, copy: Path, tmp_path: Path) -> None:
    root = tmp_path / "elsewhere"
    (root / place).mkdir(parents=True)
    for name in NAMES:
        shutil.copy(copy / f"{name}.gz", root / place)
    assert mnist.find_files(MNIST, [root]) == {name: root / place / f"{name}.gz" for name in NAMES}


def test_decompressed_and_recompressed_copies_are_accepted(copy: Path) -> None:
    root = copy.parent.parent
    fingerprint = read_mnist(str(root), download=False).test.fingerprint
    for name in NAMES[2:]:
        content = gzip.decompress((copy / f"{name}.gz").read_bytes())
        if name == LABELS:
            (copy / f"{name}.gz").write_bytes(gzip.compress(content, compresslevel=1))
        else:
            (copy / f"{name}.gz").unlink()
            (copy / name).write_bytes(content)
    assert read_mnist(str(root), download=False).test.fingerprint == fingerprint


def cut_off(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped_bit(content: bytes) -> bytes:
    return content[:3000] + bytes([content[3000] ^ 4]) + content[3001:]


def changed_label(content: bytes) -> bytes:
    payload = bytearray(gzip.decompress(content))
    payload[100] = (payload[100] + 1) % 10
    return gzip.compress(payload)


def wrong_magic(content: bytes) -> bytes:
    return gzip.compress(b"\0\0\x08\x03" + gzip.decompress(content)[4:])


def wrong_count(content: bytes) -> bytes:
    return gzip.compress(gzip.decompress(content)[:4] + b"\0\0\0\x05" + gzip.decompress(content)[8:])


def too_short(content: bytes) -> bytes:
    return gzip.compress(gzip.decompress(content)[:-1])


def too_long(content: bytes) -> bytes:
    return gzip.compress(gzip.decompress(content) + b"\0")


def no_gzip(content: bytes) -> bytes:
    return b"<html>404</html>"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut_off, "cut off"),
        (flipped_bit, "decompressed|cut off|sha256"),
        (changed_label, "is not MNIST"),
        (wrong_magic, "2051"),
        (wrong_count, "says it holds"),
        (too_short, "10,007"),
        (too_long, "more than 10,008"),
        (no_gzip, "decompressed"),
    ],
)
def test_a_damaged_file_is_named(damage: Callable[[bytes], bytes], reason: str, copy: Path) -> None:
    path = copy / f"{LABELS}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=reason) as caught:
        read_idx(path, (10_000,), MNIST)
    assert str(path) in caught.value.message and caught.value.hint


def test_a_bomb_is_not_decompressed_beyond_the_known_size(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(b"\0" * 50_000_000))
    with gzip.open(path) as file:
        assert len(read_at_most(file, 1000)) == 1000
        assert file.tell() == 1000


def test_other_data_under_the_same_names_are_refused(tmp_path: Path) -> None:
    """Fashion-MNIST's files are called as MNIST's are."""
    path = tmp_path / LABELS
    path.write_bytes(b"\0\0\x08\x01" + (10_000).to_bytes(4, "big") + bytes(10_000))
    with pytest.raises(DataError, match="is not MNIST"):
        read_idx(path, (10_000,), MNIST)


def test_missing_data_say_where_they_were_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLCLI_DATA", str(tmp_path / "shared"))
    (tmp_path / "mine").mkdir()
    with pytest.raises(DataError) as caught:
        read_fashion_mnist(str(tmp_path / "mine"), download=False)
    for folder in ("mine", "shared", "data", "cache/downloads"):
        assert str(tmp_path / folder) in caught.value.message
    assert "train-images-idx3-ubyte.gz" in caught.value.message and "dataset.root=" in str(caught.value.hint)
    assert caught.value.code == 3


def test_an_incomplete_folder_is_told(copy: Path) -> None:
    (copy / f"{LABELS}.gz").unlink()
    with pytest.raises(DataError, match=f"lacks {LABELS}.gz"):
        read_mnist(str(copy.parent.parent), download=False)


def test_a_root_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_mnist("/no/such/folder", download=True)


def test_download_without_a_network_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unreachable(*_: object, timeout: float, **__: object) -> None:
        assert timeout <= 10
        raise OSError("Network is unreachable")

    monkeypatch.delenv("DLCLI_DATA", raising=False)
    monkeypatch.setattr(download.urllib.request, "urlopen", unreachable)
    with pytest.raises(DataError, match=r"no network.*unreachable") as caught:
        read_mnist(download=True)
    assert "dlcli train digits" in str(caught.value.hint)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()], "nothing unfinished is left"


def test_a_download_is_kept_only_when_its_checksum_is_right(copy: Path, tmp_path: Path) -> None:
    """The mirror is a folder here: file:// goes through the same code."""
    edition = with_mirror(copy)
    data = mnist.read_edition(edition, None, download=True)
    assert len(data.train) == 60_000
    assert sorted(p.name for p in (tmp_path / "cache/downloads/MNIST/raw").iterdir()) == sorted(
        f"{n}.gz" for n in NAMES
    )
    (tmp_path / "cache/downloads/MNIST/raw" / f"{LABELS}.gz").unlink()
    (copy / f"{LABELS}.gz").write_bytes(b"<html>captive portal</html>")
    with pytest.raises(DataError, match="MD5"):
        mnist.read_edition(edition, None, download=True)
    assert not (tmp_path / "cache/downloads/MNIST/raw" / f"{LABELS}.gz").exists()


def with_mirror(folder: Path) -> mnist.Edition:
    """MNIST from this folder, whose .gz may be compressed otherwise than the published ones."""
    sums = {
        name: hashlib.md5((folder / f"{name}.gz").read_bytes(), usedforsecurity=False).hexdigest() for name in NAMES
    }
    return replace(MNIST, mirrors=(f"file://{folder}/",), md5=sums)


def test_labels_above_nine_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def arrays(path: Path, shape: tuple[int, ...], edition: mnist.Edition) -> np.ndarray:
        return np.full(shape, 10, dtype=np.uint8)

    monkeypatch.setattr(mnist, "read_idx", arrays)
    with pytest.raises(DataError, match="label 10"):
        mnist.decode(MNIST, {name: tmp_path / name for name in NAMES})
