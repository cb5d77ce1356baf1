"""One long text, read in blocks of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dlcli.datasets.kinds.kind import Kind, tokens_in_words


class Stream(Kind):
    """dataset.context_length tokens, each predicted from those before it."""

    name = "stream"
    made_by = "dlcli.datasets.text_stream"
    question = "'THE BEGINNING'"
    size_setting = "context_length"
    has_score_per_token = True
    fewest = 0  # it is scored by its characters, of which there are many in an example
    continues_text = True
    attending_models = ("gpt",)

    def in_words(self, shapes: Sequence[Sequence[int]], settings: Mapping[str, Any]) -> str:
        return tokens_in_words(shapes)
