"""Networks that read steps one after the other: shapes, padding, attention, experts, and that they learn."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from dlcli.config import compose_command
from dlcli.config.folders import packaged_conf
from dlcli.errors import ConfigError
from dlcli.models.layers.attention import FeedForward
from dlcli.models.layers.sequences import rows
from dlcli.models.moe import Mixture, MixtureTransformer
from dlcli.models.recurrent import Recurrent
from dlcli.models.transformer import Transformer
from dlcli.optimizers.penalties import add_auxiliary, has_auxiliary
from dlcli.training import build
from dlcli.training.allow_list import Builder

Maker = Callable[..., Any]
READERS: dict[str, Maker] = {
    "rnn": partial(Recurrent, cell="rnn", hidden_size=32),
    "gru": partial(Recurrent, cell="gru", hidden_size=32),
    "lstm": partial(Recurrent, cell="lstm", hidden_size=32),
    "lstm with attention": partial(Recurrent, cell="lstm", hidden_size=32, pooling="attention"),
    "transformer": partial(Transformer, hidden_size=32, ffn_size=64),
    "mixture of experts": partial(MixtureTransformer, hidden_size=32, ffn_size=32),
}
every_reader = pytest.mark.parametrize("make", READERS.values(), ids=READERS.keys())
LENGTHS = torch.tensor([9, 5, 1, 7])


def sentences(seed: int = 0, longest: int = 9) -> Tensor:
    """(4, longest) int64, padded with 0 behind LENGTHS."""
    tokens = torch.randint(1, 50, (4, longest), generator=torch.Generator().manual_seed(seed))
    return tokens.masked_fill(torch.arange(longest) >= LENGTHS[:, None], 0)


def reader_of_text(make: Maker) -> Any:
    torch.manual_seed(0)
    return make(num_classes=3, num_tokens=50).double().eval()


# --------------------------------------------------------------------------------------------------------- all of them


@every_reader
@pytest.mark.parametrize("shape", [[1, 28, 28], [3, 8, 6]])
def test_images_are_read_row_by_row(make: Maker, shape: list[int]) -> None:
    network = make(num_classes=7, image_shape=shape)
    assert network(torch.randn(4, *shape)).shape == (4, 7)
    assert network.steps.size == shape[0] * shape[2]


def test_a_row_has_the_pixels_of_every_channel() -> None:
    images = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)
    assert torch.equal(rows(images)[1, 2], images[1, :, 2].flatten())


@every_reader
def test_the_answer_does_not_depend_on_the_padding(make: Maker) -> None:
    network, tokens = reader_of_text(make), sentences()
    expected = torch.cat([network(tokens[i : i + 1, :length]) for i, length in enumerate(LENGTHS.tolist())])
    torch.testing.assert_close(network(tokens, LENGTHS), expected)
    torch.testing.assert_close(network(F.pad(tokens, (0, 20)), LENGTHS), expected)
    torch.testing.assert_close(network(tokens), expected, msg="without lengths, what is not padding counts")


@every_reader
def test_the_answer_depends_on_the_words_and_their_order(make: Maker) -> None:
    network, tokens = reader_of_text(make), sentences()
    assert not torch.allclose(network(tokens), network(tokens.where(tokens == 0, 1)))
    turned = tokens.clone()
    turned[0] = tokens[0].flip(0)
    assert not torch.allclose(network(tokens)[0], network(turned)[0])


@every_reader
def test_an_empty_sentence_has_an_answer(make: Maker) -> None:
    network = reader_of_text(make)
    assert network(torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)).isfinite().all()


@every_reader
def test_every_parameter_is_trained(make: Maker) -> None:
    torch.manual_seed(0)
    for more in ({"image_shape": [1, 8, 8]}, {"num_tokens": 50}):
        network = make(num_classes=3, **more)
        inputs = torch.randn(4, 1, 8, 8) if "image_shape" in more else sentences()
        network(inputs).square().sum().backward()
        assert [name for name, p in network.named_parameters() if p.grad is None] == []


@every_reader
def test_data_that_are_neither_images_nor_sentences_are_refused(make: Maker) -> None:
    with pytest.raises(ConfigError, match="neither an image_shape nor num_tokens"):
        make(num_classes=3)


def digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.tensor(data.images, dtype=torch.float32)[:, None] / 16 - 0.3, torch.tensor(data.target)


def learn(network: nn.Module, images: Tensor, labels: Tensor, *, steps: int = 300, lr: float = 3e-3) -> float:
    """Accuracy on the digits from 1,400 on, after training on those before."""
    optimizer, random = torch.optim.Adam(network.parameters(), lr=lr), torch.Generator().manual_seed(1)
    for _ in range(steps):
        batch = torch.randint(1400, (64,), generator=random)
        loss = F.cross_entropy(network(images[batch]), labels[batch]) + add_auxiliary(network)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    return (network(images[1400:]).argmax(1) == labels[1400:]).double().mean().item()


@every_reader
def test_it_learns_the_digits_row_by_row(make: Maker) -> None:
    """The commonest digit has a tenth of them. Measured: 0.77 to 0.95 over three seeds."""
    torch.manual_seed(0)
    images, labels = digits()
    assert learn(make(num_classes=10, image_shape=[1, 8, 8]), images, labels) > 0.7


# ----------------------------------------------------------------------------------------------------------- recurrent


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_the_last_state_is_that_of_torchs_packed_sequences(cell: str) -> None:
    network, tokens = reader_of_text(partial(Recurrent, cell=cell, hidden_size=32)), sentences()
    packed = pack_padded_sequence(network.steps(tokens), LENGTHS, batch_first=True, enforce_sorted=False)
    last = network.cells(packed)[1]
    last_BD = last[0][-1] if cell == "lstm" else last[-1]
    torch.testing.assert_close(network(tokens, LENGTHS), network.head(last_BD))


def test_attention_pooling_is_a_weighted_mean_over_time() -> None:
    network, tokens = reader_of_text(READERS["lstm with attention"]), sentences()
    (weights_B11L,) = network.attention(tokens, LENGTHS)
    weights_BL = weights_B11L[:, 0, 0]
    torch.testing.assert_close(weights_BL.sum(1), torch.ones(4).double())
    assert (weights_BL[torch.arange(9) >= LENGTHS[:, None]] == 0).all()
    states_BLD = network.cells(network.steps(tokens))[0]
    torch.testing.assert_close(network(tokens), network.head((weights_BL[:, :, None] * states_BLD).sum(1)))
    with pytest.raises(ConfigError, match="last step"):
        reader_of_text(READERS["lstm"]).attention(tokens)


def test_the_reference_settings_are_the_experiments() -> None:
    found = {}
    for name in ("rnn", "lstm", "gru", "transformer"):
        tree = compose_command([f"mnist_rows_{name}"]).tree
        found[name] = build.build_networks(Builder.for_search([packaged_conf()]), tree["model"])["model"]
    assert [found[name].cells.dropout for name in ("rnn", "gru", "lstm")] == [0.2, 0.2, 0.3]
    assert [found[name].cells.num_layers for name in ("rnn", "gru", "lstm")] == [2, 2, 2]
    assert found["lstm"].score is not None and found["rnn"].score is None and found["gru"].score is None
    assert found["transformer"].dropout.p == 0.1 and not found["transformer"].blocks[0].pre_norm


def test_the_text_reference_drops_half_of_the_last_state() -> None:
    network = Recurrent(num_classes=2, num_tokens=50, num_layers=1, head_dropout=0.5)
    assert (network.cells.num_layers, network.dropout.p) == (1, 0.5)
    network.eval()
    last_BD = network.cells(network.steps(sentences()[:1]))[0][:, -1]
    torch.testing.assert_close(network(sentences()[:1]), network.head(last_BD))


# --------------------------------------------------------------------------------------------------------- transformer


def test_a_transformers_attention_can_be_asked_for() -> None:
    network, tokens = reader_of_text(READERS["transformer"]), sentences()
    found = network.attention(tokens, LENGTHS)
    assert [tuple(weights.shape) for weights in found] == [(4, 4, 9, 9)] * 2
    for weights_BHLL in found:
        torch.testing.assert_close(weights_BHLL.sum(3), torch.ones(4, 4, 9).double())
        assert (weights_BHLL[1, :, :, 5:] == 0).all()


def test_the_transformers_plan_names_every_linear_layer_of_its_blocks() -> None:
    network = Transformer(num_classes=3, num_tokens=50)
    linear = {name for name, module in network.blocks.named_modules(prefix="blocks") if isinstance(module, nn.Linear)}
    assert set(network.tensor_parallel_plan()) == linear


# ------------------------------------------------------------------------------------------------------------- experts


def by_hand(mixture: Mixture, x_D: Tensor) -> Tensor:
    """One token, as the papers write it: the sum over its best experts, weighted."""
    probabilities = mixture.router(x_D).softmax(0)
    best = sorted(range(len(probabilities)), key=lambda e: -probabilities[e].item())[: mixture.top_k]
    total = sum(probabilities[e] for e in best) if mixture.top_k > 1 else 1.0
    return torch.stack([probabilities[e] / total * mixture.experts[e](x_D) for e in best]).sum(0)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_each_token_goes_through_its_best_experts(top_k: int) -> None:
    torch.manual_seed(0)
    mixture = Mixture(8, 16, experts=4, top_k=top_k).eval()
    x_BND = torch.randn(3, 5, 8)
    expected = torch.stack([by_hand(mixture, x_D) for x_D in x_BND.flatten(0, 1)]).view(3, 5, 8)
    torch.testing.assert_close(mixture(x_BND), expected)


def test_a_mixture_of_one_is_its_expert() -> None:
    torch.manual_seed(0)
    mixture, x_BND = Mixture(8, 16, experts=1, top_k=1), torch.randn(3, 5, 8)
    torch.testing.assert_close(mixture(x_BND), mixture.experts[0](x_BND))


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_router_learns_and_an_idle_expert_has_a_gradient_of_zeros(top_k: int) -> None:
    torch.manual_seed(0)
    mixture = Mixture(8, 16, experts=6, top_k=top_k)
    mixture(torch.randn(1, 1, 8)).square().sum().backward()
    assert mixture.router.weight.grad is not None and mixture.router.weight.grad.abs().sum() > 0
    ups = [expert.up.weight.grad for expert in mixture.experts if isinstance(expert, FeedForward)]
    assert sum(bool(grad.abs().sum() > 0) for grad in ups if grad is not None) == top_k
    assert all(grad is not None for grad in ups), "all ranks average the same gradients"


def test_the_balance_loss_is_least_when_the_load_is_even() -> None:
    mixture = Mixture(4, 8, experts=4, top_k=1, aux_loss_weight=0.5)
    with torch.no_grad():
        mixture.router.weight.copy_(1e3 * torch.eye(4))
    mixture(torch.eye(4)[None])  # each token has an expert of its own
    assert mixture.auxiliary_loss is not None
    assert mixture.auxiliary_loss.item() == pytest.approx(0.5)
    mixture(torch.eye(4)[[0, 0, 0, 0]][None])
    assert mixture.auxiliary_loss.item() == pytest.approx(4 * 0.5), "all on one expert: as many times as there are"
    assert torch.equal(mixture.load_BE, torch.tensor([[1.0, 0.0, 0.0, 0.0]]))


def test_padding_counts_neither_in_the_load_nor_in_its_loss() -> None:
    torch.manual_seed(0)
    network = MixtureTransformer(num_classes=3, num_tokens=50, dropout=0.0)
    tokens, found = sentences(), []
    for padded in (tokens, F.pad(tokens, (0, 30))):
        network(padded, LENGTHS)
        found.append((network.expert_load(), add_auxiliary(network)))
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0][0].sum(2), torch.ones(4, 2))


def test_a_mixture_repeats_its_bits() -> None:
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        network = MixtureTransformer(num_classes=3, num_tokens=50, dropout=0.1)
        (network(sentences()).square().sum() + add_auxiliary(network)).backward()
        found.append([p.grad for p in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True) if a is not None and b is not None)


def test_the_load_is_more_even_with_the_balance_loss_than_without() -> None:
    """The busiest of four experts, mean of two blocks: 0.35 to 0.48 without and 0.26 to 0.30 with, over three seeds."""
    images, labels = digits()
    busiest = {}
    for balance in (0.0, 0.1):
        torch.manual_seed(1)
        network = MixtureTransformer(
            num_classes=10,
            image_shape=[1, 8, 8],
            hidden_size=32,
            ffn_size=32,
            experts=4,
            top_k=1,
            aux_loss_weight=balance,
        )
        assert learn(network, images, labels) > 0.75
        busiest[balance] = network.expert_load().mean(0).max(1).values.mean().item()
    assert busiest[0.1] + 0.1 < busiest[0.0]


def test_the_loop_adds_what_layers_ask_for_and_nothing_elsewhere() -> None:
    trees = {name: compose_command(["digits", f"model={name}"]).tree for name in ("moe", "transformer")}
    builder = Builder.for_search([packaged_conf()])
    tasks = {name: build.build_task(builder, tree) for name, tree in trees.items()}
    assert build.build_penalties(trees["transformer"], tasks["transformer"]) == []
    (penalty,) = build.build_penalties(trees["moe"], tasks["moe"])
    network = tasks["moe"].model
    assert has_auxiliary(network) and penalty(network).item() == 0, "nothing was asked for yet"
    network(torch.randn(4, 1, 8, 8))
    asked = sum(block.mixture.auxiliary_loss for block in network.blocks)
    assert torch.equal(penalty(network), asked) and asked > 0
    assert penalty(network).item() == 0, "each is asked once"
    network.eval()
    network(torch.randn(4, 1, 8, 8))
    assert penalty(network).item() == 0, "and in training only"


def test_more_experts_a_token_than_there_are_are_refused() -> None:
    with pytest.raises(ConfigError, match="top_k=5"):
        MixtureTransformer(num_classes=3, num_tokens=50, experts=4, top_k=5)
