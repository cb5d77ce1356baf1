"""What every test may use: a small run, the real data where they lie."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from program import train_quickly

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # started in a script's background: its children would ignore Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def quick_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished two-epoch run on the digits; copy it before changing anything in it."""
    return Path(train_quickly(tmp_path_factory.mktemp("quick"))["run"])


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with real data; a test that needs it is skipped where it is not given."""
    root = os.environ.get("DLCLI_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("needs real data: set DLCLI_DATA to a folder that holds MNIST/raw/*.gz")
    return Path(root).resolve()
