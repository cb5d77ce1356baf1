"""A trained network from its checkpoint, and what is asked of it: a score on held-out data, answers on new images.

The checkpoint is all that is needed. Its config is data: held to the settings' types and ranges, its targets compared
with those that the conf folder names, its tensors with the model built without memory, before anything is allocated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlcli import bootstrap, build, checking, checkpoint, loop, scores
from dlcli.build import Builder
from dlcli.checkpoint import Checkpoint, Manifest
from dlcli.config import change_stored, check_stored
from dlcli.datasets.examples import Data, Examples, LabelledImages
from dlcli.datasets.kinds import check_size, gives
from dlcli.datasets.pixels import Pixels
from dlcli.datasets.roots import exists
from dlcli.datasets.source import EvalSource
from dlcli.errors import CheckpointError, ConfigError, printable
from dlcli.runtime import Runtime, memory_faults, seed_everything, start_runtime, wait_for
from dlcli.schema import SETTINGS
from dlcli.state import check_weights
from dlcli.tasks.classification import Classification
from dlcli.tasks.gan import GAN
from dlcli.tasks.task import Task

EVAL_KEYS = (
    "dataset.root",
    "dataset.download",
    "dataset.eval_batch_size",
    "dataset.workers",
    "runtime.device",
    "runtime.precision",
    "runtime.threads",
)
ANSWER_KEYS = (  # how answers are read out of the network; those that the run's own task has
    "task.decoding",
    "task.beam",
    "task.test_time_augmentation.mirror",
    "task.test_time_augmentation.shift",
)
NUM_MISTAKES = 24


@dataclass(frozen=True)
class Trained:
    """A task with a checkpoint's weights, on its device, in evaluation mode."""

    task: Task
    manifest: Manifest
    tree: dict[str, Any]
    runtime: Runtime
    builder: Builder
    folder: Path
    measured: float | None  # activations, where they were measured already
    asked: frozenset[str] = frozenset()  # settings that this command changed

    @cached_property
    def activations(self) -> float:
        """Bytes per example, of an evaluation's largest. Measured when asked for: an answer does without."""
        if self.measured is not None or not checking.needs_measure(self.tree):
            return self.measured or 0.0
        with stored_faults(self.folder), torch.random.fork_rng(devices=[]):
            rebuild = partial(build.build_meta_task, self.builder, teacher=self.manifest.teacher)
            return checking.check_shapes(rebuild(self.tree), self.tree, rebuild)

    @property
    def run_folder(self) -> Path | None:
        """The run that the checkpoint lies in, if it still does."""
        parent = self.folder.parent
        return parent.parent if parent.name == "checkpoints" else None


def load(folder: Path, words: Sequence[str] = (), *, builder: Builder) -> Trained:
    """Read, check and build. words: `key=value` of EVAL_KEYS, and of ANSWER_KEYS where the task has them.

    Raises CheckpointError for whatever is wrong with it.
    """
    stored = checkpoint.read(folder)
    tree = _checked_tree(stored)
    tree = change_stored(tree, words, [*EVAL_KEYS, *(key for key in ANSWER_KEYS if _has(tree, key))])
    builder.check(tree)
    builder.check(stored.manifest.teacher)
    with stored_faults(stored.folder):
        check_classes(stored.manifest, tree)
        meta = build.build_meta_task(builder, tree, teacher=stored.manifest.teacher)
        if isinstance(meta, Classification) and len(stored.manifest.classes) != tree["dataset"]["num_classes"]:
            raise ConfigError(f"it names {len(stored.manifest.classes)} classes for {tree['dataset']['num_classes']}")
        check_size(tree["dataset"])
        activations = checking.check_shapes(meta, tree) if gives(tree["dataset"]) == "images" else None
    check_weights(meta, stored.weights, stored.folder)
    runtime = start_runtime(tree["runtime"], stored=stored.manifest.environment)
    with memory_faults(lambda: "runtime.device=cpu may have more memory."):
        seed_everything(tree["seed"])
        task = build.build_task(builder, tree, teacher=stored.manifest.teacher)
        task.load_state_dict(stored.weights)
        runtime.place(task)
        task.eval()
    asked = frozenset(word.partition("=")[0] for word in words)
    return Trained(task, stored.manifest, tree, runtime, builder, stored.folder, activations, asked)


def _has(tree: Mapping[str, Any], key: str) -> bool:
    *parents, leaf = key.split(".")
    for name in parents:
        inner = tree.get(name)
        if not isinstance(inner, Mapping):
            return False
        tree = inner
    return leaf in tree


def split_settings(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Inputs, and the `key=value` words among them: those of a known setting, unless a file is called so."""
    settings = [word for word in words if word.partition("=")[0] in SETTINGS and "=" in word and not exists(Path(word))]
    return [word for word in words if word not in settings], settings


def _checked_tree(stored: Checkpoint) -> dict[str, Any]:
    with stored_faults(stored.folder):
        return check_stored(stored.manifest.config)


def check_classes(manifest: Manifest, tree: dict[str, Any]) -> None:
    """Raise ConfigError unless the names of the classes, and the scale of the pixels, are those of the data."""
    settings = tree["dataset"]
    count, told = len(manifest.classes), settings.get("num_classes")
    if (count and told not in (None, count)) or manifest.majority not in (None, *range(count)):
        raise ConfigError(f"it names {count} classes, its data have {told}")
    if "mean" not in settings:
        return
    channels = settings["image_shape"][0]
    if {len(settings["mean"]), len(settings["std"])} - {1, channels}:
        raise ConfigError(f"its mean and std are not of images of {channels} channels")


@contextmanager
def stored_faults(folder: Path) -> Iterator[None]:
    """Whatever goes wrong with a stored config is a fault of the checkpoint, not of the command."""
    try:
        yield
    except ConfigError as error:
        raise CheckpointError(f"{printable(folder)}: {error.message}", hint=error.hint) from error
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError, AssertionError) as error:
        told = f"{printable(folder)}: its config cannot be built: {printable(repr(error))}"
        raise CheckpointError(told, hint="The file was not written by dlcli like this.") from error


def read_data(trained: Trained) -> Data:
    """The data that the checkpoint's config names."""
    with stored_faults(trained.folder):
        data = build.build_data(trained.builder, trained.tree)
        if not isinstance(data, Data):
            raise TypeError(f"dataset.reader gives {type(data).__name__}")
        return data


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
    checking.check_data(data, trained.tree)
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
    """Of means over the examples; none of what a single example cannot tell."""
    found = {name: _interval(value_N) for name, value_N in values.items()}
    return {name: interval for name, interval in found.items() if all(map(isfinite, interval))}


def _interval(values_N: Tensor) -> tuple[float, float]:
    """Wilson's for shares of right and wrong, the normal one for other means."""
    if bool(((values_N == 0) | (values_N == 1)).all()):
        return scores.wilson_interval(values_N.sum().item(), len(values_N))
    return scores.mean_interval(values_N)


def draw_report(trained: Trained, data: Data, report: Report, folder: Path) -> dict[str, str]:
    """Pictures of a report under `folder`: mistakes and confusion, or samples of a generator. Returns name -> path."""
    from dlcli import pictures

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


def pixels_of(trained: Trained) -> Pixels:
    settings = trained.tree["dataset"]
    return Pixels(settings["mean"], settings["std"], channels=settings["image_shape"][0])


# ----------------------------------------------------------------------------------------------------------- predicting


@torch.no_grad()
def predict(trained: Trained, images_BCHW: Tensor) -> Tensor:
    """Probabilities (B, K) float32 on the CPU for images (B, C, H, W) uint8 of the run's own shape."""
    if not isinstance(trained.task, Classification):
        told = f"{trained.manifest.run} is no classifier; dlcli predict needs one"
        raise CheckpointError(told, hint="Name a run of a classifier: dlcli runs ls")
    images = pixels_of(trained).from_bytes(images_BCHW).to(trained.runtime.device)
    with trained.runtime.autocast()():
        return trained.task.predict(images).cpu()


def made_up_answer(trained: Trained) -> Callable[[], None]:
    """A function that lets the network answer for one made-up example and waits until it has: to time it."""
    network, runtime = getattr(trained.task, trained.task.phases[-1]), trained.runtime
    batch = checking.made_up_batch({"dataset": {**trained.tree["dataset"], "batch_size": 1}}, runtime.device)

    @torch.no_grad()
    def answer() -> None:
        with runtime.autocast()():
            network(*batch.inputs)
        wait_for(runtime.device)

    return answer
