"""The parts of a lesson. A topic's file makes a lesson; showing.py prints it; nothing here imports anything heavy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Table:
    """rows: one dict each, with the same keys, as in the JSON.

    formats: how a column's numbers are written, `.4f`, or `%` for a share in per cent.
    heads: a column's head if it is not the key itself; "" for a column that is only in the JSON.
    """

    name: str
    rows: Sequence[dict[str, Any]]
    formats: dict[str, str]
    heads: dict[str, str] = field(default_factory=dict)

    def _shown(self) -> list[str]:
        return [key for key in self.rows[0] if self.heads.get(key) != ""]

    def columns(self) -> list[str]:
        return [self.heads.get(key, key.replace("_", " ")) for key in self._shown()]

    def cells(self) -> list[list[str]]:
        return [[self._cell(row[key], self.formats.get(key, "")) for key in self._shown()] for row in self.rows]

    @staticmethod
    def _cell(value: Any, form: str) -> str:
        if not isinstance(value, float):
            return str(value)
        text = f"{100 * value:.1f} %" if form == "%" else f"{value:{form or '.4g'}}"
        return text if text.strip("-0.") else text.removeprefix("-")  # no -0.00


@dataclass(frozen=True)
class Chart:
    """One curve for the terminal.

    x: its first and last place; limits: the lowest and highest value shown; None: those of the curve.
    """

    title: str
    ys: Sequence[float]
    x: tuple[float, float]
    limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class Lesson:
    """draw: fills a blank figure of `size` inches; command: does the same with PyTorch; `does`: describes it."""

    topic: str
    title: str
    tables: Sequence[Table]
    charts: Sequence[Chart]
    notes: Sequence[str]
    draw: Callable[[Figure], None]
    size: tuple[float, float]
    command: str
    does: str
