"""Recordings and their transcripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dlcli.datasets.kinds.kind import Kind


class Speech(Kind):
    """Samples of sound at dataset.sample_rate, and the characters that are spoken."""

    name = "speech"
    made_by = "dlcli.datasets.speech"
    question = "RECORDING"
    size_setting = "sample_rate"
    varies_in_length = True
    attending_models = ("conformer",)

    def in_words(self, shapes: Sequence[Sequence[int]], settings: Mapping[str, Any]) -> str:
        """The length of one recording: "0.98 s of sound"."""
        rate = settings.get("sample_rate")
        return f"{shapes[0][0] / rate:.2g} s of sound" if rate else super().in_words(shapes, settings)
