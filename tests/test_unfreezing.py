"""Gradual unfreezing is seen: how many parameters are trained now and later, and when a group begins to be."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from faults import run_of
from program import dlcli
from torch import nn
from torch.optim import SGD

from dlcli.optimizers.freezing import trainable_from
from dlcli.optimizers.groups import build_optimizer

WORDS = ("digits", "model.hidden=[16]", "trainer.epochs=3", "tracker=none", "runtime.threads=1")
LATE = """
parameter_groups:
  first: {match: "layers.1.*", from_epoch: 2}
"""
ALL, HEAD = 64 * 16 + 16 + 16 * 10 + 10, 16 * 10 + 10


def late_digits(folder: Path) -> str:
    """An experiment of one's own: the digits, whose first layer rests for an epoch."""
    (folder / "late.yaml").write_text("# @package _global_\ndefaults:\n  - /experiment/digits\n  - _self_\n" + LATE)
    return str(folder / "late.yaml")


def events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def test_parameters_are_counted_by_the_step_that_they_are_trained_from() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4), nn.Linear(4, 5))
    patterns = {
        "body": {"match": "0.*", "from_epoch": "never"},
        "middle": {"match": "1.*", "from_epoch": 3},
    }
    optimizer = build_optimizer(network, lambda groups: SGD(groups, lr=0.1), patterns, 10)
    assert trainable_from(optimizer.param_groups) == {0: 25, 20: 25 + 16}
    assert trainable_from([*optimizer.param_groups, *SGD(nn.Linear(1, 1).parameters(), lr=0.1).param_groups]) == {
        0: 27,
        20: 27 + 16,
    }


def test_a_group_that_begins_to_train_is_said_before_and_when_it_happens(tmp_path: Path) -> None:
    """Also where nothing else makes the loop stand still at that step."""
    words = (late_digits(tmp_path), *WORDS[1:], "trainer.eval_every=50", "trainer.log_every=1000")
    done = dlcli("train", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"trainable={HEAD} trainable_from_epoch_2={ALL}" in done.stdout
    told = events(run_of(tmp_path))
    ready = next(event for event in told if event["event"] == "run_prepared")
    later = {"epoch": 2, "groups": ["first"], "trainable": ALL}
    assert ready["trainable"] == HEAD and ready["trainable_later"] == [later]
    woken = [event for event in told if event["event"] == "unfrozen"]
    assert woken == [{"event": "unfrozen", "step": ready["steps_per_epoch"], **later}]


def test_a_run_without_resting_groups_says_nothing_of_it(quick_run: Path) -> None:
    told = events(quick_run)
    ready = next(event for event in told if event["event"] == "run_prepared")
    assert ready["trainable"] == ready["parameters"] and ready["trainable_later"] == []
    assert not any(event["event"] == "unfrozen" for event in told)


def test_a_resumed_run_says_once_what_wakes_and_what_is_awake(tmp_path: Path) -> None:
    done = dlcli("train", late_digits(tmp_path), *WORDS[1:], "trainer.keep_checkpoints=9", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = run_of(tmp_path)
    straight = (run / "checkpoints" / "last" / "model.safetensors").read_bytes()
    per_epoch = next(e["steps_per_epoch"] for e in events(run) if e["event"] == "run_prepared")
    for epoch in (1, 2):
        copy = tmp_path / f"epoch-{epoch}" / run.parent.name / run.name
        shutil.copytree(run, copy, symlinks=True)
        (copy / "summary.json").unlink()
        for later in range(epoch + 1, 4):
            shutil.rmtree(copy / "checkpoints" / f"step-{later * per_epoch:08d}")
        for link in ("last", "best"):
            (copy / "checkpoints" / link).unlink()
            os.symlink(f"step-{epoch * per_epoch:08d}", copy / "checkpoints" / link)
        assert dlcli("resume", str(copy), cwd=tmp_path).returncode == 0
        told = events(copy)
        assert [e["step"] for e in told if e["event"] == "unfrozen"] == [per_epoch]
        *_, ready = (e for e in told if e["event"] == "run_prepared")
        assert ready["trainable"] == ALL and ready["trainable_later"] == []
        assert (copy / "checkpoints" / "last" / "model.safetensors").read_bytes() == straight
