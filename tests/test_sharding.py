"""Networks over two real ranks, sharded or split by layers, against the same network on one device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rank_checks import names, run_on_two_ranks
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from dlcli.errors import ConfigError
from dlcli.models.vit import ViT
from dlcli.optimizers.averaging import Average
from dlcli.runtime import sharding
from dlcli.runtime.ranks import Place, Ranks, SingleProcess
from dlcli.runtime.sharding import full_tensors, load_full, optimizer_settings, parallelize, shard, shard_like
from dlcli.training.state import optimizer_tensors, restore_optimizer

Make = Callable[..., torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p, **more: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, **more),
    "adamw": lambda p, **more: torch.optim.AdamW(p, lr=1e-3, eps=1e-3, **more),
    "rmsprop": lambda p, foreach, **more: torch.optim.RMSprop(p, lr=1e-3, eps=1e-3, foreach=foreach),
}


class OneNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = ViT(num_classes=10, image_shape=[1, 8, 8], patch=2, hidden_size=32, num_layers=2, num_heads=4)


def examples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 1, 8, 8, generator=generator), torch.arange(8)


def build(name: str, network: nn.Module) -> torch.optim.Optimizer:
    return OPTIMIZERS[name](list(network.named_parameters()), **optimizer_settings(network.parameters()))


def train(
    task: OneNetwork, optimizer: torch.optim.Optimizer, ranks: SingleProcess | Ranks, rows: slice, steps: int = 3
) -> tuple[Tensor, Tensor]:
    """Steps as the loop makes them, on this rank's rows; the last loss and norm of the gradient."""
    x, y = (some[rows] for some in examples())
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(task.model(x), y)
        ranks.weigh(loss, len(x)).backward()
        loss = ranks.average_gradients(task.model.parameters(), loss, len(x))
        norm = ranks.clip_gradients(task.model.parameters(), 0.5)
        optimizer.step()
    return loss, norm


def assert_same_weights(found: dict[str, Tensor], expected: nn.Module) -> None:
    assert list(found) == list(expected.state_dict())
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=2e-6)


def compare(ranks: Ranks, spread: Callable[[OneNetwork], Any], rows: slice, name: str) -> None:
    """Three steps over two ranks are three steps of one; also from a checkpoint in between, either way."""
    whole, part = OneNetwork(), OneNetwork()
    group = spread(part)
    ours, theirs = build(name, part.model), build(name, whole.model)
    assert any(isinstance(p, DTensor) for p in part.parameters())
    for _ in range(2):
        loss, norm = train(part, ours, group, rows)
        expected, expected_norm = train(whole, theirs, SingleProcess(), slice(8))
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(norm, expected_norm, rtol=1e-4, atol=1e-6)
        weights = full_tensors(part.state_dict())
        assert_same_weights(weights, whole)
        assert ranks.gather([t.double().sum().item() for t in weights.values()])[0] == [
            t.double().sum().item() for t in weights.values()
        ]
        whole, part, theirs, ours, group = swap(ranks, spread, part, ours, name)


def swap(ranks: Ranks, spread: Callable[[OneNetwork], Any], part: OneNetwork, ours: Any, name: str) -> tuple[Any, ...]:
    """Both sides anew from what the ranks would save: on one device, and over the ranks."""
    state, groups = optimizer_tensors("model", ours)
    weights, state = full_tensors(part.state_dict()), full_tensors(state)
    assert not any(isinstance(t, DTensor) for t in state.values())
    whole, again = OneNetwork(), OneNetwork()
    whole.load_state_dict(weights)
    group = spread(again)
    load_full(again, weights)
    theirs, ours = build(name, whole.model), build(name, again.model)
    for optimizer in (theirs, ours):
        live = dict(p for g in optimizer.param_groups for p in zip(g["param_names"], g["params"], strict=True))
        parts = {key: shard_like(tensor.clone(), live[key.split("/")[2]]) for key, tensor in state.items()}
        restore(optimizer, parts, groups)
    return whole, again, theirs, ours, group


def restore(optimizer: torch.optim.Optimizer, state: dict[str, Tensor], groups: Any) -> None:
    for group, own in zip(groups, optimizer.param_groups, strict=True):
        own.setdefault("initial_lr", own["lr"])  # as the loop does
        group |= {k: own[k] for k in ("foreach", "fused", "initial_lr") if k in own}
    restore_optimizer("model", optimizer, state, groups, Path("checkpoint"))


def check_sharded_sgd(ranks: Ranks) -> None:
    rows = slice(0, 4) if ranks.rank == 0 else slice(4, 8)
    compare(ranks, lambda task: shard(task, ["model"], ranks), rows, "sgd")


def check_sharded_adamw_on_ragged_batches(ranks: Ranks) -> None:
    rows = slice(0, 5) if ranks.rank == 0 else slice(5, 8)
    compare(ranks, lambda task: shard(task, ["model"], ranks), rows, "adamw")


def check_sharded_rmsprop(ranks: Ranks) -> None:
    rows = slice(0, 4) if ranks.rank == 0 else slice(4, 8)
    compare(ranks, lambda task: shard(task, ["model"], ranks), rows, "rmsprop")


def check_split_sgd(ranks: Ranks) -> None:
    compare(ranks, lambda t: parallelize(t.model, t.model.tensor_parallel_plan(), ranks), slice(8), "sgd")


def check_split_adamw(ranks: Ranks) -> None:
    compare(ranks, lambda t: parallelize(t.model, t.model.tensor_parallel_plan(), ranks), slice(8), "adamw")


def check_large_layers_are_gathered_by_themselves(ranks: Ranks) -> None:
    task = nn.Module()
    task.model = nn.Sequential(nn.Linear(400, 400), nn.Sequential(nn.Linear(400, 400), nn.ReLU()), nn.Linear(400, 10))
    shard(task, ["model"], ranks)
    is_own = {name: hasattr(module, "unshard") for name, module in task.model.named_modules()}
    assert is_own == {"": True, "0": True, "1": True, "1.0": True, "1.1": False, "2": False}
    assert sum(sharding.local(p).numel() for p in task.parameters()) < 0.51 * sum(p.numel() for p in task.parameters())
    task.model(torch.randn(3, 400)).sum().backward()


def check_averages_of_sharded_weights(ranks: Ranks) -> None:
    rows = slice(0, 4) if ranks.rank == 0 else slice(4, 8)
    whole, part = OneNetwork(), OneNetwork()
    group = shard(part, ["model"], ranks)
    ours, theirs = Average(part.model, 0.9), Average(whole.model, 0.9)
    train(part, build("sgd", part.model), group, rows)
    train(whole, build("sgd", whole.model), SingleProcess(), slice(8))
    ours.update()
    theirs.update()
    with ours.in_place(), theirs.in_place():
        assert_same_weights(full_tensors(part.state_dict()), whole)


def check_a_loss_that_is_no_number_is_seen_by_all(ranks: Ranks) -> None:
    task = OneNetwork()
    group = shard(task, ["model"], ranks)
    bad = torch.tensor(float("nan") if ranks.rank else 1.0)
    assert torch.isnan(group.average_gradients(task.parameters(), bad, 4))


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return run_on_two_ranks(__file__, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", names(globals()))
def test_two_ranks(name: str, answers: dict[str, str]) -> None:
    assert answers[name] == ""


def test_alone_nothing_is_sharded() -> None:
    task, alone = OneNetwork(), SingleProcess()
    assert shard(task, ["model"], alone) is alone
    assert parallelize(task.model, task.model.tensor_parallel_plan(), alone) is alone
    assert not any(isinstance(p, DTensor) for p in task.parameters())
    assert all(torch.equal(full, task.state_dict()[name]) for name, full in full_tensors(task.state_dict()).items())


@pytest.mark.parametrize(("size", "said"), [(3, "model.num_heads=4 cannot be split over 3"), (4, "up has 6 outputs")])
def test_heads_and_widths_that_cannot_be_split_are_told(size: int, said: str) -> None:
    model = OneNetwork().model
    model.add_module("up", nn.Linear(4, 6))
    with pytest.raises(ConfigError, match=said) as caught:
        parallelize(model, {"up": "colwise"}, Ranks(Place(0, size, 0, "127.0.0.1", 1)))
    assert "runtime.devices" in str(caught.value.hint)
