"""Attention can be asked for: the weights are the forward pass's own, and `dlcli predict --attention` shows them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dlcli.models.attention import split_heads
from dlcli.models.bert import Bert
from dlcli.models.conformer import Conformer
from dlcli.models.gpt import GPT
from dlcli.models.log_mel import LogMel
from dlcli.models.moe import MixtureTransformer
from dlcli.models.seq2seq import Seq2SeqTransformer
from dlcli.models.transformer import Transformer
from dlcli.models.vit import ViT

LENGTHS = torch.tensor([9, 5, 1])


def tokens() -> Tensor:
    drawn = torch.randint(4, 30, (3, 9), generator=torch.Generator().manual_seed(0))
    return drawn.masked_fill(torch.arange(9) >= LENGTHS[:, None], 0)


def noise(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def attentions(network: Any) -> list[Any]:
    return [block.attention for block in network.blocks]


SMALL: dict[str, Any] = {"width": 16, "layers": 2, "heads": 4}
TEXT: dict[str, Any] = {"num_tokens": 30, "feed_forward": 32, **SMALL}
# A network, what it takes, and the layers that attend.
NETWORKS: dict[str, tuple[Callable[[], Any], Callable[[], tuple[Tensor, ...]], Callable[[Any], list[Any]]]] = {
    "transformer": (lambda: Transformer(num_classes=3, **TEXT), lambda: (tokens(), LENGTHS), attentions),
    "moe": (lambda: MixtureTransformer(num_classes=3, **TEXT), lambda: (tokens(), LENGTHS), attentions),
    "bert": (lambda: Bert(num_classes=3, max_length=9, **TEXT), lambda: (tokens(), LENGTHS), attentions),
    "gpt": (lambda: GPT(block=9, **TEXT), lambda: (tokens(),), attentions),
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
