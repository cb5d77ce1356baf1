"""Parameter groups by ordered patterns of names: the first match wins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from dlcli.errors import ConfigError, printable


def build_optimizer(
    network: nn.Module, make: Callable[..., torch.optim.Optimizer], patterns: Mapping[str, Mapping[str, Any]]
) -> torch.optim.Optimizer:
    """An optimizer over the parameters of `network` that are trained.

    patterns: group name -> {match: shell pattern of the parameter's name, and the optimizer settings that differ}.
    A parameter that no pattern matches has the optimizer's own settings. Raises ConfigError for a pattern that
    matches nothing, or a network without anything to train.
    """
    parameters = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    if not parameters:
        raise ConfigError(
            "the network has no parameters to train", hint="Choose a model that has some: dlcli list model"
        )
    grouped: dict[str, list[tuple[str, nn.Parameter]]] = {name: [] for name in patterns}
    rest: list[tuple[str, nn.Parameter]] = []
    for name, parameter in parameters:
        group = next((g for g, p in patterns.items() if fnmatchcase(name, str(p.get("match", "")))), None)
        (rest if group is None else grouped[group]).append((name, parameter))
    for group, members in grouped.items():
        if not members:
            pattern = printable(patterns[group].get("match"))
            told = f"parameter_groups.{printable(group)}.match={pattern} matches no parameter"
            raise ConfigError(told, hint=f"The first names are: {', '.join(n for n, _ in parameters[:4])}")
    settings = [{k: v for k, v in patterns[g].items() if k != "match"} for g in grouped]
    groups = [{"params": members, **own} for members, own in zip(grouped.values(), settings, strict=True)]
    return make([*groups, *([{"params": rest}] if rest else [])])
