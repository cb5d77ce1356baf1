"""Where a sweep's workers are started: on this machine, or by a cluster, as `launcher=` says in the command.

    launcher=local                                     processes here (the default; see local.py)
    launcher=slurm launcher.partition=gpu              jobs of Slurm, through submitit
    launcher=ray launcher.address=auto                 tasks of Ray

Wherever it runs, a worker is the same process; it needs the sweep's folder, or a ledger that machines share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from dlcli.errors import ConfigError, DlcliError, nearest, printable
from dlcli.sweep.definition import Definition
from dlcli.sweep.local import Workers

LAUNCHERS = ("local",)


class StartedWorkers(Protocol):
    """What the overseer needs of workers, wherever they run."""

    count: int
    notes: list[str]

    def start(self) -> None: ...

    def watch(self, *, has_news: bool, stopping: bool) -> bool:
        """Start again what has died; whether any is at work, or waits to be. has_news: of a trial since last time."""

    def stop(self, number: int) -> None:
        """Send a signal to all: SIGTERM lets them save."""

    def fault(self) -> DlcliError | None:
        """What a worker that could not go on has said, once none is left."""


@dataclass(frozen=True)
class Launch:
    """name: of LAUNCHERS; settings: what `launcher.KEY=VALUE` words say."""

    name: str = "local"
    settings: dict[str, Any] = field(default_factory=dict)

    def workers(self, folder: Path, definition: Definition, count: int, storage: str | None) -> StartedWorkers:
        return Workers(folder, count, storage)


def read_launch(words: Sequence[str]) -> tuple[list[str], Launch]:
    """The words without those of the launcher, and what these say. ConfigError for what is wrong with them."""
    rest = [word for word in words if not word.startswith(("launcher=", "launcher."))]
    name = "local"
    for word in words:
        if word.startswith("launcher="):
            name = word.partition("=")[2]
    if name not in LAUNCHERS:
        better = nearest(name, LAUNCHERS)
        hint = f"{f'Did you mean launcher={better}? ' if better else ''}({', '.join(LAUNCHERS)})"
        raise ConfigError(f"launcher={printable(name)}: there is no such launcher", hint=hint)
    return rest, Launch(name)
