"""`dlcli learn neuron`: trains one neuron on two classes of points in the plane."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dlcli.lessons.lesson import Chart, Lesson, Table
from dlcli.lessons.scratch.activations import Array
from dlcli.lessons.scratch.data import SETS
from dlcli.lessons.scratch.neuron import Neuron, accuracy, cross_entropy

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def teach(*, data: str = "separable", lr: float = 1.0, epochs: int = 200, seed: int = 0) -> Lesson:
    rng = np.random.default_rng(seed)
    x_BD, y_B = SETS[data](rng)
    before = Neuron.draw(num_inputs=2, rng=rng)
    after = Neuron(before.w_D, before.b)
    losses = after.train(x_BD, y_B, lr=lr, epochs=epochs)
    rows = [_row(when, neuron, x_BD, y_B) for when, neuron in (("drawn from N(0, 1)", before), ("trained", after))]
    reached = accuracy(after.predict(x_BD), y_B)

    def draw(figure: Figure) -> None:
        _draw(figure, x_BD, y_B, (before, after), losses)

    return Lesson(
        topic="neuron",
        title=f"One neuron, p = sigmoid(w · x + b), on {data} points; {epochs} epochs, lr {lr:g}, seed {seed}",
        tables=[Table("neuron", rows, {"w1": ".3f", "w2": ".3f", "b": ".3f", "loss": ".4f", "accuracy": "%"})],
        charts=[Chart("loss, by epoch", losses, (0, epochs), (0, max(losses)))],
        notes=[*_notes(reached, data), *_rule()],
        draw=draw,
        size=(11.5, 4.2),
        command="dlcli train digits 'model.hidden=[]'",
        does="ten neurons side by side, one for each handwritten digit",
    )


def _row(when: str, neuron: Neuron, x_BD: Array, y_B: Array) -> dict[str, object]:
    w1, w2 = map(float, neuron.w_D)
    z_B = neuron.sums(x_BD)
    return {
        "weights": when,
        "w1": w1,
        "w2": w2,
        "b": neuron.b,
        "loss": cross_entropy(z_B, y_B),
        "accuracy": accuracy(neuron.predict(x_BD), y_B),
    }


def _notes(reached: float, data: str) -> list[str]:
    if reached == 1.0:
        return ["Every point is on its side of the line w1 x1 + w2 x2 + b = 0: a neuron can always learn such data."]
    if data in ("separable", "clouds"):
        return [
            f"{reached:.1%} after these epochs: a line separates these points, so more epochs or a larger lr find it."
        ]
    return [
        f"{reached:.1%}, and more epochs do not help: no straight line separates these points. Two layers can: "
        f"dlcli learn backprop --data {data} --lr 1 --scale 1"
    ]


def _rule() -> list[str]:
    return [
        "The loss is the cross-entropy, which is ln 2 = 0.693 if the answer is always one half.",
        "dz = p - y,  dw = dz · x,  db = dz,  each averaged over the points;  w = w - lr dw,  b = b - lr db.",
    ]


def _draw(figure: Figure, x_BD: Array, y_B: Array, neurons: tuple[Neuron, Neuron], losses: list[float]) -> None:
    from dlcli.lessons.drawing import BLUE, draw_plane, dress

    for place, (neuron, when) in enumerate(zip(neurons, ("as drawn", "trained"), strict=True), 1):
        axes = figure.add_subplot(1, 3, place)
        right = accuracy(neuron.predict(x_BD), y_B)
        draw_plane(axes, x_BD, y_B, neuron.predict, f"{when}: {right:.1%} right")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    axes = figure.add_subplot(1, 3, 3)
    axes.plot(losses, color=BLUE)
    axes.axhline(np.log(2), color="0.45", linestyle=":", linewidth=1.2)
    axes.annotate(
        "ln 2: a guess", (len(losses) - 1, np.log(2)), (0, 3), textcoords="offset points", ha="right", fontsize=8
    )
    axes.set_ylim(bottom=0)
    dress(axes, "cross-entropy", x="epoch")
