"""Fetching one file of known checksum, within a bounded time: a few tries, each with a time limit, never a hang."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path

from dlcli.errors import DataError, printable

TRIES = 2
SILENCE_S = 5.0  # a connection that sends nothing for so long is given up
SLOWEST_BYTES_PER_S = 200_000  # the time limit of a try is SILENCE_S + size / this


def download(urls: Sequence[str], target: Path, *, md5: str, size_limit: int) -> Path:
    """Fetch `target` from the first of `urls` that works; the file appears whole and verified, or not at all.

    torchvision's own download_url has no time limit: a dropped connection would hang the run.
    """
    reasons = []
    for attempt in range(max(TRIES, len(urls))):
        url = urls[attempt % len(urls)]
        try:
            return fetch(url, target, checksum=f"md5:{md5}", size_limit=size_limit)
        except (OSError, ValueError) as error:  # URLError, timeouts and a full disk are OSErrors
            reasons.append(f"{url}: {getattr(error, 'reason', None) or error}")
    raise DataError(
        f"the download of {target.name} failed (no network, or the server is away): "
        + "; ".join(dict.fromkeys(reasons)),
        hint="Give the folder that holds the files: dataset.root=PATH. Without any file or network: dlcli train digits",
    )


def fetch(url: str, target: Path, *, checksum: str, size_limit: int) -> Path:
    """One try. Raises OSError or ValueError, and then leaves no file.

    checksum: md5:DIGEST or sha256:DIGEST, or the first digits of it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + SILENCE_S + size_limit / SLOWEST_BYTES_PER_S
    algorithm, _, expected = checksum.partition(":")
    digest = hashlib.new(algorithm, usedforsecurity=False)
    request = urllib.request.Request(url, headers={"User-Agent": "dlcli"})
    handle, unfinished = tempfile.mkstemp(prefix=".unfinished-", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file, urllib.request.urlopen(request, timeout=SILENCE_S) as response:
            received = 0
            while chunk := response.read(1 << 16):
                received += len(chunk)
                digest.update(chunk)
                file.write(chunk)
                if received > size_limit:
                    raise ValueError(f"more than the expected {size_limit:,} bytes")
                if time.monotonic() > deadline:
                    raise TimeoutError(f"only {received:,} bytes in the time allowed")
        if not digest.hexdigest().startswith(expected):
            message = f"the {received:,} bytes received have {algorithm.upper()} {digest.hexdigest()}, not {expected}"
            raise ValueError(message)
        os.replace(unfinished, target)
    except HTTPException as error:  # not an OSError: the other side is not a web server, or it stopped in the middle
        raise ConnectionError(f"{type(error).__name__}: {printable(error, limit=80)}") from error
    finally:
        Path(unfinished).unlink(missing_ok=True)
    return target
