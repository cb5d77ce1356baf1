"""`dlcli info`: counts against those made by hand, every model of conf, and that nothing is allocated."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from program import dlcli, environment
from torch import nn

from dlcli.commands.info import as_experiment
from dlcli.config import compose_command
from dlcli.config.folders import options, packaged_conf
from dlcli.errors import ConfigError
from dlcli.planning import network as inspection
from dlcli.planning.network import Call, Network
from dlcli.training import build
from dlcli.training.allow_list import Builder
from dlcli.training.completing import complete

CONF = [packaged_conf()]


def inspected(*words: str) -> dict[str, Network]:
    tree = compose_command(as_experiment(words, CONF), search=CONF).tree
    return inspection.inspect(complete(tree), Builder.for_search(CONF))


def test_an_mlp_is_counted_as_by_hand() -> None:
    network = inspected("mlp", "dataset=mnist", "model.hidden=[100,50]", "regularization=none")["model"]
    products = 784 * 100 + 100 * 50 + 50 * 10
    assert network.flops == 2 * products
    assert network.parameters == network.trainable == products + 100 + 50 + 10
    assert network.weight_bytes == network.gradient_bytes == 4 * network.parameters
    steps = 4 * 6  # Adam counts its steps, float32, for each of six tensors
    assert network.optimizer_bytes == 2 * 4 * network.parameters + steps
    # The backward pass needs the input of each linear layer; the second's and third's are the ReLUs' outputs too.
    assert network.activation_bytes == 4 * (784 + 100 + 50)


def test_convolutions_and_their_maps_are_counted_as_by_hand() -> None:
    network = inspected("simple_cnn", "dataset=mnist", "model.channels=[32]", "model.hidden=[]")["model"]
    layers = {layer.name: layer for layer in network.layers}
    assert layers["features.0"].output == (1, 32, 28, 28) and layers["features.2"].output == (1, 32, 14, 14)
    assert layers["features.0"].flops == 2 * 9 * 32 * 28 * 28
    assert layers["head.1"].flops == 2 * 32 * 14 * 14 * 10
    assert network.flops == sum(layers[name].flops or 0 for name in ("features.0", "head.1"))
    assert layers["features"].parameters == 32 * 9 + 32


def test_attention_and_recurrence_are_counted_as_by_hand() -> None:
    words = ("dataset=mnist", "model.hidden_size=64", "model.num_layers=3", "model.num_heads=4", "model.ffn_size=96")
    network = inspected("transformer", *words)["model"]
    block = 28 * (4 * 64 * 64 + 2 * 64 * 96) + 2 * 28 * 28 * 64
    assert network.flops == 2 * (28 * 28 * 64 + 3 * block + 64 * 10)
    network = inspected("gru", "dataset=mnist", "model.hidden_size=64")["model"]
    assert network.flops == 2 * (28 * 3 * 64 * (28 + 64 + 64 + 64) + 64 * 10)


def test_a_mixture_costs_the_experts_that_a_token_goes_through() -> None:
    few, many = (inspected("moe", f"model.experts={n}")["model"] for n in (4, 64))
    assert many.parameters > 5 * few.parameters
    assert (many.flops or 0) - (few.flops or 0) == 2 * 2 * 28 * 128 * (64 - 4), "the router's alone"


def test_known_networks_have_the_published_sizes() -> None:
    """Parameters and multiply-adds of torchvision's tables; ImageNet's classes and images of 224 x 224."""
    imagenet = ("dataset.image_shape=[3,224,224]", "dataset.num_classes=1000", "model.stem=imagenet")
    published = {
        ("resnet", "model.depth=18"): (11_689_512, 1.81),
        ("resnet", "model.depth=50"): (25_557_032, 4.09),
        ("mobilenet", "model.version=v2"): (3_504_872, 0.30),
        ("mobilenet", "model.version=v3_small"): (2_542_856, 0.06),
        ("shufflenet", "model.multiplier=1.0"): (2_278_604, 0.14),
    }
    for words, (parameters, giga) in published.items():
        network = inspected(*words, *imagenet)["model"]
        assert network.parameters == parameters, words
        assert (network.flops or 0) / 2e9 == pytest.approx(giga, abs=0.0101), words


def test_frozen_parameters_are_not_trainable() -> None:
    with torch.device("meta"):
        network = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
        network[0].requires_grad_(False)
        found = inspection.examine(network, Call((torch.empty(1, 8),)))
    assert (found.parameters, found.trainable) == (8 * 4 + 4 + 4 * 2 + 2, 4 * 2 + 2)


def test_a_network_that_needs_data_is_told_by_its_parameters() -> None:
    class Curious(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) if x.sum().item() else x

    with torch.device("meta"):
        found = inspection.examine(Curious(8, 4), Call((torch.empty(1, 8),)))
    assert found.parameters == 36 and found.flops is None and "without data" in found.reason


@pytest.mark.parametrize("name", options("model", CONF))
def test_every_model_can_be_looked_at(name: str) -> None:
    tree = compose_command(as_experiment([name], CONF), search=CONF).tree
    if tree["dataset"].get("num_classes", 0) is None:
        pytest.skip(f"{tree['dataset']['name']}: only its data tell their classes")
    found = inspection.inspect(complete(tree), Builder.for_search(CONF))
    for network, module in build.build_networks(Builder.for_search(CONF), tree["model"]).items():
        assert found[network].parameters == sum(p.numel() for p in module.parameters())
        assert found[network].optimizer_bytes is not None, found[network].reason
        if name == "faster_rcnn":  # how many proposals it looks at, only the pictures tell
            continue
        assert found[network].flops and found[network].activation_bytes, found[network].reason


def test_the_length_of_the_one_example_is_said_and_the_same_each_time() -> None:
    for name, words in (("spoken_digits", " s of sound"), ("multi30k", " tokens"), ("sst2_lstm", " tokens")):
        first, second = (inspected(name)["model"] for _ in range(2))
        assert first.example.endswith(words) and (first.example, first.flops) == (second.example, second.flops)
    network = inspected("sst2_lstm")["model"]
    steps = int(network.example.split()[0])
    assert 8 < steps <= 16, "a quarter of max_length at most, as most sentences"
    assert next(layer for layer in network.layers if layer.name == "cells").output == (1, steps, 128)
    assert inspected("shakespeare")["model"].example == "128 tokens"
    assert inspected("mnist")["model"].example == "1x28x28"


def test_layers_of_a_recurrent_module_and_calls_of_a_shared_one_are_told() -> None:
    kinds = {layer.name: layer.kind for layer in inspected("lstm", "model.num_layers=3")["model"].layers}
    assert kinds["cells"] == "LSTM, 3 layers"
    both_ways = nn.GRU(4, 4, 2, bidirectional=True), nn.RNN(4, 4)
    assert [inspection.kind_of_layer(module) for module in both_ways] == ["BiGRU, 2 layers", "RNN"]
    calls = {layer.name: layer.calls for layer in inspected("multi30k")["model"].layers}
    assert calls["tokens"] == 2 and calls["encoder_norm"] == 1


def test_what_is_called_as_a_function_is_named_and_only_there() -> None:
    assert inspected("mnist")["model"].functional == ["max_pool2d", "relu"]
    assert inspected("mlp")["model"].functional == inspected("resnet", "model.depth=18")["model"].functional == []


def test_a_detector_is_followed_as_far_as_shapes_go() -> None:
    network = inspected("faster_rcnn")["model"]
    layers = {layer.name: layer for layer in network.layers}
    assert network.flops is None and layers["roi_heads"].flops is None and layers["roi_heads"].calls == 0
    assert layers["backbone"].output == (1, 256, 64, 80) and layers["rpn.head.conv"].calls == 5
    products = 64 * 3 * 7 * 7 * (256 // 2) * (320 // 2)
    assert layers["backbone.body.conv1"].flops == 2 * products
    assert network.reason.endswith("depends on their values") and network.activation_bytes is None


def test_groups_that_rest_are_not_counted_as_trained() -> None:
    network = inspected("finetune", "dataset.num_classes=3")["model"]
    assert network.trained[1] == 2048 * 3 + 3 and network.trained[5] == network.parameters
    words = ("parameter_groups.rest.match=layers.1.*", "parameter_groups.rest.from_epoch=never")
    network = inspected("digits", *words)["model"]
    resting = 64 * 512 + 512
    assert network.trainable == network.parameters - resting and network.gradient_bytes == 4 * network.trainable


def test_a_models_name_stands_for_the_experiment_on_top_of_its_file() -> None:
    assert as_experiment(["resnet", "model.depth=34"], CONF) == ["cifar10", "model=resnet", "model.depth=34"]
    assert as_experiment(["seed=1", "lstm"], CONF) == ["seed=1", "mnist_rows_lstm", "model=lstm"]
    assert as_experiment(["mnist"], CONF) == ["mnist"]
    assert as_experiment([], CONF) == []


def test_ten_billion_parameters_take_no_memory(tmp_path: Path) -> None:
    """Their weights alone would be 39 GB; the address space allowed is a sixth of that."""
    words = [
        "transformer",
        "model.hidden_size=8192",
        "model.num_layers=12",
        "model.ffn_size=32768",
        "model.num_heads=64",
    ]
    limit = 6 * 2**30
    done = subprocess.run(
        [sys.executable, "-m", "dlcli", "info", *words, "--json"], cwd=tmp_path, env=environment(),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    network: dict[str, Any] = json.loads(done.stdout)["networks"]["model"]
    assert network["parameters"] == 9_665_273_866
    assert network["weight_bytes"] == 4 * network["parameters"]


def test_what_is_only_described_may_be_larger_than_what_is_trained(tmp_path: Path) -> None:
    words = ("gpt", "model.num_layers=200", "model.hidden_size=8192")
    done = dlcli("info", *words, "--depth", "0", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["networks"]["model"]["parameters"] > 55e9
    tree = compose_command(["shakespeare", *words[1:]]).tree
    tree["dataset"]["num_tokens"] = tree["model"]["num_tokens"] = 65
    with pytest.raises(ConfigError, match="parameters and buffers, more than 20,000,000,000"):
        build.build_meta_task(Builder.for_search(), tree)


def test_the_tables_fit_80_columns_and_the_latency_is_measured(tmp_path: Path) -> None:
    done = dlcli("info", "mobilenet", "model.multiplier=0.5", "--latency", cwd=tmp_path, COLUMNS="80")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(re.match(r"latency +[\d.]+ ms +[\d.]+ to [\d.]+ ms; one example", line) for line in lines)
    answer = json.loads(dlcli("info", "mlp", "--latency", "--json", cwd=tmp_path).stdout)
    times = answer["networks"]["model"]["latency"]
    assert 0 < times["low_s"] <= times["median_s"] <= times["high_s"] < 1


def test_notes_are_whole_in_80_columns_and_nothing_stands_for_nothing(tmp_path: Path) -> None:
    told = {name: dlcli("info", name, "--depth", "3", cwd=tmp_path, COLUMNS="80").stdout for name in ("mnist", "voc")}
    told["faster_rcnn"] = dlcli("info", "faster_rcnn", "--depth", "1", cwd=tmp_path, COLUMNS="80").stdout
    assert max(len(line) for shown in told.values() for line in shown.splitlines()) <= 80
    assert "Identity" not in "".join(told.values())
    assert "note: no layer is listed for what is called as a function: max_pool2d, relu" in told["mnist"]
    assert "without data: what follows depends on their values" in " ".join(told["faster_rcnn"].split())


def test_a_name_that_is_no_model_is_told_with_the_nearest(tmp_path: Path) -> None:
    for name, meant in (("mnst", "mnist"), ("grru", "gru")):
        done = dlcli("info", name, cwd=tmp_path)
        assert done.returncode == 2 and f"Did you mean {meant}?" in done.stderr


def test_the_load_of_a_trained_runs_experts_is_shown(tmp_path: Path) -> None:
    words = ("digits", "model=moe", "model.hidden_size=32", "trainer.epochs=2", "tracker=none")
    assert dlcli("train", *words, cwd=tmp_path).returncode == 0
    done = dlcli("info", "--run", "latest", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "block  expert 0  expert 1  expert 2  expert 3" in done.stdout
    answer = json.loads(dlcli("info", "--run", "latest", "--json", cwd=tmp_path).stdout)["networks"]["model"]
    assert [sum(block) for block in answer["expert_load"]] == pytest.approx([1.0, 1.0])
    refused = dlcli("info", "mlp", "--run", "latest", cwd=tmp_path)
    assert refused.returncode == 2 and "dlcli info --run latest" in refused.stderr


def test_a_plain_run_shows_its_network(quick_run: Path, tmp_path: Path) -> None:
    done = dlcli("info", "--run", str(quick_run), cwd=tmp_path)
    assert done.returncode == 0 and "expert" not in done.stdout, done.stderr
