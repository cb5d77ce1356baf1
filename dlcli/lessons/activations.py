"""`dlcli learn activations`: four functions, their slopes, their strengths and weaknesses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dlcli.lessons.lesson import Chart, Lesson, Table
from dlcli.lessons.scratch.activations import ACTIVATIONS, Activation, Array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REACH = 5.0
Z = np.linspace(-REACH, REACH, 1001)
HIDDEN = ("low", "high", "slope_at_-5", "slope_at_0", "slope_at_5")  # in JSON; the curves show them


def teach() -> Lesson:
    shapes = [_shape(name, activation) for name, activation in ACTIVATIONS.items()]
    uses = [{"activation": name, "pro": a.pro, "con": a.con} for name, a in ACTIVATIONS.items()]
    x = (-REACH, REACH)
    charts = [Chart(name, a.value(Z).tolist(), x) for name, a in ACTIVATIONS.items()]
    charts += [Chart(f"{name}'", a.slope(Z).tolist(), x) for name, a in ACTIVATIONS.items()]
    return Lesson(
        topic="activations",
        title="Activations: without one between them, two layers are no more than one",
        tables=[Table("shape", shapes, {}, dict.fromkeys(HIDDEN, "")), Table("use", uses, {})],
        charts=charts,
        notes=[
            "The slope is what the gradient is multiplied by on its way back through a unit. Through ten sigmoid "
            f"layers it is at most 0.25^10 = {0.25**10:.0e} of what it was; through ten ReLU layers it may stay whole.",
            "ReLU for hidden layers as a rule; tanh where values must be centred and bounded (recurrent networks); the "
            "sigmoid for probabilities and gates; leaky ReLU where units die.",
        ],
        draw=_draw,
        size=(11.5, 5.6),
        command="dlcli train digits model.activation=tanh",
        does="three layers with relu, gelu, tanh, leaky_relu or silu between them",
    )


def _shape(name: str, activation: Activation) -> dict[str, object]:
    low, high = float(activation.low), float(activation.high)
    slopes = activation.slope(np.array([-REACH, 0.0, REACH])).tolist()
    closed = "[" if name == "relu" else "("
    return {
        "activation": name,
        "value": activation.formula,
        "slope": activation.derivative,
        "range": f"{closed}{low:g}, {high:g})".replace("inf", "∞"),
        **dict(zip(HIDDEN, [low, high, *slopes], strict=True)),
    }


def _draw(figure: Figure) -> None:
    from dlcli.lessons.drawing import BLUE, ORANGE, dress

    for place, (name, activation) in enumerate(ACTIVATIONS.items(), 1):
        rows: tuple[tuple[int, Array, str, str], ...] = (
            (0, activation.value(Z), BLUE, f"{name}: {activation.formula}"),
            (4, activation.slope(Z), ORANGE, f"its slope: {activation.derivative}"),
        )
        for row, values, colour, title in rows:
            axes = figure.add_subplot(2, 4, place + row)
            axes.axhline(0, color="0.6", linewidth=0.8)
            axes.axvline(0, color="0.6", linewidth=0.8)
            axes.plot(Z, values, color=colour, linewidth=2)
            axes.set_xlim(-REACH, REACH)
            axes.set_ylim((-0.1, 1.15) if row else (-1.3, REACH if values.max() > 1.5 else 1.3))
            dress(axes, _typeset(title), x="z" if row else "")


def _typeset(title: str) -> str:
    """The formula with raised exponents, in matplotlib's notation."""
    return title.replace("e^-z", "$e^{-z}$").replace("e^z", "$e^{z}$").replace("t^2", "$t^{2}$")
