"""`dlcli runs ls FILTER --sort KEY`: what a condition means, how runs are ordered, and what is told of a mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from program import dlcli, environment, events_of
from registry import TREE, make_group, make_run

from dlcli.errors import ConfigError
from dlcli.reporting.runs_table import json_row, list_table
from dlcli.runs.facts import RunFacts, gather
from dlcli.runs.query import KEYS, QUOTE, Condition, parse_query, select


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """Four runs of four days: an mlp, a lenet5, a killed one, and one of another experiment."""
    make_run(tmp_path, "calm-otter", 1, accuracy=0.91)
    lenet = {"model": {"_target_": "dlcli.models.lenet5.LeNet5"}, "optimizer": {"lr": 0.1}, "seed": 3}
    make_run(
        tmp_path, "wise-crane", 2, accuracy=0.99, config=lenet, choices={"model": "lenet5", "optimizer": "momentum"}
    )
    make_run(tmp_path, "late-lark", 3, status=None)
    make_run(tmp_path, "odd-newt", 4, experiment="other", accuracy=0.5, seconds=200.0)
    return tmp_path


def names(outputs: Path, *words: str, sort: str | None = None) -> list[str]:
    return [run.row.name for run in select(gather(outputs), parse_query(words), sort).runs]


def problems(outputs: Path, *words: str, sort: str | None = None) -> dict[str, tuple[str, str | None]]:
    with pytest.raises(ConfigError) as told:
        names(outputs, *words, sort=sort)
    assert told.value.code == 2
    return {problem.where: (problem.message, problem.better) for problem in told.value.problems}


# ------------------------------------------------------------------------------------------------------------- filters


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("val/accuracy>0.91", ["wise-crane"]),
        ("val/accuracy>=0.91", ["wise-crane", "calm-otter"]),
        ("val/accuracy>90.5%", ["wise-crane", "calm-otter"]),
        ("accuracy<0.91", ["odd-newt"]),
        ("model=lenet5", ["wise-crane"]),
        ("model=mlp val/accuracy>0.6", ["calm-otter"]),
        ("model = mlp and val/accuracy > 0.6", ["calm-otter"]),
        ("model==mlp", ["odd-newt", "late-lark", "calm-otter"]),
        ("model~NET", ["wise-crane"]),
        ("optimizer=momentum", ["wise-crane"]),
        ("optimizer=adam", ["odd-newt", "late-lark", "calm-otter"]),
        ("optimizer.lr<0.01", ["odd-newt", "late-lark", "calm-otter"]),
        ("optimizer.lr=1e-1", ["wise-crane"]),
        ("seed=3", ["wise-crane"]),
        ("trainer.max_time=null experiment!=other", ["late-lark", "wise-crane", "calm-otter"]),
        ("trainer.resume=true name~otter", ["calm-otter"]),
        ("dataset.image_shape=[1,8,8] seed=3", ["wise-crane"]),
        ("dataset.image_shape=[1, 8, 8] seed=3", ["wise-crane"]),
        ("dataset.image_shape = [ 1, 8,8 ] and seed=3", ["wise-crane"]),
        ("status=killed", ["late-lark"]),
        ("experiment=other", ["odd-newt"]),
        ("name=calm-otter", ["calm-otter"]),
        ("seconds>60", ["odd-newt"]),
        ("epochs=30 seconds<60", ["wise-crane", "calm-otter"]),
        ("created>=2026-11-03", ["odd-newt", "late-lark"]),
        ("created>2026-11-03", ["odd-newt"]),
        ("created<=2026-11-01", ["calm-otter"]),
        ("created=2026-11-02", ["wise-crane"]),
        ("created=2026", ["odd-newt", "late-lark", "wise-crane", "calm-otter"]),
        ("created>2026-11-02T11:30 created<2026-11-03T12:01", ["late-lark", "wise-crane"]),
        ("digits", ["late-lark", "wise-crane", "calm-otter"]),
        ("digits val/accuracy<0.95", ["calm-otter"]),
    ],
)
def test_a_filter_finds(outputs: Path, words: str, found: list[str]) -> None:
    assert names(outputs, words) == found
    assert names(outputs, *words.split()) == found, "quoted or not"


def test_what_a_run_does_not_say_is_equal_to_nothing(outputs: Path) -> None:
    """The killed run has no accuracy."""
    assert "late-lark" not in names(outputs, "val/accuracy>0") + names(outputs, "val/accuracy<=0")
    assert "late-lark" in names(outputs, "val/accuracy!=0.5")


def test_choices_of_an_older_run_come_from_its_run_yaml(tmp_path: Path) -> None:
    """Its first event lacks them; they say more than the config: momentum builds an SGD."""
    run = make_run(tmp_path, "old", config={"optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1}})
    assert RunFacts(run).choices["optimizer"] == "sgd"
    run.run_yaml.write_text("config:\n  a: 1\nchoices:\n  model: mlp\n  optimizer: momentum\nversions: {}\n")
    assert names(tmp_path, "optimizer=momentum") == ["old"]


def test_the_config_comes_from_run_yaml_where_no_event_tells_it(tmp_path: Path) -> None:
    run = make_run(tmp_path, "old")
    run.events.write_text("not an event\n")
    run.write_record({"config": TREE | {"seed": 7}})
    assert names(tmp_path, "seed=7") == ["old"]


def test_damaged_runs_are_listed_and_answer_nothing(tmp_path: Path) -> None:
    make_run(tmp_path, "whole")
    damaged = make_run(tmp_path, "damaged", 2)
    damaged.events.write_bytes(b"[" * 100_000)
    damaged.summary.write_text('{"metrics": {"val/accuracy": "high"}, "seeds": 3, "choices": [], "deviations": 1}')
    damaged.run_yaml.write_bytes(b"\xff\xfe choices")
    assert names(tmp_path) == ["damaged", "whole"]
    assert names(tmp_path, "seed=0") == names(tmp_path, "val/accuracy>0") == ["whole"]
    list_table(gather(tmp_path), 80)


# ------------------------------------------------------------------------------------------------------------ mistakes


def test_every_mistake_is_told_with_the_nearest_right_word(outputs: Path) -> None:
    told = problems(outputs, "val/acuracy>0.9 modle=mlp lr<0.1 optimizer.lrr=1 status=complete model>3 seed<two")
    assert {where: better for where, (_, better) in told.items()} == {
        "val/acuracy>0.9": "val/accuracy>0.9",
        "modle=mlp": "model=mlp",
        "lr<0.1": "optimizer.lr<0.1",
        "optimizer.lrr=1": "optimizer.lr=1",
        "status=complete": "status=completed",
        "model>3": "model=3",
        "seed<two": None,
    }
    assert told["seed<two"][0] == 'must be a number, got "two"'


def test_a_short_metric_that_means_two_is_refused(tmp_path: Path) -> None:
    make_run(tmp_path, "both", metrics={"val/accuracy": 0.5, "test/accuracy": 0.5})
    assert problems(tmp_path, "accuracy>0.4") == {
        "accuracy>0.4": (
            "accuracy is not one metric but 2: val/accuracy, test/accuracy",
            "val/accuracy>0.4",
        )
    }


@pytest.mark.parametrize("word", ["val/accuracy", "model=", ">0.5", "a<b=1", "or", "created>=yesterday"])
def test_what_is_no_condition_is_refused(outputs: Path, word: str) -> None:
    """The first is what dlcli sees of  val/accuracy>0.98  without quotes."""
    assert list(problems(outputs, word)) == [word]


def test_an_unknown_experiment_and_an_unknown_order_are_refused(outputs: Path) -> None:
    with pytest.raises(ConfigError) as told:
        names(outputs, "digts")
    assert "Did you mean digits?" in str(told.value.hint)
    assert problems(outputs, sort="-val/los") == {"--sort val/los": ("no run has val/los", "--sort val/loss")}


def test_no_runs_are_no_mistake(tmp_path: Path) -> None:
    assert names(tmp_path, "val/accuracy>0.9", sort="val/loss") == []


# --------------------------------------------------------------------------------------------------------------- order


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        ("val/accuracy", ["wise-crane", "calm-otter", "odd-newt", "late-lark"]),
        ("-val/accuracy", ["odd-newt", "calm-otter", "wise-crane", "late-lark"]),
        ("val/loss", ["wise-crane", "calm-otter", "odd-newt", "late-lark"]),
        ("created", ["calm-otter", "wise-crane", "late-lark", "odd-newt"]),
        ("-created", ["odd-newt", "late-lark", "wise-crane", "calm-otter"]),
        ("-optimizer.lr", ["wise-crane", "odd-newt", "late-lark", "calm-otter"]),
        ("model", ["wise-crane", "odd-newt", "late-lark", "calm-otter"]),
        ("name", ["calm-otter", "late-lark", "odd-newt", "wise-crane"]),
    ],
)
def test_metrics_are_sorted_best_first_and_silent_runs_last(outputs: Path, sort: str, order: list[str]) -> None:
    assert names(outputs, sort=sort) == order


def test_the_direction_of_a_metric_is_what_its_task_declares(tmp_path: Path) -> None:
    """Nothing in the name `quality` says that the task minimises it."""
    task = {"task": {"_target_": "x.Y", "facts": {"scores": {"quality": "min"}}}}
    make_run(tmp_path, "one", 1, config=task, metrics={"val/quality": 1.0})
    make_run(tmp_path, "two", 2, config=task, metrics={"val/quality": 2.0})
    assert names(tmp_path, sort="val/quality") == ["one", "two"]


# ---------------------------------------------------------------------------------------------------- groups and sweeps


def test_a_group_of_seeds_is_one_row_with_its_deviation(tmp_path: Path) -> None:
    make_group(tmp_path, "three-seeds")
    assert names(tmp_path, "model=mlp optimizer=momentum optimizer.lr=0.001 val/accuracy>0.98") == ["three-seeds"]
    columns, rows = list_table(gather(tmp_path), 80)
    row = dict(zip(columns, rows[0], strict=True))
    assert (row["val"], row["status"]) == ("98.20 ± 0.13 %", "3 seeds")
    (data,) = events_of(dlcli("runs", "ls", "--json", "--outputs", str(tmp_path), cwd=tmp_path).stdout)
    assert data["seeds"] == [0, 1, 2] and data["deviations"] == {"val/accuracy": 0.0013}


def test_a_group_says_how_many_of_its_seeds_diverged(tmp_path: Path) -> None:
    group = make_group(tmp_path, "three-seeds")
    rows = {str(seed): {"val/accuracy": value} for seed, value in ((0, 0.98), (2, 0.984))}
    bounds = {"val/accuracy": [0.957, 1.007]}
    group.write_summary((group.read_summary() or {}) | {"per_seed": rows, "diverged": [1], "intervals": bounds})
    columns, cells = list_table(gather(tmp_path), 80)
    assert dict(zip(columns, cells[0], strict=True))["status"] == "3 seeds, 1 diverged"
    assert json_row(gather(tmp_path)[0])["diverged"] == [1]
    told = dlcli("runs", "show", "three-seeds", "--outputs", str(tmp_path), cwd=tmp_path)
    lines = [line.split() for line in told.stdout.splitlines()]
    assert ["seeds", "2", "of", "3", "seeds;", "seed", "1", "diverged"] in lines
    assert ["val/accuracy", "98.20", "±", "0.13", "%", "95.70", "to", "100.00", "%"] in lines
    assert ["0", "completed", "98.00", "%"] in lines and ["1", "diverged", "-"] in lines, told.stdout


def test_a_sweep_is_named_by_its_beginning_or_latest(tmp_path: Path) -> None:
    for number, name in enumerate(("wide", "narrow")):
        make_run(tmp_path, "", place=f"sweeps/{name}/0001")
        created = f"2026-11-0{number + 1}T12:00:00"
        (tmp_path / f"sweeps/{name}/sweep.json").write_text(json.dumps({"created": created}))
    for word, name in (("latest", "narrow/0001"), ("wi", "wide/0001"), ("narrow", "narrow/0001")):
        assert [run.row.name for run in gather(tmp_path, sweep=word)] == [name]


def test_trials_of_a_sweep_are_listed_when_asked_for(tmp_path: Path) -> None:
    for number, status in enumerate(("completed", "pruned", "failed")):
        make_run(
            tmp_path, "", number + 1, place=f"sweeps/my-sweep/{number:04}", status=status, accuracy=0.9 + number / 100
        )
    (tmp_path / "sweeps/my-sweep/sweep.json").write_text("{}")
    assert names(tmp_path) == []
    trials = gather(tmp_path, sweep="my-sweep")
    assert [run.row.status for run in trials] == ["failed", "pruned", "completed"]
    assert (trials[0].row.experiment, trials[0].row.created[:10]) == ("digits", "2026-11-03")
    best = select(trials, parse_query(["digits status!=failed"]), "val/accuracy").runs[0]
    assert best.row.name == "my-sweep/0001"
    with pytest.raises(ConfigError, match="there is no sweep my-swep") as told:
        gather(tmp_path, sweep="my-swep")
    assert "Did you mean my-sweep?" in str(told.value.hint)


# ------------------------------------------------------------------------------------------------------------ the table


def test_what_a_filter_compares_and_an_order_has_a_column(outputs: Path) -> None:
    done = dlcli("runs", "ls", "optimizer.lr<1 model=lenet5", "--sort", "seconds", "--outputs", ".", cwd=outputs)
    header, row = done.stdout.splitlines()
    assert header.split()[-2:] == ["optimizer.lr", "seconds"]
    assert row.split()[-2:] == ["0.1", "2.5"]


@pytest.mark.parametrize("width", [80, 100, 140])
def test_rows_fit_the_window(outputs: Path, width: int) -> None:
    make_group(outputs, "three-seeds", 9)
    query = ("runs", "ls", "optimizer.lr<1", "--sort", "val/loss", "--outputs", ".")
    for words in (query, query[:2] + query[-2:]):
        done = dlcli(*words, cwd=outputs, COLUMNS=str(width))
        assert done.returncode == 0 and max(map(len, done.stdout.splitlines())) <= width


def test_an_empty_list_says_what_there_is_instead(outputs: Path) -> None:
    done = dlcli("runs", "ls", "model=resnet val/accuracy>0.995", "--outputs", ".", cwd=outputs)
    assert done.returncode == 0
    assert "model is mlp, lenet5; val/accuracy is from 0.5 to 0.99" in done.stderr


def test_the_list_is_cut_after_it_is_sorted(outputs: Path) -> None:
    done = dlcli("runs", "ls", "--sort", "-created", "-n", "1", "--outputs", ".", "--json", cwd=outputs)
    assert [row["name"] for row in events_of(done.stdout)] == ["odd-newt"]
    done = dlcli("runs", "ls", "--limit", "1", "--outputs", ".", cwd=outputs)
    assert "3 more: add --limit 0" in done.stderr


def test_a_mistake_exits_with_2_and_its_remedy(outputs: Path) -> None:
    done = dlcli("runs", "ls", "val/acuracy>0.9", "--outputs", ".", cwd=outputs)
    assert done.returncode == 2 and "Did you mean val/accuracy>0.9 ?" in done.stderr
    assert "nothing was listed" in done.stderr and "hint" not in done.stderr, "it was quoted"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("val/accuracy", QUOTE),
        ("val/accuracy>", QUOTE),
        (">0.5", QUOTE),
        ("a<b=1", None),
        ("or", None),
        ("seed<two", None),
        ("zzzzzzzz=1", KEYS),
    ],
)
def test_a_hint_fits_the_mistake(outputs: Path, words: str, hint: str | None) -> None:
    with pytest.raises(ConfigError) as told:
        names(outputs, words)
    assert told.value.hint == hint


def test_filtering_imports_neither_torch_nor_yaml(outputs: Path) -> None:
    script = """
import sys
from dlcli.cli import run
code = run(sys.argv[1:])
print(code, [m for m in ("torch", "numpy", "hydra", "omegaconf", "yaml", "wandb") if m in sys.modules], file=sys.stderr)
"""
    words = ["runs", "ls", "val/accuracy>0.5 model=mlp", "--sort", "optimizer.lr", "--outputs", "."]
    command = [sys.executable, "-P", "-c", script, *words]
    done = subprocess.run(command, cwd=outputs, env=environment(), capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "0 []", done.stderr
    assert "calm-otter" in done.stdout


def test_a_plain_list_opens_no_config(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do conditions on what the list shows anyway."""
    monkeypatch.setattr(RunFacts, "started", property(lambda self: pytest.fail("it was read")))
    assert len(names(outputs)) == 4
    assert names(outputs, "val/accuracy>0.95 status=completed created>2026-11-01") == ["wise-crane"]


def test_words_are_taken_apart() -> None:
    query = parse_query(["digits", "a.b >= 1e-3", "and name~x"])
    assert query.experiment == "digits"
    assert query.conditions == (Condition("a.b", ">=", "1e-3"), Condition("name", "~", "x"))
