"""The kinds of data there are, and which of them a dataset gives (`facts: {gives: KIND}` in its YAML).

    kind = kind_of(tree["dataset"])         a Kind: everything that differs from one kind of data to another

One file per kind. Nobody else asks for a kind by its name: what differs is an attribute or a method of `Kind`. No
torch is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlcli.datasets.kinds.boxes import Boxes
from dlcli.datasets.kinds.images import Images
from dlcli.datasets.kinds.kind import Kind
from dlcli.datasets.kinds.masks import Masks
from dlcli.datasets.kinds.pairs import Pairs
from dlcli.datasets.kinds.sentences import Sentences
from dlcli.datasets.kinds.speech import Speech
from dlcli.datasets.kinds.stream import Stream
from dlcli.datasets.kinds.table import Table

KINDS: dict[str, Kind] = {
    kind.name: kind for kind in (Images(), Sentences(), Stream(), Pairs(), Speech(), Table(), Boxes(), Masks())
}


def gives(settings: Mapping[str, Any]) -> str:
    """The name of the kind of data that a dataset with these settings gives; images if it does not say."""
    facts = settings.get("facts")
    return str(facts.get("gives", Images.name)) if isinstance(facts, Mapping) else Images.name


def kind_of(settings: Mapping[str, Any]) -> Kind:
    """The kind of data that a dataset with these settings gives.

    An unknown name gives a Kind that nobody makes or predicts: synthetic data of it are refused with the known names.
    """
    name = gives(settings)
    return KINDS.get(name) or Kind(name)


def check_size(settings: Mapping[str, Any]) -> None:
    """Raise ConfigError for examples so large that making one up, or scoring it, takes gigabytes."""
    kind_of(settings).check_size(settings)
