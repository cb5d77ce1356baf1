"""Where configs lie: the folders searched, the groups and options in them, and whether a YAML file may be read at all.

Nothing here composes a config or builds an object, and nothing heavier than the standard library is imported at the
top, so that `dlcli list` and completion answer at once. A config file opens with comments for people:

    # dlcli train mnist                 the first line is the command to run
    # LeNet-5 on handwritten digits.    the following lines say what it is
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from dlcli import PACKAGE
from dlcli.errors import ConfigError, Problem, nearest, printable

GROUPS = (
    "experiment",
    "dataset",
    "model",
    "task",
    "optimizer",
    "schedule",
    "regularization",
    "augmentation",
    "runtime",
    "tracker",
)
SWEEP = "sweep"  # the folder of searches: `dlcli sweep` chooses from it, nothing of it is composed
MAX_BYTES = 1_000_000
MAX_DEPTH = 32
MOST_NAMED = 8  # options of a group, in a message


# ---------------------------------------------------------------------------------------------------------- the folders


def packaged_conf() -> Path:
    """The configs dlcli comes with: inside the wheel `dlcli/conf`, in a checkout the repository's `conf/`."""
    return PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"


def search_path(config_dir: str | None = None) -> list[Path]:
    """The config folders, nearest first: the user's, if there is one, then dlcli's own.

    The user's is `config_dir` or, without it, a `./conf` that has at least one folder with the name of a group.
    """
    packaged = packaged_conf()
    if config_dir is not None:
        users = Path(config_dir).expanduser()
        if not users.is_dir():
            raise ConfigError(
                f"--config-dir {printable(config_dir)} is not a folder",
                hint=f"Name a folder that holds some of: {', '.join(GROUPS)}.",
            )
    else:
        users = Path("conf")
        if not any((users / group).is_dir() for group in GROUPS):
            return [packaged]
    users = users.resolve()
    return [packaged] if users == packaged.resolve() else [users, packaged]


def groups(path_list: Sequence[Path]) -> tuple[str, ...]:
    """Names of the folders whose options are composed: known ones in their order, then the user's own, sorted."""
    found = {folder.name for conf in path_list for folder in _folders(conf)} - {SWEEP}
    return tuple(g for g in GROUPS if g in found) + tuple(sorted(found.difference(GROUPS)))


def options(group: str, search: Sequence[Path]) -> dict[str, Path]:
    """Each option of a group (`resnet18`, nested ones as `vision/resnet18`) and its file; the nearest folder wins."""
    found: dict[str, Path] = {}
    for conf in search:
        for path in _yaml_files(conf / group):
            found.setdefault(path.relative_to(conf / group).with_suffix("").as_posix(), path)
    return found


def bodies(group: str, search: Sequence[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each option of a group with what its file holds, as plain data; one that cannot be read is left out here."""
    import yaml

    for name, path in options(group, search).items():
        try:
            body = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, OSError, UnicodeDecodeError, RecursionError):
            continue
        if isinstance(body, dict):
            yield name, body


def _folders(conf: Path) -> Iterator[Path]:
    if conf.is_dir():
        yield from (f for f in sorted(conf.iterdir()) if f.is_dir() and not f.name.startswith((".", "__")))


def _yaml_files(folder: Path) -> list[Path]:
    """Hydra reads `.yaml` and nothing else; hidden files and folders are nobody's options."""
    return sorted(
        path
        for path in folder.rglob("*.yaml")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


# ----------------------------------------------------------------------------------------------------- what a file says


def command(path: Path, group: str, name: str) -> str:
    """The command that runs this file: its first comment line, or the shortest one when that is none."""
    first = next(iter(_opening_comments(path)), "")
    if _is_command(first):
        return first
    return f"dlcli train {name}" if group == "experiment" else f"dlcli train {group}={name}"


def describe(path: Path) -> str:
    """What this file says it is: its comment lines without the command, joined to one line."""
    return " ".join(line for i, line in enumerate(_opening_comments(path)) if i or not _is_command(line))


def _is_command(line: str) -> bool:
    return line.startswith("dlcli ")


def _opening_comments(path: Path) -> list[str]:
    """The comment lines before the first setting, up to a blank one, without Hydra's `# @package`."""
    lines: list[str] = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            text = line.strip()
            if not text.startswith("#") and (text or lines):
                break
            words = text.lstrip("#").strip()
            if not words and len(lines) > 1:  # what follows an empty comment line is for who reads the file
                break
            if words and not words.startswith("@"):
                lines.append(printable(words))
    return lines


# ------------------------------------------------------------------------------------------------- what a file may hold


def check_user_yaml(path: Path) -> None:
    """Raise ConfigError, with file:line:column, unless the file is plain, small YAML with a mapping on top.

    Only parser events are looked at, nothing is constructed: 230 bytes of aliases cost OmegaConf seconds, here nothing.
    The events are those of PyYAML's own scanner, which OmegaConf reads with too; the ten times faster one in C takes
    some texts differently.
    An empty file is allowed (an option that sets nothing).
    """
    text = _read_plain_text(path)
    for mark, problem in yaml_problems(text):
        raise _refusal(path, mark, problem)


def targets(search: Sequence[Path]) -> frozenset[str]:
    """Every exact `_target_` in any YAML of the search path: the allow-list of what may be built.

    A file that may not be read adds nothing; its error is told when the file is used.
    """
    found: set[str] = set()
    for path in chain.from_iterable(_yaml_files(conf) for conf in search):
        try:
            text = _read_plain_text(path)
            if "_target_" in text and not any(True for _ in yaml_problems(text, quick=True)):
                found.update(_target_values(text))
        except ConfigError:
            continue
    return frozenset(found)


Mark = tuple[int, int]  # line and column, both from 1


def _refusal(path: Path, mark: Mark, problem: str) -> ConfigError:
    where = f"{printable(path)}:{mark[0]}:{mark[1]}"
    return ConfigError(
        f"{where}: {problem}",
        hint="Config files are plain YAML: a mapping of keys to values, without anchors, aliases or tags.",
        problems=[Problem(where, problem)],
    )


def _read_plain_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{printable(path)} cannot be read: {error.strerror}") from error
    if len(raw) > MAX_BYTES:
        raise _refusal(path, (1, 1), f"larger than {MAX_BYTES // 1_000_000} MB")
    if raw.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise _refusal(path, (1, 1), "starts with a byte-order mark; save it as UTF-8 without one")
    if b"\0" in raw:
        raise _refusal(path, _mark_of(raw, raw.index(b"\0")), "holds a NUL byte; save it as UTF-8")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _refusal(path, _mark_of(raw, error.start), "is not UTF-8") from error
    if tab := re.search(r"^ *\t", text, re.MULTILINE):
        raise _refusal(path, _mark_of(raw, len(text[: tab.end() - 1].encode())), "a tab indents; use spaces")
    return text


def _mark_of(raw: bytes, offset: int) -> Mark:
    return raw.count(b"\n", 0, offset) + 1, offset - (raw.rfind(b"\n", 0, offset) + 1) + 1


def _events(text: str, *, quick: bool = False) -> Iterator[Any]:
    import yaml

    return yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader) if quick else yaml.SafeLoader)


def yaml_problems(text: str, *, quick: bool = False) -> Iterator[tuple[Mark, str]]:
    """What is wrong with a text, in order; the caller stops at the first, so that a bomb is never walked through."""
    import yaml

    open_nodes: list[_OpenNode] = []
    documents = 0
    try:
        for event in _events(text, quick=quick):
            mark = (event.start_mark.line + 1, event.start_mark.column + 1)
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    yield mark, "a second document (---) starts here; a config is one"
            elif isinstance(event, yaml.NodeEvent):
                yield from ((mark, problem) for problem in _node_problems(event, open_nodes))
                if isinstance(event, yaml.CollectionStartEvent):
                    open_nodes.append(_OpenNode(isinstance(event, yaml.MappingStartEvent)))
            elif isinstance(event, yaml.CollectionEndEvent):
                open_nodes.pop()
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark or error.context_mark
        said = printable(error.problem or error.context or "not YAML")
        if at and "${" in "".join(text.splitlines()[at.line : at.line + 1]):
            said += '; inside {...} and [...] an interpolation stands in quotes: "${...}"'
        yield ((at.line + 1, at.column + 1) if at else (1, 1)), said
    except yaml.YAMLError as error:  # a character that YAML does not allow
        yield (1, 1), printable(error)


class _OpenNode:
    """A mapping or list not yet closed; a mapping knows its keys and whether a key or a value comes next."""

    def __init__(self, is_mapping: bool):
        self.is_mapping, self.expects_key, self.keys = is_mapping, is_mapping, set[str]()


def _node_problems(event: Any, open_nodes: list[_OpenNode]) -> Iterator[str]:
    import yaml

    if isinstance(event, yaml.AliasEvent):
        yield f"the alias *{printable(event.anchor)}; write the value out, or interpolate with ${{...}}"
        return
    if event.anchor is not None:
        yield f"the anchor &{printable(event.anchor)}; write the value out, or interpolate with ${{...}}"
    if event.tag is not None:
        yield f"the tag {printable(event.tag)}; values are written plainly"
    is_mapping = isinstance(event, yaml.MappingStartEvent)
    if not open_nodes and not is_mapping and not (isinstance(event, yaml.ScalarEvent) and event.value in ("", "null")):
        yield "the top level is not a mapping of keys to values"
    if isinstance(event, yaml.CollectionStartEvent) and len(open_nodes) >= MAX_DEPTH:
        yield f"nested deeper than {MAX_DEPTH}"
    if open_nodes and open_nodes[-1].is_mapping:
        yield from _key_problems(event, open_nodes[-1])


def _key_problems(event: Any, parent: _OpenNode) -> Iterator[str]:
    import yaml

    if parent.expects_key:
        if not isinstance(event, yaml.ScalarEvent):
            yield "a key is a list or a mapping; a key is a word"
        elif event.value in parent.keys:
            yield f"the key {printable(event.value)} stands here a second time"
        else:
            parent.keys.add(event.value)
    parent.expects_key = not parent.expects_key


def _target_values(text: str) -> Iterator[str]:
    """A checked text has only words as keys, so a scalar `_target_` followed by a scalar is a key and its value ...

    ... or two neighbours in a list, which nobody writes and which would only allow what the file's author wrote there.
    """
    import yaml

    for key, value in pairwise(_events(text, quick=True)):
        if isinstance(key, yaml.ScalarEvent) and key.value == "_target_" and isinstance(value, yaml.ScalarEvent):
            yield value.value


def in_short(group: str, names: Iterable[str]) -> str:
    """The options of a group for a message: their names, or of many how to see them."""
    names = sorted(names)
    return ", ".join(names) if len(names) <= MOST_NAMED else f"dlcli list {group} shows all {len(names)}"


def unknown_option(group: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that is no option of its group, with the nearest that is."""
    names = sorted(known)
    better = nearest(name, names)
    message = f"{group}={printable(name)}: there is no such {group}"
    hint = f"Did you mean {group}={better}? " if better else ""
    return ConfigError(
        message,
        hint=f"{hint}({in_short(group, names)})",
        problems=[Problem(f"{group}={printable(name)}", message, better)],
    )
