"""Text that goes on: which tokens are admitted, greedy, stop, seeds, prompts; caches and windows."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dlcli.datasets.batches.examples import private_generator
from dlcli.datasets.tokens.tokenizing import Tokenizer
from dlcli.errors import ConfigError
from dlcli.inference.generation import Sampling, admitted, choose, continuation, encode_prompt, spelt, until, write
from dlcli.models.gpt import GPT

LETTERS = Tokenizer.train(["abcdefgh\n"], kind="characters")


def left(probabilities: list[float], **rule: Any) -> list[int]:
    """Which are still admitted."""
    logits = admitted(torch.tensor(probabilities).log(), **rule)
    return logits.isfinite().nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({}, [0, 1, 2, 3]),
        ({"top_k": 1}, [1]),
        ({"top_k": 3}, [0, 1, 3]),
        ({"top_k": 9}, [0, 1, 2, 3]),
        ({"top_p": 0.0}, [1]),
        ({"top_p": 0.4}, [1]),
        ({"top_p": 0.49}, [1]),
        ({"top_p": 0.51}, [1, 3]),
        ({"top_p": 0.81}, [0, 1, 3]),
        ({"top_p": 1.0}, [0, 1, 2, 3]),
        ({"top_k": 2, "top_p": 0.7}, [1, 3]),  # of the two, 0.625 and 0.375
        ({"top_k": 2, "top_p": 0.6}, [1]),
    ],
)
def test_exactly_the_likeliest_are_admitted(rule: dict[str, Any], expected: list[int]) -> None:
    assert left([0.15, 0.5, 0.05, 0.3], **rule) == expected


def test_of_equally_likely_tokens_k_are_admitted_no_more() -> None:
    assert len(left([0.25] * 4, top_k=2)) == 2


def test_what_is_admitted_keeps_its_logit() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0])
    assert admitted(logits, top_k=2).tolist() == [float("-inf"), 3.0, 2.0]
    assert logits.tolist() == [1.0, 3.0, 2.0], "the given ones stay"


def test_tokens_come_as_often_as_their_probability_says() -> None:
    logits = torch.full((8,), 5.0)
    logits[4:] = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    generator = private_generator("test", 0)
    counts = Counter(choose(logits, Sampling(), generator) for _ in range(4_000))
    assert set(counts) == {4, 5, 6, 7}, "no special token, however likely"
    for token, share in zip((4, 5, 6, 7), (0.1, 0.2, 0.3, 0.4), strict=True):
        assert counts[token] / 4_000 == pytest.approx(share, abs=0.03)
    cold = Counter(choose(logits, Sampling(temperature=0.5), generator) for _ in range(4_000))
    assert cold[7] / 4_000 == pytest.approx(0.16 / 0.30, abs=0.03)


def test_temperature_zero_is_greedy() -> None:
    logits = torch.tensor([9.0, 9.0, 9.0, 9.0, 1.0, 3.0, 2.0])
    assert {choose(logits, Sampling(temperature=0.0), private_generator("test", seed)) for seed in range(9)} == {5}


# ---------------------------------------------------------------------------------------------------------- whole texts


def letters(block: int = 8) -> GPT:
    """A random network with clear opinions."""
    torch.manual_seed(0)
    network = GPT(
        num_tokens=len(LETTERS), context_length=block, hidden_size=16, num_layers=2, num_heads=2, ffn_size=32
    ).eval()
    nn.init.normal_(network.head.weight)  # type: ignore[union-attr]
    return network


def text(prompt: str = "abc", *, num_tokens: int = 40, seed: int = 0, **more: Any) -> str:
    sampling = more.pop("sampling", Sampling())
    return "".join(write(letters(), LETTERS, prompt, num_tokens=num_tokens, sampling=sampling, seed=seed, **more))


def test_the_same_seed_gives_the_same_text_and_another_seed_another() -> None:
    torch.manual_seed(1)
    first = text(seed=5)
    torch.manual_seed(2)
    assert first == text(seed=5) != text(seed=6)
    assert len(first) == 40


def test_writing_draws_nothing_from_the_global_generator() -> None:
    network = letters()
    before = torch.get_rng_state()
    "".join(write(network, LETTERS, "a", num_tokens=9, sampling=Sampling(), seed=0))
    assert torch.equal(before, torch.get_rng_state())


def test_greedy_text_does_not_depend_on_the_seed() -> None:
    assert text(seed=1, sampling=Sampling(0.0)) == text(seed=2, sampling=Sampling(0.0))


class WithoutCache(nn.Module):
    """The same network, which can only read everything again."""

    def __init__(self, network: GPT):
        super().__init__()
        self.network, self.context_length = network, network.context_length

    def forward(self, tokens_BL: Tensor) -> Tensor:
        return self.network(tokens_BL)


@pytest.mark.parametrize("prompt", [[4], [4, 5, 6], [4, 5, 6, 7, 8, 9, 10, 11], list(range(4, 12)) * 3])
def test_a_cache_changes_no_token_far_beyond_the_window(prompt: list[int]) -> None:
    network = letters()

    def pick(logits_V: Tensor) -> int:
        return 4 + int(logits_V[4:].argmax())

    with_cache = list(islice(continuation(network, prompt, pick), 60))
    assert with_cache == list(islice(continuation(WithoutCache(network), prompt, pick), 60))
    assert len(set(with_cache)) > 2


def test_what_is_read_is_never_more_than_the_window() -> None:
    read: list[int] = []

    class Watched(WithoutCache):
        def forward(self, tokens_BL: Tensor) -> Tensor:
            read.append(tokens_BL.shape[1])
            return super().forward(tokens_BL)

    list(islice(continuation(Watched(letters()), [4] * 5, lambda logits: 5), 14))
    assert read == [5, 6, 7, 8, 4, 5, 6, 7, 8, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("size", [1, 2, 7])
def test_a_text_ends_before_what_stops_it_however_it_is_cut(size: int) -> None:
    whole = "to be, or not to be"
    pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
    assert "".join(until(["not"], iter(pieces))) == "to be, or "
    assert "".join(until(["nope", "b"], iter(pieces))) == "to "
    assert "".join(until(["never"], iter(pieces))) == whole
    assert "".join(until([], iter(pieces))) == whole


def test_stop_ends_a_text_and_asks_for_no_token_more() -> None:
    whole = text(seed=5)
    assert text(seed=5, stop=[whole[10:13]]) == whole[: whole.index(whole[10:13])]
    asked = []

    def tokens() -> Any:
        for token in (4, 5, 6, 7):
            asked.append(token)
            yield token

    list(until([LETTERS.decode([5])], spelt(LETTERS, tokens())))
    assert asked == [4, 5]


def test_characters_of_several_bytes_come_whole() -> None:
    tokenizer = Tokenizer.train(["plain"], kind="bpe", size=260)
    ids = tokenizer.encode_batch(["aé大😀b"])[0]
    assert len(ids) == 1 + 2 + 3 + 4 + 1
    assert list(spelt(tokenizer, iter(ids))) == ["a", "é", "大", "😀", "b"]
    assert "".join(spelt(tokenizer, iter(ids[:2]))) == "a\N{REPLACEMENT CHARACTER}", "one that is never whole"


def test_words_are_spaced() -> None:
    tokenizer = Tokenizer.train(["one two one two"], kind="words")
    assert "".join(spelt(tokenizer, iter(tokenizer.encode_batch(["two one two"])[0]))) == " two one two"


# -------------------------------------------------------------------------------------------------------------- prompts


def test_a_prompt_with_unknown_characters_names_them_and_the_known() -> None:
    with pytest.raises(ConfigError, match=r"has characters that the training text has not: x é") as told:
        encode_prompt("abéx", LETTERS)
    assert "abcdefgh" in str(told.value.hint)


def test_unknown_words_are_named() -> None:
    tokenizer = Tokenizer.train(["one two one two"], kind="words")
    with pytest.raises(ConfigError, match="has words that the training text has not: three"):
        encode_prompt("one three two", tokenizer)


def test_no_prompt_is_a_new_line() -> None:
    assert LETTERS.decode(encode_prompt("", LETTERS)) == "\n"
    without = Tokenizer.train(["abc"], kind="characters")
    assert len(encode_prompt("", without)) == 1, "where there is none, any token"
