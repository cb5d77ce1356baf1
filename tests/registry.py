"""Run folders as trainings leave them, made in a moment, for the tests of the registry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dlcli.runs.folder import RunFolder

TREE: dict[str, Any] = {
    "dataset": {"name": "digits", "image_shape": [1, 8, 8]},
    "model": {"_target_": "dlcli.models.mlp.MLP", "dropout": 0.3},
    "task": {"_target_": "dlcli.tasks.classification.Classification", "facts": {"scores": {"accuracy": "max"}}},
    "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.001},
    "trainer": {"epochs": 30, "max_time": None, "resume": True},
    "seed": 0,
}


def make_run(
    outputs: Path, name: str, day: int = 1, *, place: str | None = None, experiment: str = "digits",
    status: str | None = "completed", accuracy: float | None = 0.9, steps: tuple[int, ...] = (),
    best: int | None = None, config: dict[str, Any] | None = None, choices: dict[str, str] | None = None, **ended: Any,
) -> RunFolder:  # fmt: skip
    """A run of 2026-11-`day`. place: its folder below `outputs` where it is not a run of its own.

    status: None for one that was killed. steps: its checkpoints, of 1,000 bytes each; `last` is the last one.
    """
    run = RunFolder(outputs / (place or f"{experiment}/202611{day:02}-120000-{name}"))
    run.path.mkdir(parents=True)
    run.lock_file.touch()
    tree = TREE | (config or {})
    started = {"event": "run_started", "time": f"2026-11-{day:02}T12:00:00", "experiment": experiment}
    started |= {"overrides": [f"name={name}"], "config": tree} | ({"choices": choices} if choices else {})
    run.events.write_text(json.dumps(started) + "\n")
    metrics = {} if accuracy is None else {"val/accuracy": accuracy, "val/loss": 1 - accuracy}
    if status is not None:
        summary = {"status": status, "experiment": experiment, "epoch": 30, "seconds": 2.5, "metrics": metrics}
        run.write_summary(summary | ended)
    for step in steps:
        make_checkpoint(run, step)
    if steps:
        (run.checkpoints / "last").symlink_to(f"step-{steps[-1]:08}")
        (run.checkpoints / "best").symlink_to(f"step-{best or steps[-1]:08}")
    return run


def make_checkpoint(run: RunFolder, step: int) -> Path:
    folder = run.checkpoints / f"step-{step:08}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"x" * 1000)
    return folder


def make_group(outputs: Path, name: str, day: int = 1, seeds: tuple[int, ...] = (0, 1, 2)) -> RunFolder:
    """A group of runs that differ in their seed: no events of its own, and its summary tells all."""
    group = RunFolder(outputs / f"digits/202611{day:02}-120000-{name}")
    for seed in seeds:
        make_run(
            outputs, "", day, place=f"digits/{group.folder_name}/seed-{seed}", steps=(10, 20), config={"seed": seed}
        )
    group.write_summary(
        {
            "status": "completed", "experiment": "digits", "epoch": 30, "seconds": 9.0, "seeds": list(seeds),
            "metrics": {"val/accuracy": 0.982}, "deviations": {"val/accuracy": 0.0013},
            "config": TREE, "choices": {"model": "mlp", "optimizer": "momentum"}, "overrides": ["seeds=3"],
        }
    )  # fmt: skip
    group.run_yaml.write_text("name: x\n")
    return group
