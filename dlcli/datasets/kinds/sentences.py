"""Sentences with one label each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dlcli.datasets.kinds.kind import POOLING_MODELS, Kind, tokens_in_words


class Sentences(Kind):
    """Up to dataset.max_length tokens and one label."""

    name = "sentences"
    made_by = "dlcli.datasets.sentences"
    question = "'A SENTENCE'"
    size_setting = "max_length"
    varies_in_length = True
    attending_models = ("bert", "distilbert", *POOLING_MODELS)

    def in_words(self, shapes: Sequence[Sequence[int]], settings: Mapping[str, Any]) -> str:
        return tokens_in_words(shapes)
