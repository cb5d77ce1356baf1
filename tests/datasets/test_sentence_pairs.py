"""Sentence pairs: files as people have them, nothing lost unnoticed, splits that share no source, exact batches."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
import torch

from dlcli.datasets.batches.examples import Data
from dlcli.datasets.batches.source import EvalSource, TrainSource
from dlcli.datasets.files.pair_files import peek_pairs, read_pairs
from dlcli.datasets.files.sentence_files import Notes, key_of
from dlcli.datasets.sentence_pairs import NO_TARGET, made_up, read_multi30k, read_own_pairs
from dlcli.datasets.tokens.tokenizing import BOS, EOS, PAD, UNK, Tokenizer
from dlcli.errors import DataError
from dlcli.tasks import translation

PAIRS = [(f"the {color} {thing} number {i}", f"{i} {thing} {color} la") for i in range(20)
         for color, thing in (("red", "bird"), ("blue", "bell"))]  # fmt: skip


def write(path: Path, lines: list[str]) -> str:
    data = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return str(path)


def write_pairs(folder: Path, pairs: list[tuple[str, str]] = PAIRS, name: str = "pairs.tsv") -> str:
    return write(folder / name, [f"{source}\t{target}" for source, target in pairs])


def read(path: str, **more: Any) -> Data:
    return read_own_pairs(path, **{"num_tokens": 300, "max_length": 60, **more})


def pairs_of(data: Data, split: str) -> list[tuple[str, str]]:
    """As they are spelt by their tokens."""
    tokenizer, records = Tokenizer.from_json(data.fitted["tokenizer"]), getattr(data, split)
    found = []
    for batch in EvalSource(records, torch.arange(len(records)), batch_size=3, device="cpu"):
        sources, targets = batch.source.tolist(), batch.target.tolist()
        found += [(tokenizer.decode(s), tokenizer.decode(t)) for s, t in zip(sources, targets, strict=True)]
    return found


@pytest.mark.parametrize("name", ["pairs.tsv", "pairs.tsv.gz"])
def test_a_file_of_pairs_is_split_by_its_sources(tmp_path: Path, name: str) -> None:
    twice = [*PAIRS, ("The red bird, number 3!", "another one")]
    data = read(write_pairs(tmp_path, twice, name))
    train, test = pairs_of(data, "train"), pairs_of(data, "test")
    assert sorted(train + test) == sorted(twice)
    assert not {key_of(source) for source, _ in train} & {key_of(source) for source, _ in test}
    assert len({key_of(source) for source, _ in test}) == 4, "a tenth of 40"
    turned = read(write_pairs(tmp_path, twice[::-1], "turned.tsv"))
    assert sorted(pairs_of(turned, "test")) == sorted(test), "whatever their order"


def test_two_line_aligned_files_are_the_same_as_one(tmp_path: Path) -> None:
    write(tmp_path / "a.en", [source for source, _ in PAIRS])
    write(tmp_path / "a.de.gz", [target for _, target in PAIRS])
    two = read(str(tmp_path / "a.en"), target_path=str(tmp_path / "a.de.gz"))
    assert two.fingerprints() == read(write_pairs(tmp_path)).fingerprints()


def test_a_test_file_is_taken_whole(tmp_path: Path) -> None:
    other = write_pairs(tmp_path, [("the red bell", "bell red la")], "test.tsv")
    data = read(write_pairs(tmp_path), test_path=other)
    assert pairs_of(data, "test") == [("the red bell", "bell red la")]
    assert sorted(pairs_of(data, "train")) == sorted(PAIRS)


def test_files_of_different_length_are_refused_with_both_counts(tmp_path: Path) -> None:
    source = write(tmp_path / "a.en", ["one", "two", "three"])
    target = write(tmp_path / "a.de", ["eins", "zwei"])
    with pytest.raises(DataError, match=r"a\.en has 3 lines, .*a\.de has 2: they are not line-aligned"):
        read(source, target_path=target)


def test_pairs_with_an_empty_side_are_left_out_and_counted(tmp_path: Path) -> None:
    data = read(write_pairs(tmp_path, [*PAIRS, ("alone", " "), ("", "allein"), ("  ", "")]))
    assert data.notes == ("pairs with an empty side left out: 3 (first: pairs.tsv, line 41)",)
    notes = Notes()
    source, target = write(tmp_path / "a.en", ["one", "", "three"]), write(tmp_path / "a.de", ["eins", "zwei", "drei"])
    assert read_pairs(Path(source), Path(target), notes) == [("one", "eins"), ("three", "drei")]
    assert list(notes.counts.values()) == [1]


@pytest.mark.parametrize(("line", "columns"), [("no tab", "1 column "), ("a\tb\tc", "3 columns ")])
def test_a_line_that_is_no_pair_is_named(tmp_path: Path, line: str, columns: str) -> None:
    with pytest.raises(DataError, match=rf"line 2: {columns}instead of 2"):
        read(write(tmp_path / "pairs.tsv", ["one\teins", line]))


def test_all_lines_that_are_no_pairs_are_told_at_once(tmp_path: Path) -> None:
    lines = ["one\teins", *["no tab"] * 12, "a\tb\tc"]
    told = r"13 lines cannot be read: line 2: 1 column instead of 2; line 3: .*; line 11: .*; and 3 more\."
    with pytest.raises(DataError, match=told):
        read(write(tmp_path / "pairs.tsv", lines))


def test_a_line_separator_within_a_sentence_does_not_end_its_line(tmp_path: Path) -> None:
    pair = ("one\u2028two\x0cthree", "eins\u2028zwei")
    data = read(write_pairs(tmp_path, [*PAIRS, pair, pair]))
    assert pair in pairs_of(data, "train") + pairs_of(data, "test")


def test_long_pairs_are_left_out_of_training_and_cut_where_they_are_tested(tmp_path: Path) -> None:
    long = ("so " * 50 + "long", "kurz")
    test = write_pairs(tmp_path, [("the red bird", "so " * 50 + "lang")], "test.tsv")
    data = read(write_pairs(tmp_path, [*PAIRS, long]), test_path=test, max_length=40)
    assert len(data.train) == 40 and len(data.test) == 1
    assert data.notes == (
        "pairs to train on left out: more than 40 tokens: 1 (first: pair 41)",
        "pairs to test on cut: more than 40 tokens: 1 (first: pair 1)",
    )
    batch = data.test.batch(torch.tensor([0]))
    assert batch.labels.shape == (1, 41)
    assert batch.texts.references[0] == ("so " * 50 + "lang"), "what it is compared with stays whole"


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"path": None}, "dataset.path is not given"),
        ({"path": "nowhere.tsv"}, "was not found in"),
        ({"target_path": "nowhere.de"}, "dataset.target_path=nowhere.de was not found in"),
    ],
)
def test_a_file_that_is_missing_is_named(tmp_path: Path, more: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=told):
        read(**{"path": write_pairs(tmp_path), **more})


def test_what_is_peeked_at_is_what_is_read(tmp_path: Path) -> None:
    path = write_pairs(tmp_path)
    assert peek_pairs(path) == read(path, num_tokens=None).facts


# ------------------------------------------------------------------------------------------------------------- batches


def test_a_batch_has_what_is_read_and_what_is_to_be_told(tmp_path: Path) -> None:
    data = read(write_pairs(tmp_path))
    batch = data.train.batch(torch.tensor([0, 5]))
    for row, example in ((0, 0), (1, 5)):
        ids = data.train.columns["target"].values[slice(*data.train.columns["target"].starts[example : example + 2])]  # type: ignore[union-attr]
        ids = ids.tolist()
        assert (ids[0], ids[-1]) == (BOS, EOS)
        padding = batch.target.shape[1] - len(ids) + 1
        assert batch.target[row].tolist() == ids[:-1] + [PAD] * padding
        assert batch.labels[row].tolist() == ids[1:] + [NO_TARGET] * padding
        assert batch.texts.decode(ids) == batch.texts.references[int(batch.index[row])]
    assert batch.num_targets == int((batch.labels != NO_TARGET).sum())
    assert batch.source_lengths.tolist() == (batch.source != PAD).sum(1).tolist()


def test_batches_hold_pairs_of_like_length_and_every_pair_once() -> None:
    torch.manual_seed(0)
    records = made_up({"num_tokens": 30, "max_length": 40}, 200)
    source = TrainSource(records, torch.arange(200), batch_size=8, accumulate=1, seed=0, device="cpu")
    batches = [step[0] for step, _ in zip(source.from_step(0), range(source.steps_per_epoch), strict=False)]
    assert sorted(torch.cat([batch.index for batch in batches]).tolist()) == list(range(200))
    padded = sum(batch.labels.numel() for batch in batches) / sum(batch.num_targets for batch in batches)
    assert padded < 1.6, "of pairs in random order 1.8"


def test_the_task_means_the_same_tokens() -> None:
    assert (translation.PAD, translation.UNK, translation.BOS, translation.EOS) == (PAD, UNK, BOS, EOS)


def test_multi30k_is_whole(real_data: Path) -> None:
    data = read_multi30k(str(real_data), source="en", target="de", num_tokens=4000, max_length=80)
    assert data.val is not None
    assert [len(split) for split in (data.train, data.val, data.test)] == [29_000, 1_014, 1_000]
    assert (data.facts, data.notes) == ({"num_tokens": 4000}, ())
    assert (
        pairs_of(data, "test").count(
            (
                "A man in an orange hat starring at something.",
                "Ein Mann mit einem orangefarbenen Hut, der etwas anstarrt.",
            )
        )
        == 1
    )
    assert UNK not in data.test.columns["source"].values  # type: ignore[union-attr]
