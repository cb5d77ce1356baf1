"""The pictures in a run folder: training curves, mistakes, the confusion matrix, generated samples.

    draw_curves(events, run / "curves.png")

matplotlib is imported when something is drawn, and without pyplot: no window, no global state. Each file is written
beside its place and renamed, so that a reader never meets half a picture.

Letters: N images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dlcli.errors import printable
from dlcli.reporting.format import is_share

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours: distinct for colour-blind readers, legible on white.
COLOURS = {"train": "#0072B2", "val": "#D55E00", "test": "#009E73"}
OTHERS = ("#CC79A7", "#E69F00", "#56B4E9")
DPI = 120
MAX_MISTAKES = 25
MAX_PANELS = 9
MAX_NAMED_CLASSES = 40  # more names than this would overlap along a side of the confusion matrix
MAX_NAMED_PLACES = 64  # along a side of a map of attention
MAX_COUNTED_CLASSES = 20  # more numbers than this would not fit into its squares

Curve = tuple[list[float], list[float]]


# -------------------------------------------------------------------------------------------------------------- curves


def draw_curves(events: Iterable[dict[str, Any]], path: str | os.PathLike[str]) -> None:
    """One panel per kind of metric (loss, accuracy, ...), training and validation in each, the best epoch marked."""
    panels, best = _collect(events)
    names = sorted(panels, key=lambda name: (not name.startswith("loss"), name != "accuracy", name))[:MAX_PANELS]
    across = min(max(len(names), 1), 3)
    down = max(1, math.ceil(len(names) / across))
    figure = blank_figure(5.2 * across, 3.8 * down)
    for place, name in enumerate(names, 1):
        _draw_panel(figure.add_subplot(down, across, place), name, panels[name], best)
    if not names:
        _say(figure, "no epoch was finished")
    save_figure(figure, path)


def _collect(events: Iterable[dict[str, Any]]) -> tuple[dict[str, dict[str, Curve]], float | None]:
    """{"loss": {"train": (epochs, values), "val": ...}, ...} and the best epoch; a step reported twice counts once."""
    by_step: dict[int, dict[str, Any]] = {}
    steps_per_epoch = None
    for event in events:
        if event.get("event") == "run_prepared":
            steps_per_epoch = event.get("steps_per_epoch")
        elif event.get("event") == "epoch":
            by_step[event["step"]] = event
    panels: dict[str, dict[str, Curve]] = {}
    best = None
    for step, event in sorted(by_step.items()):
        # Where it is evaluated several times in an epoch, only the step separates the points.
        epoch = step / steps_per_epoch if steps_per_epoch else float(event["epoch"])
        best = epoch if event.get("best") else best
        for name, value in event.get("metrics", {}).items():
            split, _, kind = name.partition("/")
            kind, _, part = (kind or split).partition("/")
            epochs, values = panels.setdefault(kind, {}).setdefault(f"{split} {part}".strip(), ([], []))
            epochs.append(epoch)
            values.append(math.nan if value is None else float(value))
    return panels, best


def _draw_panel(axes: Axes, name: str, curves: dict[str, Curve], best: float | None) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    spare = iter(OTHERS * len(curves))
    used: set[str] = set()
    for label, (epochs, values) in curves.items():
        colour = COLOURS.get(label.split(" ")[0])
        if colour is None or colour in used:
            colour = next(spare)
        used.add(colour)
        axes.plot(epochs, values, color=colour, label=printable(label), marker="o", ms=3 if len(epochs) < 40 else 0)
    if best is not None:
        axes.axvline(best, color="0.45", linestyle=":", linewidth=1.2, label=f"best, epoch {best:g}", zorder=0)
    axes.set_title(printable(name), parse_math=False)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if is_share(name):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    epochs = [epoch for curve in curves.values() for epoch in curve[0]]
    if max(epochs) - min(epochs) < 1:  # too few points for whole numbers along the axis
        axes.set_xlim(math.floor(min(epochs)) - 1, math.ceil(max(epochs)) + 1)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")


# -------------------------------------------------------------------------------------------------------------- images


def draw_mistakes(
    images_NCHW: Any,
    true_names: Sequence[str],
    predicted_names: Sequence[str],
    confidences: Sequence[float],
    path: str | os.PathLike[str],
) -> None:
    """The mistakes made with most confidence, at most 25, each with the true name, the predicted one, its probability.

    images_NCHW: (N, C, H, W) uint8, numpy or torch; the three sequences have N entries; confidences in [0, 1].
    """
    images_NHWC = _channels_last(images_NCHW)
    order = np.argsort(-np.asarray(confidences, dtype=float), kind="stable")[:MAX_MISTAKES]
    across = min(max(len(order), 1), 5)
    down = max(1, math.ceil(len(order) / across))
    figure = blank_figure(max(1.9 * across, 3.0), 2.35 * down)
    for place, i in enumerate(order, 1):
        axes = figure.add_subplot(down, across, place)
        _show(axes, images_NHWC[i])
        title = f"{_short(true_names[i])} → {_short(predicted_names[i])}\n{confidences[i]:.0%}"
        axes.set_title(title, fontsize=9, parse_math=False)
    if len(order) == 0:
        _say(figure, "no mistakes")
    else:
        figure.suptitle("true → predicted, and how sure the network was", fontsize=9, color="0.35")
    save_figure(figure, path)


def draw_grid(images_NCHW: Any, path: str | os.PathLike[str]) -> None:
    """All images in a nearly square grid, small ones enlarged by whole factors; pixel for pixel, no axes.

    images_NCHW: (N, C, H, W) uint8 with N >= 1, numpy or torch.
    """
    from PIL import Image

    images_NHWC = _channels_last(images_NCHW)
    num, height, width, _ = images_NHWC.shape
    if num == 0:
        raise ValueError("draw_grid needs at least one image, got 0")
    scale = max(1, round(64 / max(height, width)))
    images_NHWC = images_NHWC.repeat(scale, axis=1).repeat(scale, axis=2)
    across, gap = math.ceil(math.sqrt(num)), 2
    down = math.ceil(num / across)
    high, wide = height * scale + gap, width * scale + gap
    sheet = np.full((down * high + gap, across * wide + gap, 3), 255, dtype=np.uint8)
    for i, image_HWC in enumerate(images_NHWC):
        top, left = gap + (i // across) * high, gap + (i % across) * wide
        sheet[top : top + high - gap, left : left + wide - gap] = image_HWC
    _replace(path, lambda place: Image.fromarray(sheet).save(place, format="PNG"))


def _channels_last(images_NCHW: Any) -> NDArray[np.uint8]:
    """(N, C, H, W) uint8 of numpy or torch as (N, H, W, 3); one channel is grey."""
    if hasattr(images_NCHW, "detach"):
        images_NCHW = images_NCHW.detach().cpu()
    images = np.asarray(images_NCHW)
    if images.ndim != 4 or images.dtype != np.uint8:
        raise ValueError(f"images must be (N, C, H, W) uint8, got {images.shape} {images.dtype}")
    images = images[:, :3] if images.shape[1] >= 3 else images[:, :1].repeat(3, axis=1)
    return images.transpose(0, 2, 3, 1)


def _show(axes: Axes, image_HWC: NDArray[np.uint8]) -> None:
    axes.imshow(image_HWC, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])


# ----------------------------------------------------------------------------------------------------------- confusion


def draw_confusion(matrix: ArrayLike, class_names: Sequence[str], path: str | os.PathLike[str]) -> None:
    """Rows are true classes, columns predicted ones; the shade is the share of the row, the number the count.

    matrix: (K, K) counts; class_names: K names.
    """
    counts = np.asarray(matrix, dtype=np.int64)
    num = len(class_names)
    if counts.shape != (num, num):
        raise ValueError(f"the matrix must be ({num}, {num}) for {num} classes, got {counts.shape}")
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(max(0.45 * num, 3.2), 11.0)
    figure = blank_figure(side + 1.6, side + 0.8)
    axes = figure.add_subplot()
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(shown, ax=axes, shrink=0.8, label="share of the true class")
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    _name_classes(axes, class_names)
    if num <= MAX_COUNTED_CLASSES:
        _write_counts(axes, counts, shares)
    save_figure(figure, path)


def _name_classes(axes: Axes, class_names: Sequence[str]) -> None:
    every = math.ceil(len(class_names) / MAX_NAMED_CLASSES)
    places = range(0, len(class_names), every)
    names = [_short(class_names[i]) for i in places]
    small: dict[str, Any] = {"fontsize": 8, "parse_math": False}
    slanted: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(places, names, **small, **({} if max(map(len, names)) <= 3 else slanted))
    axes.set_yticks(places, names, **small)


def _write_counts(axes: Axes, counts: NDArray[np.int64], shares: NDArray[np.float64]) -> None:
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", fontsize=7, color=colour)


# ----------------------------------------------------------------------------------------------------------- attention


def draw_attention(
    weights_RK: ArrayLike, row_names: Sequence[str], key_names: Sequence[str], path: str | os.PathLike[str]
) -> None:
    """A heat map: what each row (a head, a token that is written) takes from each key. weights_RK: from 0 to 1."""
    weights = np.asarray(weights_RK, dtype=np.float64)
    rows, columns = weights.shape
    figure = blank_figure(min(max(0.3 * columns, 2.5), 16.0) + 2.2, min(max(0.3 * rows, 0.4), 14.0) + 1.6)
    axes = figure.add_subplot()
    shown = axes.imshow(weights, cmap="Blues", vmin=0, aspect="auto", interpolation="nearest")
    figure.colorbar(shown, ax=axes, label="weight")
    small: dict[str, Any] = {"fontsize": 8, "parse_math": False}
    across, down = (range(0, n, math.ceil(n / MAX_NAMED_PLACES)) for n in (columns, rows))
    axes.set_xticks(across, [_short(key_names[i]) for i in across], rotation=90, **small)
    axes.set_yticks(down, [_short(row_names[i]) for i in down], **small)
    save_figure(figure, path)


def draw_attended_image(image_CHW: Any, weights_RC: ArrayLike, path: str | os.PathLike[str]) -> None:
    """The image, and beside it what its rows weigh (C = 1) or, laid over it, its R x C patches.

    image_CHW: uint8, numpy or torch.
    """
    weights, (image_HWC,) = np.asarray(weights_RC, dtype=np.float64), _channels_last(image_CHW[None])
    height, width = image_HWC.shape[:2]
    figure = blank_figure(7.0, 3.6)
    plain, beside = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    _show(plain, image_HWC)
    if weights.shape[1] == 1:
        beside.barh(np.arange(1, len(weights) + 1), weights[:, 0], color=COLOURS["train"])
        beside.set_ylim(len(weights) + 0.5, 0.5)
        beside.set_xlabel("weight")
        beside.set_ylabel("row")
    else:
        beside.imshow(image_HWC.mean(2), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        edges = (-0.5, width - 0.5, height - 0.5, -0.5)
        laid = beside.imshow(weights, cmap="inferno", vmin=0, alpha=0.6, extent=edges, interpolation="nearest")
        beside.set_xticks([])
        beside.set_yticks([])
        figure.colorbar(laid, ax=beside, label="weight of a patch")
    save_figure(figure, path)


# ------------------------------------------------------------------------------------------------------------- writing


def blank_figure(width: float, height: float) -> Figure:
    """A blank figure of so many inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _say(figure: Figure, text: str) -> None:
    figure.text(0.5, 0.5, text, ha="center", va="center", color="0.35")


def _short(name: object) -> str:
    return printable(name, limit=16)


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    with warnings.catch_warnings():
        # A class named in a script that matplotlib's own font lacks is drawn as boxes: no reason to disturb a run.
        warnings.filterwarnings("ignore", message=r".*Glyph .* missing.*")
        _replace(path, lambda place: figure.savefig(place, format="png"))


def _replace(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside `path`, then rename it: `path` is the old file or the whole new one."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
