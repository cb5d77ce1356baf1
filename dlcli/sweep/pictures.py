"""The pictures of a sweep: its course, what mattered, all settings side by side, and the Pareto front.

    draw_sweep(folder, definition, records)      {"history": "outputs/sweeps/<name>/history.png", ...}

A picture that would say nothing, of too few trials, is left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dlcli.errors import printable
from dlcli.pictures import COLOURS, OTHERS, blank_figure, save_figure
from dlcli.sweep.definition import Definition, Objective
from dlcli.sweep.display import figure as written
from dlcli.sweep.display import short_axes
from dlcli.sweep.importance import importance
from dlcli.sweep.parallel import draw_parallel
from dlcli.sweep.ranking import front, ranked
from dlcli.sweep.record import FAILURES, Record
from dlcli.sweep.scales import dress, inside, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 7.0  # inches: 840 dots
BLUE, GREEN, GREY = COLOURS["train"], COLOURS["test"], "0.65"
MARKS = {  # what a trial without a value is drawn as: marker, colour, states
    "stopped early": ("|", OTHERS[1], ("pruned",)),
    "diverged": ("x", COLOURS["val"], ("diverged",)),
    "failed": ("s", OTHERS[0], FAILURES),
}
MOST_BARS = 15
FEWEST_PAIRS = 2  # trials to be set side by side
LABEL_DOTS = (26.0, 18.0)  # room of a number beside a point, across and down


def draw_sweep(folder: Path, definition: Definition, records: Sequence[Record]) -> dict[str, str]:
    """Draw all that there is something to say about; name -> path."""
    shares = importance(definition, records)
    figures = {
        "history": _history(definition, records),
        "importance": _importance(definition, shares),
        "parallel": _parallel(definition, records, shares),
        "pareto": _pareto(definition, records),
    }
    drawn = {name: folder / f"{name}.png" for name, figure in figures.items() if figure is not None}
    for name, path in drawn.items():
        save_figure(figures[name], path)  # type: ignore[arg-type]
    return {name: str(path) for name, path in drawn.items()}


# ------------------------------------------------------------------------------------------------------------- history


def _history(definition: Definition, records: Sequence[Record]) -> Figure | None:
    """The first objective of each trial and the best so far; below, the trials that have no value."""
    results = sorted(ranked(records, definition.objectives), key=lambda record: record.number)
    if not results:
        return None
    marked = {name: [r.number for r in records if r.state in states] for name, (_, _, states) in MARKS.items()}
    has_strip = any(marked.values())
    figure = blank_figure(WIDTH, 3.9 + 0.4 * has_strip)
    grid = figure.add_gridspec(2, 1, height_ratios=(1, 0.09 if has_strip else 1e-6), hspace=0.02)
    axes = figure.add_subplot(grid[0])
    _draw_course(axes, results, definition.objectives[0])
    below = axes
    if has_strip:
        axes.tick_params(labelbottom=False)
        below = figure.add_subplot(grid[1], sharex=axes)
        _draw_strip(below, marked)
    _dress_numbers(below, records)
    figure.legend(loc="outside upper center", ncols=6, frameon=False, fontsize="small", handletextpad=0.4)
    return figure


def _draw_course(axes: Axes, results: Sequence[Record], objective: Objective) -> None:
    numbers, values = [r.number for r in results], [_value(r) for r in results]
    limits = dress(axes, "y", objective, values)
    better = max if objective.goal == "max" else min
    best = list(itertools.accumulate(values, better))
    axes.step(numbers, best, where="post", color=GREEN, linewidth=1.8, label="best so far", zorder=2)
    shown = [(n, v) for n, v in zip(numbers, values, strict=True) if limits[0] <= v <= limits[1]]
    size = 5 if len(results) <= 60 else 3
    axes.plot(*zip(*shown, strict=True), "o", color=BLUE, ms=size, mec="white", mew=0.4, label="trial", zorder=3)
    _draw_beyond(axes, [(n, v) for n, v in zip(numbers, values, strict=True)], limits, objective)
    place = values.index(best[-1])
    axes.plot(
        numbers[place],
        best[-1],
        "*",
        color=GREEN,
        ms=15,
        mec="white",
        mew=0.8,
        zorder=4,
        label=_told(results[place], objective),
    )
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _told(record: Record, objective: Objective) -> str:
    return f"trial {record.number}: {written(objective.name, _value(record))}"


def _draw_beyond(
    axes: Axes, points: Sequence[tuple[float, float]], limits: tuple[float, float], objective: Objective
) -> None:
    """Those far worse than the rest, at the edge."""
    beyond = [(x, inside(y, limits)) for x, y in points if not limits[0] <= y <= limits[1]]
    if beyond:
        marker, word = ("v", "below") if objective.goal == "max" else ("^", "above")
        axes.plot(
            *zip(*beyond, strict=True), marker, color=BLUE, ms=6, ls="", clip_on=False, label=f"far {word}", zorder=3
        )


def _draw_strip(axes: Axes, marked: Mapping[str, Sequence[int]]) -> None:
    for name, numbers in marked.items():
        marker, colour, _ = MARKS[name]
        if numbers:
            axes.plot(numbers, [0] * len(numbers), marker, color=colour, ms=7, mew=1.8, ls="", label=name)
    axes.set_yticks([])
    axes.set_ylim(-1, 1)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _dress_numbers(axes: Axes, records: Sequence[Record]) -> None:
    from matplotlib.ticker import MaxNLocator

    last = max(record.number for record in records)
    margin = max(0.5, 0.02 * last)
    axes.set_xlim(-margin, last + margin)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("trial")


# ---------------------------------------------------------------------------------------------------------- importance


def _importance(definition: Definition, shares: Mapping[str, float]) -> Figure | None:
    if not shares:
        return None
    names = short_axes(list(shares))
    shown = list(shares.items())[:MOST_BARS]
    figure = blank_figure(WIDTH, 1.1 + 0.34 * len(shown))
    axes = figure.add_subplot()
    bars = axes.barh(range(len(shown)), [share for _, share in shown], color=BLUE, height=0.62)
    axes.bar_label(bars, [f"{100 * share:.0f} %" for _, share in shown], padding=5)
    axes.set_yticks(range(len(shown)), [printable(names[key], limit=28) for key, _ in shown], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlim(0, max(share for _, share in shown) * 1.12)
    axes.set_xticks([])
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(left=False)
    rest = len(shares) - len(shown)
    told = f"what mattered for {label(definition.objectives[0])}: share of its variance"
    axes.set_title(
        told + (f" ({rest} smaller ones not shown)" if rest else ""), fontsize=10, loc="left", parse_math=False
    )
    return figure


# ------------------------------------------------------------------------------------------------------- side by side


def _parallel(definition: Definition, records: Sequence[Record], shares: Mapping[str, float]) -> Figure | None:
    results = ranked(records, definition.objectives)
    if len(results) < FEWEST_PAIRS:
        return None
    return draw_parallel(definition, results, shares)


# -------------------------------------------------------------------------------------------------------------- pareto


def _pareto(definition: Definition, records: Sequence[Record]) -> Figure | None:
    """The first objective over the second; with a third one, the front has points that look dominated."""
    results = ranked(records, definition.objectives)
    if len(definition.objectives) < 2 or len(results) < FEWEST_PAIRS:
        return None
    up, across = definition.objectives[:2]
    best = front(records, definition.objectives)
    chosen = {record.number for record in best}
    figure = blank_figure(WIDTH, 4.4)
    axes = figure.add_subplot()
    limits = dress(axes, "y", up, [_value(r) for r in results])
    reach = dress(axes, "x", across, [_value(r, 1) for r in results])
    rest = [(inside(_value(r, 1), reach), inside(_value(r), limits)) for r in results if r.number not in chosen]
    if rest:
        axes.plot(
            *zip(*rest, strict=True),
            "o",
            color=GREY,
            ms=5,
            mec="white",
            mew=0.4,
            ls="",
            label="another is better in all",
            clip_on=False,
        )
    points = sorted((inside(_value(r, 1), reach), inside(_value(r), limits), r.number) for r in best)
    line = "-" if len(definition.objectives) == 2 else ""
    where = "steps-post" if across.goal == "min" else "steps-pre"
    axes.plot([p[0] for p in points], [p[1] for p in points], ls=line, drawstyle=where, color=GREEN, lw=1.6, zorder=3)
    axes.plot(
        [p[0] for p in points],
        [p[1] for p in points],
        "o",
        color=GREEN,
        ms=7,
        mec="white",
        mew=0.6,
        zorder=4,
        label="front (number of the trial)",
    )
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize="small")
    _number(figure, axes, points)
    return figure


def _number(figure: Figure, axes: Axes, points: Sequence[tuple[float, float, int]]) -> None:
    """Write the trials' numbers beside the points, as many as there is room for, the ends of the front first."""
    figure.draw_without_rendering()
    taken: list[tuple[float, float]] = []
    for x, y, number in [points[0], points[-1], *points[1:-1]]:
        dot_x, dot_y = axes.transData.transform((x, y))
        if any(abs(dot_x - a) < LABEL_DOTS[0] and abs(dot_y - b) < LABEL_DOTS[1] for a, b in taken):
            continue
        taken.append((float(dot_x), float(dot_y)))
        axes.annotate(str(number), (x, y), (0, 7), textcoords="offset points", ha="center", fontsize=9, color="0.2")


def _value(record: Record, objective: int = 0) -> float:
    assert record.values
    return record.values[objective]
