"""Trials of a sweep: after each evaluation, a trial may be stopped because others do better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from dlcli.runs.folder import RunFolder


class Pruned(Exception):
    """Raised at a clean step to stop a trial because others do better."""


class Pruner(Protocol):
    def look(self, evaluation: int, score: float | None) -> None:
        """Raise Pruned to stop. evaluation: its number, from 1; score: of trainer.monitor, None when not finite."""


class Never:
    """Do nothing: for a single run, which is not compared with others."""

    def look(self, evaluation: int, score: float | None) -> None:
        pass


NEVER = Never()


@dataclass(frozen=True)
class Trial:
    """The extras of a trial: who stops it early, and who feeds W&B from it.

    save_gap_s: least seconds between two checkpoints. A trial is not scored on the test split, since the sweep selects
    among trials, and not drawn: the sweep draws those that it keeps.
    """

    pruner: Pruner
    feed: Callable[[RunFolder, dict[str, Any]], object]
    save_gap_s: float
