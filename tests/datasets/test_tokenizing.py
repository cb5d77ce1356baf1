"""Tokenizers: what goes in comes out, the same text gives the same vocabulary, and nonsense is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dlcli.datasets.tokens.tokenizing import BOS, EOS, FIRST, KINDS, PAD, UNK, Tokenizer, words
from dlcli.errors import ConfigError, DataError

LINES = [
    "Ein Löwe springt.",
    "Ein Löwe schläft.",
    "  zwei Blanke\n",
    "a <pad> b <unk> <eos>",
    "日本 日本",
    "\t\x00\x1f",
]
every_kind = pytest.mark.parametrize("kind", KINDS)


def trained(kind: str, lines: list[str] = LINES, size: int | None = None) -> Tokenizer:
    return Tokenizer.train(lines, kind=kind, size=size)


@pytest.mark.parametrize("kind", ["characters", "bpe"])
def test_text_comes_back_exactly(kind: str) -> None:
    tokenizer = trained(kind)
    ids = tokenizer.encode_batch(LINES)
    assert [tokenizer.decode(row) for row in ids] == LINES
    assert min(min(row) for row in ids) >= FIRST, "words like <pad> are text, not special tokens"


def test_byte_pairs_know_every_text() -> None:
    text = "never seen: čeština, עברית 🦁 \U0010ffff"
    tokenizer = trained("bpe")
    (ids,) = tokenizer.encode_batch([text])
    assert UNK not in ids and tokenizer.decode(ids) == text


def test_byte_pairs_merge_what_is_frequent() -> None:
    lines = ["the lion"] * 10 + ["a lion"] * 5
    few, many = trained("bpe", lines, size=264), trained("bpe", lines, size=300)
    assert len(few) == 264 < len(many) < 300, "a small text has no more pairs to merge"
    assert len(few.encode_batch(["the lion"])[0]) > len(many.encode_batch(["the lion"])[0]) == 2


def test_unknown_characters_are_shown_as_such() -> None:
    tokenizer = trained("characters", ["abc"])
    assert tokenizer.encode_batch(["aéb"]) == [[4, UNK, 5]]
    assert tokenizer.decode([BOS, 4, UNK, 5, EOS, PAD, 999]) == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}"


def test_words_are_cut_as_the_treebank_cuts_them() -> None:
    assert words("I didn't like it; it's BAD.") == ["i", "did", "n't", "like", "it", ";", "it", "'s", "bad", "."]
    assert words("i did n't like it ; it 's bad .") == words("I didn’t like it; it’s bad.")
    assert words("can't won't 'quoted'") == ["ca", "n't", "wo", "n't", "'", "quoted", "'"]


def test_the_most_frequent_words_are_kept_and_single_ones_are_not() -> None:
    lines = ["b b b a a c c once"]
    assert trained("words", lines).pieces == ("b", "a", "c")
    assert trained("words", lines, size=6).pieces == ("b", "a")


@every_kind
def test_no_text_gives_no_tokens(kind: str) -> None:
    tokenizer = trained(kind)
    assert tokenizer.encode_batch(["", "a"])[0] == [] and tokenizer.encode_batch([]) == []
    assert tokenizer.decode([]) == ""


@every_kind
def test_a_stored_tokenizer_is_the_same(kind: str) -> None:
    tokenizer = trained(kind)
    again = Tokenizer.from_json(tokenizer.to_json())
    assert again.to_json() == tokenizer.to_json() and len(again) == len(tokenizer)
    assert again.encode_batch(LINES) == tokenizer.encode_batch(LINES)


def test_the_same_text_gives_the_same_vocabulary_in_every_process() -> None:
    code = (
        "import random; from dlcli.datasets.tokens.tokenizing import *; random.seed(0);"
        "lines = [' '.join(random.choices(['ab', 'ba', 'cd', 'dc', 'abcd', 'dcba'], k=5)) for _ in range(200)];"
        "print([Tokenizer.train(lines, kind=kind, size=None).to_json() for kind in KINDS])"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "12"
    }
    assert len(told) == 1


def test_lone_surrogates_of_a_command_line_are_read() -> None:
    for kind in KINDS:
        assert trained(kind).encode_batch(["a \udc80"])[0]


@pytest.mark.parametrize(
    "stored",
    [
        "", "no json", "[]", "{}", "[" * 100_000, '{"kind": "bpe"}',
        '{"kind": "os.system", "pieces": ["a"], "merges": []}',
        '{"kind": "words", "pieces": ["a", "a"], "merges": []}',
        '{"kind": "words", "pieces": [1], "merges": []}',
        '{"kind": "words", "pieces": "ab", "merges": []}',
        '{"kind": "bpe", "pieces": ["a", "b"], "merges": [["a", "b"]]}',
        '{"kind": "bpe", "pieces": ["a", "b", "ab"], "merges": [["a", "b", "ab"]]}',
        '{"kind": "bpe", "pieces": ["a", "b", "ab"], "merges": {"a": "b"}}',
    ],
)  # fmt: skip
def test_nonsense_is_refused(stored: str) -> None:
    with pytest.raises(DataError, match="stored tokenizer"):
        Tokenizer.from_json(stored)


def test_a_stored_tokenizer_is_plain_json() -> None:
    assert set(json.loads(trained("bpe").to_json())) == {"kind", "pieces", "merges"}


@pytest.mark.parametrize(("kind", "size", "told"), [("bpe", 259, "260"), ("words", 4, "5"), ("bpee", None, "bpe")])
def test_settings_that_cannot_be(kind: str, size: int | None, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        trained(kind, size=size)
    assert told in str(caught.value.hint)


def test_a_vocabulary_that_is_too_small_is_told_by_its_setting() -> None:
    with pytest.raises(ConfigError, match=r"dataset\.num_tokens=200: .* too small for bpe") as caught:
        Tokenizer.train(["a text"], kind="bpe", size=200)
    assert caught.value.hint == "Choose dataset.num_tokens=260 or more."
