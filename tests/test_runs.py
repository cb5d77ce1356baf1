"""Run folders: made exclusively, locked, found by any of their names, listed fast, and free of secrets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest

from dlcli.config.folders import command, describe, groups, options, search_path
from dlcli.config.plain_yaml import check_user_yaml, targets
from dlcli.errors import CheckpointError, ConfigError, DlcliError, EnvironmentFault
from dlcli.runs.find import all_runs, find_checkpoint, find_run, outputs_folder, row
from dlcli.runs.folder import RunFolder
from dlcli.runs.names import ADJECTIVES, NOUNS
from dlcli.runs.redaction import redact

NOON = datetime(2026, 11, 21, 12, 0, 0)
REPO = Path(__file__).resolve().parents[1]


def make(outputs: Path, folder: str, experiment: str = "digits", steps: tuple[int, ...] = ()) -> RunFolder:
    run = RunFolder(outputs / experiment / folder)
    run.path.mkdir(parents=True)
    run.lock_file.touch()
    for step in steps:
        (run.checkpoints / f"step-{step:08d}").mkdir(parents=True)
    if steps:
        (run.checkpoints / "last").symlink_to(f"step-{steps[-1]:08d}")
        (run.checkpoints / "best").symlink_to(f"step-{steps[0]:08d}")
    return run


# ------------------------------------------------------------------------------------------------------------- making


def test_a_folder_is_named_by_time_and_two_words(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "digits", None, NOON)
    adjective, noun = run.name.split("-")
    assert adjective in ADJECTIVES and noun in NOUNS
    assert run.path == tmp_path / "digits" / f"20261121-120000-{run.name}"
    assert run.experiment == "digits"


def test_the_word_lists_are_long_and_without_doubles() -> None:
    assert len(set(ADJECTIVES)) == len(ADJECTIVES) >= 60
    assert len(set(NOUNS)) == len(NOUNS) >= 60


def test_two_runs_of_one_second_are_two_folders_in_order_of_making(tmp_path: Path) -> None:
    names = [RunFolder.create(tmp_path, "digits", "mine", NOON).folder_name for _ in range(12)]
    assert names[:3] == ["20261121-120000-mine", "20261121-120000-mine-2", "20261121-120000-mine-3"]
    assert [run.folder_name for run in all_runs(tmp_path)] == names[::-1]  # not by name: -10 comes after -9


def test_32_processes_make_32_folders(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib; from datetime import datetime; from dlcli.runs.folder import RunFolder\n"
        "print('ready', flush=True); sys.stdin.read()\n"
        f"RunFolder.create(pathlib.Path({str(tmp_path)!r}), 'digits', 'same', datetime(2026, 11, 21))"
    )
    starts = [
        subprocess.Popen([sys.executable, "-c", code], cwd=REPO, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(32)
    ]
    for process in starts:
        assert process.stdout and process.stdout.readline() == b"ready\n"
    for process in starts:  # all stand before the door: open it
        assert process.stdin
        process.stdin.close()
    for process in starts:
        assert process.wait(30) == 0
        assert process.stdout
        process.stdout.close()
    assert len(os.listdir(tmp_path / "digits")) == 32


@pytest.mark.parametrize(
    "name",
    ["../../x", "/etc/x", "a/b", ".", "..", "-rf", "", "x" * 300, "a\nb", "\x1b[2J", "ü", "a b", "latest", "best"],
)
def test_odd_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError) as refused:
        RunFolder.create(tmp_path, "digits", name)
    assert str(refused.value).isprintable()
    assert not list(tmp_path.glob("*/*"))


def test_outputs_that_cannot_hold_runs_are_an_environment_fault(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone" / "further")
    for outputs in (tmp_path / "file", tmp_path / "nowhere", tmp_path / ("x" * 300), Path("/proc/nothing")):
        with pytest.raises(EnvironmentFault, match=outputs.name[:20]) as fault:
            RunFolder.create(outputs, "digits")
        assert fault.value.hint and "--outputs" in fault.value.hint


# ------------------------------------------------------------------------------------------------------------ locking


def test_a_second_locker_is_told_who_holds_the_run(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "digits")
    with run:
        assert run.is_locked()
        with pytest.raises(EnvironmentFault, match=rf"run is active \(pid {os.getpid()}, host .+, since 20"):
            RunFolder(run.path).lock()
    assert not run.is_locked()
    RunFolder(run.path).lock().unlock()


def test_the_lock_of_a_killed_process_is_gone(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "digits")
    code = (
        "import pathlib, time; from dlcli.runs.folder import RunFolder\n"
        f"run = RunFolder(pathlib.Path({str(run.path)!r})).lock()\n"
        "print('locked', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=REPO, stdout=subprocess.PIPE)
    assert holder.stdout and holder.stdout.readline() == b"locked\n"
    assert run.is_locked()
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert not run.is_locked()
    run.lock().unlock()


# ------------------------------------------------------------------------------------------------------------- records


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "digits")
    shared = [1, 2.5, None, True]
    config = {"a": shared, "b": shared, "ü": "1e-3", "n": "no"}
    record = {"name": "x", "created": "2026-11-21T12:00:00", "config": config}
    run.write_record(record)
    assert run.read_record() == record
    assert list(run.path.glob("*.tmp")) == list(run.path.glob(".*.tmp")) == []


@pytest.mark.parametrize(
    "text",
    ["a: !!python/object/apply:os.system [id]", "a: &x [1]\nb: *x", "a: [1", "- 1", "", "a: " + "[" * 40, "a: \x00"],
)
def test_a_record_that_is_not_plain_data_is_refused(tmp_path: Path, text: str) -> None:
    run = RunFolder.create(tmp_path, "digits")
    run.run_yaml.write_text(text)
    with pytest.raises(CheckpointError, match=r"run\.yaml"):
        run.read_record()


def test_a_record_of_5_mb_is_refused(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "digits")
    run.run_yaml.write_text("a: " + "x" * 5_000_000)
    with pytest.raises(CheckpointError, match="larger than"):
        run.read_record()


def test_a_deleted_run_folder_is_an_environment_fault(tmp_path: Path) -> None:
    run = make(tmp_path, "20261121-120000-calm-otter")
    run.lock_file.unlink()
    run.path.rmdir()
    with pytest.raises(EnvironmentFault):
        run.write_summary({"status": "completed"})


# ------------------------------------------------------------------------------------------------------------- finding


def test_a_run_is_found_by_every_name_it_has(tmp_path: Path) -> None:
    run = make(tmp_path, "20261121-120000-calm-otter")
    newest = make(tmp_path, "20261121-130000-calm-owl", "mnist")
    os.utime(run.path)  # touched later: that does not make it newer
    for reference in (str(run.path), "20261121-120000-calm-otter", "calm-otter", "calm-ot", "20261121-12"):
        assert find_run(reference, tmp_path).path == run.path
    assert find_run("digits/20261121-120000-calm-otter", tmp_path).path == run.path
    assert find_run("latest", tmp_path).path == find_run(None, tmp_path).path == newest.path


def test_an_unclear_or_unknown_name_tells_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run in"):
        find_run("latest", tmp_path)
    make(tmp_path, "20261121-120000-calm-otter")
    make(tmp_path, "20261121-130000-calm-owl")
    with pytest.raises(ConfigError, match=r"2 runs begin with calm-o.*calm-owl.*calm-otter"):
        find_run("calm-o", tmp_path)
    with pytest.raises(ConfigError) as unclear:
        find_run("calm-o", tmp_path)
    for folder in ("20261121-120000-calm-otter", "20261121-130000-calm-owl"):
        assert folder in str(unclear.value) and find_run(folder, tmp_path).folder_name == folder, "it can be pasted"
    with pytest.raises(ConfigError) as unknown:
        find_run("clam-otter", tmp_path)
    assert unknown.value.hint and "calm-otter" in unknown.value.hint
    for odd in ("", "\x00", "x" * 5000, "~nobody", "\x1b[31m"):
        with pytest.raises(ConfigError):
            find_run(odd, tmp_path)
        with pytest.raises(DlcliError):
            find_checkpoint(odd, tmp_path)


def test_a_sweep_is_no_run_and_says_how_its_trials_are_named(tmp_path: Path) -> None:
    (tmp_path / "sweeps/s1").mkdir(parents=True)
    (tmp_path / "sweeps/s1/sweep.json").write_text("{}")
    make(tmp_path, "0001", "sweeps/s1")
    for runs_beside in range(2):
        for reference in ("s1", str(tmp_path / "sweeps/s1")):
            for find in (find_run, find_checkpoint):
                with pytest.raises(ConfigError, match="s1 is a sweep; name a trial: s1/1"):
                    find(reference, tmp_path)
        assert find_run("s1/1", tmp_path).name == "s1/0001"
        make(tmp_path, f"20261121-12000{runs_beside}-calm-otter")
    mine = make(tmp_path, "20261121-130000-s1")
    assert find_run("s1", tmp_path).path == mine.path, "a run of the same name comes first"


def test_of_two_runs_of_one_name_it_is_the_newest(tmp_path: Path) -> None:
    old = make(tmp_path, "20261121-120000-mine", steps=(1,))
    new = make(tmp_path, "20261121-130000-mine", "mnist", steps=(2,))
    assert find_run("mine", tmp_path).path == new.path
    assert find_run(old.folder_name, tmp_path).path == old.path
    assert find_checkpoint("mine", tmp_path) == new.checkpoints / "step-00000002"


def test_failed_starts_do_not_hide_the_newest_checkpoint(tmp_path: Path) -> None:
    run = make(tmp_path, "20261121-120000-calm-otter", steps=(20, 60))
    failed = make(tmp_path, "20261121-130000-calm-owl")
    for reference in (None, "checkpoint", "best", "latest", "latest/best"):
        assert find_checkpoint(reference, tmp_path) == run.checkpoints / "step-00000020", reference
    for reference in ("last", "latest/last"):
        assert find_checkpoint(reference, tmp_path) == run.checkpoints / "step-00000060", reference
    assert find_run("latest", tmp_path).path == failed.path
    with pytest.raises(CheckpointError, match="calm-owl has no checkpoint yet"):
        find_checkpoint("calm-owl", tmp_path)


def test_a_checkpoint_is_found_by_every_name_it_has(tmp_path: Path) -> None:
    make(tmp_path, "20261120-120000-old-owl", steps=(5,))
    run = make(tmp_path, "20261121-120000-calm-otter", steps=(20, 60))
    best, last = run.checkpoints / "step-00000020", run.checkpoints / "step-00000060"
    (last / "model.safetensors").touch()
    for reference in (None, "checkpoint", "best", "latest", "calm-otter", "calm", str(run.path), "calm-otter/best"):
        assert find_checkpoint(reference, tmp_path) == best, reference
    for reference in ("last", "calm-otter/last", "calm-otter/step-00000060", "calm-otter/step-60"):
        assert find_checkpoint(reference, tmp_path) == last, reference
    for path in (last, last / "model.safetensors", run.checkpoints / "last"):
        assert find_checkpoint(str(path), tmp_path) == last
    assert find_checkpoint(str(run.checkpoints), tmp_path) == best
    with pytest.raises(CheckpointError) as absent:
        find_checkpoint("calm-otter/step-7", tmp_path)
    assert absent.value.hint == "It has: step-00000020, step-00000060."


def test_a_missing_or_dangling_checkpoint_is_a_checkpoint_error(tmp_path: Path) -> None:
    run = make(tmp_path, "20261121-120000-calm-otter")
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        find_checkpoint("calm-otter", tmp_path)
    run.checkpoints.mkdir()
    (run.checkpoints / "best").symlink_to("step-00000001")
    with pytest.raises(CheckpointError, match="step-00000001, which is gone"):
        find_checkpoint("calm-otter", tmp_path)


def test_outputs_come_from_the_option_then_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DLCLI_OUTPUTS", raising=False)
    assert outputs_folder() == Path("outputs")
    monkeypatch.setenv("DLCLI_OUTPUTS", "/somewhere")
    assert outputs_folder() == Path("/somewhere")
    assert outputs_folder("here") == Path("here")


# ------------------------------------------------------------------------------------------------------------- listing


def test_the_status_of_a_run_is_told(tmp_path: Path) -> None:
    done = make(tmp_path, "20261121-120001-a-done")
    done.write_summary({"status": "completed", "epoch": 30, "metrics": {"val/accuracy": 0.9}})
    killed = make(tmp_path, "20261121-120002-b-killed")
    killed.events.write_text('{"event": "epoch", "epoch": 3, "metrics": {"val/loss": 0.5}}\n{"event": "val')
    resumed = make(tmp_path, "20261121-120003-c-resumed")
    resumed.write_summary({"status": "interrupted", "epoch": 2, "metrics": {}})
    with resumed:
        rows = {each.name: each for each in map(row, all_runs(tmp_path))}
    assert [each.status for each in rows.values()] == ["running", "killed", "completed"]
    assert (rows["b-killed"].epochs, rows["b-killed"].metrics) == (3, {"val/loss": 0.5})
    assert (rows["a-done"].epochs, rows["a-done"].created) == (30, "2026-11-21T12:00:01")


def test_2000_runs_are_listed_in_a_second(tmp_path: Path) -> None:
    summary = json.dumps({"status": "completed", "epoch": 3, "metrics": {"val/accuracy": 0.5}})
    for i in range(2000):
        make(tmp_path, f"20261121-{i:06d}-calm-otter-{i}").summary.write_text(summary)
    start = time.perf_counter()
    assert len([row(run) for run in all_runs(tmp_path)]) == 2000
    assert time.perf_counter() - start < 1.0


# ------------------------------------------------------------------------------------------------------------- secrets


def test_secrets_are_taken_out_of_everything_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_TOKEN", "canary-in-env")
    monkeypatch.setenv("DB_PASSWORD", "short")
    leaky = {
        "config": {
            "tracker": {"api_key": "canary-key"},
            "url": "https://me:canary-pass@host/x",
            "note": "a short word",
        },
        "overrides": ["tracker.api_key=canary-word", "+db.password=canary-pw", "text=<canary-in-env>"],
        "tokenizer": "bpe",
        "num_tokens": 512,
        "pad_token": 0,
    }
    run = RunFolder.create(tmp_path, "digits")
    run.write_record(leaky)
    run.write_summary({"reason": leaky})
    assert "canary" not in run.run_yaml.read_text() + run.summary.read_text()
    cleaned = redact(leaky)
    assert cleaned["overrides"] == ["tracker.api_key=***", "+db.password=***", "text=<***>"]
    assert cleaned["config"]["url"] == "https://***@host/x"
    assert cleaned["config"]["note"] == "a short word"
    assert (cleaned["tokenizer"], cleaned["num_tokens"], cleaned["pad_token"]) == ("bpe", 512, 0)


# ------------------------------------------------------------------------------------------------------------- configs


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("a: &a [x]\nb: *a", ":1:4: the anchor &a"),
        ("a: *b", ":1:4: the alias"),
        ("a: !!python/object:os.system x", ":1:4: the tag"),
        ("a: !x y", ":1:4: the tag"),
        ("a: " + "[" * 500, ":1:35: nested deeper"),
        ("b:\n  c: 1\n  c: 2", ":3:3: the key c"),
        ("a: [1\nb: 2", ":2:"),
        ("a:\n\tb: 1", ":2:1: a tab"),
        ("a: 1\n\0", ":2:1: holds a NUL"),
        ("\ufeffa: 1", ":1:1: starts with a byte-order mark"),
        ("- a", ":1:1: the top level"),
        ("a: 1\n---\nb: 2", ":2:1: a second document"),
        ("x: " + "y" * 1_000_001, ":1:1: larger than 1 MB"),
    ],
)
def test_yaml_that_is_more_than_plain_data_is_refused_with_its_place(tmp_path: Path, text: str, where: str) -> None:
    path = tmp_path / "user.yaml"
    path.write_text(text, encoding="utf-8")
    start = time.process_time()
    with pytest.raises(ConfigError) as refused:
        check_user_yaml(path)
    assert f"user.yaml{where}" in str(refused.value)
    assert time.process_time() - start < 1, "nothing of it is constructed: a bomb takes seconds to minutes"
    path.write_bytes("a: 1".encode("utf-16"))
    with pytest.raises(ConfigError, match="byte-order mark"):
        check_user_yaml(path)


def test_a_users_configs_come_first_and_their_targets_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(search_path()) == 1
    (tmp_path / "conf" / "model" / "vision").mkdir(parents=True)
    (tmp_path / "conf" / "cell").mkdir()
    mine = tmp_path / "conf" / "model" / "vision" / "mine.yaml"
    mine.write_text("# dlcli train mnist model=vision/mine\n# A network\n# of mine.\n\na: [{_target_: my.Net, x: 1}]\n")
    (tmp_path / "conf" / "model" / "bad.yaml").write_text("_target_: !x os.system\n")
    search = search_path()
    assert search[0] == tmp_path / "conf" and len(search) == 2
    assert groups(search)[-1] == "cell" and "model" in groups(search)
    assert options("model", search)["vision/mine"] == mine
    assert (command(mine, "model", "vision/mine"), describe(mine)) == (
        "dlcli train mnist model=vision/mine",
        "A network of mine.",
    )
    bad = options("model", search)["bad"]
    assert (command(bad, "model", "bad"), describe(bad)) == ("dlcli train model=bad", "")
    bad.write_text("# Says what it is,\n# and no command.\n_target_: !x os.system\n")
    assert (command(bad, "model", "bad"), describe(bad)) == (
        "dlcli train model=bad",
        "Says what it is, and no command.",
    )
    assert command(bad, "experiment", "bad") == "dlcli train bad"
    found = targets(search)
    assert "my.Net" in found and "os.system" not in found
    with pytest.raises(ConfigError, match="is not a folder"):
        search_path("nowhere")


def test_every_packaged_config_may_be_read() -> None:
    for path in (REPO / "conf").rglob("*.yaml"):
        check_user_yaml(path)
