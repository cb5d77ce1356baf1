"""Muon against its formula written another way, against torch's own for matrices, and against plain momentum."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcli.optimizers.groups import build_optimizer
from dlcli.optimizers.muon import Muon

SHAPES = [(6, 4), (4, 6), (8, 3, 3, 3), (5,), (8, 3, 3, 3), (2, 40)]


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def gradients(step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def steps(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], count: int) -> None:
    for step in range(count):
        for p, gradient in zip(params, gradients(step), strict=True):
            p.grad = gradient.clone()
        optimizer.step()


def by_singular_values(update: Tensor) -> Tensor:
    """Five times s -> a s + b s^3 + c s^5 on each singular value, the vectors left as they are."""
    matrix = update.double().flatten(1)
    u, s, v = torch.linalg.svd(matrix / matrix.norm(), full_matrices=False)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (u * s @ v * max(1, matrix.shape[0] / matrix.shape[1]) ** 0.5).view(update.shape)


def test_three_steps_are_the_published_formula() -> None:
    ours, expected = parameters(), [p.detach().double() for p in parameters()]
    steps(Muon(ours, lr=0.1, momentum=0.9, weight_decay=0.01), ours, 3)
    buffers = [torch.zeros_like(p) for p in expected]
    for step in range(3):
        for p, buffer, gradient in zip(expected, buffers, gradients(step), strict=True):
            buffer.mul_(0.9).add_(gradient)
            update = gradient.double() + 0.9 * buffer
            p.mul_(1 - 0.1 * 0.01).sub_(0.1 * (by_singular_values(update) if p.dim() > 1 else update))
    for p, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(p.detach().double(), wanted, rtol=1e-4, atol=1e-4)


def test_on_matrices_it_is_torchs_muon_to_bfloat16() -> None:
    """torch takes a running mean where we take a sum: the orthogonalised update is the same."""
    ours, theirs = (parameters()[:2] for _ in range(2))
    for optimizer, params in (
        (Muon(ours, lr=0.1, momentum=0.9), ours),
        (torch.optim.Muon(theirs, lr=0.1, momentum=0.9, weight_decay=0.0), theirs),
    ):
        for step in range(3):
            for p, gradient in zip(params, gradients(step), strict=False):
                p.grad = gradient.clone()
            optimizer.step()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0.02)


def test_an_update_has_singular_values_of_about_one_whatever_the_gradients_length() -> None:
    for length in (1e-6, 1.0, 1e6):
        p = nn.Parameter(torch.zeros(16, 3, 3, 3))
        p.grad = length * torch.randn(16, 3, 3, 3, generator=torch.Generator().manual_seed(0))
        Muon([p], lr=1.0).step()
        values = torch.linalg.svdvals(p.detach().flatten(1))
        assert values.min() > 0.6 and values.max() < 1.3


def test_vectors_and_groups_that_are_not_orthogonal_are_moved_by_nesterovs_momentum() -> None:
    ours, theirs = parameters(), parameters()
    steps(Muon(ours, lr=0.1, momentum=0.9, orthogonal=False), ours, 3)
    steps(torch.optim.SGD(theirs, lr=0.1, momentum=0.9, nesterov=True), theirs, 3)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


def test_a_held_norm_is_that_of_the_rows_before_the_update() -> None:
    p = nn.Parameter(torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(0)))
    p.grad = torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    before = p.detach().clone()
    Muon([p], lr=1e-9, hold_norm=True).step()
    torch.testing.assert_close(p.detach(), before * 8**0.5 / before.norm())


def test_it_repeats_bit_for_bit_and_from_its_stored_state() -> None:
    whole, again, halves = parameters(), parameters(), parameters()
    make = partial(Muon, lr=0.1, weight_decay=0.01, hold_norm=True)
    steps(make(whole), whole, 4)
    steps(make(again), again, 4)
    first = make(halves)
    steps(first, halves, 2)
    second = make(halves)
    second.load_state_dict(first.state_dict())
    for step in (2, 3):
        for p, gradient in zip(halves, gradients(step), strict=True):
            p.grad = gradient.clone()
        second.step()
    for a, b, c in zip(whole, again, halves, strict=True):
        assert a.equal(b) and a.equal(c)


def test_a_group_of_vectors_alone_is_moved_like_any_other() -> None:
    p = nn.Parameter(torch.zeros(3))
    p.grad = torch.ones(3)
    Muon([p], lr=1.0, momentum=0.5, hold_norm=True).step()
    assert p.tolist() == [-1.5] * 3


def test_every_parameter_has_the_same_names_in_its_state() -> None:
    """A checkpoint's optimizer state is held to those names."""
    params = parameters()
    optimizer = Muon(params)
    steps(optimizer, params, 1)
    assert {tuple(optimizer.state[p]) for p in params} == {("momentum_buffer",)}


def test_a_bad_step_is_skipped_where_the_guard_says_so() -> None:
    params = parameters()
    before = [p.detach().clone() for p in params]
    optimizer = Muon(params, lr=0.1, weight_decay=0.1, fused=True)
    optimizer.found_inf = torch.tensor(1.0)
    for p in params:
        p.grad = torch.full_like(p, torch.nan)
    optimizer.step()
    assert all(p.equal(kept) for p, kept in zip(params, before, strict=True))
    optimizer.found_inf.zero_()
    steps(optimizer, params, 1)
    assert all(p.isfinite().all() and not p.equal(kept) for p, kept in zip(params, before, strict=True))


def test_channels_last_filters_move_like_others() -> None:
    plain, last = parameters(), parameters()
    last[2].data = last[2].data.to(memory_format=torch.channels_last)
    for params in (plain, last):
        steps(Muon(params, lr=0.1), params, 2)
    assert last[2].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(plain[2], last[2].contiguous())


def test_it_learns_a_small_network_faster_than_plain_momentum() -> None:
    """Both at the best of four learning rates: 40 steps towards another network's answers."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(256, 1, 8, 8, generator=generator)

    def network(seed: int) -> nn.Sequential:
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)
        )

    with torch.no_grad():
        labels = network(1)(images).mul(20).softmax(1)
        entropy = F.cross_entropy(labels.log(), labels).item()  # no network is below it

    def final_loss(make: partial) -> float:
        model = network(2)
        optimizer = build_optimizer(model, make, {})
        for _ in range(40):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
        return loss.item() - entropy

    muon = min(final_loss(partial(Muon, lr=lr, momentum=0.9)) for lr in (0.01, 0.02, 0.05, 0.1))
    sgd = min(final_loss(partial(torch.optim.SGD, lr=lr, momentum=0.9, nesterov=True)) for lr in (0.01, 0.03, 0.1, 0.3))
    assert muon < 0.9 * sgd, (muon, sgd)


@pytest.mark.gpu
def test_on_a_gpu_an_update_is_that_of_the_cpu_to_bfloat16() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    here, there = parameters(), [nn.Parameter(p.detach().cuda()) for p in parameters()]
    optimizer = Muon(there, lr=0.1, momentum=0.9, fused=True)
    optimizer.found_inf = torch.zeros((), device="cuda")
    steps(Muon(here, lr=0.1, momentum=0.9), here, 1)
    for p, gradient in zip(there, gradients(0), strict=True):
        p.grad = gradient.cuda()
    optimizer.step()
    for mine, other in zip(here, there, strict=True):
        torch.testing.assert_close(mine, other.cpu(), rtol=0, atol=0.02)
