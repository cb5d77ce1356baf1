"""`dlcli plan EXPERIMENT [KEY=VALUE]...`."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from dlcli.commands import ConfigDir, Trust

if TYPE_CHECKING:
    from dlcli.planning.plan import Forecast


def plan(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[EXPERIMENT] [KEY=VALUE]...", help="As for dlcli train."),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", help="Measure at least so many steps.", min=1, max=10_000)] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    config_dir: ConfigDir = None,
    trust: Trust = None,
) -> None:
    """Say what a training will take, in time, memory and disk: measured on some of its steps, and nothing is kept.

    Example: dlcli plan digits trainer.epochs=5
    """
    from dlcli.config import compose_command

    composed = compose_command(words or [], config_dir=config_dir, command="plan")

    from dataclasses import asdict

    from dlcli.planning.plan import forecast, seconds_since_start
    from dlcli.reporting.tables import print_table
    from dlcli.training.allow_list import Builder
    from dlcli.training.completing import complete

    tree, builder = complete(composed.tree), Builder.for_search(composed.search, trust or [])
    found = forecast(tree, builder, steps=steps, before_s=seconds_since_start())
    command = shlex.join(["dlcli", "train", *(words or [])])
    json_rows = [{"event": "planned", **asdict(found), "command": command}] if as_json else None
    print_table("plan", ("what", "estimate", "how"), rows_of(found), json_rows=json_rows)
    if not as_json:
        warn_if_busy(found.load)
        print(f"\nfinished at about {clock_in(found.total_s)}, if begun now:  {command}")


def warn_if_busy(load: float) -> None:
    """A run shares the machine with other programs, and nobody knows for how long: its times were 0.5 to 1.4 of what
    a plan had said at a load of 4 to 5 on two cores, 0.93 to 0.96 at one below 1.
    """
    import os

    cores = os.cpu_count() or 1
    if load > cores:
        print(
            f"note: this machine is busy (load {load:.1f} on {cores} cores): the times may be off by half",
            file=sys.stderr,
        )


def rows_of(found: Forecast) -> list[tuple[str, str, str]]:
    """What, how much, and how it comes about; each fits on a line of 80 columns."""
    from dlcli.reporting.format import count, duration

    epochs = number(found.epochs)
    steps = f"{count(found.steps)} steps of {milliseconds(found)} each"
    length = f"{count(found.steps)} steps, {count(found.steps_per_epoch)} an epoch"
    if found.limit_s is not None:
        length += f"; {number(found.epochs_low)} to {number(found.epochs_high)} fit"
    size, kept = megabytes(found.checkpoint_mb), found.kept_checkpoints
    checkpoints = f"{kept} checkpoint{'' if kept == 1 else 's'} of {size}"
    validated = f"{count(found.evaluations)} x {count(found.val_examples)} + {count(found.test_examples)} of test"
    where = found.device_name if found.device.startswith("cuda") else "the process, libraries included"
    return [
        ("time", duration(found.total_s), f"{duration(found.low_s)} to {duration(found.high_s)}"),
        ("  start", duration(found.start_s), "libraries, data, network, warm-up"),
        ("  training", duration(found.train_s), steps),
        ("  evaluation", duration(found.evaluation_s), validated),
        ("  saving", duration(found.saving_s), f"{count(found.saves)} checkpoint{'' if found.saves == 1 else 's'}"),
        ("  end", duration(found.closing_s), "curves and summary (not measured)"),
        ("length", f"{epochs} epoch{'' if epochs == '1' else 's'}", length),
        ("speed", f"{count(found.examples_per_s)} examples/s", f"{found.measured_steps} steps measured"),
        ("memory", megabytes(found.peak_memory_mb), f"peak of {where}"),
        ("disk", megabytes(found.disk_mb), f"{checkpoints} at most"),
        ("network", f"{count(found.parameters)} parameters", computed(found)),
    ]


def milliseconds(found: Forecast) -> str:
    """130 ms (121 to 150), with the digits that the quickest needs."""
    step, low, high = (1e3 * each for each in (found.step_s, found.step_low_s, found.step_high_s))
    digits = 0 if low >= 100 else 1 if low >= 10 else 2
    return f"{step:,.{digits}f} ms ({low:,.{digits}f} to {high:,.{digits}f})"


def computed(found: Forecast) -> str:
    threads = f", {found.threads} thread{'' if found.threads == 1 else 's'}" if found.device == "cpu" else ""
    return f"{found.device}, {found.precision}{threads}"


def megabytes(mb: float) -> str:
    return f"{mb / 1024:.1f} GB" if mb >= 1024 else f"{mb:.0f} MB" if mb >= 10 else f"{mb:.2g} MB"


def number(epochs: float) -> str:
    return f"{epochs:,.0f}" if epochs >= 100 or epochs == int(epochs) else f"{epochs:.2g}"


def clock_in(seconds: float) -> str:
    """The time of day so many seconds from now, with the date where that is another day."""
    from datetime import datetime, timedelta

    now = datetime.now()
    end = now + timedelta(seconds=seconds)
    return f"{end:%H:%M:%S}" if seconds < 600 else f"{end:%H:%M}" if end.date() == now.date() else f"{end:%d %b %H:%M}"
