"""`dlcli info MODEL [KEY=VALUE]...`."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlcli.commands import ConfigDir, Outputs, Trust

if TYPE_CHECKING:
    from dlcli.planning.network import Latency, Layer, Network
    from dlcli.training.allow_list import Builder


def info(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODEL] [KEY=VALUE]...", help="A model or an experiment, and settings."),
    ] = None,
    depth: Annotated[
        int, typer.Option("--depth", help="Show modules nested so deep; 0: totals alone.", min=0, max=100)
    ] = 2,
    measure: Annotated[
        bool, typer.Option("--latency", help="Time a forward pass of one example on this machine.")
    ] = False,
    run: Annotated[
        str | None,
        typer.Option(
            "--run", metavar="RUN|CHECKPOINT", help="Of a trained run, or a checkpoint; experts: how busy each is."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    config_dir: ConfigDir = None,
    outputs: Outputs = None,
    trust: Trust = None,
) -> None:
    """Show a network's layers, output shapes, parameters, FLOPs and memory; it is not allocated, however large.

    Example: dlcli info resnet model.depth=152 --depth 1
    """
    from dlcli.config.folders import search_path

    search = search_path(config_dir)
    if run is not None:
        tree, builder, loads = of_run(run, words or [], search, outputs, trust)
    else:
        tree, builder, loads = *of_words(words or [], search, config_dir, trust), {}

    from dlcli.planning.network import inspect, latency

    found = inspect(tree, builder)
    times = latency(tree, builder) if measure else {}
    batch_size = tree["dataset"]["batch_size"]
    if as_json:
        print_json(found, times, loads, batch_size)
        return
    for name, network in found.items():
        print_network(name, network, times.get(name), batch_size, depth)
        if name in loads:
            print_load(loads[name])


def of_words(
    words: list[str], search: Sequence[Path], config_dir: str | None, trust: list[str] | None
) -> tuple[dict[str, Any], Builder]:
    """The config that the words mean."""
    from dlcli.config import compose_command

    composed = compose_command(as_experiment(words, search), config_dir=config_dir, command="info")

    from dlcli.training.allow_list import Builder
    from dlcli.training.completing import complete

    return complete(composed.tree), Builder.for_search(composed.search, trust or [])


def of_run(
    run: str, words: list[str], search: Sequence[Path], outputs: str | None, trust: list[str] | None
) -> tuple[dict[str, Any], Builder, dict[str, list[list[float]]]]:
    """The config of a trained run, and how busy its experts are, where it has some."""
    from dlcli.errors import ConfigError
    from dlcli.runs.find import find_checkpoint, outputs_folder

    if words:
        raise ConfigError(f"{words[0]}: a run has its own model and settings", hint=f"dlcli info --run {run}")
    folder = find_checkpoint(run, outputs_folder(outputs))

    from dlcli.inference import trained
    from dlcli.planning.network import expert_load
    from dlcli.training.allow_list import Builder

    loaded = trained.load(folder, builder=Builder.for_search(search, trust or []))
    return loaded.tree, loaded.builder, {name: load.tolist() for name, load in expert_load(loaded).items()}


def as_experiment(words: Sequence[str], search: Sequence[Path]) -> list[str]:
    """The words with a model's name, if it is given in place of an experiment, as `EXPERIMENT model=NAME`.

    The experiment is that of the command on top of the model's YAML: its data suit the model. Raises ConfigError for a
    name that is neither's.
    """
    from dlcli.config.folders import command, options
    from dlcli.errors import ConfigError, nearest, printable

    at = next((i for i, word in enumerate(words) if "=" not in word and not word.startswith("-")), None)
    models, experiments = options("model", search), options("experiment", search)
    if at is None or words[at] in experiments or words[at].endswith((".yaml", ".yml")):
        return list(words)
    name = words[at]
    if name not in models:
        better = nearest(name, [*models, *experiments])
        see = "dlcli list model and dlcli list experiment show what there is."
        message = f"{printable(name)}: there is no such model or experiment"
        raise ConfigError(message, hint=f"Did you mean {better}? {see}" if better else see)
    named = [word for word in command(models[name], "model", name).split()[2:] if "=" not in word]
    return [*words[:at], *named[:1], f"model={name}", *words[at + 1 :]]


def print_json(
    found: dict[str, Network], times: dict[str, Latency], loads: dict[str, list[list[float]]], batch_size: int
) -> None:
    import json
    from dataclasses import asdict

    networks: dict[str, Any] = {}
    for name, network in found.items():
        totals = {"parameters": network.parameters, "trainable": network.trainable}
        measured: dict[str, Any] = {"latency": asdict(times[name])} if name in times else {}
        measured |= {"expert_load": loads[name]} if name in loads else {}
        training = {"training_bytes": training_bytes(network, batch_size)}
        networks[name] = totals | asdict(network) | training | measured
    print(json.dumps({"event": "info", "batch_size": batch_size, "networks": networks}))


def print_network(name: str, network: Network, measured: Latency | None, batch_size: int, depth: int) -> None:
    from dlcli.reporting.tables import print_table

    shown = [layer for layer in network.layers if level(layer) <= depth and layer.kind != "Identity"]
    if depth:
        columns = ("layer", "kind", "output", "parameters", "MFLOPs")
        print_table(f"{name}: layers", columns, [layer_row(name, layer) for layer in shown])
        print()
    print_table(name, ("what", "amount", "how"), total_rows(network, measured, batch_size))
    for note in notes(network, depth):
        print("\n".join(textwrap.wrap(f"note: {note}", 80, subsequent_indent="      ")))


def notes(network: Network, depth: int) -> list[str]:
    """What the tables do not show."""
    message = [network.reason] if network.reason else []
    if network.functional and depth:
        names = ", ".join(name.removeprefix("_") for name in network.functional)
        message.append(f"no layer is listed for what is called as a function: {names}")
    return message


def print_load(load: list[list[float]]) -> None:
    """Shares of the tokens' picks, a line for each block, a column for each expert; at most 8 columns a table."""
    from dlcli.reporting.tables import print_table

    for first in range(0, len(load[0]), 8):
        part = [[f"{100 * share:.1f} %" for share in shares[first : first + 8]] for shares in load]
        columns = ["block", *(f"expert {first + i}" for i in range(len(part[0])))]
        print()
        print_table("load of the experts", columns, [[str(i), *shares] for i, shares in enumerate(part)])


def level(layer: Layer) -> int:
    return layer.name.count(".") + 1 if layer.name else 0


def layer_row(network: str, layer: Layer) -> tuple[str, str, str | None, str | None, str | None]:
    name = "  " * level(layer) + layer.name.rpartition(".")[2] if layer.name else network
    shape = None if layer.output is None else "x".join(map(str, layer.output))
    parameters = f"{layer.parameters:,}" if layer.parameters else None
    often = f", {layer.calls} calls" if layer.calls > 1 else ""
    kind = layer.kind[: 22 - len(often)] + often  # the output is that of the first
    return name, kind, shape, parameters, mega(layer.flops) if layer.flops else None


def total_rows(network: Network, measured: Latency | None, batch_size: int) -> list[tuple[str, str, str]]:
    """What, how much, and what is counted; each fits on a line of 80 columns."""
    optimizer = "not known" if network.optimizer_bytes is None else size(network.optimizer_bytes)
    rows = [
        ("parameters", f"{network.parameters:,}", told_trainable(network)),
        ("FLOPs", flops(network.flops), "one example, forward; 2 a multiply-add"),
        *([("  example", network.example, "what is taken for one")] if network.example else []),
        ("memory", size(network.weight_bytes), "weights and buffers"),
        ("  gradients", size(network.gradient_bytes), "in training"),
        ("  optimizer", optimizer, "what it keeps of each weight"),
    ]
    rows += [("  average", size(network.average_bytes), "of the weights")] if network.average_bytes else []
    activations = network.activation_bytes
    rows.append(("  activations", size(activations), "of one example, kept for the backward pass"))
    rows.append(("  training", size(training_bytes(network, batch_size)), f"all of it, in batches of {batch_size:,}"))
    if measured is not None:
        spread = f"{1e3 * measured.low_s:.3g} to {1e3 * measured.high_s:.3g} ms"
        threads = f"{measured.threads} thread{'' if measured.threads == 1 else 's'}"
        rows.append(("latency", f"{1e3 * measured.median_s:.3g} ms", f"{spread}; one example, {threads}"))
    return rows


def told_trainable(network: Network) -> str:
    """133,898 trainable, 167,178 from epoch 2: in steps up to the last such epoch."""
    if len(network.trained) < 2:
        return f"{network.trainable:,} trainable"
    last = max(network.trained)
    return f"{network.trained[1]:,} trainable, {network.trained[last]:,} from epoch {last}"


def training_bytes(network: Network, batch_size: int) -> int | None:
    if network.optimizer_bytes is None or network.activation_bytes is None:
        return None
    fixed = network.weight_bytes + network.gradient_bytes + network.optimizer_bytes + network.average_bytes
    return fixed + network.activation_bytes * batch_size


def mega(count: int) -> str:
    return f"{count / 1e6:,.3f}" if count < 1e8 else f"{count / 1e6:,.0f}"


def flops(count: int | None) -> str:
    if count is None:
        return "not known"
    scale, unit = next((s, u) for s, u in ((1e12, "T"), (1e9, "G"), (1e6, "M")) if count >= s or u == "M")
    return f"{count / scale:,.3g} {unit}"


def size(num_bytes: int | None) -> str:
    if num_bytes is None:
        return "not known"
    scaled, unit = float(num_bytes), "B"
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if scaled < 1024 or unit == "TB":
            break
        scaled /= 1024
    return f"{scaled:.0f} {unit}" if unit == "B" or scaled >= 100 else f"{scaled:.3g} {unit}"
