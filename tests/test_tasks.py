"""Tasks: the formulas against their papers, and that each learns more than a baseline."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dlcli.datasets.batches.examples import Batch
from dlcli.tasks.classification import Classification, mix
from dlcli.tasks.distillation import Distillation
from dlcli.tasks.gan import frechet_distance

X = torch.randn(12, 1, 4, 4, generator=torch.Generator().manual_seed(0))
BATCH = Batch(X, torch.arange(12) % 3, torch.arange(12))


def linear(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


def test_distillation_is_the_formula() -> None:
    student, teacher = linear(0), linear(1)
    loss, _ = Distillation(student, teacher, temperature=4.0, alpha=0.7).loss(BATCH, "model")
    p = (teacher(X) / 4).softmax(1)
    kl = (p * (p.log() - (student(X) / 4).log_softmax(1))).sum(1).mean()
    expected = 0.7 * kl * 16 + 0.3 * F.cross_entropy(student(X), BATCH.labels)
    torch.testing.assert_close(loss, expected)


def test_a_frozen_teacher_receives_no_gradient_and_stays_in_evaluation_mode() -> None:
    task = Distillation(linear(0), nn.Sequential(linear(1), nn.Dropout(0.5))).train()
    loss, _ = task.loss(BATCH, "model")
    loss.backward()
    assert not task.teacher.training
    assert all(p.grad is None for p in task.teacher.parameters())
    assert all(p.grad is not None for p in task.model.parameters())


@pytest.mark.parametrize(("mixup", "cutmix"), [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5)])
def test_mixed_images_hold_both_by_their_share(mixup: float, cutmix: float) -> None:
    random.seed(1)
    torch.manual_seed(1)
    for _ in range(20):
        mixed, others, share = mix(X, mixup=mixup, cutmix=cutmix)
        assert 0 <= share <= 1
        blend = share * X + (1 - share) * X[others]
        from_own = (mixed == X).float().mean().item()
        is_blend = torch.allclose(mixed, blend, atol=1e-6)
        is_cut = bool(((mixed == X) | (mixed == X[others])).all())
        assert is_blend or is_cut
        if is_cut and not is_blend:
            own = torch.arange(12) == others
            assert from_own == pytest.approx(share + (1 - share) * own.float().mean().item(), abs=1e-6)


def test_label_smoothing_is_torchs() -> None:
    model = linear()
    loss, _ = Classification(model, label_smoothing=0.1).loss(BATCH, "model")
    torch.testing.assert_close(loss, F.cross_entropy(model(X), BATCH.labels, label_smoothing=0.1))


def test_cross_entropy_is_the_negative_log_likelihood() -> None:
    model = linear()
    loss, _ = Classification(model).loss(BATCH, "model")
    expected = nn.NLLLoss()(model(X).log_softmax(1), BATCH.labels)
    torch.testing.assert_close(loss, expected)
    ours, theirs = (torch.autograd.grad(value, list(model.parameters())) for value in (loss, expected))
    torch.testing.assert_close(ours, theirs)


def test_probabilities_sum_to_one() -> None:
    rows = Classification(linear()).predict(X).sum(1)
    torch.testing.assert_close(rows, torch.ones(12))


def test_the_frechet_distance_of_two_normals_is_known() -> None:
    g = torch.Generator().manual_seed(0)
    a = torch.randn(50_000, 3, generator=g, dtype=torch.float64)
    b = torch.randn(50_000, 3, generator=g, dtype=torch.float64) * 2 + 1
    assert frechet_distance(a, b) == pytest.approx(3 * 1 + 3 * (1 - 2) ** 2, rel=0.03)  # |mean|^2 + sum (s_a - s_b)^2
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
