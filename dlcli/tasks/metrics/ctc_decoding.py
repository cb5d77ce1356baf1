"""Turns the frames of a recogniser into text, and measures its distance from the transcript.

Letters: B recordings, F frames, V characters, of which 0 is the blank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

BLANK = 0
NEVER = -math.inf
Reading = tuple[tuple[int, ...], float]  # the characters, and the logarithm of their probability


def greedy(scores_BFV: Tensor, frames_B: Tensor) -> list[list[int]]:
    """The best character of each frame, repetitions joined, blanks removed (Graves et al. 2006, section 3.2)."""
    best_BF = scores_BFV.argmax(2).tolist()
    return [collapse(best_F[:num_frames]) for best_F, num_frames in zip(best_BF, frames_B.tolist(), strict=True)]


def collapse(path: Sequence[int]) -> list[int]:
    """The text of an alignment, which has one character or blank per frame."""
    before = [BLANK, *path]
    return [c for last, c in zip(before, path, strict=False) if c not in (last, BLANK)]


def beam_search(log_probs_FV: np.ndarray, width: int) -> list[Reading]:
    """Up to `width` readings, the most probable first, each summed over its alignments (Hannun et al. 2014, without a
    language model).

    In each frame the `width` best beginnings continue with its `width` most probable characters. This is exact if
    `width` is at least the number of beginnings; otherwise a probability sums only the alignments that were found.
    """
    beams: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, NEVER)}  # ending in a blank, in a character
    for log_probs_V in log_probs_FV:
        scores = log_probs_V.tolist()
        likely = [c for c in np.argsort(-log_probs_V, kind="stable").tolist() if c != BLANK][:width]
        found: dict[tuple[int, ...], tuple[float, float]] = {}
        for beginning, (blank, character) in beams.items():
            total = log_add(blank, character)
            last = beginning[-1] if beginning else None
            again = NEVER if last is None else character + scores[last]
            add(found, beginning, total + scores[BLANK], again)
            for c in likely:  # a repeated character needs a blank between
                add(found, (*beginning, c), NEVER, (blank if c == last else total) + scores[c])
        best = sorted(found.items(), key=lambda item: -log_add(*item[1]))
        beams = dict(best[:width])
    return [(text, log_add(*ends)) for text, ends in beams.items()]


def add(found: dict[tuple[int, ...], tuple[float, float]], text: tuple[int, ...], blank: float, last: float) -> None:
    if blank == last == NEVER:
        return
    before = found.get(text, (NEVER, NEVER))
    found[text] = (log_add(before[0], blank), log_add(before[1], last))


def log_add(a: float, b: float) -> float:
    """log(e^a + e^b)."""
    low, high = (a, b) if a < b else (b, a)
    return high if low == NEVER else high + math.log1p(math.exp(low - high))


def edit_distance(one: Sequence[int], other: Sequence[int]) -> int:
    """The fewest insertions, deletions and substitutions that turn one into the other (Levenshtein 1966)."""
    other_V, place = np.asarray(other, dtype=np.int64), np.arange(len(other) + 1)
    row = place
    for i, item in enumerate(one, 1):
        kept = np.minimum(row[1:] + 1, row[:-1] + (other_V != item))
        # An insertion costs one more than the place before: a running minimum along the row.
        row = np.minimum.accumulate(np.concatenate([[i], kept]) - place) + place
    return int(row[-1])
