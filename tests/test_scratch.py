"""The foundations in NumPy against PyTorch in float64, and PyTorch's parts of dlcli against them: two that agree."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dlcli.lessons.scratch
from dlcli.lessons.scratch.activations import ACTIVATIONS, Array
from dlcli.lessons.scratch.backprop import TwoLayerNetwork, numerical_gradients
from dlcli.lessons.scratch.data import SETS
from dlcli.lessons.scratch.neuron import Neuron, accuracy, cross_entropy
from dlcli.lessons.scratch.optimizers import SGD, Adam, Momentum, Nesterov, Optimizer, RMSprop
from dlcli.lessons.scratch.regularization import BatchNorm, dropout_mask, l1, l2
from dlcli.optimizers.penalties import L1

FOLDER = Path(dlcli.lessons.scratch.__file__).parent
TORCH = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu, "leaky_relu": partial(F.leaky_relu)}


def same(ours: Array | float, theirs: Tensor, tolerance: float = 1e-10) -> bool:
    """Equal to `tolerance`, of the value where it is large."""
    return np.allclose(ours, theirs.detach().numpy(), rtol=tolerance, atol=tolerance)


def tensor(values: Array | float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def test_nothing_but_numpy_is_imported() -> None:
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= {
                "__future__",
                "collections",
                "dataclasses",
                "numpy",
                "dlcli",
            }
            assert all(name.startswith("dlcli.lessons.scratch") for name in names if name.startswith("dlcli")), path


# --------------------------------------------------------------------------------------------------------- activations


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_and_their_slopes_equal_autograd(name: str) -> None:
    z = np.concatenate([np.linspace(-5, 5, 1001), [-800.0, -40.0, 0.0, 40.0, 800.0]])
    there = tensor(z)
    value = TORCH[name](there)
    (slope,) = torch.autograd.grad(value.sum(), there)
    assert same(ACTIVATIONS[name].value(z), value)
    assert same(ACTIVATIONS[name].slope(z), slope)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_fills_its_range_and_does_not_leave_it(name: str) -> None:
    activation = ACTIVATIONS[name]
    values = activation.value(np.linspace(-1e6, 1e6, 10_001))
    assert activation.low <= values.min() and values.max() <= activation.high
    for end, reached in ((activation.low, values.min()), (activation.high, values.max())):
        assert reached == pytest.approx(end) if np.isfinite(end) else abs(reached) >= 1e4


# -------------------------------------------------------------------------------------------------------------- neuron


@pytest.mark.parametrize("seed", range(20))
def test_a_neuron_learns_what_a_line_separates_to_the_last_point(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x_BD, y_B = SETS["separable"](rng)
    neuron = Neuron.draw(num_inputs=2, rng=rng)
    losses = neuron.train(x_BD, y_B)
    assert accuracy(neuron.predict(x_BD), y_B) == 1.0
    assert len(losses) == 201 and losses[-1] < 0.2 < losses[0]


def test_a_neuron_is_drawn_from_the_standard_normal_distribution() -> None:
    rng = np.random.default_rng(0)
    drawn = [Neuron.draw(3, rng) for _ in range(4_000)]
    for values in (np.concatenate([n.w_D for n in drawn]), np.array([n.b for n in drawn])):
        assert abs(values.mean()) < 0.05 and abs(values.std() - 1) < 0.05


def test_a_neurons_loss_and_gradients_equal_autograd() -> None:
    rng = np.random.default_rng(1)
    x_BD, y_B = 5 * rng.standard_normal((50, 4)), (rng.random(50) > 0.5).astype(float)
    neuron = Neuron.draw(4, rng)
    w_D, b = tensor(neuron.w_D), tensor(neuron.b)
    z_B = torch.tensor(x_BD) @ w_D + b
    loss = F.binary_cross_entropy_with_logits(z_B, torch.tensor(y_B))
    slopes = torch.autograd.grad(loss, [w_D, b])
    assert same(neuron.predict(x_BD), torch.sigmoid(z_B)) and same(cross_entropy(neuron.sums(x_BD), y_B), loss)
    assert all(same(ours, theirs) for ours, theirs in zip(neuron.gradients(x_BD, y_B), slopes, strict=True))


def test_the_loss_is_finite_where_a_probability_is_rounded_to_one() -> None:
    assert cross_entropy(np.array([1000.0, -1000.0]), np.array([0.0, 1.0])) == 1000.0


# ------------------------------------------------------------------------------------------------------------ backprop


def pytorch_loss(network: TwoLayerNetwork, x_BD: Array, y_B: Array) -> tuple[Tensor, list[Tensor]]:
    w1_DH, b1_H, w2_HK, b2_K = leaves = [tensor(getattr(network, field.name)) for field in fields(network)]
    z_BK = torch.tanh(torch.tensor(x_BD) @ w1_DH + b1_H) @ w2_HK + b2_K
    return F.binary_cross_entropy_with_logits(z_BK[:, 0], torch.tensor(y_B)), leaves


def arrays(network: TwoLayerNetwork) -> list[Array]:
    return [getattr(network, field.name) for field in fields(network)]


@pytest.mark.parametrize("scale", [0.01, 1.0, 5.0])
def test_hand_written_backpropagation_equals_autograd(scale: float) -> None:
    rng = np.random.default_rng(2)
    x_BD, y_B = rng.standard_normal((64, 3)), (rng.random(64) > 0.5).astype(float)
    network = TwoLayerNetwork.draw(3, 7, rng, scale=scale)
    network.b1_H, network.b2_K = rng.standard_normal(7), rng.standard_normal(1)
    loss, leaves = pytorch_loss(network, x_BD, y_B)
    slopes = torch.autograd.grad(loss, leaves)
    ours = arrays(network.gradients(x_BD, y_B))
    assert same(network.loss(x_BD, y_B), loss)
    assert all(np.abs(a - b.numpy()).max() < 1e-10 for a, b in zip(ours, slopes, strict=True))
    assert [a.shape for a in ours] == [a.shape for a in arrays(network)]


def test_training_follows_torchs_sgd_for_all_1000_epochs() -> None:
    rng = np.random.default_rng(3)
    x_BD, y_B = SETS["clouds"](rng, 40)
    network = TwoLayerNetwork.draw(2, 4, rng)
    _, leaves = pytorch_loss(network, x_BD, y_B)
    optimizer, theirs = torch.optim.SGD(leaves, lr=0.01), []
    for _ in range(1000):
        w1_DH, b1_H, w2_HK, b2_K = leaves
        z_BK = torch.tanh(torch.tensor(x_BD) @ w1_DH + b1_H) @ w2_HK + b2_K
        loss = F.binary_cross_entropy_with_logits(z_BK[:, 0], torch.tensor(y_B))
        theirs.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ours = network.train(x_BD, y_B)
    assert np.abs(np.array(ours[:-1]) - theirs).max() < 1e-10
    assert all(same(a, b) for a, b in zip(arrays(network), leaves, strict=True))


def test_numerical_gradients_agree_and_leave_the_network_as_it_was() -> None:
    rng = np.random.default_rng(4)
    x_BD, y_B = SETS["moons"](rng, 50)
    network = TwoLayerNetwork.draw(2, 3, rng, scale=1.0)
    before = [a.copy() for a in arrays(network)]
    numerical = arrays(numerical_gradients(network, x_BD, y_B))
    assert all((a == b).all() for a, b in zip(arrays(network), before, strict=True))
    by_hand = arrays(network.gradients(x_BD, y_B))
    assert all(np.abs(a - b).max() < 1e-8 for a, b in zip(numerical, by_hand, strict=True))


def trained(data: str, seed: int, *, lr: float, scale: float) -> tuple[float, float]:
    """Accuracy and last loss after 1,000 epochs."""
    rng = np.random.default_rng(seed)
    x_BD, y_B = SETS[data](rng)
    network = TwoLayerNetwork.draw(2, 4, rng, scale=scale)
    losses = network.train(x_BD, y_B, lr=lr)
    return accuracy(network.predict(x_BD), y_B), losses[-1]


@pytest.mark.parametrize("seed", range(5))
def test_the_standard_start_learns_clouds_and_stays_on_the_saddle_of_xor(seed: int) -> None:
    right, loss = trained("clouds", seed, lr=0.01, scale=0.01)
    assert right == 1.0 and loss < 0.2
    right, loss = trained("xor", seed, lr=0.01, scale=0.01)
    assert abs(loss - np.log(2)) < 1e-3, "it has not moved"
    right, loss = trained("xor", seed, lr=1.0, scale=1.0)
    assert right > 0.99 and loss < 0.1, "a bolder start leaves it"


# ---------------------------------------------------------------------------------------------------------- optimizers

PAIRS: dict[str, tuple[Callable[[], Optimizer], Callable[[list[Tensor]], torch.optim.Optimizer]]] = {
    "sgd": (lambda: SGD(0.01), lambda p: torch.optim.SGD(p, lr=0.01)),
    # the textbook's (1 - beta) is a factor of torch's learning rate
    "momentum": (lambda: Momentum(0.05), lambda p: torch.optim.SGD(p, lr=0.05 * (1 - 0.9), momentum=0.9)),
    "nesterov": (
        lambda: Nesterov(0.05),
        lambda p: torch.optim.SGD(p, lr=0.05 * (1 - 0.9), momentum=0.9, nesterov=True),
    ),
    "rmsprop": (lambda: RMSprop(0.01), lambda p: torch.optim.RMSprop(p, lr=0.01, alpha=0.9)),
    "adam": (lambda: Adam(0.05), lambda p: torch.optim.Adam(p, lr=0.05)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_an_optimizer_walks_torchs_path_for_100_steps(name: str) -> None:
    """On a curved, noisy loss of a matrix, whose gradient depends on where the weights are."""
    ours, theirs = PAIRS[name]
    rng = np.random.default_rng(5)
    w_DK, a_DD = rng.standard_normal((4, 3)), rng.standard_normal((4, 4))
    v_DK = tensor(w_DK)
    optimizer, reference = ours(), theirs([v_DK])
    for _ in range(100):
        noise_DK = rng.standard_normal((4, 3))
        w_DK = optimizer.step(w_DK, a_DD.T @ (a_DD @ w_DK) + np.sin(w_DK) + 0.1 * noise_DK)
        a, v = torch.tensor(a_DD), v_DK.detach()
        v_DK.grad = a.T @ (a @ v) + torch.sin(v) + 0.1 * torch.tensor(noise_DK)
        reference.step()
        assert np.abs(w_DK - v_DK.detach().numpy()).max() < 1e-10
    assert np.isfinite(w_DK).all()


def test_the_textbooks_momentum_is_not_torchs_at_the_same_rate() -> None:
    w, v = np.ones(1), tensor(np.ones(1))
    optimizer, reference = Momentum(0.01), torch.optim.SGD([v], lr=0.01, momentum=0.9)
    for _ in range(20):
        w = optimizer.step(w, w)
        v.grad = v.detach().clone()
        reference.step()
    moved, torchs = 1 - w.item(), 1 - v.item()
    assert 3 < torchs / moved < 10


def test_without_its_correction_adams_first_step_would_be_three_times_as_long() -> None:
    optimizer = Adam(lr=0.1)
    assert optimizer.step(np.zeros(1), np.array([7.0])) == pytest.approx(-0.1)
    uncorrected = 0.1 * optimizer.m / (np.sqrt(optimizer.s) + 1e-8)
    assert float(uncorrected[0]) == pytest.approx(0.1 * 3.162, rel=1e-3)


# ------------------------------------------------------------------------------------------------------ regularization


def test_batch_norm_equals_torchs_in_values_gradients_and_running_statistics() -> None:
    rng = np.random.default_rng(6)
    ours, theirs = BatchNorm(5), nn.BatchNorm1d(5, dtype=torch.float64)
    ours.gamma_D, ours.beta_D = rng.standard_normal(5), rng.standard_normal(5)
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor(ours.gamma_D))
        theirs.bias.copy_(torch.tensor(ours.beta_D))
    for _ in range(10):
        x_BD, dy_BD = 3 + 2 * rng.standard_normal((16, 5)), rng.standard_normal((16, 5))
        there = tensor(x_BD)
        y = theirs(there)
        slopes = torch.autograd.grad(y, [there, theirs.weight, theirs.bias], torch.tensor(dy_BD))
        assert same(ours.forward(x_BD, training=True), y)
        assert all(same(a, b) for a, b in zip(ours.backward(dy_BD), slopes, strict=True))
        assert same(ours.running_mean_D, theirs.running_mean) and same(ours.running_var_D, theirs.running_var)
    x_BD = rng.standard_normal((3, 5))
    assert same(ours.forward(x_BD, training=False), theirs.eval()(torch.tensor(x_BD)))


def test_dropout_with_torchs_mask_equals_torch_in_values_and_gradients() -> None:
    rng = np.random.default_rng(7)
    x_BD, dy_BD = rng.standard_normal((64, 32)), rng.standard_normal((64, 32))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mask_BD = F.dropout(torch.ones(64, 32, dtype=torch.float64), 0.3).numpy()
        torch.manual_seed(0)
        there = tensor(x_BD)
        y = F.dropout(there, 0.3)
    (slope,) = torch.autograd.grad(y, there, torch.tensor(dy_BD))
    assert same(x_BD * mask_BD, y) and same(dy_BD * mask_BD, slope)
    ours = dropout_mask((64, 32), 0.3, rng)
    assert np.allclose(np.unique(ours), np.unique(mask_BD)), "zeros, and 1 / 0.7"


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5, 0.9])
def test_dropout_keeps_the_mean_and_drops_its_share(rate: float) -> None:
    mask = dropout_mask((200_000,), rate, np.random.default_rng(8))
    assert abs((mask == 0).mean() - rate) < 0.005
    assert abs(mask.mean() - 1) < 0.03


def test_l1_equals_dlclis_penalty_in_value_and_gradient() -> None:
    w = np.random.default_rng(9).standard_normal((3, 4))
    w[0, 0] = 0.0
    layer = nn.Linear(4, 3, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(w))
    penalty = L1(0.01)(layer)
    penalty.backward()
    value, slope = l1(w, 0.01)
    assert same(value, penalty) and same(slope, layer.weight.grad)
    assert layer.bias.grad is None


def test_l2_equals_torchs_weight_decay_and_autograd() -> None:
    w, g = np.random.default_rng(10).standard_normal((2, 3, 4))
    value, slope = l2(w, 0.02)
    there = tensor(w)
    penalty = 0.01 * (there**2).sum()
    assert same(value, penalty) and same(slope, torch.autograd.grad(penalty, there)[0])
    decayed = tensor(w)
    decayed.grad = torch.tensor(g)
    torch.optim.SGD([decayed], lr=0.1, weight_decay=0.02).step()
    assert same(SGD(0.1).step(w, g + slope), decayed)


# ---------------------------------------------------------------------------------------------------------------- data


@pytest.mark.parametrize("name", SETS)
def test_points_are_of_two_equal_classes_and_the_same_for_the_same_seed(name: str) -> None:
    x_BD, y_B = SETS[name](np.random.default_rng(11))
    again, _ = SETS[name](np.random.default_rng(11))
    assert x_BD.shape == (200, 2) and (x_BD == again).all() and set(y_B) == {0.0, 1.0}
    assert 0.2 < y_B.mean() < 0.8 if name == "separable" else y_B.mean() == 0.5
