"""Streams of tokens: every token is told once, the splits follow one another, vocabularies come from training alone."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
import torch

from dlcli.datasets.batches.examples import Data
from dlcli.datasets.batches.source import EvalSource, TrainSource
from dlcli.datasets.files.text_files import byte_spellings, cut, encode, fit_tokenizer, num_characters, peek_text
from dlcli.datasets.text_stream import NO_TARGET, Windows, made_up, read_own_text, read_shakespeare
from dlcli.datasets.tokens.tokenizing import Tokenizer
from dlcli.errors import ConfigError, DataError

SETTINGS: dict[str, Any] = {"tokenizer": "characters", "num_tokens": None, "val_size": 0.1, "test_size": 0.1}
PROSE = "Über Größe läßt sich streiten; 大きさは人による。 What is large?\n\n" * 30


def windows(num_tokens: int, block: int) -> Windows:
    """Tokens 0, 1, 2, ..., each of which stands for a character."""
    return Windows(torch.arange(num_tokens), torch.ones(num_tokens, dtype=torch.int64), block)


def targets_of(column: Windows, epoch_key: int | None) -> list[int]:
    taken = column.take(torch.arange(len(column)), epoch_key)
    return taken.targets[taken.targets != NO_TARGET].tolist()


@pytest.mark.parametrize(("num_tokens", "block"), [(2, 1), (2, 8), (9, 4), (10, 4), (11, 4), (5, 100), (65, 64)])
@pytest.mark.parametrize("epoch_key", [None, 0, 5, 2**62 + 3, -7])
def test_every_token_but_the_first_is_told_once(num_tokens: int, block: int, epoch_key: int | None) -> None:
    column = windows(num_tokens, block)
    assert sorted(targets_of(column, epoch_key)) == list(range(1, num_tokens))
    assert column.take(torch.arange(len(column)), epoch_key).num_targets == num_tokens - 1


def test_an_evaluation_begins_at_the_beginning_and_keeps_the_short_end() -> None:
    taken = windows(11, 4).take(torch.arange(3))
    assert taken.tokens.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 0]]
    assert taken.targets.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, NO_TARGET, NO_TARGET]]
    assert (taken.num_targets, taken.characters.tolist()) == (10, [4, 4, 2])


def test_in_training_each_token_is_told_from_the_one_before_it() -> None:
    taken = windows(41, 8).take(torch.arange(5), 13)
    assert torch.equal(taken.targets, taken.tokens + 1)


def test_another_epoch_cuts_elsewhere_and_the_same_one_alike() -> None:
    column = windows(1_000, 50)
    first, again, other = (column.take(torch.tensor([3]), key).tokens.tolist() for key in (17, 17, 18))
    assert first == again != other


def test_the_order_of_blocks_and_their_phase_are_functions_of_seed_and_epoch() -> None:
    torch.manual_seed(0)
    records = made_up({"num_tokens": 30, "context_length": 8}, 10)

    def source(seed: int) -> TrainSource:
        return TrainSource(records, torch.arange(10), batch_size=4, accumulate=1, seed=seed, device="cpu")

    steps = source(0).from_step(0)
    whole = [next(steps)[0].tokens for _ in range(6)]
    resumed = source(0).from_step(4)
    assert all(torch.equal(next(resumed)[0].tokens, tokens) for tokens in whole[4:]), "in the middle of an epoch"
    assert not torch.equal(next(source(1).from_step(0))[0].tokens, whole[0])
    epochs = [sorted(torch.cat([next(resumed)[0].tokens for _ in range(3)]).tolist()) for _ in range(4)]
    assert any(epoch != epochs[0] for epoch in epochs), "each epoch cuts elsewhere"


# ---------------------------------------------------------------------------------------------------------- from texts


def read(tmp_path: Path, text: str = PROSE, *, name: str = "book.txt", block: int = 16, **more: Any) -> Data:
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return read_own_text(str(tmp_path / name), context_length=block, **{**SETTINGS, **more})


def text_of(data: Data, split: str) -> str:
    tokenizer = Tokenizer.from_json(data.fitted["tokenizer"])
    return tokenizer.decode(getattr(data, split).columns["stream"].tokens.tolist())


@pytest.mark.parametrize("tokenizer", ["characters", "bpe"])
@pytest.mark.parametrize("name", ["book.txt", "book.txt.gz"])
def test_the_splits_are_the_text_again(tmp_path: Path, tokenizer: str, name: str) -> None:
    size = {"num_tokens": 300} if tokenizer == "bpe" else {}
    data = read(tmp_path, name=name, tokenizer=tokenizer, **size)
    assert "".join(text_of(data, split) for split in ("train", "val", "test")) == PROSE
    assert data.notes == ()


@pytest.mark.parametrize("tokenizer", ["characters", "bpe"])
def test_the_characters_of_all_targets_are_those_of_the_text_behind_the_first_token(
    tmp_path: Path, tokenizer: str
) -> None:
    data = read(tmp_path, tokenizer=tokenizer, num_tokens=300 if tokenizer == "bpe" else None)
    batches = list(EvalSource(data.test, torch.arange(len(data.test)), batch_size=3, device="cpu"))
    tokens = data.test.columns["stream"].tokens  # type: ignore[union-attr]
    counts = num_characters(Tokenizer.from_json(data.fitted["tokenizer"]))
    first = counts[int(tokens[0])]
    assert sum(int(batch.characters.sum()) for batch in batches) == len(text_of(data, "test")) - first


def test_byte_pairs_are_counted_as_the_library_writes_them() -> None:
    tokenizer = Tokenizer.train([PROSE], kind="bpe", size=400)
    spelt = byte_spellings(tokenizer.pieces)
    ids = encode(PROSE, tokenizer)
    assert b"".join(spelt[i - 4] for i in ids).decode() == PROSE
    assert sum(num_characters(tokenizer)[i] for i in ids) == len(PROSE)


def test_the_vocabulary_is_the_training_part_s_and_the_unknown_is_told(tmp_path: Path) -> None:
    data = read(tmp_path, "abc" * 100 + "xyz" * 10, val_size=0.05, test_size=0.05)
    assert data.facts == {"num_tokens": 4 + 3}
    assert len(data.notes) == 2 and all("unknown" in note for note in data.notes)


def test_what_is_peeked_at_is_what_is_read(tmp_path: Path) -> None:
    data = read(tmp_path)
    assert peek_text(str(tmp_path / "book.txt"), **SETTINGS) == data.facts


def test_sizes_are_shares_or_characters() -> None:
    assert cut("abcdefghij" * 10, 0.1, 20) == (("abcdefghij" * 10)[:70], "abcdefghij", "abcdefghij" * 2)
    with pytest.raises(DataError, match="8 characters would be cut into 6 to train on, 1 and 1"):
        cut("abcdefgh", 0.1, 0.1)


def test_line_ends_of_windows_are_those_of_unix(tmp_path: Path) -> None:
    assert "\r" not in text_of(read(tmp_path, "to be\r\nor not\r\n" * 40), "train")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda folder: None, "dataset.path is not given"),
        (lambda folder: folder / "nowhere.txt", "was not found in"),
        (lambda folder: folder, "is not a file"),
        (
            lambda folder: (folder / "latin.txt", (folder / "latin.txt").write_bytes(b"one\nGr\xfc\xdfe\n" * 9))[0],
            "line 2",
        ),
    ],
)
def test_a_text_that_cannot_be_read_says_why(tmp_path: Path, make: Any, told: str) -> None:
    path = make(tmp_path)
    with pytest.raises(DataError, match=told):
        read_own_text(None if path is None else str(path), context_length=8, **SETTINGS)


def test_tiny_shakespeare_has_65_characters(real_data: Path) -> None:
    data = read_shakespeare(
        str(real_data), tokenizer="characters", num_tokens=69, context_length=128, val_size=0.05, test_size=0.05
    )
    sizes = [len(split.columns["stream"].tokens) for split in (data.train, data.val, data.test)]  # type: ignore[union-attr]
    assert (sizes, sum(sizes)) == ([1_003_854, 55_770, 55_770], 1_115_394)
    assert (data.facts, data.notes) == ({"num_tokens": 65 + 4}, ())
    assert text_of(data, "train").startswith("First Citizen:\nBefore we proceed any further")


def test_a_stream_of_words_is_refused_since_it_is_not_its_text() -> None:
    with pytest.raises(ConfigError, match=r"dataset\.tokenizer=words"):
        fit_tokenizer("one two\n", "words", None)


def test_an_empty_text_is_told_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match=r"empty\.txt is empty"):
        peek_text(str(tmp_path / "empty.txt"), tokenizer="characters", val_size=0.1, test_size=0.1)
