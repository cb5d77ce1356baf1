"""Many trials as one program against the same trials one after another: by hand, by dlcli's own loop, and together.

Trials are 4 learning rates x 4 weight decays (8 x 8 on a GPU), SGD with momentum 0.9, batch 64, on 10,000 images of
MNIST, or on the digits. All sides take turns in one process; CPU time of one thread, on a GPU wall time, synchronised.
What is timed is training; evaluation, which together costs less too, is left out. The second table says how far trials
drift from their twins trained alone, in 156 steps: rounding, which a learning rate that is too large amplifies.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from dlcli.config import compose_command
from dlcli.runtime.device import start_runtime
from dlcli.sweep.vectorized.forward import FORWARDS
from dlcli.sweep.vectorized.one_by_one import OrdinaryTrial
from dlcli.sweep.vectorized.probe import ONE_BY_ONE, choose, clock_of
from dlcli.sweep.vectorized.together import Together
from dlcli.sweep.vectorized.train import train_together
from dlcli.sweep.vectorized.trials import Trials
from dlcli.training.allow_list import Builder
from tests.bench.measure import ratios, spread, table

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STEPS = 156  # of a trial: an epoch
LRS, DECAYS = (0.01, 0.02, 0.05, 0.1), (0.0, 1e-4, 5e-4, 1e-3)
MNIST = ("mnist", "dataset.val_size=50000")
NETWORKS = {  # name -> the words, rounds, steps of a round
    "MLP 64-32-10, digits": (("digits", "model=mlp", "model.hidden=[32]"), 10, 40),
    "MLP 784-64-10": ((*MNIST, "model=mlp", "model.hidden=[64]"), 10, 20),
    "CNN 16-32": ((*MNIST, "model=simple_cnn", "model.channels=[16,32]", "model.hidden=[]"), 5, 4),
}


def trees(words: tuple[str, ...], per_side: int, *more: str) -> list[dict[str, Any]]:
    common = (
        *words, "optimizer=momentum", "schedule=constant", "regularization=none", "runtime=cpu", "runtime.threads=1",
        f"runtime.device={DEVICE}", f"trainer.max_steps={STEPS}", f"trainer.eval_every={STEPS}",
    )  # fmt: skip
    first = compose_command([*common, *more]).tree
    found = []
    for number in range(per_side**2):
        lr, decay = LRS[number // per_side % 4] / (1 + number // per_side // 4), DECAYS[number % per_side % 4]
        optimizer = {**first["optimizer"], "lr": lr, "weight_decay": decay}
        found.append(
            {**first, "optimizer": optimizer, "regularization": {**first["regularization"], "weight_decay": decay}}
        )
    return found


def by_hand(trials: Trials) -> Iterator[None]:
    """A loop as people write it, of one trial."""
    tree, device = trials.trees[0], trials.runtime.device
    network: nn.Module = trials.build_task(0).model.to(device)
    settings, examples = tree["dataset"], trials.data.train
    assert examples.images is not None
    images, labels = examples.images[trials.train_rows[0]].to(device), examples.labels[trials.train_rows[0]].to(device)
    mean, std = (torch.tensor(settings[key], device=device).view(1, -1, 1, 1) for key in ("mean", "std"))
    own = tree["optimizer"]
    optimizer = torch.optim.SGD(network.parameters(), lr=own["lr"], momentum=0.9, weight_decay=own["weight_decay"])
    while True:
        for rows in torch.randperm(len(labels), device=device).split(64):
            optimizer.zero_grad()
            F.cross_entropy(network((images[rows].float() / 255 - mean) / std), labels[rows]).backward()
            optimizer.step()
            yield


def speed(name: str, per_side: int) -> list[tuple[object, ...]]:
    words, rounds, steps = NETWORKS[name]
    own = trees(words, per_side)
    trials = Trials(own, Builder.for_search(), start_runtime(own[0]["runtime"]))
    clock, count = clock_of(trials.runtime.device)[0], len(own)
    hand, ordinary = by_hand(trials), OrdinaryTrial(trials, 0)
    sides: dict[str, tuple[Callable[[int], object], int]] = {  # steps, and how many times one is a step of all trials
        "by hand": (lambda n: list(islice(hand, n)), count),
        ONE_BY_ONE: (ordinary.take_steps, count),
        **{way: (Together(trials, way).take_steps, 1) for way in FORWARDS},
    }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds + 1):  # the first warms up
        for side, (take, share) in sides.items():
            n = min(steps * share, 4 * steps)
            start = clock()
            take(n)
            if number:
                seconds[side].append((clock() - start) / n * share)
    choice = choose(Trials(own, Builder.for_search(), trials.runtime))
    return [
        (
            f"{name}, {count} trials" if side == "by hand" else "",
            f"{side} (chosen by the probe)" if side == choice.way else side,
            f"{1e3 * statistics.median(own_s):.2f}",
            f"{60 * count / STEPS / statistics.median(own_s):,.0f}",
            spread(ratios(seconds["by hand"], own_s), 2),
            spread(ratios(seconds[ONE_BY_ONE], own_s), 2),
        )
        for side, own_s in seconds.items()
    ]


def fidelity(name: str) -> list[tuple[object, ...]]:
    """Largest difference of a trial's loss from its twin's, by learning rate; and of its test accuracy."""
    own = trees(NETWORKS[name][0], 4)
    train = partial(train_together, own, Builder.for_search(), start_runtime(own[0]["runtime"]))
    twins = train(way=ONE_BY_ONE).trials
    rows: list[tuple[object, ...]] = []
    for way in FORWARDS:
        found = train(way=way).trials
        for start, lr in zip(range(0, 16, 4), LRS, strict=True):
            pairs = list(zip(found[start : start + 4], twins[start : start + 4], strict=True))
            off = [(a.losses - b.losses).abs() for a, b in pairs]
            accuracy = [abs(a.test["accuracy"] - b.test["accuracy"]) for a, b in pairs]
            first, every = max(x[:10].max().item() for x in off), max(x.max().item() for x in off)
            rows.append((name, way, lr, f"{first:.1e}", f"{every:.1e}", f"{100 * max(accuracy):.2f} points"))
    return rows


def run() -> str:
    """Sixteen trials as one program against one after another, and how far they drift apart."""
    torch.set_num_threads(1)
    sides = (4, 8) if DEVICE == "cuda" else (4,)
    time = "wall time on a GPU" if DEVICE == "cuda" else "CPU time of one thread"
    speeds = [row for name in NETWORKS for per_side in sides for row in speed(name, per_side)]
    drifts = [row for name in NETWORKS for row in fidelity(name)]
    head = ("", "trained", "ms a step of all", f"trials a minute ({STEPS} steps)", "x by hand", f"x {ONE_BY_ONE}")
    second = ("", "trained", "lr", "loss, first 10 steps", f"loss, {STEPS} steps", "test accuracy")
    return "\n".join(
        [
            f"Medians (least to most) of paired rounds, {time}; {ONE_BY_ONE} is dlcli's own loop.", "",
            table(head, speeds), "", "Largest difference from the twin trained alone:", "", table(second, drifts),
        ]
    )  # fmt: skip
