"""`dlcli compare A B [...]`: what differs, and whether the difference is more than noise."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from program import dlcli

from dlcli.config import compose_command
from dlcli.config.folders import packaged_conf
from dlcli.errors import CheckpointError, ConfigError
from dlcli.evaluation.compare.answers import RightAnswers, kept
from dlcli.evaluation.compare.differences import differing_environment, differing_settings, shown
from dlcli.evaluation.compare.report import as_event
from dlcli.evaluation.compare.report import in_words as told_verdict
from dlcli.evaluation.compare.verdict import (
    BETTER,
    SAME,
    UNKNOWN,
    WORSE,
    Side,
    choose_metric,
    compare,
    read_side,
    seeds_command,
)
from dlcli.runs.find import find_run
from dlcli.runs.folder import RunFolder

QUICK = ("digits", "tracker=none", "runtime=cpu", "trainer.epochs=2")


def record_of(*words: str, **facts: Any) -> dict[str, Any]:
    """A run's record, as `dlcli train WORDS` would write it."""
    composed = compose_command(words or ("digits",))
    record = {"experiment": composed.experiment, "overrides": list(composed.overrides), "choices": composed.choices}
    return {**record, "config": composed.tree, "data": {"test": "t" * 64, "train": "r" * 64}, **facts}


def side(scores: dict[int, float], name: str = "a", metric: str = "test/accuracy", **facts: Any) -> Side:
    """A single run where there is one score, otherwise a group."""
    run, record = RunFolder(Path("outputs/digits") / name), record_of()
    diverged = facts.pop("diverged", ())
    is_group = len(scores) + len(diverged) > 1
    record |= (
        {"seeds": sorted([*scores, *diverged])}
        if is_group
        else {"config": record["config"] | {"seed": next(iter(scores))}}
    )
    return Side(run, record | facts, {metric: scores}, is_group, "completed", diverged)


def nobody(run: RunFolder, split: str) -> RightAnswers:
    raise AssertionError(f"{run} is not to be asked")


def answering(**right: str) -> Callable[[RunFolder, str], RightAnswers]:
    """Networks by name, each with the bits of what it gets right."""
    return lambda run, split: RightAnswers("w", "f", "r", len(right[run.name]), f"{int(right[run.name], 2):x}")


# ------------------------------------------------------------------------------------------------------ which settings


def settings_of(*commands: str) -> dict[str, tuple[Any, ...]]:
    rows = differing_settings([record_of(*command.split()) for command in commands], [packaged_conf()])
    return {row.key: tuple(map(shown, row.values)) for row in rows}


def test_only_what_differs_is_listed() -> None:
    assert settings_of("digits", "digits optimizer.lr=0.01 seed=4 name=x") == {"optimizer.lr": ("0.001", "0.01")}
    assert settings_of("digits", "digits") == {}


def test_a_setting_that_follows_another_is_told_once() -> None:
    found = settings_of("digits regularization.dropout=0.1", "digits regularization.dropout=0.5")
    assert found == {"regularization.dropout": ("0.1", "0.5")}, "model.dropout follows it"
    assert "model.dropout" in settings_of("digits", "digits model.dropout=0.5")


def test_what_comes_with_another_option_is_told_by_the_option() -> None:
    found = settings_of("mnist model=lenet5", "mnist model=mlp optimizer=sgd")
    assert found["model"] == ("lenet5", "mlp") and found["optimizer"] == ("adam", "sgd")
    assert "model.hidden" not in found and "optimizer.betas" not in found
    asked = settings_of("mnist model=lenet5", "mnist model=mlp model.hidden=[64,32]")
    assert asked["model.hidden"] == (None, "[64,32]"), "somebody has set it"


def test_what_the_runtime_was_left_is_compared_as_it_was_measured() -> None:
    device = {"threads": 1, "precision": "fp32", "channels_last": False}
    left, fixed = record_of("digits", device=device), record_of("digits", "runtime.precision=fp32", device=device)
    assert differing_settings([left, fixed], [packaged_conf()]) == []
    halved = record_of("digits", device=device | {"precision": "bf16"})
    assert differing_settings([left, halved], [packaged_conf()]) == [("runtime.precision", ("fp32", "bf16"))]


def test_what_differs_in_the_environment() -> None:
    before = {"versions": {"torch": "2.11"}, "device": {"threads": 2, "torch": "2.11"}, "git": {"commit": "a" * 40}}
    after = {"versions": {"torch": "2.15"}, "device": {"threads": 2, "torch": "2.15"}, "data": {"test": "f" * 64}}
    assert differing_environment(before, after) == [
        ("torch", "2.11", "2.15"),
        ("git commit", "a" * 10, "-"),
        ("data test", "-", "f" * 12),
    ]
    assert differing_environment(before, before) == []


# ------------------------------------------------------------------------------------------------------------ verdicts


@pytest.mark.parametrize(
    ("before", "after", "word", "test"),
    [
        ([0.90, 0.91, 0.92], [0.95, 0.96, 0.972], BETTER, "paired t-test over the seeds 0-2"),
        ([0.95, 0.96, 0.972], [0.90, 0.91, 0.92], WORSE, "paired t-test over the seeds 0-2"),
        ([0.90, 0.91, 0.92], [0.92, 0.90, 0.91], SAME, "paired t-test over the seeds 0-2"),
    ],
)
def test_the_same_seeds_are_compared_in_pairs(before: Any, after: Any, word: str, test: str) -> None:
    sides = side(dict(enumerate(before))), side(dict(enumerate(after)), "b")
    verdict = compare(*sides, "test/accuracy", nobody)
    assert (verdict.word, verdict.test) == (word, test)


def test_of_the_seeds_those_that_both_have_are_compared_where_the_one_has_all_of_the_other() -> None:
    first, second = side({0: 0.9, 1: 0.91, 2: 0.93, 3: 0.5}), side({0: 0.94, 1: 0.95, 2: 0.971}, "b")
    verdict = compare(first, second, "test/accuracy", nobody)
    assert verdict.test == "paired t-test over the seeds 0-2"
    assert verdict.difference is not None and verdict.difference.value == pytest.approx(0.0403, abs=1e-4)
    third = side({1: 0.95, 2: 0.971, 5: 0.1}, "b")
    assert compare(first, third, "test/accuracy", nobody).test == "Welch's t-test of 4 and 3 seeds"


def test_seeds_that_all_show_the_same_step_tell_nothing() -> None:
    first, second = (
        side({0: 350 / 359, 1: 351 / 359, 2: 353 / 359}),
        side({0: 349 / 359, 1: 350 / 359, 2: 352 / 359}, "b"),
    )
    verdict = compare(first, second, "test/accuracy", nobody)
    assert (verdict.word, verdict.difference, verdict.hints) == (UNKNOWN, None, ("dlcli train digits --seeds 6",))
    assert verdict.reason.startswith("every seed shows the same step (-0.002786)")


def test_two_seeds_are_too_few() -> None:
    verdict = compare(side({0: 0.9, 1: 0.91}), side({0: 0.95, 1: 0.97}, "b"), "test/accuracy", nobody)
    assert (verdict.word, verdict.hints) == (UNKNOWN, ("dlcli train digits --seeds 5",))
    assert verdict.reason == "2 of the seeds of a came to an end; 3 of each are needed"


def test_no_difference_beyond_noise_says_what_would_tell_more() -> None:
    first, second = side(dict(enumerate((0.90, 0.91, 0.92)))), side(dict(enumerate((0.92, 0.90, 0.91))), "b")
    verdict = compare(first, second, "test/accuracy", nobody)
    assert (verdict.word, verdict.hints) == (SAME, ("dlcli train digits --seeds 6",))


@pytest.mark.parametrize("scores", [{0: 0.95, 1: 0.96, 3: 0.972}, {0: 0.95}])
def test_what_diverges_in_more_of_its_seeds_is_worse(scores: dict[int, float]) -> None:
    steady = side(dict(enumerate((0.90, 0.91, 0.92, 0.93))))
    shaky = side(scores, "b", diverged=tuple({0, 1, 2, 3} - scores.keys()))
    verdict = compare(steady, shaky, "test/accuracy", nobody)
    told = f"b diverged in {len(shaky.diverged)} of 4 seeds"
    assert verdict.word == WORSE and verdict.reason.startswith(told) and "a diverged in none of 4" in verdict.reason
    assert verdict.hints == (f"dlcli why b/seed-{shaky.diverged[0]}",)
    event = as_event([steady, shaky], "test/accuracy", [], [verdict])
    assert [run["diverged"] for run in event["runs"]] == [[], list(shaky.diverged)]
    assert told_verdict(event["verdicts"][0], "a", "test/accuracy")[:2] == ["b is worse than a", verdict.reason]
    assert compare(shaky, steady, "test/accuracy", nobody).word in (WORSE, UNKNOWN), "by the scores, where they tell"


def test_resume_is_named_only_where_something_is_unfinished() -> None:
    first, second = side({0: 0.9, 1: 0.91}, diverged=(2,)), side({0: 0.9, 1: 0.91}, "b", diverged=(2,))
    assert compare(first, second, "test/accuracy", nobody).hints == ("dlcli train digits --seeds 6",)
    stopped = side({0: 0.9, 1: 0.91}, "b", seeds=[0, 1, 2])
    assert compare(first, stopped, "test/accuracy", nobody).hints == ("dlcli resume b",)


def test_a_group_whose_seeds_all_diverged_says_so(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "outputs" / "digits" / "20260101-000000-wild")
    run.path.mkdir(parents=True)
    run.write_record(record_of() | {"seeds": [0, 1, 2]})
    run.write_summary({"status": "completed", "per_seed": {}, "diverged": [0, 1, 2], "seeds": [0, 1, 2]})
    with pytest.raises(CheckpointError, match="seeds 0-2 diverged") as caught:
        read_side(run)
    assert caught.value.hint == "dlcli why wild/seed-0"
    row = {"1": {"test/accuracy": 0.9}}
    run.write_summary({"status": "completed", "per_seed": row, "diverged": [0, 2], "seeds": [0, 1, 2]})
    assert read_side(run).diverged == (0, 2)


def test_other_seeds_are_compared_by_welch() -> None:
    first, second = side({0: 0.90, 1: 0.91, 2: 0.92}), side({5: 0.95, 6: 0.96, 7: 0.97, 8: 0.96}, "b")
    verdict = compare(first, second, "test/accuracy", nobody)
    assert (verdict.word, verdict.test) == (BETTER, "Welch's t-test of 3 and 4 seeds")


def test_less_loss_is_better() -> None:
    sides = [side(dict(enumerate(s)), n, "test/loss") for n, s in (("a", (0.5, 0.6, 0.7)), ("b", (0.3, 0.41, 0.5)))]
    assert compare(*sides, "test/loss", nobody).word == BETTER


def test_two_networks_are_compared_by_the_examples_they_get_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlcli.evaluation.compare.verdict.is_same_network", lambda one, other: False)
    ask = answering(a="1" * 50 + "0" * 50, b="1" * 70 + "0" * 30, c="1" * 48 + "0" * 49 + "111")
    first, better, same = (side({0: 0.5}, name) for name in "abc")
    verdict = compare(first, better, "test/accuracy", ask)
    assert (verdict.word, verdict.test) == (BETTER, "McNemar's exact test on 100 test examples")
    assert verdict.difference is not None
    assert (verdict.difference.value, verdict.difference.p) == (pytest.approx(0.2), pytest.approx(2 * 0.5**20))
    assert verdict.hints == ("dlcli train digits --seeds 5",), "only seeds tell what another seed would give"
    assert compare(first, same, "test/accuracy", ask).word == SAME
    assert compare(better, first, "test/accuracy", ask).word == WORSE


def test_what_cannot_be_told_is_said_with_the_command_that_would_tell() -> None:
    single, group = side({4: 0.9}), side({2: 0.9, 3: 0.91, 4: 0.92}, "b")
    verdict = compare(group, single, "test/accuracy", nobody)
    assert (verdict.word, verdict.hints) == (UNKNOWN, ("dlcli train digits seed=2 --seeds 3",))
    losses = side({0: 0.9}, "a", "test/loss"), side({0: 0.91}, "b", "test/loss")
    assert "has no spread" in compare(*losses, "test/loss", nobody).reason
    other = side({0: 0.9}, "b", data={"test": "u" * 64})
    assert "test data differ" in compare(single, other, "test/accuracy", nobody).reason


def test_what_a_run_changed_is_in_the_command_that_repeats_it() -> None:
    single = side({0: 0.5}, overrides=["model.hidden=[64, 32]", "name=x", "seed=7", "optimizer.lr=0.1"])
    assert (
        seeds_command(single, [3, 4]) == "dlcli train digits 'model.hidden=[64, 32]' optimizer.lr=0.1 seed=3 --seeds 2"
    )


def test_the_score_that_is_judged_by() -> None:
    scores = {"val/accuracy": {0: 0.9}, "val/loss": {0: 0.1}, "test/accuracy": {0: 0.9}, "test/loss": {0: 0.1}}
    full = Side(RunFolder(Path("a")), record_of(), scores, False, "completed")
    trial = Side(RunFolder(Path("b")), record_of(), {n: s for n, s in scores.items() if "val" in n}, False, "completed")
    assert choose_metric([full, full], None) == "test/accuracy"
    assert choose_metric([full, trial], None) == "val/accuracy", "a trial is not scored on the test split"
    assert choose_metric([full, full], "loss") == "test/loss"
    with pytest.raises(ConfigError) as caught:
        choose_metric([full, trial], "val/acuracy")
    assert caught.value.hint == "Did you mean val/accuracy? They have: val/accuracy, val/loss."


@pytest.mark.parametrize(
    ("experiment", "metric"),
    [("spoken_digits", "cer"), ("nuclei", "mean_iou"), ("diabetes", "r2"), ("digits", "accuracy")],
)
def test_a_task_is_judged_by_its_own_score_and_one_of_a_whole_set_asks_nobody(experiment: str, metric: str) -> None:
    """The accuracy of whole transcripts or of pixels is not what such a run was trained for."""
    names = dict.fromkeys(["test/loss", "test/accuracy", f"test/{metric}"])
    record = record_of(experiment)
    one, other = (Side(RunFolder(Path(n)), record, {m: {0: 0.4} for m in names}, False, "completed") for n in "ab")
    assert choose_metric([one, other], None) == f"test/{metric}"
    if metric != "accuracy":
        verdict = compare(one, other, f"test/{metric}", nobody)
        assert verdict.word == UNKNOWN and "has no spread" in verdict.reason
        assert verdict.hints == (f"dlcli train {experiment} --seeds 5",)


# ------------------------------------------------------------------------------------------------------------ real runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs good and bad, and the groups good5 and bad5 of three seeds each."""
    folder = tmp_path_factory.mktemp("compared")
    worse = ("optimizer.lr=0.00003",)
    for words in (
        ("name=good",),
        ("name=bad", *worse),
        ("name=goods", "--seeds", "3"),
        ("name=bads", "--seeds", "3", *worse),
    ):
        done = dlcli("train", *QUICK, *words, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


def compared(folder: Path, *words: str) -> tuple[int, dict[str, Any]]:
    done = dlcli("compare", *words, "--json", cwd=folder)
    assert "Traceback" not in done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("words", "code", "verdict"),
    [
        ("good bad --fail-if worse", 1, WORSE),
        ("goods bads --fail-if worse", 1, WORSE),
        ("good bad", 0, WORSE),
        ("bad good --fail-if worse", 0, BETTER),
        ("bads goods --fail-if not-better", 0, BETTER),
        ("good good --fail-if worse", 0, SAME),
        ("goods goods --fail-if worse", 0, SAME),
        ("goods goods --fail-if not-better", 1, SAME),
        ("good goods/seed-0 --fail-if worse", 0, SAME),
        ("good goods --fail-if worse", 0, UNKNOWN),
    ],
)
def test_a_gate_for_a_pull_request(runs: Path, words: str, code: int, verdict: str) -> None:
    exit_code, event = compared(runs, *words.split())
    assert (exit_code, event["event"], event["verdicts"][0]["verdict"]) == (code, "compared", verdict)


def test_the_answers_are_kept_so_that_the_second_time_needs_no_torch(runs: Path, tmp_path: Path) -> None:
    compared(runs, "good", "bad")
    (tmp_path / "torch.py").write_text("raise ImportError('torch is not needed here')\n")
    path = f"{tmp_path}:{Path(__file__).resolve().parents[1]}"
    done = dlcli("compare", "good", "bad", cwd=runs, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert "bad is worse than good in test accuracy" in done.stdout
    assert "evaluating" not in done.stderr


def test_kept_answers_of_other_weights_are_not_believed(runs: Path) -> None:
    compared(runs, "good", "bad")
    run = find_run("good", runs / "outputs")
    file = run.path / "eval" / "test-right.json"
    content = json.loads(file.read_text())
    assert kept(run, "test", content["weights"]) is not None
    assert kept(run, "test", "0" * 64) is None
    for damaged in ("{", "{}", json.dumps(content | {"right": "xyz"}), json.dumps(content | {"examples": "many"})):
        file.write_text(damaged)
        assert kept(run, "test", content["weights"]) is None
    assert compared(runs, "good", "bad")[1]["verdicts"][0]["verdict"] == WORSE


def test_an_evaluation_keeps_the_answers_too(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "outputs", tmp_path / "outputs", symlinks=True)
    run = find_run("goods/seed-1", tmp_path / "outputs")
    shutil.rmtree(run.path / "eval", ignore_errors=True)
    done = dlcli("eval", "goods/seed-1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    content = json.loads((run.path / "eval" / "test-right.json").read_text())
    answers = kept(run, "test", content["weights"])
    assert answers is not None and answers.examples == 359
    accuracy = (run.read_summary() or {})["metrics"]["test/accuracy"]
    assert int(answers.right, 16).bit_count() / 359 == pytest.approx(accuracy)


def test_what_people_read(runs: Path) -> None:
    done = dlcli("compare", "goods", "bads", "good", cwd=runs, COLUMNS="80")
    assert done.returncode == 0, done.stderr
    assert "optimizer.lr  0.001  3e-05  0.001" in done.stdout
    assert "bads is worse than goods in test accuracy" in done.stdout
    assert "can't tell whether good is better than goods in test accuracy" in done.stdout
    assert "±" in done.stdout and max(map(len, done.stdout.splitlines())) <= 80
    assert (
        done.stderr.splitlines()[-1] == "next: dlcli train digits tracker=none runtime=cpu trainer.epochs=2 --seeds 3"
    )


def test_a_gate_that_cannot_tell_says_so(runs: Path) -> None:
    done = dlcli("compare", "good", "goods", "--fail-if", "worse", "--json", cwd=runs)
    assert done.returncode == 0 and "--fail-if worse lets pass what can't be decided" in done.stderr
    done = dlcli("compare", "good", "goods", "--fail-if", "not-better", cwd=runs)
    assert done.returncode == 1 and "lets pass" not in done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("good",), "one run is named; two are compared"),
        (("good", "bda"), "Did you mean bad"),
        (("good", "bad", "--metric", "test/los"), "Did you mean test/loss?"),
        (("good", "bad", "--fail-if", "wrose"), "--fail-if worse or not-better"),
    ],
)
def test_mistakes_are_told_with_their_remedy(runs: Path, words: tuple[str, ...], told: str) -> None:
    done = dlcli("compare", *words, cwd=runs)
    assert done.returncode == 2 and told in done.stderr and "Traceback" not in done.stderr


def test_a_run_without_a_score_is_refused(runs: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "outputs" / "digits" / "20260101-000000-empty")
    run.path.mkdir(parents=True)
    run.write_record(record_of())
    with pytest.raises(CheckpointError, match="has no score yet"):
        read_side(run)
    run.write_record({"config": {"seed": "many"}})
    with pytest.raises(CheckpointError):
        read_side(run)
