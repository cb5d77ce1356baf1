"""Whether a training that others do better than goes on: asked between steps, behind each evaluation."""

from __future__ import annotations

from typing import Protocol


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
