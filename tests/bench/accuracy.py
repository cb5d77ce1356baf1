"""What experiments learn: test accuracy of the checkpoint that validation chose, over seeds; and what it costs."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.bench.measure import Cost, cost_of, table

RESULTS = Path(__file__).with_name("RESULTS.md")


def finished(*words: str) -> dict[str, Any]:
    """The last event of a run, with its device, threads and cost of the whole process."""
    with tempfile.TemporaryDirectory() as folder, open(Path(folder, "events"), "w+") as events:
        command = (sys.executable, "-m", "dlcli", "train", *words, "tracker=none", "--json", "--outputs", folder)
        cost = cost_of(command, stdout=events)
        events.seek(0)
        parsed = [json.loads(line) for line in events]
    prepared = next(event for event in parsed if event["event"] == "run_prepared")
    where = {"device": prepared["device_name"] or prepared["device"], "threads": prepared["threads"]}
    return parsed[-1] | where | {"cost": cost}


def percent(run: dict[str, Any], split: str) -> str:
    return f"{100 * run['metrics'][f'{split}/accuracy']:.2f} %"


def over_seeds(experiment: str, seeds: range, *words: str) -> str:
    runs = [finished(experiment, f"seed={seed}", *words) for seed in seeds]
    rows = [
        (seed, percent(run, "test"), percent(run, "val"), run["best_epoch"], f"{run['seconds']:.1f}")
        for seed, run in zip(seeds, runs, strict=True)
    ]
    head = f"`{command_of(experiment, *words)}`: {mean_of(runs)}; {runs[0]['device']}, {runs[0]['threads']} thread(s)"
    return f"{head}\n\n" + table(("seed", "test accuracy", "validation", "best epoch", "seconds"), rows)


def command_of(*words: str) -> str:
    return " ".join(["dlcli train", words[0], "seed=N", *words[1:]])


def mean_of(runs: list[dict[str, Any]]) -> str:
    scores = [100 * run["metrics"]["test/accuracy"] for run in runs]
    spread = f", deviation {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
    return f"mean {statistics.mean(scores):.2f} %{spread}"


def digits() -> str:
    """Test accuracy over five seeds."""
    return over_seeds("digits", range(5))


def fashion_mnist() -> str:
    """Test accuracy of one seed, where the files are there."""
    try:
        return over_seeds("mnist", range(1), "dataset=fashion_mnist", "dataset.download=false", "runtime.threads=1")
    except subprocess.CalledProcessError as error:
        return f"not measured: {error.stderr.splitlines()[0]}"


def mnist() -> str:
    """Test accuracy over three seeds."""
    return over_seeds("mnist", range(3), "runtime.threads=1")


# ----------------------------------------------------------------------------------------------------- time to accuracy


def classic_99_s() -> float | None:
    """CPU seconds of the classic program to 99.0 %, as RESULTS.md last says; None where it was never measured."""
    sections = re.findall(r"^## classic_99,.*?(?=^## |\Z)", RESULTS.read_text(), re.MULTILINE | re.DOTALL)
    found = re.search(r"mean ([\d.]+) CPU-seconds", sections[-1]) if sections else None
    return float(found[1]) if found else None


def time_to(*words: str, seeds: range = range(10)) -> str:
    """CPU time of whole processes, their children included, beside the classic program's to 99.0 %."""
    classic_s = classic_99_s()
    runs = [finished(*words, f"seed={seed}") for seed in seeds]
    rows = [(seed, percent(run, "test"), percent(run, "val"), *costs(run["cost"], classic_s))
            for seed, run in zip(seeds, runs, strict=True)]  # fmt: skip
    cpu = [run["cost"].cpu_s for run in runs]
    spread = f", deviation {statistics.stdev(cpu):.1f}" if len(cpu) > 1 else ""
    against = f"1/{classic_s / statistics.mean(cpu):.1f} of {classic_s:.0f}" if classic_s else "run classic_99 first"
    head = (
        f"`{command_of(*words)} tracker=none`: {mean_of(runs)}; mean {statistics.mean(cpu):.1f} CPU-seconds{spread}, "
        f"the classic program's time to 99.0 %: {against}; {runs[0]['device']}, {runs[0]['threads']} thread(s)"
    )
    return f"{head}\n\n" + table(
        ("seed", "test accuracy", "validation", "CPU s", "wall s", "of the classic program's"), rows
    )


def costs(cost: Cost, classic_s: float | None) -> tuple[str, str, str]:
    return f"{cost.cpu_s:.1f}", f"{cost.wall_s:.1f}", f"1/{classic_s / cost.cpu_s:.1f}" if classic_s else ""


def mnist_fast() -> str:
    """Accuracy and CPU time of whole processes over ten seeds, against classic_99."""
    return time_to("mnist_fast")


def mnist_99() -> str:
    """The same experiment cut to one epoch: what 99.0 % costs."""
    return time_to("mnist_fast", "trainer.epochs=1")
