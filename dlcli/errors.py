"""The errors of dlcli and their exit codes.

    DlcliError                 70  a fault of dlcli's own
      ConfigError               2  the command or a config is wrong: nothing was started
      DataError                 3  data are missing, damaged or unusable
      CheckpointError           4  damaged, of another model, or refused
      EnvironmentFault          5  device, memory, disk, permission, missing package
        OutOfMemory             5  the computation does not fit into memory
      DivergedError             6  the loss is not a number any more
      TrackerError              7  the tracker failed although it was required

The numbers are the exit codes. Every error says what is wrong, with the value, and `hint` says what to do.
130 and 143 follow SIGINT and SIGTERM, with the state saved.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher


class DlcliError(Exception):
    """message: what is wrong, with the value; hint: what to do, or None."""

    code = 70
    is_on_record = False  # whether a run's last event has already reported it
    is_told_elsewhere = False  # whether another rank prints it

    def __init__(self, message: str, *, hint: str | None = None):
        super().__init__(message)
        self.message, self.hint = message, hint


@dataclass(frozen=True)
class Problem:
    """One mistake in a command: the wrong word, what is wrong with it, and a better word if one is known."""

    where: str
    message: str
    better: str | None = None


class ConfigError(DlcliError):
    """One or more mistakes in the command or in a config file; `problems` holds them all.

    undone: the word for what was not done because of them.
    """

    code = 2

    def __init__(
        self, message: str, *, hint: str | None = None, problems: Iterable[Problem] = (), undone: str = "started"
    ):
        super().__init__(message, hint=hint)
        self.problems, self.undone = tuple(problems), undone


class DataError(DlcliError):
    code = 3


class CheckpointError(DlcliError):
    code = 4


class EnvironmentFault(DlcliError):
    code = 5


class OutOfMemory(EnvironmentFault):
    pass


class DivergedError(DlcliError):
    code = 6


class TrackerError(DlcliError):
    code = 7


def nearest(word: str, names: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The name most like `word`, or None if none is like it. Ties go to the first name.

    A name that merely extends the word (`lenet` for `lenet5`) counts as very near: people abbreviate.
    """
    best, best_score = None, cutoff
    for name in names:
        score = SequenceMatcher(None, word.lower(), name.lower()).ratio()
        if len(word) >= 3 and name.lower().startswith(word.lower()):
            score = max(score, 0.9)
        if score > best_score:
            best, best_score = name, score
    return best


def any_of(names: Iterable[str], *, most: int = 8) -> str:
    """A list in words: a; a or b; a, b or c; if there are more than `most`, only the first: a, b or 3 others."""
    shown = list(names)
    if len(shown) > most:
        shown[most - 1 :] = [f"{len(shown) - most + 1} others"]
    return " or ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def first_of(problems: Iterable[str], *, most: int = 10) -> str:
    """The first mistakes found, and how many more there are: a; b; and 3 more."""
    found = list(problems)
    return "; ".join([*found[:most], *([f"and {len(found) - most:,} more"] if len(found) > most else [])])


def printable(text: object, *, limit: int = 200) -> str:
    """`text` with control characters escaped and cut at `limit`, so that no value can steer a terminal."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"
