"""Sentences and their translations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dlcli.datasets.kinds.kind import Kind, tokens_in_words


class Pairs(Kind):
    """Two texts of up to dataset.max_length tokens each."""

    name = "pairs"
    made_by = "dlcli.datasets.sentence_pairs"
    question = "'A SENTENCE'"
    size_setting = "max_length"
    has_score_per_token = True
    varies_in_length = True
    attending_models = ("seq2seq_transformer",)

    def in_words(self, shapes: Sequence[Sequence[int]], settings: Mapping[str, Any]) -> str:
        return tokens_in_words(shapes)
