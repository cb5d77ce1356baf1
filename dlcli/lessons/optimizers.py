"""`dlcli learn optimizers`: five optimizers go down the same long narrow valley, with the same gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dlcli.lessons.lesson import Chart, Lesson, Table
from dlcli.lessons.scratch.activations import Array
from dlcli.lessons.scratch.optimizers import SGD, Adam, Momentum, Nesterov, Optimizer, RMSprop

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OPTIMIZERS: dict[str, Callable[[float], Optimizer]] = {
    "sgd": SGD,
    "momentum": Momentum,
    "nesterov": Nesterov,
    "rmsprop": RMSprop,
    "adam": Adam,
}
TORCH = {
    "sgd": "the same",
    "momentum": "v = β v + g, so that its lr is (1 - β) times this one",
    "nesterov": "as momentum",
    "rmsprop": "ρ is 0.99, here 0.9",
    "adam": "the same",
}
GOAL = 0.01
START = np.array([-4.0, 2.0])
RATES = [round(mantissa * 10.0**power, 10) for power in range(-3, 2) for mantissa in (1, 1.5, 2, 3, 5, 7)]


@dataclass(frozen=True)
class Descent:
    name: str
    lr: float
    path_T2: Array  # T + 1 places in the plane
    losses: list[float]


def teach(*, lr: float | None = None, steps: int = 100, steepness: float = 100.0) -> Lesson:
    """lr: None uses the best of RATES for each optimizer; steepness: how many times steeper across than along."""
    descents = [_descend_best(name, lr, steps, steepness) for name in OPTIMIZERS]
    rules = [
        {"optimizer": name, "update": make(1.0).rule, "remembers": make(1.0).memory, "torch": TORCH[name]}
        for name, make in OPTIMIZERS.items()
    ]
    formats = {"lr": "g", "first_loss": ".4g", "last_loss": ".1e"}
    heads = {"arrives": f"below {GOAL:g} from step"}
    rates = f"each at the fastest of {len(RATES)} learning rates" if lr is None else f"all at lr {lr:g}"
    return Lesson(
        topic="optimizers",
        title=f"From (-4, 2) down a valley {steepness:g} times steeper across than along; steps: {steps}, {rates}",
        tables=[
            Table("rules", rules, {}, {"torch": ""}),
            Table("descents", [_row(d, steps) for d in descents], formats, heads),
        ],
        charts=[Chart(f"{d.name}: log10 loss", _log10(d.losses), (0, steps), (-6, 3)) for d in descents],
        notes=_notes(descents, lr, steepness),
        draw=lambda figure: _draw(figure, descents, steepness),
        size=(11.5, 6.4),
        command="dlcli train digits optimizer=momentum",
        does="digits with sgd, momentum, nesterov, rmsprop, adam, adamw or muon",
    )


def loss(w_2: Array, steepness: float) -> float:
    return float(0.5 * (w_2[0] ** 2 + steepness * w_2[1] ** 2))


def gradient(w_2: Array, steepness: float) -> Array:
    return np.array([w_2[0], steepness * w_2[1]])


def descend(name: str, lr: float, steps: int, steepness: float) -> Descent:
    optimizer, w_2 = OPTIMIZERS[name](lr), START
    path = [w_2]
    with np.errstate(over="ignore", invalid="ignore"):  # a rate that is too large diverges, and the lesson shows it
        for _ in range(steps):
            w_2 = optimizer.step(w_2, gradient(w_2, steepness))
            path.append(w_2)
        return Descent(name, lr, np.array(path), [loss(place, steepness) for place in path])


def _descend_best(name: str, lr: float | None, steps: int, steepness: float) -> Descent:
    """The descent with the rate that arrives first; if none arrives, the one that gets furthest."""
    tried = [descend(name, rate, steps, steepness) for rate in ([lr] if lr is not None else RATES)]
    return min(tried, key=lambda d: (arrival(d), d.losses[-1] if np.isfinite(d.losses[-1]) else np.inf))


def arrival(descent: Descent) -> float:
    """The step from which the loss stays below GOAL; infinite if it does not."""
    above = [step for step, value in enumerate(descent.losses) if not value < GOAL]
    last = above[-1] if above else -1
    return last + 1.0 if last + 1 < len(descent.losses) else np.inf


def _row(descent: Descent, steps: int) -> dict[str, object]:
    end, at = descent.losses[-1], arrival(descent)
    return {
        "optimizer": descent.name,
        "lr": descent.lr,
        "first_loss": descent.losses[0],
        "last_loss": end if np.isfinite(end) else np.inf,
        "arrives": int(at) if np.isfinite(at) else "diverged" if has_diverged(descent) else f"not in {steps}",
    }


def has_diverged(descent: Descent) -> bool:
    return not np.isfinite(descent.losses[-1]) or descent.losses[-1] > descent.losses[0]


def _notes(descents: list[Descent], lr: float | None, steepness: float) -> list[str]:
    lost = [d.name for d in descents if has_diverged(d)]
    notes = []
    if lost:
        notes = [
            f"{' and '.join(lost)} diverged: on the steep side every step overshoots by more than the last. SGD needs "
            f"lr < 2 / {steepness:g} = {2 / steepness:.2g}; momentum allows a larger one."
        ]
    if lr is None:
        notes.append(
            f"SGD's rate is limited by the steep side (2 / {steepness:g} = {2 / steepness:.2g}), and with such "
            "a rate the flat side takes long. Momentum gathers speed along it and cancels the swings across."
        )
    return [
        *notes,
        "torch.optim: SGD and Adam are the same. Its momentum is v = β v + g, so that its lr is (1 - β) times this "
        "one, for Nesterov too; its RMSprop has ρ = 0.99 by default.",
        "RMSprop and Adam divide by the usual size of each weight's gradient, so both sides look alike to them. This "
        "valley is parallel to the axes, which is their best case; in a slanted one they help less.",
        "β = 0.9, ρ = 0.9; Adam 0.9 and 0.999, ε = 1e-8. m̂ and ŝ are m / (1 - 0.9^t) and s / (1 - 0.999^t): both began "
        "at zero, and without this the first step would be 0.1 / √0.001 = 3.2 times too long.",
    ]


def _log10(values: list[float]) -> list[float]:
    return [float(np.log10(v)) if 0 < v < np.inf else np.nan for v in values]


def _draw(figure: Figure, descents: list[Descent], steepness: float) -> None:
    from dlcli.lessons.drawing import PALETTE, dress

    across, up = np.meshgrid(np.linspace(-5, 5, 200), np.linspace(-2.6, 2.6, 200))
    height = 0.5 * (across**2 + steepness * up**2)
    levels = np.geomspace(height.max() / 3000, height.max(), 12)
    for place, (descent, colour) in enumerate(zip(descents, PALETTE, strict=False), 1):
        axes = figure.add_subplot(2, 3, place)
        axes.contour(across, up, height, levels=levels, colors="0.75", linewidths=0.7)
        path = np.clip(np.nan_to_num(descent.path_T2, nan=1e6, posinf=1e6, neginf=-1e6), -1e6, 1e6)
        axes.plot(path[:, 0], path[:, 1], color=colour, marker="o", ms=2.5, lw=1.2)
        axes.plot(0, 0, marker="*", color="0.15", ms=9)
        axes.set_xlim(-5, 5)
        axes.set_ylim(-2.6, 2.6)
        ends = "diverged" if has_diverged(descent) else f"loss {descent.losses[-1]:.1e}"
        dress(axes, f"{descent.name}, lr {descent.lr:g}: {ends}")
        axes.grid(visible=False)
    axes = figure.add_subplot(2, 3, 6)
    for descent, colour in zip(descents, PALETTE, strict=False):
        shown = [value if 0 < value < 1e12 else np.nan for value in descent.losses]
        axes.plot(shown, color=colour, label=descent.name, lw=1.5)
    axes.set_yscale("log")
    axes.set_ylim(1e-8, 1e4)
    axes.legend(fontsize=8, frameon=False, ncols=2)
    dress(axes, "loss", x="step")
