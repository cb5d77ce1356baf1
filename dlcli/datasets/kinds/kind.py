"""One kind of data: everything that differs from one kind to another, in one object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from dlcli.errors import ConfigError

MOST_NUMBERS = 16 * 2**20  # in one example: a picture of 3 x 2,364 x 2,364
MOST_SCORES = 2**30  # of one example: each place in a text has one for each token


class Kind:
    """What a batch is made of. A subclass per kind says how it differs from these defaults.

    name: as in `facts: {gives: NAME}`, and the module in dlcli/inference/predict that answers for it.
    made_by: the module whose made_up(settings, num_examples) makes synthetic examples.
    question: how an input is written after `dlcli predict`; "" if there are no predictions.
    size_setting: the setting of `dataset` that says how many numbers an example has; "" if examples are always small.
    has_score_per_token: each of those numbers has a score for each token of the vocabulary.
    required: settings that every stored config of the kind has, besides those of all datasets.
    fewest: held-out examples below which chance alone could make the scores.
    is_one_image: an example is one image and one label, so that batches can be mixed, mirrored, run on the meta device
    and shared by several networks.
    is_augmented: the augmentation changes it. varies_in_length: examples of one data set have several lengths.
    continues_text: the answer continues the input. has_threshold: answers have a score that `--threshold` compares.
    attending_models: the packaged models for it whose attention `dlcli predict --attention` shows.
    """

    name = ""
    made_by = ""
    question = ""
    size_setting = ""
    has_score_per_token = False
    required: tuple[str, ...] = ()
    fewest = 30
    is_one_image = False
    is_augmented = False
    varies_in_length = False
    continues_text = False
    has_threshold = False
    attending_models: tuple[str, ...] = ()

    def __init__(self, name: str | None = None):
        if name is not None:
            self.name = name

    def numbers(self, settings: Mapping[str, Any]) -> int:
        """How many numbers one example has, as far as its settings tell; 0 if they do not."""
        value = settings.get(self.size_setting) if self.size_setting else None
        return 0 if value is None else prod(value) if isinstance(value, list | tuple) else int(value)

    def check_size(self, settings: Mapping[str, Any]) -> None:
        """Raise ConfigError for examples so large that making one up, or scoring it, takes gigabytes."""
        numbers = self.numbers(settings)
        scores = numbers * (settings.get("num_tokens") or 1) if self.has_score_per_token else 0
        if numbers <= MOST_NUMBERS and scores <= MOST_SCORES:
            return
        said = str(settings[self.size_setting]).replace(" ", "")
        what = f"{numbers:,} numbers" if numbers > MOST_NUMBERS else f"{scores:,} scores"
        message = f"dataset.{self.size_setting}={said} makes one example of {what}, too large to train on"
        raise ConfigError(message, hint=f"A smaller dataset.{self.size_setting}.")

    def in_words(self, shapes: Sequence[Sequence[int]], settings: Mapping[str, Any]) -> str:
        """The size of one example, from the shapes of its inputs: "3x32x32", "14 numbers"."""
        said = " and ".join("x".join(map(str, shape)) for shape in shapes)
        return f"{said} numbers" if said.isdecimal() else said

    def smallest_shape(self, settings: Mapping[str, Any], fewest: int) -> list[int] | None:
        """The smallest image_shape that a network built for it can be tried on; None if nothing is gained.

        fewest: the least side, in pixels, that the network takes.
        """
        return None

    def convolved_shape(self, settings: Mapping[str, Any]) -> list[int] | None:
        """A smaller image_shape that the same network of convolutions can be tried on; None if nothing is gained."""
        return None


def tokens_in_words(shapes: Sequence[Sequence[int]]) -> str:
    """The size of an example of texts: "26 and 40 tokens"."""
    return " and ".join(f"{shape[0]:,}" for shape in shapes) + " tokens"


POOLING_MODELS = ("lstm, gru and rnn with model.pooling=attention", "transformer", "moe")
