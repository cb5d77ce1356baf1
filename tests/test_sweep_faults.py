"""Sweeps under fire: workers, parent and everything killed at random, signals, full disks, W&B beside them."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from program import environment, events_of
from sweeping import (
    SMALL,
    SPACE,
    begin,
    check_whole,
    finished,
    kill_everything,
    kill_worker,
    sweep,
    sweep_finished,
    trials,
    wait_for,
    worker_pids,
)

from dlcli.runs.folder import RunFolder

LONGER = (*SMALL[:2], "trainer.epochs=30", "model.hidden=[64]", "runtime=cpu", "runtime.threads=1")
TRIALS = 24


def under_fire(cwd: Path, seed: int, *, kills: int, restarts: int, count: int = TRIALS) -> tuple[int, int]:
    """A sweep of two workers, of which `kills` are killed at random moments, and everything `restarts` times; then
    `sweep resume`. How many kills hit a worker, and how many everything.
    """
    drawn = random.Random(seed)
    folder = cwd / "outputs" / "sweeps" / "s"
    parent = begin(cwd, *SMALL, *SPACE, "--trials", str(count), "--workers", "2", "--name", "s", "--json")
    hits, falls = 0, 0
    while parent.poll() is None:
        time.sleep(drawn.uniform(0.2, 3.0))
        if parent.poll() is None and hits < kills:
            hits += kill_worker(folder, drawn)
        elif parent.poll() is None and falls < restarts and (folder / "sweep.json").is_file():
            kill_everything(parent, folder)
            falls += 1
            parent = begin(cwd, "resume", "s", "--workers", "2", "--json")
    assert parent.returncode == 0, (cwd / "parent.log").read_text()[-3000:]
    return hits, falls


def test_24_trials_survive_random_kills_and_a_fall_of_everything(tmp_path: Path) -> None:
    """The issue's own case: 2 workers, SIGKILL of one at random 5 times, and of everything once."""
    hits, falls = under_fire(tmp_path, seed=11, kills=5, restarts=1)
    folder = tmp_path / "outputs" / "sweeps" / "s"
    check_whole(folder, TRIALS)
    last = events_of("\n".join(line for line in (tmp_path / "parent.log").read_text().splitlines() if line[:1] == "{"))[
        -1
    ]
    assert last["event"] == "sweep_finished"
    assert last["trials"]["completed"] + last["trials"]["pruned"] == TRIALS and last["trials"]["failed"] == 0
    assert hits >= 3 or falls == 1, "it was under fire"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_thirty_random_kills_over_several_sweeps(seed: int, tmp_path: Path) -> None:
    under_fire(tmp_path, seed=seed, kills=5, restarts=1)
    check_whole(tmp_path / "outputs" / "sweeps" / "s", TRIALS)


def test_a_killed_trial_goes_on_from_its_own_checkpoint_and_ends_the_same(tmp_path: Path) -> None:
    """One long trial; its worker is killed once a checkpoint is there: the weights are those of an undisturbed one."""
    words = (*LONGER, "trainer.epochs=4000", "trainer.max_steps=20000", "optimizer.lr=0.001,0.002", "--sampler", "grid")
    more = ("--pruner", "none", "--trials", "1", "--keep", "1", "--workers", "1", "--json")
    calm, hit = tmp_path / "calm", tmp_path / "hit"
    calm.mkdir()
    hit.mkdir()
    undisturbed = begin(calm, *words, *more, "--name", "s")
    disturbed = begin(hit, *words, *more, "--name", "s")
    folder = hit / "outputs" / "sweeps" / "s"
    wait_for(lambda: list(folder.glob("0000/checkpoints/step-*/checkpoint.json")) or disturbed.poll() is not None)
    assert disturbed.poll() is None, "the trial is long enough to be hit"
    assert kill_worker(folder, random.Random(0))
    assert disturbed.wait(300) == 0 and undisturbed.wait(300) == 0
    check_resumed = [e["event"] for e in events_of((folder / "0000" / "events.jsonl").read_text())]
    assert "run_resumed" in check_resumed
    files = [f / "outputs/sweeps/s/0000/checkpoints/last/model.safetensors" for f in (calm, hit)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_killed_parent_takes_its_workers_with_it_and_they_save(tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "sweeps" / "s"
    parent = begin(tmp_path, *LONGER, *SPACE, "--trials", "6", "--workers", "2", "--name", "s", "--json")
    wait_for(lambda: finished(folder) >= 1)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    wait_for(lambda: not worker_pids(folder), 60)
    assert {t["state"] for t in trials(folder)} <= {"completed", "pruned", "waiting"}, "handed back, not left running"
    sweep_finished(sweep(tmp_path, "resume", "s", "--json"))
    check_whole(folder, 6)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_every_trial_and_says_how_to_go_on(number: int, code: int, tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "sweeps" / "s"
    parent = begin(tmp_path, *LONGER, *SPACE, "--trials", "6", "--workers", "2", "--name", "s")
    wait_for(lambda: finished(folder) >= 1)
    parent.send_signal(number)
    assert parent.wait(60) == code
    said = (tmp_path / "parent.log").read_text()
    assert "next: dlcli sweep resume s" in said and "Traceback" not in said
    assert not worker_pids(folder)
    assert "running" not in {t["state"] for t in trials(folder)}
    sweep_finished(sweep(tmp_path, "resume", "latest", "--json"))
    check_whole(folder, 6)


def test_a_second_shell_joins_and_neither_repeats_the_others_trials(tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "sweeps" / "s"
    first = begin(tmp_path, *LONGER, *SPACE, "--trials", "8", "--workers", "1", "--name", "s", "--json")
    wait_for(lambda: (folder / "ledger.jsonl").is_file())
    joined = sweep(tmp_path, "join", "s", "--workers", "1", "--json")
    assert joined.returncode == 0, joined.stderr
    assert first.wait(120) == 0
    check_whole(folder, 8)
    assert len({t["worker"]["id"] for t in trials(folder)}) == 2, "both have worked"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small disk")
def test_a_full_disk_stops_the_sweep_and_loses_nothing(tmp_path: Path) -> None:
    outputs = tmp_path / "small"
    outputs.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(outputs)], check=False)
    if mounted.returncode:
        pytest.skip("needs mount -t tmpfs")
    try:
        small = [word for word in SMALL if not word.startswith("model.")]
        words = (*small, "model.hidden=[256]", *SPACE, "--trials", "12", "--name", "s", "--keep", "12")
        words += ("--pruner", "none", "--workers", "1")
        done = sweep(tmp_path, *words, "--outputs", str(outputs))
        assert done.returncode == 5, (done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        before = {t["number"]: t["values"] for t in trials(outputs / "sweeps" / "s") if t["state"] == "completed"}
        subprocess.run(["mount", "-o", "remount,size=200m", str(outputs)], check=True)
        sweep_finished(sweep(tmp_path, "resume", "s", "--outputs", str(outputs), "--json"))
        check_whole(outputs / "sweeps" / "s", 12)
        after = {t["number"]: t["values"] for t in trials(outputs / "sweeps" / "s")}
        assert before.items() <= after.items()
    finally:
        subprocess.run(["umount", "-l", str(outputs)], check=False)


def test_wandb_has_one_run_per_trial_grouped_by_the_sweep(tmp_path: Path) -> None:
    from test_tracker import history, records

    words = ("digits", "tracker.mode=offline", "trainer.epochs=2", "model.hidden=[32]", "runtime=cpu")
    sweep_finished(sweep(tmp_path, *words, "optimizer.lr=0.01,0.02", "--sampler", "grid", "--name", "w", "--json"))
    folder = tmp_path / "outputs" / "sweeps" / "w"
    wait_for(lambda: all(_is_told(folder / f"{n:04}") for n in (0, 1)), 60)
    groups, names, rates = set(), set(), set()
    for number in (0, 1):
        run = RunFolder(folder / f"{number:04}")
        (told,) = [record.run for record in records(run) if record.WhichOneof("record_type") == "run"]
        config = {item.key: json.loads(item.value_json) for item in told.config.update}
        groups.add(told.run_group)
        names.add(told.display_name)
        rates.add(config["optimizer"]["lr"])
        assert len([row for row in history(run) if "val/loss" in row]) == 2
    assert groups == {"w"} and names == {"w/0000", "w/0001"} and rates == {0.01, 0.02}


def _is_told(run: Path) -> bool:
    try:
        return json.loads((run / "wandb" / "status.json").read_text())["state"] == "finished"
    except (OSError, ValueError):
        return False


def test_orphans_do_not_outlive_a_sweep(tmp_path: Path) -> None:
    done = sweep(tmp_path, *SMALL, *SPACE, "--trials", "2", "--workers", "2", "--name", "s")
    assert done.returncode == 0
    assert not worker_pids(tmp_path / "outputs" / "sweeps" / "s")
    assert "DLCLI_STORAGE" not in environment()
