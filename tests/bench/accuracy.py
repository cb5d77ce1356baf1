"""What the two first experiments learn: test accuracy of the checkpoint that validation chose, over seeds."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from typing import Any


def finished(*words: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "dlcli", "train", *words, "tracker=none", "--json", "--outputs", folder]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    events = [json.loads(line) for line in lines]
    prepared = next(event for event in events if event["event"] == "run_prepared")
    return events[-1] | {"device": prepared["device_name"] or prepared["device"], "threads": prepared["threads"]}


def percent(run: dict[str, Any], split: str) -> str:
    return f"{100 * run['metrics'][f'{split}/accuracy']:.2f} %"


def table(experiment: str, seeds: range, *words: str) -> str:
    runs = [finished(experiment, f"seed={seed}", *words) for seed in seeds]
    rows = [
        f"| {seed} | {percent(run, 'test')} | {percent(run, 'val')} | {run['best_epoch']} | {run['seconds']:.1f} |"
        for seed, run in zip(seeds, runs, strict=True)
    ]
    scores = [100 * run["metrics"]["test/accuracy"] for run in runs]
    spread = f", deviation {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
    command = " ".join(["dlcli train", experiment, "seed=N", *words])
    where = f"{runs[0]['device']}, {runs[0]['threads']} thread(s)"
    head = f"`{command}`: mean {statistics.mean(scores):.2f} %{spread}; {where}"
    return "\n".join(
        [head, "", "| seed | test accuracy | validation | best epoch | seconds |", "|---|---|---|---|---|", *rows]
    )


def digits() -> str:
    return table("digits", range(5))


def fashion_mnist() -> str:
    """Where the files are there."""
    try:
        return table("mnist", range(1), "dataset=fashion_mnist", "dataset.download=false", "runtime.threads=1")
    except subprocess.CalledProcessError as error:
        return f"not measured: {error.stderr.splitlines()[0]}"


def mnist() -> str:
    return table("mnist", range(3), "runtime.threads=1")
