"""Sentences with one label each, as token ids: the user's own files, and SST-2. Batches hold similar lengths.

Letters: N sentences, B of them in a batch, L tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dlcli.datasets.batches.examples import Data
from dlcli.datasets.batches.keyed_random import splitmix_tensor, streams, uniform
from dlcli.datasets.batches.records import Dense, Padded, Ragged, Records, fingerprint_of, ragged
from dlcli.datasets.files.sentence_files import (
    Column,
    Columns,
    Notes,
    Sentence,
    SentenceSplits,
    find_columns,
    fit_tokenizer,
    read_rows,
    read_sentences,
    read_splits,
    tidy,
)
from dlcli.datasets.storage.roots import data_roots, find_under, missing
from dlcli.datasets.tokens.pretrained_tokenizer import PRETRAINED, PretrainedTokenizer
from dlcli.datasets.tokens.tokenizing import PAD, UNK, Tokenizer
from dlcli.errors import ConfigError

SST2_CLASSES = ("negative", "positive")
AnyTokenizer = Tokenizer | PretrainedTokenizer


class SentenceBatch(NamedTuple):
    tokens: Tensor  # (B, L) int64, 0 after each sentence's end
    lengths: Tensor  # (B,) int64, 1 or more
    labels: Tensor  # (B,) int64
    index: Tensor  # type: ignore[assignment]  # hides tuple.index; (B,) int64, the sentence's row in its split

    @property
    def inputs(self) -> tuple[Tensor, Tensor]:
        return self.tokens, self.lengths


def as_batch(taken: Mapping[str, Any], index_B: Tensor, augment: object, keys_B: object) -> SentenceBatch:
    tokens: Padded = taken["tokens"]
    return SentenceBatch(tokens.values.long(), tokens.lengths, taken["labels"], index_B)


@dataclass(frozen=True)
class WordDropout:
    """A column of tokens; in training, a `share` of them is replaced by <unk>.

    (Iyyer et al. 2015, section 3.1, leave them out.) The choice differs in each epoch: it is a function of the run's
    seed, the epoch, the sentence and the place in it.
    """

    tokens: Ragged
    share: float
    streams_L: Tensor  # as many as the longest sentence has tokens

    @property
    def nbytes(self) -> int:
        return self.tokens.nbytes

    def __len__(self) -> int:
        return len(self.tokens)

    def to(self, device: torch.device) -> WordDropout:
        return replace(self, tokens=self.tokens.to(device), streams_L=self.streams_L.to(device))

    def take(self, rows_B: Tensor, epoch_key: int | None = None) -> Padded:
        padded = self.tokens.take(rows_B)
        if epoch_key is None:
            return padded
        keys_B = splitmix_tensor(rows_B.to(padded.values.device, non_blocking=True) + epoch_key)
        is_hidden_BL = uniform(keys_B, self.streams_L[: padded.values.shape[1]]) < self.share
        return padded._replace(values=padded.values.masked_fill(is_hidden_BL & (padded.values != PAD), UNK))


def read_own_sentences(
    path: str | None,
    *,
    tokenizer: str,
    tokenizer_file: str | None = None,
    num_tokens: int | None,
    max_length: int,
    word_dropout: float = 0.0,
    **files: Column,
) -> Data:
    """The user's own files (see sentence_files). The tokenizer is trained on all but the test split and val_path.

    tokenizer_file: a trained tokenizer, see PretrainedTokenizer.
    """
    found = read_splits(path, **files)  # type: ignore[arg-type]
    vocabulary = fit_tokenizer(found.splits["train"], tokenizer, num_tokens, tokenizer_file)
    return as_data(found, vocabulary, max_length=max_length, word_dropout=word_dropout)


def read_sst2(
    root: str | None = None,
    *,
    phrases: bool,
    tokenizer: str,
    tokenizer_file: str | None = None,
    num_tokens: int | None,
    max_length: int,
    word_dropout: float = 0.0,
) -> Data:
    """SST-2 (Socher et al. 2013): the 872 and 1,821 whole sentences of its dev and test splits to validate and test on.

    Training uses its 6,920 whole training sentences, or the 67,349 phrases that GLUE cut from them.
    """
    names = {"train": "glue/train" if phrases else "sentences/train", "val": "sentences/dev", "test": "sentences/test"}
    files = {split: find_sst2(name, root) for split, name in names.items()}
    notes, splits = Notes(), {}
    for split, file in files.items():
        rows = read_rows(file, notes)
        columns = find_columns(file, rows) if "glue" in names[split] else Columns(0, 1, None)
        sentences = read_sentences(file, rows, columns, notes)
        splits[split] = [s._replace(label=SST2_CLASSES[s.label == "1"]) for s in sentences]
    found = tidy(SST2_CLASSES, splits, files["train"].name, notes)
    vocabulary = fit_tokenizer(found.splits["train"], tokenizer, num_tokens, tokenizer_file)
    return as_data(found, vocabulary, max_length=max_length, word_dropout=word_dropout)


def find_sst2(name: str, root: str | None) -> Path:
    roots = data_roots(root)
    places = [f"{folder}{name}.tsv{end}" for folder in ("SST2/", "") for end in (".gz", "")]
    found = find_under(roots, places)
    if found is None:
        reason = "dlcli has no address to fetch it from"
        raise missing("SST-2", places[0], roots, name="sst2_lstm", reason=reason)
    return found


def as_data(found: SentenceSplits, tokenizer: AnyTokenizer, *, max_length: int, word_dropout: float) -> Data:
    """max_length: tokens; longer sentences are cut off. word_dropout: in the training split."""
    records = {
        split: as_records(sentences, found, split, tokenizer, max_length) for split, sentences in found.splits.items()
    }
    is_pretrained = isinstance(tokenizer, PretrainedTokenizer)
    if word_dropout:
        if is_pretrained:
            message = (
                f"dataset.word_dropout={word_dropout} needs words learnt from the data, not a pretrained tokenizer"
            )
            raise ConfigError(message, hint="dataset.word_dropout=0.0")
        tokens = records["train"].columns["tokens"]
        dropping = WordDropout(tokens, word_dropout, streams(*range(max_length)))  # type: ignore[arg-type]
        records["train"] = replace(records["train"], columns={**records["train"].columns, "tokens": dropping})
    return Data(
        classes=found.classes,
        train=records["train"],
        test=records["test"],
        val=records.get("val"),
        facts={"num_tokens": len(tokenizer)},
        fitted={PRETRAINED if is_pretrained else "tokenizer": tokenizer.to_json()},
        notes=found.notes.sentences(),
    )


def as_records(
    sentences: Sequence[Sentence], found: SentenceSplits, split: str, tokenizer: AnyTokenizer, max_length: int
) -> Records:
    encoded = encode([s.text for s in sentences], tokenizer)
    for sentence, ids in zip(sentences, encoded, strict=True):
        if len(ids) > max_length:
            found.notes.add(f"sentences cut at {max_length} tokens", f"{split}, line {sentence.line}")
    tokens = ragged([tokenizer.cut(ids, max_length) for ids in encoded], np.int32, fill=PAD)
    labels = torch.tensor([found.classes.index(s.label) for s in sentences], dtype=torch.int64)
    fingerprint = fingerprint_of(tokens.values, tokens.starts, labels)
    return Records({"tokens": tokens, "labels": Dense(labels)}, as_batch, fingerprint, labels, tokens.lengths)


def encode(texts: Sequence[str], tokenizer: AnyTokenizer) -> list[list[int]]:
    """The ids of each text, at least one. Training and predictions read texts the same way."""
    return [ids or [UNK] for ids in tokenizer.encode_batch([text.strip() for text in texts])]


def made_up(settings: Mapping[str, Any], num_examples: int) -> Records:
    """Random tokens, up to a quarter of max_length, as in most batches: so that timed steps are like real ones."""
    lengths = torch.randint(1, max(1, settings["max_length"] // 4) + 1, (num_examples,))
    starts = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    tokens = Ragged(torch.randint(1, settings["num_tokens"], (int(starts[-1]),)), starts, PAD)
    labels = torch.randint(settings["num_classes"], (num_examples,))
    return Records({"tokens": tokens, "labels": Dense(labels)}, as_batch, "made up", labels, tokens.lengths)
