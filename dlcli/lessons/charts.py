"""Curves made of characters, several side by side: braille dots, or ' . : if the terminal has none.

for line in side_by_side(charts, width=80): print(line)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from dlcli.lessons.lesson import Chart

HEIGHT = 6  # rows of characters
LABEL = 7  # columns for the numbers beside a curve
GAP = 2
NARROWEST, WIDEST = 17, 34  # columns of one chart, its numbers included
BRAILLE = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # the bit of each dot: [column][row]


def side_by_side(charts: Sequence[Chart], *, width: int, ascii_only: bool = False) -> Iterator[str]:
    """The lines of all charts, as many in a row as fit; rows are equally full if possible."""
    across = max(1, min(len(charts), (width - 2) // (NARROWEST + GAP)))
    across = math.ceil(len(charts) / math.ceil(len(charts) / across))
    each = min(WIDEST, (width - 2) // across - GAP)
    for start in range(0, len(charts), across):
        blocks = [block(chart, each, ascii_only=ascii_only) for chart in charts[start : start + across]]
        for parts in zip(*blocks, strict=True):
            yield ("  " + (" " * GAP).join(f"{part:<{each}}" for part in parts)).rstrip()
        yield ""


def block(chart: Chart, width: int, *, ascii_only: bool) -> list[str]:
    """One chart: its title, HEIGHT rows of curve with the highest and lowest value beside them, the ends of x."""
    ys = [y for y in chart.ys if math.isfinite(y)]
    low, high = chart.limits or ((min(ys), max(ys)) if ys else (0.0, 0.0))
    if low == high:
        low, high = low - 0.5, high + 0.5
    room = width - LABEL
    rows = plot(chart.ys, low, high, room, ascii_only=ascii_only)
    labels = [_number(high), *[""] * (HEIGHT - 2), _number(low)]
    left, right = _number(chart.x[0]), _number(chart.x[1])
    lines = [f"{label:>{LABEL - 1}} {row}" for label, row in zip(labels, rows, strict=True)]
    title = " " * max(0, min(LABEL, width - len(chart.title))) + chart.title[:width]
    return [title, *lines, " " * LABEL + f"{left}{right:>{room - len(left)}}"]


def plot(ys: Sequence[float], low: float, high: float, width: int, *, ascii_only: bool) -> list[str]:
    """The curve alone, neighbouring points joined; values beyond low and high stay at the edge."""
    columns, rows = (width, HEIGHT * 2) if ascii_only else (width * 2, HEIGHT * 4)
    dots: set[tuple[int, int]] = set()
    before: int | None = None
    for column in range(columns):
        y = ys[round(column / (columns - 1) * (len(ys) - 1))]
        share = (high - y) / (high - low)
        row = round(min(max(share, 0.0), 1.0) * (rows - 1)) if math.isfinite(y) else None
        if row is not None:
            nearest = row if before is None else before + (row > before) - (row < before)
            dots |= {(column, r) for r in range(min(nearest, row), max(nearest, row) + 1)}
        before = row
    return _ascii(dots, width) if ascii_only else _braille(dots, width)


def _braille(dots: set[tuple[int, int]], width: int) -> list[str]:
    cells = [[0] * width for _ in range(HEIGHT)]
    for column, row in dots:
        cells[row // 4][column // 2] |= BRAILLE[column % 2][row % 4]
    return ["".join(chr(0x2800 + bits) if bits else " " for bits in line) for line in cells]


def _ascii(dots: set[tuple[int, int]], width: int) -> list[str]:
    return [
        "".join(" '.:"[((x, 2 * y) in dots) + 2 * ((x, 2 * y + 1) in dots)] for x in range(width))
        for y in range(HEIGHT)
    ]


def _number(value: float) -> str:
    """At most six characters."""
    if value == 0 or 0.001 <= abs(value) < 10_000:
        return f"{value:.4g}" if float(value).is_integer() else f"{value:.3g}"
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
