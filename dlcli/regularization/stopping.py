"""Early stopping (Prechelt 1998), a pure function of the scores so far."""

from __future__ import annotations

from collections.abc import Sequence


def best_index(scores: Sequence[float | None], min_delta: float = 0.0) -> int | None:
    """Position of the best score, larger is better; None stands for NaN and is never best.

    Better means by more than min_delta.
    """
    best: int | None = None
    highest = float("-inf")
    for i, score in enumerate(scores):
        if score is not None and (best is None or score > highest + min_delta):
            best, highest = i, score
    return best


def should_stop(scores: Sequence[float | None], *, patience: int | None, min_delta: float = 0.0) -> bool:
    """Whether the last `patience` scores brought nothing better; patience None never stops."""
    if patience is None or not scores:
        return False
    best = best_index(scores, min_delta)
    return len(scores) - 1 - (best if best is not None else -1) >= patience
