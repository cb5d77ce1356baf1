"""The versions and the commit that a run was made with."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

import dlcli
from dlcli.errors import printable


def origin(version: object) -> str:
    """A hint for a stored config that cannot be used: which dlcli wrote it, and what to do."""
    if version == dlcli.__version__:
        return f"This version of dlcli ({version}) did not write it like this; train the run again: dlcli train"
    newer = f"pip install dlcli=={printable(version, limit=20)} reads it, or train the run again: dlcli train"
    return f"It was written by dlcli {printable(version, limit=20)}, this is {dlcli.__version__}: {newer}"


def writer(record: Mapping[str, Any]) -> object:
    """The version of dlcli that wrote a run's record; None where it does not say."""
    said = record.get("versions")
    return said.get("dlcli") if isinstance(said, Mapping) else None


@cache
def versions() -> dict[str, str]:
    """Read the versions of dlcli, Python and the libraries that decide the bits, without importing them."""
    found = {"dlcli": dlcli.__version__, "python": platform.python_version(), "platform": sys.platform}
    for package in ("torch", "torchvision", "numpy", "hydra-core"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@cache  # of the code that runs, whatever is committed meanwhile
def git_commit() -> dict[str, Any] | None:
    """Commit of the working directory and whether files differ from it; None outside a repository."""

    def ask(*words: str) -> str:
        command = ["git", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None
