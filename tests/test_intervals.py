"""Intervals of scores of a whole set: against a bootstrap that scores each sample anew, and against the truth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from program import dlcli, events_of
from test_average_precision import random_answers
from torch import Tensor, nn

from dlcli.datasets.table import number_records
from dlcli.evaluation import bootstrap
from dlcli.tasks.classification import Classification
from dlcli.tasks.ctc import CTC, error_rate
from dlcli.tasks.language_model import LanguageModel
from dlcli.tasks.metrics.average_precision import Detections
from dlcli.tasks.metrics.statistics import Statistics, Sums
from dlcli.tasks.regression import Regression
from dlcli.tasks.segmentation import IGNORED, Segmentation
from dlcli.tasks.translation import bleu, bleu_counts
from dlcli.training import loop

NUM_SAMPLES = 40  # that are scored anew


class Masks(NamedTuple):
    inputs: tuple[Tensor]
    masks: Tensor


class First(nn.Module):
    """Answers with its first feature."""

    def forward(self, features_BF: Tensor) -> Tensor:
        return features_BF[:, :1]


class Given(nn.Module):
    """Answers with what it is given: frames' scores, all of them known."""

    def forward(self, scores_BFV: Tensor) -> tuple[Tensor, Tensor]:
        return scores_BFV, torch.full((len(scores_BFV),), scores_BFV.shape[1])


class Said(NamedTuple):
    inputs: tuple[Tensor]
    targets: Tensor
    target_lengths: Tensor


# ------------------------------------------------------------------- each task on the examples of a list, some repeated


def regression(rows: Sequence[int]) -> Statistics:
    random = np.random.default_rng(0)
    target = random.normal(size=60)
    predicted = 0.7 * target + random.normal(0.2, 0.5, size=60)
    features, numbers = torch.tensor(predicted)[:, None].float(), torch.tensor(target).float()
    records = number_records(features[list(rows)], numbers[list(rows)], 77.0)
    return Regression(First()).statistics(records.batch(part) for part in torch.arange(len(rows)).split(13))


def segmentation(rows: Sequence[int]) -> Statistics:
    """Four classes, of which the last is in one image only; a part of each image is ignored."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(3, (20, 6, 5), generator=generator)
    masks[7, :2] = 3
    logits = torch.randn(20, 4, 6, 5, generator=generator) + 2 * nn.functional.one_hot(masks, 4).movedim(3, 1)
    logits[:, 3] -= 3
    masks[:, 0, 0] = IGNORED
    batches = [Masks((logits[part],), masks[part]) for part in torch.tensor(rows).split(6)]
    return Segmentation(nn.Identity()).statistics(batches)


def recognition(rows: Sequence[int]) -> Statistics:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(30, 9, 5, generator=generator)
    targets, lengths = torch.randint(1, 5, (30, 6), generator=generator), torch.arange(30) % 5 + 1
    batches = [Said((scores[part],), targets[part], lengths[part]) for part in torch.tensor(rows).split(7)]
    return CTC(Given()).statistics(batches)


def translation(rows: Sequence[int]) -> Statistics:
    random = np.random.default_rng(0)
    right = [random.choice([*"abcdefgh"], size=int(size)) for size in random.integers(3, 14, 40)]
    changed = [np.where(random.random(len(words)) < 0.8, words, "z") for words in right]
    texts = [[" ".join(each[i]) for i in rows] for each in (changed, right)]
    return Sums({"counts": bleu_counts(*texts)}, bleu)


def detection(rows: Sequence[int]) -> Statistics:
    answers = random_answers(3, images=15)
    return Detections([answers[i] for i in rows])


TASKS = {regression: 60, segmentation: 20, recognition: 30, translation: 40, detection: 15}


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.__name__)
def test_a_sample_is_scored_as_if_its_examples_were_the_set(task: Any) -> None:
    """The naive bootstrap: the examples drawn are put into batches, some of them twice, and scored from scratch."""
    size = TASKS[task]
    counts_RN = next(bootstrap.samples(size, NUM_SAMPLES))
    assert counts_RN.sum(1).tolist() == [size] * NUM_SAMPLES
    quick = list(task(range(size)).resampled(counts_RN))
    for counts_N, scores in zip(counts_RN, quick, strict=True):
        drawn = torch.arange(size).repeat_interleave(counts_N.long()).tolist()
        anew = task(drawn).scores()
        assert scores == pytest.approx({name: anew[name] for name in scores}, rel=1e-9, abs=1e-12)
    assert len({tuple(scores.values()) for scores in quick}) > NUM_SAMPLES / 2


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.__name__)
def test_the_set_itself_is_the_sample_that_has_each_example_once(task: Any) -> None:
    statistics = task(range(TASKS[task]))
    (once,) = statistics.resampled(torch.ones(1, len(statistics), dtype=torch.float64))
    assert once == pytest.approx({name: statistics.scores()[name] for name in once}, rel=1e-12)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.__name__)
def test_an_interval_is_the_middle_of_the_samples_and_the_same_every_time(task: Any) -> None:
    size = TASKS[task]
    torch.manual_seed(1)
    found, num_samples = bootstrap.intervals(task(range(size)))
    torch.manual_seed(2)
    assert bootstrap.intervals(task(range(size)))[0] == found, "no matter where the global generator stands"
    all_counts = torch.cat(list(bootstrap.samples(size, num_samples)))
    samples = list(task(range(size)).resampled(all_counts))
    assert len(samples) == num_samples >= 500
    for name, (low, high) in found.items():
        assert low < task(range(size)).scores()[name] < high
        inside = sum(low <= sample[name] <= high for sample in samples) / num_samples
        assert 0.94 <= inside <= 0.97, "several samples may have the same score"


def test_torch_draws_nothing_for_it() -> None:
    state = torch.get_rng_state()
    bootstrap.intervals(regression(range(60)))
    assert torch.equal(torch.get_rng_state(), state)


# ------------------------------------------------------------------------------------------------- what is known of it


def test_character_error_rates_hold_the_true_value_about_as_often_as_they_say() -> None:
    """Recordings of which some are hard: their characters are not independent, and a binomial interval of all
    characters is far too narrow. True rate 0.1 * 0.7 + 0.5 * 0.3 = 0.22.
    """
    random, true, cases = np.random.default_rng(0), 0.22, 200
    held, held_by_characters = 0, 0
    for _ in range(cases):
        characters = np.full(100, 20)
        edits = random.binomial(characters, np.where(random.random(100) < 0.3, 0.5, 0.1))
        parts = {"edits": torch.tensor(edits).double(), "characters": torch.tensor(characters).double()}
        low, high = bootstrap.intervals(Sums(parts, error_rate))[0]["cer"]
        held += low <= true <= high
        share, size = edits.sum() / characters.sum(), characters.sum()
        held_by_characters += abs(share - true) <= 1.96 * np.sqrt(share * (1 - share) / size)
    assert 0.90 <= held / cases <= 0.98
    assert held_by_characters / cases < 0.80


def test_errors_of_a_regression_hold_the_true_value_about_as_often_as_they_say() -> None:
    """Noise of deviation 0.5 on targets of deviation 1: in truth rmse is 0.5 and r2 is 0.75."""
    random, cases = np.random.default_rng(0), 200
    held = {"rmse": 0, "r2": 0, "mae": 0}
    truth = {"rmse": 0.5, "r2": 0.75, "mae": 0.5 * np.sqrt(2 / np.pi)}
    for _ in range(cases):
        target = random.normal(size=150)
        predicted = target + random.normal(0, 0.5, size=150)
        records = number_records(torch.tensor(predicted)[:, None].float(), torch.tensor(target).float(), 1.0)
        found, _ = bootstrap.intervals(Regression(First()).statistics([records.batch(torch.arange(150))]))
        for name in held:
            held[name] += found[name][0] <= truth[name] <= found[name][1]
    assert all(0.90 <= count / cases <= 0.98 for count in held.values()), held


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.__name__)
def test_one_example_has_no_interval(task: Any) -> None:
    assert bootstrap.intervals(task([4])) == ({}, 0)


def test_no_error_at_all_is_no_proof_that_there_is_none() -> None:
    parts = {"edits": torch.zeros(9, dtype=torch.float64), "characters": torch.full((9,), 5.0, dtype=torch.float64)}
    statistics = Sums(parts, error_rate)
    assert statistics.scores() == {"cer": 0.0}
    assert bootstrap.intervals(statistics)[0] == {}, "every sample is as good: 0 to 0 would be a lie"


def test_scores_that_are_no_numbers_have_no_interval() -> None:
    for value in (float("nan"), float("inf")):
        parts = {"edits": torch.tensor([1.0, 2.0, value]).double(), "characters": torch.full((3,), 5.0).double()}
        assert bootstrap.intervals(Sums(parts, error_rate))[0] == {}


def test_samples_whose_targets_are_all_the_same_have_an_r2_all_the_same() -> None:
    """Of two examples every second sample has one of them twice: there is nothing to explain, and no error is 1."""
    records = number_records(torch.tensor([[0.1], [0.7]]), torch.tensor([0.1, 0.3]), 1.0)
    statistics = Regression(First()).statistics([records.batch(torch.arange(2))])
    samples = list(statistics.resampled(torch.tensor([[2.0, 0.0], [0.0, 2.0]], dtype=torch.float64)))
    assert [sample["r2"] for sample in samples] == [1.0, 0.0]


def test_large_sets_get_fewer_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bootstrap.intervals(recognition(range(30)))[1] == 1000
    monkeypatch.setattr(bootstrap, "MOST_DRAWN", 30 * 400)
    assert bootstrap.intervals(recognition(range(30)))[1] == 400
    monkeypatch.setattr(bootstrap, "MOST_DRAWN", 30)
    assert bootstrap.intervals(recognition(range(30)))[1] == 200, "percentiles of fewer are none"


def test_what_a_task_says_of_its_scores() -> None:
    """Means are shared among ranks; sums over a whole set get intervals; a text's windows are no examples."""
    whole = Regression(First()), Segmentation(nn.Identity()), CTC(Given())
    assert all(loop.has_statistics(task) and not loop.has_mean_scores(task) for task in whole)
    assert loop.has_mean_scores(Classification(First())) and not loop.has_statistics(Classification(First()))
    text = LanguageModel(First())
    assert not loop.has_mean_scores(text) and not loop.has_statistics(text)


class Doubled(Regression):
    def evaluate(self, source: Any, **_: Any) -> dict[str, float]:
        return {"twice": 2 * self.statistics(source).scores()["r2"]}


def test_a_task_that_evaluates_in_its_own_way_is_asked_that_way() -> None:
    assert not loop.has_statistics(Doubled(First()))


def test_average_precision_of_the_whole_set_is_what_it_was() -> None:
    answers = random_answers(1)
    precision = Detections(answers).precision()
    assert Detections(answers).scores() == {"map50": precision.map50, "map": precision.map}


# -------------------------------------------------------------------------------------------------- through the command


def test_eval_shows_the_intervals_and_how_many_samples_made_them(tmp_path: Path) -> None:
    words = ("diabetes", "tracker=none", "runtime.threads=1", "runtime.device=cpu", "trainer.epochs=3")
    done = dlcli("train", *words, "--json", cwd=tmp_path)
    end = events_of(done.stdout)[-1]
    first, second = (dlcli("eval", "latest", "--json", cwd=tmp_path) for _ in range(2))
    event = json.loads(first.stdout)
    assert event["intervals"] == json.loads(second.stdout)["intervals"]
    assert event["metrics"] == {k: v for k, v in end["metrics"].items() if k.startswith("test/")}
    assert set(event["intervals"]) == set(event["metrics"])
    assert all(low < event["metrics"][name] < high for name, (low, high) in event["intervals"].items())
    assert event["bootstrap_samples"] == {"test/r2": 1000, "test/rmse": 1000, "test/mae": 1000}
    shown = dlcli("eval", "latest", cwd=tmp_path, COLUMNS="80").stdout
    assert "interval of r2, rmse, mae: 1,000 bootstrap samples of the test examples" in shown
    assert max(map(len, shown.splitlines())) <= 80
