"""The versions and the commit that a run was made with."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
from functools import cache
from typing import Any

import dlcli


@cache
def versions() -> dict[str, str]:
    """Of dlcli, Python and what decides the bits; read from the packages' records, without importing them."""
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
