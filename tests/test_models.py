"""Networks: the layer sizes that the references name, and every model config on the shapes it says it takes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dlcli.config import compose_command
from dlcli.config.folders import bodies, packaged_conf
from dlcli.errors import CheckpointError, ConfigError
from dlcli.models.lenet5 import LeNet5
from dlcli.models.mnist_net import MnistNet
from dlcli.models.resnet import build_resnet
from dlcli.models.simple_cnn import SimpleCNN
from dlcli.training import build, checks
from dlcli.training.allow_list import Builder


def num_parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_mnist_net_is_the_reference() -> None:
    network = MnistNet(num_classes=10, image_shape=[1, 28, 28])
    assert network.fc1.in_features == 9216
    assert (network.dropout1.p, network.dropout2.p) == (0.25, 0.5)
    assert num_parameters(network) == 1_199_882


def test_the_small_cnns_are_the_references() -> None:
    small = SimpleCNN(num_classes=10, image_shape=[1, 28, 28], channels=[32], hidden=[])
    assert isinstance(small.head[1], nn.Linear) and small.head[1].in_features == 32 * 14 * 14
    larger = SimpleCNN(num_classes=10, image_shape=[3, 32, 32], channels=[32, 64, 128], hidden=[512], dropout=0.5)
    assert isinstance(larger.head[1], nn.Linear) and larger.head[1].in_features == 2048
    with pytest.raises(ConfigError, match="poolings"):
        SimpleCNN(num_classes=10, image_shape=[1, 8, 8], channels=[8, 8, 8, 8])


def test_lenet5_has_the_papers_size() -> None:
    assert num_parameters(LeNet5(num_classes=10, image_shape=[1, 28, 28])) == 61_706


@pytest.mark.parametrize(("depth", "stem", "size"), [(18, "cifar", 32), (50, "imagenet", 64)])
def test_resnets_take_small_and_large_images(depth: int, stem: str, size: int) -> None:
    with torch.device("meta"):
        network = build_resnet(num_classes=7, image_shape=[1, size, size], depth=depth, stem=stem)
    assert network(torch.empty(2, 1, size, size, device="meta")).shape == (2, 7)


OF_IMAGES = [  # the others go all the way in test_conf_walk.py
    name
    for name, body in bodies("model", [packaged_conf()])
    if body["facts"]["kind"] in ("classifier", "gan") and "images" in body["facts"].get("takes", ["images"])
]


@pytest.mark.parametrize("name", OF_IMAGES)
@pytest.mark.parametrize("batch_norm", ["false", "true"])
def test_every_model_fits_its_task_on_the_meta_device(name: str, batch_norm: str) -> None:
    words = ["digits_gan"] if name == "gan_mlp" else ["mnist", f"model={name}", "regularization.dropout=0.2"]
    tree = compose_command([*words, f"regularization.batch_norm={batch_norm}"]).tree
    builder = Builder.for_search([packaged_conf()])
    task = build.build_meta_task(builder, tree)
    checks.check_shapes(task, tree)
    assert all(p.is_meta for p in task.parameters())


def test_shapes_that_do_not_fit_are_told_before_any_data() -> None:
    tree = compose_command(["mnist"]).tree
    builder = Builder.for_search([packaged_conf()])
    task = build.build_meta_task(builder, tree)
    tree["dataset"]["image_shape"] = [3, 28, 28]
    with pytest.raises(ConfigError, match="3x28x28"):
        checks.check_shapes(task, tree)


def test_only_targets_of_the_conf_folder_are_built() -> None:
    builder = Builder.for_search([packaged_conf()])
    for target in ("os.system", "builtins.eval", "torch.load", "torch.hub.load", "dlcli.cli.main", "torch.optim", None):
        with pytest.raises(CheckpointError, match="asks to build"):
            builder.build({"_target_": target})


def test_arguments_that_a_target_does_not_take_are_named() -> None:
    builder = Builder.for_search([packaged_conf()])
    with pytest.raises(ConfigError, match="depths") as caught:
        builder.build({"_target_": "dlcli.models.mlp.MLP", "num_classes": 2, "image_shape": [1, 2, 2], "depths": 3})
    assert "hidden" in str(caught.value.hint)
