"""`dlcli sweep EXPERIMENT KEY=VALUES...`, and what is done with a sweep: resume, status, top, apply, join."""

from __future__ import annotations

import shlex
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dlcli.commands import ConfigDir, Outputs, Trust
from dlcli.errors import ConfigError, nearest, printable

DEFAULT = "start"


class SweepGroup(TyperGroup):
    """`dlcli sweep mnist ...` is `dlcli sweep start mnist ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            if "=" not in args[0] and (
                meant := nearest(args[0], [n for n in self.commands if n != DEFAULT], cutoff=0.75)
            ):
                message = f"there is no command {printable(args[0])} of dlcli sweep"
                raise ConfigError(message, hint=f"Did you mean  dlcli sweep {shlex.join([meant, *args[1:]])} ?")
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=SweepGroup,
    no_args_is_help=True,
    help="Search: many trials of an experiment, started by  dlcli sweep EXPERIMENT KEY=VALUES... --trials N  "
    "(its options: dlcli sweep start --help).",
    epilog="Example: dlcli sweep digits optimizer.lr=1e-4:1e-1:log --trials 8",
)

Name = Annotated[str, typer.Argument(help="A sweep: its name, folder, the beginning of one, or latest.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]
Storage = Annotated[
    str | None, typer.Option("--storage", help="A shared ledger: postgresql://user@host/database, or $DLCLI_STORAGE.")
]
NumWorkers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        max=1_000,
        help="Trials at once; default: one per GPU, else up to 4, as cores and memory allow.",
    ),
]


Pruner = Annotated[
    str | None,
    typer.Option(
        "--pruner", metavar="none|median|halving|hyperband", help="median (default), halving, hyperband or none."
    ),
]
MaxFailures = Annotated[
    int | None,
    typer.Option(
        "--max-failures", min=0, help="Pause when more trials than this have failed; default: when 3 fail alike."
    ),
]


@app.command(DEFAULT, context_settings={"ignore_unknown_options": True})
def start(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[EXPERIMENT] KEY=VALUES...",
            help="As for dlcli train; several values, or a range, are searched: model=mlp,lenet5 optimizer.lr=0.1:1",
        ),
    ] = None,
    trials: Annotated[
        int | None, typer.Option("--trials", min=1, max=100_000, help="How many; default 20, or the whole grid.")
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            "--sampler",
            metavar="tpe|random|quasi-random|grid|gp|cmaes|nsga2",
            help="tpe (default), random, quasi-random, grid, gp, cmaes; nsga2 (default of several objectives).",
        ),
    ] = None,
    pruner: Pruner = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(
            "--objective",
            help="Default: what is monitored. val/<score>, parameters, latency, time; several: val/accuracy,parameters",
        ),
    ] = None,
    workers: NumWorkers = None,
    name: Annotated[str | None, typer.Option("--name", help="Of the sweep; default: experiment and two words.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of the sampler; a trial's own is seed=N.")] = None,
    keep: Annotated[int | None, typer.Option("--keep", min=0, help="Trials whose weights stay; default 3.")] = None,
    max_failures: MaxFailures = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the trials, and from 20 measured steps the time and disk.")
    ] = False,
    storage: Storage = None,
    grace: Annotated[
        float, typer.Option("--grace", min=1, help="Seconds of silence after which a worker elsewhere is dead.")
    ] = 60.0,
    as_json: AsJson = False,
    config_dir: ConfigDir = None,
    outputs: Outputs = None,
    trust: Trust = None,
) -> int:
    """Search an experiment's settings and architectures: trials by several workers, of which none is lost.

    Example: dlcli sweep digits optimizer.lr=1e-4:1e-1:log model.hidden=[64],[128,64] --trials 4
    """
    from dlcli.runs.find import outputs_folder
    from dlcli.sweep import run
    from dlcli.sweep.request import Request

    request = Request(
        trials=trials, sampler=sampler, pruner=pruner, objectives=tuple(objective or ()), seed=seed, keep=keep,
        max_failures=max_failures, workers=workers, storage=storage, grace_s=grace, config_dir=config_dir,
        trusted=tuple(trust or ()), name=name,
    )  # fmt: skip
    return run.start(words or [], request, outputs=outputs_folder(outputs), dry_run=dry_run, as_json=as_json)


@app.command()
def resume(
    name: Name = "latest",
    trials: Annotated[
        int | None, typer.Option("--trials", min=1, max=100_000, help="How many in all, from now on.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, max=1_000, help="Trials at once; default: as many as before.")
    ] = None,
    storage: Storage = None,
    as_json: AsJson = False,
    outputs: Outputs = None,
) -> int:
    """Go on with a sweep where it stopped: killed trials from their checkpoints, finished ones not again.

    Example: dlcli sweep resume latest
    """
    from dlcli.runs.find import outputs_folder
    from dlcli.sweep import run

    return run.resume(
        name, outputs=outputs_folder(outputs), trials=trials, workers=workers, storage=storage, as_json=as_json
    )


@app.command()
def join(
    name: Name,
    workers: NumWorkers = None,
    storage: Storage = None,
    outputs: Outputs = None,
    as_json: AsJson = False,
) -> int:
    """Help with a sweep that was started elsewhere: from any machine that sees its folder or its --storage.

    Example: dlcli sweep join latest --workers 1
    """
    from dlcli.runs.find import outputs_folder
    from dlcli.sweep import run

    return run.join(name, outputs=outputs_folder(outputs), workers=workers, storage=storage, as_json=as_json)


@app.command()
def status(
    name: Name = "latest",
    watch: Annotated[bool, typer.Option("--watch", help="Look on, in a live table, until it is finished.")] = False,
    storage: Storage = None,
    outputs: Outputs = None,
    as_json: AsJson = False,
) -> None:
    """How far a sweep is: trials by state, who works on what, when it will be finished.

    Example: dlcli sweep status latest
    """
    from dlcli.runs.find import outputs_folder
    from dlcli.sweep import run
    from dlcli.sweep.results import report

    if watch:
        run.watch(name, outputs=outputs_folder(outputs), storage=storage, as_json=as_json)
        return
    report.print_status(name, outputs=outputs_folder(outputs), storage=storage, as_json=as_json)


@app.command()
def top(
    name: Name = "latest",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many trials.")] = 10,
    storage: Storage = None,
    outputs: Outputs = None,
    as_json: AsJson = False,
) -> None:
    """The best trials of a sweep, and which settings mattered.

    Example: dlcli sweep top latest
    """
    from dlcli.runs.find import outputs_folder
    from dlcli.sweep.results import report

    report.print_top(name, limit=limit, outputs=outputs_folder(outputs), storage=storage, as_json=as_json)


@app.command()
def apply(
    name: Name,
    as_name: Annotated[str, typer.Option("--as", help="What the experiment is called, in ./conf/experiment.")],
    trial: Annotated[int | None, typer.Option("--trial", min=0, help="Another trial than the best.")] = None,
    storage: Storage = None,
    config_dir: ConfigDir = None,
    outputs: Outputs = None,
) -> None:
    """Write a trial's settings, the best one's, as an experiment of your own.

    Example: dlcli sweep apply latest --as digits_best
    """
    from dlcli.runs.find import outputs_folder
    from dlcli.sweep.apply import apply_trial

    path, command = apply_trial(
        name, as_name, number=trial, outputs=outputs_folder(outputs), storage=storage, config_dir=config_dir
    )
    typer.echo(f"{path}\nnext: {command}")
