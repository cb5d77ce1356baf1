"""Decides whether runs can be trained together, by their configs alone and without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dlcli.datasets.kinds import kind_of
from dlcli.errors import printable

Tree = Mapping[str, Any]

CLASSIFICATION = "dlcli.tasks.classification.Classification"
OPTIMIZERS = {  # target -> the settings that its stacked rule supports
    "torch.optim.SGD": ("lr", "momentum", "nesterov", "weight_decay"),
    "torch.optim.Adam": ("lr", "betas", "eps", "weight_decay"),
    "torch.optim.AdamW": ("lr", "betas", "eps", "weight_decay"),
}
MAY_DIFFER = (  # a key, or a group with all its keys
    "seed", "name", "tracker", "schedule", "trainer.save_every", "trainer.keep_checkpoints", "trainer.log_every",
    "optimizer.lr", "optimizer.weight_decay", "optimizer.momentum", "optimizer.betas", "optimizer.eps",
    "regularization.dropout", "regularization.weight_decay", "regularization.label_smoothing", "regularization.l1",
    "regularization.clip_norm", "regularization.ema", "regularization.early_stopping",
    "model.dropout", "task.label_smoothing",
)  # fmt: skip


def can_train_together(trees: Sequence[Tree]) -> str | None:
    """None if the composed configs can be trained as one program, otherwise the setting that prevents it."""
    for number, tree in enumerate(trees):
        if reason := next(_hindrances(tree), None):
            return f"{reason} (trial {number})" if len(trees) > 1 else reason
    first = _shared(trees[0]) if trees else {}
    for number, tree in enumerate(trees):
        if reason := _difference(first, _shared(tree), number):
            return reason
    return None


def groups(trees: Sequence[Tree]) -> list[list[int]]:
    """Positions of the trees that can be trained together, in the order of the first of each group.

    A tree that cannot be trained with any other is a group by itself.
    """
    found: dict[str, list[int]] = {}
    for number, tree in enumerate(trees):
        alone = any(True for _ in _hindrances(tree))
        found.setdefault(f"alone {number}" if alone else json.dumps(_shared(tree), sort_keys=True), []).append(number)
    return list(found.values())


def _hindrances(tree: Tree) -> Iterator[str]:
    """The setting that keeps a run from being trained together with any other, or None."""
    trainer, data, runtime = tree["trainer"], tree["dataset"], tree["runtime"]
    if tree["task"]["_target_"] != CLASSIFICATION:
        yield f"task: {printable(tree['task']['_target_'])} is not a classification"
    if not (kind := kind_of(data)).is_one_image:
        yield f"dataset: it gives {printable(kind.name)}, not images"
        return
    yield from _optimizer_hindrances(tree)
    for key in ("mixup", "cutmix"):
        if tree["task"].get(key):
            yield f"task.{key}={tree['task'][key]}: batches are mixed by random draws of one run"
    if trainer["accumulate_grad_batches"] != 1:
        yield f"trainer.accumulate_grad_batches={trainer['accumulate_grad_batches']}: a step must have one micro-batch"
    if trainer["max_time"] is not None:
        yield f"trainer.max_time={trainer['max_time']}: runs trained together cannot keep time limits of their own"
    if data["in_memory"] is False or (data["num_workers"] and data["in_memory"] is not True):
        settings = f"dataset.in_memory={str(data['in_memory']).lower()} dataset.num_workers={data['num_workers']}"
        yield f"{settings}: images must be held in memory, not read during training"
    if runtime.get("compile") is True:
        yield "runtime.compile=true"
    if runtime.get("devices", 1) != 1:
        yield f"runtime.devices={runtime['devices']}: all runs share one device"
    if runtime["precision"] == "fp16":
        yield "runtime.precision=fp16: a loss scale serves only one run"


def _optimizer_hindrances(tree: Tree) -> Iterator[str]:
    target = tree["optimizer"]["_target_"]
    known = OPTIMIZERS.get(target)
    if known is None:
        yield f"optimizer: {printable(target)} has no stacked rule ({', '.join(OPTIMIZERS)} have)"
        return
    settings = {f"optimizer.{key}": key for key in tree["optimizer"] if key not in ("_target_", "_partial_", "facts")}
    for name, group in tree["parameter_groups"].items():
        settings |= {f"parameter_groups.{name}.{key}": key for key in group if key != "match"}
    for where, key in settings.items():
        if key not in known:
            yield f"{printable(where)} has no stacked rule ({', '.join(known)} have)"


def _shared(tree: Tree) -> dict[str, Any]:
    """Dotted keys and values that must be the same in all trials; and whether there is dropout, which adds layers."""
    kept = {key: value for key, value in _settings(tree) if not _may_differ(key)}
    has_dropout = bool(tree["model"].get("dropout", tree["regularization"]["dropout"]))
    return kept | {"model.dropout": "on" if has_dropout else "off"}


def _settings(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _settings(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _may_differ(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in MAY_DIFFER)


def _difference(first: Tree, other: Tree, number: int) -> str | None:
    for key in {**first, **other}:
        ours, theirs = first.get(key), other.get(key)
        if ours != theirs:
            return f"{printable(key)} is {printable(ours)} in trial 0 and {printable(theirs)} in trial {number}"
    return None
