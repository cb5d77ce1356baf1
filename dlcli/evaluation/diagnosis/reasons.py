"""Why a run went as it did: reasons with their figures and a remedy each, read from its folder without torch.

A reason is a function of the evidence that gives a `Reason` or nothing. The training loss is a mean over an epoch,
with dropout, augmentation and label smoothing on: that it lies above the validation loss means nothing, and
only its own course, and a validation loss or accuracy that is worse, are judged. Thresholds were set on real runs of
digits, digits_gan, mnist and mnist_fast, good and bad ones; tests/test_diagnosis.py repeats them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import log, sqrt
from statistics import fmean
from typing import Any

from dlcli.evaluation.diagnosis.evidence import Evidence, number
from dlcli.evaluation.diagnosis.remedies import (
    larger,
    less_augmentation,
    more_regularization,
    smaller,
    smaller_lr,
    sweep_of,
)
from dlcli.evaluation.diagnosis.trivial import no_better

Figures = Mapping[str, Any]

FEWEST = 5  # evaluations before their course says anything
RISE = 0.2  # of the smoothed validation loss above its lowest: noise of 144 examples makes 0.08
FALL = 0.05  # of the training loss meanwhile: below that, nothing was bought with the rise
GAP = 0.05  # of accuracy between training and validation: well-trained digits have 0.02, MNIST 0.01
LOW = 0.9  # accuracy: below it, on both splits alike, the network does not even fit what it sees
CHANCE = 0.055  # of what guessing gets wrong, got right: 0.15 for ten classes, 0.53 for two
BLOWN = 1.5  # times the loss of guessing, ln K: a network begins there, and a rate that suits it does not leave upwards
CLIMB = 0.1  # of the way that the training loss had come down, climbed up again at the end
RESTART = 0.1  # of the highest rate, by which it rose again: a limit of time makes a schedule waver
FALLING = 0.1  # of all that the loss fell, in the last fifth: even falling has 0.2, a plateau less than 0.05
BROUGHT = 0.05  # of all that the score gained, in the last fifth of the run
IDLE = 0.6  # of the run after its best evaluation: noise on a plateau puts the best at about half
LEAST_S = 1.0  # nobody waits for less
WAITING, EVALUATING, SAVING = 0.25, 0.25, 0.15  # of the training's time; ordinary runs have 0.06, 0.07, 0.03
FEW_EPOCHS = 2  # too few to tell a slow start from a plateau


@dataclass(frozen=True)
class Reason:
    """figures: name -> number or word; remedy: a command to try; weight: in [0, 1], the largest is shown first."""

    title: str
    figures: Figures
    remedy: str
    weight: float


def diagnose(evidence: Evidence) -> list[Reason]:
    """The reasons, the weightiest first; none where nothing stands out."""
    found = [reason for look in REASONS if (reason := look(evidence))]
    return sorted(found, key=lambda reason: -reason.weight)


def vital_figures(e: Evidence) -> Figures:
    """What is looked at first in any run: the best score, both losses and accuracies at the end, where time went."""
    best = e.best()
    figures: dict[str, Any] = {"epochs": e.epochs_done()}
    if best is not None:
        monitor = str(e.prepared.get("monitor"))
        figures |= {f"best {words(monitor)}": e.series(monitor)[best], "at epoch": e.epochs()[best]}
    ends = {name: e.last(name) for name in ("train/loss", "val/loss", "train/accuracy", "val/accuracy")}
    figures |= {f"last {words(name)}": value for name, value in ends.items() if value is not None}
    return figures | {f"{name} share": e.share(name) for name in e.seconds() if name != "device"}


# ------------------------------------------------------------------------------------------------- how the run ended


def diverged(e: Evidence) -> Reason | None:
    """The loss, the weights or the gradients were no numbers any more."""
    signs = ("the loss is nan", "the loss is inf", "the loss is -inf", "are not finite", "the gradients overflow")
    if e.status != "failed" or not any(sign in e.reason for sign in signs):
        return None
    message = sorted((*e.evaluations, *e.values), key=lambda each: number(each.get("step")) or 0)
    losses = [loss for each in message if (loss := _train_loss(each)) is not None]
    figures = {"reason": e.reason, "step": e.summary.get("step"), "lr": e.setting("optimizer.lr")}
    figures |= {"last finite train loss": losses[-1]} if losses else {"last finite train loss": "none was recorded"}
    return Reason("It diverged: the loss is not a number any more", figures, smaller_lr(e), 1.0)


def out_of_memory(e: Evidence) -> Reason | None:
    if e.status != "failed" or not e.reason.startswith("out of memory"):
        return None
    batch, accumulate = e.setting("dataset.batch_size", 2), e.setting("trainer.accumulate_grad_batches", 1)
    half = max(1, batch // 2)
    same = -(-batch * accumulate // half)
    halved = e.again(f"dataset.batch_size={half}", f"trainer.accumulate_grad_batches={same}")
    remedy = halved if half < batch else smaller(e)
    figures = {"reason": e.reason, "batch": batch, "device": e.prepared.get("device", "?")}
    return Reason("Memory did not suffice", _with_peak(e, figures), remedy, 1.0)


def failed(e: Evidence) -> Reason | None:
    """Whatever else ended it."""
    if e.status != "failed" or diverged(e) or out_of_memory(e):
        return None
    verb = "resume" if e.summary.get("checkpoint") else "runs show"  # with no checkpoint there is nothing to resume
    figures = {"reason": e.reason or "nothing", "epochs": e.epochs_done()}
    return Reason("It failed", figures, f"dlcli {verb} {e.name}", 1.0)


def cut_short(e: Evidence) -> Reason | None:
    """A signal, or a kill that left no word."""
    titles = {
        "interrupted": "It was interrupted before its end",
        "killed": "It was killed: no last word, as where memory runs out",
        "pruned": "It was stopped by its sweep: other trials were better at this point",
    }
    if e.status not in titles:
        return None
    figures = {"epochs": e.epochs_done(), "of": e.prepared.get("epochs") or "?"}
    if e.steps():
        figures["last evaluated step"] = e.steps()[-1]
    remedy = sweep_of(e) if e.status == "pruned" else f"dlcli resume {e.name}"
    return Reason(titles[e.status], _with_peak(e, figures), remedy, 0.95)


def stopped_early(e: Evidence) -> Reason | None:
    if e.status != "completed" or not e.summary.get("stopped_early"):
        return None
    patience = e.setting("regularization.early_stopping.patience", "?")
    figures = {"epochs": e.epochs_done(), "of": e.prepared.get("epochs") or "?"}
    figures |= {"best epoch": e.summary.get("best_epoch"), "patience": patience}
    return Reason("Early stopping ended it, as it was asked to", figures, e.longer(), 0.2)


def _with_peak(e: Evidence, figures: dict[str, Any]) -> dict[str, Any]:
    peak = number(e.summary.get("peak_memory_mb"))
    return figures if peak is None else figures | {"peak memory MB": round(peak)}


# ----------------------------------------------------------------------------------------------- what the curves say


def over_fitting(e: Evidence) -> Reason | None:
    """The training data are learned at the cost of others: the validation loss rises, or its accuracy stays behind."""
    rise, figures = _rise_of_val_loss(e)
    gap = _gap(e)
    if rise is None and gap is None:
        return None
    ends = {f"{split} accuracy": e.last(f"{split}/accuracy") for split in ("train", "val")}
    figures = {**figures, **{name: value for name, value in ends.items() if value is not None}}
    severity = max(rise or 0.0, 4 * (gap or 0.0))
    return Reason("Over-fitting", figures, more_regularization(e), min(0.9, 0.6 + 0.2 * severity))


def _rise_of_val_loss(e: Evidence) -> tuple[float | None, Figures]:
    """How far the validation loss has risen since its lowest, as a share of that, while the training loss fell; None
    where it has not. And the figures of both losses in any case that there are enough.
    """
    train, val = e.series("train/loss"), e.series("val/loss")
    if len(val) < FEWEST or len(train) != len(val):
        return None, {}
    best = val.index(min(val))
    figures = {
        "lowest val loss": val[best], "at epoch": e.epochs()[best], "val loss at the end": val[-1],
        "train loss then": train[best], "train loss at the end": train[-1],
    }  # fmt: skip
    train, val = smooth(train), smooth(val)
    best = val.index(min(val))
    if val[best] <= 0 or train[best] <= 0:  # not the losses of a classifier
        return None, figures
    rise, fall = val[-1] / val[best] - 1, 1 - train[-1] / train[best]
    return (rise if rise >= RISE and fall >= FALL else None), figures


def _gap(e: Evidence) -> float | None:
    """Training accuracy above validation accuracy, where that is more than two standard errors of the latter."""
    train, val = e.last("train/accuracy"), e.last("val/accuracy")
    if train is None or val is None or e.epochs_done() <= FEW_EPOCHS:
        return None
    return train - val if train - val > max(GAP, 2 * _standard_error(e, val)) else None


def _standard_error(e: Evidence, accuracy: float) -> float:
    num_examples = number(e.prepared.get("val_examples")) or 1.0
    return sqrt(max(0.0, accuracy * (1 - accuracy)) / num_examples)


def too_short(e: Evidence) -> Reason | None:
    """One or two epochs, and little learned: nothing else can be said about it."""
    if e.status != "completed" or not 0 < e.epochs_done() <= FEW_EPOCHS or lr_too_high(e):
        return None
    trivial = no_better(e)
    if not (_is_low(e) or trivial):
        return None
    figures = {"epochs": e.epochs_done(), **(trivial.figures if trivial else {}), **_learned(e)}
    figures["lr"] = e.setting("optimizer.lr")
    remedy = re.sub(r"trainer\.epochs=\d+", "trainer.epochs=10", e.longer())
    return Reason("It ended before it could learn much", figures, remedy, 0.8)


def nothing_learned(e: Evidence) -> Reason | None:
    """No better than guessing, or than an answer that needs no input, after some epochs."""
    if e.epochs_done() <= FEW_EPOCHS or lr_too_high(e) or diverged(e):
        return None
    if trivial := no_better(e):
        last = falling_share(_at_high_rate(e))
        figures = {**trivial.figures, **_learned(e), "of the loss's fall in the last fifth": last}
        remedy = e.longer() if last is not None and last >= FALLING else e.again(verb="tune lr")
        return Reason(f"Nothing was learned: no better than {trivial.answer}", figures, remedy, 0.85)
    if _best_accuracy(e) is None:
        return None
    guessing = 1 / _num_classes(e)
    if max(*e.series("train/accuracy"), *e.series("val/accuracy")) > guessing + CHANCE * (1 - guessing):
        return None
    figures = {"epochs": e.epochs_done(), **_learned(e), "guessing gets": guessing}
    figures["lr"] = e.setting("optimizer.lr")
    return Reason("Nothing was learned", figures, e.again(verb="tune lr"), 0.85)


def lr_too_high(e: Evidence) -> Reason | None:
    """The training loss climbs again, or it left the loss of guessing upwards and the network never got good."""
    losses = e.series("train/loss")
    if diverged(e):
        return None
    climbs = e.status == "completed" and len(losses) >= FEWEST and _climbs(smooth(losses)) and not _restarts(e)
    # by what the training loss is known to be the cross-entropy, of which guessing has log K
    is_classifier = _best_accuracy(e) is not None and bool(e.series("val/loss"))
    blown = bool(losses) and is_classifier and _is_low(e) and max(losses) > BLOWN * log(_num_classes(e))
    if not (climbs or blown):
        return None
    figures: dict[str, Any] = {"lr": e.setting("optimizer.lr"), "highest train loss": max(losses)}
    figures |= {"lowest": min(losses), "at the end": losses[-1]}
    figures |= {"guessing has": log(_num_classes(e))} if is_classifier else {}
    return Reason("The learning rate is too high", figures, smaller_lr(e), 0.9 if blown else 0.75)


def _climbs(losses: Sequence[float]) -> bool:
    lowest = min(losses)
    return losses[-1] - lowest > CLIMB * (losses[0] - lowest) and losses[-1] > (1 + CLIMB) * lowest > 0


def _restarts(e: Evidence) -> bool:
    """Whether the rate rose again after it had fallen: each time the loss climbs with it, as it is meant to."""
    rates = [rate for each in e.evaluations if (rate := number(each.get("lr"))) is not None]
    first_fall = next((i for i, (before, after) in enumerate(pairwise(rates), 1) if after < before), len(rates))
    fallen = rates[first_fall:]
    lowest = accumulate(fallen, min)  # so far
    return any(rate - least > RESTART * max(rates) for rate, least in zip(fallen, lowest, strict=True))


def under_fitting(e: Evidence) -> Reason | None:
    """Even the training data are not learned, and validation is not worse: too few epochs, or too small a network."""
    if e.epochs_done() <= FEW_EPOCHS or not _is_low(e) or _gap(e) or lr_too_high(e) or nothing_learned(e):
        return None
    last = falling_share(_at_high_rate(e))
    figures = {**_learned(e), "of the loss's fall in the last fifth": last}
    if last is None:
        return Reason("Under-fitting: not even the training data are learned", _learned(e), e.longer(), 0.7)
    if last >= FALLING:
        return Reason("Under-fitting: the loss was still falling when it ended", figures, e.longer(), 0.7)
    figures["parameters"] = e.prepared.get("parameters", "?")
    return Reason("Under-fitting: the loss no longer falls, so the network is too small", figures, larger(e), 0.7)


def slow_learning(e: Evidence) -> Reason | None:
    """Falling at an even pace all the way: the rate could have been larger."""
    if e.epochs_done() <= FEW_EPOCHS or not _is_low(e) or lr_too_high(e) or nothing_learned(e):
        return None
    last = falling_share(_at_high_rate(e))
    if last is None or last < 1.5 * FALLING:
        return None
    figures: dict[str, Any] = {
        "lr": e.setting("optimizer.lr"),
        "of the loss's fall in the last fifth": last,
        "even falling has": 0.2,
    }
    return Reason("The learning rate may be too small", figures, e.again(verb="tune lr"), 0.65)


def _largest_fall(scores: Sequence[float]) -> float:
    """The most that a score lost after one of its peaks: its swings, without any progress. 0 if it only rose."""
    peaks = accumulate(scores, max)
    return max((peak - score for peak, score in zip(peaks, scores, strict=True)), default=0.0)


def still_improving(e: Evidence) -> Reason | None:
    """The score was still getting better when the run ended."""
    scores = e.scores()
    if e.status != "completed" or len(scores) < FEWEST or e.summary.get("stopped_early"):
        return None
    if under_fitting(e) or nothing_learned(e) or lr_too_high(e):
        return None
    cut = len(scores) - max(1, len(scores) // 5)
    before, after = max(scores[:cut]), max(scores)
    gain, whole = after - before, after - scores[0]
    is_noise = gain <= max(BROUGHT * whole, BROUGHT * abs(before) if before < 0 else 0.0)
    monitor = str(e.prepared.get("monitor"))
    is_noise = is_noise or gain <= _largest_fall(scores[len(scores) // 2 :])
    if monitor.endswith("accuracy"):
        is_noise = is_noise or gain < 2 * _standard_error(e, after)
    if whole <= 0 or is_noise:
        return None
    figures: dict[str, Any] = {
        f"best {words(monitor)} in the first four fifths": abs(before),
        "in the last fifth": abs(after),
    }
    figures |= {"of all that was gained": gain / whole, "lr at the end": e.evaluations[-1].get("lr")}
    return Reason("It ended while it was still improving", figures, e.longer(), 0.5)


def longer_than_needed(e: Evidence) -> Reason | None:
    """The best evaluation lies far before the end."""
    best, steps = e.best(), e.steps()
    if best is None or len(steps) < 2 * FEWEST or e.status != "completed":
        return None
    if over_fitting(e) or nothing_learned(e) or lr_too_high(e):  # which say more of the same epochs
        return None
    idle = 1 - steps[best] / steps[-1] if steps[-1] else 0.0
    if idle < IDLE:
        return None
    monitor = str(e.prepared.get("monitor"))
    figures = {"best epoch": e.epochs()[best], "of": e.epochs()[-1], words(monitor): e.series(monitor)[best]}
    figures |= {"at the end": e.series(monitor)[-1], "share behind the best": idle}
    patience = max(5, best // 2)
    remedy = e.again(f"regularization.early_stopping.patience={patience}")
    return Reason("It trained longer than needed", figures, remedy, 0.4)


# -------------------------------------------------------------------------------------------------- where time went


def data_bound(e: Evidence) -> Reason | None:
    """The device waits for batches: they are read or augmented more slowly than the network takes them."""
    workers = e.setting("dataset.num_workers", 0)
    figures = {"source": e.prepared.get("source", "?"), "workers": workers}
    is_resident = figures["source"] == "resident"
    remedy = less_augmentation(e) if is_resident else e.again(verb="tune workers")
    return _time_reason(e, "data", WAITING, "The data are the slower side: it waited for batches", figures, remedy)


def evaluation_bound(e: Evidence) -> Reason | None:
    per_epoch = e.prepared.get("steps_per_epoch") or 1
    interval = e.setting("trainer.eval_every") or per_epoch
    figures = {"evaluations": len(e.evaluations), "steps between them": interval}
    remedy = e.again(f"trainer.eval_every={4 * interval}")
    return _time_reason(e, "evaluation", EVALUATING, "Evaluations take much of the time", figures, remedy)


def saving_bound(e: Evidence) -> Reason | None:
    per_epoch = e.prepared.get("steps_per_epoch") or 1
    interval = e.setting("trainer.save_every") or e.setting("trainer.eval_every") or per_epoch
    remedy = e.again(f"trainer.save_every={10 * interval}")
    figures = {"steps between checkpoints": interval}
    return _time_reason(e, "saving", SAVING, "Checkpoints take much of the time", figures, remedy)


def _time_reason(e: Evidence, what: str, most: float, title: str, figures: Figures, remedy: str) -> Reason | None:
    share, seconds = e.share(what), e.seconds().get(what, 0.0)
    if share < most or seconds < LEAST_S:
        return None
    message = {"share of the training": share, "seconds": round(seconds, 1), **figures}
    return Reason(title, message, remedy, min(0.9, 0.3 + 0.6 * share))


# --------------------------------------------------------------------------------------------------------- the course


def smooth(values: Sequence[float]) -> list[float]:
    """Each the mean of itself and those before it, over a tenth of the course and at most five."""
    width = max(1, min(5, len(values) // 10))
    return [fmean(values[max(0, i + 1 - width) : i + 1]) for i in range(len(values))]


def falling_share(losses: Sequence[float]) -> float | None:
    """How much of its fall a loss made from the fourth fifth of its course to the last; None for a course too short."""
    if len(losses) < FEWEST:
        return None
    size = len(losses) // 5
    fall = max(losses) - min(losses)
    return max(0.0, fmean(losses[-2 * size : -size]) - fmean(losses[-size:])) / fall if fall > 0 else 0.0


def _at_high_rate(e: Evidence) -> list[float]:
    """The training loss while the rate was at least half its highest: a schedule that ends at 0 flattens any curve."""
    evaluated = [(number(each.get("lr")), _train_loss(each)) for each in e.evaluations]
    logged = [(number((each.get("values") or {}).get("lr")), _train_loss(each)) for each in e.values]
    courses = [_at_half_of_the_highest(points) for points in (evaluated, logged)]
    return next((losses for losses in courses if len(losses) >= FEWEST), courses[0])


def _at_half_of_the_highest(points: Sequence[tuple[float | None, float | None]]) -> list[float]:
    known = [(lr, loss) for lr, loss in points if lr is not None and loss is not None]
    highest = max((lr for lr, _ in known), default=0.0)
    return [loss for lr, loss in known if lr >= highest / 2]


def _train_loss(event: Mapping[str, Any]) -> float | None:
    return number((event.get("metrics") or event.get("values") or {}).get("train/loss"))


def _best_accuracy(e: Evidence) -> float | None:
    """The better of both splits at the end; None for a task without accuracies, or whose are of pixels."""
    train, val = e.last("train/accuracy"), e.last("val/accuracy")
    return None if train is None or val is None or e.series("val/mean_iou") else max(train, val)


def _is_low(e: Evidence) -> bool:
    accuracy = _best_accuracy(e)
    return accuracy is not None and accuracy < LOW


def _learned(e: Evidence) -> dict[str, Any]:
    names = ("train/accuracy", "val/accuracy", "train/loss", "val/loss")
    return {words(name): value for name in names if (value := e.last(name)) is not None}


def _num_classes(e: Evidence) -> int:
    return int(number(e.prepared.get("classes")) or number(e.setting("dataset.num_classes")) or 2)


def words(metric: str) -> str:
    """val/loss as people write it."""
    return metric.replace("/", " ")


REASONS: tuple[Callable[[Evidence], Reason | None], ...] = (
    diverged, out_of_memory, failed, cut_short, stopped_early, over_fitting, too_short, nothing_learned, lr_too_high,
    under_fitting, slow_learning, still_improving, longer_than_needed, data_bound, evaluation_bound, saving_bound,
)  # fmt: skip
