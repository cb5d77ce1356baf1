"""What a sweep varies: Hydra's sweep words and short ones, mistakes told beforehand, points of the space."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dlcli.config import compose_command
from dlcli.config.folders import packaged_conf
from dlcli.errors import ConfigError
from dlcli.sweep.request import Request, read_request
from dlcli.sweep.space.axes import read_axes
from dlcli.sweep.space.space import Axis, Space
from dlcli.sweep.study.definition import Definition, Objective
from dlcli.sweep.study.points import point


def axis_of(word: str) -> dict[str, Any]:
    plain, axes, reading = read_axes([word], [packaged_conf()])
    assert not plain and not reading.problems, reading.problems
    return {key: value for key, value in axes[0].as_dict().items() if key not in ("key", "text")}


def ask(*words: str, **more: Any) -> Definition:
    return read_request(words, Request(**more), device_is_cpu=True, workers=1, threads=lambda workers: 1).definition


def problems(*words: str, **more: Any) -> dict[str, tuple[str, str | None]]:
    with pytest.raises(ConfigError) as caught:
        ask(*words, **more)
    return {p.where: (p.message, p.better) for p in caught.value.problems}


@pytest.mark.parametrize(
    ("word", "means"),
    [
        ("model=mlp,lenet5", {"values": ["mlp", "lenet5"]}),
        ("model=choice(mlp,lenet5)", {"values": ["mlp", "lenet5"]}),
        ("model=glob(m*)", {"values": ["mlp", "mnist_net", "mobilenet", "moe"]}),
        ("model=glob([l*,m*],exclude=[mo*,ls*])", {"values": ["lenet5", "mlp", "mnist_net"]}),
        ("model.hidden=[64],[128,64]", {"values": ["[64]", "[128,64]"]}),
        ("model.batch_norm=true,false", {"values": ["true", "false"]}),
        ("optimizer.lr=tag(log,interval(1e-4,1e-1))", {"low": 1e-4, "high": 0.1, "is_log": True}),
        ("optimizer.lr=1e-4:1e-1:log", {"low": 1e-4, "high": 0.1, "is_log": True}),
        ("optimizer.lr=log:1e-4:1e-1", {"low": 1e-4, "high": 0.1, "is_log": True}),
        ("regularization.dropout=interval(0,0.5)", {"high": 0.5}),
        ("regularization.dropout=0:0.5", {"high": 0.5}),
        ("dataset.batch_size=int(interval(16,64))", {"low": 16, "high": 64, "is_whole": True}),
        ("dataset.batch_size=16:64", {"low": 16, "high": 64, "is_whole": True}),
        ("dataset.batch_size=16:64:log", {"low": 16, "high": 64, "is_whole": True, "is_log": True}),
        ("dataset.batch_size=int(tag(log,interval(16,64)))", {"low": 16, "high": 64, "is_whole": True, "is_log": True}),
        ("optimizer.weight_decay=0:1", {"high": 1.0}),
        ("trainer.epochs=range(1,10,2)", {"low": 1, "high": 9, "step": 2, "is_whole": True}),
        ("seed=0,1,2", {"values": ["0", "1", "2"]}),
    ],
)
def test_a_word_of_several_values_is_understood(word: str, means: dict[str, Any]) -> None:
    assert axis_of(word) == means


@pytest.mark.parametrize("word", ["optimizer.lr=0.1", "runtime.device=cuda:0", "trainer.max_time=1h", "model=mlp"])
def test_a_word_of_one_value_stays_one(word: str) -> None:
    plain, axes, reading = read_axes([word], [packaged_conf()])
    assert (plain, axes, reading.problems) == ([word], [], [])


@pytest.mark.parametrize(
    ("word", "told", "better"),
    [
        ("optimizer.lr=1e-1:1e-4:log", "not above its start", None),
        ("optimizer.lr=interval(0.5,0.1)", "not above its start", None),
        ("optimizer.lr=0:1:log", "a logarithm needs a start above 0", None),
        ("optimizer.lr=1e-4:1e-1:lgo", "log and int can", "optimizer.lr=1e-4:1e-1:log"),
        ("optimizer.lr=0:1", "must be a number above 0", None),
        ("regularization.dropout=0:1.5", "below 1", None),
        ("optimizer.lrr=0.1,0.2", "no such setting", "optimizer.lr=0.1,0.2"),
        ("model=mlp,mlpp", "no such model", "model=mlp"),
        ("model=glob(zz*)", "matches no model", None),
        ("model.hidden=[64],[a]", "a list of 0 to 1000 values", "model.hidden=[64],[512,256]"),
        ("runtime.devices=1,2", "--workers", None),
        ("name=a,b", "--name", None),
        ("trainer.epochs=range(5,5)", "holds no value", None),
    ],
)
def test_a_mistake_in_the_space_is_told_like_any_other(word: str, told: str, better: str | None) -> None:
    found = problems("digits", word, "seed=0,1")
    assert list(found) == [word]
    assert told in found[word][0]
    assert found[word][1] == better


def test_all_mistakes_are_told_at_once() -> None:
    assert len(problems("mnist", "optimizer.lr=0:1", "model=mlp,lenett", "trainer.epochs=ten", "seed=1:0")) == 4


def test_what_does_not_go_together_is_found_in_every_architecture() -> None:
    found = problems("digits", "model=mlp,lenet5", "optimizer.lr=0.1,0.01")
    assert "28 x 28" in found["model=mlp,lenet5"][0]


def test_nothing_varied_is_an_error() -> None:
    with pytest.raises(ConfigError, match="nothing is varied"):
        ask("digits", "optimizer.lr=0.1")


def test_a_setting_that_only_some_options_have_is_varied_where_it_is() -> None:
    definition = ask("mnist", "model=mlp,lenet5", "model.hidden=[64],[128]", "seed=0,1", sampler="grid")
    points = definition.space.grid()
    assert len(points) == 6 == definition.trials
    assert {("model.hidden" in found) == (found["model"] == "mlp") for found in points} == {True}
    for found in points:  # each composes as it stands
        compose_command(definition.words_of(found))


def test_a_grid_needs_values() -> None:
    with pytest.raises(ConfigError, match="no end of them") as caught:
        ask("digits", "optimizer.lr=1e-4:1e-1:log", sampler="grid")
    assert "optimizer.lr=0.0001,0.001,0.01,0.1" in str(caught.value.hint)


def test_a_file_holds_a_space(tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    text = "space: {optimizer.lr: '1e-4:1e-1:log', model.hidden: '[64],[128]'}\ntrials: 7\nsampler: random\n"
    (tmp_path / "sweep" / "mine.yaml").write_text(text)
    definition = ask("digits", "sweep=mine", config_dir=str(tmp_path))
    assert (definition.trials, definition.sampler, len(definition.axes)) == (7, "random", 2)
    mine = ask("digits", "sweep=mine", "optimizer.lr=0.1,0.2", config_dir=str(tmp_path), trials=3)
    assert mine.trials == 3, "the command comes first"
    assert {axis.key: axis.values for axis in mine.axes}["optimizer.lr"] == ("0.1", "0.2")
    (tmp_path / "sweep" / "bad.yaml").write_text("spaec: {}\ntrials: many\nspace: {optimizer.lr: 0:0.5}\n")
    found = problems("digits", "sweep=bad", config_dir=str(tmp_path))
    assert len(found) == 3
    assert any("in quotes" in told for told, _ in found.values()), "YAML reads 0:0.5 as a number of minutes"
    with pytest.raises(ConfigError, match="no such sweep"):
        ask("digits", "sweep=mne", config_dir=str(tmp_path))


def test_the_packaged_sweeps_are_complete() -> None:
    from dlcli.config.folders import describe, options

    found = options("sweep", [packaged_conf()])
    assert found
    for name, path in found.items():
        first = path.read_text().splitlines()[0]
        assert first.startswith("# dlcli sweep ") and f"sweep={name}" in first and describe(path)
        ask(*first.removeprefix("# dlcli sweep ").split())


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"objectives": ("test/accuracy",)}, "nothing is selected on the test split"),
        ({"objectives": ("val/acuracy",)}, "no such objective"),
        ({"objectives": ("parameters",)}, "knows nothing"),
        ({"objectives": ("accuracy,parameters",), "pruner": "median"}, "compares by one objective"),
        ({"objectives": ("accuracy", "parameters"), "sampler": "cmaes"}, "one objective"),
        ({"sampler": "tep"}, "no such sampler"),
        ({"pruner": "hyper"}, "no such pruner"),
    ],
)
def test_what_cannot_be_searched_so_is_told(more: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        ask("digits", "optimizer.lr=1e-4:1e-1:log", **more)


def test_the_objective_is_what_is_monitored() -> None:
    assert ask("digits", "seed=0,1").objectives == (Objective("val/loss", "min"),)
    by_accuracy = ask("digits", "seed=0,1", objectives=("accuracy,parameters",))
    assert by_accuracy.objectives == (Objective("val/accuracy", "max"), Objective("parameters", "min"))
    assert "trainer.monitor=val/accuracy" in by_accuracy.words
    assert by_accuracy.sampler == "nsga2" and by_accuracy.pruner == "none"


def test_nothing_is_left_to_measurement() -> None:
    tree = compose_command(ask("mnist", "seed=0,1").words).tree["runtime"]
    assert (tree["threads"], tree["precision"], tree["channels_last"]) == (1, "fp32", False)
    chosen = ask("mnist", "seed=0,1", "runtime.precision=bf16", "runtime.threads=2").words
    assert not {"runtime.precision=fp32", "runtime.threads=1"} & set(chosen), "what the user says stands"


def test_a_definition_comes_back_from_its_file(tmp_path: Path) -> None:
    from dlcli.sweep.study.definition import read_definition

    definition = replace(
        ask("mnist", "model=mlp,lenet5", "model.hidden=[64],[128]", "optimizer.lr=0.1:1:log"),
        name="a",
    )
    definition.write(tmp_path)
    assert read_definition(tmp_path) == definition
    assert json.loads((tmp_path / "sweep.json").read_text())["name"] == "a"


# -------------------------------------------------------------------------------------------------------------- points


def definition_of(*axes: Axis, sampler: str, seed: int = 0) -> Definition:
    return Definition("x", "digits", ("digits",), axes, (Objective("val/loss", "min"),), 64, sampler=sampler, seed=seed)


LR = Axis("optimizer.lr", low=1e-4, high=1e-1, is_log=True)
WIDTH = Axis("model.hidden_size", low=2, high=9, is_whole=True)
MODEL = Axis("model", values=("a", "b", "c"))


@pytest.mark.parametrize("sampler", ["random", "quasi-random"])
def test_points_lie_in_their_ranges_and_fill_them(sampler: str) -> None:
    definition = definition_of(LR, WIDTH, MODEL, sampler=sampler)
    points = [point(definition, number) for number in range(256)]
    logs = sorted(math.log10(float(found["optimizer.lr"])) for found in points)
    assert -4 <= logs[0] < -3.9 and -1.1 < logs[-1] <= -1
    assert abs(sum(logs) / len(logs) + 2.5) < 0.1, "even by the logarithm"
    assert {found["model.hidden_size"] for found in points} == {str(n) for n in range(2, 10)}
    assert min(Counter(found["model"] for found in points).values()) > 60


def test_quasi_random_points_are_more_even_than_random_ones() -> None:
    """Of 64 numbers every sixteenth of the range holds 4 exactly; of random ones some hold none or many."""

    def spread(sampler: str) -> int:
        definition = definition_of(LR, sampler=sampler)
        logs = [math.log10(float(point(definition, number)["optimizer.lr"])) for number in range(64)]
        counts = Counter(min(int((log + 4) / 3 * 16), 15) for log in logs)
        return max(counts.values()) - min(counts.get(i, 0) for i in range(16))

    assert spread("quasi-random") == 0 < spread("random")


def test_a_point_is_of_its_number_and_seed_alone() -> None:
    definition = definition_of(LR, MODEL, sampler="random")
    assert point(definition, 7) == point(definition, 7)
    assert point(definition, 7) != point(definition, 8)
    assert point(definition, 7) != point(replace(definition, seed=1), 7)
    more = definition_of(LR, MODEL, WIDTH, sampler="random")
    assert point(more, 7)["optimizer.lr"] == point(definition, 7)["optimizer.lr"], "an axis more changes no other"


def test_a_whole_logarithmic_axis_reaches_both_ends() -> None:
    axis = Axis("b", low=16, high=256, is_whole=True, is_log=True)
    assert axis.at(0.0) == "16" and axis.at(1 - 1e-12) == "256"
    stepped = Axis("c", low=0.1, high=0.5, step=0.1)
    assert [stepped.at(share) for share in (0.0, 0.3, 0.999)] == ["0.1", "0.2", "0.5"]
    assert stepped.every() == ["0.1", "0.2", "0.3", "0.4", "0.5"]


def test_numbers_keep_all_their_digits() -> None:
    text = LR.at(0.123456789)
    assert float(text) == float(repr(float(text))) and "." in text
    assert compose_command(["digits", f"optimizer.lr={text}"]).tree["optimizer"]["lr"] == float(text)


def test_groups_come_first_in_a_space() -> None:
    assert [axis.key for axis in Space.of([LR, MODEL]).axes] == ["model", "optimizer.lr"]


def test_a_misspelt_flag_or_command_gets_the_nearest(tmp_path: Path) -> None:
    from sweeping import sweep

    done = sweep(tmp_path, "digits", "optimizer.lr=0.1,0.2", "--trails", "3")
    assert done.returncode == 2 and "Did you mean --trials" in done.stderr
    done = sweep(tmp_path, "statsu", "latest")
    assert done.returncode == 2 and "Did you mean  dlcli sweep status latest" in done.stderr
    done = sweep(tmp_path, "digts", "optimizer.lr=0.1")
    assert done.returncode == 2 and "Did you mean digits" in done.stderr
