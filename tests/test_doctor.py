"""`doctor` and `runs`: they report, also where something is broken, and they load nothing heavy to do it."""

from __future__ import annotations

import json
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
from dlcli.health import found_data
from dlcli.run_report import sparkline
from dlcli.runs import RunFolder

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


def test_runs_ls_lists(folder: Path) -> None:
    empty = CliRunner().invoke(runs_app, ["ls"])
    assert empty.exit_code == 0 and "dlcli train digits" in empty.stderr
    finished_run(folder)
    listed = CliRunner().invoke(runs_app, ["ls"]).stdout
    assert "calm-otter" in listed and "completed" in listed and "val/accuracy 0.7" in listed
    rows = [json.loads(line) for line in CliRunner().invoke(runs_app, ["ls", "--json"]).stdout.splitlines()]
    assert [(row["name"], row["epochs"], row["metrics"]["train/loss"]) for row in rows] == [("calm-otter", 15, 0.1)]
    assert CliRunner().invoke(runs_app, ["ls", "mnist", "--json"]).stdout == ""


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
        "import dlcli.runs, dlcli.run_report, dlcli.tracker, dlcli.health, dlcli.confdir\n"
        "heavy = {'torch', 'torchvision', 'hydra', 'wandb', 'matplotlib', 'numpy', 'yaml'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
