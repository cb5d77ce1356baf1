"""The kinds of data there are, which of them a dataset's settings give (`facts: {gives: KIND}`), and how large."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from dlcli.errors import ConfigError

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
MOST_NUMBERS = 16 * 2**20  # in one example: a picture of 3 x 2,364 x 2,364
MOST_SCORES = 2**30  # of one example: each place in a text has one for each token


def gives(settings: Mapping[str, Any]) -> str:
    """The kind of data that a dataset with these settings gives; a dataset that says nothing gives images.

    What is said may be no kind at all: made_up_data tells of it.
    """
    facts = settings.get("facts")
    return str(facts.get("gives", "images")) if isinstance(facts, Mapping) else "images"


def check_size(settings: Mapping[str, Any]) -> None:
    """Raise ConfigError for examples so large that making one up, or scoring it, takes gigabytes. Images are free."""
    kind = gives(settings)
    names = {"boxes": "image_shape", "masks": "image_shape", "stream": "context_length", "sentences": "max_length",
             "pairs": "max_length", "speech": "sample_rate", "table": "num_features"}  # fmt: skip
    name = names.get(kind)
    if name is None or settings.get(name) is None:
        return
    numbers = prod(settings[name]) if name == "image_shape" else settings[name]
    scores = numbers * (settings.get("num_tokens") or 1) if kind in ("stream", "pairs") else 0
    if numbers > MOST_NUMBERS or scores > MOST_SCORES:
        said = str(settings[name]).replace(" ", "")
        what = f"{numbers:,} numbers" if numbers > MOST_NUMBERS else f"{scores:,} scores"
        told = f"dataset.{name}={said} makes one example of {what}, too large to train on"
        raise ConfigError(told, hint=f"A smaller dataset.{name}.")


INPUTS = {  # kind of data -> how an input of it is written in a command
    "images": "IMAGE",
    "sentences": "'A SENTENCE'",
    "stream": "'THE BEGINNING'",
    "pairs": "'A SENTENCE'",
    "speech": "RECORDING",
    "table": "ROWS.csv",
    "boxes": "IMAGE",
    "masks": "IMAGE",
}
