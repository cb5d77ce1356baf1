"""`dlcli learn backprop`: a network of two layers on several data sets, from the standard start and a bolder one."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from dlcli.lessons.lesson import Chart, Lesson, Table
from dlcli.lessons.scratch.activations import Array
from dlcli.lessons.scratch.backprop import TwoLayerNetwork, numerical_gradients
from dlcli.lessons.scratch.data import SETS
from dlcli.lessons.scratch.neuron import Neuron, accuracy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = ("clouds", "moons", "xor")
STANDARD = (0.01, 0.01)  # the learning rate and the scale of the weights in textbooks
BOLD = (1.0, 1.0)
FORMATS = {"lr": "g", "scale": "g", "first_loss": ".4f", "loss": ".4f", "accuracy": "%", "one_neuron": "%"}
GUESS = float(np.log(2))  # the loss of always answering one half


@dataclass(frozen=True)
class Trial:
    data: str
    lr: float
    scale: float
    x_BD: Array
    y_B: Array
    network: TwoLayerNetwork
    losses: list[float]

    @property
    def accuracy(self) -> float:
        return accuracy(self.network.predict(self.x_BD), self.y_B)


def teach(
    *,
    data: str | None = None,
    hidden: int = 4,
    lr: float | None = None,
    scale: float | None = None,
    epochs: int = 1000,
    seed: int = 0,
) -> Lesson:
    """data: None shows three sets; lr, scale: None for both compares two starts, otherwise None is the standard's."""
    starts = [STANDARD, BOLD]
    if lr is not None or scale is not None:
        starts = [(STANDARD[0] if lr is None else lr, STANDARD[1] if scale is None else scale)]
    shown = SHOWN if data is None else (data,)
    trials = [_train(name, hidden, *start, epochs, seed) for start in starts for name in shown]
    rows = [_row(trial) for trial in trials]
    return Lesson(
        topic="backprop",
        title=f"Two layers, tanh ({hidden}) and sigmoid (1), on 200 points; {epochs} epochs, seed {seed}",
        tables=[Table("backprop", rows, FORMATS, {"first_loss": ""})],
        charts=[Chart(f"{t.data}, lr {t.lr:g}: loss", t.losses, (0, epochs), (0, _top(t.losses))) for t in trials],
        notes=[*_notes(rows), _check(hidden, seed)],
        draw=lambda figure: _draw(figure, trials, across=len(shown)),
        size=(3.0 * len(shown) + 3.4, 3.2 * len(starts)),
        command="dlcli train digits 'model.hidden=[64]' model.activation=tanh optimizer=sgd",
        does="two layers with tanh on handwritten digits, the gradients by PyTorch's autograd",
    )


def _train(data: str, hidden: int, lr: float, scale: float, epochs: int, seed: int) -> Trial:
    rng = np.random.default_rng(seed)
    x_BD, y_B = SETS[data](rng)
    network = TwoLayerNetwork.draw(num_inputs=2, num_hidden=hidden, rng=rng, scale=scale)
    losses = network.train(x_BD, y_B, lr=lr, epochs=epochs)
    return Trial(data, lr, scale, x_BD, y_B, network, losses)


def _row(trial: Trial) -> dict[str, object]:
    straight = _straight(trial)
    return {
        "data": trial.data,
        "lr": trial.lr,
        "scale": trial.scale,
        "first_loss": trial.losses[0],
        "loss": trial.losses[-1],
        "accuracy": trial.accuracy,
        "one_neuron": straight,
        "learned": _verdict(trial, straight),
    }


def _straight(trial: Trial) -> float:
    """The accuracy of a straight line on the same points: the baseline."""
    neuron = Neuron.draw(num_inputs=2, rng=np.random.default_rng(0))
    neuron.train(trial.x_BD, trial.y_B)
    return accuracy(neuron.predict(trial.x_BD), trial.y_B)


def _verdict(trial: Trial, straight: float) -> str:
    loss = trial.losses[-1]
    if not loss < 2 * GUESS:
        return "diverged"
    if abs(loss - GUESS) < 0.002:
        return "nothing"
    return "a bent line" if trial.accuracy > straight + 0.03 else "a straight line"


def _top(losses: list[float]) -> float:
    """The highest loss that a curve shows: a little above a guess, even if it diverges."""
    return max(0.8, min(2.0, 1.05 * losses[0]))


def _notes(rows: list[dict[str, object]]) -> list[str]:
    """Notes on what these trials show, and nothing else."""
    seen = {row["learned"] for row in rows}
    notes = {
        "nothing": (
            f"Nothing: the loss stays at ln 2 = {GUESS:.3f}, a guess. With weights near zero every gradient is near "
            "zero too (a saddle): dw1 is a product with w2, dw2 one with the hidden values. Only data that a line "
            "separates to some degree lead away from there in time. A larger --scale and --lr help on the others."
        ),
        "a straight line": "A straight line: the hidden units do what one neuron does. This is enough for some data.",
        "a bent line": "A bent line: the hidden units bend it, so that it can be right where one neuron cannot.",
        "diverged": "Diverged: use a smaller --lr.",
    }
    return [text for verdict, text in notes.items() if verdict in seen]


def _check(hidden: int, seed: int) -> str:
    """Backpropagation against the definition of a derivative, on a network that is not near zero."""
    rng = np.random.default_rng(seed)
    x_BD, y_B = SETS["moons"](rng)
    network = TwoLayerNetwork.draw(num_inputs=2, num_hidden=hidden, rng=rng, scale=1.0)
    by_hand, by_definition = network.gradients(x_BD, y_B), numerical_gradients(network, x_BD, y_B)
    pairs = [(getattr(by_hand, f.name), getattr(by_definition, f.name)) for f in fields(network)]
    worst = max(float(np.abs(ours - theirs).max()) for ours, theirs in pairs)
    return (
        f"Checked: for all {sum(ours.size for ours, _ in pairs)} weights the hand-written gradient differs from "
        f"(L(w + h) - L(w - h)) / 2h by {worst:.0e} at most."
    )


def _draw(figure: Figure, trials: list[Trial], across: int) -> None:
    from dlcli.lessons.drawing import PALETTE, draw_plane, dress

    down = len(trials) // across
    for row in range(down):
        group = trials[row * across : (row + 1) * across]
        for column, trial in enumerate(group, 1):
            axes = figure.add_subplot(down, across + 1, row * (across + 1) + column)
            draw_plane(axes, trial.x_BD, trial.y_B, trial.network.predict, f"{trial.data}: {trial.accuracy:.1%} right")
        axes = figure.add_subplot(down, across + 1, (row + 1) * (across + 1))
        for trial, colour in zip(group, PALETTE, strict=False):
            axes.plot(trial.losses, color=colour, label=trial.data)
        axes.axhline(np.log(2), color="0.45", linestyle=":", linewidth=1.2, label="ln 2: a guess", zorder=0)
        axes.set_ylim(0, max(_top(t.losses) for t in group))
        axes.legend(fontsize=8, frameon=False)
        dress(axes, f"loss with lr {group[0].lr:g}, weights {group[0].scale:g} · N(0, 1)", x="epoch")
