"""Sentences: files as people have them, splits that share nothing, batches of like length."""

from __future__ import annotations

import gzip
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dlcli.datasets.batches.examples import Data
from dlcli.datasets.batches.records import Ragged
from dlcli.datasets.batches.source import EvalSource, TrainSource
from dlcli.datasets.files.sentence_files import key_of, peek_sentences, read_splits
from dlcli.datasets.sentences import made_up, read_own_sentences, read_sst2
from dlcli.datasets.tokens.tokenizing import UNK, Tokenizer
from dlcli.errors import ConfigError, DataError

REVIEWS = [(f"film number {i} is {word} {word}", label) for i in range(20) for word, label in
           (("great", "good"), ("dull", "bad"), ("a film", "neither"))]  # fmt: skip
Writer = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    """write("a\\tb", name) -> the path of a file that holds it."""

    def write(content: str | bytes, name: str = "reviews.tsv") -> str:
        data = content.encode() if isinstance(content, str) else content
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return str(tmp_path / name)

    return write


def lines(reviews: list[tuple[str, str]] = REVIEWS, between: str = "\t") -> str:
    return "".join(f"{text}{between}{label}\n" for text, label in reviews)


def texts(path: str, split: str = "train", **more: Any) -> list[tuple[str, str]]:
    return sorted((s.text, s.label) for s in read_splits(path, **more).splits[split])


def everything(path: str, **more: Any) -> list[tuple[str, str]]:
    return sorted(texts(path, **more) + texts(path, "test", **more))


def read(path: str, **more: Any) -> Data:
    return read_own_sentences(path, **{"tokenizer": "words", "num_tokens": None, "max_length": 8} | more)


# ---------------------------------------------------------------------------------------------------- files as they are


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (lines(), "reviews.tsv"),
        (lines(), "reviews.txt"),
        (lines(), "reviews.tsv.gz"),
        ("sentence\tlabel\n" + lines(), "with_header.tsv"),
        ("Stars\tOpinion\n" + lines(), "header_of_other_names.tsv"),
        ("\ufeff" + lines().replace("\n", "\r\n"), "windows.tsv"),
        ("\n" + lines().replace("\n", "  \n\n") + "\n\n", "blank_lines.tsv"),
        (lines().rstrip("\n"), "no_last_line_break.tsv"),
        (lines([(label, text) for text, label in REVIEWS]), "label_first.tsv"),
        ("label\ttext\n" + lines([(label, text) for text, label in REVIEWS]), "label_first_with_header.tsv"),
        (lines(between=","), "reviews.csv"),
        (lines(between=";"), "semicolons.csv"),
        ("id,review,stars,sentiment\n" + "".join(f'{i},"{t}",5,{c}\n' for i, (t, c) in enumerate(REVIEWS)), "four.csv"),
    ],
    ids=lambda value: value if "." in value[-8:] and "\n" not in value else "",
)
def test_the_same_sentences_in_any_layout(write: Writer, content: str, name: str) -> None:
    assert everything(write(content, name)) == sorted(REVIEWS)


def test_columns_are_named_or_numbered(write: Writer) -> None:
    header, numbered = "id\tx\ty\n", "".join(f"{i}\t{label}\t{text}\n" for i, (text, label) in enumerate(REVIEWS))
    path = write(header + numbered)
    assert everything(path, text_column="y", label_column="x") == sorted(REVIEWS)
    assert everything(write(numbered, "numbered.tsv"), text_column=3, label_column=2) == sorted(REVIEWS)
    with pytest.raises(DataError, match="3 columns: id, x, y") as caught:
        read_splits(path)
    assert "dataset.text_column" in str(caught.value.hint)
    with pytest.raises(ConfigError, match="id, x, y"):
        read_splits(path, text_column="z", label_column="x")


def test_quotes_of_tabbed_files_are_signs_and_of_csv_hold_fields_together(write: Writer) -> None:
    odd = [('"quoted from the left', "good"), ('an inch is 1"', "bad"), ("a\u2028b \x0c c", "bad"), ("fine", "good")]
    assert everything(write(lines(odd))) == sorted(odd)
    two_lines = [("one, two\nthree", "good"), ('"so" he said', "bad"), ("yes", "good"), ("no", "bad")]
    quoted = "".join('"{}",{}\n'.format(text.replace('"', '""'), label) for text, label in two_lines)
    assert everything(write(quoted, "quoted.csv")) == sorted(two_lines)


def test_lines_that_say_nothing_are_left_out_and_told(write: Writer) -> None:
    content = lines() + "no label\n" + "no label either\t\n" + "\tgood\n" + "  \tgood\n" + lines(REVIEWS[:7])
    found = read_splits(write(content))
    assert sum(map(len, found.splits.values())) == len(REVIEWS)
    assert found.notes.sentences() == (
        "lines without a label left out: 2 (first: reviews.tsv, line 61)",
        "lines without a sentence left out: 2 (first: reviews.tsv, line 63)",
        "repeated lines left out: 7 (first: reviews.tsv, line 65)",
    )


def test_blank_lines_between_others_are_counted(write: Writer) -> None:
    first, rest = lines(REVIEWS[:7]), lines(REVIEWS[7:])
    for name in ("reviews.tsv", "reviews.csv"):
        content = f"{first}\n  \n{rest}\n\n"
        found = read_splits(write(content if name.endswith("tsv") else content.replace("\t", ","), name))
        assert found.notes.sentences() == (f"blank lines left out: 2 (first: {name}, line 8)",)


def test_a_sentence_with_two_labels_is_told(write: Writer) -> None:
    notes = read_splits(write(lines([*REVIEWS, (REVIEWS[0][0], "bad")]))).notes.sentences()
    assert notes[0] == "sentences with another label before, kept with both: 1 (first: reviews.tsv, line 61)"


@pytest.mark.parametrize(
    ("content", "name", "told"),
    [
        (b"good film\tgood\nna\xefve\tbad\n", "latin1.tsv", "line 2: not UTF-8 .byte 0xef"),
        (b"\xff\xfeg\x00", "utf16.tsv", "line 1: not UTF-8"),
        ("", "nothing.tsv", "is empty"),
        ("\n \n", "blank.tsv", "is empty"),
        (
            "a\tgood\nb\tc\tgood\n\na\tb\tc\tbad\n",
            "tabs.tsv",
            "2 lines cannot be read: line 2: 3 .*; line 4: 4 columns",
        ),
        ("a film without a tab\n", "one_column.tsv", "line 1: one column"),
        ("a\tgood\n\na tab\twithin\tbad\n", "tab.tsv", "line 3: 3 columns instead of 2"),
        ("a\tgood\nb\tgood\nc\tgood\n", "one_class.tsv", "every sentence has the label good"),
        ("".join(f"s{i}\tc{i}\n" for i in range(90)), "no_classes.tsv", "90 different labels in 90 lines"),
        ('"left open,good\nb,bad\n', "open.csv", "one column"),
        ("text,label\n" + "x" * 140_000 + ",good\n", "wide.csv", "line 2: not CSV: field larger"),
        ("sentence\tlabel\n", "header.tsv", "no line has a sentence"),
    ],
    ids=lambda value: value if isinstance(value, str) and value[-4:] in (".tsv", ".csv") else "",
)
def test_what_cannot_be_read_is_named_with_its_line(write: Writer, content: str | bytes, name: str, told: str) -> None:
    with pytest.raises(DataError, match=told) as caught:
        read_splits(write(content, name))
    assert name in caught.value.message and caught.value.hint


def test_a_damaged_archive_and_a_missing_file(write: Writer, tmp_path: Path) -> None:
    path = write(lines(), "reviews.tsv.gz")
    Path(path).write_bytes(Path(path).read_bytes()[:40])
    with pytest.raises(DataError, match="cannot be read"):
        read_splits(path)
    with pytest.raises(DataError, match="was not found in"):
        read_splits("none.tsv")
    with pytest.raises(DataError, match="is not a file"):
        read_splits(str(tmp_path))
    with pytest.raises(DataError, match=r"dataset\.path is not given"):
        read_splits(None)


def test_a_file_is_found_under_a_data_root(write: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(lines())
    monkeypatch.chdir("/")
    monkeypatch.setenv("DLCLI_DATA", str(tmp_path))
    assert everything("reviews.tsv") == sorted(REVIEWS)


# --------------------------------------------------------------------------------------------------------------- splits


def test_the_test_split_is_a_fifth_of_every_class_whatever_the_order(write: Writer) -> None:
    path = write(lines())
    assert Counter(label for _, label in texts(path, "test")) == {"good": 4, "bad": 4, "neither": 4}
    assert texts(write(lines(REVIEWS[::-1])), "test") == texts(path, "test")
    assert not set(texts(path)) & set(texts(path, "test"))


def test_a_rare_class_stays_in_training(write: Writer) -> None:
    rare = [*REVIEWS, ("the only one", "rare"), ("one", "pair"), ("two", "pair")]
    train, test = texts(write(lines(rare))), texts(write(lines(rare)), "test")
    assert [sum(label == "rare" for _, label in split) for split in (train, test)] == [1, 0]
    assert [sum(label == "pair" for _, label in split) for split in (train, test)] == [1, 1]


def test_given_splits_are_kept_and_leave_training(write: Writer) -> None:
    val, test = (
        write(lines(REVIEWS[:6]), "val.tsv"),
        write("label\tsentence\ngood\tFILM number 3 is great great!\n", "t.tsv"),
    )
    found = read_splits(write("sentence\tlabel\n" + lines()), val_path=val, test_path=test)
    assert {split: len(sentences) for split, sentences in found.splits.items()} == {"train": 53, "val": 6, "test": 1}
    assert found.notes.counts["training sentences that are held out too, left out"] == 7
    held_out = {key_of(s.text) for split in ("val", "test") for s in found.splits[split]}
    assert not held_out & {key_of(s.text) for s in found.splits["train"]}


def test_a_label_that_training_does_not_have_is_named(write: Writer) -> None:
    val = write("fine\tgood\nso so\tmiddling\n", "val.tsv")
    with pytest.raises(DataError, match=r"val\.tsv, line 2: no training sentence has the label middling"):
        read_splits(write(lines()), val_path=val)


def test_numbers_are_classes_in_their_order(write: Writer) -> None:
    path = write("".join(f"film {i}\t{i % 12 - 1}\n" for i in range(60)))
    assert read_splits(path).classes == tuple(str(n) for n in range(-1, 11))


# ----------------------------------------------------------------------------------------------------- data and batches


def test_the_vocabulary_is_of_the_training_sentences_alone(write: Writer) -> None:
    test = write("zebra zebra zebra film\tgood\n", "test.tsv")
    data = read(write(lines()), test_path=test)
    tokenizer = Tokenizer.from_json(data.fitted["tokenizer"])
    assert "film" in tokenizer.pieces and "zebra" not in tokenizer.pieces
    assert data.facts == {"num_tokens": len(tokenizer)}
    (batch,) = EvalSource(data.test, torch.arange(1), batch_size=1, device="cpu")
    assert batch.tokens.tolist() == [[UNK, UNK, UNK, tokenizer.encode_batch(["film"])[0][0]]]


@pytest.mark.parametrize("tokenizer", ["words", "characters", "bpe"])
def test_peek_tells_what_the_reader_finds(write: Writer, tokenizer: str) -> None:
    path = write(lines())
    data, found = read(path, tokenizer=tokenizer), peek_sentences(path, tokenizer=tokenizer)
    assert found == {"num_classes": len(data.classes), **data.facts}


def test_peek_needs_no_torch() -> None:
    code = "import sys, dlcli.datasets.files.sentence_files; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


def test_a_batch_holds_the_sentences_of_its_rows(write: Writer) -> None:
    data = read(write(lines()), num_tokens=20)
    tokenizer = Tokenizer.from_json(data.fitted["tokenizer"])
    sentences = read_splits(str(Path("reviews.tsv"))).splits["train"]
    seen = []
    for batch in EvalSource(data.train, torch.arange(len(data.train)), batch_size=7, device="cpu"):
        assert batch.tokens.dtype == batch.lengths.dtype == batch.labels.dtype == torch.int64
        assert batch.inputs[0] is batch.tokens and batch.inputs[1] is batch.lengths
        for ids, length, label, row in zip(batch.tokens, batch.lengths, batch.labels, batch.index, strict=True):
            sentence = sentences[int(row)]
            assert ids[:length].tolist() == tokenizer.encode_batch([sentence.text])[0] and not ids[length:].any()
            assert data.classes[int(label)] == sentence.label
            seen.append(int(row))
    assert sorted(seen) == list(range(len(sentences)))


def test_long_sentences_are_cut_and_told_and_signs_alone_are_no_empty_sentence(write: Writer) -> None:
    odd = [*REVIEWS, ("word " * 30, "good"), ("\u200b", "bad"), (":-)", "bad")]
    data = read(write(lines(odd)), max_length=6)
    splits = [data.train, data.test]
    assert max(int(split.lengths.max()) for split in splits) == 6  # type: ignore[union-attr]
    assert min(int(split.lengths.min()) for split in splits) >= 1  # type: ignore[union-attr]
    assert any(note.startswith("sentences cut at 6 tokens: 21") for note in data.notes), data.notes


def test_fingerprints_are_of_the_content(write: Writer) -> None:
    first, again = read(write(lines())), read(write(lines()))
    other = read(write(lines([("another film", "good"), *REVIEWS[1:]])))
    assert first.fingerprints() == again.fingerprints()
    assert first.train.fingerprint != other.train.fingerprint != first.test.fingerprint


def test_hidden_words_are_others_in_each_epoch_and_the_same_in_each_run(write: Writer) -> None:
    data = read(write(lines()), word_dropout=0.3)
    plain = read(write(lines())).train
    rows = torch.arange(len(plain))

    def tokens(epoch_key: int | None) -> torch.Tensor:
        return data.train.batch(rows, epoch_key=epoch_key).tokens  # type: ignore[union-attr]

    whole = plain.batch(rows).tokens  # type: ignore[union-attr]
    assert tokens(None).equal(whole), "an evaluation reads every word"
    assert tokens(1).equal(tokens(1)) and not tokens(1).equal(tokens(2))
    hidden = (tokens(1) != whole) & (whole != UNK)
    assert tokens(1)[hidden].unique().tolist() == [UNK] and not ((tokens(1) == UNK) & (whole == 0)).any()
    assert 0.2 < hidden.float().sum() / (whole > UNK).float().sum() < 0.4
    few = data.train.batch(rows[3:5], epoch_key=1).tokens  # type: ignore[union-attr]
    assert few.equal(tokens(1)[3:5, : few.shape[1]]), "whatever else is in the batch"


@pytest.mark.parametrize(("max_length", "num_tokens", "num_classes"), [(1, 5, 2), (40, 9, 7)])
def test_made_up_sentences_have_the_shapes_of_the_settings(max_length: int, num_tokens: int, num_classes: int) -> None:
    records = made_up({"max_length": max_length, "num_tokens": num_tokens, "num_classes": num_classes}, 50)
    batch = records.batch(torch.arange(50))
    assert batch.tokens.shape == (50, int(batch.lengths.max())) and int(batch.lengths.min()) >= 1
    assert int(batch.tokens.max()) < num_tokens and int(batch.labels.max()) < num_classes
    assert batch.tokens.ne(0).sum(1).equal(batch.lengths)


# ---------------------------------------------------------------------------------------------------------------- SST-2


@pytest.mark.parametrize(
    ("phrases", "num_train", "repeats", "held_out"), [(True, 66_972, 366, 11), (False, 6_908, 9, 3)]
)
def test_sst2(real_data: Path, phrases: bool, num_train: int, repeats: int, held_out: int) -> None:
    data = read_sst2(str(real_data), phrases=phrases, tokenizer="words", num_tokens=6_000, max_length=64)
    assert data.val is not None
    assert [len(split) for split in (data.train, data.val, data.test)] == [num_train, 872, 1_821]
    assert data.classes == ("negative", "positive") and data.facts == {"num_tokens": 6_000}
    assert [torch.bincount(split.labels).tolist() for split in (data.val, data.test)] == [[428, 444], [912, 909]]  # type: ignore[arg-type]
    assert any(note.startswith(f"repeated lines left out: {repeats}") for note in data.notes)
    assert any(
        note.startswith(f"training sentences that are held out too, left out: {held_out}") for note in data.notes
    )


def test_batches_of_like_length_pad_little(real_data: Path) -> None:
    data = read_sst2(str(real_data), phrases=False, tokenizer="words", num_tokens=6_000, max_length=64)
    lengths = data.train.columns["tokens"].lengths  # type: ignore[union-attr]
    rows = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(0))
    shuffled = sum(int(part.max()) * len(part) for part in lengths[rows].split(64))

    def padded(source: Any) -> int:
        return sum(batch.tokens.numel() for batch in source)

    all_rows = torch.arange(len(data.train))
    train = TrainSource(data.train, all_rows, batch_size=64, accumulate=1, seed=0, device="cpu")
    steps = train.from_step(0)
    epoch = [micro_batch for _ in range(train.steps_per_epoch) for micro_batch in next(steps)]
    assert sorted(int(i) for batch in epoch for i in batch.index) == all_rows.tolist()
    real = int(lengths.sum())
    assert padded(epoch) < 1.1 * real < 1.7 * real < shuffled
    assert padded(EvalSource(data.train, all_rows, batch_size=64, device="cpu")) < 1.05 * real
    assert isinstance(data.train.columns["tokens"], Ragged)  # type: ignore[union-attr]


def test_a_column_beyond_the_last_is_told_with_how_many_there_are(tmp_path: Path) -> None:
    path = tmp_path / "headless.tsv"
    path.write_text("a good film\t1\na bad film\t0\n")
    with pytest.raises(ConfigError) as caught:
        read_splits(str(path), label_column=3)
    assert caught.value.message == f"dataset.label_column=3: {path} has 2 columns"
    assert caught.value.hint == "Give a number from 1 to 2, or a name of the header."
