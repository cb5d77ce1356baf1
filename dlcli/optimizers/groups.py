"""Parameter groups by ordered patterns of names: the first match wins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from dlcli.errors import ConfigError, printable
from dlcli.optimizers.freezing import NEVER

OWN_KEYS = ("match", "from_epoch")  # keys of a group that are not settings of the optimizer


def build_optimizer(
    network: nn.Module,
    make: Callable[..., torch.optim.Optimizer],
    patterns: Mapping[str, Mapping[str, Any]],
    steps_per_epoch: int = 1,
) -> torch.optim.Optimizer:
    """An optimizer over the trained parameters of `network`.

    patterns: group name -> {match: shell pattern of the parameter's name, and the optimizer settings that differ;
    from_epoch: the first epoch (from 1) that trains the group, or "never", which freezes it at once}.
    A parameter that no pattern matches has the optimizer's own settings. Raises ConfigError if a pattern matches
    nothing, or the network has nothing to train.
    """
    parameters = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    if all(_group_of(name, patterns) in _frozen(patterns) for name, _ in parameters):
        raise ConfigError(
            "the network has no parameters to train", hint="Choose a model with parameters: dlcli list model"
        )
    grouped: dict[str, list[tuple[str, nn.Parameter]]] = {name: [] for name in patterns}
    rest: list[tuple[str, nn.Parameter]] = []
    for name, parameter in parameters:
        group = _group_of(name, patterns)
        (rest if group is None else grouped[group]).append((name, parameter))
    for group, members in grouped.items():
        if not members:
            pattern = printable(patterns[group].get("match"))
            message = f"parameter_groups.{printable(group)}.match={pattern} matches no parameter"
            raise ConfigError(
                message,
                hint=f"Use a pattern of the parameters' names; the first are {', '.join(n for n, _ in parameters[:4])}",
            )
    groups = []
    for group, members in grouped.items():
        if group in _frozen(patterns):
            for _, parameter in members:
                parameter.requires_grad_(False)
            continue
        own = {k: v for k, v in patterns[group].items() if k not in OWN_KEYS}
        if (first := patterns[group].get("from_epoch", 1)) > 1:
            own["from_step"] = (first - 1) * steps_per_epoch
        groups.append({"params": members, **own})
    if not rest and all("from_step" in group for group in groups):
        first = min(pattern.get("from_epoch", 1) for g, pattern in patterns.items() if g not in _frozen(patterns))
        message = f"parameter_groups: nothing is trained before epoch {first}"
        raise ConfigError(message, hint="Leave out from_epoch in one group, such as the head.")
    return make([*groups, *([{"params": rest}] if rest else [])])


def _group_of(name: str, patterns: Mapping[str, Mapping[str, Any]]) -> str | None:
    return next((g for g, p in patterns.items() if fnmatchcase(name, str(p.get("match", "")))), None)


def _frozen(patterns: Mapping[str, Mapping[str, Any]]) -> set[str | None]:
    return {group for group, pattern in patterns.items() if pattern.get("from_epoch") == NEVER}
