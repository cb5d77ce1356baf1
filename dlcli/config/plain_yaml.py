"""A user's YAML, read as plain data: no object tags, no aliases, at most 1 MB.

Each mistake is reported with its line. `targets` lists the `_target_` strings of the config folders: the allow-list.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from dlcli.config.folders import _yaml_files
from dlcli.errors import ConfigError, Problem, printable

MAX_BYTES = 1_000_000
MAX_DEPTH = 32


# ------------------------------------------------------------------------------------------------- what a file may hold


def check_user_yaml(path: Path) -> None:
    """Raise ConfigError, with file:line:column, unless the file is plain, small YAML with a mapping on top.

    Only parser events are read and nothing is constructed: 230 bytes of aliases cost OmegaConf seconds, but nothing
    here. The events come from PyYAML's own scanner, which OmegaConf uses too; the one in C is ten times faster but
    reads some texts differently.
    An empty file is allowed (an option that sets nothing).
    """
    text = _read_plain_text(path)
    for mark, problem in yaml_problems(text):
        raise _refusal(path, mark, problem)


def targets(search: Sequence[Path]) -> frozenset[str]:
    """Collect every exact `_target_` in the YAML files of the search path: the allow-list of what may be built.

    A file that may not be read adds nothing; its error is reported when the file is used.
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
    """Yield the problems of a text, in order; the caller stops at the first, so a YAML bomb is never expanded."""
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
            said += '; inside {...} and [...] an interpolation needs quotes: "${...}"'
        yield ((at.line + 1, at.column + 1) if at else (1, 1)), said
    except yaml.YAMLError as error:  # a character that YAML does not allow
        yield (1, 1), printable(error)


class _OpenNode:
    """A mapping or list that is still open; a mapping knows its keys and whether a key or a value comes next."""

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
            yield f"the key {printable(event.value)} occurs a second time here"
        else:
            parent.keys.add(event.value)
    parent.expects_key = not parent.expects_key


def _target_values(text: str) -> Iterator[str]:
    """Find targets: in a checked text keys are words, so a scalar `_target_` and the next scalar are a key and value.

    They could also be neighbours in a list; nobody writes that, and it would only allow what the author wrote there.
    """
    import yaml

    for key, value in pairwise(_events(text, quick=True)):
        if isinstance(key, yaml.ScalarEvent) and key.value == "_target_" and isinstance(value, yaml.ScalarEvent):
            yield value.value
