"""The loop: what a step is, for one network and for two, whole and in shares."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcli.datasets.batches.examples import Batch
from dlcli.errors import DivergedError
from dlcli.optimizers.averaging import Average
from dlcli.optimizers.penalties import L1
from dlcli.optimizers.stepping import bare_step
from dlcli.tasks.classification import Classification
from dlcli.tasks.gan import GAN
from dlcli.tasks.task import Answers
from dlcli.training import loop
from dlcli.training.metric_buffer import MetricBuffer
from dlcli.training.state import Progress


def batches(sizes: list[int], seed: int = 0) -> list[Batch]:
    g = torch.Generator().manual_seed(seed)
    made = []
    for size in sizes:
        x = torch.randn(size, 1, 2, 4, generator=g)
        made.append(Batch(x, (x.flatten(1).sum(1) > 0).long(), torch.arange(size)))
    return made


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))


def steps(task: Any, stream: list[list[Batch]], optimizers: Any, **named: Any) -> list[loop.StepDone]:
    made: Iterator[loop.StepDone] = loop.train(task, iter(stream), optimizers, **named)
    return [next(made) for _ in stream]


def sgd(task: Classification, **named: Any) -> dict[str, torch.optim.Optimizer]:
    return {"model": torch.optim.SGD(task.model.parameters(), **{"lr": 0.1, **named})}


def test_a_step_is_what_a_bare_loop_does() -> None:
    data = batches([8, 8, 5])
    task = Classification(network())
    steps(task, [[b] for b in data], sgd(task, momentum=0.9))

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for batch in data:
        optimizer.zero_grad()
        F.cross_entropy(model(batch.images), batch.labels).backward()
        optimizer.step()
    for ours, bare in zip(task.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, bare)


def test_shares_of_a_batch_make_its_gradient_also_when_they_differ_in_size() -> None:
    whole, parts = batches([12]), batches([12])[0]
    cuts = [Batch(parts.images[a:b], parts.labels[a:b], parts.index[a:b]) for a, b in ((0, 5), (5, 10), (10, 12))]
    one, many = Classification(network()), Classification(network())
    first = steps(one, [whole], sgd(one))[0]
    second = steps(many, [cuts], sgd(many))[0]
    for a, b in zip(one.parameters(), many.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    assert second.weight == 12
    assert loop.mean(first.values["loss"]) == pytest.approx(loop.mean(second.values["loss"]), rel=1e-6)
    assert loop.mean(first.values["accuracy"]) == loop.mean(second.values["accuracy"])


def test_the_learning_rate_follows_the_scale() -> None:
    task = Classification(network())
    optimizers = sgd(task)
    before = [p.clone() for p in task.parameters()]
    steps(task, [[b] for b in batches([4, 4])], optimizers, lr_scale=lambda step: 0.0)
    assert optimizers["model"].param_groups[0]["lr"] == 0.0
    assert all(torch.equal(a, b) for a, b in zip(before, task.parameters(), strict=True))


def test_gradients_are_clipped_to_their_norm() -> None:
    task = Classification(network())
    done = steps(task, [batches([8])], sgd(task), clip_norm=1e-3)[0]
    norm = torch.stack([p.grad.norm() for p in task.parameters() if p.grad is not None]).norm()
    assert norm <= 1e-3 * 1.001 < loop.mean(done.values["grad_norm/model"])


def test_the_penalty_is_that_of_the_weights_alone() -> None:
    model = network()
    expected = sum(p.abs().sum() for p in model.parameters() if p.dim() > 1) * 0.5
    torch.testing.assert_close(L1(0.5)(model), expected)


class Sick(Classification):
    """Its loss is not a number at one call."""

    def __init__(self, model: nn.Module, at: int):
        super().__init__(model)
        self.calls, self.at = 0, at

    def loss(self, batch: Any, phase: str) -> Any:
        loss, values = super().loss(batch, phase)
        self.calls += 1
        return (loss * math.nan if self.calls == self.at else loss), values


@pytest.mark.parametrize("at", [1, 3, 7])
def test_a_loss_that_is_no_number_stops_before_the_update(at: int) -> None:
    data = [[b] for b in batches([4] * 8)]
    healthy, sick = Classification(network()), Sick(network(), at)
    steps(healthy, data[: at - 1], sgd(healthy))
    with pytest.raises(DivergedError, match=f"step {at}"):
        steps(sick, data, sgd(sick))
    assert all(torch.equal(a, b) for a, b in zip(healthy.parameters(), sick.parameters(), strict=True))


@pytest.mark.parametrize("at", [1, 3])
def test_under_a_gradient_scaler_too(at: int) -> None:
    task = Sick(network(), at)
    optimizers = sgd(task)
    scaler = torch.amp.GradScaler("cpu", enabled=True)
    with pytest.raises(DivergedError, match=f"step {at}"):
        steps(task, [[b] for b in batches([4] * 5)], optimizers, scaler=scaler, guard=loop.Guard(optimizers, scaler))


def test_a_loss_scale_that_falls_to_nothing_is_divergence() -> None:
    task = Classification(network())
    optimizers = sgd(task)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**-9, enabled=True)
    guard = loop.Guard(optimizers, scaler)
    steps(task, [batches([4])], optimizers, scaler=scaler, guard=guard)
    guard.check()
    for parameter in task.parameters():
        parameter.register_hook(lambda grad: grad * math.inf)  # every gradient overflows, every update is skipped
    before = [p.clone() for p in task.parameters()]
    steps(task, [[b] for b in batches([4] * 3)], optimizers, scaler=scaler, guard=guard)
    assert all(torch.equal(a, b) for a, b in zip(before, task.parameters(), strict=True))
    with pytest.raises(DivergedError, match="loss scale"):
        guard.check()


@pytest.mark.gpu
def test_on_a_gpu_the_update_is_skipped_without_a_read() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    data = [[Batch(*(t.cuda() for t in b))] for b in batches([4] * 6)]
    healthy, sick = Classification(network()).cuda(), Sick(network(), 3).cuda()
    steps(healthy, data[:2], sgd(healthy, fused=True))
    optimizers = sgd(sick, fused=True)
    guard = loop.Guard(optimizers)
    steps(sick, data, optimizers, guard=guard)
    with pytest.raises(DivergedError, match="step 3"):
        guard.check()
    assert all(torch.equal(a, b) for a, b in zip(healthy.parameters(), sick.parameters(), strict=True))


def test_two_networks_are_updated_in_turn_and_leave_each_other_alone() -> None:
    class Generator(nn.Module):
        latent = 3

        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(3, 8)

        def forward(self, noise: Tensor) -> Tensor:
            return self.out(noise).unflatten(1, (1, 2, 4))

    class Discriminator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(8, 1)

        def forward(self, images: Tensor) -> Tensor:
            return self.out(images.flatten(1))[:, 0]

    torch.manual_seed(0)
    task = GAN(Generator(), Discriminator())
    frozen = {"discriminator": 0.0, "generator": 0.1}
    optimizers = {name: torch.optim.SGD(getattr(task, name).parameters(), lr=lr) for name, lr in frozen.items()}
    before = {name: [p.clone() for p in getattr(task, name).parameters()] for name in frozen}
    done = steps(task, [[b] for b in batches([4, 4])], optimizers)
    assert set(done[0].values) == {"loss/discriminator", "loss/generator"}
    for name, lr in frozen.items():
        same = all(torch.equal(a, b) for a, b in zip(before[name], getattr(task, name).parameters(), strict=True))
        assert same == (lr == 0.0), name


def test_evaluation_is_exact_on_a_short_last_batch_and_leaves_the_task_as_it_was() -> None:
    data = batches([7, 7, 3])
    task = Classification(nn.Sequential(network(), nn.Dropout(0.5)))
    task.train()
    scores = loop.evaluate(task, data)
    assert task.training
    whole = Batch(*(torch.cat([getattr(b, f) for b in data]) for f in Batch._fields))
    assert scores == pytest.approx(loop.evaluate(task, [whole]), rel=1e-6)


def test_the_average_of_weights_is_evaluated_and_the_raw_ones_go_on() -> None:
    task = Classification(network())
    average = Average(task.model, 0.9)
    expected = {n: p.detach().clone() for n, p in task.model.named_parameters()}
    made = loop.train(task, iter([[b] for b in batches([4] * 5)]), sgd(task), averages={"model": average})
    for number in range(1, 6):
        next(made)
        decay = min(0.9, (1 + number) / (10 + number))
        expected = {n: decay * expected[n] + (1 - decay) * p.detach() for n, p in task.model.named_parameters()}
    for name, tensor in average.shadow.items():
        torch.testing.assert_close(tensor, expected[name])
    raw = [p.clone() for p in task.parameters()]
    with average.in_place():
        torch.testing.assert_close(dict(task.model.named_parameters()), expected)
    assert all(torch.equal(a, b) for a, b in zip(raw, task.parameters(), strict=True))


def test_a_value_that_overflowed_adds_nothing_to_an_epochs_sums() -> None:
    tally, progress = MetricBuffer(10, loop.SINGLE_PROCESS), Progress()
    for number, norm in enumerate((1.0, math.inf, 3.0)):
        tally.pending.append(loop.StepDone(number, {"grad_norm/model": torch.tensor(norm)}, 2))
    tally.fold(progress)
    assert (progress.sums, progress.examples) == ({"grad_norm/model": 8.0}, 6)


@pytest.mark.parametrize("cut", [1, 2, 3, 5])
def test_sums_do_not_depend_on_how_the_steps_are_grouped(cut: int) -> None:
    g = torch.Generator().manual_seed(0)
    done = [loop.StepDone(n, {"loss": torch.rand((), generator=g)}, 3) for n in range(6)]
    at_once, in_parts = Progress(), Progress()
    tally = MetricBuffer(10, loop.SINGLE_PROCESS)
    tally.pending.extend(done)
    tally.fold(at_once)
    for part in (done[:cut], done[cut:]):
        tally.pending.extend(part)
        tally.fold(in_parts)
    assert at_once.sums == in_parts.sums  # to the last bit


def test_answers_are_counted_as_argmax() -> None:
    logits = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
    assert Answers(logits, torch.tensor([1, 1, 1])).is_right().tolist() == [True, False, True]
    assert loop.mean(loop.join([Answers(logits, torch.tensor([1, 1, 1]))] * 2)) == pytest.approx(2 / 3)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop])
def test_a_step_without_its_label_is_the_same_step(kind: type[torch.optim.Optimizer]) -> None:
    whole, bare = network(), network()
    for model, update in ((whole, None), (bare, bare_step)):
        optimizer = kind(model.parameters(), lr=0.1)  # type: ignore[call-arg]
        step = update(optimizer) if update else optimizer.step
        for batch in batches([4, 4, 4]):
            optimizer.zero_grad()
            F.cross_entropy(model(batch.images), batch.labels).backward()
            step()
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), bare.parameters(), strict=True))


def test_hooks_that_somebody_hung_on_an_optimizer_are_kept() -> None:
    optimizer = torch.optim.SGD(network().parameters(), lr=0.1)
    called: list[int] = []
    optimizer.register_step_post_hook(lambda *_: called.append(1))
    bare_step(optimizer)()
    assert called == [1]
