"""What differs between runs: their settings, without those that only follow another; and where and when they ran."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from dlcli.config.folders import GROUPS, options
from dlcli.config.naming import option_of
from dlcli.config.tree import ABSENT, leaves, lookup

OPTION_GROUPS = [group for group in GROUPS if group != "experiment"]
NO_SETTINGS = ("name", "seed")  # shown elsewhere, or without effect
_FOLLOWS = re.compile(r"\$\{([\w.]+)\}")
Record = Mapping[str, Any]


class Differing(NamedTuple):
    """A setting and its value in each run; ABSENT where a run has none."""

    key: str
    values: tuple[Any, ...]


def differing_settings(records: Sequence[Record], search: Sequence[Path]) -> list[Differing]:
    """The choices that differ, then the settings, of runs' records.

    Where an option differs, the settings that only one of the options has come with it, and are shown only if somebody
    set them. A setting that follows another, as `dropout: ${regularization.dropout}` does, is shown once, by the other.
    What was left open to the runtime is as it was measured.
    """
    chosen = [{group: _option(record, group) for group in OPTION_GROUPS} for record in records]
    found = [Differing(g, tuple(c[g] for c in chosen)) for g in OPTION_GROUPS if len({c[g] for c in chosen}) > 1]
    others = {row.key for row in found}
    flat = [dict(leaves(record["config"])) | _measured(record) for record in records]
    followed = [_followed(record, search) for record in records]
    asked = {word.partition("=")[0].lstrip("+~") for record in records for word in record.get("overrides") or ()}
    for key in dict.fromkeys(key for settings in flat for key in settings):
        values = tuple(settings.get(key, ABSENT) for settings in flat)
        if key in NO_SETTINGS or all(value == values[0] for value in values):
            continue
        if ABSENT in values and key.partition(".")[0] in others and key not in asked:
            continue
        if not all(_follows(key, r, s, f) for r, s, f in zip(records, flat, followed, strict=True)):
            found.append(Differing(key, values))
    return found


def _measured(record: Record) -> dict[str, Any]:
    """The threads, memory format and precision that the run had, where its config leaves them open."""
    runtime, device = record["config"]["runtime"], _part(record, "device")
    is_open = (key for key in ("threads", "precision", "channels_last") if runtime.get(key) in ("auto", None))
    return {f"runtime.{key}": device[key] for key in is_open if key in device}


def _option(record: Record, group: str) -> str | None:
    """As recorded; of a run that records none, what its config says."""
    return option_of(group, record["config"], record.get("choices"))


def _follows(key: str, record: Record, settings: Mapping[str, Any], followed: Mapping[str, str]) -> bool:
    """Whether a run's value is that of the setting it follows, or there is none."""
    if key not in settings:
        return True
    return key in followed and lookup(record["config"], followed[key]) == settings[key]


def _followed(record: Record, search: Sequence[Path]) -> dict[str, str]:
    """key -> the key it follows, as the files of the run's choices say."""
    found: dict[str, str] = {}
    for conf in search:
        if (conf / "train.yaml").is_file():
            found |= _interpolations(conf / "train.yaml", "")
            break
    for group in OPTION_GROUPS:
        if path := options(group, search).get(str(_option(record, group))):
            found |= _interpolations(path, f"{group}.")
    return found


@lru_cache(maxsize=64)
def _interpolations(path: Path, prefix: str) -> dict[str, str]:
    import yaml

    try:
        body = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, UnicodeDecodeError, RecursionError):
        return {}
    pairs = leaves(body, prefix) if isinstance(body, dict) else ()
    matches = ((key, _FOLLOWS.fullmatch(value)) for key, value in pairs if isinstance(value, str))
    return {key: match[1] for key, match in matches if match}


def shown(value: Any) -> str | None:
    """A value as a command line has it; None for one that is not there."""
    if value is ABSENT:
        return None
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(str(shown(part)) for part in value)}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


# -------------------------------------------------------------------------------------------------------- environment


def differing_environment(before: Record, after: Record) -> list[tuple[str, str, str]]:
    """(what, before, after) of versions, device, git commit and data, as two runs' records say."""
    rows = [*_pairs("", before, after, "versions"), *_pairs("device ", before, after, "device")]
    rows = [row for row in rows if row[0] != "device torch"]  # a version already
    rows.append(("git commit", _commit(before.get("git")), _commit(after.get("git"))))
    rows += [(what, one[:12], other[:12]) for what, one, other in _pairs("data ", before, after, "data")]
    return [row for row in rows if row[1] != row[2]]


def _pairs(prefix: str, before: Record, after: Record, part: str) -> Iterator[tuple[str, str, str]]:
    one, other = _part(before, part), _part(after, part)
    for name in dict.fromkeys([*one, *other]):
        yield f"{prefix}{name}", str(one.get(name, "-")), str(other.get(name, "-"))


def _part(record: Record, name: str) -> dict[str, Any]:
    found = record.get(name)
    return found if isinstance(found, dict) else {}


def _commit(git: object) -> str:
    if not isinstance(git, dict):
        return "-"
    return f"{str(git.get('commit'))[:10]}{' with changes' if git.get('dirty') else ''}"
