"""The words of a command, parsed by Hydra's own grammar and sorted by kind."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dlcli.config.folders import SWEEP, groups, in_short, options, packaged_conf
from dlcli.config.renamed import SETTINGS as RENAMED
from dlcli.config.settings import SETTINGS
from dlcli.errors import Problem, nearest, printable

DEFAULT_EXPERIMENT = "digits"
LONGEST_WORD = 4_096
_FLAGS = ("--json", "--debug", "--config-dir", "--outputs", "--trust", "--help")
FLAGS = {  # of the commands that take words, to find the one that was meant
    "train": (*_FLAGS, "--seeds", "--profile", "--max-restarts"),
    "plan": _FLAGS,
    "info": (*_FLAGS, "--depth", "--latency"),
    "sweep": (
        *_FLAGS, "--trials", "--sampler", "--pruner", "--objective", "--workers", "--name", "--seed", "--keep",
        "--max-failures", "--dry-run", "--storage", "--grace",
    ),
}  # fmt: skip


@dataclass
class Word:
    """One `key=value` of the command, parsed by Hydra's own grammar."""

    text: str
    key: str
    value: Any
    prefix: str = ""  # "", "+", "++" or "~"


@dataclass
class Reading:
    """The words of a command, sorted by kind, and the problems found in them."""

    search: Sequence[Path]
    command: str = "train"
    experiment: str = DEFAULT_EXPERIMENT
    experiment_path: Path | None = None
    chosen: dict[str, Word] = field(default_factory=dict)
    values: list[Word] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)  # words that are not settings but exist as files
    problems: list[Problem] = field(default_factory=list)
    choices: dict[str, str] = field(default_factory=dict)  # group -> option, the experiment's included

    def wrong(self, where: str, message: str, better: str | None = None) -> None:
        self.problems.append(Problem(printable(where, limit=80), message, better))

    def word_for(self, where: str) -> str:
        """Return the word of the command that set a key, or `where` itself if none did."""
        key = where.partition("=")[0]
        for word in [*self.values, *self.chosen.values()]:
            if word.key == key:
                return word.text
        return where


def read_words(words: Sequence[str], search: Sequence[Path], command: str = "train") -> Reading:
    """Sort the words into experiment, group choices and values; report the others."""
    reading = Reading(search=search, command=command)
    known_groups = groups(search)
    rest = list(words)
    is_experiment_read = False
    while rest:
        word = rest.pop(0)
        if word.startswith("-"):
            _read_flag(word, rest, reading)
        elif "=" in word or word.startswith(("~", "+", "@")):
            if (parsed := parse_word(word, reading)) is not None:
                _sort_word(parsed, known_groups, reading)
        elif not is_experiment_read:
            is_experiment_read = True
            _read_experiment(word, reading)
        elif os.path.exists(word):
            reading.paths.append(word)
        else:
            better = spell_key(word, reading)
            reading.wrong(
                word, "an experiment was named already; settings are written key=value", better and f"{better}=VALUE"
            )
    return reading


def parse_word(text: str, reading: Reading) -> Word | None:
    """Parse a word with one value; None, with a problem noted, if it does not parse or has several values."""
    override = parse_override(text, reading)
    if override is None:
        return None
    if override.is_sweep_override():
        reading.wrong(text, "means several values; one value is needed here")
        return None
    value = override.value()
    if override.package is not None or not re.fullmatch(r"[\w./-]+", override.key_or_group or ""):
        reading.wrong(text, "is not written like key=value")
        return None
    prefix = re.match(r"^(\+\+|\+|~)?", text)
    return Word(text, override.key_or_group, _unquoted(value), prefix.group(0) if prefix else "")


def parse_override(text: str, reading: Reading) -> Any:
    """Parse one word with Hydra's grammar to an Override; None, with a problem noted, if it does not parse."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if len(text) > LONGEST_WORD or _depth(text) > 16:
        reading.wrong(text, f"longer than {LONGEST_WORD:,} characters, or brackets nested deeper than 16")
        return None
    if any(not c.isprintable() for c in text):
        reading.wrong(text, "holds a control character")
        return None
    try:
        override = OverridesParser.create().parse_override(text)
        override.value()
    except (HydraException, RecursionError, ValueError, AttributeError, TypeError) as error:
        reading.wrong(text, f"is not written like key=value{_caret(str(error))}")
        return None
    return override


def written(value: Any) -> str:
    """Write a value as it is typed after `=`: the reverse of reading a word."""
    from hydra.core.override_parser.types import Quote, QuotedString

    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, str):
        return value if _reads_back(value) else str(QuotedString(value, Quote.single).with_quotes())
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _reads_back(text: str) -> bool:
    """Return whether Hydra reads this unquoted word as itself, unlike `a,b`, `1`, `true`, `it's`. Tried in a list."""
    override = parse_override(f"x=[{text}]", Reading(search=()))
    return override is not None and bool(override.value() == [text])


def _unquoted(value: Any) -> Any:
    """Turn Hydra's quoted strings into plain strings."""
    if hasattr(value, "text") and hasattr(value, "quote"):
        return str(value.text)
    if isinstance(value, list):
        return [_unquoted(v) for v in value]
    if isinstance(value, dict):
        return {str(_unquoted(k)): _unquoted(v) for k, v in value.items()}
    return value


def _depth(text: str) -> int:
    deepest = now = 0
    for c in text:
        now += (c in "[{(") - (c in "]})")
        deepest = max(deepest, now)
    return deepest


def _caret(message: str) -> str:
    """Point to where Hydra's grammar stopped, without its words for programmers."""
    lines = [line for line in message.splitlines() if line.strip()]
    first = lines[0] if lines else ""
    return (
        f": {printable(first.lower(), limit=80)}"
        if first.startswith(("no viable", "mismatched", "extraneous", "missing", "token"))
        else ""
    )


def _read_flag(word: str, rest: list[str], reading: Reading) -> None:
    """Report argparse's style (`--lr 0.1`), or a misspelt flag of dlcli."""
    name, equals, value = word.lstrip("-").partition("=")
    shown = word
    if not equals and rest and not rest[0].startswith("-") and "=" not in rest[0]:
        value = rest.pop(0)
        shown = f"{word} {value}"
    key = spell_key(name.replace("-", "_"), reading)
    flag = nearest("--" + name, FLAGS.get(reading.command, FLAGS["train"]), cutoff=0.75)
    if key is not None and (flag is None or nearest(name, [key.rsplit(".", 1)[-1]], cutoff=0.8)):
        reading.wrong(shown, "settings are written key=value, without dashes", f"{key}={value or 'VALUE'}")
    else:
        reading.wrong(shown, "there is no such option", flag)


def _read_experiment(word: str, reading: Reading) -> None:
    known = options("experiment", reading.search)
    path = Path(word)
    if word in known:
        reading.experiment = word
        if packaged_conf() not in known[word].parents:  # the user's own: it need not say `# @package _global_`
            reading.experiment_path = known[word]
    elif path.suffix in (".yaml", ".yml"):
        if path.is_file():
            reading.experiment, reading.experiment_path = (
                re.sub(r"[^A-Za-z0-9._-]", "_", path.stem).lstrip("._-") or "experiment",
                path,
            )
        else:
            reading.wrong(word, "there is no such file")
    else:
        better = nearest(word, known)
        reading.experiment = better or DEFAULT_EXPERIMENT
        reading.wrong(
            word, f"there is no such experiment ({in_short('experiment', known)}; or a path to a YAML file)", better
        )


def _sort_word(word: Word, known_groups: Sequence[str], reading: Reading) -> None:
    """Sort a word into a group's choice or a setting's value."""
    if word.key == SWEEP:
        reading.wrong(word.text, f"is a search over many trials; use: dlcli sweep {reading.experiment} {word.text}")
        return
    if word.key not in known_groups:
        if better := _meant_choice(word, known_groups, reading):
            reading.wrong(word.text, "there is no such group or setting", better)
        else:
            reading.values.append(word)
        return
    if word.prefix == "~":
        reading.wrong(
            word.text, "a group cannot be left out; choose another option", _an_option(word.key, "none", reading)
        )
    elif word.key == "experiment":
        reading.wrong(word.text, "the experiment is named without experiment=", str(word.value))
    elif word.key in reading.chosen:
        reading.wrong(word.text, f"{word.key} was chosen already: {reading.chosen[word.key].text}")
    elif isinstance(word.value, str) and word.value in options(word.key, reading.search):
        reading.chosen[word.key] = word
    else:
        known = options(word.key, reading.search)
        better = nearest(str(word.value), known)
        reading.wrong(
            word.text, f"there is no such {word.key} ({in_short(word.key, known)})", better and f"{word.key}={better}"
        )
        if better:
            reading.chosen[word.key] = Word(word.text, word.key, better)


def _meant_choice(word: Word, known_groups: Sequence[str], reading: Reading) -> str | None:
    """Correct a misspelt group by its name and its option: `model=gru` for `modl=gru`."""
    group = None if word.key in SETTINGS or "." in word.key else nearest(word.key, known_groups, cutoff=0.7)
    option = nearest(word.value, options(group, reading.search)) if group and isinstance(word.value, str) else None
    return f"{group}={option}" if option else None


def _an_option(group: str, name: str, reading: Reading) -> str | None:
    return f"{group}={name}" if name in options(group, reading.search) else None


def spell_key(word: str, reading: Reading, keys: Iterable[str] | None = None) -> str | None:
    """Return the setting closest to `word`: first by its last name (lr -> optimizer.lr), then by the whole key."""
    known = (
        list(keys)
        if keys is not None
        else [k for k in SETTINGS if not k.startswith(("task.", "model.generator", "model.discr"))]
    )
    parts = word.split(".")
    aliases = {
        "batch": "batch_size",
        "learning_rate": "lr",
        "max_epochs": "epochs",
        "num_epochs": "epochs",
        "wd": "weight_decay",
        "gpus": "devices",
    }
    aliases |= {old.rpartition(".")[2]: new.rpartition(".")[2] for old, new in RENAMED.items()}
    leaf = aliases.get(parts[-1], parts[-1])
    if len(parts) > 1 and (same_place := nearest(word, known, cutoff=0.8)):
        return same_place
    by_leaf = [k for k in known if k.rsplit(".", 1)[-1] == leaf]
    if by_leaf:
        return nearest(word, by_leaf, cutoff=-1.0) if len(parts) > 1 else _owner(by_leaf)
    leaves = {k.rsplit(".", 1)[-1]: k for k in reversed(known)}
    near_leaf = nearest(leaf, leaves, cutoff=0.72)
    return leaves[near_leaf] if near_leaf else nearest(word, known, cutoff=0.7)


def _owner(keys: list[str]) -> str:
    """Choose among keys with the same last name the one whose value the others follow."""
    order = ("trainer", "optimizer", "regularization", "dataset", "runtime")
    return min(keys, key=lambda k: order.index(k.split(".")[0]) if k.split(".")[0] in order else len(order))
