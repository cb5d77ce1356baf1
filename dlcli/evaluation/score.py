"""Scores of a trained network on a split, with their intervals, and the report that `dlcli eval` prints and draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlcli.datasets.batches.examples import Data, Examples, LabelledImages
from dlcli.datasets.batches.source import EvalSource
from dlcli.evaluation import bootstrap, scores
from dlcli.inference.trained import Trained, pixels_of, stored_faults
from dlcli.runtime.device import memory_faults
from dlcli.tasks.classification import Classification
from dlcli.tasks.gan import GAN
from dlcli.training import build, checks, loop

NUM_MISTAKES = 24


# -------------------------------------------------------------------------------------------------------------- scoring


@dataclass(frozen=True)
class Report:
    """Held-out scores. intervals: 95 %, where there is one; the rest is None for tasks that do not classify.

    samples: of the bootstrap, by the name of the scores whose intervals it makes.
    mistakes: rows of the split that were answered wrongly, the most confident first.
    rows, right: (N,) int64, ascending, and bool: which examples were answered rightly.
    """

    split: str
    num_examples: int
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    is_same_data: bool | None
    fingerprint: str
    samples: dict[str, int] = field(default_factory=dict)
    calibration_error: float | None = None
    baseline: float | None = None
    confusion: list[list[int]] | None = None
    hardest: list[tuple[str, str, int]] | None = None
    mistakes: tuple[Tensor, Tensor, Tensor] | None = None  # rows (M,), predicted (M,), confidence (M,)
    rows: Tensor | None = None
    right: Tensor | None = None


def score(trained: Trained, data: Data, split: str) -> Report:
    """Evaluate one split of the data, as the run would have."""
    with stored_faults(trained.folder):
        examples, indices, fingerprint_name = _split(trained, data, split)
        source = build.build_eval_source(
            trained.tree, examples, indices, trained.runtime.device, activations=trained.activations
        )
    before = trained.manifest.data.get(fingerprint_name)
    is_same = None if before is None else before == examples.fingerprint
    common: dict[str, Any] = {
        "split": split,
        "num_examples": len(indices),
        "is_same_data": is_same,
        "fingerprint": examples.fingerprint,
    }
    with memory_faults(lambda: f"dataset.eval_batch_size={max(1, source.batch_size // 4)}"):
        if isinstance(trained.task, Classification):
            return _score_classifier(trained, trained.task, source, common)
        if loop.has_statistics(trained.task):
            return _score_set(trained, source, common)
        metrics = loop.evaluate(trained.task, source, autocast=trained.runtime.autocast())
    return Report(**common, metrics=metrics, intervals={})


def _split(trained: Trained, data: Data, split: str) -> tuple[Examples, Tensor, str]:
    """Examples and rows of a split, and the name of the fingerprint that they have in the checkpoint."""
    checks.check_data(data, trained.tree)
    if split == "test":
        return data.test, torch.arange(len(data.test)), "test"
    train, val_examples, val = build.split_training(trained.tree, data)
    if split == "train":
        return data.train, train, "train"
    return val_examples, val, "val" if data.val is not None else "train"


@torch.no_grad()
def _score_set(trained: Trained, source: EvalSource, common: dict[str, Any]) -> Report:
    """By what each example adds to the scores, which a training's evaluation adds up without an interval."""
    with trained.runtime.autocast()():
        statistics = trained.task.statistics(source)
    assert statistics is not None, "the loop says that it has some"
    intervals, num_samples = bootstrap.intervals(statistics)
    return Report(
        **common,
        metrics=statistics.scores(),
        intervals=intervals | _mean_intervals(statistics.means),
        samples=dict.fromkeys(intervals, num_samples),
    )


@torch.no_grad()
def _score_classifier(trained: Trained, task: Classification, source: EvalSource, common: dict[str, Any]) -> Report:
    per_example: dict[str, list[Tensor]] = {}
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for batch in source:
        with trained.runtime.autocast()():
            logits_BK = task.answer(*batch.inputs)
            for name, value_B in task.measure(logits_BK, batch.labels).items():
                per_example.setdefault(name, []).append(value_B.double().cpu())
        parts.append((logits_BK.float().softmax(1).cpu(), batch.labels.cpu(), batch.index.cpu()))
    values = {name: torch.cat(tensors) for name, tensors in per_example.items()}
    probabilities_NK, labels_N, rows_N = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    confidence_N, predicted_N = probabilities_NK.max(1)
    classes = trained.manifest.classes
    confusion = scores.confusion_matrix(labels_N, predicted_N, len(classes))
    wrong = (predicted_N != labels_N).nonzero()[:, 0]
    worst = wrong[confidence_N[wrong].argsort(descending=True, stable=True)][:NUM_MISTAKES]
    majority, order = trained.manifest.majority, rows_N.argsort()
    return Report(
        **common,
        metrics={name: value_N.mean().item() for name, value_N in values.items()},
        intervals=_mean_intervals(values),
        calibration_error=scores.calibration_error(probabilities_NK, labels_N),
        baseline=None if majority is None else (labels_N == majority).double().mean().item(),
        confusion=confusion.tolist(),
        hardest=[(classes[t], classes[p], n) for t, p, n in scores.hardest_pairs(confusion)],
        mistakes=(rows_N[worst], predicted_N[worst], confidence_N[worst]),
        rows=rows_N[order],
        right=(predicted_N == labels_N)[order],
    )


def _mean_intervals(values: Mapping[str, Tensor]) -> dict[str, tuple[float, float]]:
    """Intervals of means over the examples; none for scores that a single example does not have."""
    found = {name: _interval(value_N) for name, value_N in values.items()}
    return {name: interval for name, interval in found.items() if all(map(isfinite, interval))}


def _interval(values_N: Tensor) -> tuple[float, float]:
    """Wilson's for shares of right and wrong, the normal one for other means."""
    if bool(((values_N == 0) | (values_N == 1)).all()):
        return scores.wilson_interval(values_N.sum().item(), len(values_N))
    return scores.mean_interval(values_N)


def draw_report(trained: Trained, data: Data, report: Report, folder: Path) -> dict[str, str]:
    """Pictures of a report under `folder`: mistakes and confusion, or samples of a generator. Returns name -> path."""
    from dlcli.reporting import pictures

    folder.mkdir(exist_ok=True)
    drawn: dict[str, str] = {}
    if report.mistakes is not None and report.confusion is not None:
        rows, predicted, confidence = report.mistakes
        examples, _, _ = _split(trained, data, report.split)
        classes = trained.manifest.classes
        if len(rows) and isinstance(examples, LabelledImages):
            images = torch.stack([examples.read(int(row)) for row in rows])
            true = [classes[int(examples.labels[int(row)])] for row in rows]
            named = [classes[int(p)] for p in predicted]
            drawn["mistakes"] = str(folder / "mistakes.png")
            pictures.draw_mistakes(images, true, named, confidence.tolist(), drawn["mistakes"])
        drawn["confusion"] = str(folder / "confusion.png")
        pictures.draw_confusion(report.confusion, classes, drawn["confusion"])
    elif isinstance(trained.task, GAN):
        with torch.no_grad():
            samples = trained.task.sample(64, torch.Generator().manual_seed(0)).float().cpu()
        drawn["samples"] = str(folder / "samples.png")
        pictures.draw_grid(
            pixels_of(trained).denormalise(samples).mul(255).round().clamp(0, 255).byte(), drawn["samples"]
        )
    return drawn
