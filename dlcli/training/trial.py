"""What a run of a sweep has besides: whether it goes on while others do better is asked behind each evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from dlcli.runs.folder import RunFolder


class Pruned(Exception):
    """Raised where a training stands still at a clean step: it is stopped, since others do better."""


class Pruner(Protocol):
    def look(self, evaluation: int, score: float | None) -> None:
        """Raise Pruned to stop. evaluation: its number, from 1; score: of trainer.monitor, None when not finite."""


class Never:
    """For a run of its own, which nothing is compared with."""

    def look(self, evaluation: int, score: float | None) -> None:
        pass


NEVER = Never()


@dataclass(frozen=True)
class Trial:
    """What a run of a sweep has besides: who stops it early, and who feeds W&B from it.

    save_gap_s: least seconds between two checkpoints. It is neither scored on the test split, which nothing is selected
    on, nor drawn: the sweep draws those that it keeps.
    """

    pruner: Pruner
    feed: Callable[[RunFolder, dict[str, Any]], object]
    save_gap_s: float
