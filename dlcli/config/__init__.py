"""From the words of a command to one checked config, without torch; every mistake is reported at once.

    composed = compose_command(["mnist", "optimizer.lr=0.01", "model=lenet5"])
    composed.tree["optimizer"]["lr"]          plain, resolved data

words.py reads the words, composing.py lets Hydra compose, values.py sets the values, checks.py checks the whole, and
why.py shows who set a key.

Hydra composes; the checks are here: the word's grammar, its key, its type and range, then whether the choices fit
together. A group chosen on the command line replaces the whole group: what the experiment had set inside it belonged
to the option it replaced.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlcli.config.checks import check_kinds, check_parameter_groups, check_settings, check_together, without_effect
from dlcli.config.composing import check_files, compose
from dlcli.config.folders import search_path
from dlcli.config.tree import plain_data
from dlcli.config.values import resolve, set_values, tell_paths
from dlcli.config.words import Reading, read_words
from dlcli.errors import ConfigError, printable


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
    """Compose the config that a command describes. Raises ConfigError with every mistake in it; imports no torch.

    search: the config folders, if they are known. made: a cache of what Hydra composed. Pass it again to compose many
    commands that differ only in values: this is ten times as fast, but does not see changes in the files.
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


def split_reference(words: Sequence[str] | None) -> tuple[str | None, list[str]]:
    """Return the run or checkpoint named by a command, and its `key=value` words. Raises ConfigError for two names.

    A name that contains `=` counts as a name only if it exists as a path.
    """
    names = [w for w in words or () if "=" not in w or Path(w).exists()]
    if len(names) > 1:
        message = f"{len(names)} runs are named: {', '.join(printable(n, limit=60) for n in names)}; one is needed"
        raise ConfigError(message, hint="Settings are written key=value.")
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
    """Return the corrected command, to be pasted into a shell; words that replace no other word come last.

    A problem shortens a long word, and shows a flag together with its value.
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
