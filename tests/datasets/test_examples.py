"""Splits, roots, digits and the cache of decoded images."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dlcli.datasets.batches.examples import content_fingerprint, split_validation
from dlcli.datasets.digits import read_digits
from dlcli.datasets.storage.image_cache import Images, cached_images
from dlcli.datasets.storage.roots import cache_folder, data_roots, find_under
from dlcli.errors import ConfigError

KEY = "0123456789abcdef" * 4


def test_validation_split_is_a_partition_that_the_seed_decides() -> None:
    train, val = split_validation(100, 20, seed=3)
    assert len(val) == 20 and torch.cat([train, val]).sort().values.equal(torch.arange(100))
    assert val.equal(split_validation(100, 20, seed=3)[1]) and not val.equal(split_validation(100, 20, seed=4)[1])
    assert len(split_validation(100, 0, seed=3)[1]) == 0


@pytest.mark.parametrize("val_size", [-1, 100, 101])
def test_validation_split_leaves_something_to_train_on(val_size: int) -> None:
    with pytest.raises(ConfigError, match=str(val_size)):
        split_validation(100, val_size, seed=0)


def test_reading_and_splitting_leave_the_global_generators_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
    split_validation(100, 20, seed=3)
    read_digits()
    assert torch.get_rng_state().equal(before[0]) and np.random.get_state()[1].tolist() == before[1]  # type: ignore[index]


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    theirs, ours = load_digits(), read_digits()
    assert ours.train.images is not None and ours.test.images is not None
    pixels = torch.cat([ours.train.images, ours.test.images]).flatten(1)
    labels = torch.cat([ours.train.labels, ours.test.labels])
    expected = np.round(theirs.data * 255 / 16).astype(np.uint8)
    order, their_order = np.lexsort(pixels.numpy().T), np.lexsort(expected.T)
    assert (pixels.numpy()[order] == expected[their_order]).all() and (
        labels.numpy()[order] == theirs.target[their_order]
    ).all()
    assert (len(ours.train), len(ours.test)) == (1438, 359) and pixels.max() == 255
    counts = ours.test.labels.bincount()
    assert counts.min() >= 34 and counts.max() <= 37, "every class gives a fifth"


def test_digits_are_read_without_importing_scikit_learn() -> None:
    code = "import sys; from dlcli.datasets.digits import read_digits; read_digits(); print('sklearn' in sys.modules)"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_names_are_found_without_importing_torch() -> None:
    modules = "dlcli.datasets.files.image_tree, dlcli.datasets.storage.roots"
    code = f"import sys, {modules}; print({{'torch', 'numpy', 'PIL'}} & {{*sys.modules}})"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_roots_are_searched_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLCLI_DATA", str(tmp_path / "shared"))
    (tmp_path / "mine").mkdir()
    roots = data_roots(str(tmp_path / "mine"))
    assert roots == [tmp_path / "mine", tmp_path / "shared", Path("data"), tmp_path / "cache" / "downloads"]
    for root in reversed(roots):
        root.mkdir(parents=True, exist_ok=True)
        (root / "file").touch()
        assert find_under(roots, ["absent", "file"]) == root / "file"


def test_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("DLCLI_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "dlcli"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "dlcli"


def decoded() -> Images:
    images = np.arange(4 * 1 * 3 * 3, dtype=np.uint8).reshape(4, 1, 3, 3)
    labels = np.array([0, 1, 0, 1])
    return Images(("a", "b"), {"train": (images, labels), "test": (images[:2], labels[:2])})


def refuse() -> Images:
    raise AssertionError("decoded again")


def stored_file(cache: Path, name: str) -> Path:
    (path,) = (cache / "decoded").glob(f"*/{name}")
    return path


def test_cache_gives_back_what_was_decoded() -> None:
    first, second = cached_images("x", KEY, decoded), cached_images("x", KEY, refuse)
    assert first.train.images is not None and second.train.images is not None
    assert second.train.images.equal(first.train.images) and second.classes == ("a", "b")
    assert second.train.read(3).equal(first.train.images[3])
    assert second.train.fingerprint == content_fingerprint(*decoded().splits["train"])


def test_writing_to_a_mapped_image_does_not_reach_the_cache() -> None:
    cached_images("x", KEY, decoded)
    images = cached_images("x", KEY, refuse).train.images
    assert images is not None
    images.zero_()
    again = cached_images("x", KEY, refuse).train.images
    assert again is not None and again.any()


@pytest.mark.parametrize("damage", ["cut", "flip", "meta", "gone"])
def test_a_damaged_cache_is_written_anew(damage: str, cache: Path) -> None:
    cached_images("x", KEY, decoded)
    path = stored_file(cache, "meta.json" if damage == "meta" else "train-images.npy")
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"cut": content[:-5], "flip": content[:-1] + b"\xff", "meta": b"{"}[damage])
    images = cached_images("x", KEY, decoded).train.images
    assert images is not None and images.flatten().tolist() == list(range(36))
    assert cached_images("x", KEY, refuse).train.images is not None, "it is whole again"


def test_a_cache_that_cannot_be_written_does_not_fail_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "occupied").write_text("a file where the folder should be")
    monkeypatch.setenv("DLCLI_CACHE", str(tmp_path / "occupied"))
    images = cached_images("x", KEY, decoded).train.images
    assert images is not None and images.shape == (4, 1, 3, 3)


def test_a_full_disk_leaves_nothing_half_written(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert len(cached_images("x", KEY, decoded).train) == 4
    assert list((cache / "decoded").iterdir()) == []


def test_leftovers_of_a_killed_run_are_removed_after_a_day(cache: Path) -> None:
    for name, age_s in (("old", 100_000), ("young", 10)):
        folder = cache / "decoded" / f".unfinished-{name}"
        folder.mkdir(parents=True)
        os.utime(folder, (folder.stat().st_mtime - age_s,) * 2)
    cached_images("x", KEY, decoded)
    assert [path.name for path in (cache / "decoded").glob(".*")] == [".unfinished-young"]
