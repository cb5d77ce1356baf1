"""Trials trained as one program: each like its twin trained alone, whatever becomes of the others."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from program import train_quickly
from torch import Tensor, nn

import dlcli
from dlcli.config import compose_command
from dlcli.datasets.batches.examples import Data
from dlcli.errors import ConfigError
from dlcli.evaluation import score
from dlcli.inference import trained
from dlcli.runs import checkpoint
from dlcli.runtime.device import Runtime, start_runtime
from dlcli.sweep.vectorized.batches import TrainBatches
from dlcli.sweep.vectorized.compatible import can_train_together, groups
from dlcli.sweep.vectorized.forward import FORWARDS
from dlcli.sweep.vectorized.layers import CannotStack, stack_layers
from dlcli.sweep.vectorized.probe import ONE_BY_ONE, Choice, choose, disagreement
from dlcli.sweep.vectorized.stack import Stack
from dlcli.sweep.vectorized.together import Together, losses
from dlcli.sweep.vectorized.train import Outcome, train_together
from dlcli.sweep.vectorized.trials import TrialResult, Trials
from dlcli.sweep.vectorized.update import build_rule
from dlcli.training import build
from dlcli.training.allow_list import Builder

SAME_START = 1.4e-6  # of a loss, over the first 10 steps: what is published
SAME_END = 5e-5  # of a loss, over 60 steps at learning rates that are stable: 4.8e-7 was measured
UNSTEADY_END = 5e-3  # the same with batch norm and momentum, which amplify rounding: 7.8e-4 was measured
CPU = Runtime(torch.device("cpu"), "fp32", 1)
BASE = (
    "digits",
    "runtime=cpu",
    "runtime.threads=1",
    "regularization=none",
    "trainer.max_steps=60",
    "trainer.eval_every=30",
)
MODELS = {
    "mlp": ("model=mlp", "model.hidden=[32]"),
    "cnn": ("model=simple_cnn", "model.channels=[4,8]", "model.hidden=[16]"),
    "cnn with batch norm": ("model=simple_cnn", "model.channels=[4,8]", "regularization.batch_norm=true"),
}
VARIANTS = (  # what may differ from trial to trial
    ("regularization.weight_decay=1e-3",),
    ("optimizer.lr=0.003",),
    ("regularization.label_smoothing=0.1", "optimizer.lr=0.005"),
    ("seed=1", "schedule=step", "schedule.every=1", "schedule.gamma=0.5"),
)
TOGETHER = tuple(FORWARDS)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def digits() -> Data:
    return build.build_data(Builder.for_search(), compose_command(list(BASE)).tree)


def trees_of(*words: str, variants: Sequence[Sequence[str]] = VARIANTS) -> list[dict[str, Any]]:
    return [compose_command([*BASE, *words, *own]).tree for own in variants]


def trained_as(way: str, trees: list[dict[str, Any]], data: Data, **named: Any) -> Outcome:
    return train_together(trees, Builder.for_search(), CPU, data=data, way=way, **named)


def drift(ours: TrialResult, twin: TrialResult, steps: int | None = None) -> float:
    """Largest difference of loss over the first steps."""
    assert ours.steps == twin.steps
    return (ours.losses - twin.losses)[:steps].abs().max().item()


# ---------------------------------------------------------------------------------------------------------------- twins


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
@pytest.mark.parametrize("model", MODELS)
def test_each_trial_starts_like_its_twin_and_ends_near_it(model: str, optimizer: str, digits: Data) -> None:
    trees = trees_of(*MODELS[model], f"optimizer={optimizer}")
    alone = trained_as(ONE_BY_ONE, trees, digits).trials
    assert len({result.losses[-1].item() for result in alone}) == len(trees), "the variants differ"
    for way in TOGETHER:
        pairs = list(zip(trained_as(way, trees, digits).trials, alone, strict=True))
        starts = [drift(ours, twin, 10) <= SAME_START for ours, twin in pairs]
        ends = [is_near(ours, twin, UNSTEADY_END if "batch norm" in model else SAME_END) for ours, twin in pairs]
        # One may part from its twin early: at a ReLU whose input is 0 to rounding, the gradient has two values.
        assert sum(starts) >= len(trees) - 1 and sum(ends) >= len(trees) - 1, (way, starts, ends)
        assert all(drift(ours, twin) < 0.3 for ours, twin in pairs)


def is_near(ours: TrialResult, twin: TrialResult, tolerance: float) -> bool:
    """In every loss of the training, in the evaluations and in the scores on the test split."""
    steps = [entry["step"] for entry in ours.evaluations] == [entry["step"] for entry in twin.evaluations] == [30, 60]
    off = [
        abs(ours.test["accuracy"] - twin.test["accuracy"]) / 0.003,
        abs(ours.test["loss"] - twin.test["loss"]) / tolerance,
    ]
    return steps and drift(ours, twin) <= tolerance and max(off) <= 1 and ours.best == twin.best


def test_one_by_one_is_what_dlcli_train_does_to_the_last_bit(tmp_path: Path, digits: Data) -> None:
    words = ("regularization.dropout=0.3", "regularization.ema=0.9", "trainer.max_steps=60", "trainer.eval_every=30")
    end = train_quickly(tmp_path, *words)
    (result,) = trained_as(
        ONE_BY_ONE, [compose_command(["digits", "runtime=cpu", "runtime.threads=1", *words]).tree], digits
    ).trials
    stored = checkpoint.read(Path(end["run"], "checkpoints", "best"))
    assert result.weights is not None and result.weights.keys() == stored.weights.keys()
    assert all(torch.equal(result.weights[name], tensor) for name, tensor in stored.weights.items())
    assert {f"test/{name}": value for name, value in result.test.items()}.items() <= end["metrics"].items()


@pytest.mark.parametrize("way", TOGETHER)
@pytest.mark.parametrize(
    "words",
    [
        ("regularization.clip_norm=0.5",),
        ("regularization.l1=1e-4",),
        ("regularization.ema=0.9",),
        ("optimizer=nesterov", "augmentation=light"),
        ("optimizer=adamw", "regularization.weight_decay=0.1"),
        ("task.test_time_augmentation.mirror=true", "task.test_time_augmentation.shift=1"),
        (
            "optimizer=momentum",
            "optimizer.momentum=0.5",
            "regularization.weight_decay=0.1",
            "parameter_groups.b.match=*.bias",
            "parameter_groups.b.weight_decay=0.0",
        ),
        ("schedule=plateau", "schedule.patience=0", "trainer.eval_every=10"),
    ],
    ids=lambda words: words[0],
)
def test_what_else_a_run_may_ask_for_is_done_too(way: str, words: tuple[str, ...], digits: Data) -> None:
    variants = [
        ("seed=1",),
        (*words, "seed=1") if words[0].startswith("regularization") else ("seed=2", "optimizer.lr=0.01"),
    ]
    common = () if words[0].startswith("regularization") else words
    trees = trees_of(*MODELS["mlp"], *common, variants=variants)
    alone = trained_as(ONE_BY_ONE, trees, digits).trials
    for ours, twin in zip(trained_as(way, trees, digits).trials, alone, strict=True):
        assert drift(ours, twin) <= SAME_END
        assert ours.test["loss"] == pytest.approx(twin.test["loss"], abs=SAME_END)
        assert ours.weights is not None and twin.weights is not None
        for name, tensor in twin.weights.items():
            torch.testing.assert_close(ours.weights[name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("way", TOGETHER)
def test_a_trial_that_stops_early_keeps_what_it_was_then(way: str, digits: Data) -> None:
    stop = ("regularization.early_stopping.patience=1", "optimizer.lr=1e-9", "trainer.monitor=val/accuracy")
    trees = trees_of(*MODELS["mlp"], "trainer.eval_every=10", variants=[stop, ()])
    trees[1]["trainer"]["monitor"] = "val/accuracy"
    stopped, free = trained_as(way, trees, digits).trials
    assert (stopped.stopped_at, stopped.steps, len(stopped.evaluations)) == (20, 20, 2)
    losses = [evaluation["scores"]["loss"] for evaluation in stopped.evaluations]
    assert stopped.best == losses.index(min(losses)), "of equal scores the lower loss"
    assert (free.stopped_at, free.steps, len(free.evaluations)) == (None, 60, 6)


# ----------------------------------------------------------------------------------------------------------- divergence


@pytest.mark.parametrize("way", [ONE_BY_ONE, *TOGETHER])
def test_a_trial_that_diverges_is_reported_with_its_step_and_touches_no_other(way: str, digits: Data) -> None:
    sick, well = ("optimizer.lr=1000", "regularization.weight_decay=1000"), ("optimizer.lr=0.02",)
    words = (*MODELS["cnn with batch norm"], "optimizer=momentum")
    trees = [trees_of(*words, variants=[(), second, ("optimizer.lr=0.01",)]) for second in (sick, well)]
    results, healthy = (trained_as(way, own, digits).trials for own in trees)
    (alone,) = trained_as(ONE_BY_ONE, trees[0][1:2], digits).trials
    assert results[1].diverged_at == alone.diverged_at is not None
    assert results[1].steps == results[1].diverged_at - 1 and torch.isfinite(results[1].losses).all()
    assert results[1].weights is None and results[1].test == {}
    for trial in (0, 2):
        assert torch.equal(results[trial].losses, healthy[trial].losses)
        assert results[trial].test == healthy[trial].test and results[trial].diverged_at is None


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "nesterov", "adam", "adamw"])
def test_a_trial_that_has_diverged_keeps_its_weights_to_the_last_bit(optimizer: str, digits: Data) -> None:
    trees = trees_of(*MODELS["mlp"], f"optimizer={optimizer}", variants=[("regularization.weight_decay=0.1",)] * 2)
    together = Together(Trials(trees, Builder.for_search(), CPU, digits), "layers")
    together.take_steps(5)
    together.smoothing_T[1] = math.nan  # its loss, and only its
    before = {name: p.detach().clone() for name, p in together.stack.parameters.items()}
    together.take_steps(5)
    assert together.alive_T.tolist() == [True, False] and together.bad_step_T.tolist() == [0, 6]
    for name, parameter in together.stack.parameters.items():
        assert torch.equal(parameter[1], before[name][1])
        assert not torch.equal(parameter[0], before[name][0])


# ---------------------------------------------------------------------------------------------------------- the parts


RULES = {
    "sgd": partial(torch.optim.SGD, weight_decay=0.01),
    "momentum": partial(torch.optim.SGD, momentum=0.9),
    "nesterov": partial(torch.optim.SGD, momentum=0.8, nesterov=True, weight_decay=0.01),
    "adam": partial(torch.optim.Adam, weight_decay=0.01),
    "adam, other betas": partial(torch.optim.Adam, betas=(0.5, 0.9), eps=1e-4),
    "adamw": partial(torch.optim.AdamW, weight_decay=0.1),
}


@pytest.mark.parametrize("name", RULES)
def test_an_update_is_that_of_torch_optim_for_each_trial(name: str) -> None:
    g = torch.Generator().manual_seed(0)
    shapes = {"a": (3, 4), "b": (4,), "frozen lr": ()}
    own = [{key: torch.randn(shape, generator=g) for key, shape in shapes.items()} for _ in range(3)]
    stacked = {key: torch.stack([tensors[key] for tensors in own]) for key in shapes}
    twins = [{key: nn.Parameter(tensor.clone()) for key, tensor in tensors.items()} for tensors in own]
    optimizers = [
        RULES[name](
            [
                {"params": [("a", twin["a"]), ("b", twin["b"])]},
                {"params": [("frozen lr", twin["frozen lr"])], "lr": 0.0},
            ],
            lr=lr,
        )
        for twin, lr in zip(twins, (0.1, 0.01, 0.03), strict=True)
    ]
    base = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    rule = build_rule(stacked, optimizers)
    scale_ST = torch.rand(20, 3, generator=g, dtype=torch.float64)
    for first in (0, 10):  # in two stretches
        rule.prepare(scale_ST[first : first + 10], first)
        for row in range(10):
            gradients = {key: torch.randn(3, *shape, generator=g) for key, shape in shapes.items()}
            for trial, (optimizer, twin) in enumerate(zip(optimizers, twins, strict=True)):
                for group, lr in zip(optimizer.param_groups, base[trial], strict=True):
                    group["lr"] = lr * scale_ST[first + row, trial].item()
                for key, parameter in twin.items():
                    parameter.grad = gradients[key][trial].clone()
                optimizer.step()
            rule.update(row, gradients, None)
    for trial, twin in enumerate(twins):
        for key, parameter in twin.items():
            torch.testing.assert_close(stacked[key][trial], parameter.detach(), rtol=2e-5, atol=2e-6)


def test_a_loss_has_its_own_label_smoothing() -> None:
    g = torch.Generator().manual_seed(0)
    logits_BTK, labels = torch.randn(8, 3, 5, generator=g), torch.randint(5, (8,), generator=g)
    found = losses(logits_BTK, labels, torch.tensor([0.0, 0.1, 0.5]))
    expected = [F.cross_entropy(logits_BTK[:, t], labels, label_smoothing=s) for t, s in enumerate((0.0, 0.1, 0.5))]
    torch.testing.assert_close(found, torch.stack(expected))


@pytest.mark.parametrize("augmentation", ["none", "light", "flip_shift"])
@pytest.mark.parametrize("seeds", [(3, 3), (3, 4)], ids=["one seed", "two seeds"])
def test_batches_are_those_of_the_trials_own_sources(augmentation: str, seeds: tuple[int, int], digits: Data) -> None:
    words = (f"augmentation={augmentation}", *(["augmentation.flip=alternate"] if augmentation == "flip_shift" else []))
    trials = Trials(trees_of(*words, variants=[(f"seed={seed}",) for seed in seeds]), Builder.for_search(), CPU, digits)
    sources = [trials.train_source(trial).from_step(0) for trial in range(2)]
    batches = iter(trials.train_batches())
    for _ in range(2 * trials.steps_per_epoch + 1):
        images, labels = next(batches)
        for trial, source in enumerate(sources):
            (batch,) = next(source)
            assert torch.equal(images if labels.dim() == 1 else images[:, trial], batch.images)
            assert torch.equal(labels if labels.dim() == 1 else labels[:, trial], batch.labels)


def test_trials_of_one_seed_share_their_batches(digits: Data) -> None:
    trials = Trials(trees_of(variants=[(), ("optimizer.lr=0.1",)]), Builder.for_search(), CPU, digits)
    images, labels = next(iter(trials.train_batches()))
    assert isinstance(trials.train_batches(), TrainBatches)
    assert (images.shape, labels.shape) == ((64, 1, 8, 8), (64,))


STACKED = {
    "mlp": ("model=mlp", "regularization.batch_norm=true"),
    "simple_cnn": ("model=simple_cnn", "model.channels=[4,8]"),
    "mnist_net": ("model=mnist_net",),
    "lenet5": ("model=lenet5", "dataset.image_shape=[1,28,28]", "regularization.batch_norm=true"),
    "resnet": ("model=resnet", "dataset.image_shape=[3,16,16]"),
}


@pytest.mark.parametrize("is_shared", [True, False], ids=["same images", "own images"])
@pytest.mark.parametrize("way", TOGETHER)
@pytest.mark.parametrize("model", STACKED)
def test_our_networks_run_stacked_as_they_run_alone(model: str, way: str, is_shared: bool) -> None:
    tree = compose_command(["mnist", "regularization=none", *STACKED[model]]).tree
    builder = Builder.for_search()
    networks = []
    for seed in range(3):
        torch.manual_seed(seed)
        networks.append(build.build_networks(builder, tree["model"])["model"].train())
    shape = tree["dataset"]["image_shape"]
    images = torch.randn(4, *shape) if is_shared else torch.randn(4, 3, *shape)
    forward = FORWARDS[way](Stack(networks, torch.device("cpu")))
    forward.network.train()
    logits_BTK = forward(images)
    for trial, network in enumerate(networks):
        alone = network(images if is_shared else images[:, trial])
        torch.testing.assert_close(logits_BTK[:, trial], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("way", TOGETHER)
@pytest.mark.parametrize("is_shared", [True, False], ids=["same images", "own images"])
def test_each_trial_has_its_own_share_of_dropout(way: str, is_shared: bool) -> None:
    shares = (0.0, 0.2, 0.7)
    networks = [nn.Sequential(nn.Conv2d(1, 40, 1), nn.Dropout(p), nn.Flatten()) for p in shares]
    for network in networks:
        nn.init.zeros_(network[0].weight), nn.init.ones_(network[0].bias)
    forward = FORWARDS[way](Stack(networks, torch.device("cpu")))
    torch.manual_seed(0)
    images = torch.zeros(50, 1, 5, 5) if is_shared else torch.zeros(50, 3, 1, 5, 5)
    forward.network.train()
    out = forward(images)
    for trial, p in enumerate(shares):
        kept = out[:, trial][out[:, trial] != 0]
        assert 1 - len(kept) / out[:, trial].numel() == pytest.approx(p, abs=0.01)  # 50,000 draws
        torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - p)))
    forward.network.eval()
    assert torch.equal(forward(images), torch.ones_like(out))


def test_trials_with_the_same_dropout_draw_apart(digits: Data) -> None:
    networks = [nn.Sequential(nn.Flatten(), nn.Linear(4, 100), nn.Dropout(0.5)) for _ in range(2)]
    for network in networks:
        nn.init.zeros_(network[1].weight), nn.init.ones_(network[1].bias)
    for way in TOGETHER:
        forward = FORWARDS[way](Stack(networks, torch.device("cpu")))
        forward.network.train()
        out = forward(torch.zeros(8, 1, 2, 2))
        assert not torch.equal(out[:, 0], out[:, 1])


# ----------------------------------------------------------------------------------------------------- what cannot be


HINDRANCES = {
    "task": ("digits_gan",),
    "optimizer: torch.optim.RMSprop": ("digits", "optimizer=rmsprop"),
    "task.mixup=0.2": ("digits", "regularization.mixup=0.2"),
    "trainer.accumulate_grad_batches=2": ("digits", "trainer.accumulate_grad_batches=2"),
    "trainer.max_time=10s": ("digits", "trainer.max_time=10s"),
    "dataset.in_memory=auto dataset.num_workers=2": ("digits", "dataset.num_workers=2"),
    "runtime.compile=true": ("digits", "runtime.compile=true"),
}


@pytest.mark.parametrize("said", HINDRANCES)
def test_the_setting_that_hinders_is_named(said: str) -> None:
    tree = compose_command(list(HINDRANCES[said])).tree
    assert (can_train_together([tree, tree]) or "").startswith(said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("model.hidden=[64]", "model.hidden is [512, 256] in trial 0 and [64] in trial 1"),
        ("dataset.batch_size=32", "dataset.batch_size"),
        ("optimizer=sgd", "optimizer._target_"),
        ("trainer.epochs=3", "trainer.epochs"),
        ("regularization.dropout=0.5", "model.dropout is off in trial 0 and on in trial 1"),
        ("augmentation=light", "augmentation.rotation"),
    ],
)
def test_the_setting_that_differs_is_named(words: str, said: str) -> None:
    trees = [compose_command(["digits", "regularization=none", *own]).tree for own in ([], [words])]
    assert said in (can_train_together(trees) or "")
    assert groups(trees) == [[0], [1]]


def test_numbers_may_differ_and_groups_are_found() -> None:
    trees = trees_of()
    assert can_train_together(trees) is None
    other = [compose_command(["digits", "model.hidden=[8]", own]).tree for own in ("seed=1", "seed=2")]
    rms = compose_command(["digits", "optimizer=rmsprop"]).tree
    assert groups([trees[0], other[0], trees[1], rms, other[1], rms]) == [[0, 2], [1, 4], [3], [5]]


def test_what_cannot_be_trained_together_is_refused_with_a_remedy(digits: Data) -> None:
    with pytest.raises(ConfigError, match=r"model\.hidden") as caught:
        trained_as(ONE_BY_ONE, trees_of(variants=[("model.hidden=[4]",), ("model.hidden=[5]",)]), digits)
    assert caught.value.hint == "Train them one by one."
    with pytest.raises(ConfigError, match="way=fast"):
        trained_as("fast", trees_of(), digits)


# -------------------------------------------------------------------------------------------------------------- probing


class Sidelong(nn.Module):
    """Divides by a sum over its channels: over those of all trials, where they lie side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4 * 36, 10)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.fc(self.conv(images_BCHW).softmax(1).flatten(1))


class Counting(nn.Module):
    """Has parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.fc = nn.Parameter(torch.ones(64)), nn.Linear(64, 10)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.fc(images_BCHW.flatten(1) * self.scale)


def with_model(name: str, *words: str) -> list[dict[str, Any]]:
    trees = trees_of(*words, variants=[("seed=1",), ("seed=2",)])
    for tree in trees:
        tree["model"] = {"_target_": f"{__name__}.{name}", "facts": {"kind": "classifier"}}
    return trees


def test_the_probe_measures_every_way_and_chooses_one_of_them(digits: Data) -> None:
    trees = trees_of(*MODELS["mlp"], "trainer.max_steps=100")
    trials = Trials(trees, Builder.for_search(), CPU, digits)
    state = torch.get_rng_state()
    choice = choose(trials)
    assert set(choice.step_s) == {ONE_BY_ONE, *TOGETHER} and all(s > 0 for s in choice.step_s.values())
    assert choice.way in choice.step_s and choice.refused == {}
    assert choice.way in str(choice) and "ms" in str(choice) and "CPU time" in str(choice)
    assert torch.equal(state, torch.get_rng_state())
    assert all(result.steps == 0 and result.is_running for result in trials.results)


def test_a_short_training_is_not_probed(digits: Data) -> None:
    assert choose(Trials(trees_of(), Builder.for_search(), CPU, digits)) == Choice(ONE_BY_ONE, 4, "CPU time")


def test_a_network_that_mixes_its_trials_is_found_out(digits: Data) -> None:
    builder = Builder(frozenset(Builder.for_search().allowed), trusted=[__name__])
    trials = Trials(with_model("Sidelong", "trainer.max_steps=100"), builder, CPU, digits)
    assert "alone" in (disagreement(Together(trials, "layers")) or "")
    assert disagreement(Together(trials, "vmap")) is None
    choice = choose(trials)
    assert set(choice.step_s) == {ONE_BY_ONE, "vmap"} and "layers not: the loss of trial 0" in str(choice)


def test_a_layer_without_a_stacked_form_is_named(digits: Data) -> None:
    builder = Builder(frozenset(Builder.for_search().allowed), trusted=[__name__])
    trees = with_model("Counting")
    with pytest.raises(CannotStack, match="Counting"):
        stack_layers(Stack([Counting(), Counting()], torch.device("cpu")))
    with pytest.raises(ConfigError, match="way=layers: Counting"):
        train_together(trees, builder, CPU, data=digits, way="layers")
    alone, together = (train_together(trees, builder, CPU, data=digits, way=way).trials for way in (ONE_BY_ONE, "vmap"))
    assert all(drift(ours, twin) <= SAME_END for ours, twin in zip(together, alone, strict=True))


# -------------------------------------------------------------------------------------------------------------- the end


def test_weights_come_out_as_an_ordinary_checkpoint(tmp_path: Path, digits: Data) -> None:
    trees = trees_of(*MODELS["cnn with batch norm"])
    result = trained_as("layers", trees, digits).trials[3]
    assert result.weights is not None and result.best is not None
    body = {
        "dlcli": dlcli.__version__, "run": "together", "experiment": "digits", "config": trees[3], "teacher": None,
        "classes": list(digits.classes), "majority": None, "data": digits.fingerprints(),
        "environment": CPU.fingerprint(), "state": {},
    }  # fmt: skip
    step = result.evaluations[result.best]["step"]
    folder = checkpoint.save(tmp_path, step, result.weights, {}, json.loads(json.dumps(body)))
    network = trained.load(folder, builder=Builder.for_search())
    report = score.score(network, digits, "test")
    assert report.metrics["accuracy"] == result.test["accuracy"]
    assert report.metrics["loss"] == pytest.approx(result.test["loss"], abs=1e-6)
    val = score.score(network, digits, "val")
    assert val.metrics["loss"] == pytest.approx(result.evaluations[result.best]["scores"]["loss"], abs=1e-6)


@pytest.mark.parametrize("way", [ONE_BY_ONE, *TOGETHER])
def test_progress_counts_the_updates_of_all_trials_and_random_numbers_stay(way: str, digits: Data) -> None:
    seen: list[tuple[int, int]] = []
    state = torch.get_rng_state()
    trained_as(way, trees_of(*MODELS["mlp"]), digits, progress=lambda done, total, trials: seen.append((done, total)))
    assert seen == sorted(seen) and seen[-1] == (240, 240)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("way", [ONE_BY_ONE, *TOGETHER])
def test_the_same_trials_repeat_to_the_last_bit(way: str, digits: Data) -> None:
    trees = trees_of(*MODELS["mlp"], variants=[("regularization.dropout=0.2",), ("regularization.dropout=0.4",)])
    first, second = (trained_as(way, trees, digits).trials for _ in range(2))
    assert all(torch.equal(a.losses, b.losses) for a, b in zip(first, second, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu_a_trial_is_near_its_twin_too(model: str, precision: str, digits: Data) -> None:
    sick = ("optimizer.lr=1000", "regularization.weight_decay=1000")
    trees = trees_of(*MODELS[model], "optimizer=momentum", "runtime.device=cuda", variants=[*VARIANTS, sick])
    runtime = start_runtime({**trees[0]["runtime"], "precision": precision})
    alone, *others = (
        train_together(trees, Builder.for_search(), runtime, data=digits, way=way).trials
        for way in (ONE_BY_ONE, *TOGETHER)
    )
    for results in others:
        assert results[-1].diverged_at is not None
        for ours, twin in zip(results[:-1], alone[:-1], strict=True):
            assert drift(ours, twin, 10) <= (1e-4 if precision == "fp32" else 0.1)
            assert ours.test["accuracy"] == pytest.approx(twin.test["accuracy"], abs=0.02)
