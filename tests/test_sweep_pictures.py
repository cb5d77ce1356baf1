"""The importance of a sweep's settings, against functions whose shares are known, and its pictures, of odd data too."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from dlcli.sweep.results.importance import FEWEST_TRIALS, importance
from dlcli.sweep.results.pictures import draw_sweep
from dlcli.sweep.results.scales import cut, is_log, window
from dlcli.sweep.space.space import Axis
from dlcli.sweep.study.definition import Definition, Objective
from dlcli.sweep.study.points import point
from dlcli.sweep.study.trial_record import Record

LOSS, ACCURACY = Objective("val/loss", "min"), Objective("val/accuracy", "max")
AXES = (
    Axis("optimizer.lr", low=1e-4, high=1.0, is_log=True),
    Axis("model", ("mlp", "lenet5")),
    Axis("model.hidden", ("[64]", "[128,64]", "[256]"), only_with=("mlp",)),
    Axis("regularization.dropout", low=0.0, high=0.6),
)
SWEEP = Definition("tiny", "digits", (), AXES, (LOSS,), 20, sampler="random")


def trials(num: int, value: Callable[[dict[str, str]], float], definition: Definition = SWEEP) -> list[Record]:
    points = [point(definition, number) for number in range(num)]
    return [Record(i, p, state="completed", values=[value(p)], seconds=1.0) for i, p in enumerate(points)]


def by_rate(p: dict[str, str]) -> float:
    """Of the variance, the rate makes 96 %, the model 4 %."""
    return (math.log10(float(p["optimizer.lr"])) + 2) ** 2 + 0.5 * (p["model"] == "mlp")


def by_hidden(p: dict[str, str]) -> float:
    """The size makes all of the variance; a model without it stands in the middle."""
    return {"[64]": 0.0, "[128,64]": 1.0, "[256]": 2.0, "": 1.0}[p.get("model.hidden", "")]


# ---------------------------------------------------------------------------------------------------------- importance


def test_importance_finds_the_known_share() -> None:
    found = importance(SWEEP, trials(60, by_rate))
    assert list(found)[:2] == ["optimizer.lr", "model"]
    assert found["optimizer.lr"] == pytest.approx(0.96, abs=0.05)
    assert sum(found.values()) == pytest.approx(1.0)
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_a_low_end_of_a_logarithmic_range_counts_as_much_as_its_high_end() -> None:
    """On a plain scale, everything below 0.01 would be a hundredth of the range."""
    found = importance(SWEEP, trials(60, lambda p: float(float(p["optimizer.lr"]) < 1e-3)))
    assert found["optimizer.lr"] > 0.9


def test_an_axis_that_applies_to_some_trials_has_a_share_and_takes_none_from_its_group() -> None:
    found = importance(SWEEP, trials(60, by_hidden))
    assert found["model.hidden"] > 0.7
    only_model = importance(SWEEP, trials(60, lambda p: float(p["model"] == "mlp")))
    assert only_model["model"] > 0.95 and only_model["model.hidden"] < 0.03


def test_the_same_records_give_the_same_figures() -> None:
    records = trials(30, by_rate)
    assert importance(SWEEP, records) == importance(SWEEP, records)


def test_accuracies_give_what_their_errors_give() -> None:
    rising = replace(SWEEP, objectives=(ACCURACY,))
    assert importance(rising, trials(30, lambda p: -by_rate(p))) == importance(SWEEP, trials(30, by_rate))


def test_diverged_pruned_and_reused_trials_do_not_count() -> None:
    records = trials(20, by_rate)
    others = [
        Record(20, records[0].point, state="diverged", values=[math.inf]),
        Record(21, records[1].point, state="pruned"),
        records[2].be(number=22, reuse_of=2),
        records[0].be(number=23, reuse_of=0),
    ]
    assert importance(SWEEP, [*records, *others]) == importance(SWEEP, records)


def test_one_terrible_trial_does_not_decide() -> None:
    records = trials(30, by_rate)
    records[7] = records[7].be(values=[1e9])
    assert importance(SWEEP, records)["optimizer.lr"] > 0.5


@pytest.mark.parametrize(
    "records",
    [trials(FEWEST_TRIALS - 1, by_rate), trials(20, lambda p: 0.5), [r.be(point={}) for r in trials(9, by_rate)], []],
    ids=["few", "equal", "one point", "none"],
)
def test_importance_that_cannot_be_told_is_empty(records: list[Record]) -> None:
    assert importance(SWEEP, records) == {}


# -------------------------------------------------------------------------------------------------------------- scales


def test_losses_over_decades_stand_on_a_logarithmic_scale_and_accuracies_never() -> None:
    assert is_log(LOSS, [0.01, 1.0]) and not is_log(LOSS, [0.5, 1.0]) and not is_log(LOSS, [0.0, 1.0])
    assert not is_log(ACCURACY, [0.01, 1.0])


def test_a_window_leaves_the_terrible_ones_out_and_never_the_good_ones() -> None:
    values = [0.97, 0.972, 0.975, 0.98, 0.985, 0.1]
    low, high = window(ACCURACY, values)
    assert 0.9 < low < 0.97 and high > 0.985
    assert window(ACCURACY, values, always=[0.1])[0] < 0.1
    assert window(LOSS, [0.5, 0.51, 0.52, 0.53, 0.1, 0.5])[0] < 0.1


def test_a_long_name_keeps_both_ends() -> None:
    assert cut("a_very_long_setting_number_7", 12) == "a_very…ber_7"
    assert cut("lr", 12) == "lr"


# ------------------------------------------------------------------------------------------------------------ pictures


def drawn(folder: Path, definition: Definition, records: Sequence[Record]) -> set[str]:
    """The names of what was drawn; each is a whole picture, and nothing lies beside."""
    paths = draw_sweep(folder, definition, records)
    assert {Path(path).name for path in paths.values()} == {entry.name for entry in folder.iterdir()}
    for path in paths.values():
        with Image.open(path) as image:
            assert image.width >= 700
            assert len(image.convert("L").getcolors() or range(99)) > 2, "not blank"
    return set(paths)


def test_a_sweep_has_its_pictures(tmp_path: Path) -> None:
    states = ("pruned", "diverged", "bug", "running", "waiting")
    more = [Record(30 + i, point(SWEEP, 30 + i), state=state) for i, state in enumerate(states)]
    assert drawn(tmp_path, SWEEP, [*trials(30, by_rate), *more]) == {"history", "importance", "parallel"}


def test_several_objectives_have_a_front(tmp_path: Path) -> None:
    definition = replace(SWEEP, objectives=(ACCURACY, Objective("parameters", "min")))
    rng = random.Random(0)
    records = [r.be(values=[rng.random(), rng.uniform(1e3, 1e6)]) for r in trials(20, by_rate)]
    assert "pareto" in drawn(tmp_path, definition, records)
    three = replace(definition, objectives=(*definition.objectives, Objective("latency", "min")))
    records = [r.be(values=[*(r.values or []), rng.random()]) for r in records]
    assert "pareto" in drawn(tmp_path, three, records)


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([], set()),
        ([r.be(state="bug", values=None) for r in trials(9, by_rate)], set()),
        (trials(1, by_rate), {"history"}),
        (trials(2, by_rate), {"history", "parallel"}),
        (trials(9, lambda p: 0.5), {"history", "parallel"}),
        (trials(9, lambda p: 0.0), {"history", "parallel"}),
        (trials(9, lambda p: -1e30 if p["model"] == "mlp" else 1e30), {"history", "importance", "parallel"}),
    ],
    ids=["none", "no result", "one", "two", "equal", "zero", "huge"],
)
def test_odd_data_are_drawn_or_left_out(tmp_path: Path, records: list[Record], expected: set[str]) -> None:
    assert drawn(tmp_path, SWEEP, records) == expected


def test_many_axes_and_long_texts_are_drawn(tmp_path: Path) -> None:
    texts = tuple(f"$\\frac_{'x' * 60}{i}\n漢字" for i in range(30))
    axes = tuple(Axis(f"model.a_very_long_setting_number_{i}", low=0, high=1) for i in range(28))
    flat = Axis("optimizer.lr", low=0.1, high=0.1, is_log=True)
    whole = Axis("dataset.batch_size", low=16, high=1024, is_whole=True, is_log=True)
    definition = replace(SWEEP, axes=(*axes, Axis("augmentation", texts), flat, whole))
    rng = random.Random(0)
    records = trials(40, lambda p: 10 ** rng.uniform(-3, 1), definition)
    assert drawn(tmp_path, definition, records) == {"history", "importance", "parallel"}
