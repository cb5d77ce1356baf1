"""Workers as jobs of Slurm: what sbatch is asked for, and a real cluster on loopback with jobs that are killed."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from slurm_cluster import Cluster, why_not
from sweeping import SMALL, SPACE, begin, check_whole, finished, kill_worker, sweep, trials, wait_for, wait_with

from dlcli.errors import ConfigError, EnvironmentFault
from dlcli.runs.disk import read_json
from dlcli.sweep.workers.launchers import Launch, read_launch
from dlcli.sweep.workers.slots import LOST, MORE, MOST_FALLS, Slots

# trials of some seconds: a job can be met in the middle of one
SWEEP = (*SMALL, *SPACE, "trainer.epochs=60", "--sampler", "random", "--pruner", "none", "--name", "s")
JOBS = ("launcher=slurm", "launcher.timeout_min=5", "launcher.mem_gb=0.9")

# --------------------------------------------------------------------------------------------------- what is asked for


@pytest.mark.parametrize(
    ("word", "told", "better"),
    [
        ("launcher.partitoin=gpu", "no such setting", "launcher.partition=gpu"),
        ("launcher.cpus=two", "must be a whole number from 1", None),
        ("launcher.gpus=-1", "must be a whole number from 0", None),
        ("launcher.mem_gb=nan", "must be a number above 0", None),
        ("launcher.account=", "must be a word", None),
        ("launcher.qos=a\n#SBATCH --uid=0", "must be a word", None),
    ],
)
def test_wrong_settings_of_a_launcher_are_told_before_anything_starts(
    word: str, told: str, better: str | None, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        read_launch(["digits", "launcher=slurm", word])
    (problem,) = error.value.problems
    assert told in problem.message and problem.better == better


def test_all_mistakes_are_told_at_once_with_the_nearest_launcher(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 problems"):
        read_launch(["launcher=slurm", "launcher.cpu=two", "launcher.timeout_min=0"])
    done = sweep(tmp_path, *SWEEP, "launcher=slrum")
    assert done.returncode == 2 and "Did you mean launcher=slurm?" in done.stderr
    assert not (tmp_path / "outputs").exists()


def test_a_launcher_is_read_back_from_a_sweep_with_the_same_checks() -> None:
    words, launch = read_launch(["digits", "launcher=slurm", "launcher.cpus=4", "launcher.mem_gb=1.5", "a.b=1,2"])
    assert words == ["digits", "a.b=1,2"]
    assert Launch.from_dict(launch.as_dict(3)) == launch and launch.threads(3) == 4 and launch.is_on_cpu()
    assert Launch.from_dict({}) == Launch()
    with pytest.raises(ConfigError):
        Launch.from_dict({"name": "slurm", "settings": {"setup": "rm -rf /"}})


def test_what_sbatch_is_asked_for() -> None:
    submitit = pytest.importorskip("submitit")
    from dlcli.sweep.workers.slurm import parameters

    words = ["launcher=slurm", "launcher.partition=gpu", "launcher.gpus=1", "launcher.cpus=8", "launcher.mem_gb=16"]
    asked = parameters(read_launch(words)[1].all_settings(), "brave-heron")
    text = submitit.slurm.slurm._make_sbatch_string("worker", "/logs", **asked)
    lines = {line.removeprefix("#SBATCH --") for line in text.splitlines()}
    wanted = {
        "partition=gpu",
        "gpus-per-node=1",
        "cpus-per-task=8",
        "mem=16384M",
        "time=60",
        "signal=TERM@60",
        "requeue",
    }
    assert wanted <= lines and "job-name=dlcli-brave-heron" in lines
    assert not any(line.startswith(("account", "qos", "gres")) for line in lines)


def test_a_missing_package_or_program_is_told_with_its_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("dlcli.sweep.workers.launchers.find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault) as told:
        Launch("slurm").check()
    assert told.value.hint == "pip install 'dlcli[slurm]'"
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("dlcli.sweep.workers.launchers.find_spec", lambda name: True)
    with pytest.raises(EnvironmentFault, match="no sbatch, srun, squeue, scancel"):
        Launch("slurm").check()


# --------------------------------------------------------------------------------------- who is started again


class Scripted(Slots):
    """Workers whose ends are written down beforehand; None is at work."""

    def __init__(self, folder: Path, ends: list[int | None], *, may_be_sent_away: bool = False):
        super().__init__(folder, 1)
        self.ends, self.begun, self.is_stopped_from_outside = ends, 0, may_be_sent_away

    def begin(self, slot: int) -> None:
        self.begun += 1

    def poll(self, slot: int) -> int | None:
        return self.ends.pop(0) if self.ends else None

    def stop(self, number: int) -> None: ...

    def log(self, slot: int) -> Path:
        return self.folder / "log"

    def facts(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize(
    ("end", "away", "begun"),
    [(0, False, 1), (MORE, False, 2), (-9, False, 2), (LOST, False, 2), (70, False, 2), (5, False, 1), (143, False, 1),
     (143, True, 2)],
)  # fmt: skip
def test_who_is_started_again(end: int, away: bool, begun: int, tmp_path: Path) -> None:
    workers = Scripted(tmp_path, [end], may_be_sent_away=away)
    workers.start()
    assert workers.watch(has_news=False, stopping=False) == (begun == 2)
    assert workers.begun == begun
    stopping = Scripted(tmp_path, [end], may_be_sent_away=away)
    stopping.start()
    assert not stopping.watch(has_news=False, stopping=True) and stopping.begun == 1


def test_who_falls_again_and_again_is_not_started_for_ever(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("error: no such device\nhint: buy one\n")
    workers = Scripted(tmp_path, [LOST] * 99)
    workers.start()
    while workers.watch(has_news=False, stopping=False):
        continue
    assert workers.begun == MOST_FALLS and "not started again" in workers.notes[-1]
    assert "worker 0 is gone: no such device" in str(workers.fault())
    steady = Scripted(tmp_path, [LOST] * 20)
    steady.start()
    for _ in range(20):
        assert steady.watch(has_news=True, stopping=False)


# ---------------------------------------------------------------------------------------------------- a real cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    pytest.importorskip("submitit", reason="needs submitit: pip install 'dlcli[slurm]'")
    if reason := why_not():
        pytest.skip(reason)
    running = Cluster()
    try:
        running.start()
        yield running
    finally:
        running.remove()


def queued(cluster: Cluster) -> list[str]:
    return cluster.call("squeue", "--noheader", "--format=%i").split()


@pytest.mark.slow
def test_killed_and_cancelled_jobs_lose_and_repeat_nothing(cluster: Cluster, tmp_path: Path) -> None:
    drawn, folder = random.Random(0), tmp_path / "outputs/sweeps/s"
    parent = begin(tmp_path, *SWEEP, *JOBS, "--trials", "6", "--workers", "2", **cluster.variables)
    wait_with(parent, lambda: finished(folder) >= 1)
    assert kill_worker(folder, drawn)
    wait_with(parent, lambda: finished(folder) >= 2)
    cluster.call("scancel", "--signal=USR1", queued(cluster)[0])  # as a scheduler does before it takes a node away
    wait_with(parent, lambda: finished(folder) >= 3)
    cluster.call("scancel", queued(cluster)[-1])
    assert parent.wait(timeout=180) == 0, (tmp_path / "parent.log").read_text()
    check_whole(folder, 6)
    assert len(set(submitted(folder))) >= 4, "two at first, and one for each that was ended"
    assert not queued(cluster)


@pytest.mark.slow
def test_a_stopped_sweep_saves_and_is_resumed_on_the_cluster(cluster: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "outputs/sweeps/s"
    words = (*SWEEP, "trainer.epochs=400", *JOBS, "--trials", "3", "--workers", "3")  # more than there is room for
    parent = begin(tmp_path, *words, "launcher.cpus=2", **cluster.variables)
    wait_with(parent, lambda: any((folder / "0000/checkpoints").glob("step-*")))
    os.kill(parent.pid, signal.SIGTERM)
    assert parent.wait(timeout=100) == 143, (tmp_path / "parent.log").read_text()
    wait_for(lambda: not queued(cluster), 20)
    assert finished(folder) < 3 and all(trial["state"] != "running" for trial in trials(folder))
    done = sweep(tmp_path, "resume", "s", "--json", **cluster.variables)
    assert done.returncode == 0, done.stderr
    check_whole(folder, 3)
    assert '"run_resumed"' in (folder / "0000/events.jsonl").read_text()


@pytest.mark.slow
def test_jobs_outlive_the_process_that_submitted_them_and_are_found_again(cluster: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "outputs/sweeps/s"
    parent = begin(tmp_path, *SWEEP, *JOBS, "--trials", "6", "--workers", "2", **cluster.variables)
    wait_with(parent, lambda: finished(folder) >= 1)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    jobs = read_json(folder / "workers/slurm.json")
    before = finished(folder)
    wait_for(lambda: finished(folder) > before)
    done = sweep(tmp_path, "resume", "s", "--json", **cluster.variables)
    assert done.returncode == 0 and "are still in the queue" in done.stdout, done.stdout + done.stderr
    assert read_json(folder / "workers/slurm.json") == jobs
    check_whole(folder, 6)


@pytest.mark.slow
def test_at_the_end_of_its_time_a_job_saves_and_the_next_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "outputs/sweeps/s"
    words = (*SWEEP, "trainer.epochs=3000", "launcher=slurm", "launcher.timeout_min=1", "launcher.save_s=30")
    began = time.monotonic()
    parent = begin(tmp_path, *words, "--trials", "1", "--workers", "1", **cluster.variables)
    assert parent.wait(timeout=400) == 0, (tmp_path / "parent.log").read_text()
    assert time.monotonic() - began > 40
    check_whole(folder, 1)
    assert len(set(submitted(folder))) >= 2
    assert '"run_resumed"' in (folder / "0000/events.jsonl").read_text()


@pytest.mark.slow
def test_what_slurm_refuses_is_told_in_a_line(cluster: Cluster, tmp_path: Path) -> None:
    done = sweep(tmp_path, *SWEEP, "launcher=slurm", "launcher.partition=nowhere", "--trials", "1", **cluster.variables)
    assert done.returncode == 5 and "nowhere" not in done.stdout and "Traceback" not in done.stderr
    assert "sbatch has refused" in done.stderr and "invalid partition" in done.stderr.lower(), done.stderr


def submitted(folder: Path) -> list[str]:
    return [path.name.partition("_")[0] for path in (folder / "workers/slurm").glob("*_submission.sh")]
