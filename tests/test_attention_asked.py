"""Attention can be asked for: the weights are the forward pass's own, and `dlcli predict --attention` shows them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from dlcli.config.folders import packaged_conf
from dlcli.datasets.kinds import KINDS
from dlcli.inference.explain.attention import as_lines, read_rows
from dlcli.models.bert import Bert
from dlcli.models.conformer import Conformer
from dlcli.models.gpt import GPT
from dlcli.models.layers.attention import split_heads
from dlcli.models.log_mel import LogMel
from dlcli.models.moe import MixtureTransformer
from dlcli.models.seq2seq import Seq2SeqTransformer
from dlcli.models.transformer import Transformer
from dlcli.models.vit import ViT
from dlcli.reporting.pictures import draw_attended_image, draw_attention

LENGTHS = torch.tensor([9, 5, 1])


def tokens() -> Tensor:
    drawn = torch.randint(4, 30, (3, 9), generator=torch.Generator().manual_seed(0))
    return drawn.masked_fill(torch.arange(9) >= LENGTHS[:, None], 0)


def noise(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def attentions(network: Any) -> list[Any]:
    return [block.attention for block in network.blocks]


SMALL: dict[str, Any] = {"hidden_size": 16, "num_layers": 2, "num_heads": 4}
TEXT: dict[str, Any] = {"num_tokens": 30, "ffn_size": 32, **SMALL}
# A network, what it takes, and the layers that attend.
NETWORKS: dict[str, tuple[Callable[[], Any], Callable[[], tuple[Tensor, ...]], Callable[[Any], list[Any]]]] = {
    "transformer": (lambda: Transformer(num_classes=3, **TEXT), lambda: (tokens(), LENGTHS), attentions),
    "moe": (lambda: MixtureTransformer(num_classes=3, **TEXT), lambda: (tokens(), LENGTHS), attentions),
    "bert": (lambda: Bert(num_classes=3, max_length=9, **TEXT), lambda: (tokens(), LENGTHS), attentions),
    "gpt": (lambda: GPT(context_length=9, **TEXT), lambda: (tokens(),), attentions),
    "vit": (
        lambda: ViT(num_classes=3, image_shape=[1, 8, 8], patch=2, **SMALL),
        lambda: (noise(3, 1, 8, 8),),
        lambda network: list(network.blocks),
    ),
    "conformer": (
        lambda: Conformer(features=LogMel(sample_rate=8000, mels=20), **TEXT),
        lambda: (noise(3, 1_700) - 0.5, torch.tensor([1_700, 900, 1])),
        attentions,
    ),
    "seq2seq_transformer": (
        lambda: Seq2SeqTransformer(**TEXT),
        lambda: (tokens(), LENGTHS, tokens()[:, :6]),
        lambda network: [block.cross for block in network.decoder],
    ),
}


@pytest.mark.parametrize(("make", "inputs", "layers"), NETWORKS.values(), ids=NETWORKS.keys())
def test_the_weights_are_those_of_the_forward_pass(
    make: Callable[[], Any], inputs: Callable[[], tuple[Tensor, ...]], layers: Callable[[Any], list[Any]]
) -> None:
    """What goes into each layer behind the heads is what the weights make of its values; padding has none."""
    torch.manual_seed(0)
    network = make().eval()
    values: list[Tensor] = []
    mixed: list[Tensor] = []
    for layer in layers(network):
        layer.v.register_forward_hook(lambda module, given, value: values.append(value))
        layer.out.register_forward_pre_hook(lambda module, given: mixed.append(given[0]))
    with torch.no_grad():
        network(*inputs())
        used = list(zip(values, mixed, strict=True))
        found = network.attention(*inputs())
    assert len(found) == len(used) == 2
    for weights_BHQK, (value_BKD, mixed_BQD) in zip(found, used, strict=True):
        expected = (weights_BHQK @ split_heads(value_BKD, 4)).transpose(1, 2).flatten(2)
        torch.testing.assert_close(expected, mixed_BQD)
        torch.testing.assert_close(weights_BHQK.sum(3), torch.ones(weights_BHQK.shape[:3]))
        assert not torch.allclose(weights_BHQK[0, :, -1, :2], torch.tensor(1 / weights_BHQK.shape[3]), atol=1e-4)
    assert isinstance(network, nn.Module) and network.reads_from in ("first", "mean", "last", "each")


def test_the_models_that_are_named_are_those_of_conf_that_attend() -> None:
    """By the kind of data that they take; the recurrent ones with one of their settings."""
    found: dict[str, set[str]] = {}
    for path in sorted(Path(packaged_conf(), "model").glob("*.yaml")):
        settings: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        if "_target_" not in settings:  # several networks
            continue
        module, _, name = settings["_target_"].rpartition(".")
        if hasattr(getattr(import_module(module), name), "attention"):
            for kind in settings["facts"].get("takes", ["images"]):
                found.setdefault(kind, set()).add(path.stem)
    models = {kind.name: kind.attending_models for kind in KINDS.values() if kind.attending_models}
    named = {kind: set(", ".join(names).replace(" and ", ", ").split(", ")) for kind, names in models.items()}
    named = {kind: {name.partition(" ")[0] for name in names} for kind, names in named.items()}
    assert named == found


def test_the_rows_that_are_read_out_are_told() -> None:
    weights_QK = torch.tensor([[0.7, 0.3], [0.1, 0.9]])
    assert read_rows(weights_QK, "first").tolist() == weights_QK[:1].tolist()
    assert read_rows(weights_QK, "last").tolist() == weights_QK[1:].tolist()
    assert read_rows(weights_QK, "each").tolist() == weights_QK.tolist()
    torch.testing.assert_close(read_rows(weights_QK, "mean"), torch.tensor([[0.4, 0.6]]))


def test_tokens_are_shown_in_order_and_places_by_their_weight() -> None:
    looked = {"of": "last block", "queries": ["a"], "keys": ["a", " film", " "], "shown": [[0.25, 0.5, 0.25]]}
    title, names, lines = as_lines({"input": "a film ", "attention": looked})
    assert title == "attention of a film \nlast block" and names == ["token", "weight", ""]
    assert [line[:2] for line in lines] == [["a", "25.0 %"], ["film", "50.0 %"], ["' '", "25.0 %"]]
    assert [len(str(line[2])) for line in lines] == [12, 24, 12]
    many = {"of": "pooling", "queries": [], "keys": [str(i) for i in range(28)], "places": "row"}
    many["shown"] = [[i / 378 for i in range(28)]]
    _, names, lines = as_lines({"image": "digit.png", "attention": many})
    assert names[0] == "row" and [line[0] for line in lines] == [str(27 - i) for i in range(10)]
    cross = {"of": "each", "queries": ["la", "<eos>"], "keys": ["the", "a"], "shown": [[0.9, 0.1], [0.2, 0.8]]}
    _, names, lines = as_lines({"input": "x", "attention": cross})
    assert lines == [["la", "the 90 %, a 10 %"], ["<eos>", "a 80 %, the 20 %"]]


def test_attention_is_drawn_over_tokens_beside_rows_and_on_patches(tmp_path: Path) -> None:
    """Where one patch has all the weight, the picture is brightest there."""
    from PIL import Image

    image_CHW = torch.full((1, 8, 8), 128, dtype=torch.uint8)
    for name, weights in (("rows", torch.full((8, 1), 1 / 8)), ("patches", torch.eye(4)[:1].reshape(2, 2))):
        draw_attended_image(image_CHW, weights.numpy(), tmp_path / f"{name}.png")
    draw_attention(torch.rand(3, 200).numpy(), ["x", "y", "z"], ["$word"] * 200, tmp_path / "long.png")
    assert {path.name for path in tmp_path.iterdir()} == {"rows.png", "patches.png", "long.png"}
    with Image.open(tmp_path / "patches.png") as opened:
        sheet = torch.from_numpy(np.asarray(opened.convert("L")).astype(float))
    right = sheet[:, sheet.shape[1] * 46 // 100 : sheet.shape[1] * 80 // 100]
    middle = right.shape[0] // 2
    upper_left = right[middle // 2, right.shape[1] // 4]
    lower_right = right[middle + middle // 2, right.shape[1] * 3 // 4]
    assert upper_left > lower_right + 50
