"""U-Net and segmentation: shapes, scores against torchmetrics, and whole runs on drawn shapes up to `dlcli predict`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from faults import Forge, differences, killed_and_resumed, num_lines, outcome, run_of
from PIL import Image
from program import events_of
from torch import Tensor, nn

from dlcli.errors import ConfigError
from dlcli.models.unet import UNet
from dlcli.tasks.segmentation import IGNORED, Segmentation, cross_entropy, dice_loss

PLAIN = ("tracker=none", "runtime.threads=1", "runtime.device=cpu", "runtime.precision=fp32")
SIDE = 32


class Batch(NamedTuple):
    logits: Tensor
    masks: Tensor

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return (self.logits,)


def answered(generator: torch.Generator, *, num_classes: int = 4, size: int = 3) -> Batch:
    """Answers that are better than chance, and some pixels of no class."""
    masks = torch.randint(num_classes, (size, 9, 7), generator=generator)
    logits = torch.randn(size, num_classes, 9, 7, generator=generator)
    logits += 2 * nn.functional.one_hot(masks, num_classes).movedim(-1, 1)
    return Batch(logits, masks.masked_fill(torch.rand(masks.shape, generator=generator) < 0.1, IGNORED))


@pytest.mark.parametrize("size", [(32, 32), (24, 40), (33, 47), (16, 17)])
def test_unet_answers_at_the_images_size(size: tuple[int, int]) -> None:
    network = UNet(num_classes=5, image_shape=[3, *size], widths=[4, 8, 12, 16, 20])
    assert network(torch.randn(2, 3, *size)).shape == (2, 5, *size)


def test_unet_has_the_papers_parameters() -> None:
    """31,030,658 for one channel and two classes: those of convolutions and biases, which padding does not change."""
    with torch.device("meta"):
        network = UNet(num_classes=2, image_shape=[1, 572, 572], widths=[64, 128, 256, 512, 1024], batch_norm=False)
    assert sum(p.numel() for p in network.parameters()) == 31_030_658
    assert sum(isinstance(m, nn.Conv2d | nn.ConvTranspose2d) for m in network.modules()) == 23


def test_unet_sees_far_below_and_near_beside() -> None:
    """One pixel's answer depends on pixels further off than one level sees; skips carry what pooling loses."""
    network = UNet(num_classes=2, image_shape=[1, 64, 64], widths=[4, 8, 16], batch_norm=False).eval()
    image = torch.randn(1, 1, 64, 64, requires_grad=True)
    network(image)[0, 0, 32, 32].backward()
    assert image.grad is not None
    reach = image.grad[0, 0].nonzero().float()
    assert (reach - 32).abs().max() > 10
    with torch.no_grad():
        for block in network.down:
            nn.init.zeros_(block[-2].weight)
        assert not network(image).equal(network(torch.zeros_like(image)))


def test_too_many_levels_are_told() -> None:
    with pytest.raises(ConfigError, match="5 levels, too many for images of 8 x 8"):
        UNet(num_classes=2, image_shape=[1, 8, 8], widths=[4] * 5)


def test_scores_are_those_of_torchmetrics_over_the_whole_set() -> None:
    from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

    generator = torch.Generator().manual_seed(0)
    batches = [answered(generator, size=size) for size in (3, 1, 2)]
    metrics = Segmentation(nn.Identity(), dice=0.5).evaluate(batches)
    iou = MulticlassJaccardIndex(4, average="macro", ignore_index=IGNORED)
    accuracy = MulticlassAccuracy(4, average="micro", ignore_index=IGNORED)
    for batch in batches:
        for oracle in (iou, accuracy):
            oracle.update(batch.logits.argmax(1), batch.masks)
    assert metrics["mean_iou"] == pytest.approx(iou.compute().item(), abs=1e-6)
    assert metrics["accuracy"] == pytest.approx(accuracy.compute().item(), abs=1e-6)
    whole = Batch(*(torch.cat(parts) for parts in zip(*batches, strict=True)))
    loss, values = Segmentation(nn.Identity(), dice=0.5).loss(whole, "model")
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert metrics["accuracy"] == pytest.approx(values["accuracy"].item(), rel=1e-6)


def test_a_class_that_occurs_nowhere_does_not_count() -> None:
    masks = torch.tensor([[[0, 1], [1, 1]]])
    logits = nn.functional.one_hot(torch.tensor([[[0, 0], [1, 1]]]), 3).movedim(-1, 1).float()
    metrics = Segmentation(nn.Identity()).evaluate([Batch(logits, masks)])
    assert metrics["mean_iou"] == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_what_is_ignored_has_no_gradient_and_no_score() -> None:
    batch = answered(torch.Generator().manual_seed(1))
    task = Segmentation(nn.Identity(), dice=1.0)
    logits = batch.logits.clone().requires_grad_()
    task.loss(Batch(logits, batch.masks), "model")[0].backward()
    assert logits.grad is not None
    is_ignored = (batch.masks == IGNORED)[:, None].expand_as(logits)
    assert is_ignored.any()
    assert (logits.grad[is_ignored] == 0).all()
    assert (logits.grad[~is_ignored] != 0).all()
    nothing = Batch(batch.logits, torch.full_like(batch.masks, IGNORED))
    loss, values = task.loss(nothing, "model")
    assert loss.isfinite()
    assert values["accuracy"] == 0
    assert task.evaluate([nothing])["mean_iou"] == 0


def test_losses_are_their_formulas() -> None:
    """Means over images, so that the loss of a batch is the mean of its parts'."""
    batch = answered(torch.Generator().manual_seed(2), num_classes=2)
    known = batch.masks != IGNORED
    expected = nn.functional.cross_entropy(batch.logits, batch.masks, ignore_index=IGNORED, reduction="none")
    torch.testing.assert_close(cross_entropy(*batch), expected.mean((1, 2)))
    p, y = batch.logits.softmax(1)[:, 1] * known, (batch.masks == 1).float()
    q, z = batch.logits.softmax(1)[:, 0] * known, (batch.masks == 0).float()
    quotients = [(2 * (a * b).sum((1, 2)) + 1) / (a.sum((1, 2)) + b.sum((1, 2)) + 1) for a, b in ((p, y), (q, z))]
    torch.testing.assert_close(dice_loss(*batch), 1 - sum(quotients) / 2)
    right = nn.functional.one_hot(batch.masks.clamp(max=1), 2).movedim(-1, 1) * 50.0
    assert dice_loss(right, batch.masks).max() < 1e-6


# ----------------------------------------------------------------------------------------------------------- whole runs


def shapes(generator: np.random.Generator, side: int = SIDE) -> tuple[np.ndarray, np.ndarray]:
    """A noisy picture with a bright disc and a grey square, and its mask: 0, 1 disc, 2 square."""
    y, x = np.mgrid[:side, :side]
    mask = np.zeros((side, side), dtype=np.uint8)
    row, column = generator.integers(side // 4, side * 3 // 4, 2)
    mask[(y - row) ** 2 + (x - column) ** 2 < (side // 6) ** 2] = 1
    row, column = generator.integers(0, side * 3 // 4, 2)
    mask[row : row + side // 4, column : column + side // 4] = 2
    picture = np.array([40, 220, 130])[mask] + generator.normal(0, 15, mask.shape)
    return picture.clip(0, 255).astype(np.uint8), mask


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shapes")
    generator = np.random.default_rng(0)
    for split, number in (("train", 48), ("val", 8), ("test", 16)):
        for kind in ("images", "masks"):
            (path / split / kind).mkdir(parents=True)
        for i in range(number):
            for kind, array in zip(("images", "masks"), shapes(generator), strict=True):
                Image.fromarray(array).save(path / split / kind / f"{i}.png")
    return path


WORDS = (
    f"dataset.image_shape=[1,{SIDE},{SIDE}]", "dataset.mean=[0.2]", "dataset.std=[0.2]", "model.widths=[8,16]",
    "augmentation=flip_shift", "optimizer.lr=1e-2", "schedule.warmup=6", "trainer.epochs=6",
    "runtime.channels_last=false",
)  # fmt: skip


@pytest.fixture(scope="module")
def forge() -> Iterator[Forge]:
    with Forge() as started:
        yield started


@pytest.fixture(scope="module")
def run(forge: Forge, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The last event of a run of 36 steps."""
    words = ("train", "masks", f"dataset.path={folder}", *WORDS, *PLAIN, "--json")
    done = forge.run(*words, cwd=tmp_path_factory.mktemp("run"))
    assert done.code == 0, done.stderr
    return events_of(done.stdout)[-1]


def test_shapes_are_learned(run: dict[str, Any], folder: Path) -> None:
    """Against the answer that is always background: its IoU is the background's share, those of the others 0."""
    masks = np.stack([np.asarray(Image.open(path)) for path in (folder / "test" / "masks").iterdir()])
    background = (masks == 0).mean() / 3
    assert 0.25 < background < 0.33
    assert run["metrics"]["test/mean_iou"] > 0.8
    assert run["metrics"]["test/accuracy"] > (masks == 0).mean() + 0.05


def test_a_new_picture_is_answered_with_its_mask_and_laid_over(
    forge: Forge, run: dict[str, Any], tmp_path: Path
) -> None:
    """Twice as large and in colour, and as it is; a bad file spoils nothing."""
    picture, mask = shapes(np.random.default_rng(9))
    large = Image.fromarray(picture).convert("RGB").resize((2 * SIDE, 2 * SIDE), Image.Resampling.NEAREST)
    large.save(tmp_path / "cell.png")
    (tmp_path / "bad.png").write_text("no picture")
    (tmp_path / "other").mkdir()
    Image.fromarray(picture).save(tmp_path / "other" / "cell.png")
    words = ("predict", "cell.png", "bad.png", "other/cell.png", "absent.png", "--run", run["run"])
    done = forge.run(*words, "--save", "out", "--json", cwd=tmp_path)
    assert done.code == 3, done.stderr
    cell, bad, other, absent = (json.loads(line) for line in done.stdout.splitlines())
    assert "not a picture of a known format" in bad["error"]
    assert "No such file" in absent["error"]
    assert (cell["mask"], other["mask"]) == ("out/cell-mask.png", "out/cell-2-mask.png")
    assert sum(share["share"] for share in cell["shares"]) == pytest.approx(1)
    assert cell["shares"][0]["class"] == "0"
    for answer, truth in ((cell, mask.repeat(2, 0).repeat(2, 1)), (other, mask)):
        answered = np.asarray(Image.open(tmp_path / answer["mask"]))  # its palette's places: the training masks' values
        assert answered.shape == truth.shape
        assert (answered == truth).mean() > 0.93
    overlay = np.asarray(Image.open(tmp_path / cell["overlay"])).astype(int)
    answered = np.asarray(Image.open(tmp_path / cell["mask"]))
    changed = (overlay != np.asarray(large)).any(2)
    assert (changed == (answered != 0)).all()
    assert (overlay[answered == 1, 0] > overlay[answered == 1, 2] + 50).all()  # orange


def test_a_table_of_shares_and_the_runs_own_scores(
    forge: Forge, run: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    done = forge.run("predict", str(folder / "test" / "images"), "--run", run["run"], cwd=tmp_path / "predict")
    assert done.code == 0, done.stderr
    assert sum(".png" in line and "0 " in line and " %, " in line for line in done.stdout.splitlines()) == 16
    done = forge.run("eval", run["run"], "--json", cwd=tmp_path / "eval")
    assert done.code == 0, done.stderr
    found = json.loads(done.stdout)["metrics"]
    assert found["test/mean_iou"] == pytest.approx(run["metrics"]["test/mean_iou"], abs=1e-6)


@pytest.mark.parametrize("side", ["16384", "5000"])
def test_pictures_that_no_memory_holds_are_refused_by_a_start_and_by_a_resume(
    forge: Forge, run: dict[str, Any], folder: Path, tmp_path: Path, side: str
) -> None:
    """Before a picture is decoded to that size; 16384 is a multiple of what shapes are tried on, 5000 is none."""
    shape = f"dataset.image_shape=[1,{side},{side}]"
    words = ("masks", f"dataset.path={folder}", *WORDS[1:], *PLAIN, "dataset.eval_batch_size=4", shape)
    fresh = forge.run("train", *words, cwd=tmp_path / "fresh")
    assert fresh.code == 2 and f"{shape} makes one example of" in fresh.stderr
    edited = tmp_path / "edited" / "masks" / Path(run["run"]).name
    shutil.copytree(run["run"], edited, symlinks=True)
    text = (edited / "run.yaml").read_text()
    changed = text.replace(f"- {SIDE}\n", f"- {side}\n").replace("eval_batch_size: auto", "eval_batch_size: 4")
    assert changed != text
    (edited / "run.yaml").write_text(changed)
    resumed = forge.run("resume", str(edited), "trainer.epochs=7", cwd=tmp_path / "resumed")
    assert resumed.code == 4, resumed.stderr
    assert f"{shape} makes one example of" in resumed.stderr and "train the run again" in resumed.stderr


def test_a_kill_and_resume_ends_with_the_same_bits(forge: Forge, folder: Path, tmp_path: Path) -> None:
    """With everything that draws: masks that move with their images, dropout, batch norm's statistics."""
    without = [word for word in WORDS if not word.startswith(("augmentation", "trainer"))]
    draws = ("augmentation=strong", "regularization.dropout=0.2", "trainer.epochs=2", "trainer.save_every=1")
    words = ("masks", f"dataset.path={folder}", *without, *PLAIN, *draws, "trainer.log_every=1")
    child = forge.run("train", *words, cwd=tmp_path / "whole")
    assert child.code == 0, child.stderr
    reference = run_of(tmp_path / "whole")
    run, hits = killed_and_resumed(forge, tmp_path / "killed", words, lines=num_lines(reference), kills=1, seed=0)
    assert hits == 1
    assert differences(outcome(run), outcome(reference)) == []
