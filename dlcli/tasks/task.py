"""What a task owns: the meaning of its batches. The loop owns gradients, optimizers and time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from torch import Tensor, nn

Values = dict[str, Tensor]


class Source(Protocol):
    """Where training batches come from: endless, and its position is the number of steps already done."""

    def from_step(self, step: int) -> Iterator[list[Any]]:
        """The micro-batches of each step, from the step after `step` on."""


class Task(nn.Module):
    """One learning problem over one or more networks.

    phases: the networks updated in turn at every step, each by its own optimizer. A task must keep no state outside
    its parameters and buffers: these, the random generators and the step are all that a checkpoint restores.
    """

    phases: tuple[str, ...] = ("model",)

    def loss(self, batch: Any, phase: str) -> tuple[Tensor, Values]:
        """The scalar this phase minimises, a mean over the batch; and values to record, scalars left on the device."""
        raise NotImplementedError

    def metrics(self, batch: Any) -> Values:
        """Held-out quality, one value per example: name -> (B,) float. Pooled exactly by `evaluate`."""
        raise NotImplementedError

    def stream(self, source: Source, step: int) -> Iterator[list[Any]]:
        """Endless training batches, as lists of micro-batches. A task with an environment acts in it here."""
        return source.from_step(step)

    def evaluate(self, source: Iterable[Any]) -> dict[str, float]:
        """Mean of `metrics` over every example, summed in float64. Override for measures of a whole set."""
        total: Values = {}
        count: dict[str, int] = {}
        for batch in source:
            for name, value_B in self.metrics(batch).items():
                total[name] = total.get(name, 0) + value_B.double().sum()
                count[name] = count.get(name, 0) + value_B.numel()
        return {name: (total[name] / count[name]).item() for name in total}

    def after_step(self, step: int) -> None:
        """Moving averages, target networks, annealed temperatures."""
