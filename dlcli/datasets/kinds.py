"""The kinds of data there are, and which of them a dataset's settings give (`facts: {gives: KIND}`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MADE_UP = {  # kind -> the module whose made_up() makes examples of it
    "images": "dlcli.datasets.made_up",
    "sentences": "dlcli.datasets.sentences",
    "stream": "dlcli.datasets.text_stream",
    "pairs": "dlcli.datasets.sentence_pairs",
    "speech": "dlcli.datasets.speech",
    "table": "dlcli.datasets.table",
    "boxes": "dlcli.datasets.boxes",
    "masks": "dlcli.datasets.masks",
}
AUGMENTED = ("images", "boxes", "masks")


def gives(settings: Mapping[str, Any]) -> str:
    """The kind of data that a dataset with these settings gives; a dataset that says nothing gives images.

    What is said may be no kind at all: made_up_data tells of it.
    """
    facts = settings.get("facts")
    return str(facts.get("gives", "images")) if isinstance(facts, Mapping) else "images"
