"""Sentences and their translations as token ids of one vocabulary, in batches of similar length.

Letters: N pairs, B of them in a batch, K tokens of the longest source, Q of the longest target and its <eos>.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dlcli.datasets.batches.examples import Data
from dlcli.datasets.batches.records import Padded, Ragged, Records, fingerprint_of, ragged
from dlcli.datasets.files import pair_files
from dlcli.datasets.files.pair_files import Pair
from dlcli.datasets.files.sentence_files import Notes
from dlcli.datasets.tokens.tokenizing import BOS, EOS, PAD, UNK, Tokenizer

NO_TARGET = -100  # cross-entropy skips it


@dataclass(frozen=True)
class Texts:
    """decode: token ids -> text; references: the translation of each row of the split, as it was written."""

    decode: Callable[[Sequence[int]], str]
    references: Sequence[str]


class PairBatch(NamedTuple):
    source: Tensor  # (B, K) int64, 0 after each sentence's end
    source_lengths: Tensor  # (B,) int64, 1 or more
    target: Tensor  # (B, Q) int64: <bos> and the translation, 0 after its end
    labels: Tensor  # (B, Q) int64: the translation and <eos>, NO_TARGET after its end
    index: Tensor  # type: ignore[assignment]  # hides tuple.index; (B,) int64, the pair's row in its split
    num_targets: int  # labels that count
    texts: Texts  # of the whole split

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.source, self.source_lengths, self.target


def as_batch(taken: Mapping[str, Any], index_B: Tensor, augment: object, keys_B: object, *, texts: Texts) -> PairBatch:
    source: Padded = taken["source"]
    target: Padded = taken["target"]  # <bos> ... <eos>
    whole_BQ = target.values.long()
    place_Q = torch.arange(whole_BQ.shape[1], device=whole_BQ.device)
    is_behind_BQ = place_Q >= target.lengths[:, None]
    labels_BQ = whole_BQ.masked_fill(is_behind_BQ, NO_TARGET)[:, 1:]
    num_targets = target.num_parts - len(whole_BQ)  # <bos> is never predicted
    inputs_BQ = whole_BQ[:, :-1].masked_fill(whole_BQ[:, :-1] == EOS, PAD)
    return PairBatch(source.values.long(), source.lengths, inputs_BQ, labels_BQ, index_B, num_targets, texts)


def read_multi30k(
    root: str | None = None, *, source: str, target: str, num_tokens: int | None, max_length: int
) -> Data:
    """Multi30k (Elliott et al. 2016): 29,000 captions of photographs in English and German; tested on flickr 2016."""
    notes = Notes()
    return as_data(pair_files.read_multi30k(root, source, target, notes), num_tokens, max_length, notes)


def read_own_pairs(path: str | None, *, num_tokens: int | None, max_length: int, **files: str | None) -> Data:
    """The user's own files (see pair_files). The run splits its validation pairs off by its seed."""
    notes = Notes()
    return as_data(pair_files.read_splits(path, notes, **files), num_tokens, max_length, notes)


def as_data(splits: Mapping[str, Sequence[Pair]], num_tokens: int | None, max_length: int, notes: Notes) -> Data:
    """The vocabulary is made of the whole training file, even of pairs that are split off later to validate on."""
    tokenizer = pair_files.fit_tokenizer(splits["train"], num_tokens)
    records = {name: as_records(name, pairs, tokenizer, max_length, notes) for name, pairs in splits.items()}
    return Data(
        classes=(),
        train=records["train"],
        test=records["test"],
        val=records.get("val"),
        facts={"num_tokens": len(tokenizer)},
        fitted={"tokenizer": tokenizer.to_json()},
        notes=notes.sentences(),
    )


def as_records(name: str, pairs: Sequence[Pair], tokenizer: Tokenizer, max_length: int, notes: Notes) -> Records:
    """Leaves out training pairs with a side of more than max_length tokens. A held-out pair is cut, but its reference
    stays whole: settings do not change the test.
    """
    sources, targets = (encode([pair[side] for pair in pairs], tokenizer) for side in (0, 1))
    kept = []
    for i in range(len(pairs)):
        if max(len(sources[i]), len(targets[i])) > max_length:
            what = f"{'left out' if name == 'train' else 'cut'}: more than {max_length} tokens"
            notes.add(f"pairs to {name} on {what}", f"pair {i + 1:,}")
            if name == "train":
                continue
        kept.append(i)
    source = ragged([sources[i][:max_length] for i in kept], np.int32, fill=PAD)
    target = ragged([[BOS, *targets[i][:max_length], EOS] for i in kept], np.int32, fill=PAD)
    texts = Texts(tokenizer.decode, [pairs[i][1] for i in kept])
    fingerprint = fingerprint_of(source.values, source.starts, target.values, target.starts)
    return as_pairs(source, target, texts, fingerprint)


def as_pairs(source: Ragged, target: Ragged, texts: Texts, fingerprint: str) -> Records:
    lengths = torch.maximum(source.lengths, target.lengths)
    collate = partial(as_batch, texts=texts)
    return Records({"source": source, "target": target}, collate, fingerprint, lengths=lengths)


def encode(texts: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """The ids of each text, at least one. Training and predictions read texts the same way."""
    return [ids or [UNK] for ids in tokenizer.encode_batch([text.strip() for text in texts])]


def as_sources(texts: Sequence[str], tokenizer: Tokenizer, max_length: int) -> Ragged:
    """Sentences to translate, in the form of training."""
    return ragged([ids[:max_length] for ids in encode(texts, tokenizer)], np.int32, fill=PAD)


def made_up(settings: Mapping[str, Any], num_examples: int) -> Records:
    """Random tokens, of lengths up to the longest."""
    longest, num_tokens = settings["max_length"], settings["num_tokens"]
    with torch.device("cpu"):
        source, target = (
            [
                torch.randint(EOS + 1, num_tokens, (int(length),)).tolist()
                for length in torch.randint(1, longest + 1, (num_examples,))
            ]
            for _ in range(2)
        )
    texts = Texts(lambda ids: " ".join(map(str, ids)), [" ".join(map(str, ids)) for ids in target])
    columns = ragged(source, np.int32), ragged([[BOS, *ids, EOS] for ids in target], np.int32)
    return as_pairs(*columns, texts, "made up")
