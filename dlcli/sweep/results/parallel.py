"""Parallel coordinates: a vertical axis per searched setting, a line per trial, coloured by the first objective.

The axis nearest to the objective is the one that mattered most. An axis that does not apply to a trial leaves a gap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dlcli.reporting.pictures import COLOURS, blank_figure
from dlcli.sweep.results.importance import position
from dlcli.sweep.results.scales import cut, formatter, inside, is_log, label, log_locator, window
from dlcli.sweep.space.space import Axis
from dlcli.sweep.status.display import figure as written
from dlcli.sweep.status.display import short_axes, short_value
from dlcli.sweep.study.definition import Definition, Objective
from dlcli.sweep.study.trial_record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_AXES = 8  # more would not be legible
MOST_VALUES = 12  # names along one axis
BAND = 0.05  # how far the lines through one value of a choice stand apart, from the best to the worst
NAME_LENGTH = 14
ROOM_FOR_NAME = 13  # letters over an axis, up to its neighbours
BEST = COLOURS["val"]

Place = Callable[[Record], float | None]  # a trial's place on an axis, 0 to 1; None if it does not apply


def draw_parallel(definition: Definition, results: Sequence[Record], shares: Mapping[str, float]) -> Figure:
    """results: at least one, the best first."""
    objective = definition.objectives[0]
    values = [record.values[0] for record in results if record.values]
    limits = window(objective, values)
    norm = _norm(objective, values, limits)
    axes_shown = _chosen(definition, shares)
    figure = blank_figure(max(6.0, 1.7 + 1.15 * len(axes_shown)), 4.4)
    axes = figure.add_subplot()
    goodness = {r.number: float(norm(inside(v, limits))) for r, v in zip(results, values, strict=True)}
    places = [_place_on(axis, goodness) for axis in axes_shown] + [lambda record: goodness[record.number]]
    _draw_lines(axes, results, places, goodness, objective)
    names = short_axes([axis.key for axis in definition.axes])
    _draw_axes(axes, axes_shown, [*(names[axis.key] for axis in axes_shown), label(objective)])
    _draw_objective(figure, axes, norm, objective, values, limits)
    left_out = len(definition.axes) - len(axes_shown)
    message = f"bold: trial {results[0].number}, {written(objective.name, values[0])}"
    message += f" · {left_out} settings that mattered less are not shown" if left_out else ""
    figure.suptitle(message, fontsize=9, color="0.35", x=0.01, ha="left", parse_math=False)
    return figure


def _chosen(definition: Definition, shares: Mapping[str, float]) -> list[Axis]:
    """From left to right: those that do not always apply, then the others, what mattered most at the right."""
    by_share = sorted(definition.space.axes, key=lambda axis: -shares.get(axis.key, 0.0))[:MOST_AXES]
    return sorted(by_share, key=lambda axis: (axis.only_with is None, shares.get(axis.key, 0.0)))


def _norm(objective: Objective, values: Sequence[float], limits: tuple[float, float]) -> Any:
    from matplotlib.colors import LogNorm, Normalize

    return (LogNorm if is_log(objective, values) else Normalize)(*limits)


def _place_on(axis: Axis, goodness: Mapping[int, float]) -> Place:
    """Spread the lines through one value of a choice by their results."""

    def place(record: Record) -> float | None:
        text = record.point.get(axis.key)
        if text is None or (axis.values and text not in axis.values):
            return None
        if not axis.values:
            return position(axis, float(text))
        room = min(BAND, 0.3 / len(axis.values))
        return _middle(axis, text) + (goodness[record.number] - 0.5) * 2 * room

    return place


def _middle(axis: Axis, text: str) -> float:
    num = len(axis.values)
    return 0.5 if num == 1 else 0.06 + 0.88 * axis.values.index(text) / (num - 1)


def _draw_lines(
    axes: Axes,
    results: Sequence[Record],
    places: Sequence[Place],
    goodness: Mapping[int, float],
    objective: Objective,
) -> None:
    colours = _colours(objective)
    opacity = min(0.85, max(0.25, 12 / len(results)))
    for rank, record in enumerate(reversed(results), 1):  # the best on top
        ys = [math.nan if (y := place(record)) is None else y for place in places]
        is_best = rank == len(results)
        style: dict[str, Any] = {"color": colours(goodness[record.number]), "lw": 1.2, "alpha": opacity, "ms": 2.5}
        if is_best:
            style = {"color": BEST, "lw": 3.0, "alpha": 1.0, "ms": 6}
        axes.plot(range(len(ys)), ys, marker="o", zorder=2 + rank / len(results) + is_best, **style)


def _colours(objective: Objective) -> Any:
    """Dark is good; the palest part of the map is left out, since the paper is white."""
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    shades = [colormaps["viridis"](0.93 * i / 99) for i in range(100)]
    return LinearSegmentedColormap.from_list("good", shades[:: -1 if objective.goal == "max" else 1])


def _draw_axes(axes: Axes, shown: Sequence[Axis], headings: Sequence[str]) -> None:
    """headings: of the axes and of the objective."""
    for x, axis in enumerate(shown):
        axes.axvline(x, color="0.35", lw=1.0, zorder=1)
        for y, text in _ticks(axis):
            axes.annotate(
                text, (x, y), (-5, 0), textcoords="offset points", ha="right", va="center", fontsize=8, color="0.15",
                zorder=9, parse_math=False, bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8},
            )  # fmt: skip
    fit = max(map(len, headings)) <= ROOM_FOR_NAME
    style: dict[str, Any] = {"ha": "center"} if fit else {"ha": "left", "rotation": 20, "rotation_mode": "anchor"}
    for x, heading in enumerate(headings):
        axes.annotate(
            cut(heading, 18), (x, 1.0), (0, 10), textcoords="offset points",
            xycoords=("data", "axes fraction"), va="bottom", fontsize=9, weight="bold", parse_math=False, **style,
        )  # fmt: skip
    axes.set_xlim(-0.55, len(shown))
    axes.set_ylim(-0.03, 1.03)
    axes.set_axis_off()


def _ticks(axis: Axis) -> list[tuple[float, str]]:
    """Height and text of what is named on an axis."""
    if axis.values:
        every = math.ceil(len(axis.values) / MOST_VALUES)
        named = axis.values[::every]
        return [(_middle(axis, text), cut(short_value(text), NAME_LENGTH)) for text in named]
    numbers = _round_numbers(axis)
    return [(position(axis, number), f"{number:.4g}") for number in numbers]


def _round_numbers(axis: Axis) -> list[float]:
    from matplotlib.ticker import MaxNLocator

    if axis.high <= axis.low:
        return [axis.low]
    if axis.is_log:
        found = log_locator((axis.low, axis.high)).tick_values(axis.low, axis.high)
    else:
        found = MaxNLocator(5, integer=axis.is_whole).tick_values(axis.low, axis.high)
    slack = 1e-9 * (axis.high - axis.low)
    return [float(number) for number in found if axis.low - slack <= number <= axis.high + slack]


def _draw_objective(
    figure: Figure, axes: Axes, norm: Any, objective: Objective, values: Sequence[float], limits: tuple[float, float]
) -> None:
    """The colour bar is the last axis: the lines run into it at their values."""
    from matplotlib.cm import ScalarMappable

    shown = ScalarMappable(norm, _colours(objective))
    inset = axes.inset_axes((1.0, 0.03 / 1.06, 0.022, 1 / 1.06))
    bar = figure.colorbar(shown, cax=inset, format=formatter(objective))
    if is_log(objective, values):
        bar.ax.yaxis.set_major_locator(log_locator(limits))
    bar.ax.minorticks_off()
    bar.outline.set_visible(False)
