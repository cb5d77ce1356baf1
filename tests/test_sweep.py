"""`dlcli sweep` as users run it: searches, prunes, reuses, keeps the best, tells failures apart, applies."""

from __future__ import annotations

import json
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml
from program import dlcli, events_of
from sweeping import SMALL, SPACE, check_whole, sweep, sweep_finished, trials

from dlcli.runs.find import find_run
from dlcli.runs.folder import RunFolder


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a finished sweep called `first` lies: 8 trials, two architectures, two workers."""
    cwd = tmp_path_factory.mktemp("searched")
    words = (*SMALL[:2], "runtime=cpu", "runtime.threads=1", "trainer.epochs=4", "model=mlp,simple_cnn", *SPACE)
    done = sweep(cwd, *words, "model.hidden=[32],[64]", "--trials", "8", "--workers", "2", "--name", "first", "--json")
    (cwd / "events.jsonl").write_text(done.stdout)
    sweep_finished(done)
    return cwd


def events(cwd: Path) -> list[dict[str, Any]]:
    return events_of((cwd / "events.jsonl").read_text())


def weights(run: RunFolder, link: str = "last") -> str:
    return sha256((run.checkpoints / link / "model.safetensors").read_bytes()).hexdigest()


def test_the_last_line_says_what_was_found(searched: Path) -> None:
    last = events(searched)[-1]
    assert last["event"] == "sweep_finished"
    assert last["sweep"] == str(searched / "outputs" / "sweeps" / "first")
    counts = last["trials"]
    assert counts["completed"] + counts["pruned"] + counts["failed"] == 8
    best = last["best"]
    assert set(best) >= {"overrides", "metrics", "run"}
    assert Path(best["run"]).is_dir()
    values = [t["values"][0] for t in trials(Path(last["sweep"])) if t["state"] == "completed"]
    assert best["metrics"]["val/loss"] == min(values)


def test_no_trial_is_lost_or_repeated(searched: Path) -> None:
    check_whole(searched / "outputs" / "sweeps" / "first", 8)


def test_no_interim_figure_is_a_result(searched: Path) -> None:
    for event in events(searched):
        if event["event"] in ("trial_started", "trial_finished") and event["state"] != "completed":
            assert event["values"] is None and event["metrics"] == {}
    for trial in trials(searched / "outputs" / "sweeps" / "first"):
        assert trial["state"] == "completed" or "values" not in trial


def test_the_best_alone_gives_the_same_bits(searched: Path, tmp_path: Path) -> None:
    """Whatever its worker had trained before: state does not leak from trial to trial."""
    folder = searched / "outputs" / "sweeps" / "first"
    best = events(searched)[-1]["best"]
    kept = [t for t in trials(folder) if (folder / f"{t['number']:04}" / "checkpoints").is_dir()]
    assert 1 <= len(kept) <= 3, "the best three keep their weights"
    assert best["trial"] in {t["number"] for t in kept}
    for trial in kept:
        of_sweep = RunFolder(folder / f"{trial['number']:04}")
        record = yaml.safe_load(of_sweep.run_yaml.read_text())
        name = f"alone-{trial['number']}"
        done = dlcli("train", "digits", *record["overrides"], f"name={name}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        alone = find_run(name, tmp_path / "outputs")
        assert weights(alone) == weights(of_sweep)
        assert weights(alone, "best") == weights(of_sweep, "best")


def test_the_overrides_of_the_best_make_it_again(searched: Path) -> None:
    from dlcli.config import compose_command

    best = events(searched)[-1]["best"]
    tree = compose_command(["digits", *best["overrides"]]).tree
    stored = yaml.safe_load((Path(best["run"]) / "run.yaml").read_text())["config"]
    assert tree == stored


def test_pictures_and_table_are_drawn(searched: Path) -> None:
    folder = searched / "outputs" / "sweeps" / "first"
    for name in ("history", "parallel"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "summary.json").read_text())["event"] == "sweep_finished"


def test_a_trial_is_a_run_for_other_commands(searched: Path) -> None:
    best = events(searched)[-1]["best"]["trial"]
    done = dlcli("eval", f"first/{best}", "--json", cwd=searched)
    assert done.returncode == 0, done.stderr
    assert events_of(done.stdout)[-1]["metrics"]["test/accuracy"] > 0.3
    shown = dlcli("runs", "show", f"first/{best}", cwd=searched)
    assert shown.returncode == 0 and f"first/{best:04}" in shown.stdout


def test_trials_are_not_scored_on_the_test_split(searched: Path) -> None:
    for path in (searched / "outputs" / "sweeps" / "first").glob("0*/events.jsonl"):
        assert '"split": "test"' not in path.read_text()


def test_a_finished_sweep_goes_on_only_for_more_trials(searched: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(searched / "outputs", tmp_path / "outputs")
    folder = tmp_path / "outputs" / "sweeps" / "first"
    before = {t["number"]: t for t in trials(folder)}
    again = sweep_finished(sweep(tmp_path, "resume", "first", "--json"))
    assert {t["number"]: t for t in trials(folder)} == before
    assert again["trials"]["completed"] + again["trials"]["pruned"] + again["trials"]["failed"] == 8
    fewer = sweep(tmp_path, "resume", "first", "--trials", "3")
    assert fewer.returncode == 2 and "8 already" in fewer.stderr
    sweep_finished(sweep(tmp_path, "resume", "first", "--trials", "10", "--json"))
    check_whole(folder, 10)
    assert {t["number"]: t for t in trials(folder) if t["number"] < 8} == before


# ---------------------------------------------------------------------------------------------------------------- apply


def test_apply_writes_an_experiment_that_trains_the_same(searched: Path) -> None:
    done = sweep(searched, "apply", "first", "--as", "digits_best", "--config-dir", "mine")
    assert done.returncode == 0, done.stderr
    text = (searched / "mine" / "experiment" / "digits_best.yaml").read_text()
    comments = text.splitlines()
    assert comments[0] == "# dlcli train digits_best"
    best = events(searched)[-1]["best"]
    assert re.search(r"val/loss \d", comments[1]) and f"trial {best['trial']} of 8" in comments[1]
    assert "# dlcli sweep digits tracker=none" in text and "--trials 8" in text, "the command that found it"
    again = dlcli("config", "show", "digits_best", "--config-dir", "mine", "--json", cwd=searched)
    assert again.returncode == 0, again.stderr
    shown = json.loads(again.stdout.splitlines()[-1])
    stored = yaml.safe_load((Path(best["run"]) / "run.yaml").read_text())["config"]
    tree = shown.get("config", shown)
    for group in ("model", "optimizer", "regularization", "dataset", "schedule"):
        assert tree[group] == stored[group], group
    clash = sweep(searched, "apply", "first", "--as", "digits_best", "--config-dir", "mine")
    assert clash.returncode == 2 and "already" in clash.stderr
    none = sweep(searched, "apply", "first", "--as", "x", "--trial", "99", "--config-dir", "mine")
    assert none.returncode == 2 and "there is none" in none.stderr


# ------------------------------------------------------------------------------------------------- grid, reuse, pruning


def test_a_grid_trains_every_point_once(tmp_path: Path) -> None:
    words = (*SMALL, "optimizer=adam,sgd", "model.activation=relu,tanh", "--sampler", "grid", "--name", "g", "--json")
    last = sweep_finished(sweep(tmp_path, *words, "--pruner", "none"))
    assert last["trials"] == {"completed": 4, "pruned": 0, "failed": 0}
    points = {tuple(sorted(t["point"].items())) for t in trials(tmp_path / "outputs/sweeps/g")}
    assert len(points) == 4


def test_a_repeated_point_is_reused_not_trained(tmp_path: Path) -> None:
    words = (*SMALL, "optimizer.lr=0.01,0.001", "--sampler", "random", "--pruner", "none", "--trials", "6")
    done = sweep(tmp_path, *words, "--name", "r", "--json")
    last = sweep_finished(done)
    assert last["trials"]["completed"] == 6
    found = trials(tmp_path / "outputs/sweeps/r")
    trained = [t for t in found if "reuse_of" not in t]
    assert len(trained) == 2
    assert len(list((tmp_path / "outputs/sweeps/r").glob("0*/events.jsonl"))) == 2
    notes = [event["message"] for event in events_of(done.stdout) if event["event"] == "note"]
    assert any("a repeated one is reused" in note for note in notes)


def test_pruning_acts_within_an_epoch_where_validation_does(tmp_path: Path) -> None:
    """Rates from sensible to none at all: with three evaluations an epoch the hopeless ones end in the first epoch."""
    rates = ",".join(["0.01", "0.012", "0.014", "0.016", "0.018", "1e-9", "2e-9", "3e-9"])
    words = (*SMALL, f"optimizer.lr={rates}", "trainer.eval_every=7", "--sampler", "grid", "--pruner", "median")
    last = sweep_finished(sweep(tmp_path, *words, "--name", "p", "--json"))
    assert last["trials"] == {"completed": 5, "pruned": 3, "failed": 0}
    for trial in trials(tmp_path / "outputs/sweeps/p"):
        if trial["state"] == "pruned":
            run = tmp_path / "outputs/sweeps/p" / f"{trial['number']:04}"
            kinds = events_of((run / "events.jsonl").read_text())
            steps = [event["step"] for event in kinds if event["event"] == "epoch"]
            assert max(steps) < 21, "an epoch has 21 steps"
            assert kinds[-1]["event"] == "run_finished" and kinds[-1]["status"] == "pruned"


@pytest.mark.parametrize("pruner", ["halving", "hyperband"])
def test_other_pruners_stop_some_and_finish_others(pruner: str, tmp_path: Path) -> None:
    rates = ",".join(str(rate) for rate in (0.01, 0.008, 1e-6, 2e-6, 3e-6, 0.012, 4e-6, 5e-6, 6e-6))
    words = (*SMALL, f"optimizer.lr={rates}", "trainer.eval_every=7", "--sampler", "grid", "--pruner", pruner)
    last = sweep_finished(sweep(tmp_path, *words, "--name", "p", "--json"))
    assert last["trials"]["pruned"] >= 1 and last["trials"]["completed"] >= 1
    assert last["best"]["metrics"]["val/loss"] < 2


# ---------------------------------------------------------------------------------------------------------- objectives


def test_several_objectives_end_with_a_front(tmp_path: Path) -> None:
    words = (*SMALL[:2], "runtime=cpu", "runtime.threads=1", "trainer.epochs=3", "model.hidden=[4],[32],[256]")
    asked = ("--objective", "val/accuracy,parameters,latency,time", "--sampler", "grid", "--name", "f", "--json")
    last = sweep_finished(sweep(tmp_path, *words, *asked))
    assert last["trials"]["completed"] == 3
    found = {t["point"]["model.hidden"]: t["values"] for t in trials(tmp_path / "outputs/sweeps/f")}
    assert [found[key][1] for key in ("[4]", "[32]", "[256]")] == [310, 2410, 19210], "64 w + w + 10 w + 10"
    assert all(0 < values[2] < 1_000 and values[3] > 0 for values in found.values())
    assert "[4]" in {re.search(r"model.hidden=(\S+)", " ".join(b["overrides"]))[1] for b in last["front"]}


# ------------------------------------------------------------------------------------------------------------- failures


def test_a_diverged_trial_is_told_apart(tmp_path: Path) -> None:
    words = (*SMALL, "optimizer=momentum", "optimizer.lr=0.1,1e3", "schedule=constant", "--sampler", "grid")
    last = sweep_finished(sweep(tmp_path, *words, "--pruner", "none", "--name", "d", "--json"))
    assert last["trials"] == {"completed": 1, "pruned": 0, "failed": 1, "diverged": 1}
    assert last["best"]["overrides"][-1] == "optimizer.lr=0.1"


def test_a_sweep_in_which_all_diverge_ends_with_6(tmp_path: Path) -> None:
    words = (*SMALL, "optimizer=momentum", "optimizer.lr=1e3,999", "schedule=constant", "--sampler", "grid", "--json")
    done = sweep(tmp_path, *words)
    assert done.returncode == 6
    assert events_of(done.stdout)[-1]["best"] is None


BROKEN = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, width):
        super().__init__()
        self.width = width
        self.layer = nn.Linear(64, num_classes)
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        if self.width > 4 and self.calls > 4:  # not yet where shapes are tried
            raise KeyError(f"width {self.width}")
        return self.layer(images.flatten(1))
"""


def broken(folder: Path, model: str = BROKEN) -> dict[str, str]:
    """A model of the user's own with a bug for some widths."""
    (folder / "conf" / "model").mkdir(parents=True)
    (folder / "mine.py").write_text(model)
    (folder / "conf" / "model" / "mine.yaml").write_text(
        "_target_: mine.Net\nfacts: {kind: classifier, min_size: 1}\nnum_classes: ${dataset.num_classes}\nwidth: 1\n"
    )
    return {"PYTHONPATH": f"{Path(__file__).resolve().parents[1]}:{folder}"}


def test_the_same_bug_three_times_pauses_and_a_resume_goes_on(tmp_path: Path) -> None:
    env = broken(tmp_path)
    words = ("digits", "tracker=none", "trainer.epochs=1", "runtime=cpu", "model=mine", "model.width=1,2,5,6,7,3")
    done = sweep(tmp_path, *words, "--sampler", "grid", "--pruner", "none", "--name", "b", "--json", **env)
    assert done.returncode == 1, done.stderr
    assert "the same failure 3 times in a row: KeyError" in done.stderr
    assert "dlcli sweep resume b" in done.stderr
    folder = tmp_path / "outputs/sweeps/b"
    states = [t["state"] for t in trials(folder)]
    assert states == ["completed", "completed", "bug", "bug", "bug"]
    assert "KeyError" in (folder / "0002" / "log.txt").read_text(), "the traceback lies in the trial's folder"
    (tmp_path / "mine.py").write_text(BROKEN.replace("> 4", "> 400"))
    last = sweep_finished(sweep(tmp_path, "resume", "b", "--json", **env))
    assert last["trials"]["completed"] == 3 and last["trials"]["bug"] == 3


def test_max_failures_pauses(tmp_path: Path) -> None:
    env = broken(tmp_path)
    words = ("digits", "tracker=none", "trainer.epochs=1", "runtime=cpu", "model=mine", "model.width=5,1,6,2")
    asked = ("--sampler", "grid", "--max-failures", "0", "--pruner", "none", "--name", "b")
    done = sweep(tmp_path, *words, *asked, **env)
    assert done.returncode == 1 and "--max-failures is 0" in done.stderr
    assert [t["state"] for t in trials(tmp_path / "outputs/sweeps/b")] == ["bug"]


MEMORY = BROKEN.replace('raise KeyError(f"width {self.width}")', "import torch; torch.empty(2**50)")


def test_out_of_memory_is_told_apart(tmp_path: Path) -> None:
    env = broken(tmp_path, MEMORY)
    words = ("digits", "tracker=none", "trainer.epochs=1", "runtime=cpu", "model=mine", "model.width=1,5")
    last = sweep_finished(
        sweep(tmp_path, *words, "--sampler", "grid", "--pruner", "none", "--name", "m", "--json", **env)
    )
    assert last["trials"] == {"completed": 1, "pruned": 0, "failed": 1, "out of memory": 1}


SUICIDE = BROKEN.replace('raise KeyError(f"width {self.width}")', "import os; os.kill(os.getpid(), 9)")


def test_a_trial_that_kills_its_worker_does_not_stop_the_others(tmp_path: Path) -> None:
    env = broken(tmp_path, SUICIDE)
    words = ("digits", "tracker=none", "trainer.epochs=1", "runtime=cpu", "model=mine", "model.width=1,5,2")
    done = sweep(tmp_path, *words, "--sampler", "grid", "--pruner", "none", "--name", "k", "--json", **env)
    last = sweep_finished(done)
    assert last["trials"] == {"completed": 2, "pruned": 0, "failed": 1, "killed": 1}


# -------------------------------------------------------------------------------------------------- what is not started


def test_a_dry_run_shows_trials_and_a_measured_plan_and_writes_nothing(tmp_path: Path) -> None:
    done = sweep(tmp_path, *SMALL, *SPACE, "--trials", "12", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    *planned, last = events_of(done.stdout)
    assert last["event"] == "sweep_planned" and last["trials"] == 12
    assert last["seconds"] > 0 and last["disk_mb"] > 0 and last["measured_steps"] >= 20
    assert planned and all(event["event"] == "trial_planned" for event in planned)
    assert list(tmp_path.iterdir()) == []
    shown = sweep(tmp_path, *SMALL, "optimizer.lr=0.1,0.01", "--sampler", "grid", "--dry-run")
    assert "2 trials of" in shown.stdout and "MB" in shown.stdout


def test_mistakes_are_told_before_torch(tmp_path: Path) -> None:
    script = (
        "import sys; from dlcli.cli import run;"
        "code = run(['sweep', 'mnist', 'optimizer.lr=1e-1:1e-4:log', 'model=mlp,lenett', '--trials', '4']);"
        "print(code, 'torch' in sys.modules, 'optuna' in sys.modules)"
    )
    import subprocess
    import sys

    from program import environment

    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["2", "False", "False"], done.stderr
    assert "model=mlp,lenet5" in done.stderr and "not above its start" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_name_is_taken_once(searched: Path) -> None:
    done = sweep(searched, *SMALL, *SPACE, "--name", "first")
    assert done.returncode == 2 and "dlcli sweep resume first" in done.stderr


def test_an_unknown_sweep_gets_the_nearest(searched: Path) -> None:
    done = sweep(searched, "status", "frist")
    assert done.returncode == 2 and "Did you mean first?" in done.stderr


def test_a_pipe_gets_a_line_per_trial(tmp_path: Path) -> None:
    done = sweep(tmp_path, *SMALL, "optimizer.lr=0.01,0.02", "--sampler", "grid", "--pruner", "none")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["started", "trial=0", "trial=1", "finished"]
    assert "val_loss=" in lines[1] and "optimizer.lr=0.01" in lines[1]


def test_another_shell_looks_on_until_the_end(searched: Path, tmp_path: Path) -> None:
    done = sweep(searched, "status", "first", "--watch", "--json")
    assert done.returncode == 0, done.stderr
    (watched,) = events_of(done.stdout)
    assert watched["event"] == "sweep_watched" and watched["finished"] == watched["trials"] == 8
