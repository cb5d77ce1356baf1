"""How a message names a setting and its choices, so that the words can be pasted into a command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def option_of(group: str, config: Mapping[str, Any], choices: object) -> str | None:
    """Return the option chosen in a group: from `choices`, or, if a run records none, from its config."""
    if isinstance(choices, Mapping) and choices.get(group):
        return str(choices[group])
    node = config.get(group)
    return (node.get("name") or choice(node)) if isinstance(node, Mapping) else None


def choice(node: object) -> str | None:
    """Return a short name for what a node builds: dlcli.models.lenet5.LeNet5 is lenet5, torch.optim.AdamW is adamw."""
    if not isinstance(node, Mapping):
        return None
    if not isinstance(node.get("_target_"), str):
        return next((name for part in node.values() if (name := choice(part))), None)
    words = node["_target_"].split(".")
    named_by_file = words[:2] in (["dlcli", "models"], ["dlcli", "tasks"]) and len(words) > 2
    return words[2] if named_by_file else words[-1].lower()
