"""From the words of a command to one checked config, without torch; every mistake is told at once.

    composed = compose_command(["mnist", "optimizer.lr=0.01", "model=lenet5"])
    composed.tree["optimizer"]["lr"]          plain, resolved data

words.py reads the words, composing.py lets Hydra compose, values.py sets the values, checks.py looks at the whole, and
why.py tells who set a key.

Hydra composes; what may be said is decided here: the word's grammar, its key, its type and range, then what the
choices mean together. A group chosen on the command line is taken whole: what the experiment had set inside that
group belonged to the option it replaced.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlcli.confdir import GROUPS, search_path
from dlcli.config.checks import check_kinds, check_parameter_groups, check_settings, check_together, without_effect
from dlcli.config.composing import check_files, compose
from dlcli.config.tree import ABSENT, copied, lookup, plain_data
from dlcli.config.values import resolve, set_values, tell_paths
from dlcli.config.words import Reading, parse_word, read_words
from dlcli.datasets.kinds import gives
from dlcli.errors import ConfigError, nearest, printable
from dlcli.schema import SETTINGS


@dataclass(frozen=True)
class Composed:
    """A checked config. tree: plain, resolved data; choices: group -> option; warnings: settings without effect."""

    experiment: str
    overrides: tuple[str, ...]
    choices: dict[str, str]
    tree: dict[str, Any]
    search: tuple[Path, ...]
    warnings: tuple[str, ...] = ()


def compose_command(
    words: Sequence[str],
    *,
    config_dir: str | None = None,
    search: Sequence[Path] | None = None,
    command: str = "train",
    made: dict[tuple[str, ...], tuple[Any, dict[str, str]]] | None = None,
) -> Composed:
    """The config that a command means. Raises ConfigError with every mistake in it; imports no torch.

    search: the config folders, where they are known. made: filled with what Hydra composes, to be given again by who
    composes many commands that differ in values only: ten times as fast, but changes of the files are not seen.
    """
    reading = read_words(words, search_path(config_dir) if search is None else search, command)
    tree, raw = {}, {}
    if made is None:
        check_files(reading)
    if not _is_uncomposed(reading):
        config = compose(reading) if made is None else _compose_once(reading, made)
        if config is not None:
            set_values(config, reading)
            raw = plain_data(config, resolve=False)
            if not _is_uncomposed(reading) and check_kinds(raw, reading):
                tree = resolve(config, raw, reading)
    if tree and not _is_uncomposed(reading):
        check_settings(tree, reading)
        check_parameter_groups(tree, reading)
        check_together(tree, reading)
    tell_paths(raw.get("dataset", {}), reading)
    if reading.problems:
        raise _as_error(reading, words, command)
    overrides = tuple(w.text for w in [*reading.chosen.values(), *reading.values])
    warnings = tuple(without_effect(tree, raw, reading.choices))
    return Composed(reading.experiment, overrides, reading.choices, tree, tuple(reading.search), warnings)


def _compose_once(reading: Reading, made: dict[tuple[str, ...], tuple[Any, dict[str, str]]]) -> Any:
    groups = sorted(f"{group}={word.value}" for group, word in reading.chosen.items())
    key = (reading.experiment, str(reading.experiment_path), *map(str, reading.search), *groups)
    if key not in made:
        check_files(reading)
        config = None if _is_uncomposed(reading) else compose(reading)
        if config is None or reading.problems:
            return config
        made[key] = (config, reading.choices)
    config, choices = made[key]
    reading.choices = dict(choices)
    return deepcopy(config)


def _is_uncomposed(reading: Reading) -> bool:
    return any(p.message.startswith("cannot be composed") for p in reading.problems)


def check_stored(tree: object) -> dict[str, Any]:
    """A config that comes from a run or checkpoint, held to the same types and ranges. Raises ConfigError."""
    reading = Reading(search=())
    groups = {*GROUPS, "trainer", "parameter_groups"} - {"experiment"}
    if not isinstance(tree, dict) or not all(isinstance(tree.get(group), dict) for group in groups):
        raise ConfigError("the stored config has not the shape of a config")
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
IMAGE_KEYS = ("num_classes", "image_shape", "mean", "std", "workers", "resident", "download")


def _required_keys(tree: Mapping[str, Any]) -> list[str]:
    prefixes = ("seed", "trainer.", "runtime.", "regularization.", "optimizer.lr", "schedule.warmup")
    of_data = DATASET_KEYS + IMAGE_KEYS if gives(tree["dataset"]) == "images" else DATASET_KEYS
    of_all = (key for key in SETTINGS if key.startswith(prefixes) and key not in LATER)
    return [*of_all, *(f"dataset.{key}" for key in of_data)]


def change_stored(tree: dict[str, Any], words: Sequence[str], allowed: Sequence[str]) -> dict[str, Any]:
    """A stored config with `key=value` words applied, where only `allowed` keys may change. Raises ConfigError."""
    reading = Reading(search=())
    changed = copied(tree)
    for text in words:
        word = parse_word(text, reading)
        if word is None:
            continue
        if word.key not in allowed:
            better = nearest(word.key, allowed, cutoff=0.75) if "." in word.key else None
            told = f"cannot be changed here ({', '.join(allowed)} can); a new run can: dlcli train"
            reading.wrong(text, told, f"{better}={printable(word.value)}" if better else None)
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


def split_reference(words: Sequence[str] | None) -> tuple[str | None, list[str]]:
    """The run or checkpoint that a command names first, and its `key=value` words. Raises ConfigError for more names.

    A name with `=` in it must exist as a path to count as one.
    """
    names = [w for w in words or () if "=" not in w or Path(w).exists()]
    if len(names) > 1:
        told = f"{len(names)} runs are named: {', '.join(printable(n, limit=60) for n in names)}; one is needed"
        raise ConfigError(told, hint="Settings are written key=value.")
    return (names[0] if names else None), [w for w in words or () if w not in names]


def _as_error(reading: Reading, words: Sequence[str], command: str) -> ConfigError:
    order = [printable(word, limit=80) for word in words]
    reading.problems.sort(
        key=lambda p: next((i for i, word in enumerate(order) if p.where.startswith(word)), len(order))
    )
    count = len(reading.problems)
    message = f"{count} problem{'s' if count > 1 else ''} in the command, nothing was started"
    hint = None
    if all(p.better for p in reading.problems):
        better = {p.where: str(p.better) for p in reading.problems}
        hint = "try:  " + " ".join(["dlcli", command, *_proposed(words, better)])
    return ConfigError(message, hint=hint, problems=reading.problems)


def _proposed(words: Sequence[str], better: Mapping[str, str]) -> Iterator[str]:
    """The command with its better words, behind them those that take no word's place; to be pasted into a shell.

    A problem shows a long word cut, and a flag together with its value.
    """
    rest, open_problems, given = list(words), dict(better), set()
    while rest:
        word = rest.pop(0)
        pair, alone = (printable(text, limit=80) for text in (" ".join([word, *rest[:1]]), word))
        if rest and pair in better:
            rest.pop(0)
        where = pair if pair in better else alone
        open_problems.pop(where, None)
        given.add(text := better.get(where) or shlex.quote(word))
        yield text
    yield from (text for text in open_problems.values() if text not in given)
