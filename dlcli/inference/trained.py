"""A trained network from its checkpoint, and what is asked of it: a score on held-out data, answers on new images.

The checkpoint is all that is needed. Its config is data: held to the settings' types and ranges, its targets compared
with those that the conf folder names, its tensors with the model built without memory, before anything is allocated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlcli.config.settings import SETTINGS
from dlcli.config.stored import change_stored, check_stored
from dlcli.datasets.batches.examples import Data
from dlcli.datasets.batches.pixels import Pixels
from dlcli.datasets.kinds import check_size, kind_of
from dlcli.datasets.storage.roots import exists
from dlcli.errors import CheckpointError, ConfigError, printable
from dlcli.runs import checkpoint
from dlcli.runs.checkpoint import Checkpoint, Manifest
from dlcli.runs.provenance import origin
from dlcli.runtime.device import Runtime, memory_faults, start_runtime, wait_for
from dlcli.runtime.random import seed_everything
from dlcli.tasks.classification import Classification
from dlcli.tasks.task import Task
from dlcli.training import build, checks
from dlcli.training.allow_list import Builder
from dlcli.training.state import check_weights

EVAL_KEYS = (
    "dataset.root",
    "dataset.download",
    "dataset.eval_batch_size",
    "dataset.num_workers",
    "runtime.device",
    "runtime.precision",
    "runtime.threads",
)
ANSWER_KEYS = (  # how answers are read out of the network; those that the run's own task has
    "task.decoding",
    "task.beam_size",
    "task.test_time_augmentation.mirror",
    "task.test_time_augmentation.shift",
)


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
        if self.measured is not None or not checks.needs_measure(self.tree):
            return self.measured or 0.0
        with stored_faults(self.folder), torch.random.fork_rng(devices=[]):
            rebuild = partial(build.build_meta_task, self.builder, teacher=self.manifest.teacher)
            return checks.check_shapes(rebuild(self.tree), self.tree, rebuild)

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
    for part in (tree, stored.manifest.teacher):
        builder.check(part, written_by=stored.manifest.dlcli)
    with stored_faults(stored.folder):
        check_classes(stored.manifest, tree)
        meta = build.build_meta_task(builder, tree, teacher=stored.manifest.teacher)
        if isinstance(meta, Classification) and len(stored.manifest.classes) != tree["dataset"]["num_classes"]:
            raise ConfigError(f"it names {len(stored.manifest.classes)} classes for {tree['dataset']['num_classes']}")
        check_size(tree["dataset"])
        activations = checks.check_shapes(meta, tree) if kind_of(tree["dataset"]).is_one_image else None
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
    try:
        return check_stored(stored.manifest.config)
    except (ConfigError, *MALFORMED) as error:
        said = error.message if isinstance(error, ConfigError) else f"its config is not one: {printable(repr(error))}"
        raise CheckpointError(f"{printable(stored.folder)}: {said}", hint=origin(stored.manifest.dlcli)) from error


def check_classes(manifest: Manifest, tree: dict[str, Any]) -> None:
    """Raise ConfigError unless the names of the classes, and the scale of the pixels, are those of the data."""
    settings = tree["dataset"]
    count, message = len(manifest.classes), settings.get("num_classes")
    if (count and message not in (None, count)) or manifest.majority not in (None, *range(count)):
        raise ConfigError(f"it names {count} classes, its data have {message}")
    if "mean" not in settings:
        return
    channels = settings["image_shape"][0]
    if {len(settings["mean"]), len(settings["std"])} - {1, channels}:
        raise ConfigError(f"its mean and std are not of images of {channels} channels")


MALFORMED = (LookupError, TypeError, ValueError, AttributeError, RecursionError, AssertionError)


@contextmanager
def stored_faults(folder: Path) -> Iterator[None]:
    """Whatever goes wrong with a stored config is a fault of the checkpoint, not of the command."""
    try:
        yield
    except ConfigError as error:
        raise CheckpointError(f"{printable(folder)}: {error.message}", hint=error.hint) from error
    except MALFORMED as error:
        message = f"{printable(folder)}: its config cannot be built: {printable(repr(error))}"
        raise CheckpointError(
            message, hint="The file has been changed; use another checkpoint, or train again: dlcli train"
        ) from error


def read_data(trained: Trained) -> Data:
    """The data that the checkpoint's config names."""
    with stored_faults(trained.folder):
        data = build.build_data(trained.builder, trained.tree)
        if not isinstance(data, Data):
            raise TypeError(f"dataset.reader gives {type(data).__name__}")
        return data


def pixels_of(trained: Trained) -> Pixels:
    settings = trained.tree["dataset"]
    return Pixels(settings["mean"], settings["std"], channels=settings["image_shape"][0])


# ----------------------------------------------------------------------------------------------------------- predicting


@torch.no_grad()
def predict(trained: Trained, images_BCHW: Tensor) -> Tensor:
    """Probabilities (B, K) float32 on the CPU for images (B, C, H, W) uint8 of the run's own shape."""
    if not isinstance(trained.task, Classification):
        message = f"{trained.manifest.run} is not a classifier; dlcli predict needs one"
        raise CheckpointError(message, hint="Name a run of a classifier: dlcli runs ls")
    images = pixels_of(trained).from_bytes(images_BCHW).to(trained.runtime.device)
    with trained.runtime.autocast()():
        return trained.task.predict(images).cpu()


def made_up_answer(trained: Trained) -> Callable[[], None]:
    """A function that lets the network answer for one made-up example and waits until it has: to time it."""
    network, runtime = getattr(trained.task, trained.task.phases[-1]), trained.runtime
    batch = checks.made_up_batch({"dataset": {**trained.tree["dataset"], "batch_size": 1}}, runtime.device)

    @torch.no_grad()
    def answer() -> None:
        with runtime.autocast()():
            network(*batch.inputs)
        wait_for(runtime.device)

    return answer
