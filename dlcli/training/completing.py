"""Completes a composed config with facts from files: classes, weights, teachers, full paths."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from dlcli.errors import ConfigError, nearest, printable
from dlcli.runs.find import all_runs, find_checkpoint
from dlcli.training import hugging_face


def settle(tree: dict[str, Any], outputs: Path) -> dict[str, Any]:
    """Fill in what only files show: the teacher's checkpoint, the path of the weights, and what `complete` reads."""
    if "teacher" in tree["task"]:
        tree["task"]["teacher"] = str(find_checkpoint(tree["task"]["teacher"], outputs).resolve())
    weights = None
    if tree["trainer"]["pretrained"] not in (None, "imagenet"):
        weights = _weights(tree["trainer"]["pretrained"], outputs)
        tree["trainer"]["pretrained"] = str(weights)
    tree = complete(tree)
    if weights is not None and hugging_face.is_folder(weights):
        hugging_face.check_fit(weights, tree)
    return tree


def _weights(named: str, outputs: Path) -> Path:
    """Find a file of weights, a folder of transformers, or the checkpoint of a run or path."""
    path = hugging_face.found(named)
    if path.is_file() or hugging_face.is_folder(path):
        return path
    try:
        return find_checkpoint(named, outputs).resolve()
    except ConfigError as error:
        names = ["imagenet", *(run.name for run in all_runs(outputs))]
        if named == "latest" or any(name.startswith(named) for name in names[1:]):  # none yet, or several
            raise
        near = "imagenet" if "imagenet".startswith(named) else nearest(named, names)
        what = f"a file of weights, a run of {printable(outputs)}, or imagenet"
        message = f"trainer.pretrained={printable(named)}: there is no such file or run"
        raise ConfigError(
            message, hint=f"Did you mean trainer.pretrained={near}? It is {what}." if near else f"It is {what}."
        ) from error


DERIVED = ("num_classes", "num_tokens", "num_features")


def complete(tree: dict[str, Any]) -> dict[str, Any]:
    """Complete a config with facts of the data, such as the number of classes in a folder of images.

    `dataset.peek` reads it, without torch: a call that gives settings of the dataset by name.
    """
    _name_files_fully(tree["dataset"])
    settings = tree["dataset"]
    unknown = [key for key in DERIVED if key in settings and settings[key] is None]
    if not unknown or "peek" not in settings:
        return tree
    found = _peek(settings["peek"])
    networks = [tree["model"], *(node for node in tree["model"].values() if isinstance(node, dict))]
    for key in unknown:
        settings[key] = found.get(key)
        for node in (settings["reader"], *networks):
            if key in node and node[key] is None:
                node[key] = found.get(key)
    return tree


FILES = ("path", "val_path", "test_path", "target_path", "test_target_path", "images")  # of a dataset of one's own


def _name_files_fully(settings: dict[str, Any]) -> None:
    """Make paths absolute, so that `dlcli eval` and `resume` find the files from another folder too."""
    full: dict[str, str] = {}
    for key in FILES:
        named = settings.get(key)
        if isinstance(named, str) and Path(named).expanduser().exists():
            full[key] = str(Path(named).expanduser().absolute())
    if settings.get("tokenizer_file"):
        full["tokenizer_file"] = str(hugging_face.found(settings["tokenizer_file"]))
    for node in (settings["reader"], settings.get("peek", {}), settings):
        node.update({key: named for key, named in full.items() if key in node and node[key] == settings[key]})


def _peek(node: dict[str, Any]) -> dict[str, Any]:
    """Import a target. Only for composed configs, whose targets are in the search path; stored ones are complete."""
    module, _, name = node["_target_"].rpartition(".")
    return getattr(import_module(module), name)(**{k: v for k, v in node.items() if k != "_target_"})
