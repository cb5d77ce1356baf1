"""`dlcli eval [RUN|CHECKPOINT]`: held-out scores with intervals."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dlcli.commands import ConfigDir, Outputs, Trust


def evaluate(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN|CHECKPOINT] [KEY=VALUE]...",
            help="A run (its best checkpoint), RUN/last, a checkpoint's path; best, last, latest.",
        ),
    ] = None,
    split: Annotated[str, typer.Option("--split", metavar="test|val|train", help="test, val or train.")] = "test",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    config_dir: ConfigDir = None,
    outputs: Outputs = None,
    trust: Trust = None,
) -> None:
    """Score a checkpoint on held-out data: intervals, calibration, confusion, the baseline, the worst mistakes.

    Example: dlcli eval latest
    """
    from dlcli.config import split_reference
    from dlcli.config.folders import search_path
    from dlcli.errors import ConfigError
    from dlcli.runs.find import find_checkpoint, outputs_folder

    if split not in ("test", "val", "train"):
        raise ConfigError(f"--split {split}: there is no such split", hint="--split test, val or train")
    reference, settings = split_reference(words)
    folder = find_checkpoint(reference, outputs_folder(outputs))

    from dlcli.evaluation import score
    from dlcli.evaluation.compare import answers
    from dlcli.inference import trained
    from dlcli.training.allow_list import Builder

    loaded = trained.load(folder, settings, builder=Builder.for_search(search_path(config_dir), trust or []))
    data = trained.read_data(loaded)
    report = score.score(loaded, data, split)
    pictures = {}
    if loaded.run_folder is not None:
        try:
            pictures = score.draw_report(loaded, data, report, loaded.run_folder / "eval")
        except OSError:
            pictures = {}  # the scores are shown even if the run folder cannot be written
        if not settings:
            answers.keep_of(loaded.run_folder, folder, report)
    print_report(loaded, report, pictures, as_json=as_json)


def print_report(loaded: Any, report: Any, pictures: dict[str, str], *, as_json: bool) -> None:
    import json
    import sys

    from dlcli.errors import printable
    from dlcli.reporting.output import place
    from dlcli.reporting.tables import print_table

    if as_json:
        print(json.dumps(as_event(loaded, report, pictures)))
        return
    rows = []
    for name, value in report.metrics.items():
        low, high = report.intervals.get(name, (None, None))
        rows.append([name, shown(name, value), f"{shown(name, low)} to {shown(name, high)}" if low is not None else ""])
    if report.calibration_error is not None:
        rows.append(["calibration error (ECE)", shown("accuracy", report.calibration_error), ""])
    if report.baseline is not None:
        rows.append(["baseline: always the commonest class", shown("accuracy", report.baseline), ""])
    title = (
        f"{loaded.manifest.run} · step {loaded.manifest.step} · {report.split} split, {report.num_examples:,} examples"
    )
    print_table(title, ["metric", "value", "95 % interval"], rows)
    if report.samples:
        names, num_samples = ", ".join(report.samples), next(iter(report.samples.values()))
        print(f"interval of {names}: {num_samples:,} bootstrap samples of the {report.split} examples")
    if report.hardest:
        pairs = (f"{printable(true)} taken for {printable(taken)} ({count})" for true, taken, count in report.hardest)
        print("hardest: " + " · ".join(pairs))
    for name, path in pictures.items():
        print(f"{name}: {place(path)}")
    if report.is_same_data is False:
        print(
            f"warning: the {report.split} data are not those of the training (fingerprint {report.fingerprint[:12]})",
            file=sys.stderr,
        )


def shown(name: str, value: float) -> str:
    """Shares in percent, the rest with four digits."""
    from dlcli.reporting.format import is_share

    return f"{100 * value:.2f} %" if is_share(name) else f"{value:.4g}"


def as_event(loaded: Any, report: Any, pictures: dict[str, str]) -> dict[str, Any]:
    from dlcli.runs.events import finite

    split = report.split
    event = {
        "event": "eval_finished",
        "run": str(loaded.run_folder) if loaded.run_folder else None,
        "checkpoint": str(loaded.folder),
        "split": split,
        "examples": report.num_examples,
        "metrics": {f"{split}/{name}": value for name, value in report.metrics.items()},
        "intervals": {f"{split}/{name}": list(pair) for name, pair in report.intervals.items()},
        "bootstrap_samples": {f"{split}/{name}": count for name, count in report.samples.items()},
        "calibration_error": report.calibration_error,
        "baseline": report.baseline,
        "classes": loaded.manifest.classes,
        "confusion": report.confusion,
        "same_data": report.is_same_data,
        "fingerprint": report.fingerprint,
        "pictures": pictures,
    }
    return finite(event)
