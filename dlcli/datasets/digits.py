"""The 1,797 real handwritten digits of 8 x 8 pixels that scikit-learn brings along: no file, no network.

They are the test part of UCI "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998), 43 writers.
"""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np

from dlcli.datasets.batches.examples import Data, in_memory, stratified_test
from dlcli.errors import EnvironmentFault

TEST_FRACTION = 0.2


def read_digits() -> Data:
    """Images (N, 1, 8, 8), pixel values 0..16 scaled to 0..255; a fixed fifth of every class is the test split.

    Reads the package's own file rather than through sklearn.datasets, whose import takes 1.8 CPU-seconds.
    """
    with gzip.open(digits_file(), "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    images = np.round(table[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    labels = table[:, 64].astype(np.int64)
    is_test = stratified_test(labels, TEST_FRACTION)
    return Data(
        classes=tuple("0123456789"),
        train=in_memory(images[~is_test], labels[~is_test]),
        test=in_memory(images[is_test], labels[is_test]),
    )


def digits_file() -> Path:
    spec = importlib.util.find_spec("sklearn")  # finds the folder without running the package
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            return path
    raise EnvironmentFault("scikit-learn's file of handwritten digits is missing.", hint="pip install scikit-learn")
