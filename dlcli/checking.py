"""What is looked at before anything is trained: whether shapes fit together, and whether the data are what was said."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dlcli.build import first_line
from dlcli.datasets.examples import Data, Examples, LabelledImages
from dlcli.datasets.kinds import gives
from dlcli.datasets.made_up import made_up_data
from dlcli.errors import ConfigError, DataError
from dlcli.fitting import bytes_per_example
from dlcli.optimizers.groups import build_optimizer
from dlcli.tasks.task import Task

TRIED_PIXELS, TRIED_PARAMETERS = 64 * 64, 30_000_000  # up to which shapes are tried on real zeros
TRIED_SIDE = 128  # pixels, of masks
TRIED_RECORDS = 300_000_000  # parameters, for data that are no images: recurrent layers know no meta device
Tree = Mapping[str, Any]


def check_shapes(task: Task, tree: Tree) -> float:
    """Send one batch's shapes through loss and metrics of a meta task. Raises ConfigError where they do not fit.

    Gives the bytes per example that an evaluation's largest activation takes, 0 where it cannot be told.

    Small networks are tried on zeros in memory: a convolution on the meta device imports sympy and the compiler, a
    CPU-second of the two that a start takes. Draws from torch's global generator.
    """
    device = _place_to_try(task, tree)
    if device is None:
        return 0.0
    if device.type == "cpu":
        task = zeros_like(task)
    is_images = gives(tree["dataset"]) == "images"
    sizes = (4, 8) if is_images else (1, 2)  # other data go through the real network: as few as tell
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
            if type(task).metrics is Task.metrics:  # scores of a whole set: its batches go through the same network
                if not is_images and not needs_measure(tree):
                    return 0.0
                return ratio * bytes_per_example(task, lambda size: task.loss(batch(size), task.phases[0]), sizes)
            return ratio * bytes_per_example(task, lambda size: task.metrics(batch(size)), sizes)
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
        raise ConfigError(
            f"the model does not fit {_described(tree['dataset'])}: {first_line(error)}",
            hint="Choose another model, or another dataset: dlcli list",
        ) from error


def _place_to_try(task: Task, tree: Tree) -> torch.device | None:
    size, shape = sum(p.numel() for p in task.parameters()), tree["dataset"].get("image_shape")
    if gives(tree["dataset"]) != "images":
        return torch.device("cpu") if size <= TRIED_RECORDS else None
    is_small = shape[1] * shape[2] <= TRIED_PIXELS and size <= TRIED_PARAMETERS
    return torch.device("cpu" if is_small else "meta")


def needs_measure(tree: Tree) -> bool:
    """Whether an evaluation's batch is chosen by what an example takes."""
    return bool(tree["dataset"]["eval_batch_size"] == "auto")


def _smaller(settings: Tree) -> tuple[Tree, float]:
    """Settings with smaller pictures for masks, whose networks convolve only, and how many times fewer pixels.

    Sides stay multiples of 32. Others stay as they are, so that a side that does not fit is found.
    """
    if gives(settings) != "masks":
        return settings, 1.0
    channels, height, width = settings["image_shape"]
    by = max(height, width) / TRIED_SIDE
    if by <= 1 or height % 32 or width % 32:
        return settings, 1.0
    small = [max(32, int(side / by) // 32 * 32) for side in (height, width)]
    return {**settings, "image_shape": [channels, *small]}, height * width / (small[0] * small[1])


def _described(settings: Tree) -> str:
    if settings.get("image_shape"):
        images = f"images of {'x'.join(map(str, settings['image_shape']))}"
        return f"{images} and {settings['num_classes']} classes" if settings.get("num_classes") else images
    return f"the data of {settings['name']}"


def zeros_like(task: Task) -> Task:
    """A copy of a meta task in memory, all zeros. (`to_empty` asks the meta tensors, which imports sympy.)"""
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
    """A micro-batch of noise in the data's shapes, to time steps with; draws from torch's global generator."""
    size = tree["dataset"]["batch_size"]
    return on_device(made_up_data(tree["dataset"], size).batch(torch.arange(size)), device)


def on_device(batch: Any, device: torch.device) -> Any:
    """A batch with its tensors there."""
    return type(batch)(*(part.to(device) if isinstance(part, Tensor) else part for part in batch))


def check_data(data: Data, tree: Tree) -> None:
    """Raise DataError where the data are not what the config says, before anything is trained on them."""
    settings = tree["dataset"]
    if data.classes and len(data.classes) != settings["num_classes"]:
        told = f"{settings['name']} has {len(data.classes)} classes, dataset.num_classes={settings['num_classes']}"
        raise DataError(told, hint=f"dataset.num_classes={len(data.classes)}")
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
        told = f"the {name} split of {settings['name']} is empty"
        raise DataError(told, hint="dlcli doctor  shows which data are found")
    if split.labels is not None and data.classes:
        low, high = int(split.labels.min()), int(split.labels.max())
        if low < 0 or high >= len(data.classes):
            raise DataError(f"the {name} split has the label {high}, outside its {len(data.classes)} classes")
