"""The scale of an objective along the side of a picture: name and unit, linear or logarithmic, from where to where."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from dlcli.errors import printable
from dlcli.reporting.format import is_share, metric_name
from dlcli.sweep.study.definition import Objective

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.ticker import Formatter, Locator

DECADE = 10.0  # values further apart than this stand on a logarithmic scale
UNITS = {"latency": "latency of one answer (ms)", "time": "training time (s)"}
FEWEST_WITH_OUTLIERS = 5
MARGIN = 0.06  # of the window, beyond the outermost points


def label(objective: Objective) -> str:
    name = objective.name
    return UNITS.get(name) or printable(metric_name(name) if name.startswith("val/") else name, limit=40)


def is_log(objective: Objective, values: Sequence[float]) -> bool:
    """Where all are positive and a decade apart; a share of right answers never."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    return low > 0 and high / low >= DECADE and not is_share(objective.name)


def window(objective: Objective, values: Sequence[float], always: Sequence[float] = ()) -> tuple[float, float]:
    """From where to where to draw: all values, but for those so bad (three quartile ranges off, Tukey 1977) that the
    others would be a single line: they are drawn at the edge, unless they are among `always`.
    """
    scaled = [math.log(value) for value in values] if is_log(objective, values) else list(values)
    low, high = min(scaled), max(scaled)
    if len(scaled) >= FEWEST_WITH_OUTLIERS:
        first, _, third = statistics.quantiles(scaled, n=4, method="inclusive")
        reach = 3 * (third - first)
        if objective.goal == "max" and low < first - 2 * reach < first:
            low = min(value for value in scaled if value >= first - reach)
        elif objective.goal == "min" and high > third + 2 * reach > third:
            high = max(value for value in scaled if value <= third + reach)
    low = min([low, *(math.log(value) if is_log(objective, values) else value for value in always)])
    high = max([high, *(math.log(value) if is_log(objective, values) else value for value in always)])
    margin = MARGIN * (high - low) or abs(high) * 0.1 or 0.1
    low, high = low - margin, high + margin
    return (math.exp(low), math.exp(high)) if is_log(objective, values) else (low, high)


def cut(text: object, limit: int) -> str:
    """A name short enough, its beginning and its end: `a_very_long…ing_number_7`."""
    shown = printable(text)
    return shown if len(shown) <= limit else f"{shown[: limit // 2]}…{shown[len(shown) - (limit - 1) // 2 :]}"


def inside(value: float, limits: tuple[float, float]) -> float:
    return min(max(value, limits[0]), limits[1])


def dress(
    axes: Axes, side: Literal["x", "y"], objective: Objective, values: Sequence[float], always: Sequence[float] = ()
) -> tuple[float, float]:
    """Set scale, limits, ticks and label of one side; the limits."""
    from matplotlib.ticker import NullFormatter

    limits, scale = window(objective, values, always), axes.yaxis if side == "y" else axes.xaxis
    if is_log(objective, values):
        axes.set(**{f"{side}scale": "log"})
        scale.set_major_locator(log_locator(limits))
        scale.set_minor_formatter(NullFormatter())
    axes.set(**{f"{side}lim": limits})
    scale.set_major_formatter(formatter(objective))
    scale.set_label_text(label(objective), parse_math=False)
    return limits


def log_locator(limits: tuple[float, float]) -> Locator:
    """Decades; where there are few, 2 and 5 between them."""
    from matplotlib.ticker import LogLocator

    decades = math.log10(limits[1] / limits[0])
    return LogLocator(subs=(1.0,) if decades > 3 else (1.0, 3.0) if decades > 2 else (1.0, 2.0, 5.0))


def formatter(objective: Objective) -> Formatter:
    from matplotlib.ticker import EngFormatter, FuncFormatter

    if is_share(objective.name):
        return FuncFormatter(lambda value, _: f"{100 * value:.4g} %")
    if objective.name == "parameters":
        return EngFormatter(sep="")
    return FuncFormatter(lambda value, _: f"{value:.4g}")
