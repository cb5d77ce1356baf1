"""The list of 2,000 runs: with a filter on a metric and a choice, with an order, and plain; a sweep of 1,000 trials."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from dlcli.sweep.ledger.heartbeat import this_worker
from dlcli.sweep.space.space import Axis
from dlcli.sweep.study.definition import Definition, Objective
from dlcli.sweep.study.trial_record import Record
from tests.bench.measure import Cost, cost_of, in_turn, spread, table

NUM_RUNS = 2_000
NUM_TRIALS = 1_000
ROUNDS = 10
CONFIG: dict[str, Any] = {  # as large as that of `dlcli train digits`
    "dataset": {"name": "digits", "image_shape": [1, 8, 8], "mean": [0.3049], "std": [0.376], "batch_size": 64},
    "model": {"_target_": "dlcli.models.mlp.MLP", "hidden": [512, 256], "activation": "relu", "dropout": 0.3},
    "task": {"_target_": "dlcli.tasks.classification.Classification", "facts": {"scores": {"accuracy": "max"}}},
    "optimizer": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.001, "betas": [0.9, 0.999], "eps": 1e-8},
    "schedule": {"_target_": "dlcli.optimizers.schedules.cosine", "_partial_": True, "warmup": 0, "final": 0.0},
    "regularization": {f"setting_{i}": 0.1 * i for i in range(12)},
    "augmentation": {f"setting_{i}": None for i in range(8)},
    "runtime": {f"setting_{i}": "auto" for i in range(10)},
    "trainer": {f"setting_{i}": i for i in range(12)},
    "seed": 0,
}


def run() -> str:
    """`dlcli runs ls` over 2,000 runs, as a process of its own: filtered, sorted, plain."""
    with tempfile.TemporaryDirectory() as folder:
        for number in range(NUM_RUNS):
            make_run(Path(folder), number)
        sides = {
            '"val/accuracy>0.5 model=mlp"': ("val/accuracy>0.5 model=mlp",),
            "optimizer.lr=0.001 --limit 0 (all are shown)": ("optimizer.lr=0.001", "--limit", "0"),
            "--sort val/accuracy": ("--sort", "val/accuracy"),
            "plain": (),
        }
        command = (sys.executable, "-m", "dlcli", "runs", "ls", "--outputs", folder)
        rounds = in_turn(ROUNDS, *(lambda w=words: cost_of((*command, *w)) for words in sides.values()))
    rows = [_row(f"runs ls {name}", costs) for name, costs in zip(sides, zip(*rounds, strict=True), strict=True)]
    return table((f"{NUM_RUNS:,} runs", "wall s", "CPU s"), rows)


def sweep_status() -> str:
    """`dlcli sweep status` of 1,000 trials, two of them at work, as a process of its own; promised: under 2 s."""
    with tempfile.TemporaryDirectory() as folder:
        make_sweep(Path(folder))
        command = (sys.executable, "-m", "dlcli", "sweep", "status", "latest", "--outputs", folder)
        rounds = in_turn(ROUNDS, lambda: cost_of(command), lambda: cost_of((*command, "--json")))
    names = ("sweep status", "sweep status --json")
    rows = [_row(name, costs) for name, costs in zip(names, zip(*rounds, strict=True), strict=True)]
    return table((f"{NUM_TRIALS:,} trials", "wall s", "CPU s"), rows)


def make_sweep(outputs: Path) -> None:
    """A sweep as its workers leave it in the midst of the last two trials: two thirds of the others stopped early."""
    axes = (Axis("optimizer.lr", low=1e-4, high=0.1, is_log=True), Axis("model", ("mlp", "simple_cnn")))
    objectives = (Objective("val/accuracy", "max"),)
    folder = outputs / "sweeps" / "digits-calm-otter"
    folder.mkdir(parents=True)
    Definition("digits-calm-otter", "digits", ("digits",), axes, objectives, NUM_TRIALS).write(folder)
    for number in range(NUM_TRIALS):
        record = Record(number, {"optimizer.lr": repr(1e-4 + number * 1e-6), "model": "mlp"}, worker=this_worker())
        score = number / NUM_TRIALS
        if number < NUM_TRIALS - 2:
            ends = {"state": "pruned"} if number % 3 else {"state": "completed", "values": [score]}
            reports = {str(epoch): score for epoch in range(1, 31)}
            record = record.be(**ends, metrics={"val/accuracy": score}, reports=reports, seconds=4.0)
        record.write(folder)


def make_run(outputs: Path, number: int) -> None:
    """A folder as a finished run leaves it, without its checkpoints and pictures. No choices in its first event."""
    path = outputs / "digits" / f"20261124-{number:06d}-calm-otter-{number}"
    path.mkdir(parents=True)
    metrics = {"val/accuracy": number / NUM_RUNS, "val/loss": 1.0, "test/accuracy": 0.5, "test/loss": 1.0}
    started = {"event": "run_started", "experiment": "digits", "overrides": ["seed=0"], "config": CONFIG}
    epochs = [{"event": "epoch", "epoch": i, "step": 21 * i, "metrics": metrics} for i in range(1, 31)]
    ended = {"event": "run_finished", "status": "completed", "epoch": 30, "seconds": 1.5, "metrics": metrics}
    events = [started, *epochs, ended]
    (path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (path / "summary.json").write_text(json.dumps(ended, indent=1))
    (path / "run.yaml").write_text("choices:\n  dataset: digits\n  model: mlp\n  optimizer: adam\nversions: {}\n")
    (path / ".lock").write_text('{"created_ns": 1}\n')


def _row(name: str, costs: tuple[Cost, ...]) -> tuple[str, str, str]:
    wall, cpu = [cost.wall_s for cost in costs], [cost.cpu_s for cost in costs]
    return name, spread(wall, 2), f"{statistics.median(cpu):.2f}"
