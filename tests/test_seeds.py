"""`dlcli train EXPERIMENT --seeds N`: runs that differ in the seed only, and one result of them all."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from program import dlcli, environment, events_of

from dlcli.completion import complete
from dlcli.config import compose_command
from dlcli.evaluation.seeds import group as seeds
from dlcli.evaluation.seeds.results import statistics_of
from dlcli.evaluation.significance import deviation, mean, mean_interval
from dlcli.reporting.format import told_seeds
from dlcli.runs.events import Silent
from dlcli.runs.find import all_runs, find_run, find_runs
from dlcli.runs.folder import RunFolder
from dlcli.runtime.signals import Signals
from dlcli.training import start

QUICK = ("digits", "tracker=none", "runtime=cpu", "trainer.epochs=2")
PATIENCE_S = 180  # against a hang only

# A user's own network whose answer is not a number where the seed is 1.
FRAGILE = """
import torch
from dlcli.models.mlp import MLP

class Fragile(MLP):
    def forward(self, images):
        logits = super().forward(images)
        return logits * float("nan") if self.training and torch.initial_seed() == 1 else logits
"""


def weights(run: Path) -> dict[str, str]:
    """sha256 of the weights in each checkpoint of a run."""
    files = sorted(run.glob("checkpoints/step-*/model.safetensors"))
    return {path.parent.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def train_seeds(folder: Path, *words: str, exit_code: int = 0, **env: str) -> dict[str, Any]:
    """The last event of a group."""
    done = dlcli("train", *QUICK, *words, "--json", cwd=folder, **env)
    assert done.returncode == exit_code, done.stderr
    return events_of(done.stdout)[-1]


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Three seeds of the digits."""
    return RunFolder(Path(train_seeds(tmp_path_factory.mktemp("seeds"), "--seeds", "3", "name=otter")["run"]))


def test_the_result_is_mean_deviation_and_interval_over_the_runs(group: RunFolder) -> None:
    summary = group.read_summary()
    assert summary is not None
    assert (summary["event"], summary["status"], summary["seeds"]) == ("seeds_finished", "completed", [0, 1, 2])
    assert summary["runs"] == ["seed-0", "seed-1", "seed-2"]
    own = [json.loads((group.path / run / "summary.json").read_text())["metrics"] for run in summary["runs"]]
    scores = [metrics["test/accuracy"] for metrics in own]
    assert len(set(scores)) > 1
    assert summary["metrics"]["test/accuracy"] == mean(scores)
    assert summary["deviations"]["test/accuracy"] == deviation(scores)
    assert summary["intervals"]["test/accuracy"] == list(mean_interval(scores))
    assert list(summary["per_seed"].values()) == own


def test_a_group_is_one_run_of_the_list_and_its_members_are_named_below_it(group: RunFolder) -> None:
    outputs = group.path.parents[1]
    assert [run.name for run in all_runs(outputs)] == ["otter"]
    assert find_run("otter/seed-2", outputs).path == group.path / "seed-2"
    assert find_run("otter/seed-2", outputs).read_record()["config"]["seed"] == 2
    assert sorted(p.name for p in group.path.iterdir()) == [
        ".lock",
        "run.yaml",
        "seed-0",
        "seed-1",
        "seed-2",
        "summary.json",
    ]


def test_tab_completes_the_members(group: RunFolder) -> None:
    where = ["--outputs", str(group.path.parents[1])]
    assert complete(["compare", *where], "ot") == ["otter"]
    assert complete(["eval", *where], "otter/") == ["otter/seed-0", "otter/seed-1", "otter/seed-2"]
    assert complete(["rerun", *where], "otter/seed-2") == ["otter/seed-2"]
    assert complete(["eval", *where], "otter/seed-2/b") == ["otter/seed-2/best"]
    assert complete(["compare", "a", "b", "--fail-if"], "") == ["worse", "not-better"]


@pytest.mark.parametrize("seed", [0, 2])
def test_a_seeds_run_has_the_bits_of_a_run_alone(group: RunFolder, seed: int, tmp_path: Path) -> None:
    done = dlcli("train", *QUICK, f"seed={seed}", "--json", cwd=tmp_path)
    alone = Path(events_of(done.stdout)[-1]["run"])
    assert len(weights(alone)) == 2
    assert weights(alone) == weights(group.path / f"seed-{seed}")


def test_what_is_measured_for_the_first_is_taken_over_by_the_others(tmp_path: Path) -> None:
    words = ("digits", "tracker=none", "trainer.epochs=1", "runtime.threads=auto", "--seeds", "2")
    done = dlcli("train", *words, cwd=tmp_path)
    assert "measured for seed 0, taken over by the others: runtime.precision=fp32" in done.stderr
    (run,) = all_runs(tmp_path / "outputs")
    first, second = (RunFolder(run.path / name).read_record() for name in ("seed-0", "seed-1"))
    assert first["config"]["runtime"]["precision"] == "auto"
    assert second["config"]["runtime"]["precision"] == first["device"]["precision"]
    assert second["device"] == first["device"]


def test_a_killed_group_is_finished_with_the_same_bits(group: RunFolder, tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "dlcli", "train", *QUICK, "--seeds", "3", "name=otter"]
    child = subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + PATIENCE_S
    while not list(tmp_path.glob("outputs/*/*/seed-1/checkpoints/last/checkpoint.json")):
        assert time.monotonic() < until, "it never came"
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    killed = find_run("otter", tmp_path / "outputs")
    begun = (killed.path / "seed-0" / "events.jsonl").read_bytes()
    assert (killed.read_summary() or {})["status"] == "killed"
    done = dlcli("resume", "otter", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    last = events_of(done.stdout)[-1]
    assert (last["event"], last["status"]) == ("seeds_finished", "completed")
    assert last["per_seed"] == (group.read_summary() or {})["per_seed"]
    for name in ("seed-0", "seed-1", "seed-2"):
        assert weights(killed.path / name) == weights(group.path / name)
    assert (killed.path / "seed-0" / "events.jsonl").read_bytes() == begun, "what is done is not repeated"
    again = dlcli("resume", "otter", cwd=tmp_path)
    assert again.returncode == 0 and "finished already" in again.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(number: signal.Signals, code: int, tmp_path: Path) -> None:
    words = (*QUICK[:-1], "trainer.epochs=100000", "--seeds", "2", "name=otter")
    command = [sys.executable, "-P", "-m", "dlcli", "train", *words]
    child = subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + PATIENCE_S
    while not list(tmp_path.glob("outputs/*/*/seed-0/checkpoints/last/checkpoint.json")):
        assert time.monotonic() < until, "it never came"
        time.sleep(0.005)
    child.send_signal(number)
    out, err = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == code
    assert "status=interrupted seconds=" in out
    assert err.splitlines()[-1] == "next: dlcli resume otter"


def test_a_signal_at_the_very_end_of_a_run_stops_the_others_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []

    def finish(run: RunFolder, *rest: Any, signals: Signals, **options: Any) -> int:
        begun.append(run.name)
        signals.received = signal.SIGTERM  # while the run is drawn: too late to interrupt it
        return 0

    monkeypatch.setattr(start, "train_in", finish)
    options: dict[str, Any] = {"outputs": tmp_path / "outputs", "display": Silent(), "profile": False}
    composed = compose_command([*QUICK, "name=otter"])
    assert seeds.train(composed, 3, **options) == 143
    assert begun == ["otter/seed-0"]
    assert (find_run("otter", tmp_path / "outputs").read_summary() or {})["status"] == "interrupted"


def test_a_seed_that_diverges_is_counted_and_told(tmp_path: Path) -> None:
    (tmp_path / "fragile.py").write_text(FRAGILE)
    (tmp_path / "conf" / "model").mkdir(parents=True)
    body = "_target_: fragile.Fragile\nfacts: {kind: classifier, min_size: 1}\nhidden: [8]\n"
    body += "num_classes: ${dataset.num_classes}\nimage_shape: ${dataset.image_shape}\n"
    (tmp_path / "conf" / "model" / "fragile.yaml").write_text(body)
    path = environment()["PYTHONPATH"] + f":{tmp_path}"
    done = dlcli("train", *QUICK, "model=fragile", "--seeds", "3", "name=otter", cwd=tmp_path, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert 'seeds="2 of 3 seeds; seed 1 diverged"' in done.stdout
    assert "seed=1 status=failed" in done.stdout
    summary = find_run("otter", tmp_path / "outputs").read_summary() or {}
    assert summary["diverged"] == [1] and list(summary["per_seed"]) == ["0", "2"]
    every = dlcli("train", *QUICK, "model=fragile", "seed=1", "--seeds", "2", cwd=tmp_path, PYTHONPATH=path)
    assert every.returncode == 0 and "1 of 2 seeds" in every.stdout


def test_all_seeds_are_trained_further(group: RunFolder, tmp_path: Path) -> None:
    summary = train_seeds(tmp_path, "trainer.epochs=1", "--seeds", "2", "name=otter")
    assert summary["epoch"] == 1
    done = dlcli("resume", "otter", "trainer.epochs=3", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    last = events_of(done.stdout)[-1]
    assert last["epoch"] == 3 and last["config"]["trainer"]["epochs"] == 3
    refused = dlcli("resume", "otter", "trainer.epochs=2", cwd=tmp_path)
    assert refused.returncode == 2 and "the run has 3 epochs already" in refused.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--seeds", "1"), "one run has no spread"),
        (("--seeds", "0"), "there must be 2 to 1,000"),
        (("--seeds", "5000"), "there must be 2 to 1,000"),
        (("--seeds", "2", "runtime.devices=2"), "runtime.devices=2 needs several"),
        (("--seeds", "many"), "'many' is not a valid int"),
        (("--seed", "3"), "Did you mean seed=3 ?"),
        (("--sedes", "3"), "Did you mean --seeds ?"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    words: tuple[str, ...], told: str, tmp_path: Path
) -> None:
    done = dlcli("train", *QUICK, *words, cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    assert told in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "outputs").exists()


def test_statistics_are_of_the_metrics_that_all_runs_have() -> None:
    found = statistics_of([{"a": 1.0, "b": 1.0}, {"a": 3.0}])
    assert found["metrics"] == {"a": 2.0}
    assert found["deviations"] == {"a": pytest.approx(2**0.5)}
    assert statistics_of([{"a": 1.0}]) == {"metrics": {"a": 1.0}, "deviations": {}, "intervals": {}}
    assert statistics_of([])["metrics"] == {}
    assert [told_seeds(s) for s in ([0, 1, 2], [4], [0, 2, 5])] == ["0-2", "4", "0, 2, 5"]


def test_a_group_named_where_one_run_is_needed_says_which_there_are(group: RunFolder) -> None:
    cwd = group.outputs.parent
    for command in (("eval", "otter"), ("eval",), ("why", "otter")):
        done = dlcli(*command, cwd=cwd)
        assert done.returncode in (2, 4) and "otter/seed-0" in done.stderr, (command, done.stderr)
    for name in ("otter/seed-1", "latest/seed-1", f"{group.folder_name}/seed-1"):
        assert find_run(name, group.outputs).path == group.path / "seed-1"
    shown = dlcli("runs", "show", "otter", cwd=cwd)
    assert shown.returncode == 0 and "dlcli eval otter/seed-0" in shown.stderr
    assert [run.name for run in find_runs("otter", group.outputs)] == ["otter/seed-0", "otter/seed-1", "otter/seed-2"]
