"""`dlcli learn TOPIC`: the foundations from scratch, in NumPy, to read and to play with."""

from __future__ import annotations

from typing import Annotated

import typer

from dlcli.commands import Outputs

app = typer.Typer()

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object per row, and one for the whole.")]
Picture = Annotated[
    str | None, typer.Option("--picture", metavar="PATH", help="A PNG; default learn/TOPIC.png in the outputs folder.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Of the data and of the first weights.")]
Epochs = Annotated[int, typer.Option("--epochs", min=1, max=100_000, help="Passes over the data.")]
Rate = Annotated[float, typer.Option("--lr", min=0.0, max=1_000.0, help="The learning rate.")]
Set = Annotated[
    str,
    typer.Option(
        "--data", metavar="separable|clouds|moons|circles|xor", help="separable, clouds, moons, circles or xor."
    ),
]


@app.callback(invoke_without_command=True, epilog="Begin with:  dlcli learn neuron")
def learn(context: typer.Context, as_json: AsJson = False) -> None:
    """Learn the foundations from scratch, in NumPy: each topic with tables, curves and a picture.

    Example: dlcli learn
    """
    from dlcli.errors import ConfigError
    from dlcli.lessons.showing import list_topics

    if context.invoked_subcommand is None:
        list_topics(as_json=as_json)
    elif as_json:
        topic = context.invoked_subcommand
        raise ConfigError("--json comes after the topic", hint=f"dlcli learn {topic} --json")


@app.command()
def neuron(
    data: Set = "separable",
    lr: Rate = 1.0,
    epochs: Epochs = 200,
    seed: Seed = 0,
    picture: Picture = None,
    as_json: AsJson = False,
    outputs: Outputs = None,
) -> None:
    """One neuron, a weighted sum and a sigmoid, draws a line between two classes.

    Example: dlcli learn neuron --seed 3
    """
    from dlcli.lessons import showing

    showing.check(picture, data=data, lr=lr)
    from dlcli.lessons.neuron import teach

    showing.show(teach(data=data, lr=lr, epochs=epochs, seed=seed), picture=picture, outputs=outputs, as_json=as_json)


@app.command()
def activations(picture: Picture = None, as_json: AsJson = False, outputs: Outputs = None) -> None:
    """Sigmoid, tanh, ReLU and leaky ReLU: curves, slopes, range, pro and con.

    Example: dlcli learn activations
    """
    from dlcli.lessons import showing

    showing.check(picture)
    from dlcli.lessons.activations import teach

    showing.show(teach(), picture=picture, outputs=outputs, as_json=as_json)


@app.command()
def backprop(
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="separable|clouds|moons|circles|xor",
            help="separable, clouds, moons, circles or xor alone.",
        ),
    ] = None,
    hidden: Annotated[int, typer.Option("--hidden", min=1, max=1_000, help="Hidden units.")] = 4,
    lr: Annotated[float | None, typer.Option("--lr", min=0.0, max=1_000.0, help="Default: 0.01, then 1.")] = None,
    scale: Annotated[
        float | None, typer.Option("--scale", min=0.0, max=1_000.0, help="Of the first weights; 0.01, then 1.")
    ] = None,
    epochs: Epochs = 1000,
    seed: Seed = 0,
    picture: Picture = None,
    as_json: AsJson = False,
    outputs: Outputs = None,
) -> None:
    """A network of two layers with hand-written gradients: what it learns from the standard start, and what not.

    Example: dlcli learn backprop --data xor --lr 1 --scale 1
    """
    from dlcli.lessons import showing

    showing.check(picture, data=data, lr=lr, scale=scale)
    from dlcli.lessons.backprop import teach

    lesson = teach(data=data, hidden=hidden, lr=lr, scale=scale, epochs=epochs, seed=seed)
    showing.show(lesson, picture=picture, outputs=outputs, as_json=as_json)


@app.command()
def optimizers(
    lr: Annotated[
        float | None, typer.Option("--lr", min=0.0, max=1_000.0, help="One rate for all; default: each its best.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, max=10_000, help="Steps down the valley.")] = 100,
    steepness: Annotated[
        float, typer.Option("--steepness", min=1.0, max=10_000.0, help="How much steeper across than along.")
    ] = 100.0,
    picture: Picture = None,
    as_json: AsJson = False,
    outputs: Outputs = None,
) -> None:
    """SGD, momentum, Nesterov, RMSprop and Adam go down the same narrow valley.

    Example: dlcli learn optimizers --lr 0.02
    """
    from dlcli.lessons import showing

    showing.check(picture, lr=lr, steepness=steepness)
    from dlcli.lessons.optimizers import teach

    lesson = teach(lr=lr, steps=steps, steepness=steepness)
    showing.show(lesson, picture=picture, outputs=outputs, as_json=as_json)


@app.command()
def regularization(
    strength: Annotated[float, typer.Option("--strength", min=0.0, max=100.0, help="Of L1 and L2.")] = 0.05,
    rate: Annotated[float, typer.Option("--rate", min=0.0, max=0.99, help="What dropout drops.")] = 0.5,
    lr: Rate = 0.2,
    epochs: Annotated[int, typer.Option("--epochs", min=1, max=10_000, help="Passes over the data.")] = 500,
    seed: Seed = 0,
    picture: Picture = None,
    as_json: AsJson = False,
    outputs: Outputs = None,
) -> None:
    """Dropout, batch normalization, L1 and L2 against learning by heart.

    Example: dlcli learn regularization --strength 0.1
    """
    from dlcli.lessons import showing

    showing.check(picture, strength=strength, rate=rate, lr=lr)
    from dlcli.lessons.regularization import teach

    lesson = teach(strength=strength, rate=rate, lr=lr, epochs=epochs, seed=seed)
    showing.show(lesson, picture=picture, outputs=outputs, as_json=as_json)
