"""The Vision Transformer: torch's own encoder layer, sizes it takes, and how it may be split."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dlcli.errors import ConfigError
from dlcli.models.vit import Block, ViT


def test_a_block_is_torchs_pre_norm_encoder_layer() -> None:
    torch.manual_seed(0)
    ours = Block(width=16, heads=4, dropout=0.0)
    theirs = nn.TransformerEncoderLayer(16, 4, 64, 0.0, "gelu", batch_first=True, norm_first=True)
    attention = theirs.self_attn
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([layer.weight for layer in (ours.q, ours.k, ours.v)]))
        attention.in_proj_bias.copy_(torch.cat([layer.bias for layer in (ours.q, ours.k, ours.v)]))
    pairs = [(attention.out_proj, ours.out), (theirs.linear1, ours.up), (theirs.linear2, ours.down)]
    for there, here in [*pairs, (theirs.norm1, ours.norm1), (theirs.norm2, ours.norm2)]:
        there.load_state_dict(here.state_dict())
    x_BND = torch.randn(2, 5, 16)
    torch.testing.assert_close(ours(x_BND), theirs(x_BND))


@pytest.mark.parametrize(("shape", "patch", "tokens"), [([1, 8, 8], 2, 17), ([3, 32, 32], 4, 65), ([1, 28, 28], 7, 17)])
def test_it_takes_images_of_whole_patches(shape: list[int], patch: int, tokens: int) -> None:
    model = ViT(num_classes=10, image_shape=shape, patch=patch, hidden_size=32, num_layers=1, num_heads=4)
    assert model.positions.shape == (1, tokens, 32)
    assert model(torch.zeros(2, *shape)).shape == (2, 10)


def test_patches_and_heads_that_do_not_fit_are_told_with_those_that_do() -> None:
    with pytest.raises(ConfigError, match="patch=3") as caught:
        ViT(num_classes=10, image_shape=[1, 8, 8], patch=3)
    assert caught.value.hint == "model.patch may be 1, 2, 4, 8."
    with pytest.raises(ConfigError, match="heads=5") as caught:
        ViT(num_classes=10, image_shape=[1, 8, 8], hidden_size=32, num_heads=5)
    assert caught.value.hint == "model.num_heads may be 1, 2, 4, 8, 16, 32."


def test_the_plan_names_every_linear_layer_of_the_blocks() -> None:
    model = ViT(num_classes=10, image_shape=[1, 8, 8], hidden_size=32, num_layers=2)
    linear = {name for name, module in model.blocks.named_modules(prefix="blocks") if isinstance(module, nn.Linear)}
    assert set(model.tensor_parallel_plan()) == linear


def test_it_learns_to_tell_where_a_dot_is() -> None:
    torch.manual_seed(0)
    model = ViT(num_classes=16, image_shape=[1, 8, 8], patch=2, hidden_size=32, num_layers=1, num_heads=4)
    images = torch.zeros(16, 1, 8, 8)
    for label in range(16):
        images[label, 0, label // 4 * 2, label % 4 * 2] = 1
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), torch.arange(16)).backward()
        optimizer.step()
    assert (model(images).argmax(1) == torch.arange(16)).all()
