"""Runs that an older dlcli left: they are evaluated, asked, and trained further as on the day they were made.

tests/fixtures/runs_of_0_1_0 was made by dlcli 0.1.0 (commit 3831f2b), before modules and settings had their present
names. expected.json holds the answers of 0.1.0 itself: `eval`, `predict`, `generate`, and a resume that trained on.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from program import REPOSITORY, dlcli, events_of

import dlcli as package
from dlcli.config.folders import packaged_conf
from dlcli.config.plain_yaml import targets
from dlcli.config.renamed import TARGETS, renamed, renamed_record

OLD = REPOSITORY / "tests" / "fixtures" / "runs_of_0_1_0"
EXPECTED = json.loads((OLD / "expected.json").read_text(encoding="utf-8"))
FURTHER = {"flowers": "trainer.epochs=4", "story": "trainer.max_steps=30"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the old runs, with the links that git does not keep on every system."""
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    for checkpoints in tmp_path.glob("outputs/*/*/checkpoints"):
        (newest,) = checkpoints.iterdir()
        for name in ("best", "last"):
            (checkpoints / name).symlink_to(newest.name)
    return tmp_path


def ask(folder: Path, *words: str) -> list[dict[str, Any]]:
    done = dlcli(*words, "--json", cwd=folder, DLCLI_DATA=str(folder / "data"))
    assert done.returncode == 0, done.stderr
    return events_of(done.stdout)


@pytest.mark.parametrize("name", FURTHER)
def test_an_old_run_is_evaluated_as_it_was(folder: Path, name: str) -> None:
    found = ask(folder, "eval", name)[-1]
    assert found["metrics"] == pytest.approx(EXPECTED[name]["eval"], rel=1e-5)
    assert found["same_data"] is True


def test_an_old_run_predicts_and_generates_as_it_did(folder: Path) -> None:
    answers = ask(folder, "predict", "rows.csv", "--run", "flowers")
    assert [answer["class"] for answer in answers] == [answer["class"] for answer in EXPECTED["flowers"]["predict"]]
    for answer, expected in zip(answers, EXPECTED["flowers"]["predict"], strict=True):
        assert answer["probability"] == pytest.approx(expected["probability"], rel=1e-5)
    (written,) = ask(folder, "generate", "story", "--seed", "1")
    assert written["text"].startswith(EXPECTED["story"]["generate"])


@pytest.mark.parametrize("name", FURTHER)
def test_an_old_run_is_trained_further_as_it_would_have_been(folder: Path, name: str) -> None:
    finished = ask(folder, "resume", name, FURTHER[name])[-1]
    assert finished["step"] == EXPECTED[name]["step"]
    assert finished["metrics"] == pytest.approx(EXPECTED[name]["resumed"], rel=1e-4)
    assert ask(folder, "runs", "ls")


def test_a_run_that_cannot_be_read_says_which_version_wrote_it(folder: Path) -> None:
    (run,) = folder.glob("outputs/csv/*")
    record = yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))
    record["config"]["trainer"]["epochs"] = "three"
    (run / "run.yaml").write_text(yaml.safe_dump(record), encoding="utf-8")
    done = dlcli("resume", "flowers", cwd=folder)
    assert done.returncode == 4
    assert "written by dlcli 0.1.0" in done.stderr and package.__version__ in done.stderr


def test_every_new_name_of_a_target_exists_and_no_old_one_does() -> None:
    known = targets([packaged_conf()])
    assert set(TARGETS.values()) <= known
    assert not set(TARGETS) & known


def test_renaming_changes_only_what_was_renamed_and_is_the_same_when_repeated() -> None:
    for record in OLD.glob("outputs/*/*/run.yaml"):
        config = yaml.safe_load(record.read_text(encoding="utf-8"))["config"]
        today = renamed(config)
        assert renamed(today) == today
        assert today["trainer"].keys() and today["dataset"]["name"] == config["dataset"]["name"]


def test_the_settings_of_a_users_own_class_keep_their_names() -> None:
    own = {"model": {"_target_": "mine.Net", "width": 5}, "trainer": {"accumulate": 2}}
    record = renamed_record({"config": own, "overrides": ["model.width=5", "trainer.accumulate=2", "model=mine"]})
    assert record["config"] == {"model": own["model"], "trainer": {"accumulate_grad_batches": 2}}
    assert record["overrides"] == ["model.width=5", "trainer.accumulate_grad_batches=2", "model=mine"]
    ours = {"model": {"_target_": "dlcli.models.gpt.GPT", "width": 5}}
    record = renamed_record({"config": ours, "overrides": ["model.width=5"]})
    assert record["config"]["model"]["hidden_size"] == 5 and record["overrides"] == ["model.hidden_size=5"]
