"""The language model: exact scores, nothing seen of what comes, that it learns more than counts of pairs, resume."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dlcli.datasets.batches.records import Records
from dlcli.datasets.batches.source import EvalSource, TrainSource
from dlcli.datasets.text_stream import Windows, as_batch, as_data
from dlcli.errors import ConfigError
from dlcli.models.gpt import GPT
from dlcli.tasks.language_model import LanguageModel
from dlcli.training import loop

PROSE = "".join(f"{a} {b}s the {c}.\n" for a in ("he", "she", "nobody") for b in ("see", "hear") for c in
                ("sea", "storm", "bird", "bell"))  # fmt: skip
TEXT = PROSE * 12


def small(num_tokens: int = 12, block: int = 8, **more: Any) -> GPT:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "ffn_size": 32} | more
    return GPT(num_tokens=num_tokens, context_length=block, **settings)


def stream(num_tokens: int, *, block: int = 8, vocabulary: int = 12) -> Records:
    """Tokens at random, token i of i % 3 characters."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(4, vocabulary, (num_tokens,), generator=generator)
    return Records({"stream": Windows(tokens, torch.arange(vocabulary) % 3, block)}, as_batch, "")


# ------------------------------------------------------------------------------------------------------------- network


@pytest.mark.parametrize("tied", [False, True])
def test_a_later_token_changes_no_earlier_logit(tied: bool) -> None:
    network, tokens_BL = small(tie_embeddings=tied).double().eval(), torch.randint(12, (3, 8))
    changed = tokens_BL.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 12
    before, after = network(tokens_BL), network(changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.isclose(before[:, 5:], after[:, 5:]).all(-1).any(), "it does see the token itself"


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("first", [1, 3, 8])
def test_reading_on_from_the_cache_is_reading_everything(tied: bool, first: int) -> None:
    network, tokens_BL = small(tie_embeddings=tied).double().eval(), torch.randint(12, (3, 8))
    expected_BLV = network(tokens_BL)
    logits_BV, cache = network.extend(tokens_BL[:, :first])
    torch.testing.assert_close(logits_BV, expected_BLV[:, first - 1])
    for at in range(first, 8):
        logits_BV, cache = network.extend(tokens_BL[:, at : at + 1], cache)
        torch.testing.assert_close(logits_BV, expected_BLV[:, at])


def test_more_tokens_than_there_are_positions_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"9 tokens are more than model\.context_length=8"):
        small()(torch.zeros(1, 9, dtype=torch.int64))


def test_attention_can_be_asked_for() -> None:
    found = small().attention(torch.randint(12, (3, 8)))
    assert [weights.shape for weights in found] == [(3, 2, 8, 8)] * 2
    for weights in found:
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 8))
        assert weights.triu(1).count_nonzero() == 0


def test_tying_saves_a_matrix_and_every_parameter_is_trained() -> None:
    sizes = {}
    for tied in (False, True):
        network = small(tie_embeddings=tied)
        network(torch.randint(12, (3, 8))).square().sum().backward()
        assert [name for name, p in network.named_parameters() if p.grad is None] == []
        sizes[tied] = sum(p.numel() for p in network.parameters())
    assert sizes[False] - sizes[True] == 12 * 16


def test_a_fresh_network_expects_nothing() -> None:
    logits = small(69, 32)(torch.randint(69, (4, 32)))
    loss = F.cross_entropy(logits.flatten(0, 1), torch.randint(69, (128,)))
    assert loss.item() == pytest.approx(math.log(69), rel=0.02)


# -------------------------------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_scores_are_those_of_the_whole_stream_by_hand(batch_size: int) -> None:
    records, network = stream(30), small().double().eval()
    source = EvalSource(records, torch.arange(len(records)), batch_size=batch_size, device="cpu")
    found = loop.evaluate(LanguageModel(network), source)
    tokens, nats, characters = records.columns["stream"].tokens.tolist(), 0.0, 0  # type: ignore[union-attr]
    for at in range(1, 30):
        start = (at - 1) // 8 * 8  # of the block
        logits_V = network(torch.tensor([tokens[start:at]]))[0, -1]
        nats -= logits_V.log_softmax(0)[tokens[at]].item()
        characters += tokens[at] % 3
    assert found["loss"] == pytest.approx(nats / 29, rel=1e-6)
    assert found["bits_per_character"] == pytest.approx(nats / math.log(2) / characters, rel=1e-6)


def test_batches_of_different_size_add_up_to_one() -> None:
    """21 targets in blocks of 8, 8 and 5: together, or in two micro-batches that are weighed by their targets."""
    records = stream(22)
    gradients = []
    for batch_size, accumulate in ((3, 1), (2, 2)):
        task = LanguageModel(small().double())
        source = TrainSource(
            records, torch.arange(3), batch_size=batch_size, accumulate=accumulate, seed=0, device="cpu"
        )
        optimizer = torch.optim.SGD(task.parameters(), lr=0.0)
        done = next(loop.train(task, source.from_step(0), {"model": optimizer}))
        gradients.append([p.grad for p in task.parameters()])
        assert done.weight == 21
    torch.testing.assert_close(*gradients)


# ------------------------------------------------------------------------------------------------------------ learning


def entropy_of_pairs(train: str, test: str) -> tuple[float, float]:
    """Bits per character by counts of characters, and of pairs of them (one added to each count)."""
    single, pairs, first = Counter(train), Counter(pairwise(train)), Counter(train[:-1])
    size = len(single)
    alone = [math.log2(len(train) / single[c]) for c in test[1:]]
    paired = [-math.log2((pairs[a, b] + 1) / (first[a] + size)) for a, b in pairwise(test)]
    return sum(alone) / len(alone), sum(paired) / len(paired)


def test_it_learns_more_than_counts_of_characters_and_pairs() -> None:
    data = as_data(TEXT, "characters", None, block=32, val_size=0.1, test_size=0.1)
    size = len(TEXT) - 2 * round(0.1 * len(TEXT))
    alone, paired = entropy_of_pairs(TEXT[:size], TEXT[-round(0.1 * len(TEXT)) :])
    task = LanguageModel(small(data.facts["num_tokens"], 32, hidden_size=32, ffn_size=64))
    source = TrainSource(data.train, torch.arange(len(data.train)), batch_size=8, accumulate=1, seed=0, device="cpu")
    training = loop.train(task, source.from_step(0), {"model": torch.optim.AdamW(task.parameters(), 3e-3)})
    for _ in range(150):
        next(training)
    held_out = EvalSource(data.test, torch.arange(len(data.test)), batch_size=64, device="cpu")
    found = loop.evaluate(task, held_out)["bits_per_character"]
    assert found < 0.6 * paired < paired < alone, (found, paired, alone)
