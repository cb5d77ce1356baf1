"""The tokenizer that a pretrained network was trained with: the tokenizer.json beside its weights.

tokenizer = PretrainedTokenizer.read(Path("distilbert-base-uncased"))
tokenizer.encode_batch(["a film"])[0]       # [101, 1037, 2143, 102]: [CLS] a film [SEP]
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from dlcli.datasets.tokens.tokenizing import PAD, _library
from dlcli.errors import ConfigError, DataError, printable

FILE = "tokenizer.json"
PRETRAINED = "pretrained_tokenizer"  # the name under which a checkpoint keeps it
PADDINGS = ("[PAD]", "<pad>")  # one of them must have the id 0
KNOWN = {  # by exact type: other types rewrite texts without bound, match patterns of their own, or are not BERT's
    "normalizer": ("BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents", "Sequence"),
    "pre_tokenizer": ("BertPreTokenizer", "Whitespace", "WhitespaceSplit", "Punctuation", "Sequence"),
    "model": ("WordPiece", "WordLevel"),
    "post_processor": ("BertProcessing", "TemplateProcessing"),
}
PARTS = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
}  # the name under which a Sequence keeps its parts
LARGEST = 16 * 2**20  # characters of a tokenizer.json
CONVERT = "With transformers, write one: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
COMPLETE = (
    "Use the tokenizer.json that was published with the weights: "
    "its model.vocab holds the token that model.unk_token names ([UNK] for BERT)."
)


class PretrainedTokenizer:
    """Like `Tokenizer`, with the special tokens that the network expects: one before the text and one after it.

    A special token's name within a text is plain text. size: of the vocabulary, if the network keeps more ids than
    there are tokens. Raises DataError if the JSON is not such a tokenizer.
    """

    def __init__(self, text: str, size: int | None = None):
        self.text, self.size = text, size or 0
        if (padding := self._backend.id_to_token(PAD)) not in PADDINGS:
            raise _no_tokenizer(f"its token {PAD} is {printable(padding)}; sentences are padded with [PAD] as {PAD}")
        unknown = self._backend.model.unk_token
        if self._backend.model.token_to_id(unknown) is None:  # the library would say so at the first unknown word
            why = f"words it does not know become {printable(unknown)}, which is not in its vocabulary"
            raise _no_tokenizer(why, hint=COMPLETE)
        if (added := self._backend.num_special_tokens_to_add(False)) != 2:
            raise _no_tokenizer(f"it adds {added} special tokens to a sentence; BERT's adds two, [CLS] and [SEP]")
        if (highest := max(self._backend.encode("").ids)) >= len(self):
            raise _no_tokenizer(f"a special token has the id {highest}, but its vocabulary has {len(self)} tokens")

    @classmethod
    def read(cls, path: Path, size: int | None = None) -> PretrainedTokenizer:
        """path: a tokenizer.json, or the folder that holds it."""
        file = path / FILE if path.is_dir() else path
        try:
            return cls(file.read_text(encoding="utf-8"), size)
        except FileNotFoundError as error:
            raise DataError(f"there is no tokenizer {printable(file)}", hint=CONVERT) from error
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{printable(file)} cannot be read: {printable(error)}", hint=CONVERT) from error
        except DataError as error:
            raise DataError(f"{printable(file)}: {error.message}", hint=error.hint) from error

    def __len__(self) -> int:
        return max(self.size, 1 + max(self._backend.get_vocab().values()))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        # Lone surrogates, which a terminal's arguments may hold, are not UTF-8.
        clean = [text.encode("utf-8", "replace").decode() for text in texts]
        return [encoding.ids for encoding in self._backend.encode_batch(clean)]

    def name(self, token: int) -> str:
        return str(self._backend.id_to_token(token))

    def cut(self, ids: list[int], max_length: int) -> list[int]:
        """At most so many ids; the special token after the text stays the last."""
        return ids if len(ids) <= max_length else [*ids[: max_length - 1], ids[-1]]

    def to_json(self) -> str:
        return self.text

    @cached_property
    def _backend(self) -> Any:
        tokenizers = _library()
        try:
            backend = tokenizers.Tokenizer.from_str(_checked(self.text))
        except DataError:
            raise
        except BaseException as error:  # the library raises only Exception itself, and Rust's own panic
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise _no_tokenizer(f"not a Hugging Face tokenizer ({printable(error)})") from error
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True
        return backend


def _checked(text: str) -> str:
    """The JSON, which may hold only parts that are known. Raises DataError for any other."""
    if len(text) > LARGEST:
        raise _no_tokenizer(f"it has {len(text):,} characters, more than {LARGEST:,}")
    try:
        parts = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise _no_tokenizer(f"not JSON ({printable(error)})") from error
    if not isinstance(parts, dict) or not isinstance(parts.get("model"), dict):
        raise _no_tokenizer("not a Hugging Face tokenizer")
    for name, known in KNOWN.items():
        _check_part(parts.get(name), name, known)
    return json.dumps({**parts, "decoder": None, "padding": None, "truncation": None})


def _check_part(part: Any, name: str, known: Sequence[str], depth: int = 0) -> None:
    if part is None:
        return
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in known or depth > 2:
        raise _no_tokenizer(f"its {name} is {printable(kind)}, not one of {', '.join(known)}")
    if kind == "Sequence":
        inner = part.get(PARTS.get(name, ""))
        if not isinstance(inner, list) or len(inner) > 10:
            raise _no_tokenizer(f"its {name} is a sequence of unknown parts")
        for one in inner:
            _check_part(one, name, known, depth + 1)


def peek_tokenizer(tokenizer_file: str | None) -> dict[str, int]:
    """num_tokens of a pretrained tokenizer, for a dataset that gives no number."""
    if tokenizer_file is None:
        message = "dataset.num_tokens is not given, and there is no pretrained tokenizer to ask"
        hint = "trainer.pretrained=FOLDER dataset.tokenizer_file=FOLDER, or from scratch: dataset.num_tokens=8000"
        raise ConfigError(message, hint=hint)
    return {"num_tokens": len(PretrainedTokenizer.read(Path(tokenizer_file)))}


def _no_tokenizer(why: str, hint: str = CONVERT) -> DataError:
    return DataError(f"the tokenizer does not fit: {why}.", hint=hint)
