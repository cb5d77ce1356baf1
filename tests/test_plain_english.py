"""The voice of the project: plain English. Habits that a native reader stumbles over are counted and kept near zero."""

from __future__ import annotations

import re
from collections.abc import Iterator

from program import REPOSITORY

MOST = 30
WORDS = ("told", "behind", "anew", "dearest", "surest")
HABITS = (*(rf"\b{word}\b" for word in WORDS), r"\bis no [a-z]", r"\bstands\b(?! out)", r'"""Of ')


def texts() -> Iterator[tuple[str, str]]:
    """(file, line) of all code, configs and the README."""
    paths = [*(REPOSITORY / "dlcli").rglob("*.py"), *(REPOSITORY / "conf").rglob("*.yaml"), REPOSITORY / "README.md"]
    for path in sorted(paths):
        for line in path.read_text(encoding="utf-8").splitlines():
            yield str(path.relative_to(REPOSITORY)), line


def habits_in(line: str) -> int:
    """How many of the habits a line has; "there is no x" is plain English."""
    plain = re.sub(r"\b[Tt]here is no ", "", line)
    return sum(len(re.findall(habit, plain)) for habit in HABITS)


def test_a_habit_is_found() -> None:
    assert habits_in('"""Of what is told: it is no file, and stands behind the name."""') == 5
    assert habits_in("there is no such file; what stands out") == 0


def test_texts_are_plain() -> None:
    found = [f"{path}: {line.strip()}" for path, line in texts() if habits_in(line)]
    assert len(found) <= MOST, "\n".join(found)
