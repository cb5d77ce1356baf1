"""Small data of our own making, and the real files where $DLCLI_DATA has them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dlcli.datasets.batches.examples import LabelledImages, in_memory


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data cache of its own for every test, and no ./data."""
    monkeypatch.setenv("DLCLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


@pytest.fixture
def real_data() -> Path:
    """The folder of real data sets. It is `$DLCLI_DATA` as it was when the tests were started."""
    folder = os.environ.get("DLCLI_DATA")
    if not folder or not (Path(folder) / "MNIST" / "raw").is_dir():
        pytest.skip("DLCLI_DATA does not name a folder with MNIST/raw")
    return Path(folder)


@pytest.fixture
def examples() -> LabelledImages:
    """100 random images of 3 x 6 x 5, labels 0..9."""
    return random_examples(100)


def random_examples(count: int, shape: tuple[int, int, int] = (3, 6, 5)) -> LabelledImages:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, *shape), dtype=np.uint8)
    return in_memory(images, np.arange(count, dtype=np.int64) % 10)


@pytest.fixture
def write_images(tmp_path: Path) -> Callable[..., Path]:
    """write_images({"train/cat": 4, ...}) writes so many PNGs of 9 x 7 to each folder; returns the folder around."""

    def write(counts: dict[str, int], *, to: str = "images") -> Path:
        random = np.random.default_rng(0)
        for name, count in counts.items():
            folder = tmp_path / to / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = random.integers(0, 256, (7, 9, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number:03}.png")
        return tmp_path / to

    return write
