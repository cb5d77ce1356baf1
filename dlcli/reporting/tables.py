"""Tables on stdout: Rich on a terminal, plain columns in a pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from dlcli.reporting.display import _without_nan
from dlcli.reporting.output import Output, clean, is_terminal, size_of
from dlcli.reporting.rich_display import LABEL, STRONG


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    json_rows: Sequence[Mapping[str, Any]] | None = None,
    stream: TextIO | None = None,
) -> None:
    """A table for people on a terminal; aligned lines under one header line elsewhere; with `json_rows`, those
    instead, one object per line.

    Cells are shown as they come (None as –); a column whose cells are all numbers is set to the right.
    """
    stream = stream or sys.stdout
    out = Output(stream)
    if json_rows is not None:
        out.write("".join(json.dumps(_without_nan(dict(row)), default=str) + "\n" for row in json_rows))
        return
    terminal = is_terminal(stream)
    empty = "–" if terminal else "-"
    cells = [[empty if cell is None or cell == "" else clean(cell) for cell in row] for row in rows]
    right = [bool(cells) and all(_is_number(row[i], empty) for row in cells) for i in range(len(columns))]
    if terminal:
        print_rich_table(stream, clean(title), columns, cells, right)
        return
    widths = [max(len(name), *(len(row[i]) for row in cells), 0) for i, name in enumerate(columns)]
    for row in [list(columns), *cells]:
        aligned = (f"{c:>{w}}" if r else f"{c:<{w}}" for c, w, r in zip(row, widths, right, strict=True))
        out.write("  ".join(aligned).rstrip() + "\n")


def _is_number(cell: str, empty: str) -> bool:
    try:
        float(cell.rstrip("%").replace(",", ""))
    except ValueError:
        return cell == empty
    return True


def print_rich_table(
    stream: TextIO, title: str, columns: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[bool]
) -> None:
    """A table for `dlcli.reporting.tables.print_table`: long cells are folded, never cut."""
    from rich.table import Table

    out = Output(stream)
    console = Console(file=out, force_terminal=True, markup=False, highlight=False, emoji=False)  # type: ignore[arg-type]
    console.size = size_of(stream)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style=LABEL + STRONG)
    for name, is_right in zip(columns, right, strict=True):
        table.add_column(name, justify="right" if is_right else "left", overflow="fold", no_wrap=is_right)
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    if title:
        console.print(Text(title, STRONG))
    console.print(table)
