"""`dlcli runs export`: one row a run, exact numbers, and tables that other programs can read."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from program import dlcli, events_of
from registry import make_group, make_run

from dlcli.errors import ConfigError, EnvironmentFault
from dlcli.reporting.runs_export import chosen_format, export, write
from dlcli.runs.facts import gather


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    make_run(tmp_path, "calm-otter", 1, accuracy=0.1 + 0.2, choices={"model": "mlp"})
    make_run(tmp_path, "odd|newt", 2, status="failed", accuracy=None, choices={"model": "lenet5", "mine": "a"})
    return tmp_path


def test_csv_holds_every_run_choice_and_metric(outputs: Path) -> None:
    failed, done = csv.DictReader(io.StringIO(export(gather(outputs), "csv")))
    assert float(done["val/accuracy"]) == 0.1 + 0.2, "to the last digit"
    assert (done["name"], done["model"], done["mine"]) == ("calm-otter", "mlp", "")
    assert (done["created"], done["seconds"], done["epochs"]) == ("2026-11-01T12:00:00", "2.5", "30")
    assert (failed["status"], failed["val/accuracy"], failed["overrides"]) == ("failed", "", "'name=odd|newt'")


def test_json_is_one_array(outputs: Path) -> None:
    failed, done = json.loads(export(gather(outputs), "json"))
    assert done["metrics"] == {"val/accuracy": 0.1 + 0.2, "val/loss": 1 - (0.1 + 0.2)}
    assert (failed["choices"], failed["overrides"]) == ({"model": "lenet5", "mine": "a"}, ["name=odd|newt"])


def test_markdown_escapes_what_would_end_a_cell(outputs: Path) -> None:
    header, line, failed, done = export(gather(outputs), "markdown").splitlines()
    assert header.startswith("| name | experiment |") and line.startswith("| --- | --- |") and "---:" in line
    assert failed.startswith("| odd\\|newt | digits | failed |") and "'name=odd\\|newt'" in failed
    assert "| 0.3 | 0.7 |" in done
    assert len({row.replace("\\|", "").count("|") for row in (header, line, failed, done)}) == 1


def test_a_group_of_seeds_has_a_column_for_each_deviation(outputs: Path) -> None:
    make_group(outputs, "three-seeds", 3)
    group, *others = csv.DictReader(io.StringIO(export(gather(outputs), "csv")))
    assert (group["seeds"], group["val/accuracy"], group["val/accuracy ±"]) == ("3", "0.982", "0.0013")
    assert {run["seeds"] for run in others} == {""}
    assert json.loads(export(gather(outputs), "json"))[0]["deviations"] == {"val/accuracy": 0.0013}


@pytest.mark.parametrize(("form", "text"), [("json", "[]\n"), ("csv", "name,experiment,")])
def test_no_runs_are_an_empty_table(form: str, text: str) -> None:
    assert export([], form).startswith(text)
    assert len(export([], "markdown").splitlines()) == 2


def test_the_format_is_that_of_the_file(tmp_path: Path) -> None:
    assert [chosen_format(None, Path(name)) for name in ("a.csv", "a.json", "a.md", "a")] == [
        "csv",
        "json",
        "markdown",
        "csv",
    ]
    assert chosen_format("json", Path("a.csv")) == "json" and chosen_format(None, None) == "csv"
    with pytest.raises(ConfigError, match="there is no format xml") as told:
        chosen_format("xml", None)
    assert "csv or json or markdown" in str(told.value.hint)
    with pytest.raises(EnvironmentFault) as fault:
        write("", tmp_path / "none" / "a.csv")
    assert "--to FILE" in str(fault.value.hint)


def test_the_command_filters_sorts_and_writes(outputs: Path) -> None:
    words = ("runs", "export", "--outputs", ".")
    assert len(dlcli(*words, cwd=outputs).stdout.splitlines()) == 3
    done = dlcli(*words, "status=completed", "--to", "runs.json", cwd=outputs)
    assert done.returncode == 0 and done.stdout == "" and "1 run: runs.json" in done.stderr
    assert [run["name"] for run in json.loads((outputs / "runs.json").read_text())] == ["calm-otter"]
    by_name = events_of(dlcli(*words, "--sort", "name", "--json", cwd=outputs).stdout)
    assert [run["name"] for run in by_name] == ["calm-otter", "odd|newt"]
    assert dlcli(*words, "modle=mlp", cwd=outputs).returncode == 2
