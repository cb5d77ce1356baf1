"""A stream of tokens, cut into blocks: every token is predicted from those before it in its block.

Letters: T tokens of the stream, N blocks, B of them in a batch, L tokens of a block, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dlcli.datasets.batches.examples import Data
from dlcli.datasets.batches.records import Records, fingerprint_of
from dlcli.datasets.files import text_files
from dlcli.datasets.files.text_files import Part
from dlcli.datasets.tokens.tokenizing import PAD, Tokenizer
from dlcli.errors import DataError

NO_TARGET = -100  # cross-entropy skips it


class StreamBatch(NamedTuple):
    tokens: Tensor  # (B, L) int64
    targets: Tensor  # (B, L) int64, the token after each; NO_TARGET after the end of a short block
    characters: Tensor  # (B,) int64, the characters that a block's targets cover
    index: Tensor  # type: ignore[assignment]  # hides tuple.index; (B,) int64, the block's row
    num_targets: int  # in all blocks

    @property
    def inputs(self) -> tuple[Tensor]:
        return (self.tokens,)


class Taken(NamedTuple):
    """Some blocks, in the form of StreamBatch."""

    tokens: Tensor
    targets: Tensor
    characters: Tensor
    num_targets: int

    @property
    def device(self) -> torch.device:
        return self.tokens.device


@dataclass(frozen=True)
class Windows:
    """The stream in blocks of L targets; the last block has the rest.

    Its T - 1 targets lie on a ring: a block that crosses the end continues at the beginning. The first block's place is
    a function of the epoch's key, so that each epoch cuts elsewhere but still has every target once; an evaluation
    begins at the beginning.
    tokens: (T,) of any integer dtype; characters: (V,) int64, how many characters each token covers.
    """

    tokens: Tensor
    characters: Tensor
    block: int

    @property
    def num_targets(self) -> int:
        return len(self.tokens) - 1

    @property
    def nbytes(self) -> int:
        return self.tokens.nbytes + self.characters.nbytes

    def __len__(self) -> int:
        return -(-self.num_targets // self.block)

    def to(self, device: torch.device) -> Windows:
        return replace(self, tokens=self.tokens.to(device), characters=self.characters.to(device))

    def take(self, rows_B: Tensor, epoch_key: int | None = None) -> Taken:
        device = self.tokens.device
        phase = 0 if epoch_key is None else epoch_key % self.num_targets
        lengths_B = (self.num_targets - rows_B * self.block).clamp(max=self.block)
        longest = int(lengths_B.max())  # on the CPU: no wait for the device
        place_L = torch.arange(longest, device=device)
        is_behind_BL = place_L >= lengths_B.to(device, non_blocking=True)[:, None]
        at_BL = (rows_B.to(device, non_blocking=True)[:, None] * self.block + place_L + phase) % self.num_targets
        tokens_BL, targets_BL = self.tokens[at_BL].long(), self.tokens[at_BL + 1].long()
        characters_B = self.characters[targets_BL].masked_fill(is_behind_BL, 0).sum(1)
        return Taken(
            tokens_BL.masked_fill(is_behind_BL, PAD),
            targets_BL.masked_fill(is_behind_BL, NO_TARGET),
            characters_B,
            int(lengths_B.sum()),
        )


def as_batch(taken: Mapping[str, Any], index_B: Tensor, augment: object, keys_B: object) -> StreamBatch:
    stream: Taken = taken["stream"]
    return StreamBatch(stream.tokens, stream.targets, stream.characters, index_B, stream.num_targets)


def read_shakespeare(
    root: str | None = None,
    *,
    tokenizer: str,
    num_tokens: int | None,
    context_length: int,
    val_size: Part,
    test_size: Part,
) -> Data:
    """Tiny Shakespeare (Karpathy 2015): 1,115,394 characters, 65 different ones.

    Others train on the first 90 % and validate on the rest; here the rest is cut in two, to have a test split: 90, 5
    and 5 %.
    """
    text = text_files.read_characters(text_files.find_shakespeare(root))
    return as_data(text, tokenizer, num_tokens, block=context_length, val_size=val_size, test_size=test_size)


def read_own_text(
    path: str | None,
    root: str | None = None,
    *,
    tokenizer: str,
    num_tokens: int | None,
    context_length: int,
    val_size: Part,
    test_size: Part,
) -> Data:
    """Any text in UTF-8, gzipped or not."""
    text = text_files.read_characters(text_files.locate(path, root))
    return as_data(text, tokenizer, num_tokens, block=context_length, val_size=val_size, test_size=test_size)


def as_data(text: str, kind: str, num_tokens: int | None, *, block: int, val_size: Part, test_size: Part) -> Data:
    """The data of a text's parts. kind: of the tokenizer, which is trained on the training part alone."""
    parts = dict(zip(("train", "val", "test"), text_files.cut(text, val_size, test_size), strict=True))
    tokenizer = text_files.fit_tokenizer(parts["train"], kind, num_tokens)
    notes: list[str] = []
    splits = {name: as_records(name, part, tokenizer, block, notes) for name, part in parts.items()}
    return Data(
        classes=(),
        train=splits["train"],
        val=splits["val"],
        test=splits["test"],
        facts={"num_tokens": len(tokenizer)},
        fitted={"tokenizer": tokenizer.to_json()},
        notes=tuple(notes),
    )


def as_records(name: str, text: str, tokenizer: Tokenizer, block: int, notes: list[str]) -> Records:
    tokens = torch.tensor(text_files.encode(text, tokenizer), dtype=torch.int32)
    if len(tokens) < 2:
        raise DataError(f"the {name} part has {len(tokens)} tokens; there must be two.", hint="dataset.val_size=0.1")
    if unknown := int((tokens == 1).sum()):
        notes.append(f"{unknown:,} of the {len(tokens):,} tokens to {name} on are unknown to the vocabulary")
    characters = torch.tensor(text_files.num_characters(tokenizer))
    windows = Windows(tokens, characters, block)
    return Records({"stream": windows}, as_batch, fingerprint_of(tokens))


def made_up(settings: Mapping[str, Any], num_examples: int) -> Records:
    """Random tokens, each a character."""
    num_tokens, block = settings["num_tokens"], settings["context_length"]
    tokens = torch.randint(num_tokens, (num_examples * block + 1,))
    return Records({"stream": Windows(tokens, torch.ones(num_tokens, dtype=torch.int64), block)}, as_batch, "made up")
