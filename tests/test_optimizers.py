"""Schedules against torch's own, and parameter groups by pattern."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from dlcli.config import compose_command
from dlcli.datasets.batches.examples import Batch
from dlcli.errors import ConfigError
from dlcli.models.resnet import build_resnet
from dlcli.optimizers.groups import build_optimizer
from dlcli.optimizers.penalties import L1
from dlcli.optimizers.schedules import Position, constant, cosine, one_cycle, plateau, step_decay, triangle
from dlcli.runtime.ranks import SingleProcess
from dlcli.tasks.classification import Classification
from dlcli.training import loop
from dlcli.training.budget import Plan
from dlcli.training.early_stopping import best_index, should_stop

STEPS, PER_EPOCH = 100, 10


def at(step: int, **named: object) -> Position:
    return Position(step, STEPS, PER_EPOCH, **named)  # type: ignore[arg-type]


def torchs(make: object, steps: int) -> list[float]:
    """Learning rates of a torch scheduler around an lr of 1."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it wants optimizer.step() before its own
        scheduler = make(optimizer)  # type: ignore[operator]
        rates = []
        for _ in range(steps):
            rates.append(optimizer.param_groups[0]["lr"])
            scheduler.step()
    return rates


def test_cosine_is_torchs() -> None:
    expected = torchs(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, STEPS, eta_min=0.1), STEPS)
    assert [cosine(at(s), final=0.1) for s in range(STEPS)] == pytest.approx(expected)


def test_step_decay_is_torchs() -> None:
    expected = torchs(lambda o: torch.optim.lr_scheduler.StepLR(o, 30, gamma=0.1), STEPS)
    assert [step_decay(at(s), every=3) for s in range(STEPS)] == pytest.approx(expected)


def test_one_cycle_is_torchs() -> None:
    make = partial(
        torch.optim.lr_scheduler.OneCycleLR, max_lr=1.0, total_steps=STEPS + 1, pct_start=0.3, cycle_momentum=False
    )
    make.keywords.update(div_factor=25, final_div_factor=1e4)
    rise = (0.3 * (STEPS + 1) - 1) / STEPS  # torch's peak lies one step earlier
    ours = [one_cycle(at(s), pct_start=rise) for s in range(STEPS)]
    assert ours == pytest.approx(torchs(make, STEPS), abs=1e-6)


def test_plateau_is_torchs_with_the_reference_figures() -> None:
    scores = [0.1, 0.2, *[0.2] * 40, 0.3, *[0.1] * 30]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-3)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max", patience=10, factor=0.5, threshold=0, min_lr=1e-6
    )
    for number, score in enumerate(scores, 1):
        scheduler.step(score)
        ours = 1e-3 * plateau(at(5, scores=scores[:number]), lr=1e-3, patience=10, factor=0.5, floor=1e-6)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"])
    assert 1e-3 * plateau(at(5, scores=[0.0] * 1000), lr=1e-3) == pytest.approx(1e-6)


@pytest.mark.parametrize("schedule", [constant, cosine, step_decay, one_cycle, partial(plateau, lr=0.1)])
def test_a_warm_up_stands_in_front_of_any(schedule: object) -> None:
    shares = [schedule(at(s), warmup=10) for s in range(STEPS)]  # type: ignore[operator]
    first = shares[10]
    assert first == pytest.approx(0.04 if schedule is one_cycle else 1.0)
    assert shares[:10] == pytest.approx([first * (s + 1) / 10 for s in range(10)])
    assert all(0 <= share <= 1 for share in shares)


def test_groups_by_pattern_first_match_wins() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    make = partial(torch.optim.SGD, lr=1.0, weight_decay=0.1)
    patterns = {"biases": {"match": "*.bias", "weight_decay": 0.0}, "last": {"match": "1.*", "lr": 0.5}}
    groups = build_optimizer(network, make, patterns).param_groups
    assert [g["param_names"] for g in groups] == [["0.bias", "1.bias"], ["1.weight"], ["0.weight"]]
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(1.0, 0.0), (0.5, 0.1), (1.0, 0.1)]


def test_a_pattern_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(ConfigError, match="matches no parameter"):
        build_optimizer(nn.Linear(1, 1), partial(torch.optim.SGD, lr=1.0), {"typo": {"match": "*.biass"}})


@pytest.mark.parametrize("schedule", [constant, cosine, step_decay, one_cycle, triangle, partial(plateau, lr=0.1)])
def test_a_warm_up_below_one_is_a_share_of_the_steps(schedule: Callable[..., float]) -> None:
    shares = [schedule(at(s), warmup=0.25) for s in range(STEPS)]
    assert shares == [schedule(at(s), warmup=STEPS // 4) for s in range(STEPS)]
    assert shares != [schedule(at(s), warmup=0) for s in range(STEPS)]


def test_a_warm_up_of_half_the_run_is_told_of() -> None:
    def plan(steps: int | None) -> Plan:
        return Plan(steps=steps, limit_s=None, steps_per_epoch=10, min_delta=0.0, before_s=0.0, ranks=SingleProcess())

    assert "32 of the run's 32 steps" in str(plan(32).long_warm_up(100))
    assert "16 of the run's 32 steps" in str(plan(32).long_warm_up(16))
    assert plan(32).long_warm_up(15) is plan(32).long_warm_up(0.6) is plan(None).long_warm_up(100) is None


def test_early_stopping_waits_and_never_takes_a_nan_for_the_best() -> None:
    assert best_index([None, 0.1, None, 0.3, 0.3]) == 3
    assert best_index([None]) is None
    assert best_index([0.0, 0.0, 0.0], [3.0, 2.0, 2.5]) == 1, "of equal scores the lowest loss"
    assert best_index([0.0, 0.1, 0.1], [3.0, None, 2.5]) == 2 and best_index([0.2, 0.1], [3.0, 2.0]) == 0
    assert best_index([None, None], [3.0, 2.0]) is None and best_index([0.1, 0.1], [None, None]) == 0
    assert not should_stop([0.5, 0.4, 0.3], patience=3)
    assert should_stop([0.5, 0.4, 0.3, None], patience=3)
    assert should_stop([0.5, 0.505, 0.506], patience=2, min_delta=0.1)
    assert not should_stop([0.1] * 100, patience=None)


def test_finetune_trains_all_of_its_network_in_steps_and_has_epochs_left_for_it() -> None:
    tree = compose_command(["finetune", "dataset.root=photos"]).tree
    with torch.device("meta"):
        network = build_resnet(num_classes=3, **{k: tree["model"][k] for k in ("image_shape", "depth", "stem")})
    optimizer = build_optimizer(network, partial(torch.optim.Adam, lr=1e-3), tree["parameter_groups"])
    first = {id(p): g.get("from_step", 0) for g in optimizer.param_groups for p in g["params"]}
    steps = [first[id(p)] for p in network.parameters()]
    assert steps == sorted(steps, reverse=True), "later layers first"
    assert sorted(set(steps)) == [0, 1, 2, 3, 4] and max(steps) + 1 < tree["trainer"]["epochs"]


def test_a_group_rests_until_its_epoch_and_one_that_is_never_trained_for_ever() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 3), nn.Linear(3, 1))
    patterns = {
        "body": {"match": "[01].*", "from_epoch": "never"},
        "middle": {"match": "2.*", "from_epoch": 3, "lr": 0.5},
    }
    optimizer = build_optimizer(network, partial(torch.optim.AdamW, lr=0.1, weight_decay=0.1), patterns, 10)
    assert [g.get("from_step") for g in optimizer.param_groups] == [20, None]
    task = Classification(network)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    batch = Batch(torch.randn(8, 2), torch.zeros(8, dtype=torch.int64), torch.arange(8))
    steps = loop.train(task, itertools.repeat([batch]), {"model": optimizer}, first_step=18)
    changed = []
    for _ in range(3):  # the steps 19, 20 and 21
        next(steps)
        now = network.state_dict()
        changed.append({name.split(".")[0] for name, tensor in now.items() if not tensor.equal(before[name])})
    assert changed == [{"3"}, {"3"}, {"2", "3"}], "nor do the resting batch norm's running statistics move"


def test_a_network_that_rests_as_a_whole_is_refused() -> None:
    patterns = {"all": {"match": "*", "from_epoch": "never"}}
    with pytest.raises(ConfigError, match="no parameters to train"):
        build_optimizer(nn.Linear(1, 1), partial(torch.optim.SGD, lr=1.0), patterns)


def test_nothing_that_is_trained_in_the_first_epoch_is_refused() -> None:
    patterns = {"all": {"match": "*", "from_epoch": 3}}
    with pytest.raises(ConfigError, match="nothing is trained before epoch 3"):
        build_optimizer(nn.Linear(1, 1), partial(torch.optim.SGD, lr=1.0), patterns)


def test_an_l1_penalty_of_weights_that_all_rest_is_none() -> None:
    network = nn.Linear(2, 2)
    network.weight.requires_grad_(False)
    assert L1(0.5)(network) == 0.0
    network.weight.requires_grad_(True)
    assert L1(0.5)(network) == 0.5 * network.weight.abs().sum()
