"""`dlcli rerun RUN`: again from the record, and whether the result is the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from program import dlcli, events_of

from dlcli.runs.find import find_run
from dlcli.runs.folder import RunFolder

QUICK = ("digits", "tracker=none", "runtime=cpu", "trainer.epochs=2")
Edit = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the finished run called once."""
    folder = tmp_path_factory.mktemp("rerun")
    done = dlcli("train", *QUICK, "name=once", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def edited(original: Path, folder: Path, edit: Edit) -> RunFolder:
    """A copy of the run with its record changed, as if it had been trained so."""
    shutil.copytree(original / "outputs", folder / "outputs", symlinks=True)
    run = find_run("once", folder / "outputs")
    record = run.read_record()
    edit(record)
    run.run_yaml.write_text(yaml.safe_dump(record, sort_keys=False))
    return run


def rerun(folder: Path, *words: str) -> tuple[int, dict[str, Any]]:
    done = dlcli("rerun", *words, "--json", cwd=folder)
    assert done.stdout, done.stderr
    return done.returncode, events_of(done.stdout)[-1]


def test_a_run_is_repeated_bit_for_bit(original: Path) -> None:
    code, event = rerun(original, "once")
    assert (code, event["event"], event["verdict"]) == (0, "rerun_finished", "same")
    assert event["environment"] == [] and event["notes"] == []
    again = RunFolder(Path(event["rerun"]))
    assert again.path.parent == find_run("once", original / "outputs").path.parent.resolve()
    assert again.name != "once"
    assert again.read_record()["rerun_of"].endswith("-once")


def test_another_seed_is_within_noise(original: Path, tmp_path: Path) -> None:
    edited(original, tmp_path, lambda record: record["config"].update(seed=1))
    code, event = rerun(tmp_path, "once")
    assert (code, event["verdict"]) == (0, "within noise")
    assert "(McNemar)" in event["reason"]


def test_another_result_is_told_with_what_differs(original: Path, tmp_path: Path) -> None:
    def edit(record: dict[str, Any]) -> None:
        record["config"]["optimizer"]["lr"] = 1e-5
        record["versions"]["torch"] = "2.0.0"
        record["data"]["test"] = "0" * 64

    edited(original, tmp_path, edit)
    done = dlcli("rerun", "once", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "not the same · test accuracy 90.81 %, now" in done.stdout
    rows = [line.split() for line in done.stdout.splitlines()]
    assert next(row[:2] for row in rows if row[:1] == ["torch"]) == ["torch", "2.0.0"]
    assert next(row[:3] for row in rows if row[:2] == ["data", "test"]) == ["data", "test", "000000000000"]


def test_what_was_measured_is_taken_from_the_record(original: Path, tmp_path: Path) -> None:
    def edit(record: dict[str, Any]) -> None:
        record["config"]["runtime"] |= {"threads": "auto", "precision": "auto", "channels_last": "auto"}
        record["device"] |= {"threads": 1, "precision": "bf16", "channels_last": False}

    edited(original, tmp_path, edit)
    _, event = rerun(tmp_path, "once")
    record = RunFolder(Path(event["rerun"])).read_record()
    assert (record["device"]["precision"], record["device"]["threads"]) == ("bf16", 1)
    assert event["environment"] == [], "as the record says"


def test_one_of_several_seeds_is_repeated(tmp_path: Path) -> None:
    assert dlcli("train", *QUICK, "--seeds", "3", "name=group", cwd=tmp_path).returncode == 0
    code, event = rerun(tmp_path, "group/seed-1")
    assert (code, event["verdict"]) == (0, "same")
    assert RunFolder(Path(event["rerun"])).experiment == "digits"
    refused = dlcli("rerun", "group", cwd=tmp_path)
    assert refused.returncode == 2 and "dlcli rerun group/seed-0" in refused.stderr


@pytest.mark.parametrize(
    ("best", "last", "is_same"),
    [("a", "b", True), ("a", "", False), ("", "b", False), ("a", None, False), (None, "b", True), (None, None, False)],
)
def test_to_the_last_bit_needs_the_hashes_of_the_last_weights(
    tmp_path: Path, best: str | None, last: str | None, is_same: bool
) -> None:
    """best, last: sha256 of their weights, "" where the checkpoint says none, None where there is no checkpoint."""
    from dlcli.config import compose_command
    from dlcli.evaluation.compare.rerun import judge

    runs = [RunFolder(tmp_path / "digits" / f"2026010{day}-000000-run") for day in (1, 2)]
    for run in runs:
        for link, weights in (("best", best), ("last", last)):
            if weights is not None:
                folder = run.checkpoints / f"step-{link}"
                folder.mkdir(parents=True)
                said = {"files": {"model.safetensors": {"sha256": weights}}}
                (folder / "checkpoint.json").write_text(json.dumps({"body": said}))
                (run.checkpoints / link).symlink_to(folder.name)
        run.path.mkdir(parents=True, exist_ok=True)
        run.write_record({"config": compose_command(("digits",)).tree})
        run.write_summary({"status": "completed", "metrics": {"val/loss": 0.1}})
    told = judge(*runs, lambda run, split: pytest.fail("nobody is to be asked"))
    assert (told.word == "same") is is_same


def test_a_result_within_the_spread_of_the_seeds_is_within_noise(original: Path, tmp_path: Path) -> None:
    """Where the answers differ beyond chance, but no more than seeds do."""
    from dlcli.evaluation.compare.rerun import by_seeds

    member = RunFolder(tmp_path / "digits" / "20260101-000000-group" / "seed-0")
    member.path.mkdir(parents=True)
    rows = {str(seed): {"test/accuracy": value} for seed, value in enumerate((0.90, 0.94, 0.92))}
    (member.path.parent / "summary.json").write_text(json.dumps({"event": "seeds_finished", "per_seed": rows}))
    within, beyond = (by_seeds(member, "test/accuracy", value) for value in (0.86, 0.5))
    assert within is not None and within.word == "within noise"
    assert beyond is not None and beyond.word == "not the same"
    assert by_seeds(find_run("once", original / "outputs"), "test/accuracy", 0.9) is None


def test_a_trial_of_a_sweep_is_repeated(original: Path, tmp_path: Path) -> None:
    """It was not scored on the test split; what both have is compared."""
    run = edited(original, tmp_path, lambda record: None)
    trial = tmp_path / "outputs" / "sweeps" / "wide" / "0007"
    trial.parent.mkdir(parents=True)
    run.path.rename(trial)
    summary = json.loads((trial / "summary.json").read_text())
    summary["metrics"] = {n: v for n, v in summary["metrics"].items() if n.startswith("val/")}
    (trial / "summary.json").write_text(json.dumps(summary))
    code, event = rerun(tmp_path, "wide/7")
    assert (code, event["verdict"]) == (0, "same")
    assert Path(event["rerun"]).parent == tmp_path / "outputs" / "digits", "a run of its own, not a trial more"


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda record: record["config"]["model"].update(_target_="os.system"), "os.system"),
        (lambda record: record["config"]["optimizer"].update(lr="much"), "cannot be resumed from"),
        (lambda record: record.pop("config"), "cannot be resumed from"),
    ],
    ids=["target", "value", "config"],
)
def test_a_changed_record_is_refused(original: Path, tmp_path: Path, edit: Edit, told: str) -> None:
    edited(original, tmp_path, edit)
    done = dlcli("rerun", "once", cwd=tmp_path)
    assert done.returncode == 4, done.stdout
    assert told in done.stderr and "Traceback" not in done.stderr


def test_an_unfinished_run_has_no_result_to_repeat(original: Path, tmp_path: Path) -> None:
    run = edited(original, tmp_path, lambda record: None)
    run.summary.unlink()
    done = dlcli("rerun", "once", cwd=tmp_path)
    assert done.returncode == 2
    assert "did not come to its end (killed)" in done.stderr and "dlcli resume once" in done.stderr


def test_a_run_that_was_trained_further_says_why_its_bits_differ(tmp_path: Path) -> None:
    assert dlcli("train", *QUICK, "name=once", cwd=tmp_path).returncode == 0
    assert dlcli("resume", "once", "trainer.epochs=3", cwd=tmp_path).returncode == 0
    _, event = rerun(tmp_path, "once")
    assert event["notes"] == ["it was trained further after it was finished; now it is trained in one go"]
