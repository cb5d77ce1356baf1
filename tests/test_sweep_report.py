"""What `dlcli sweep status` and `dlcli sweep top` say, and that `status` says it at once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from program import environment

from dlcli.sweep.ledger.heartbeat import this_worker
from dlcli.sweep.results import drawing, report
from dlcli.sweep.space.space import Axis
from dlcli.sweep.status.progress import epochs_of, status
from dlcli.sweep.status.reading import Reader
from dlcli.sweep.study.definition import Definition, Objective
from dlcli.sweep.study.trial_record import Record, trial_folder

AXES = (
    Axis("optimizer.lr", low=1e-4, high=1.0, is_log=True),
    Axis("model", ("mlp", "lenet5")),
    Axis("model.hidden", ("[64]", "[128,64]"), only_with=("mlp",)),
)
SWEEP = Definition("tiny", "digits", ("digits", "trainer.epochs=4"), AXES, (Objective("val/accuracy", "max"),), 10)
ELSEWHERE = {"id": "far", "host": "far", "machine": "far/boot", "pid": 9, "born": "1"}
IMPORTS = """
import sys
from pathlib import Path
from dlcli.sweep.results.report import print_status
print_status("tiny", outputs=Path(sys.argv[1]), storage=None, as_json=False)
print(*sys.modules, file=sys.stderr)
"""


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.delenv("DLCLI_STORAGE", raising=False)


def done(number: int, value: float, **more: Any) -> Record:
    point = {
        "optimizer.lr": repr(10.0 ** -(1 + number % 4)),
        "model": "mlp",
        "model.hidden": ("[64]", "[128,64]")[number % 2],
    }
    record = Record(number, point, state="completed", values=[value], metrics={"val/accuracy": value}, seconds=4.0)
    return record.be(**more)


def made(outputs: Path, records: list[Record], definition: Definition = SWEEP) -> Path:
    folder = outputs / "sweeps" / definition.name
    folder.mkdir(parents=True)
    definition.write(folder)
    for record in records:
        record.write(folder)
    return folder


def events(folder: Path, number: int, epoch: int, epochs: int) -> None:
    lines = [{"event": "run_started", "config": {}}, {"event": "run_prepared", "epochs": epochs}]
    lines += [{"event": "epoch", "epoch": i, "step": i} for i in range(1, epoch + 1)]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"event": "epoch", "ep'
    (trial_folder(folder, number) / "events.jsonl").write_text(text)


def read(folder: Path, definition: Definition = SWEEP) -> dict[str, Any]:
    reader = Reader(folder, definition)
    return status(reader, reader.records())


# -------------------------------------------------------------------------------------------------------------- status


def test_a_running_trial_has_its_worker_and_its_epoch(tmp_path: Path) -> None:
    alive = Record(1, {"model": "lenet5"}, worker=this_worker(), started="2026-11-24T10:00:00.000+00:00")
    folder = made(tmp_path, [done(0, 0.9), alive])
    events(folder, 1, epoch=2, epochs=4)
    found = read(folder)
    (running,) = found["running"]
    assert (running["epoch"], running["epochs"], running["alive"]) == (2, 4, True)
    assert running["pid"] and running["host"]
    assert (found["workers"], found["mean_s"], found["finished"], found["of"]) == (1, 4.0, 1, 10)
    assert found["left_s"] == pytest.approx(4.0 * (9 - 0.5))
    left = datetime.fromisoformat(found["until"]) - datetime.now().astimezone()
    assert abs(left - timedelta(seconds=34)) < timedelta(seconds=5)
    assert found["next"] == ["dlcli sweep top tiny"] and found["paused"] is None


def test_a_dead_worker_is_told_and_one_elsewhere_is_not_called_dead(tmp_path: Path) -> None:
    gone = this_worker() | {"born": "0", "id": "gone"}
    folder = made(tmp_path, [done(0, 0.9), Record(1, {}, worker=gone), Record(2, {}, worker=ELSEWHERE)])
    found = read(folder)
    assert [trial["alive"] for trial in found["running"]] == [False, None]
    assert found["workers"] == 1
    assert found["next"] == ["dlcli sweep top tiny"], "somebody may still be at work"


def test_a_stopped_sweep_says_why_and_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made(tmp_path, [done(0, 0.9), Record(1, {}, state="waiting")])
    monkeypatch.setattr(Reader, "paused", lambda self: "the same failure 3 times in a row: no data")
    found = read(folder)
    assert found["paused"] == "the same failure 3 times in a row: no data"
    assert found["next"][0] == "dlcli sweep resume tiny"
    assert found["until"] is None and found["waiting"] == 1


def test_epochs_of_a_torn_or_missing_file(tmp_path: Path) -> None:
    from dlcli.runs.folder import RunFolder

    folder = made(tmp_path, [done(0, 0.9)])
    assert epochs_of(RunFolder(trial_folder(folder, 0))) == (None, None)
    events(folder, 0, epoch=3, epochs=9)
    assert epochs_of(RunFolder(trial_folder(folder, 0))) == (3, 9)


def test_status_fits_80_columns_and_names_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    axes = tuple(Axis(f"model.quite_a_long_name_{i}", low=0, high=1) for i in range(8))
    definition = replace(SWEEP, axes=axes)
    point = {axis.key: "0.123456789" for axis in axes}
    started = "2026-11-24T10:00:00.000+00:00"
    records = [done(0, 0.9, point=point), done(1, 0.1, state="pruned", values=None, point=point)]
    folder = made(tmp_path, [*records, Record(2, point, worker=this_worker(), started=started)], definition)
    events(folder, 2, 1, 3)
    report.print_status("tiny", outputs=tmp_path, storage=None, as_json=False)
    out, err = capsys.readouterr()
    assert "2 of 10 finished · 1 done · 1 stopped early · 1 running · 1 worker · 4.0 s each" in out.replace(
        "\n  ", " · "
    )
    assert "1/3" in out and "at work" in out and "best so far: trial 0" in out
    assert str(folder) in out
    assert max(len(line) for line in out.splitlines() if str(folder) not in line) <= 80
    assert "no room for" in err


def test_status_as_json_is_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path, [done(i, 0.5 + i / 20) for i in range(10)])
    report.print_status("tiny", outputs=tmp_path, storage=None, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["event"] == "sweep_status" and found["best"]["trial"] == 9
    assert found["trials"] == {"completed": 10, "pruned": 0, "failed": 0}


@pytest.mark.parametrize("is_running", [True, False], ids=["running", "finished"])
def test_status_imports_neither_torch_nor_optuna(tmp_path: Path, is_running: bool) -> None:
    last = Record(9, {}, worker=ELSEWHERE) if is_running else done(9, 0.9)
    made(tmp_path, [*(done(i, 0.5) for i in range(9)), last])
    command = [sys.executable, "-P", "-c", IMPORTS, str(tmp_path)]
    ended = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    heavy = {"torch", "optuna", "hydra", "omegaconf", "numpy", "matplotlib", "sklearn", "scipy", "wandb"}
    assert not heavy & set(ended.stderr.split())


# ----------------------------------------------------------------------------------------------------------------- top


def rows(capsys: pytest.CaptureFixture[str]) -> Iterator[dict[str, Any]]:
    return (json.loads(line) for line in capsys.readouterr().out.splitlines())


def test_top_shows_the_best_and_what_mattered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made(tmp_path, [done(i, 0.5 + i / 20) for i in range(9)])
    report.print_top("tiny", limit=3, outputs=tmp_path, storage=None, as_json=False)
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0].split()[:3] == ["trial", "model", "lr"]
    assert lines[1].startswith("★ 8") and "90.00 %" in lines[1]
    assert [line.split()[0] for line in lines[2:4]] == ["7", "6"]
    assert "what mattered: " in out and " % · " in out
    assert "dlcli sweep apply tiny --as tiny_best" in out and "dlcli eval tiny/8" in out
    assert "dlcli train digits trainer.epochs=4 model=mlp optimizer.lr=0.1 'model.hidden=[64]' --seeds 5" in out
    assert (folder / "history.png").is_file() and "history.png" in out


def test_top_as_json_ends_with_the_importance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path, [*(done(i, 0.5 + i / 20) for i in range(9)), Record(9, {}, state="bug", reason="no")])
    report.print_top(None, limit=2, outputs=tmp_path, storage=None, as_json=True)
    *shown, end = rows(capsys)
    assert [row["trial"] for row in shown] == [8, 7]
    assert all(row["event"] == "trial" and row["values"] for row in shown)
    assert end["event"] == "sweep_top" and sum(end["importance"].values()) == pytest.approx(1.0)
    assert all(Path(path).is_file() for path in end["pictures"].values())


def test_top_draws_again_only_what_has_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made(tmp_path, [done(i, 0.5 + i / 20) for i in range(7)])

    def drawn() -> int:
        report.print_top("tiny", limit=2, outputs=tmp_path, storage=None, as_json=False)
        return (folder / "history.png").stat().st_mtime_ns

    first = drawn()
    assert drawn() == first
    done(7, 0.99).write(folder)
    assert drawn() > first
    assert "★ 7" in capsys.readouterr().out


def test_pictures_that_fail_are_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path, [done(i, 0.5 + i / 20) for i in range(7)])

    def fail(*_: object) -> None:
        raise ValueError("no colours left")

    monkeypatch.setattr(drawing, "_draw", fail)
    report.print_top("tiny", limit=2, outputs=tmp_path, storage=None, as_json=False)
    out, err = capsys.readouterr()
    assert "★ 6" in out and "ValueError: no colours left" in err


def test_the_front_stands_first_and_is_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    objectives = (*SWEEP.objectives, Objective("parameters", "min"))
    values = [(0.9, 5e4), (0.95, 4e4), (0.7, 1e3), (0.94, 6e4)]
    records = [done(i, a, values=[a, p]) for i, (a, p) in enumerate(values)]
    made(tmp_path, records, replace(SWEEP, objectives=objectives))
    report.print_top("tiny", limit=10, outputs=tmp_path, storage=None, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:3]] == [["★", "1"], ["★", "2"]]
    assert [line.split()[0] for line in lines[3:5]] == ["3", "0"]
    assert "40,000" in lines[1]


def test_a_sweep_without_a_result_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path, [Record(0, {}, worker=ELSEWHERE)])
    report.print_top("tiny", limit=10, outputs=tmp_path, storage=None, as_json=False)
    out = capsys.readouterr().out
    assert "no trial has been trained to its end yet" in out and "dlcli sweep status tiny" in out


def test_a_real_sweep_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trained by a worker of its own, one trial a learning rate."""
    words = ("digits", "trainer.epochs=1", "model.hidden=[8]", "runtime=cpu")
    axes = (Axis("optimizer.lr", ("0.001", "0.1")),)
    folder = made(tmp_path, [], replace(SWEEP, words=words, axes=axes, trials=2, sampler="grid", pruner="none"))
    command = [sys.executable, "-P", "-m", "dlcli.sweep.workers.worker", str(folder)]
    ended = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    report.print_status("tiny", outputs=tmp_path, storage=None, as_json=True)
    (found,) = rows(capsys)
    assert (found["finished"], found["of"], found["paused"]) == (2, 2, None)
    assert epochs_of_trial(folder) == (1, 1)
    report.print_top("tiny", limit=10, outputs=tmp_path, storage=None, as_json=False)
    out = capsys.readouterr().out
    assert "it takes 6" in out and "parallel.png" in out


def epochs_of_trial(folder: Path) -> tuple[int | None, int | None]:
    from dlcli.runs.folder import RunFolder

    return epochs_of(RunFolder(trial_folder(folder, 0)))
