"""What happened, as events: appended to the run's `events.jsonl`, and shown by one display.

The file is the truth; console, JSON and W&B are readers of it. Every line is written through at once, so that a killed
process loses nothing. A file that cannot be written any more (disk full) is said once and never stops the training.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from dlcli.config.renamed import renamed_record
from dlcli.runs.redaction import find_secrets, redact


class Display(Protocol):
    def event(self, event: dict[str, Any]) -> None:
        """Show one event of the run."""

    def progress(self, step: int, loss: Callable[[], float]) -> None:
        """`step` updates are done. `loss` waits for the device, so it is called only when something is drawn."""

    def close(self) -> None:
        """Leave the terminal as it was found; may be called more than once."""


# ------------------------------------------------------------------------------------------------------------ displays


class Silent:
    """Shows nothing: on ranks that others speak for."""

    def event(self, event: dict[str, Any]) -> None:
        pass

    def progress(self, step: int, loss: Callable[[], float]) -> None:
        pass

    def close(self) -> None:
        pass


class Recorder:
    """Writes events to `path` and hands them to `display`."""

    def __init__(self, path: Path, display: Display):
        self.path, self.display = path, display
        self.file = path.open("ab", buffering=0)
        self.has_failed = False
        self.secrets = find_secrets()

    def emit(self, event: str, **facts: Any) -> None:
        """Record one event: plain data, secrets taken out."""
        line: dict[str, Any] = redact({"event": event, **facts}, self.secrets)
        self._write(json.dumps(finite(line), ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
        self.display.event(line)

    def note(self, message: str, hint: str | None = None) -> None:
        self.emit("note", message=message, hint=hint)

    def warn(self, message: str, hint: str | None = None) -> None:
        self.emit("warning", message=message, hint=hint)

    def length(self) -> int:
        """Return the bytes of the file so far: a checkpoint keeps the number, and a resume cuts what came later."""
        return self.file.tell() if not self.has_failed else os.path.getsize(self.path)

    def cut(self, length: int) -> None:
        self.file.truncate(length)
        self.file.seek(0, os.SEEK_END)

    def close(self) -> None:
        self.file.close()

    def _write(self, data: bytes) -> None:
        if self.has_failed:
            return
        try:
            if self.file.write(data) != len(data):
                raise OSError("the disk took a part of a line")
        except OSError as error:
            self.has_failed = True
            message = f"events.jsonl cannot be written any more: {error}; the training goes on without it"
            self.display.event({"event": "warning", "message": message, "hint": "Free some space."})


class Unheard(Recorder):
    """The recorder of the other ranks: only rank 0 records events."""

    def __init__(self) -> None:
        self.display, self.secrets, self.has_failed = Silent(), find_secrets(), False

    def emit(self, event: str, **facts: Any) -> None:
        pass

    def length(self) -> int:
        return 0

    def cut(self, length: int) -> None:
        pass

    def close(self) -> None:
        pass


def finite(value: Any) -> Any:
    """Replace NaN and infinities by null: JSON does not have them."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    return [finite(v) for v in value] if isinstance(value, list) else value


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a run, in order, their settings in today's names.

    None if there is no file; a torn last line is left out.
    """
    try:
        file = path.open("rb")
    except OSError:
        return
    with file:
        for line in file:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                yield renamed_record(event) if event.get("event") == "run_started" else event


def now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
