"""Supervised contrastive learning: the paper's formula, prototypes that answer, and that it learns."""

from __future__ import annotations

import json
from math import exp, log
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from program import dlcli, train_quickly
from torch import Tensor, nn

from dlcli.config import compose_command
from dlcli.config.folders import packaged_conf
from dlcli.datasets.batches.examples import Batch
from dlcli.errors import ConfigError
from dlcli.tasks.supervised_contrastive import SupervisedContrastive, contrast, embed
from dlcli.training.allow_list import Builder
from dlcli.training.build import build_meta_task

LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 3])  # 2 and 3 have no positive
OUTPUTS = torch.randn(7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def loops(outputs: list[list[float]], labels: list[int], temperature: float) -> float:
    """Equation 2 as it is printed, divided by the number of images."""
    units = [[x / sum(y * y for y in row) ** 0.5 for x in row] for row in outputs]
    cosine = [[sum(x * y for x, y in zip(a, b, strict=True)) for b in units] for a in units]
    total = 0.0
    for i in range(len(labels)):
        others = [a for a in range(len(labels)) if a != i]
        positives = [p for p in others if labels[p] == labels[i]]
        whole = sum(exp(cosine[i][a] / temperature) for a in others)
        for p in positives:
            total -= log(exp(cosine[i][p] / temperature) / whole) / len(positives)
    return total / len(labels)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_value_and_gradient_are_the_papers(temperature: float) -> None:
    outputs = OUTPUTS.clone().requires_grad_()
    loss = contrast(embed(outputs), LABELS, temperature)
    assert loss.item() == pytest.approx(loops(OUTPUTS.tolist(), LABELS.tolist(), temperature), rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, outputs)
    step = 1e-6
    for i in range(len(OUTPUTS)):
        for k in range(OUTPUTS.shape[1]):
            moved = torch.zeros_like(OUTPUTS)
            moved[i, k] = step
            ends = [loops((OUTPUTS + sign * moved).tolist(), LABELS.tolist(), temperature) for sign in (1, -1)]
            assert gradient[i, k].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5, abs=1e-7)


def test_the_least_loss_is_a_simplex_which_fits_into_as_many_numbers_as_classes() -> None:
    """Graf et al. 2021, theorem 2: no embedding has less, here with four images of each of five classes."""
    labels = torch.arange(5).repeat(4)
    corners = F.one_hot(torch.arange(5), 5).double() - 1 / 5
    least = contrast(embed(corners[labels]), labels, 0.1)
    for seed in range(20):
        outputs = torch.randn(20, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        outputs = (corners[labels] + 0.1 * outputs) if seed % 2 else outputs
        assert contrast(embed(outputs), labels, 0.1) > least


def test_images_without_a_positive_give_no_loss_and_no_nan() -> None:
    for labels in (torch.tensor([0]), torch.tensor([2, 0, 1])):
        outputs = OUTPUTS[: len(labels)].clone().requires_grad_()
        loss = contrast(embed(outputs), labels, 0.1)
        (gradient,) = torch.autograd.grad(loss, outputs)
        assert loss == 0 and gradient.equal(torch.zeros_like(gradient))


def test_micro_batches_count_by_their_images() -> None:
    """What the loop makes of a batch in parts is the mean over all images."""
    parts = [(OUTPUTS[:3], LABELS[:3]), (OUTPUTS[3:], LABELS[3:])]
    whole = sum(loops(o.tolist(), n.tolist(), 0.1) * len(n) for o, n in parts) / len(LABELS)
    weighed = sum(contrast(embed(o), n, 0.1).item() * len(n) / len(LABELS) for o, n in parts)
    assert weighed == pytest.approx(whole, rel=1e-6)


class Given(nn.Module):
    """Gives what it is called with."""

    def forward(self, outputs_BK: Tensor) -> Tensor:
        return outputs_BK


def batch(outputs_BK: Tensor, labels_B: Tensor) -> Any:
    return Batch(outputs_BK, labels_B, torch.arange(len(labels_B)))


def test_prototypes_are_moving_means_of_the_classes_in_training_alone() -> None:
    task = SupervisedContrastive(Given(), num_classes=4, decay=0.75)
    assert task.answer(OUTPUTS).equal(torch.zeros(7, 4)), "before anything was seen"
    task.train().loss(batch(OUTPUTS, LABELS), "model")
    expected = torch.stack([0.25 * embed(OUTPUTS)[k == LABELS].mean(0) for k in range(4)])
    torch.testing.assert_close(task.prototypes_KK.double(), expected, atol=1e-6, rtol=0)
    task.loss(batch(OUTPUTS[:1], LABELS[:1]), "model")
    expected[0] = 0.75 * expected[0] + 0.25 * embed(OUTPUTS[:1])[0]
    torch.testing.assert_close(task.prototypes_KK.double(), expected, atol=1e-6, rtol=0)
    before = task.prototypes_KK.clone()
    task.eval().loss(batch(OUTPUTS, LABELS), "model")
    assert task.prototypes_KK.equal(before)
    assert "prototypes_KK" in task.state_dict() and not list(task.parameters())


def test_answers_are_cosines_with_the_prototypes() -> None:
    task = SupervisedContrastive(Given(), num_classes=4, temperature=0.5).train()
    task.loss(batch(OUTPUTS, LABELS), "model")
    found = task.eval().answer(3 * OUTPUTS)
    expected = F.cosine_similarity(OUTPUTS[:, None], task.prototypes_KK.double()[None], dim=2) / 0.5
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)
    measured = task.metrics(batch(OUTPUTS, LABELS))
    torch.testing.assert_close(measured["cross_entropy"], F.cross_entropy(found, LABELS, reduction="none"))
    torch.testing.assert_close(task.predict(OUTPUTS).sum(1), torch.ones(7))


def test_two_ranks_have_the_prototypes_of_all_their_images() -> None:
    """Each is told the other's sums, as an all-reduce would."""
    alone = SupervisedContrastive(Given(), num_classes=4).train()
    alone.loss(batch(OUTPUTS, LABELS), "model")
    parts, told = [slice(0, 3), slice(3, 7)], []
    for part in parts:  # the first round says what each gives
        rank = SupervisedContrastive(Given(), num_classes=4).train()
        rank.share(lambda sums: told.append(sums.clone()))
        rank.loss(batch(OUTPUTS[part], LABELS[part]), "model")
    for part in parts:
        rank = SupervisedContrastive(Given(), num_classes=4).train()
        rank.share(lambda sums: sums.copy_(told[0] + told[1]))
        rank.loss(batch(OUTPUTS[part], LABELS[part]), "model")
        torch.testing.assert_close(rank.prototypes_KK, alone.prototypes_KK)


def test_half_precision_leaves_the_loss_its_digits() -> None:
    outputs = OUTPUTS.float()
    with torch.autocast("cpu", torch.bfloat16):
        loss = contrast(embed(outputs), LABELS, 0.1)
    assert loss.item() == pytest.approx(contrast(embed(outputs), LABELS, 0.1).item(), rel=1e-6)


def test_it_learns_what_the_prototypes_of_an_untrained_network_do_not_tell(tmp_path: Path) -> None:
    """Digits, seed 0: 99.2 % after 60 epochs, where `digits` (cross-entropy) has 98.1; here half of it."""
    quiet = ("tracker=none", "runtime.threads=1", "runtime.precision=fp32", "--json")

    def accuracy(*words: str) -> float:
        done = dlcli("train", *words, *quiet, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])["metrics"]["test/accuracy"]

    trained = accuracy("digits_contrastive", "trainer.epochs=30")
    untrained = accuracy("digits_contrastive", "trainer.epochs=2", "optimizer.lr=1e-12", "regularization.dropout=0.0")
    entropy = accuracy("digits", "augmentation=light", "trainer.epochs=30")
    assert trained > 0.97 and trained > untrained + 0.3, (trained, untrained)
    assert trained > entropy, (trained, entropy)


def test_eval_and_predict_know_it_as_a_classifier(tmp_path: Path) -> None:
    from PIL import Image

    last = train_quickly(tmp_path, "task=supervised_contrastive", "trainer.monitor=val/accuracy")
    run = last["run"]
    scored = json.loads(dlcli("eval", run, "--json", cwd=tmp_path).stdout)
    assert scored["metrics"]["test/accuracy"] == pytest.approx(last["metrics"]["test/accuracy"])
    assert scored["metrics"]["test/accuracy"] > 0.5
    Image.new("L", (8, 8)).save(tmp_path / "black.png")
    answer = json.loads(dlcli("predict", "black.png", "--run", run, "--json", cwd=tmp_path).stdout)
    assert len(answer["classes"]) > 1 and 0 < answer["classes"][0]["probability"] < 1
    told = dlcli("train", "digits_distill", f"task.teacher={run}", "tracker=none", cwd=tmp_path)
    assert told.returncode == 2 and "was not trained to classify" in told.stderr


def test_there_is_a_prototype_for_each_class_of_the_data_and_no_more() -> None:
    with pytest.raises(ConfigError) as caught:
        compose_command(["digits_contrastive", "task.num_classes=1000000"])
    (problem,) = caught.value.problems
    assert problem.message == "digits has 10 classes" and problem.better == "task.num_classes=10"


def test_buffers_count_in_what_a_network_takes() -> None:
    tree = compose_command(["digits_contrastive"]).tree
    tree["dataset"]["num_classes"] = tree["task"]["num_classes"] = tree["model"]["num_classes"] = 200_000
    with pytest.raises(ConfigError, match="parameters and buffers, more than 20,000,000,000"):
        build_meta_task(Builder.for_search((packaged_conf(),)), tree)
