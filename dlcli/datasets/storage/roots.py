"""The folders where data are found and kept: dataset.root, $DLCLI_DATA, ./data, then the cache of downloads.

Imports neither torch nor numpy: the command line asks here before anything heavy is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from dlcli.errors import DataError, printable


def data_roots(root: str | os.PathLike[str] | None) -> list[Path]:
    """The folders to search, in order. A `root` that does not exist is an error; the others may be absent."""
    roots: list[Path] = []
    if root is not None:
        given = Path(root).expanduser()
        if not given.exists():
            raise DataError(
                f"dataset.root={printable(root)} does not exist.",
                hint="Give a folder that exists, or leave it out to search $DLCLI_DATA and ./data.",
            )
        roots.append(given)
    if os.environ.get("DLCLI_DATA"):
        roots.append(Path(os.environ["DLCLI_DATA"]).expanduser())
    return [*roots, Path("data"), download_folder()]


def cache_folder() -> Path:
    """`$DLCLI_CACHE`, else `$XDG_CACHE_HOME/dlcli`, else `~/.cache/dlcli`. It need not exist."""
    if os.environ.get("DLCLI_CACHE"):
        return Path(os.environ["DLCLI_CACHE"]).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path("~/.cache").expanduser()) / "dlcli"


def download_folder() -> Path:
    return cache_folder() / "downloads"


def find_under(roots: Sequence[Path], names: Iterable[str]) -> Path | None:
    """The first `root/name` that exists, roots first; a name of "" is the root itself."""
    names = list(names)
    for root in roots:
        for name in names:
            if exists(root / name):
                return root / name
    return None


def exists(path: Path) -> bool:
    """Like Path.exists, but a file in a folder without access counts as absent."""
    try:
        return path.exists()
    except OSError:
        return False


def missing(what: str, expected: str, roots: Sequence[Path], *, name: str, reason: str) -> DataError:
    """The error for a data set that is in no root: the expected file, the folders searched, and the ways out.

    reason: why it was not downloaded, as a clause.
    """
    looked = ", ".join(str(root.absolute()) for root in roots)
    return DataError(
        f"{what} was not found: expected {expected} in one of {looked}; {reason}.",
        hint=f"Put it there or give the folder that holds it: dlcli train {name} dataset.root=PATH. "
        "Without any file or network: dlcli train digits",
    )
