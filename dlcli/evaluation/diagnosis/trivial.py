"""What those score who have learned nothing: always the mean, an empty transcript, one class for every pixel.

Accuracy is not among them: the score of guessing follows from the number of classes, in reasons.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import log
from typing import Any

from dlcli.evaluation.diagnosis.evidence import Evidence, number

EMPTY = 0.98  # character error rate: an empty transcript has 1
TRANSCRIBED = 0.8  # "eie" has 0.70 of the words zero to nine; of five sentences, one for all has 0.73 to 1.09
TRANSLATED = 1.0  # BLEU, of 100: a sentence of the commonest words has less
FOUND = 0.01  # mean average precision
ABOVE_ONE_CLASS = 1.1  # times its mean IoU: of two classes, the second is then hit by a tenth
BELOW_GUESSING = 0.95  # of its bits: counting characters brings Tiny Shakespeare to 0.79


@dataclass(frozen=True)
class Trivial:
    """answer: in words; figures: what the run got, and what this answer gets."""

    answer: str
    figures: Mapping[str, Any]


def no_better(e: Evidence) -> Trivial | None:
    """The trivial answer that the run's best validation score does not beat; None where it does, or none is known."""
    return next((found for look in ANSWERS if (found := look(e))), None)


def the_mean(e: Evidence) -> Trivial | None:
    """R squared measures against it: 0, and worse below."""
    found = e.series("val/r2")
    if not found or max(found) > 0:
        return None
    return Trivial("always answering with the mean", _told(e, "r2", max(found)) | {"r2 of the mean": 0.0})


def an_empty_transcript(e: Evidence) -> Trivial | None:
    found = e.series("val/cer")
    if not found or min(found) < TRANSCRIBED:
        return None
    answer = "an empty transcript" if min(found) >= EMPTY else "the same transcript for everything"
    return Trivial(answer, _told(e, "cer", min(found)) | {"cer of empty transcripts": 1.0})


def no_translation(e: Evidence) -> Trivial | None:
    found = e.series("val/bleu")
    if not found or max(found) >= TRANSLATED:
        return None
    message = _told(e, "bleu", max(found)) | {"bleu of a right translation": 100.0}
    return Trivial("writing anything, whatever is asked", message)


def no_box(e: Evidence) -> Trivial | None:
    found = e.series("val/map50")
    if not found or max(found) >= FOUND:
        return None
    return Trivial("finding nothing", _told(e, "map50", max(found)) | {"map50 of finding nothing": 0.0})


def one_class_everywhere(e: Evidence) -> Trivial | None:
    """Its IoU is its share of the pixels, which is then the accuracy, and those of the other classes are 0. The
    commonest class has at least its share of all classes.
    """
    found, accuracies = e.series("val/mean_iou"), e.series("val/accuracy")
    num_classes = number(e.prepared.get("classes")) or number(e.setting("dataset.num_classes"))
    if not found or len(accuracies) != len(found) or not num_classes:
        return None
    best = found.index(max(found))
    of_one = max(accuracies[best], 1 / num_classes) / num_classes
    if found[best] > ABOVE_ONE_CLASS * of_one:
        return None
    message = _told(e, "mean_iou", found[best]) | {"mean_iou of one class at least": of_one}
    return Trivial("one class for every pixel", message)


def guessing_tokens(e: Evidence) -> Trivial | None:
    """Every token as likely as any other. How often each occurs, a far better guess, is not known here."""
    bits, losses = e.series("val/bits_per_character"), e.series("val/loss")
    num_tokens = number(e.setting("dataset.num_tokens"))
    if not bits or len(losses) != len(bits) or not num_tokens or num_tokens < 2:
        return None
    best = bits.index(min(bits))
    guessing = bits[best] * log(num_tokens) / losses[best] if losses[best] > 0 else 0.0
    if bits[best] < BELOW_GUESSING * guessing:
        return None
    message = _told(e, "bits_per_character", bits[best]) | {"with every token alike": guessing}
    return Trivial("every token being as likely as any other", message)


ANSWERS: tuple[Callable[[Evidence], Trivial | None], ...] = (
    the_mean, an_empty_transcript, no_translation, no_box, one_class_everywhere, guessing_tokens,
)  # fmt: skip


def _told(e: Evidence, metric: str, best: float) -> dict[str, Any]:
    return {f"best val {metric}": best, f"last val {metric}": e.last(f"val/{metric}")}
