"""What the experiments tuned for time to accuracy are made of, that they learn, and (slow) what they claim."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from program import dlcli, events_of
from torch import Tensor, nn

from dlcli.config import compose_command
from dlcli.config.folders import packaged_conf
from dlcli.datasets.augmentation import Augment
from dlcli.datasets.batches.examples import Batch, Data, in_memory
from dlcli.datasets.batches.keyed_random import mirror_turns, sample_keys, uniform
from dlcli.datasets.batches.source import TrainSource
from dlcli.errors import ConfigError
from dlcli.models.fast_cnn import FastCNN
from dlcli.models.whitened_cnn import WhitenedCNN
from dlcli.optimizers.schedules import Position, triangle
from dlcli.tasks.classification import Classification, move
from dlcli.training import build
from dlcli.training.allow_list import Builder

ROWS = torch.arange(64)


def images(count: int = 64, channels: int = 3, height: int = 12, width: int = 10) -> Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(0))


# --------------------------------------------------------------------------------------------------------- augmentation


@pytest.mark.parametrize("edge", ["zeros", "reflect"])
@pytest.mark.parametrize("settings", [{"shift": 3}, {"shift": 2, "flip": 0.5}, {"shift": 11}, {"flip": 0.5}])
def test_copied_pixels_are_those_that_sampling_would_round(settings: dict, edge: str) -> None:
    augment, batch, keys = Augment(**settings, padding_mode=edge), images(), sample_keys(0, 0, ROWS)
    draws = dict(zip(augment.draws, uniform(keys, augment._streams).unbind(1), strict=True))
    copied = augment(batch, keys)
    torch.testing.assert_close(copied, augment._warp(batch, draws), rtol=0, atol=1e-5)
    values = set(batch.flatten().tolist()) | {0.0}
    assert set(copied.flatten().tolist()) <= values, "no pixel is rounded"


def test_a_mirrored_edge_lets_no_black_in() -> None:
    white = torch.ones(200, 1, 8, 8)
    keys = sample_keys(0, 0, torch.arange(200))
    assert Augment(shift=3, padding_mode="reflect")(white, keys).equal(white)
    assert Augment(shift=3)(white, keys).min() == 0
    with pytest.raises(ConfigError, match="padding_mode"):
        Augment(shift=3, padding_mode="grey")


def test_alternating_flips_mirror_every_image_in_every_other_epoch() -> None:
    turns = torch.stack([mirror_turns(3, epoch, torch.arange(10_000)) for epoch in range(4)])
    assert turns[0].equal(~turns[1]) and turns[0].equal(turns[2]) and turns[1].equal(turns[3])
    assert turns[0].float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert not turns[0].equal(mirror_turns(4, 0, torch.arange(10_000))), "another seed, another beginning"
    augment, batch = Augment(flip="alternate"), images()
    for epoch in range(2):
        turns_B = mirror_turns(0, epoch, ROWS)
        augmented = augment(batch, sample_keys(0, epoch, ROWS), turns_B)
        assert augmented[turns_B].equal(batch[turns_B].flip(-1)) and augmented[~turns_B].equal(batch[~turns_B])
    rotated = Augment(flip="alternate", rotation=0.001)(batch, sample_keys(0, 0, ROWS), mirror_turns(0, 0, ROWS))
    torch.testing.assert_close(
        rotated, augment(batch, sample_keys(0, 0, ROWS), mirror_turns(0, 0, ROWS)), atol=1e-3, rtol=0
    )


def test_a_source_shows_both_sides_of_each_image_in_two_epochs() -> None:
    pixels = torch.randint(0, 256, (20, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    examples = in_memory(pixels.numpy(), torch.zeros(20, dtype=torch.int64).numpy())
    source = TrainSource(
        examples, torch.arange(20), batch_size=8, accumulate=1, seed=0, device="cpu", mean=[0.0], std=[1.0],
        augment=Augment(flip="alternate"), resident=True,
    )  # fmt: skip
    seen: dict[int, list[Tensor]] = {row: [] for row in range(20)}
    batches = source.from_step(0)
    for _ in range(2 * source.steps_per_epoch):
        for batch in next(batches):
            for image, row in zip(batch.images, batch.index.tolist(), strict=True):
                seen[row].append(image)
    for first, second in seen.values():
        assert first.equal(second.flip(-1)) and not first.equal(second)


# ----------------------------------------------------------------------------------------------- test-time augmentation


class Corners(nn.Module):
    """Logits: the four corner pixels of each image."""

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return images_BCHW[:, 0, :: images_BCHW.shape[2] - 1, :: images_BCHW.shape[3] - 1].flatten(1)


def test_answers_are_means_over_the_views_that_were_asked_for() -> None:
    batch = images(8, channels=1)
    plain = Classification(Corners()).answer(batch)
    assert plain.equal(Corners()(batch))
    mirrored = Classification(Corners(), test_time_augmentation={"mirror": True, "shift": 0}).answer(batch)
    torch.testing.assert_close(mirrored, (plain + plain[:, [1, 0, 3, 2]]) / 2)
    moved = Classification(Corners(), test_time_augmentation={"mirror": False, "shift": 1}).answer(batch)
    expected = batch[:, 0, -1, -1] * 0.75 + batch[:, 0, -2, -2] * 0.25  # the edge stays, or its neighbour comes
    torch.testing.assert_close(moved[:, 3], expected)


def test_a_moved_image_keeps_its_edge_pixels_in_the_gap() -> None:
    batch = images(2)
    down = move(batch, 2)
    assert down[:, :, 2:, 2:].equal(batch[:, :, :-2, :-2]) and down[:, :, 0, 5].equal(batch[:, :, 0, 3])
    assert move(batch, -2)[:, :, :-2, :-2].equal(batch[:, :, 2:, 2:])


def test_views_count_in_metrics_and_predictions_and_not_in_the_loss() -> None:
    batch = Batch(images(8, channels=1), torch.arange(8) % 4, torch.arange(8))
    plain = Classification(Corners())
    both = Classification(Corners(), test_time_augmentation={"mirror": True, "shift": 1})
    assert both.loss(batch, "model")[0].equal(plain.loss(batch, "model")[0])
    assert not both.metrics(batch)["loss"].equal(plain.metrics(batch)["loss"])
    torch.testing.assert_close(both.predict(batch.images), both.answer(batch.images).softmax(1))


# --------------------------------------------------------------------------------------------------------- the networks


def test_the_whitening_convolution_gives_uncorrelated_outputs_of_variance_one() -> None:
    smooth = F.avg_pool2d(torch.randn(200, 3, 18, 18, generator=torch.Generator().manual_seed(0)), 3, 1)
    network = WhitenedCNN(num_classes=10, image_shape=[3, 16, 16], widths=[8])
    network.prepare(smooth)
    outputs = F.conv2d(smooth, network.whiten.weight).transpose(0, 1).flatten(1)
    half = len(outputs) // 2
    assert outputs[:half].equal(-outputs[half:])
    second_moments = outputs[:half] @ outputs[:half].T / outputs.shape[1]
    off = second_moments - torch.diag(second_moments.diagonal())
    assert off.abs().max() < 1e-3
    assert second_moments.diagonal().max() < 1.001 and second_moments.diagonal().min() > 0.5


def test_the_whitened_network_is_airbenchs() -> None:
    network = WhitenedCNN(num_classes=10, image_shape=[3, 32, 32])
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    filters = 9 * (24 * 64 + 64 * 64 + 64 * 256 + 256 * 256 + 256 * 256 + 256 * 256)
    assert trained == filters + 24 + 2 * (64 + 256 + 256) + 256 * 10
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert network.blocks[0].conv1.weight[:24].flatten(1).count_nonzero(1).tolist() == [1] * 24, "filters that copy"


def test_three_widths_make_a_fast_cnn_and_others_are_told() -> None:
    assert FastCNN(num_classes=10, image_shape=[1, 28, 28])(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    with pytest.raises(ConfigError, match="widths"):
        FastCNN(num_classes=10, image_shape=[1, 28, 28], widths=[16, 32])


def test_only_networks_that_prepare_themselves_are_shown_training_images() -> None:
    tree = compose_command(["cifar10_fast", "dataset.val_size=10", "model.widths=[8,8,8]"]).tree
    task = build.build_task(Builder.for_search([packaged_conf()]), tree)
    pixels = torch.randint(0, 256, (60, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    examples = in_memory(pixels.numpy(), torch.zeros(60, dtype=torch.int64).numpy())
    before = task.model.whiten.weight.clone()
    build.prepare_networks(task, tree, Data(tuple("abcdefghij"), examples, examples))
    first = task.model.whiten.weight.clone()
    assert not first.equal(before)
    build.prepare_networks(task, tree, Data(tuple("abcdefghij"), examples, examples))
    assert task.model.whiten.weight.equal(first)
    build.prepare_networks(Classification(nn.Linear(2, 2)), tree, None)  # type: ignore[arg-type]  # data are not touche


def test_a_triangle_rises_and_falls_in_straight_lines() -> None:
    shares = [triangle(Position(step, 100, 10), pct_start=0.25, start=0.2, final=0.1) for step in range(101)]
    assert shares[0] == pytest.approx(0.2) and shares[25] == pytest.approx(1.0) and shares[100] == pytest.approx(0.1)
    assert shares[10] == pytest.approx(0.2 + 0.8 * 10 / 25) and shares[60] == pytest.approx(1 - 0.9 * 35 / 75)
    down = [triangle(Position(step, 10, 10), pct_start=0.0) for step in range(11)]
    assert down == pytest.approx([1 - step / 10 for step in range(11)])


# ------------------------------------------------------------------------------------------------------ the experiments


def finished(folder: Path, *words: str, **env: str) -> dict[str, Any]:
    done = dlcli("train", *words, "tracker=none", "--json", cwd=folder, timeout=1800, **env)
    assert done.returncode == 0, done.stderr
    return events_of(done.stdout)[-1]


def test_mnist_fast_learns_in_a_hundred_steps(tmp_path: Path, data_root: Path) -> None:
    words = ("mnist_fast", "runtime.device=cpu", "trainer.max_steps=100")
    run = finished(tmp_path, *words, DLCLI_DATA=str(data_root))
    assert run["metrics"]["test/accuracy"] > 0.95, "ten classes: a guess is right one time in ten"


def test_cifar10_fast_learns_on_the_subset(tmp_path: Path, data_root: Path) -> None:
    words = ("cifar10_fast", "dataset=cifar10_subset", "runtime.device=cpu", "runtime.threads=1")
    run = finished(tmp_path, *words, "model.widths=[16,32,32]", "trainer.max_steps=80", DLCLI_DATA=str(data_root))
    assert run["metrics"]["test/accuracy"] > 0.3, "ten classes: a guess is right one time in ten"


@pytest.mark.slow
@pytest.mark.parametrize(("epochs", "accuracy"), [("1", 0.990), ("3", 0.994)])
def test_mnist_fast_reaches_its_accuracy_over_ten_seeds(
    tmp_path: Path, data_root: Path, epochs: str, accuracy: float
) -> None:
    runs = [
        finished(tmp_path, "mnist_fast", f"trainer.epochs={epochs}", f"seed={seed}", DLCLI_DATA=str(data_root))
        for seed in range(10)
    ]
    assert statistics.mean(run["metrics"]["test/accuracy"] for run in runs) >= accuracy
