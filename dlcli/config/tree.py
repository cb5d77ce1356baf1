"""A config as a tree of plain data, and its settings by dotted key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

OPEN_NODES = ("parameter_groups",)  # the user chooses the names in these nodes
BUILD_KEYS = ("_target_", "_partial_", "_args_", "_recursive_", "_convert_", "facts")


ABSENT = object()


def lookup(tree: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(tree, Mapping) or part not in tree:
            return ABSENT
        tree = tree[part]
    return tree


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys of the settings a user may set, with their values."""
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if name in BUILD_KEYS:
            continue
        if isinstance(value, Mapping) and (value or key in OPEN_NODES):
            yield from leaves(value, key + ".")
        else:
            yield key, value


def copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: copied(v) for k, v in value.items()}
    return [copied(v) for v in value] if isinstance(value, list) else value


def plain_data(config: Any, *, resolve: bool) -> dict[str, Any]:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(config, resolve=resolve)  # type: ignore[return-value]
