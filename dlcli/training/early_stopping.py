"""Early stopping (Prechelt 1998), a pure function of the scores so far."""

from __future__ import annotations

from collections.abc import Sequence


def best_index(
    scores: Sequence[float | None], losses: Sequence[float | None] = (), *, min_delta: float = 0.0
) -> int | None:
    """Return the position of the best score, larger is better; None means NaN and is never best.

    Better means by more than min_delta. losses: of the same evaluations; among equal scores the lower loss is better,
    so that a network whose BLEU is 0 for three epochs is not kept as it was after the first.
    """
    best: int | None = None
    highest = float("-inf")
    for i, score in enumerate(scores):
        if score is not None and (best is None or score > highest + min_delta or is_lower(losses, i, best, scores)):
            best, highest = i, score
    return best


def is_lower(losses: Sequence[float | None], i: int, best: int, scores: Sequence[float | None]) -> bool:
    """Return whether the scores are equal and the loss at i is below that at `best`."""
    if scores[i] != scores[best] or not losses:
        return False
    mine, other = losses[i], losses[best]
    return mine is not None and (other is None or mine < other)


def should_stop(scores: Sequence[float | None], *, patience: int | None, min_delta: float = 0.0) -> bool:
    """Return whether the last `patience` scores brought no improvement; patience None never stops."""
    if patience is None or not scores:
        return False
    best = best_index(scores, min_delta=min_delta)
    return len(scores) - 1 - (best if best is not None else -1) >= patience
