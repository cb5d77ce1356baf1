"""`dlcli plan`: what a training will take adds up, grows with the training, and keeps nothing."""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from program import QUICK, dlcli, events_of

from dlcli.config import compose_command
from dlcli.errors import ConfigError
from dlcli.planning.plan import Costs, Forecast, Pace, Saving, course, forecast, num_saves, seconds_since_start
from dlcli.training.allow_list import Builder

WORDS = ("digits", "runtime.threads=1", "runtime.device=cpu", "model.hidden=[16]")
COSTS = Costs(start_s=1.0, val_s=0.5, test_s=0.25, saving=Saving(0.1, 0.2, 1_000))


def planned(*words: str) -> Forecast:
    composed = compose_command([*WORDS, *words])
    return forecast(composed.tree, Builder.for_search(composed.search, []), steps=3)


def tree_of(**trainer: Any) -> dict[str, Any]:
    settings = {"epochs": 4, "max_steps": None, "max_time": None, "eval_every": None, "save_every": None}
    return {"trainer": settings | trainer}


def test_the_whole_is_its_parts() -> None:
    found = planned("trainer.epochs=3")
    parts = (found.start_s, found.train_s, found.evaluation_s, found.saving_s, found.closing_s)
    assert found.total_s == pytest.approx(sum(parts))
    assert found.low_s <= found.total_s <= found.high_s
    assert found.step_low_s <= found.step_s <= found.step_high_s
    assert found.train_s == pytest.approx(found.steps * found.step_s)
    assert (found.steps, found.steps_per_epoch, found.epochs, found.evaluations) == (63, 21, 3.0, 3)
    assert found.disk_mb == pytest.approx(3 * found.checkpoint_mb)


def test_twice_the_epochs_are_twice_the_training_but_one_test() -> None:
    once, twice = (course(tree_of(epochs=epochs), 100, 0.01, COSTS) for epochs in (4, 8))
    assert twice.steps == 2 * once.steps and twice.train_s == pytest.approx(2 * once.train_s)
    assert (once.evaluation_s, twice.evaluation_s) == pytest.approx((4 * 0.5 + 0.25, 8 * 0.5 + 0.25))


def test_max_steps_replaces_the_epochs_and_eval_every_counts_the_end() -> None:
    found = course(tree_of(max_steps=250, eval_every=100), 100, 0.01, COSTS)
    assert (found.steps, found.evaluations, found.saves) == (250, 3, 3)


def test_a_time_limit_says_how_many_steps_fit() -> None:
    found = course(tree_of(max_time="1m40s"), 100, 0.01, COSTS)
    spent = found.train_s + found.evaluations * COSTS.val_s + found.saving_s
    assert spent == pytest.approx(100.0, rel=0.02)
    assert course(tree_of(max_time="1m40s"), 100, 0.02, COSTS).steps < found.steps
    assert course(tree_of(max_time="1m40s", max_steps=70), 100, 0.01, COSTS).steps == 70


def test_writing_that_takes_longer_than_the_steps_between_is_waited_for() -> None:
    slow = COSTS._replace(saving=Saving(0.1, 3.0, 1_000))
    hidden = course(tree_of(), 1_000, 0.01, slow).saving_s
    assert hidden == pytest.approx(4 * 0.1 + 3.0), "the last one always"
    assert course(tree_of(), 100, 0.01, slow).saving_s == pytest.approx(4 * (0.1 + 2.0) + 3.0)


@pytest.mark.parametrize(
    ("steps", "interval", "save_every", "saves"),
    [(100, 10, None, 10), (95, 10, None, 10), (100, 50, 20, 6), (100, 10, 10, 10), (90, 60, 30, 3), (5, 10, 100, 1)],
)
def test_checkpoints_are_counted_once_each(steps: int, interval: int, save_every: int | None, saves: int) -> None:
    every = {*range(interval, steps + 1, interval), steps}
    every |= set(range(save_every, steps + 1, save_every)) if save_every else set()
    assert num_saves(steps, interval, save_every) == saves == len(every)


def test_the_range_is_that_of_the_steps_measured() -> None:
    pace = Pace([float(n) for n in range(1, 11)], 0.0)
    assert (pace.at(0.1), pace.at(0.9)) == (2.0, 10.0)


def test_a_micro_batch_more_makes_fewer_steps_of_as_many_examples() -> None:
    found = planned("trainer.accumulate_grad_batches=3", "trainer.epochs=2")
    assert (found.steps, found.steps_per_epoch, found.train_examples) == (14, 7, 1_294)


@pytest.mark.parametrize("words", [(), ("regularization.ema=0.9", "optimizer=sgd"), ("optimizer=muon",)])
def test_a_checkpoint_is_as_large_as_one_that_a_run_writes(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = dlcli("train", *QUICK, "model.hidden=[16]", *words, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (last,) = tmp_path.glob("outputs/*/*/checkpoints/last")
    written = sum(path.stat().st_size for path in last.resolve().iterdir())
    assert 2**20 * planned("trainer.epochs=2", *words).checkpoint_mb == pytest.approx(written, rel=0.02)


def test_a_task_of_two_networks_is_planned_too(tmp_path: Path) -> None:
    done = dlcli("plan", "digits_gan", "trainer.epochs=2", "runtime.device=cpu", "--steps", "3", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (event,) = events_of(done.stdout)
    assert (
        event["event"] == "planned" and event["command"] == "dlcli train digits_gan trainer.epochs=2 runtime.device=cpu"
    )
    assert event.keys() == {"event", "command"} | {field.name for field in fields(Forecast)}
    assert list(tmp_path.iterdir()) == [], "nothing is kept"


def test_a_plan_for_people_ends_with_the_command(tmp_path: Path) -> None:
    done = dlcli("plan", *WORDS, "trainer.max_time=10s", cwd=tmp_path, COLUMNS="80")
    assert done.returncode == 0, done.stderr
    *table, _, last = done.stdout.splitlines()
    assert last.startswith("finished at about ")
    assert last.endswith(shlex.join(["dlcli", "train", *WORDS, "trainer.max_time=10s"]))
    assert all(len(line) <= 80 for line in table), table
    assert " fit\n" in done.stdout and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("word", ["optimizer.lrr=1", "task=distillation", "runtime.devices=2", "trainer.epochs=none"])
def test_what_cannot_be_planned_is_told_before_anything_is_measured(tmp_path: Path, word: str) -> None:
    done = dlcli("plan", *WORDS, word, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr


def test_several_devices_are_refused_with_a_remedy() -> None:
    with pytest.raises(ConfigError, match="devices=2") as caught:
        planned("runtime.devices=2")
    assert "runtime.devices=1" in str(caught.value.hint)


def test_a_process_knows_how_long_it_runs() -> None:
    first = seconds_since_start()
    assert 0 <= first <= seconds_since_start()
