"""Text as token ids: characters, words, or byte pairs, learnt from a training text.

    tokenizer = Tokenizer.train(lines, kind="bpe", size=8000)
    tokenizer.decode(tokenizer.encode_batch(["two words"])[0]) == "two words"

Ids 0 to 3 are <pad>, <unk>, <bos> and <eos>; no text encodes to <pad>, <bos> or <eos>. The same text gives the
same vocabulary. characters and bpe lose nothing (bpe falls back on bytes); words are in lower case, without spaces.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

from dlcli.errors import ConfigError, DataError, nearest, printable

PAD, UNK, BOS, EOS = range(4)
SPECIALS = ("<pad>", "<unk>", "<bos>", "<eos>")
FIRST = len(SPECIALS)  # id of the first piece of text
KINDS = ("bpe", "words", "characters")
USUAL_SIZE = {"bpe": 8_000, "words": 30_000, "characters": None}  # the most tokens if no size is given
BYTES = 256
# Cuts like the Penn Treebank: did|n't, it|'s; data that are already cut like this stay as they are.
WORD = re.compile(r"\w+(?=n't\b)|n't\b|'(?:s|re|ve|ll|d|m)\b|\w+|[^\w\s]")


class Tokenizer:
    """pieces: the text of each id from 4 on (for bpe in the byte alphabet of GPT-2); merges: for bpe, in order."""

    def __init__(self, kind: str, pieces: Sequence[str], merges: Sequence[tuple[str, str]] = ()):
        self.kind, self.pieces, self.merges = kind, tuple(pieces), tuple(merges)

    @classmethod
    def train(cls, lines: Iterable[str], *, kind: str, size: int | None = None) -> Tokenizer:
        """Learns the vocabulary. size: the most tokens, specials included; there are fewer if the text holds fewer.

        None: every character, at most 30,000 words, at most 8,000 byte pairs. The most frequent are kept; a word or
        pair that occurs only once in the whole text is not.
        """
        check_kind(kind)
        if size is None:
            size = USUAL_SIZE[kind]
        fewest = FIRST + (BYTES if kind == "bpe" else 1)
        if size is not None and size < fewest:
            raise ConfigError(
                f"dataset.num_tokens={size}: a vocabulary of {size:,} tokens is too small for {kind}.",
                hint=f"Choose dataset.num_tokens={fewest} or more.",
            )
        if kind == "bpe":
            assert size is not None
            return cls(kind, *_train_byte_pairs(lines, size))
        pieces = Counter[str]()
        for line in lines:
            pieces.update(line if kind == "characters" else words(line))
        ordered = sorted(pieces, key=lambda piece: (-pieces[piece], piece))
        if kind == "words":
            ordered = [piece for piece in ordered if pieces[piece] > 1]
        return cls(kind, ordered if size is None else ordered[: size - FIRST])

    def __len__(self) -> int:
        return FIRST + len(self.pieces)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, without <bos> or <eos>."""
        if self.kind == "bpe":
            found = self._byte_pairs.encode_batch([_encodable(text) for text in texts], add_special_tokens=False)
            return [[FIRST + i for i in encoding.ids] for encoding in found]
        cut: Any = words if self.kind == "words" else iter
        return [[self._ids.get(piece, UNK) for piece in cut(text)] for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; <pad>, <bos> and <eos> are left out, <unk> shows as \N{REPLACEMENT CHARACTER}."""
        ids = [int(i) for i in ids if i not in (PAD, BOS, EOS)]
        if self.kind == "bpe":
            return self._byte_pairs.decode(
                [i - FIRST for i in ids if FIRST <= i < len(self)], skip_special_tokens=False
            )
        pieces = [self.pieces[i - FIRST] if FIRST <= i < len(self) else "\N{REPLACEMENT CHARACTER}" for i in ids]
        return (" " if self.kind == "words" else "").join(pieces)

    def name(self, token: int) -> str:
        """The text that shows one token in a list, a special one too."""
        return SPECIALS[token] if token < FIRST else self.decode([token])

    def cut(self, ids: list[int], max_length: int) -> list[int]:
        return ids[:max_length]

    def to_json(self) -> str:
        kept = {"kind": self.kind, "pieces": self.pieces, "merges": self.merges}
        return json.dumps(kept, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """The tokenizer that `to_json` wrote. Raises DataError for anything else; nothing in it is run."""
        try:
            kept = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise _no_tokenizer(f"not JSON: {printable(error)}") from error
        if not isinstance(kept, dict) or set(kept) != {"kind", "pieces", "merges"} or kept["kind"] not in KINDS:
            raise _no_tokenizer("its parts should be kind, pieces and merges")
        pieces, merges = kept["pieces"], kept["merges"]
        if not _are_texts(pieces) or len(set(pieces)) < len(pieces):
            raise _no_tokenizer("its pieces should be different texts")
        if not isinstance(merges, list) or not all(_are_texts(pair) and len(pair) == 2 for pair in merges):
            raise _no_tokenizer("its merges should be pairs of texts")
        if not {part for a, b in merges for part in (a, b, a + b)} <= set(pieces):
            raise _no_tokenizer("its merges should join pieces to pieces")
        return cls(kept["kind"], pieces, [(a, b) for a, b in merges])

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {piece: FIRST + i for i, piece in enumerate(self.pieces)}

    @cached_property
    def _byte_pairs(self) -> Any:
        tokenizers = _library()
        vocabulary = {piece: i for i, piece in enumerate(self.pieces)}
        return _byte_level(tokenizers, tokenizers.models.BPE(vocab=vocabulary, merges=list(self.merges)))


def words(text: str) -> list[str]:
    """The words and signs of a text, in lower case."""
    return WORD.findall(text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))


def check_kind(kind: str) -> None:
    if kind not in KINDS:
        better = nearest(kind, KINDS)
        message = f"there is no tokenizer {printable(kind)} ({', '.join(KINDS)})"
        raise ConfigError(message, hint=f"dataset.tokenizer={better}" if better else None)


def _train_byte_pairs(lines: Iterable[str], size: int) -> tuple[list[str], list[tuple[str, str]]]:
    """Byte-level BPE (Sennrich et al. 2016; on bytes as in GPT-2): pieces and merges."""
    tokenizers = _library()
    backend = _byte_level(tokenizers, tokenizers.models.BPE())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size - FIRST,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
    )
    backend.train_from_iterator((_encodable(line) for line in lines), trainer)
    kept = json.loads(backend.to_str())["model"]
    merges = [(left, right) for left, right in kept["merges"]]
    return sorted(kept["vocab"], key=kept["vocab"].get), merges


def _byte_level(tokenizers: Any, model: Any) -> Any:
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    return backend


def _library() -> Any:
    # Its threads do not survive a fork (data workers, ranks), and it warns of that at each one.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import tokenizers

    return tokenizers


def _encodable(text: str) -> str:
    """The text without lone surrogates, which a command line gives for bytes that are not UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _are_texts(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) and value for value in values)


def _no_tokenizer(why: str) -> DataError:
    return DataError(f"the stored tokenizer cannot be read: {why}.", hint="Train the run again, or give another run.")
