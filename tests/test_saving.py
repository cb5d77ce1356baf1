"""Checkpoints spaced in time: the best is held in memory, and what is told of it is what lies on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dlcli.errors import EnvironmentFault
from dlcli.runs.events import Recorder, Silent, read_events
from dlcli.training import saver as saving
from dlcli.training.saver import Saver, Snapshot

ALWAYS_EARLY_S = 1e9


@pytest.fixture
def saver(tmp_path: Path) -> Any:
    (tmp_path / "checkpoints").mkdir()
    recorder = Recorder(tmp_path / "events.jsonl", Silent())
    made = Saver(tmp_path / "checkpoints", recorder, keep=2, gap_s=ALWAYS_EARLY_S)
    yield made
    made.close()
    recorder.close()


def snapshot(step: int) -> Snapshot:
    body = {"step": step, "run": "r", "experiment": "e", "config": {}, "state": {}}
    return Snapshot({"w": torch.full((2,), float(step))}, {}, body)


def steps_of(saver: Saver) -> list[int]:
    return [event["step"] for event in read_events(saver.recorder.path)]


def write(saver: Saver, step: int, *, is_best: bool, now: bool = False) -> None:
    saver.settle()
    saver.write(step, lambda: snapshot(step), is_best=is_best, now=now)


def test_too_early_the_best_is_held_and_another_is_none(saver: Saver) -> None:
    for step, is_best in ((1, True), (2, False), (3, True), (4, False)):
        write(saver, step, is_best=is_best)
    assert steps_of(saver) == [] and list(saver.checkpoints.iterdir()) == []
    saver.finish()
    assert steps_of(saver) == [3], "the newest best alone"
    assert (saver.checkpoints / "best").resolve().name == "step-00000003"


def test_the_best_is_written_before_anything_later(saver: Saver) -> None:
    write(saver, 1, is_best=True)
    write(saver, 2, is_best=False, now=True)
    saver.settle()
    assert steps_of(saver) == [1, 2]
    assert (saver.best or Path()).name == "step-00000001" and (saver.last or Path()).name == "step-00000002"


def test_a_held_step_is_written_once(saver: Saver) -> None:
    write(saver, 1, is_best=True)
    write(saver, 1, is_best=False, now=True)
    saver.finish()
    assert steps_of(saver) == [1]
    assert (saver.best or Path()).name == "step-00000001"


def test_of_two_the_first_counts_when_the_second_fails(saver: Saver, monkeypatch: pytest.MonkeyPatch) -> None:
    save = saving.checkpoint.save

    def full_at_two(checkpoints: Path, step: int, *rest: Any) -> Path:
        if step == 2:
            raise EnvironmentFault("the disk is full")
        return save(checkpoints, step, *rest)

    monkeypatch.setattr(saving.checkpoint, "save", full_at_two)
    write(saver, 1, is_best=True)
    write(saver, 2, is_best=False, now=True)
    with pytest.raises(EnvironmentFault):
        saver.settle()
    assert steps_of(saver) == [1]
    assert (saver.best or Path()).name == "step-00000001" == (saver.checkpoints / "best").resolve().name
