"""Configs stored with a run: checked like those from the command line, and changed only where a resume may."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dlcli.config import _as_error
from dlcli.config.checks import check_parameter_groups, check_settings, check_together
from dlcli.config.folders import GROUPS
from dlcli.config.renamed import new_name
from dlcli.config.settings import SETTINGS
from dlcli.config.tree import ABSENT, copied, lookup
from dlcli.config.words import Reading, parse_word
from dlcli.datasets.kinds import kind_of
from dlcli.errors import ConfigError, nearest, printable


def check_stored(tree: object) -> dict[str, Any]:
    """Check a config from a run or checkpoint for types and ranges. Raises ConfigError."""
    reading = Reading(search=())
    groups = {*GROUPS, "trainer", "parameter_groups"} - {"experiment"}
    if not isinstance(tree, dict) or not all(isinstance(tree.get(group), dict) for group in groups):
        raise ConfigError("the stored config does not have the form of a config")
    missing = [key for key in _required_keys(tree) if lookup(tree, key) is ABSENT]
    if missing:
        raise ConfigError(f"the stored config lacks {', '.join(missing[:5])}")
    check_settings(tree, reading)
    for key, setting in SETTINGS.items():
        if isinstance(value := lookup(tree, key), Mapping) and (said := setting.check(value)):
            reading.wrong(key, said)
    if not reading.problems:
        check_parameter_groups(tree, reading)
        check_together(tree, reading)
    if reading.problems:
        first = reading.problems[0]
        raise ConfigError(f"the stored config is wrong: {first.where} {first.message}", problems=reading.problems)
    return tree


DATASET_KEYS = ("root", "batch_size", "eval_batch_size", "val_size")
LATER = ("trainer.pretrained",)  # settings that older runs do not have


def _required_keys(tree: Mapping[str, Any]) -> list[str]:
    prefixes = ("seed", "trainer.", "runtime.", "regularization.", "optimizer.lr", "schedule.warmup")
    of_data = DATASET_KEYS + kind_of(tree["dataset"]).required
    of_all = (key for key in SETTINGS if key.startswith(prefixes) and key not in LATER)
    return [*of_all, *(f"dataset.{key}" for key in of_data)]


def change_stored(tree: dict[str, Any], words: Sequence[str], allowed: Sequence[str]) -> dict[str, Any]:
    """Apply `key=value` words to a stored config; only `allowed` keys may change. Raises ConfigError."""
    reading = Reading(search=())
    changed = copied(tree)
    for text in words:
        word = parse_word(text, reading)
        if word is None:
            continue
        if word.key not in allowed:
            better = new_name(word.key) or (nearest(word.key, allowed, cutoff=0.75) if "." in word.key else None)
            message = f"cannot be changed here ({', '.join(allowed)} can); a new run can: dlcli train"
            reading.wrong(text, message, f"{better}={printable(word.value)}" if better else None)
        elif said := SETTINGS[word.key].check(word.value):
            reading.wrong(text, said)
        else:
            parent, leaf = word.key.rsplit(".", 1)
            lookup(changed, parent)[leaf] = word.value
            reader = lookup(changed, f"{parent}.reader")  # whose `root: ${dataset.root}` was resolved long ago
            if isinstance(reader, dict) and leaf in reader:
                reader[leaf] = word.value
    if reading.problems:
        error = _as_error(reading, words, "")
        raise ConfigError(error.message, problems=error.problems)
    return changed
