"""`dlcli runs rm`, `restore` and `prune`: nothing is lost that was not asked for, and nothing else is touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from program import REPOSITORY, dlcli, events_of
from registry import make_checkpoint, make_group, make_run

from dlcli.errors import ConfigError, EnvironmentFault
from dlcli.runs.facts import binned_runs
from dlcli.runs.find import all_runs, find_checkpoint
from dlcli.runs.folder import RunFolder
from dlcli.runs.trash import find_removed, find_waste, free, remove, restore


def names(outputs: Path) -> list[str]:
    return [run.name for run in all_runs(outputs)]


def content(folder: Path) -> dict[str, bytes | str]:
    """Every file and link below a folder; a lock tells who held it last, and is left out."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if (path.is_symlink() or path.is_file()) and path.name != ".lock"
    }


# ------------------------------------------------------------------------------------------------ away, and back again


def test_a_removed_run_comes_back_as_it_was(tmp_path: Path) -> None:
    run = make_run(tmp_path, "calm-otter", steps=(10, 20), best=10)
    make_run(tmp_path, "wise-crane", 2)
    before = content(run.path)
    (moved,) = remove(["calm"], tmp_path)
    assert names(tmp_path) == ["wise-crane"] and content(moved.path) == before
    assert moved.path == tmp_path / ".bin/digits" / run.folder_name
    restore(["calm-otter"], tmp_path)
    assert names(tmp_path) == ["wise-crane", "calm-otter"] and content(run.path) == before
    assert binned_runs(tmp_path) == [] and not (tmp_path / ".bin").exists()


def test_a_removed_run_is_found_by_every_name_it_has(tmp_path: Path) -> None:
    for day, name in enumerate(("calm-otter", "calm-crane", "late-lark"), 1):
        make_run(tmp_path, name, day)
    remove(["calm-otter", "calm-crane", "late-lark", "latest"], tmp_path)
    folder = "20261101-120000-calm-otter"
    for name in (
        "calm-otter",
        "calm-o",
        folder,
        "20261101",
        f"out/digits/{folder}",
        str(tmp_path / ".bin/digits" / folder),
    ):
        assert find_removed(name, tmp_path).name == "calm-otter", name
    assert find_removed("latest", tmp_path).name == "late-lark"
    for name, hint in (
        ("calm", "20261102-120000-calm-crane"),
        ("calm-ottr", "Did you mean calm-otter?"),
        ("", "late-lark"),
    ):
        with pytest.raises(ConfigError) as told:
            find_removed(name, tmp_path)
        assert hint in str(told.value.hint)


def test_an_empty_bin_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the bin is empty"):
        restore(["calm-otter"], tmp_path)


def test_a_running_run_is_not_removed_nor_any_other_with_it(tmp_path: Path) -> None:
    make_run(tmp_path, "calm-otter")
    with make_run(tmp_path, "wise-crane", 2), pytest.raises(EnvironmentFault, match="run is active"):
        remove(["calm-otter", str(tmp_path / "digits/20261102-120000-wise-crane")], tmp_path)
    assert names(tmp_path) == ["wise-crane", "calm-otter"]


def test_a_group_goes_as_a_whole_unless_a_seed_is_running(tmp_path: Path) -> None:
    group = make_group(tmp_path, "three-seeds")
    with pytest.raises(ConfigError, match="is a part of"):
        remove([str(group.path / "seed-1")], tmp_path)
    with RunFolder(group.path / "seed-1"), pytest.raises(EnvironmentFault, match="run is active"):
        remove(["three-seeds"], tmp_path)
    remove(["three-seeds"], tmp_path)
    restore(["three-seeds"], tmp_path)
    assert (group.path / "seed-2/checkpoints/last").is_dir()


@pytest.mark.parametrize("seed", ["", "seed-1"])
def test_a_run_that_is_trained_in_the_bin_is_neither_pruned_nor_moved(tmp_path: Path, seed: str) -> None:
    group = make_group(tmp_path, "three-seeds")
    remove(["three-seeds"], tmp_path)
    there = tmp_path / ".bin/digits" / group.folder_name
    seen_before = find_waste(tmp_path)
    with RunFolder(there / seed):
        assert wasted(tmp_path) == []
        for act in (lambda: free(seen_before), lambda: restore(["three-seeds"], tmp_path)):
            with pytest.raises(EnvironmentFault, match="run is active"):
                act()
    assert (there / "seed-2/checkpoints/last").is_dir()
    free(find_waste(tmp_path))
    assert not there.exists()


def test_a_removed_run_is_not_resumed(tmp_path: Path) -> None:
    group = make_group(tmp_path / "outputs", "three-seeds")
    remove(["three-seeds"], tmp_path / "outputs")
    for path in (group.folder_name, f"{group.folder_name}/seed-1"):
        done = dlcli("resume", f"outputs/.bin/digits/{path}", cwd=tmp_path)
        assert done.returncode == 2 and f"dlcli runs restore {group.folder_name}" in done.stderr


def test_trials_and_runs_elsewhere_are_not_removed(tmp_path: Path) -> None:
    trial = make_run(tmp_path, "", place="sweeps/my-sweep/0001")
    with pytest.raises(ConfigError, match="my-sweep/0001 is a part of my-sweep"):
        remove([str(trial.path)], tmp_path)
    elsewhere = make_run(tmp_path / "elsewhere", "calm-otter")
    with pytest.raises(ConfigError, match="does not lie in") as told:
        remove([str(elsewhere.path)], tmp_path / "outputs")
    assert str(told.value.hint) == f"Add: --outputs {tmp_path / 'elsewhere'}"


def test_a_place_that_is_taken_is_left_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path, "calm-otter", accuracy=0.1)
    remove(["calm-otter"], tmp_path)
    make_run(tmp_path, "calm-otter", accuracy=0.2)
    before = content(tmp_path)
    for move in (remove, restore):
        with pytest.raises(ConfigError, match=run.folder_name):
            move(["calm-otter"], tmp_path)
    assert content(tmp_path) == before


def test_a_failure_half_way_moves_everything_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path, "calm-otter")
    make_run(tmp_path, "wise-crane", 2)
    rename = os.rename

    def fail_on_crane(source: Path, target: Path) -> None:
        if "wise-crane" in str(source):
            raise PermissionError(13, "Permission denied")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_on_crane)
    with pytest.raises(EnvironmentFault, match="cannot be moved"):
        remove(["calm-otter", "wise-crane"], tmp_path)
    assert names(tmp_path) == ["wise-crane", "calm-otter"] and binned_runs(tmp_path) == []


# ---------------------------------------------------------------------------------------------------------------- prune


def wasted(outputs: Path, *words: str, **options: object) -> list[str]:
    return sorted(str(w.path.relative_to(outputs)) for w in find_waste(outputs, words, **options))  # type: ignore[arg-type]


def test_only_what_nobody_needs_is_waste(tmp_path: Path) -> None:
    done = make_run(tmp_path, "done", steps=(10, 20, 30), best=20)
    make_checkpoint(done, 5)
    (done.checkpoints / ".tmp-step-00000040-77").mkdir()
    (done.path / ".summary.json.77.tmp").touch()
    make_run(tmp_path, "old", 2)
    remove(["old"], tmp_path)
    waste = wasted(tmp_path)
    assert waste == [
        ".bin/digits/20261102-120000-old",
        "digits/20261101-120000-done/.summary.json.77.tmp",
        "digits/20261101-120000-done/checkpoints/.tmp-step-00000040-77",
        "digits/20261101-120000-done/checkpoints/step-00000005",
        "digits/20261101-120000-done/checkpoints/step-00000010",
    ]
    keep = content(done.checkpoints / "step-00000020") | content(done.checkpoints / "step-00000030")
    free(find_waste(tmp_path))
    assert wasted(tmp_path) == [] and not (tmp_path / ".bin/digits").exists()
    assert sorted(os.listdir(done.checkpoints)) == ["best", "last", "step-00000020", "step-00000030"]
    assert content(done.checkpoints / "step-00000020") | content(done.checkpoints / "step-00000030") == keep


@pytest.mark.parametrize("status", ["interrupted", None, "running"])
def test_a_run_that_may_go_on_keeps_its_checkpoints(tmp_path: Path, status: str | None) -> None:
    run = make_run(tmp_path, "calm-otter", status=None if status == "running" else status, steps=(10, 20, 30))
    (run.checkpoints / ".tmp-step-00000040-77").mkdir()
    left_over = "digits/20261101-120000-calm-otter/checkpoints/.tmp-step-00000040-77"
    if status == "running":
        with run:
            assert wasted(tmp_path) == []
    else:
        assert wasted(tmp_path) == [left_over]


@pytest.mark.parametrize("broken", ["missing", "dangling"])
def test_without_its_link_the_newest_checkpoint_stays(tmp_path: Path, broken: str) -> None:
    run = make_run(tmp_path, "calm-otter", steps=(10, 20, 30), best=10)
    (run.checkpoints / "last").unlink()
    if broken == "dangling":
        (run.checkpoints / "last").symlink_to("step-00000099")
    assert wasted(tmp_path) == ["digits/20261101-120000-calm-otter/checkpoints/step-00000020"]


def test_links_are_removed_and_never_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    precious = make_run(outside, "precious", steps=(10, 20))
    before = content(outside)
    outputs = tmp_path / "outputs"
    linked = make_run(outputs, "linked", steps=(10, 20))
    (linked.checkpoints / "step-00000005").symlink_to(precious.checkpoints / "step-00000010")
    (linked.checkpoints / ".old-step-00000004").symlink_to(precious.checkpoints)
    (linked.checkpoints / "step-00000010" / "more").symlink_to(precious.path)
    whole = make_run(outputs, "whole", 2)
    (whole.checkpoints).symlink_to(precious.checkpoints)
    (outputs / "digits/20261103-120000-away").symlink_to(precious.path)
    free(find_waste(outputs))
    assert sorted(os.listdir(linked.checkpoints)) == ["best", "last", "step-00000005", "step-00000020"]
    remove(["away"], outputs)
    free(find_waste(outputs))
    assert content(outside) == before and binned_runs(outputs) == []


def test_a_filter_an_age_and_a_sweep_restrict_it(tmp_path: Path) -> None:
    for day, (name, accuracy) in enumerate((("good", 0.9), ("bad", 0.1)), 1):
        make_run(tmp_path, name, day, accuracy=accuracy, steps=(10, 20))
    make_run(tmp_path, "removed", 3, accuracy=0.1)
    remove(["removed"], tmp_path)
    make_run(tmp_path, "", place="sweeps/my-sweep/0001", steps=(10, 20), status="pruned")
    bad = ["digits/20261102-120000-bad/checkpoints/step-00000010"]
    assert wasted(tmp_path, "val/accuracy<0.5") == [".bin/digits/20261103-120000-removed", *bad]
    assert wasted(tmp_path, "name=bad") == bad
    assert wasted(tmp_path, sweep="my-sweep") == ["sweeps/my-sweep/0001/checkpoints/step-00000010"]
    assert wasted(tmp_path, older_than="99999w") == []
    with pytest.raises(ConfigError, match="must be an age"):
        find_waste(tmp_path, older_than="soon")


def test_weights_go_only_where_a_filter_says_so(tmp_path: Path) -> None:
    bad = make_run(tmp_path, "bad", accuracy=0.1, steps=(10, 20))
    good = make_run(tmp_path, "good", 2, steps=(10, 20))
    killed = make_run(tmp_path, "killed", 3, accuracy=None, status=None, steps=(10, 20))
    with pytest.raises(ConfigError, match="needs a filter of runs"):
        find_waste(tmp_path, weights=True)
    free(find_waste(tmp_path, ["val/accuracy<0.5"], weights=True))
    assert os.listdir(bad.checkpoints) == [] and bad.summary.is_file() and bad.events.is_file()
    assert find_checkpoint("good", tmp_path).name == "step-00000020"
    free(find_waste(tmp_path, ["digits"], weights=True))
    assert os.listdir(good.checkpoints) == [] and len(os.listdir(killed.checkpoints)) == 4


@pytest.mark.parametrize("student", ["digits/20261102-120000-student", "sweeps/my-sweep/0001"])
def test_a_checkpoint_that_another_run_is_taught_from_stays(tmp_path: Path, student: str) -> None:
    teacher = make_run(tmp_path, "teacher", accuracy=0.1, steps=(10, 20, 30), best=20)
    named = {"task": {"teacher": str((teacher.checkpoints / "step-00000010").resolve())}}
    make_run(tmp_path, "", 2, place=student, config=named)
    assert wasted(tmp_path) == []
    assert len(wasted(tmp_path, "val/accuracy<0.5", weights=True)) == 2
    free(find_waste(tmp_path, ["val/accuracy<0.5"], weights=True))
    assert os.listdir(teacher.checkpoints) == ["step-00000010"]


def test_seeds_are_pruned_with_their_group(tmp_path: Path) -> None:
    group = make_group(tmp_path, "three-seeds")
    assert wasted(tmp_path, "name=three-seeds") == [
        f"digits/{group.folder_name}/seed-{seed}/checkpoints/step-00000010" for seed in range(3)
    ]


def test_a_run_that_began_since_is_left_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path, "calm-otter", steps=(10, 20))
    found = find_waste(tmp_path)
    with RunFolder(run.path), pytest.raises(EnvironmentFault, match="run is active"):
        free(found)
    make_checkpoint(run, 30)
    (run.checkpoints / "best").unlink()
    (run.checkpoints / "best").symlink_to("step-00000010")  # trained further: what was waste is the best by now
    free(found)
    assert (run.checkpoints / "step-00000010").is_dir()


def test_a_kill_while_deleting_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    """Killed between the renaming and the deleting of a checkpoint, and of a removed run: the next prune ends it."""
    make_run(tmp_path, "done", steps=(10, 20))
    make_run(tmp_path, "old", 2)
    remove(["old"], tmp_path)
    code = (
        "import os, shutil, signal, sys; from pathlib import Path; from dlcli.runs.trash import find_waste, free\n"
        "shutil.rmtree = lambda path: os.kill(os.getpid(), signal.SIGKILL)\n"
        "kind = sys.argv[2]; free([w for w in find_waste(Path(sys.argv[1])) if w.kind == kind])"
    )
    for kind in ("old checkpoint", "in the bin"):
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path), kind], cwd=REPOSITORY, check=False)
        assert done.returncode == -signal.SIGKILL
    assert binned_runs(tmp_path) == []
    waste = find_waste(tmp_path)
    assert {w.kind for w in waste} == {"left over by a kill"} and len(waste) == 2
    free(waste)
    assert find_waste(tmp_path) == []


# --------------------------------------------------------------------------------------------------------- the commands


def test_the_commands_tell_what_they_did_and_how_to_undo_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "outputs", "calm-otter", steps=(10, 20))
    removed = dlcli("runs", "rm", "calm-otter", cwd=tmp_path)
    assert removed.stdout == f"removed calm-otter: outputs/.bin/digits/{run.folder_name}\n"
    assert f"dlcli runs restore {run.folder_name}" in removed.stderr
    assert [row["name"] for row in events_of(dlcli("runs", "ls", "--bin", "--json", cwd=tmp_path).stdout)] == [
        "calm-otter"
    ]
    assert "no runs in outputs" in dlcli("runs", "ls", cwd=tmp_path).stderr
    (told,) = events_of(dlcli("runs", "restore", run.folder_name, "--json", cwd=tmp_path).stdout)
    assert told["path"] == f"outputs/digits/{run.folder_name}" and run.path.is_dir()


def test_prune_only_tells_unless_yes_is_said(tmp_path: Path) -> None:
    run = make_run(tmp_path / "outputs", "calm-otter", steps=(10, 20))
    told = dlcli("runs", "prune", cwd=tmp_path)
    assert told.returncode == 0 and "calm-otter  old checkpoint" in told.stdout
    assert "nothing was deleted: add --yes" in told.stderr and len(os.listdir(run.checkpoints)) == 4
    (row,) = events_of(dlcli("runs", "prune", "--yes", "--json", cwd=tmp_path).stdout)
    assert row["deleted"] and row["bytes"] == 1000 and len(os.listdir(run.checkpoints)) == 3
    assert "there is nothing to free" in dlcli("runs", "prune", "--yes", cwd=tmp_path).stderr


def test_a_run_that_is_no_more_to_be_had_exits_with_its_code(tmp_path: Path) -> None:
    run = make_run(tmp_path / "outputs", "calm-otter")
    assert dlcli("runs", "rm", "calm-ottr", cwd=tmp_path).returncode == 2
    with run:
        busy = dlcli("runs", "rm", "calm-otter", cwd=tmp_path)
    assert busy.returncode == 5 and f"pid {os.getpid()}" in busy.stderr and run.path.is_dir()
