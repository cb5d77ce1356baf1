"""`dlcli learn regularization`: a neuron that could learn its few examples by heart, and ways to prevent it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dlcli.lessons.lesson import Chart, Lesson, Table
from dlcli.lessons.scratch.activations import Array, sigmoid
from dlcli.lessons.scratch.neuron import Neuron, accuracy, cross_entropy
from dlcli.lessons.scratch.regularization import BatchNorm, dropout_mask, l1, l2

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUM_TRAIN, NUM_TEST, NUM_INPUTS, NUM_USEFUL = 60, 1000, 40, 2
DRAWS = 20  # the figures are means over so many data sets: one alone says little
SMALL = 0.05  # a smaller weight counts as zero: the subgradient of L1 swings around zero and seldom hits it
NORM_EPOCHS, NORM_LR = 100, 0.1
FORMATS = {
    "train_accuracy": "%",
    "test_accuracy": "%",
    "test_loss": ".3f",
    "sum_of_weights": ".2f",
    "small_weights": ".1f",
}
HEADS = {"train_accuracy": "train acc", "test_accuracy": "test acc", "sum_of_weights": "sum |w|"}
HEADS |= {"small_weights": f"|w| < {SMALL:g}"}
Gradients = tuple[Array, float]
Step = Callable[[Neuron, Array, Array, np.random.Generator], Gradients]


@dataclass(frozen=True)
class Outcome:
    train: float
    test: float
    test_loss: float
    w_D: Array


def teach(*, strength: float = 0.05, rate: float = 0.5, lr: float = 0.2, epochs: int = 500, seed: int = 0) -> Lesson:
    """strength: of L1 and L2; rate: of dropout."""
    methods: dict[str, Step] = {
        "nothing": lambda neuron, x_BD, y_B, rng: neuron.gradients(x_BD, y_B),
        f"L1 {strength:g}": lambda neuron, x_BD, y_B, rng: _penalized(l1, strength, neuron, x_BD, y_B),
        f"L2 {strength:g}": lambda neuron, x_BD, y_B, rng: _penalized(l2, strength, neuron, x_BD, y_B),
        f"dropout {rate:g}": lambda neuron, x_BD, y_B, rng: _dropped(rate, neuron, x_BD, y_B, rng),
    }
    seeds = range(seed, seed + DRAWS)
    with np.errstate(over="ignore", invalid="ignore"):  # settings that are too strong diverge, and the lesson shows it
        outcomes = {name: [train(step, lr, epochs, s) for s in seeds] for name, step in methods.items()}
    plain, normal = batch_norm_losses(seed)
    return Lesson(
        topic="regularization",
        title=(
            f"A neuron with {NUM_INPUTS} inputs, {NUM_USEFUL} of them useful, and {NUM_TRAIN} examples; {epochs} "
            f"epochs, means over {DRAWS} data sets"
        ),
        tables=[
            Table("overfitting", [_row(name, found) for name, found in outcomes.items()], FORMATS, HEADS),
            Table("layers", layers(rate, seed), {"mean": ".2f", "std": ".2f", "zeros": "%"}),
        ],
        charts=_charts(outcomes, plain, normal),
        notes=_notes(outcomes, plain, normal),
        draw=lambda figure: _draw(figure, outcomes, plain, normal),
        size=(11.5, 6.2),
        command="dlcli train digits regularization=strong",
        does="digits with dropout, batch norm, L1, weight decay and more",
    )


# ------------------------------------------------------------------------------------------------- learning by heart


def noisy_data(rng: np.random.Generator, num: int) -> tuple[Array, Array]:
    """Data whose class depends on the first few inputs, with noise; the other inputs are useless."""
    x_BD = rng.standard_normal((num, NUM_INPUTS))
    z_B = 2.5 * x_BD[:, :NUM_USEFUL].sum(axis=1)
    return x_BD, (rng.random(num) < sigmoid(z_B)).astype(float)


def train(step: Step, lr: float, epochs: int, seed: int) -> Outcome:
    rng = np.random.default_rng(seed)
    (x_BD, y_B), (x_test, y_test) = noisy_data(rng, NUM_TRAIN), noisy_data(rng, NUM_TEST)
    neuron = Neuron(np.zeros(NUM_INPUTS), 0.0)
    for _ in range(epochs):
        dw_D, db = step(neuron, x_BD, y_B, rng)
        neuron.w_D, neuron.b = neuron.w_D - lr * dw_D, neuron.b - lr * db
    known, unknown = (accuracy(neuron.predict(x), y) for x, y in ((x_BD, y_B), (x_test, y_test)))
    return Outcome(known, unknown, cross_entropy(neuron.sums(x_test), y_test), neuron.w_D)


def _penalized(
    penalty: Callable[[Array, float], tuple[float, Array]], strength: float, neuron: Neuron, x_BD: Array, y_B: Array
) -> Gradients:
    dw_D, db = neuron.gradients(x_BD, y_B)
    return dw_D + penalty(neuron.w_D, strength)[1], db  # the bias has no penalty


def _dropped(rate: float, neuron: Neuron, x_BD: Array, y_B: Array, rng: np.random.Generator) -> Gradients:
    return neuron.gradients(x_BD * dropout_mask(x_BD.shape, rate, rng), y_B)


def _row(name: str, outcomes: list[Outcome]) -> dict[str, object]:
    return {
        "against_it": name,
        "train_accuracy": float(np.mean([o.train for o in outcomes])),
        "test_accuracy": float(np.mean([o.test for o in outcomes])),
        "test_loss": float(np.mean([o.test_loss for o in outcomes])),
        "sum_of_weights": float(np.mean([np.abs(o.w_D).sum() for o in outcomes])),
        "small_weights": float(np.mean([(np.abs(o.w_D) < SMALL).sum() for o in outcomes])),
    }


def _sizes(outcomes: list[Outcome]) -> Array:
    """|w| of each input, as the mean over the data sets, (D,)."""
    return np.mean([np.abs(o.w_D) for o in outcomes], axis=0)


# ------------------------------------------------------------------------------------------------ what goes through


def layers(rate: float, seed: int) -> list[dict[str, object]]:
    """The effect of dropout and batch norm on 10,000 values of N(3, 2^2), in training and in evaluation."""
    rng = np.random.default_rng(seed)
    x_BD = 3 + 2 * rng.standard_normal((10_000, 1))
    norm = BatchNorm(1)
    for _ in range(60):  # the running statistics get close: 0.9^60 of the start is left
        norm.forward(3 + 2 * rng.standard_normal((100, 1)), training=True)
    evaluated = norm.forward(x_BD, training=False)
    values = {
        "10,000 values of N(3, 2^2)": x_BD,
        f"dropout {rate:g}, training": x_BD * dropout_mask(x_BD.shape, rate, rng),
        "dropout, evaluation": x_BD,
        "batch norm, training": norm.forward(x_BD, training=True),
        "batch norm, evaluation": evaluated,
    }
    return [
        {"layer": name, "mean": float(v.mean()), "std": float(v.std()), "zeros": float((v == 0).mean())}
        for name, v in values.items()
    ]


def batch_norm_losses(seed: int) -> tuple[list[float], list[float]]:
    """The losses of a neuron on inputs of very different sizes, without batch norm before it and with."""
    rng = np.random.default_rng(seed)
    x_BD = rng.standard_normal((200, 2))
    y_B = (x_BD.sum(axis=1) > 0).astype(float)
    x_BD = x_BD * [0.2, 5.0] + [1.0, -10.0]
    plain, normal = Neuron(np.zeros(2), 0.0), Neuron(np.zeros(2), 0.0)
    return plain.train(x_BD, y_B, lr=NORM_LR, epochs=NORM_EPOCHS), _train_normalized(normal, x_BD, y_B)


def _train_normalized(neuron: Neuron, x_BD: Array, y_B: Array) -> list[float]:
    norm, lr = BatchNorm(2), NORM_LR
    losses = []
    for _ in range(NORM_EPOCHS + 1):
        normal_BD = norm.forward(x_BD, training=True)
        losses.append(cross_entropy(neuron.sums(normal_BD), y_B))
        dz_B = (neuron.predict(normal_BD) - y_B) / len(y_B)
        _, dgamma_D, dbeta_D = norm.backward(np.outer(dz_B, neuron.w_D))  # (B,) x (D,) -> (B, D)
        dw_D, db = neuron.gradients(normal_BD, y_B)
        neuron.w_D, neuron.b = neuron.w_D - lr * dw_D, neuron.b - lr * db
        norm.gamma_D, norm.beta_D = norm.gamma_D - lr * dgamma_D, norm.beta_D - lr * dbeta_D
    return losses


def _notes(outcomes: dict[str, list[Outcome]], plain: list[float], normal: list[float]) -> list[str]:
    losses = {name: float(np.mean([o.test_loss for o in found])) for name, found in outcomes.items()}
    guess = " (always answering one half gives 0.693)" if losses["nothing"] > np.log(2) else ""
    better = [name for name, value in losses.items() if value < losses["nothing"]]
    helped = (
        f"It is lower with {', '.join(better)}"
        if better
        else "Nothing here lowers it: these strengths do not suit the data"
    )
    useless = NUM_INPUTS - NUM_USEFUL
    return [
        f"Without help it knows its {NUM_TRAIN} examples by heart and is too sure of itself: test loss "
        f"{losses['nothing']:.2f}{guess}. {helped}.",
        f"L1 pulls every weight by the same force, so most of the {useless} useless ones end near zero; L2 pulls in "
        "proportion, so all shrink and none vanishes; dropout lets none be relied upon.",
        "Inverted dropout divides by 1 - rate in training, so that the mean stays and evaluation changes nothing. "
        "Batch norm normalizes with the batch in training, with its running statistics in evaluation.",
        f"Batch norm, two inputs of sizes 0.2 and 5, lr {NORM_LR:g}: loss {normal[-1]:.3f} after {NORM_EPOCHS} epochs, "
        f"{plain[-1]:.3f} without.",
    ]


def _charts(outcomes: dict[str, list[Outcome]], plain: list[float], normal: list[float]) -> list[Chart]:
    sizes = {name: _sizes(found) for name, found in outcomes.items()}
    top = max(float(s.max()) for s in sizes.values())
    charts = [Chart(f"{name}: |w|", s.tolist(), (1, NUM_INPUTS), (0, top)) for name, s in sizes.items()]
    for name, losses in (("plain: loss", plain), ("batch norm: loss", normal)):
        charts.append(Chart(name, losses, (0, NORM_EPOCHS), (0, 1)))
    return charts


def _draw(figure: Figure, outcomes: dict[str, list[Outcome]], plain: list[float], normal: list[float]) -> None:
    grid = figure.add_gridspec(2, 4)
    top = 1.08 * max(_sizes(found).max() for found in outcomes.values())
    for place, (name, found) in enumerate(outcomes.items()):
        _draw_weights(figure.add_subplot(grid[0, place]), name, found, top, is_first=place == 0)
    _draw_accuracies(figure.add_subplot(grid[1, :2]), outcomes)
    _draw_norm(figure.add_subplot(grid[1, 2:]), plain, normal)


def _draw_weights(axes: Axes, name: str, found: list[Outcome], top: float, *, is_first: bool) -> None:
    from dlcli.lessons.drawing import BLUE, ORANGE, dress

    sizes, inputs = _sizes(found), np.arange(1, NUM_INPUTS + 1)
    axes.bar(inputs[:NUM_USEFUL], sizes[:NUM_USEFUL], color=ORANGE, label="useful")
    axes.bar(inputs[NUM_USEFUL:], sizes[NUM_USEFUL:], color=BLUE, label="noise")
    axes.set_ylim(0, top)
    if is_first:
        axes.legend(fontsize=8, frameon=False)
    dress(axes, name, x="input", y="|w|, mean" if is_first else "")


def _draw_accuracies(axes: Axes, outcomes: dict[str, list[Outcome]]) -> None:
    from dlcli.lessons.drawing import BLUE, ORANGE, dress

    places = np.arange(len(outcomes))
    for shift, colour, label in ((-0.2, BLUE, "train"), (0.2, ORANGE, "test")):
        values = [100 * np.mean([getattr(o, label) for o in found]) for found in outcomes.values()]
        axes.bar_label(axes.bar(places + shift, values, width=0.38, color=colour, label=label), fmt="%.0f", fontsize=8)
    losses = [np.mean([o.test_loss for o in found]) for found in outcomes.values()]
    names = [f"{name}\ntest loss {loss:.2f}" for name, loss in zip(outcomes, losses, strict=True)]
    axes.set_ylim(0, 125)
    axes.set_yticks(range(0, 101, 20))
    axes.legend(fontsize=8, frameon=False, ncols=2, loc="upper right")
    dress(axes, f"accuracy in %, mean over {DRAWS} data sets")
    axes.set_xticks(places, names)
    axes.grid(visible=False, axis="x")


def _draw_norm(axes: Axes, plain: list[float], normal: list[float]) -> None:
    from dlcli.lessons.drawing import BLUE, GREEN, dress

    axes.plot(plain, color=BLUE, label="as they are")
    axes.plot(normal, color=GREEN, label="batch norm first")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, frameon=False)
    dress(axes, "loss on two inputs of very different sizes", x="epoch")
