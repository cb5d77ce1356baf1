"""The pictures of a sweep: its course, what mattered, all settings side by side, and the Pareto front.

    draw_sweep(folder, definition, records)      {"history": "outputs/sweeps/<name>/history.png", ...}

A picture that would say nothing, of too few trials, is left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlcli.reporting.pictures import COLOURS, OTHERS, blank_figure, save_figure
from dlcli.sweep.results.importance import importance
from dlcli.sweep.results.parallel import draw_parallel
from dlcli.sweep.results.scales import cut, dress, inside, label
from dlcli.sweep.status.display import figure as written
from dlcli.sweep.status.display import short_axes
from dlcli.sweep.study.definition import Definition, Objective
from dlcli.sweep.study.ranking import front, ranked
from dlcli.sweep.study.trial_record import FAILURES, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = tuple[float, float]

WIDTH = 7.0  # inches: 840 dots
BLUE, GREEN, GREY = COLOURS["train"], COLOURS["test"], "0.65"
MARKS = {  # what a trial without a value is drawn as: marker, colour, states
    "stopped early": ("|", OTHERS[1], ("pruned",)),
    "diverged": ("x", COLOURS["val"], ("diverged",)),
    "failed": ("s", OTHERS[0], FAILURES),
}
MOST_BARS = 15
FEWEST_PAIRS = 2  # trials to be set side by side
LABEL_DOTS = (24.0, 17.0)  # room of a number, across and down


def draw_sweep(
    folder: Path, definition: Definition, records: Sequence[Record], shares: Mapping[str, float] | None = None
) -> dict[str, str]:
    """Draw all that there is something to say about; name -> path. shares: the importance, where it is known."""
    shares = importance(definition, records) if shares is None else shares
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
    _add_legend(figure)
    return figure


def _draw_course(axes: Axes, results: Sequence[Record], objective: Objective) -> None:
    numbers, values = [r.number for r in results], [_value(r) for r in results]
    limits = dress(axes, "y", objective, values)
    better = max if objective.goal == "max" else min
    best = list(itertools.accumulate(values, better))
    axes.step(numbers, best, where="post", color=GREEN, linewidth=1.8, label="best so far", zorder=2)
    size = 5 if len(results) <= 60 else 3.5
    points = list(zip(numbers, values, strict=True))
    _draw_points(axes, points, objective, limits, color=BLUE, ms=size, label="trial", zorder=3)
    place = values.index(best[-1])
    message = f"trial {numbers[place]}: {written(objective.name, best[-1])}"
    _dots(axes, [(numbers[place], best[-1])], marker="*", color=GREEN, ms=15, mew=0.8, zorder=4, label=message)
    _dress_frame(axes)


def _draw_points(
    axes: Axes, points: Sequence[Point], objective: Objective, limits: tuple[float, float], **style: Any
) -> None:
    """Those far worse than the rest as arrows at the edge."""
    _dots(axes, [(x, y) for x, y in points if inside(y, limits) == y], **style)
    marker, word = ("v", "far below") if objective.goal == "max" else ("^", "far above")
    beyond = [(x, inside(y, limits)) for x, y in points if inside(y, limits) != y]
    _dots(axes, beyond, **style | {"marker": marker, "ms": 6, "label": word, "clip_on": False})


def _dots(axes: Axes, points: Sequence[Point], **style: Any) -> None:
    if points:
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, **{"marker": "o", "ls": "", "mec": "white", "mew": 0.4, **style})


def _dress_frame(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_strip(axes: Axes, marked: Mapping[str, Sequence[int]]) -> None:
    for name, numbers in marked.items():
        marker, colour, _ = MARKS[name]
        _dots(axes, [(n, 0.0) for n in numbers], marker=marker, color=colour, ms=6, mec=colour, mew=1.6, label=name)
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
    axes.set_yticks(range(len(shown)), [cut(names[key], 28) for key, _ in shown], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlim(0, max(share for _, share in shown) * 1.12)
    axes.set_xticks([])
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(left=False)
    rest = len(shares) - len(shown)
    message = f"what mattered for {label(definition.objectives[0])}: share of its variance"
    message += f" ({rest} smaller ones are not shown)" if rest else ""
    figure.suptitle(message, fontsize=10, x=0.01, ha="left", parse_math=False)
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
    limits = dress(axes, "y", up, [_value(r) for r in results], [_value(r) for r in best])
    reach = dress(axes, "x", across, [_value(r, 1) for r in results], [_value(r, 1) for r in best])
    rest = [(inside(_value(r, 1), reach), _value(r)) for r in results if r.number not in chosen]
    _draw_points(axes, rest, up, limits, color=GREY, ms=5, label="dominated")
    points = sorted((inside(_value(r, 1), reach), inside(_value(r), limits), r.number) for r in best)
    if len(definition.objectives) == 2:
        corner = "steps-post" if across.goal == "min" else "steps-pre"
        axes.plot([x for x, _, _ in points], [y for _, y, _ in points], drawstyle=corner, color=GREEN, lw=1.6, zorder=3)
    message = "front, with the number of the trial"
    _dots(axes, [(x, y) for x, y, _ in points], color=GREEN, ms=7, mew=0.6, zorder=4, label=message)
    _dress_frame(axes)
    _add_legend(figure)
    _number(figure, axes, points)
    return figure


def _number(figure: Figure, axes: Axes, points: Sequence[tuple[float, float, int]]) -> None:
    """Write the trials' numbers above or below the points where there is room, the ends of the front first."""
    figure.draw_without_rendering()
    dots = [(float(x), float(y)) for x, y in axes.transData.transform([(x, y) for x, y, _ in points])]
    taken: list[Point] = []
    order = dict.fromkeys([0, len(points) - 1, *range(len(points))])
    for i in order:
        for up in (1, -1):
            place = (dots[i][0], dots[i][1] + up * LABEL_DOTS[1])
            others = [*taken, *dots[:i], *dots[i + 1 :]]
            if not any(abs(place[0] - x) < LABEL_DOTS[0] and abs(place[1] - y) < LABEL_DOTS[1] for x, y in others):
                taken.append(place)
                x, y, number = points[i]
                offset = (0, up * LABEL_DOTS[1] * 72 / figure.dpi)
                style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9, "color": "0.2"}
                axes.annotate(str(number), (x, y), offset, textcoords="offset points", **style)
                break


def _add_legend(figure: Figure) -> None:
    """Above the picture, in one row or two."""
    num = len({text for axes in figure.axes for text in axes.get_legend_handles_labels()[1]})
    columns = num if num <= 4 else (num + 1) // 2
    figure.legend(loc="outside upper center", ncols=columns, frameon=False, fontsize="small", handletextpad=0.4)


def _value(record: Record, objective: int = 0) -> float:
    assert record.values
    return record.values[objective]
