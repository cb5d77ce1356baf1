"""`doctor` and `runs`: they report, also where something is broken, and they load nothing heavy to do it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from dlcli.commands.completion import completion
from dlcli.commands.doctor import as_text, doctor
from dlcli.commands.runs import app as runs_app
from dlcli.commands.sync import sync
from dlcli.errors import ConfigError
from dlcli.planning.machine import found_data
from dlcli.reporting.run_report import describe_run, epoch_table, sparkline
from dlcli.runs.folder import RunFolder

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("DLCLI_DATA", "DLCLI_CACHE", "DLCLI_OUTPUTS", "WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def one_command(function: object) -> typer.Typer:
    app = typer.Typer()
    app.command()(function)  # type: ignore[type-var]
    return app


def finished_run(folder: Path) -> RunFolder:
    run = RunFolder.create(folder / "outputs", "digits", "calm-otter")
    config = {"seed": 3, "model": {"name": "mlp"}, "optimizer": {"name": "adam", "lr": 0.01}}
    run.write_record({"name": run.name, "config": config, "overrides": ["seed=3"], "device": "cpu"})
    epochs = [
        {"event": "epoch", "epoch": e, "step": e, "metrics": {"val/accuracy": e / 20}, "lr": 0.01, "best": e == 14}
        for e in range(1, 16)
    ]
    run.events.write_text("".join(json.dumps(event) + "\n" for event in epochs))
    (run.checkpoints / "step-00000014").mkdir(parents=True)
    (run.checkpoints / "best").symlink_to("step-00000014")
    run.write_summary({"status": "completed", "epoch": 15, "metrics": {"val/accuracy": 0.7, "train/loss": 0.1}})
    return run


def test_doctor_reports_this_machine(folder: Path) -> None:
    result = CliRunner().invoke(one_command(doctor), ["--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["torch"][0].isdigit() and report["torchvision"][0].isdigit()
    assert report["cpu_cores"] >= 1 and report["threads"] >= 1
    assert "GiB free" in report["outputs"] and "no key" in report["wandb"]
    assert as_text(report).count("\n") >= 12


@pytest.mark.parametrize("breakage", ["raise OSError('libcudart.so is missing')", "import os; os._exit(9)", "print(1)"])
def test_doctor_reports_a_broken_torch(folder: Path, monkeypatch: pytest.MonkeyPatch, breakage: str) -> None:
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text(breakage)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    result = CliRunner().invoke(one_command(doctor), ["--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["torch"].startswith("broken: ")


def test_a_key_is_reported_and_never_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "canary" + "0" * 40)
    (folder / "torch.py").write_text("raise ImportError('canary' + '0' * 40)")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    result = CliRunner().invoke(one_command(doctor), [])
    assert "a key is configured, mode online" in result.stdout
    assert "canary" not in result.output


def test_data_are_found_in_every_root(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in ("mine/MNIST/raw/train-images-idx3-ubyte.gz", "data/cifar-10-python.tar.gz", "data/pets/pets.zip"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    monkeypatch.setenv("DLCLI_DATA", str(folder / "mine"))
    assert found_data() == [
        "digits: comes with scikit-learn",
        f"MNIST: {folder}/mine/MNIST/raw",
        f"CIFAR-10: {folder}/data",
        f"archive: {folder}/data/pets/pets.zip",
    ]


def test_data_roots_that_are_missing_are_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLCLI_DATA", str(folder / "gone"))
    assert f"DLCLI_DATA={folder}/gone: there is no such folder" in found_data()
    (folder / "gone").mkdir()
    assert not any("DLCLI_DATA" in line for line in found_data())


def test_runs_ls_lists(folder: Path) -> None:
    empty = CliRunner().invoke(runs_app, ["ls"])
    assert empty.exit_code == 0 and "dlcli train digits" in empty.stderr
    finished_run(folder)
    listed = CliRunner().invoke(runs_app, ["ls"]).stdout
    assert "calm-otter" in listed and "completed" in listed and "val/accuracy 0.7" in listed
    rows = [json.loads(line) for line in CliRunner().invoke(runs_app, ["ls", "--json"]).stdout.splitlines()]
    assert [(row["name"], row["epochs"], row["metrics"]["train/loss"]) for row in rows] == [("calm-otter", 15, 0.1)]
    of_mnist = CliRunner().invoke(runs_app, ["ls", "mnist", "--json"])
    assert (of_mnist.exit_code, of_mnist.stdout) == (0, "")
    assert "dlcli train mnist" in CliRunner().invoke(runs_app, ["ls", "mnist"]).stderr
    nope = CliRunner().invoke(runs_app, ["ls", "digts"])
    assert isinstance(nope.exception, ConfigError) and nope.exception.hint
    assert "no experiment digts" in str(nope.exception) and "Did you mean digits?" in nope.exception.hint


def test_the_list_of_runs_fits_the_window(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = finished_run(folder)
    metrics = {"val/loss": 0.31, "val/accuracy": 0.98765, "test/loss": 0.4, "test/accuracy": 0.9712}
    run.write_summary({"status": "interrupted", "epoch": 1500, "metrics": metrics})
    gan = RunFolder.create(folder / "outputs", "digits_gan", "a-name-of-ones-own")
    gan.write_summary({"status": "completed", "epoch": 3, "metrics": {"val/frechet": 12.75, "test/frechet": 12.5}})
    for width in (60, 80, 100, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        lines = CliRunner().invoke(runs_app, ["ls"]).stdout.splitlines()
        assert len(lines) == 3 and max(map(len, lines)) <= width, lines
        assert "frechet 12" in lines[1] and ("0.9877" in lines[2] or "98.77 %" in lines[2]), lines
        if width >= 80:
            assert lines[0].split()[:3] == ["run", "experiment", "status"]
    assert "val/accuracy 0.9877" in lines[2] and "1500" in lines[2], "all of them in a wide window"


def test_runs_show_tells_what_came_of_a_run(folder: Path) -> None:
    run = finished_run(folder)
    shown = CliRunner().invoke(runs_app, ["show", "calm"])
    assert shown.exit_code == 0, shown.output
    for fact in (
        "mlp",
        "adam lr=0.01",
        "seed=3",
        "step-00000014 (best)",
        sparkline([e / 20 for e in range(1, 16)]),
        "0.75",
    ):
        assert fact in shown.stdout, fact
    assert "next: dlcli eval calm-otter" in shown.stderr
    report = json.loads(CliRunner().invoke(runs_app, ["show", "--json"]).stdout)
    assert report["best"] == "step-00000014" and len(report["epochs"]) == 15
    run.run_yaml.unlink()
    assert CliRunner().invoke(runs_app, ["show"]).exit_code == 0


@pytest.mark.parametrize("status", ["interrupted", None])
def test_what_follows_a_stopped_run_is_to_resume_it(folder: Path, status: str | None) -> None:
    run = finished_run(folder)
    run.summary.unlink()
    if status:
        run.write_summary({"status": status, "epoch": 15, "metrics": {}})
    assert describe_run(run)["next"] == ["dlcli resume calm-otter", "dlcli eval calm-otter"]
    shutil.rmtree(run.checkpoints)
    assert describe_run(run)["next"] == ["dlcli resume calm-otter"], "from the beginning"
    newer = RunFolder(run.path.parent / "29991231-000000-calm-otter")
    shutil.copytree(run.path, newer.path)
    assert describe_run(run)["next"] == [f"dlcli resume {run.folder_name}"], "the name alone is the newer one's"


def test_the_table_of_epochs_has_the_best_one() -> None:
    events = [{"epoch": e, "metrics": {"val/loss": 1 / e}, "best": e in (1, 3)} for e in range(1, 31)]
    columns, rows = epoch_table(events)
    starred = [row[0] for row in rows if row[columns.index("best")] == "*"]
    assert starred == [3] and [row[0] for row in rows] == [3, *range(19, 31)]
    assert [row[0] for row in epoch_table(events[:14])[1]] == list(range(3, 15))


def test_a_sparkline_runs_from_the_lowest_to_the_highest() -> None:
    assert sparkline([0, 7, float("nan"), 3.5]) == "▁█▅"
    assert sparkline([1.0]) == "" and sparkline([2.0, 2.0]) == "▁▁"
    assert len(sparkline([float(i) for i in range(1000)])) == 24


@pytest.mark.parametrize("command", [one_command(doctor), one_command(sync), one_command(completion), runs_app])
def test_every_help_ends_with_an_example(command: typer.Typer) -> None:
    names = [["ls"], ["show"]] if command is runs_app else [[]]
    for name in names:
        result = CliRunner().invoke(command, [*name, "--help"])
        assert result.exit_code == 0 and "Example: dlcli " in result.stdout


def test_the_commands_import_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "import dlcli.commands.runs, dlcli.commands.doctor, dlcli.commands.sync, dlcli.commands.completion\n"
        "import dlcli.runs.folder, dlcli.reporting.run_report, dlcli.reporting.wandb_tracker\n"
        "import dlcli.planning.machine, dlcli.config.folders\n"
        "heavy = {'torch', 'torchvision', 'hydra', 'wandb', 'matplotlib', 'numpy', 'yaml'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
