"""The common parts of the lessons' pictures: colours, frames, the plane with its two classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from dlcli.lessons.scratch.activations import Array
from dlcli.reporting.pictures import COLOURS, OTHERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREEN = COLOURS["train"], COLOURS["val"], COLOURS["test"]
PALETTE = (BLUE, ORANGE, GREEN, *OTHERS)
FINE = 160  # points along a side of the plane


def dress(axes: Axes, title: str, *, x: str = "", y: str = "") -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def draw_plane(axes: Axes, x_BD: Array, y_B: Array, predict: Callable[[Array], Array], title: str) -> None:
    """The examples on top of the probability of class 1, with the line where it is one half."""
    from matplotlib.colors import LinearSegmentedColormap

    reach = float(np.abs(x_BD).max()) * 1.1
    side = np.linspace(-reach, reach, FINE)
    across, up = np.meshgrid(side, side)
    p = predict(np.stack([across.ravel(), up.ravel()], axis=1)).reshape(across.shape)
    colours = LinearSegmentedColormap.from_list("classes", [BLUE, "white", ORANGE])
    frame = (-reach, reach, -reach, reach)
    axes.imshow(p, extent=frame, origin="lower", cmap=colours, vmin=0, vmax=1, alpha=0.5, interpolation="bilinear")
    if p.min() < 0.5 < p.max():
        axes.contour(across, up, p, levels=[0.5], colors="0.15", linewidths=1.6)
    for value, colour, marker in ((0, BLUE, "o"), (1, ORANGE, "^")):
        chosen: dict[str, Any] = {"color": colour, "marker": marker, "edgecolor": "white", "linewidth": 0.4, "s": 18}
        axes.scatter(x_BD[y_B == value, 0], x_BD[y_B == value, 1], label=f"class {value}", **chosen)
    axes.set_aspect("equal")
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-reach, reach)
    dress(axes, title)
    axes.grid(visible=False)
