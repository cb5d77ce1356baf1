"""Where configs are: the folders searched, the groups and options in them, and whether a YAML file may be read.

Nothing here composes a config or builds an object, and only the standard library is imported at the top, so that
`dlcli list` and completion answer at once. A config file begins with comments for people:

    # dlcli train mnist                 the first line is the command to run
    # LeNet-5 on handwritten digits.    the following lines say what it is
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
SWEEP = "sweep"  # the folder of searches: `dlcli sweep` reads it, Hydra does not compose it

MOST_NAMED = 8  # options of a group that a message lists


# ---------------------------------------------------------------------------------------------------------- the folders


def packaged_conf() -> Path:
    """Return the configs that come with dlcli: `dlcli/conf` in the wheel, the repository's `conf/` in a checkout."""
    return PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"


def search_path(config_dir: str | None = None) -> list[Path]:
    """Return the config folders, nearest first: the user's, if there is one, then dlcli's own.

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
    """Return the groups whose options are composed: known ones in their order, then the user's own, sorted."""
    found = {folder.name for conf in path_list for folder in _folders(conf)} - {SWEEP}
    return tuple(g for g in GROUPS if g in found) + tuple(sorted(found.difference(GROUPS)))


def options(group: str, search: Sequence[Path]) -> dict[str, Path]:
    """Map each option of a group (`resnet18`, or nested `vision/resnet18`) to its file; the nearest folder wins."""
    found: dict[str, Path] = {}
    for conf in search:
        for path in _yaml_files(conf / group):
            found.setdefault(path.relative_to(conf / group).with_suffix("").as_posix(), path)
    return found


def bodies(group: str, search: Sequence[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Map each option of a group to its file's content as plain data; unreadable files are left out here."""
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
    """Find the option files: Hydra reads only `.yaml`; hidden files and folders are skipped."""
    return sorted(
        path
        for path in folder.rglob("*.yaml")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


# ----------------------------------------------------------------------------------------------------- what a file says


def command(path: Path, group: str, name: str) -> str:
    """Return the command that runs this file: its first comment line, or the shortest command if that is not one."""
    first = next(iter(_opening_comments(path)), "")
    if _is_command(first):
        return first
    return f"dlcli train {name}" if group == "experiment" else f"dlcli train {group}={name}"


def describe(path: Path) -> str:
    """Return the file's description: its comment lines without the command, joined to one line."""
    return " ".join(line for i, line in enumerate(_opening_comments(path)) if i or not _is_command(line))


def _is_command(line: str) -> bool:
    return line.startswith("dlcli ")


def _opening_comments(path: Path) -> list[str]:
    """Return the comment lines before the first setting, up to a blank one, without Hydra's `# @package`."""
    lines: list[str] = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            text = line.strip()
            if not text.startswith("#") and (text or lines):
                break
            words = text.lstrip("#").strip()
            if not words and len(lines) > 1:  # text after an empty comment line is for readers of the file
                break
            if words and not words.startswith("@"):
                lines.append(printable(words))
    return lines


def in_short(group: str, names: Iterable[str]) -> str:
    """Describe the options of a group for a message: their names, or the command that lists them if there are many."""
    names = sorted(names)
    return ", ".join(names) if len(names) <= MOST_NAMED else f"dlcli list {group} shows all {len(names)}"


def unknown_option(group: str, name: str, known: Iterable[str]) -> ConfigError:
    """Return the error for a name that is not an option of its group, with the nearest option."""
    names = sorted(known)
    better = nearest(name, names)
    message = f"{group}={printable(name)}: there is no such {group}"
    hint = f"Did you mean {group}={better}? " if better else ""
    return ConfigError(
        message,
        hint=f"{hint}({in_short(group, names)})",
        problems=[Problem(f"{group}={printable(name)}", message, better)],
    )
