"""Checks before training: shapes fit together, and the data match the config."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from dlcli.datasets.batches.examples import Data, Examples, LabelledImages
from dlcli.datasets.kinds import kind_of
from dlcli.datasets.made_up import made_up_data
from dlcli.errors import ConfigError, DataError
from dlcli.optimizers.groups import build_optimizer
from dlcli.tasks.task import Task
from dlcli.training.build import first_line, num_numbers
from dlcli.training.eval_batch import bytes_per_example, output_bytes

TRIED_PIXELS, TRIED_NUMBERS = 64 * 64, 30_000_000  # the largest shapes that are tried on real zeros
MISFITS = (RuntimeError, ValueError, IndexError, TypeError, AssertionError)
TRIED_RECORDS = 300_000_000  # parameters, for data that are not images: recurrent layers do not work on the meta device
Tree = Mapping[str, Any]


def check_shapes(task: Task, tree: Tree, rebuild: Callable[[Tree], Task] | None = None) -> float:
    """Send one batch's shapes through loss and metrics of a meta task. Raises ConfigError if they do not fit.

    Returns the bytes per example that an evaluation's largest activation takes, or 0 if that is unknown.
    rebuild: makes the meta task of another config, so that detectors can be tried on smaller pictures.

    Small networks are tried on zeros in memory: a convolution on the meta device imports sympy and the compiler, a
    CPU-second of the two that a start takes. Draws from torch's global generator.
    """
    device = _place_to_try(task, tree)
    if device is None:
        return 0.0
    if rebuild is not None and _fits_when_small(tree, rebuild):
        return _bytes_of_one(task, tree) if needs_measure(tree) else 0.0
    if device.type == "cpu":
        task = zeros_like(task)
    is_images = kind_of(tree["dataset"]).is_one_image
    sizes = (4, 8) if is_images else (1, 2)  # other data go through the real network: as few as are enough
    settings, ratio = _smaller(tree["dataset"])
    with device:
        made_up = made_up_data(settings, sizes[1])

    def batch(size: int) -> Any:
        return made_up.batch(torch.arange(size))

    try:
        with torch.no_grad():
            for phase in task.phases:
                task.loss(batch(4 if is_images else 2), phase)
            task.eval()
            if not (is_images or needs_measure(tree) or _scores_examples(task)):
                return 0.0
            return ratio * bytes_per_example(task, lambda size: _score(task, batch(size)), sizes)
    except MISFITS as error:
        raise _misfit(tree, error) from error


def _scores_examples(task: Task) -> bool:
    """Return whether each example has its own scores, not only the whole set."""
    return type(task).metrics is not Task.metrics


def _score(task: Task, batch: Any) -> None:
    """Evaluate a batch; scores of a whole set use the same network that the loss uses."""
    task.metrics(batch) if _scores_examples(task) else task.loss(batch, task.phases[0])


def _misfit(tree: Tree, error: Exception) -> ConfigError:
    return ConfigError(
        f"the model does not fit {_described(tree['dataset'])}: {first_line(error)}",
        hint="Choose another model, or another dataset: dlcli list",
    )


def _fits_when_small(tree: Tree, rebuild: Callable[[Tree], Task]) -> bool:
    """Try a batch on the same network for smaller pictures with boxes, in a fraction of the time.

    Returns False if this gains nothing or fails: then pictures of the real size are tried.
    """
    small = smaller_pictures(tree)
    if small is None:
        return False
    try:
        task = zeros_like(rebuild(small))
        batch = made_up_data(small["dataset"], 2).batch(torch.arange(2))
        with torch.no_grad():
            for phase in task.phases:
                task.loss(batch, phase)
            if _scores_examples(task):
                task.eval().metrics(batch)
    except (ConfigError, *MISFITS):
        return False
    return True


def smaller_pictures(tree: Tree) -> Tree | None:
    """Return the config with the smallest pictures its model takes; None if its kind of data is not tried on them."""
    settings, model = tree["dataset"], tree["model"]
    shape = kind_of(settings).smallest_shape(settings, model.get("facts", {}).get("min_size", 1))
    if shape is None:
        return None

    def shrunk(node: Tree) -> Tree:
        return {**node, "image_shape": shape} if node.get("image_shape") == settings["image_shape"] else node

    networks = {name: shrunk(node) if isinstance(node, Mapping) else node for name, node in model.items()}
    return {**tree, "dataset": shrunk(settings), "model": shrunk(networks)}


def _bytes_of_one(task: Task, tree: Tree) -> float:
    """Return the bytes of the largest output in an evaluation of one example of the real size."""
    task, batch = zeros_like(task), made_up_data(tree["dataset"], 1).batch(torch.arange(1))
    task.eval()
    try:
        with torch.no_grad():
            return max(output_bytes(task, lambda _: _score(task, batch), 1), default=0)
    except MISFITS as error:
        raise _misfit(tree, error) from error


def _place_to_try(task: Task, tree: Tree) -> torch.device | None:
    size, shape = num_numbers(task), tree["dataset"].get("image_shape")
    if not kind_of(tree["dataset"]).is_one_image:
        return torch.device("cpu") if size <= TRIED_RECORDS else None
    is_small = shape[1] * shape[2] <= TRIED_PIXELS and size <= TRIED_NUMBERS
    return torch.device("cpu" if is_small else "meta")


def needs_measure(tree: Tree) -> bool:
    """Return whether an evaluation's batch size is chosen by the memory of an example."""
    return bool(tree["dataset"]["eval_batch_size"] == "auto")


def _smaller(settings: Tree) -> tuple[Tree, float]:
    """Settings with smaller pictures, if convolutions can be tried on them, and how many times fewer pixels."""
    shape = kind_of(settings).convolved_shape(settings)
    if shape is None:
        return settings, 1.0
    return {**settings, "image_shape": shape}, prod(settings["image_shape"][1:]) / prod(shape[1:])


def _described(settings: Tree) -> str:
    if settings.get("image_shape"):
        images = f"images of {'x'.join(map(str, settings['image_shape']))}"
        return f"{images} and {settings['num_classes']} classes" if settings.get("num_classes") else images
    return f"the data of {settings['name']}"


def zeros_like(task: Task) -> Task:
    """Copy a meta task into memory, all zeros. (`to_empty` asks the meta tensors, which imports sympy.)"""
    task = copy.deepcopy(task)
    for module in task.modules():
        for name, p in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.zeros(p.shape, dtype=p.dtype), requires_grad=p.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.zeros(buffer.shape, dtype=buffer.dtype))
    return task


def check_parameter_groups(task: Task, tree: Tree) -> None:
    """Raise ConfigError for a pattern that matches no parameter of a meta task's networks."""
    for phase in task.phases:
        build_optimizer(getattr(task, phase), lambda groups: groups, tree["parameter_groups"])


def made_up_batch(tree: Tree, device: torch.device) -> Any:
    """Make a micro-batch of noise in the data's shapes, to time steps; draws from torch's global generator."""
    size = tree["dataset"]["batch_size"]
    return on_device(made_up_data(tree["dataset"], size).batch(torch.arange(size)), device)


def on_device(batch: Any, device: torch.device) -> Any:
    """Move the tensors of a batch to a device."""
    return type(batch)(*(part.to(device) if isinstance(part, Tensor) else part for part in batch))


def check_data(data: Data, tree: Tree) -> None:
    """Raise DataError if the data are not what the config says, before training starts."""
    settings = tree["dataset"]
    if data.classes and len(data.classes) != settings["num_classes"]:
        message = f"{settings['name']} has {len(data.classes)} classes, dataset.num_classes={settings['num_classes']}"
        raise DataError(message, hint=f"dataset.num_classes={len(data.classes)}")
    for name, split in (("train", data.train), ("test", data.test)):
        _check_split(name, split, data, settings)
    facts = dict(data.facts)
    if isinstance(data.train, LabelledImages) and data.train.images is not None:
        facts["image_shape"] = list(data.train.images.shape[1:])
    for name, found in facts.items():
        if settings.get(name) is not None and found != settings[name]:
            said = str(found).replace(" ", "")
            what = "the images are" if name == "image_shape" else f"{settings['name']} has {name.replace('_', ' ')}"
            raise DataError(f"{what} {said}, dataset.{name}={settings[name]}", hint=f"dataset.{name}={said}")


def _check_split(name: str, split: Examples, data: Data, settings: Tree) -> None:
    if len(split) == 0:
        message = f"the {name} split of {settings['name']} is empty"
        raise DataError(message, hint="dlcli doctor  shows which data are found")
    if split.labels is not None and data.classes:
        low, high = int(split.labels.min()), int(split.labels.max())
        if low < 0 or high >= len(data.classes):
            raise DataError(f"the {name} split has the label {high}, outside its {len(data.classes)} classes")


def small_splits(settings: Mapping[str, Any], counts: Mapping[str, int]) -> tuple[str, ...]:
    """Return a warning for each held-out split that is so small that chance alone could explain its scores.

    counts: of examples, by the split's name. A stream is scored by its characters, a picture by many pixels or things.
    """
    fewest = kind_of(settings).fewest
    return tuple(
        f"the {split} split has {count:,} example{'s' * (count != 1)}: its scores mean little"
        for split, count in counts.items()
        if 0 < count < fewest
    )
