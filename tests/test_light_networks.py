"""MobileNet and ShuffleNet: published sizes are in test_inspection; here stems, channels, and that they learn."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcli.datasets.mnist import read_mnist
from dlcli.models.mobilenet import build_mobilenet
from dlcli.models.resnet import build_resnet
from dlcli.models.shufflenet import build_shufflenet
from dlcli.planning.network import Call, examine

Maker = Callable[..., Any]
LIGHT: dict[str, Maker] = {
    "mobilenet v2": partial(build_mobilenet, version="v2"),
    "mobilenet v3 small": partial(build_mobilenet, version="v3_small"),
    "mobilenet v3 large": partial(build_mobilenet, version="v3_large"),
    "shufflenet": build_shufflenet,
}
each = pytest.mark.parametrize("make", LIGHT.values(), ids=LIGHT.keys())


@each
@pytest.mark.parametrize(("stem", "side", "last"), [("cifar", 32, 4), ("imagenet", 224, 7)])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_stem_suits_the_images(make: Maker, stem: str, side: int, last: int, channels: int) -> None:
    with torch.device("meta"):
        network = make(num_classes=7, image_shape=[channels, side, side], stem=stem, dropout=0.2)
        seen: list[int] = []
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda m, args, output: seen.append(output.shape[-1]))
        assert network(torch.empty(2, channels, side, side)).shape == (2, 7)
    assert min(size for size in seen if size > 1) == last, "1 x 1 maps are of squeeze-and-excitation"


@each
def test_it_is_lighter_than_resnet_18(make: Maker) -> None:
    with torch.device("meta"):
        call = Call((torch.empty(1, 3, 32, 32),))
        light, heavy = (examine(m(num_classes=10, image_shape=[3, 32, 32]), call) for m in (make, build_resnet))
    assert light.parameters * 2 < heavy.parameters
    assert (light.flops or 0) * 5 < (heavy.flops or 0)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "multiplier"), [("mobilenet v2", 0.25), ("shufflenet", 0.5)])
def test_it_learns_digits(
    name: str, multiplier: float, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2,000 images of MNIST made 16 x 16, five times: 0.88 of 1,000 others were right, of the nearest mean 0.74."""
    monkeypatch.setenv("DLCLI_CACHE", str(tmp_path))
    data = read_mnist(root=str(data_root), download=False)
    (images, labels), (held_out, answers) = small(data.train, 2000), small(data.test, 1000)
    torch.manual_seed(0)
    network = LIGHT[name](num_classes=10, image_shape=[1, 16, 16], multiplier=multiplier)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=5 * 32)
    for batch in [part for _ in range(5) for part in torch.randperm(2000).split(64)]:
        optimizer.zero_grad()
        F.cross_entropy(network(images[batch]), labels[batch]).backward()
        optimizer.step()
        schedule.step()
    network.eval()
    with torch.no_grad():
        right = (network(held_out).argmax(1) == answers).double().mean().item()
    means = torch.stack([images[labels == digit].mean(0) for digit in range(10)])
    nearest = torch.cdist(held_out.flatten(1), means.flatten(1)).argmin(1)
    assert right > (nearest == answers).double().mean().item() + 0.05


def small(examples: Any, count: int) -> tuple[Tensor, Tensor]:
    """The first images, normalised and made 16 x 16, and their labels."""
    images = (examples.images[:count].float() / 255 - 0.1307) / 0.3081
    return F.interpolate(images, size=16, mode="area"), examples.labels[:count]
