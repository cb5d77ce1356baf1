"""Puts the command's values into the tree; reports each key that does not exist or does not take its value."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from math import isfinite
from typing import Any

from dlcli.config.folders import bodies
from dlcli.config.renamed import new_name, new_value, renamed_word
from dlcli.config.settings import SETTINGS, setting_of_kind
from dlcli.config.tree import ABSENT, BUILD_KEYS, OPEN_NODES, leaves, lookup, plain_data
from dlcli.config.words import Reading, Word, spell_key, written
from dlcli.errors import any_of, nearest, printable

SPOKEN_SWITCH = dict.fromkeys(("yes", "y", "on", "1"), "true") | dict.fromkeys(("no", "n", "off", "0"), "false")
OPTIONAL = re.compile(
    r"\$\{oc\.select:[a-z_]+(\.[a-z_]+)*,null\}"
)  # a model's reference to what only some datasets have


def set_values(config: Any, reading: Reading) -> None:
    """Put the values of known keys into the tree; report the others, each with the nearest key."""
    from omegaconf import OmegaConf, open_dict

    tree = plain_data(config, resolve=False)
    keys = [key for key, _ in leaves(tree)]
    for word in reading.values:
        old = lookup(tree, word.key)
        is_open = word.key.startswith(tuple(f"{node}." for node in OPEN_NODES)) and word.key.count(".") == 2
        if word.prefix == "~":
            reading.wrong(
                word.text,
                "a setting cannot be left out; set it to null",
                f"{word.key}=null" if word.key in keys else None,
            )
        elif any(part in BUILD_KEYS for part in word.key.split(".")):
            reading.wrong(
                word.text,
                "the chosen option, like model=mlp, decides what is built; it cannot be set on the command line",
            )
        elif word.key not in keys and not is_open:
            _unknown_key(word, tree, keys, old, reading)
        elif (said := _wrong_value(word, old)) is not None:
            better = _nearest_choice(word, old) or _shown_default(word.key, tree)
            reading.wrong(word.text, said, f"{word.key}={better}" if better is not None else None)
        else:
            with open_dict(config):
                OmegaConf.update(config, word.key, word.value, merge=False)


def _nearest_choice(word: Word, old: Any) -> str | None:
    """Return the choice or number closest to a value that a setting refuses; None if none is near."""
    choices = (SETTINGS.get(word.key) or setting_of_kind(old)).choices
    numbers = [choice for choice in choices if type(choice) is int]
    if type(word.value) in (int, float) and isfinite(word.value) and numbers:
        return str(min(numbers, key=lambda number: abs(number - word.value)))
    value = str(word.value).lower()
    if (new := new_value(word.key, value)) in choices:
        return new
    if True in choices and (meant := SPOKEN_SWITCH.get(value)):
        return meant
    return nearest(value, [str(choice).lower() if isinstance(choice, bool) else str(choice) for choice in choices])


def _shown_default(key: str, tree: Mapping[str, Any]) -> str | None:
    value = lookup(tree, key)
    if value is None or value is ABSENT or isinstance(value, Mapping) or "${" in str(value):
        return None
    return shlex.quote(written(value)) if isinstance(value, str) else written(value)


def _wrong_value(word: Word, old: Any) -> str | None:
    """Return what is wrong with a value, before the tree is resolved; interpolations are checked later."""
    if isinstance(word.value, Mapping):
        return "sets a whole group; set its keys one by one"
    if isinstance(word.value, str) and "${" in word.value:
        return None
    setting = SETTINGS.get(word.key) or setting_of_kind(old)
    return setting.check(word.value)


def _unknown_key(word: Word, tree: Mapping[str, Any], keys: list[str], old: Any, reading: Reading) -> None:
    value = _typed(word.text)
    if isinstance(old, Mapping) or (isinstance(word.value, Mapping) and word.key.startswith(OPEN_NODES)):
        _whole_group(word, old, reading)
        return
    if new := new_name(word.key):
        owners = [] if new in keys else _options_that_have(new, reading)
        where = f", a setting of {new.partition('.')[0]}={any_of(owners)}" if owners else ""
        reading.wrong(word.text, f"{word.key} is called {new}{where}", renamed_word(word.text) if new in keys else None)
        return
    if word.key == "dataset.path" and _is_root_alone(tree["dataset"]):
        reading.wrong(word.text, "these data are in a folder or an archive", f"dataset.root={value}")
        return
    if others := _options_that_have(word.key, reading):
        group = word.key.split(".", 1)[0]
        chosen = reading.chosen[group].value if group in reading.chosen else "the one chosen here"
        reading.wrong(word.text, f"is a setting of {group}={any_of(others)}, not of {chosen}", None)
        return
    better = spell_key(word.key, reading, keys)
    same_leaf = better is not None and better.rsplit(".", 1)[-1] == word.key.rsplit(".", 1)[-1]
    parent = word.key.rsplit(".", 1)[0] if "." in word.key else ""
    misplaced = same_leaf and (not parent or lookup(tree, parent) is not ABSENT)
    siblings = [k for k in keys if parent and k.startswith(parent + ".")]
    message = "is in another group" if misplaced else "there is no such setting"
    reading.wrong(
        word.text,
        message if better or not siblings else f"{message} ({', '.join(siblings[:8])})",
        f"{better}={value}" if better else None,
    )


def _is_root_alone(dataset: Mapping[str, Any]) -> bool:
    """Return whether `root` names a user's own dataset: its classes are counted there, and it has no path."""
    return "path" not in dataset and "root" in dataset and dataset.get("num_classes", 0) is None


def tell_paths(dataset: Mapping[str, Any], reading: Reading) -> None:
    """Report the words that are files or folders; the first one may be the dataset's, if nothing else names it."""
    key = "path" if "path" in dataset else "root" if _is_root_alone(dataset) else None
    for number, path in enumerate(reading.paths):
        is_free = key is not None and number == 0 and dataset[key] is None
        message = "is a file or folder; an experiment was named already, and settings are written key=value"
        reading.wrong(path, message, shlex.quote(f"dataset.{key}={written(path)}") if is_free else None)


def _whole_group(word: Word, old: Any, reading: Reading) -> None:
    """Report a group that is set as a whole, and suggest its settings one by one."""
    inside = [f"{word.key}.{name}" for name in old if name not in BUILD_KEYS] if isinstance(old, Mapping) else []
    if word.key in OPEN_NODES:
        inside = [f"{word.key}.GROUP.match", f"{word.key}.GROUP.SETTING"]
    named = f": {', '.join(inside)}" if inside else ""
    given = word.value if isinstance(word.value, Mapping) and "${" not in word.text else {}
    better = " ".join(shlex.quote(f"{key}={written(value)}") for key, value in leaves(given, word.key + "."))
    reading.wrong(word.text, f"is a group of settings, which are set one by one{named}", better or None)


def _typed(text: str) -> str:
    return text.partition("=")[2]


def _options_that_have(key: str, reading: Reading) -> list[str]:
    """Return the other options of the key's group that have this setting."""
    group, _, rest = key.partition(".")
    return [name for name, body in bodies(group, reading.search) if lookup(body, rest) is not ABSENT] if rest else []


def resolve(config: Any, raw: Mapping[str, Any], reading: Reading) -> dict[str, Any]:
    """Return the tree with interpolations resolved; {}, with a problem noted, if that fails."""
    from omegaconf.errors import OmegaConfBaseException

    strings = [
        (key, v)
        for key, value in leaves(raw)
        for v in (value if isinstance(value, list) else [value])
        if isinstance(v, str)
    ]
    foreign = [(key, v) for key, v in strings if re.search(r"\$\{[^}]*[:\$]", OPTIONAL.sub("", v))]
    for key, value in foreign:
        where = reading.word_for(f"{key}={value}")
        reading.wrong(where, "only ${other.setting} is allowed in ${...}; let the shell fill in its variables")
    if foreign:
        return {}
    try:
        tree = plain_data(config, resolve=True)
    except (OmegaConfBaseException, RecursionError) as error:
        key = getattr(error, "full_key", None) or "the config"
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        reading.wrong(reading.word_for(str(key)), f"cannot be resolved: {printable(first, limit=120)}")
        return {}
    for key, value in strings:
        if isinstance(lookup(tree, key), Mapping):
            where = reading.word_for(f"{key}={value}")
            reading.wrong(where, "refers to a whole group of settings; name one of them")
    tree.pop("experiment", None)
    return tree
