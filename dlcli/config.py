"""From the words of a command to one checked config, without torch; every mistake is told at once.

    composed = compose_command(["mnist", "optimizer.lr=0.01", "model=lenet5"])
    composed.tree["optimizer"]["lr"]          plain, resolved data

Hydra composes; what may be said is decided here: the word's grammar, its key, its type and range, then what the
choices mean together. A group chosen on the command line is taken whole: what the experiment had set inside that
group belonged to the option it replaced.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from dlcli.confdir import check_user_yaml, groups, options, packaged_conf, search_path
from dlcli.errors import ConfigError, DlcliError, Problem, nearest, printable
from dlcli.run_names import RESERVED_NAMES
from dlcli.schema import SETTINGS, Setting, say, setting_of_kind

DEFAULT_EXPERIMENT = "digits"
LONGEST_WORD = 4_096
FLAGS = ("--json", "--debug", "--config-dir", "--outputs", "--trust", "--help")
OPEN_NODES = ("parameter_groups",)  # whose names are the user's to choose
GIVEN_FILE = "__file__"  # what an experiment given as a file is called in Hydra, where no option has that name
BUILD_KEYS = ("_target_", "_partial_", "_args_", "_recursive_", "_convert_", "facts")
LOOP_READS = ("l1", "clip_norm", "early_stopping", "ema")  # the share of regularization that no object reads


@dataclass(frozen=True)
class Composed:
    """A checked config. tree: plain, resolved data; choices: group -> option; warnings: settings without effect."""

    experiment: str
    overrides: tuple[str, ...]
    choices: dict[str, str]
    tree: dict[str, Any]
    search: tuple[Path, ...]
    warnings: tuple[str, ...] = ()


@dataclass
class Word:
    """One `key=value` of the command, taken apart by Hydra's own grammar."""

    text: str
    key: str
    value: Any
    prefix: str = ""  # "", "+", "++" or "~"


@dataclass
class Reading:
    """The words of a command, sorted into what they are, and the problems met on the way."""

    search: Sequence[Path]
    experiment: str = DEFAULT_EXPERIMENT
    experiment_path: Path | None = None
    chosen: dict[str, Word] = field(default_factory=dict)
    values: list[Word] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    choices: dict[str, str] = field(default_factory=dict)  # group -> option, the experiment's included

    def wrong(self, where: str, message: str, better: str | None = None) -> None:
        self.problems.append(Problem(printable(where, limit=80), message, better))


# ----------------------------------------------------------------------------------------------------------- the whole


def compose_command(words: Sequence[str], *, config_dir: str | None = None, command: str = "train") -> Composed:
    """The config that a command means. Raises ConfigError with every mistake in it; imports no torch."""
    reading = read_words(words, search_path(config_dir))
    check_files(reading)
    tree, raw = {}, {}
    if not _is_uncomposed(reading):
        config = compose(reading)
        if config is not None:
            set_values(config, reading)
            raw = _plain(config, resolve=False)
            tree = {} if _is_uncomposed(reading) else resolve(config, raw, reading)
    if tree and not _is_uncomposed(reading):
        check_settings(tree, reading)
        check_together(tree, reading)
    if reading.problems:
        raise _as_error(reading, words, command)
    overrides = tuple(w.text for w in [*reading.chosen.values(), *reading.values])
    warnings = tuple(_without_effect(tree, raw, reading.choices))
    return Composed(reading.experiment, overrides, reading.choices, tree, tuple(reading.search), warnings)


def _is_uncomposed(reading: Reading) -> bool:
    return any(p.message.startswith("cannot be composed") for p in reading.problems)


def check_stored(tree: object) -> dict[str, Any]:
    """A config that comes from a run or checkpoint, held to the same types and ranges. Raises ConfigError."""
    reading = Reading(search=())
    if not isinstance(tree, dict) or not all(
        isinstance(tree.get(g), dict) for g in ("model", "task", "dataset", "trainer")
    ):
        raise ConfigError("the stored config has not the shape of a config")
    missing = [key for key in _required_keys() if _lookup(tree, key) is _ABSENT]
    if missing:
        raise ConfigError(f"the stored config lacks {', '.join(missing[:5])}")
    check_settings(tree, reading)
    for key, setting in SETTINGS.items():
        if isinstance(value := _lookup(tree, key), Mapping) and (said := setting.check(value)):
            reading.wrong(key, said)
    if reading.problems:
        first = reading.problems[0]
        raise ConfigError(f"the stored config is wrong: {first.where} {first.message}", problems=reading.problems)
    return tree


def _required_keys() -> list[str]:
    prefixes = ("seed", "trainer.", "dataset.", "runtime.", "regularization.", "optimizer.lr", "schedule.warmup")
    return [key for key in SETTINGS if key.startswith(prefixes) and key not in ("dataset.name",)]


def change_stored(tree: dict[str, Any], words: Sequence[str], allowed: Sequence[str]) -> dict[str, Any]:
    """A stored config with `key=value` words applied, where only `allowed` keys may change. Raises ConfigError."""
    reading = Reading(search=())
    changed = _copy(tree)
    for text in words:
        word = parse_word(text, reading)
        if word is None:
            continue
        if word.key not in allowed:
            better = nearest(word.key, allowed, cutoff=0.75)
            told = f"cannot be changed here ({', '.join(allowed)} can); a new run can: dlcli train"
            reading.wrong(text, told, f"{better}={printable(word.value)}" if better else None)
        elif said := SETTINGS[word.key].check(word.value):
            reading.wrong(text, said)
        else:
            parent, leaf = word.key.rsplit(".", 1)
            _lookup(changed, parent)[leaf] = word.value
            reader = _lookup(changed, f"{parent}.reader")  # whose `root: ${dataset.root}` was resolved long ago
            if isinstance(reader, dict) and leaf in reader:
                reader[leaf] = word.value
    if reading.problems:
        raise _as_error(reading, words, "resume")
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
    """The command with its better words. A problem shows a long word cut, and a flag together with its value."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        pair = printable(" ".join([word, *rest[:1]]), limit=80)
        if rest and pair in better:
            rest.pop(0)
            yield better[pair]
        else:
            yield better.get(printable(word, limit=80), word)


# ---------------------------------------------------------------------------------------------------- reading the words


def read_words(words: Sequence[str], search: Sequence[Path]) -> Reading:
    """Sort the words into experiment, group choices and values; note what is none of these."""
    reading = Reading(search=search)
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
        else:
            better = _spell_key(word, reading)
            reading.wrong(
                word, "an experiment was named already; settings are written key=value", better and f"{better}=VALUE"
            )
    return reading


def parse_word(text: str, reading: Reading) -> Word | None:
    """Hydra's grammar on one word; None, and a problem noted, when it does not parse or means several values."""
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
        if override.is_sweep_override():
            reading.wrong(text, "means several values; one value is needed here")
            return None
        value = override.value()
    except (HydraException, RecursionError, ValueError, AttributeError, TypeError) as error:
        reading.wrong(text, f"is not written like key=value{_caret(str(error))}")
        return None
    if override.package is not None or not re.fullmatch(r"[\w./-]+", override.key_or_group or ""):
        reading.wrong(text, "is not written like key=value")
        return None
    prefix = re.match(r"^(\+\+|\+|~)?", text)
    return Word(text, override.key_or_group, _unquoted(value), prefix.group(0) if prefix else "")


def _unquoted(value: Any) -> Any:
    """Hydra marks quoted strings; plain data do not."""
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
    """Where Hydra's grammar stopped, without its words for programmers."""
    lines = [line for line in message.splitlines() if line.strip()]
    first = lines[0] if lines else ""
    return (
        f": {printable(first.lower(), limit=80)}"
        if first.startswith(("no viable", "mismatched", "extraneous", "missing", "token"))
        else ""
    )


def _read_flag(word: str, rest: list[str], reading: Reading) -> None:
    """`--lr 0.1` and its kin: people who come from argparse; or a real flag, misspelt."""
    name, equals, value = word.lstrip("-").partition("=")
    shown = word
    if not equals and rest and not rest[0].startswith("-") and "=" not in rest[0]:
        value = rest.pop(0)
        shown = f"{word} {value}"
    key = _spell_key(name.replace("-", "_"), reading)
    flag = nearest("--" + name, FLAGS, cutoff=0.75)
    if key is not None and (flag is None or nearest(name, [key.rsplit(".", 1)[-1]], cutoff=0.8)):
        reading.wrong(shown, "settings are written key=value, without dashes", f"{key}={value or 'VALUE'}")
    else:
        reading.wrong(shown, "there is no such option", flag)


def _read_experiment(word: str, reading: Reading) -> None:
    known = options("experiment", reading.search)
    path = Path(word)
    if word in known:
        reading.experiment = word
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
            word, f"there is no such experiment ({', '.join(sorted(known))}, or a path to a YAML file)", better
        )


def _sort_word(word: Word, known_groups: Sequence[str], reading: Reading) -> None:
    """A group's choice or a setting's value."""
    if word.key not in known_groups:
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
            word.text, f"there is no such {word.key} ({', '.join(sorted(known))})", better and f"{word.key}={better}"
        )
        if better:
            reading.chosen[word.key] = Word(word.text, word.key, better)


def _an_option(group: str, name: str, reading: Reading) -> str | None:
    return f"{group}={name}" if name in options(group, reading.search) else None


# ------------------------------------------------------------------------------------------------------------ composing


def check_files(reading: Reading) -> None:
    """The user's own YAML files, before Hydra reads them: plain, small, without aliases and tags."""
    packaged = packaged_conf()
    paths = [p for group in groups(reading.search) for p in options(group, reading.search).values()]
    paths += [conf / "train.yaml" for conf in reading.search if (conf / "train.yaml").is_file()]
    paths += [reading.experiment_path] if reading.experiment_path else []
    for path in paths:
        if packaged not in path.parents:
            try:
                check_user_yaml(path)
                if _sets_hydra(path):
                    reading.wrong(str(path), "cannot be composed: hydra: its own settings have no effect in dlcli")
            except ConfigError as error:
                problem = error.problems[0] if error.problems else Problem(str(path), error.message)
                reading.wrong(problem.where, f"cannot be composed: {problem.message}")


def _sets_hydra(path: Path) -> bool:
    import yaml

    text = path.read_text(encoding="utf-8")
    return "hydra" in text and "hydra" in (yaml.safe_load(text) or {})


def compose(reading: Reading) -> Any:
    """The OmegaConf tree with every group chosen, no value set yet; None, and a problem noted, when Hydra refuses."""
    from omegaconf import open_dict

    chosen = [f"{group}={word.value}" for group, word in reading.chosen.items()]
    experiment = GIVEN_FILE if reading.experiment_path else reading.experiment
    config = _compose_with_hydra([f"experiment={experiment}", *chosen], reading)
    if config is None:
        return None
    choices = config.hydra.runtime.choices
    reading.choices = {
        g: choices[g] for g in groups(reading.search) if g != "experiment" and choices.get(g) is not None
    }
    plain = _compose_with_hydra([f"{g}={o}" for g, o in reading.choices.items()], reading)
    if plain is None:
        return None
    with open_dict(config), open_dict(plain):
        config.pop("hydra")
        plain.pop("hydra")
        for group in reading.chosen:
            config[group] = plain[group]
    _check_experiment_keys(_plain(config, resolve=False), _plain(plain, resolve=False), reading)
    return config


def _check_experiment_keys(tree: Mapping[str, Any], plain: Mapping[str, Any], reading: Reading) -> None:
    """An experiment sets what its options have, and nothing besides."""
    known = dict(leaves(plain))
    where = str(reading.experiment_path or f"conf/experiment/{reading.experiment}.yaml")
    for key, value in _build_keys(tree):
        if _lookup(plain, key) != value:
            told = f"{key}={printable(value, limit=60)}: what is built is decided by the options chosen"
            reading.wrong(where, f"cannot be composed: {told}")
    for key, value in leaves(tree):
        if key in known or key.startswith(tuple(f"{node}." for node in OPEN_NODES)):
            continue
        if isinstance(_lookup(plain, key), Mapping):
            reading.wrong(where, f"cannot be composed: {key}: is a group of settings, got {say(value)}")
        else:
            better = _spell_key(key, reading, known)
            told = f"cannot be composed: {key}: there is no such setting"
            reading.wrong(where, f"{told}; did you mean {better}?" if better else told)


def _build_keys(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if name in BUILD_KEYS:
            yield prefix + name, value
        elif isinstance(value, Mapping):
            yield from _build_keys(value, f"{prefix}{name}.")


def _compose_with_hydra(overrides: list[str], reading: Reading) -> Any:
    from hydra import compose as hydra_compose
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        with _hydra(reading):
            return hydra_compose("train", overrides=overrides, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, AssertionError, RecursionError) as error:
        lines = [line for line in str(error.__cause__ or error).splitlines() if line.strip()]
        where = str(reading.experiment_path or reading.experiment)
        reading.wrong(where, f"cannot be composed: {printable(lines[0] if lines else type(error).__name__)}")
        return None


def _hydra(reading: Reading) -> Any:
    """Hydra's context with the search path, nearest first, and an experiment given as a file."""
    from hydra import initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    if reading.experiment_path is not None:
        node = OmegaConf.load(reading.experiment_path)
        ConfigStore.instance().store(name=GIVEN_FILE, group="experiment", node=node, package="_global_")
    UsersConf.folders = [str(path) for path in reading.search if path != packaged_conf()]
    _register(UsersConf)
    return initialize_config_dir(str(packaged_conf()), version_base="1.3")


class UsersConf:
    """Hydra's search-path plugin that puts the user's folders in front of dlcli's own."""

    folders: list[str]


@cache
def _register(users: type[UsersConf]) -> None:
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class Plugin(SearchPathPlugin):
        def manipulate_search_path(self, search_path: Any) -> None:
            for folder in reversed(users.folders):
                search_path.prepend(provider="user", path=f"file://{folder}")

    Plugins.instance().register(Plugin)


# ------------------------------------------------------------------------------------------------- values into the tree

_ABSENT = object()


def _lookup(tree: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(tree, Mapping) or part not in tree:
            return _ABSENT
        tree = tree[part]
    return tree


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of the settings a user may set, with their values."""
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if name in BUILD_KEYS:
            continue
        if isinstance(value, Mapping) and (value or key in OPEN_NODES):
            yield from leaves(value, key + ".")
        else:
            yield key, value


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _copy(v) for k, v in value.items()}
    return [_copy(v) for v in value] if isinstance(value, list) else value


def _plain(config: Any, *, resolve: bool) -> dict[str, Any]:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(config, resolve=resolve)  # type: ignore[return-value]


def set_values(config: Any, reading: Reading) -> None:
    """Put every value into the tree whose key is there; note the others, each with the nearest right key."""
    from omegaconf import OmegaConf, open_dict

    tree = _plain(config, resolve=False)
    keys = [key for key, _ in leaves(tree)]
    for word in reading.values:
        old = _lookup(tree, word.key)
        is_open = word.key.startswith(tuple(f"{node}." for node in OPEN_NODES)) and word.key.count(".") == 2
        if word.prefix == "~":
            reading.wrong(
                word.text,
                "a setting cannot be left out; set it to null",
                f"{word.key}=null" if word.key in keys else None,
            )
        elif any(part in BUILD_KEYS for part in word.key.split(".")):
            reading.wrong(
                word.text, "what is built is decided by the option chosen, like model=mlp, not on the command line"
            )
        elif word.key not in keys and not is_open:
            _unknown_key(word, tree, keys, old, reading)
        elif (said := _wrong_value(word, old)) is not None:
            current = _shown_default(word.key, tree)
            reading.wrong(word.text, said, f"{word.key}={current}" if current is not None else None)
        else:
            with open_dict(config):
                OmegaConf.update(config, word.key, word.value, merge=False)


def _shown_default(key: str, tree: Mapping[str, Any]) -> str | None:
    value = _lookup(tree, key)
    if value is None or value is _ABSENT or isinstance(value, Mapping) or "${" in str(value):
        return None
    return str(value).lower() if isinstance(value, bool) else str(value).replace(" ", "").replace("'", "")


def _wrong_value(word: Word, old: Any) -> str | None:
    """What is wrong with a value, judged before the whole is resolved; interpolations are judged after."""
    if isinstance(word.value, Mapping):
        return "sets a whole group; set its keys one by one"
    if isinstance(word.value, str) and "${" in word.value:
        return None
    setting = SETTINGS.get(word.key) or setting_of_kind(old)
    return setting.check(word.value)


def _unknown_key(word: Word, tree: Mapping[str, Any], keys: list[str], old: Any, reading: Reading) -> None:
    value = _typed(word.text)
    if isinstance(old, Mapping):
        inside = ", ".join(f"{word.key}.{name}" for name in old if name not in BUILD_KEYS)
        reading.wrong(word.text, f"is a group of settings: {inside}")
        return
    if others := _options_that_have(word.key, reading):
        group = word.key.split(".", 1)[0]
        chosen = reading.chosen[group].value if group in reading.chosen else "the one chosen here"
        reading.wrong(word.text, f"is a setting of {group}={' and '.join(others)}, not of {chosen}", None)
        return
    better = _spell_key(word.key, reading, keys)
    same_leaf = better is not None and better.rsplit(".", 1)[-1] == word.key.rsplit(".", 1)[-1]
    parent = word.key.rsplit(".", 1)[0] if "." in word.key else ""
    misplaced = same_leaf and (not parent or _lookup(tree, parent) is not _ABSENT)
    siblings = [k for k in keys if parent and k.startswith(parent + ".")]
    told = "stands at another place" if misplaced else "there is no such setting"
    reading.wrong(
        word.text,
        told if better or not siblings else f"{told} ({', '.join(siblings[:8])})",
        f"{better}={value}" if better else None,
    )


def _typed(text: str) -> str:
    return text.partition("=")[2]


def _spell_key(word: str, reading: Reading, keys: Iterable[str] | None = None) -> str | None:
    """The setting most like `word`: first by its last name (lr -> optimizer.lr), then by the whole dotted key."""
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
        "num_workers": "workers",
        "wd": "weight_decay",
        "gpus": "devices",
    }
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
    """Of several places with the same last name, the one whose value the others follow."""
    order = ("trainer", "optimizer", "regularization", "dataset", "runtime")
    return min(keys, key=lambda k: order.index(k.split(".")[0]) if k.split(".")[0] in order else len(order))


def _options_that_have(key: str, reading: Reading) -> list[str]:
    """Other options of the key's group that do have this setting."""
    import yaml

    group, _, rest = key.partition(".")
    found = []
    for name, path in options(group, reading.search).items() if rest else ():
        try:
            body = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, OSError, UnicodeDecodeError):
            continue
        if _lookup(body, rest) is not _ABSENT:
            found.append(name)
    return found


def resolve(config: Any, raw: Mapping[str, Any], reading: Reading) -> dict[str, Any]:
    """The tree with interpolations replaced; {} and a problem noted when that cannot be done."""
    from omegaconf.errors import OmegaConfBaseException

    strings = [
        (key, v)
        for key, value in leaves(raw)
        for v in (value if isinstance(value, list) else [value])
        if isinstance(v, str)
    ]
    foreign = [(key, v) for key, v in strings if re.search(r"\$\{[^}]*[:\$]", v)]
    for key, value in foreign:
        where = _word_for(f"{key}={value}", reading)
        reading.wrong(where, "only ${other.setting} may stand in ${...}; let the shell fill in its variables")
    if foreign:
        return {}
    try:
        tree = _plain(config, resolve=True)
    except (OmegaConfBaseException, RecursionError) as error:
        key = getattr(error, "full_key", None) or "the config"
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        reading.wrong(_word_for(str(key), reading), f"cannot be resolved: {printable(first, limit=120)}")
        return {}
    for key, value in strings:
        if isinstance(_lookup(tree, key), Mapping):
            where = _word_for(f"{key}={value}", reading)
            reading.wrong(where, "refers to a whole group of settings; name one of them")
    tree.pop("experiment", None)
    return tree


# --------------------------------------------------------------------------------------------------- checking the whole


def check_settings(tree: Mapping[str, Any], reading: Reading) -> None:
    """Type and range of every setting, wherever it was set; what was told of a word is not told again."""
    told = {p.where.lstrip("+~").partition("=")[0] for p in reading.problems}
    for key, value in leaves(tree):
        setting = SETTINGS.get(key)
        if key in told or setting is None:
            continue
        if value == "???":
            reading.wrong(key, f"must be given: {setting.meaning}", f"{key}=VALUE")
        elif (said := setting.check(value)) is not None:
            word = next((w.text for w in reading.values if w.key == key), None)
            reading.wrong(word or f"{key}={printable(value)}", said)


def check_together(tree: Mapping[str, Any], reading: Reading) -> None:
    """What each choice means for the others: scores, kinds of network, sizes of images, numbers of channels."""
    told = {p.where.lstrip("+~").partition("=")[0] for p in reading.problems}
    for where, message, better in _clashes(tree):
        if where.partition("=")[0] not in told:
            reading.wrong(_word_for(where, reading), message, better)


def _word_for(where: str, reading: Reading) -> str:
    """The word of the command that a clash stands in, if one does."""
    key = where.partition("=")[0]
    for word in [*reading.values, *reading.chosen.values()]:
        if word.key == key:
            return word.text
    return where


def _clashes(tree: Mapping[str, Any]) -> Iterator[tuple[str, str, str | None]]:
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
        yield ("model", f"this model is a {model_facts.get('kind')}; the task needs a {facts.get('models')}", None)
    shape = data.get("image_shape")
    if isinstance(shape, list) and len(shape) == 3 and all(isinstance(n, int) for n in shape):
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
    if tree["name"] in RESERVED_NAMES:
        yield f"name={tree['name']}", "a run cannot be called so: the word means another run or a checkpoint", None
    runtime = tree["runtime"]
    if runtime.get("precision") == "fp16" and runtime.get("device") == "cpu":
        yield ("runtime.precision=fp16", "half precision needs a GPU; on a CPU there is bf16", "runtime.precision=bf16")
    if isinstance(runtime.get("devices"), int) and runtime["devices"] > 1:
        yield (f"runtime.devices={runtime['devices']}", "one device is what works so far", "runtime.devices=1")


def _without_effect(tree: Mapping[str, Any], raw: Mapping[str, Any], choices: Mapping[str, str]) -> Iterator[str]:
    """Regularization that is switched on but that nothing reads, e.g. mixup with a task that has none."""
    readers = " ".join(str(v) for group in ("model", "task", "optimizer") for _, v in leaves(raw[group]))
    for key, value in tree["regularization"].items():
        if key not in LOOP_READS and value and f"${{regularization.{key}}}" not in readers:
            chosen = f"model={choices.get('model')} and task={choices.get('task')}"
            yield f"regularization.{key}={value} has no effect with {chosen}"


def setting_of(key: str, tree: Mapping[str, Any]) -> Setting:
    """The table's entry for a key, or one judged by the value it has."""
    return SETTINGS.get(key) or setting_of_kind(_lookup(tree, key))


__all__ = ["Composed", "DlcliError", "change_stored", "check_stored", "compose_command", "say", "setting_of"]
