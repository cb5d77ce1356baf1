"""Parameters that are frozen: for ever (`from_epoch: never`) or for the first epochs (gradual unfreezing).

Fine-tuning begins with the new head alone; deeper layers follow one after the other (Howard and Ruder 2018, "Universal
Language Model Fine-tuning", section 3.3). Frozen parameters have no gradient, which saves their part of the backward
pass. A batch norm without trained parameters also keeps its running statistics, which would drift from the weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

NEVER = "never"


class Freezing:
    """The parameters of a network that are trained at a step: a function of the step alone, with nothing to save.

    groups: an optimizer's; one with `from_step` is frozen until so many steps are done.
    """

    def __init__(self, network: nn.Module, groups: Sequence[Mapping[str, Any]]):
        self.groups = [(g["from_step"], list(g["params"])) for g in groups if g.get("from_step")]
        some_rest = bool(self.groups) or any(not p.requires_grad for p in network.parameters())
        norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.affine] if some_rest else []
        self.norms = [norm for norm in norms if self._ever_rests(norm)]

    def _ever_rests(self, norm: nn.Module) -> bool:
        late = {id(p) for _, members in self.groups for p in members}
        return all(id(p) in late or not p.requires_grad for p in norm.parameters(recurse=False))

    def at(self, step: int) -> None:
        """Call it before the step after `step`, and after the network was put into training mode."""
        for from_step, parameters in self.groups:
            for parameter in parameters:
                parameter.requires_grad_(step >= from_step)
        for norm in self.norms:
            norm.train(any(p.requires_grad for p in norm.parameters(recurse=False)))


def trainable_from(groups: Iterable[Mapping[str, Any]]) -> dict[int, int]:
    """Steps done -> number of parameters trained from then on: {0: 1290, 20: 4289090}, ascending in both.

    groups: of all optimizers.
    """
    added = {0: 0}
    for group in groups:
        step = group.get("from_step", 0)
        added[step] = added.get(step, 0) + sum(p.numel() for p in group["params"])
    steps = sorted(added)
    return dict(zip(steps, accumulate(added[step] for step in steps), strict=True))
