"""Files and what can go wrong with them: written whole or not at all, read in bounds, and errors that name a remedy."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from dlcli.errors import EnvironmentFault, printable

MAX_JSON_BYTES = 4_000_000


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside, flush to the disk, rename: a reader sees the old content or the new, never a part."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise environment_fault(error, path, "cannot be written") from error


_REMEDIES = {
    errno.ENOSPC: "The disk is full: free some space, or name another place with --outputs DIR.",
    errno.EDQUOT: "Your disk quota is used up: free some space, or name another place with --outputs DIR.",
    errno.EROFS: "The file system is read-only: name another place with --outputs DIR.",
    errno.EACCES: "You may not write there: name another place with --outputs DIR.",
    errno.EPERM: "You may not write there: name another place with --outputs DIR.",
    errno.ENAMETOOLONG: "The path is too long: name a shorter place with --outputs DIR.",
    errno.EEXIST: "A file or a broken link has this name: name another place with --outputs DIR.",
    errno.ENOTDIR: "A part of that path is a file: name another place with --outputs DIR.",
    errno.ENOENT: "The folder is gone or cannot be made there: name another place with --outputs DIR.",
}


def environment_fault(error: OSError, path: Path, what: str) -> EnvironmentFault:
    """Turn an OSError into an error with the path and a remedy."""
    hint = _REMEDIES.get(error.errno or 0, "Name another place with --outputs DIR.")
    return EnvironmentFault(f"{printable(path)}: {what} ({error.strerror or error})", hint=hint)


def read_json(path: Path) -> dict[str, Any] | None:
    """Read the object in a JSON file; None if it is missing, damaged, or something else."""
    try:
        with open(path, "rb") as file:
            content = json.loads(file.read(MAX_JSON_BYTES + 1))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def discard(folder: Path) -> None:
    """Delete so that a kill half-way leaves nothing that looks whole: first renamed, then emptied."""
    hidden = folder.parent / f".old-{folder.name.lstrip('.')}"
    with contextlib.suppress(OSError):
        if folder.is_symlink() or folder.is_file():
            folder.unlink()
            return
        if folder != hidden:
            os.rename(folder, hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def flock(fd: int, patience_s: float, *, shared: bool = False) -> bool:
    """Try to lock; False while another holds it. A file system without locks locks nothing and stops nobody."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                return True
            raise
