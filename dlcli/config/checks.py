"""Checks of the whole config: types and ranges of all settings, and whether the choices fit together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from dlcli.config.folders import bodies
from dlcli.config.schema import Setting
from dlcli.config.settings import RESERVED_NAMES, SETTINGS, setting_of_kind
from dlcli.config.tree import leaves, lookup
from dlcli.config.words import Reading
from dlcli.datasets.kinds import gives, kind_of
from dlcli.errors import any_of, nearest, printable

FROM_EPOCH = Setting(
    Annotated[int, Field(strict=True, ge=1)] | Literal["never"],
    "a whole number, 1 or more, or never",
    "First epoch that trains the group.",
)
LOOP_READS = ("l1", "clip_norm", "early_stopping", "ema")  # settings of regularization that the loop reads itself


def check_settings(tree: Mapping[str, Any], reading: Reading) -> None:
    """Check type and range of every setting, wherever it was set; a word is reported only once."""
    message = {p.where.lstrip("+~").partition("=")[0] for p in reading.problems}
    for key, value in leaves(tree):
        setting = SETTINGS.get(key)
        if key in message or setting is None:
            continue
        if value == "???":
            reading.wrong(key, f"must be given: {setting.meaning}", f"{key}=latest" if key == "task.teacher" else None)
        elif (said := setting.check(value)) is not None:
            word = next((w.text for w in reading.values if w.key == key), None)
            reading.wrong(word or f"{key}={printable(value)}", said)


def check_parameter_groups(tree: Mapping[str, Any], reading: Reading) -> None:
    """Check that each group has a pattern, only settings of the optimizer, and maybe a first epoch."""
    optimizer = [key.removeprefix("optimizer.") for key, _ in leaves({"optimizer": tree["optimizer"]})]
    for name, group in tree["parameter_groups"].items():
        where = f"parameter_groups.{name}"
        if not isinstance(group, Mapping) or not isinstance(group.get("match"), str):
            reading.wrong(where, 'must be a pattern of names and settings, like {match: "*.bias", weight_decay: 0.0}')
            continue
        for key, value in group.items():
            if key == "match":
                continue
            if key == "from_epoch":
                if said := FROM_EPOCH.check(value):
                    reading.wrong(reading.word_for(f"{where}.{key}={value}"), said)
                continue
            word = reading.word_for(f"{where}.{key}={value}")
            if key not in optimizer:
                better = nearest(key, optimizer)
                message = f"is not a setting of the optimizer ({', '.join(optimizer)})"
                reading.wrong(word, message, better and f"{where}.{better}={printable(value)}")
            elif key == "lr" and value == 0:  # a group that stays as it is
                continue
            elif said := SETTINGS.get(f"optimizer.{key}", setting_of_kind(value)).check(value):
                reading.wrong(word, said)


def check_together(tree: Mapping[str, Any], reading: Reading) -> None:
    """Check that the choices fit together: scores, kinds of network, sizes of images, numbers of channels."""
    reported = {p.where.lstrip("+~").partition("=")[0] for p in reading.problems}
    for where, message, better in _clashes(tree, reading.search):
        if where.partition("=")[0] not in reported:
            reading.wrong(reading.word_for(where), message, better)


def check_kinds(raw: Mapping[str, Any], reading: Reading) -> bool:
    """Check that task and model take this kind of data. This comes first: otherwise their settings have no source."""
    given, search = gives(raw["dataset"]), reading.search
    name, kind = printable(raw["dataset"].get("name")), _facts(raw["task"]).get("models")
    for group in ("task", "model"):
        taken = takes(raw[group])
        if given in taken:
            continue
        better = _option(group, search, given=given, kind=kind if group == "model" else None)
        message = f"this {group} takes {any_of(taken)}; dataset {name} gives {printable(given)}"
        if group == "model" and _facts(raw["model"]).get("kind") != kind:
            message = _other_kind(raw["model"], kind)
        reading.wrong(reading.word_for(group), message, better)
        return False
    return True


def _other_kind(model: Mapping[str, Any], kind: object) -> str:
    return f"this model is a {_facts(model).get('kind')}; the task needs a {kind}"


def _facts(node: Mapping[str, Any]) -> Mapping[str, Any]:
    facts = node.get("facts")
    return facts if isinstance(facts, Mapping) else {}


def takes(node: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the kinds of data that a task or model takes."""
    found = _facts(node).get("takes", ["images"])
    return tuple(map(str, found)) if isinstance(found, list) else (str(found),)


def _option(
    group: str, search: Sequence[Path], *, given: str, kind: object = None, having: str | None = None, side: float = inf
) -> str | None:
    """Return an option that takes such data, as a word; among models, the one that takes the smallest images.

    having: a fact that it must have; side: size of the images in pixels, where that matters.
    """
    fitting: dict[str, int] = {}
    for name, body in bodies(group, search):
        facts = _facts(body)
        fits = kind is None or facts.get("kind") == kind
        smallest = facts.get("min_size", 1)
        if facts and given in takes(body) and fits and smallest <= side and (having is None or having in facts):
            fitting[name] = smallest
    return f"{group}={min(fitting, key=lambda name: fitting[name])}" if fitting else None


def _clashes(tree: Mapping[str, Any], search: Sequence[Path]) -> Iterator[tuple[str, str, str | None]]:
    task, model, data = tree["task"], tree["model"], tree["dataset"]
    facts, model_facts = task.get("facts", {}), model.get("facts", {})
    scores = [f"val/{name}" for name in facts.get("scores", {})]
    monitor = tree["trainer"]["monitor"]
    if monitor not in scores:
        better = nearest(str(monitor), scores) or (scores[0] if scores else None)
        yield (
            f"trainer.monitor={monitor}",
            f"the task has no such score ({', '.join(scores)})",
            better and f"trainer.monitor={better}",
        )
    if model_facts.get("kind") != facts.get("models"):
        if not model_facts:
            yield ("model", f"its YAML does not say what it is: add  facts: {{kind: {facts.get('models')}}}", None)
        else:
            message = _other_kind(model, facts.get("models"))
            yield ("model", message, _option("model", search, given=gives(data), kind=facts.get("models")))
    if data.get("num_classes") == 1 and facts.get("models") == "classifier" and facts.get("target") != "number":
        yield "dataset.num_classes=1", "a classifier needs two classes or more", "dataset.num_classes=2"
    if (asked := task.get("num_classes")) is not None and asked != data.get("num_classes"):
        own = data.get("num_classes")
        yield f"task.num_classes={asked}", f"{data.get('name')} has {own} classes", f"task.num_classes={own}"
    shape = data.get("image_shape")
    is_shape = isinstance(shape, list) and len(shape) == 3 and all(isinstance(n, int) for n in shape)
    if is_shape:
        smallest = model_facts.get("min_size", 1)
        if min(shape[1:]) < smallest:
            yield (
                "model",
                f"this model needs images of {smallest} x {smallest} pixels or more; "
                f"{data.get('name')} has {shape[1]} x {shape[2]}",
                "model=mlp",
            )
        for name in ("mean", "std"):
            if isinstance(data.get(name), list) and len(data[name]) not in (1, shape[0]):
                yield (f"dataset.{name}={data[name]}", f"has {len(data[name])} values for {shape[0]} channels", None)
    if not kind_of(data).is_one_image:
        yield from _of_images_alone(tree)
    if tree["name"] in RESERVED_NAMES:
        yield f"name={tree['name']}", "a run cannot have this name: the word means another run or a checkpoint", None
    if tree["trainer"].get("pretrained") == "imagenet" and "imagenet" not in model_facts:
        side = min(shape[1:]) if is_shape else inf
        better = _option("model", search, given=gives(data), kind=facts.get("models"), having="imagenet", side=side)
        message = "torchvision has no weights for this model"
        if better:
            yield "model", f"{message}, which trainer.pretrained=imagenet needs", better
        else:
            yield "trainer.pretrained=imagenet", f"{message}, nor for others of these data", "trainer.pretrained=null"
    runtime = tree["runtime"]
    if runtime.get("precision") == "fp16" and runtime.get("device") == "cpu":
        yield ("runtime.precision=fp16", "half precision needs a GPU; a CPU has bf16", "runtime.precision=bf16")
    if runtime.get("parallel") == "fsdp" and runtime.get("devices") != 1 and tree["regularization"].get("l1"):
        yield "regularization.l1", "a sum over all weights cannot be computed from shards", "regularization.l1=0.0"
    if isinstance(runtime.get("devices"), int) and runtime["devices"] > 1 and ":" in str(runtime.get("device")):
        message = f"names one GPU for runtime.devices={runtime['devices']}; each rank takes its own"
        yield f"runtime.device={runtime['device']}", message, "runtime.device=cuda"


def _of_images_alone(tree: Mapping[str, Any]) -> Iterator[tuple[str, str, str | None]]:
    """Find settings of a task that work with images only, where the data are not images."""
    task, message = tree["task"], f"is of images; dataset {tree['dataset'].get('name')} gives {gives(tree['dataset'])}"
    for name in ("mixup", "cutmix"):
        if value := task.get(name):
            group = "regularization" if tree["regularization"].get(name) == value else "task"
            yield f"{group}.{name}={value}", message, f"{group}.{name}=0.0"
    held_out = task.get("test_time_augmentation")
    for name, off in (("mirror", "false"), ("shift", "0")):
        if isinstance(held_out, Mapping) and (value := held_out.get(name)):
            key = f"task.test_time_augmentation.{name}"
            yield f"{key}={str(value).lower()}", message, f"{key}={off}"


def without_effect(tree: Mapping[str, Any], raw: Mapping[str, Any], choices: Mapping[str, str]) -> Iterator[str]:
    """Find regularization and augmentation that is on but that nothing reads, e.g. mixup with another task."""
    readers = " ".join(str(v) for group in ("model", "task", "optimizer") for _, v in leaves(raw[group]))
    for key, value in tree["regularization"].items():
        if key not in LOOP_READS and value and f"${{regularization.{key}}}" not in readers:
            chosen = f"model={choices.get('model')} and task={choices.get('task')}"
            yield f"regularization.{key}={value} has no effect with {chosen}"
    if not (kind := kind_of(tree["dataset"])).is_augmented:
        for key, value in tree["augmentation"].items():
            if key not in ("_target_", "padding_mode") and value:
                yield f"augmentation.{key}={value} has no effect: dataset={choices.get('dataset')} gives {kind.name}"


def setting_of(key: str, tree: Mapping[str, Any]) -> Setting:
    """Return the table's entry for a key, or one made from the kind of its value."""
    return SETTINGS.get(key) or setting_of_kind(lookup(tree, key))
