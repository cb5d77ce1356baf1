"""A task owns the meaning of its batches. The loop owns gradients, optimizers and time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from dlcli.tasks.metrics.statistics import Statistics


class Answers(NamedTuple):
    """Logits (B, K) and labels (B,); the share of right ones is recorded.

    They are compared when many steps are read at once: at every step it would be 4 % of a tiny network's time.
    """

    logits_BK: Tensor
    labels_B: Tensor

    def is_right(self) -> Tensor:
        """Whether the largest logit is the label's: (B,) bool."""
        return self.logits_BK.argmax(1) == self.labels_B


Value = Tensor | Answers
Values = dict[str, Value]


class Source(Protocol):
    """A source of endless training batches; its position is the number of steps done."""

    def from_step(self, step: int, *, views: int = 1) -> Iterator[list[Any]]:
        """The micro-batches of each step after the first `step` steps; each augmented image occurs `views` times."""


class Task(nn.Module):
    """One learning problem over one or more networks.

    phases: the networks updated in turn at every step, each by its own optimizer. A task must not keep state outside
    its parameters and buffers: a checkpoint restores only these, the random generators and the step.
    """

    phases: tuple[str, ...] = ("model",)

    def loss(self, batch: Any, phase: str) -> tuple[Tensor, Values]:
        """The scalar this phase minimises, a mean over the batch; and values to record, left on the device.

        A value is a scalar, the mean over the batch, or Answers.
        """
        raise NotImplementedError

    def metrics(self, batch: Any) -> dict[str, Tensor]:
        """Held-out quality, one value per example: name -> (B,) float. Pooled exactly by `evaluate`."""
        raise NotImplementedError

    def statistics(self, source: Iterable[Any]) -> Statistics | None:
        """Override for scores of a whole set, such as BLEU, that are computed from what each example adds. They replace
        `metrics`, and `dlcli eval` computes intervals from them.
        """
        return None

    def stream(self, source: Source, step: int) -> Iterator[list[Any]]:
        """Endless training batches, as lists of micro-batches. A task with an environment steps through it here."""
        return source.from_step(step)

    def evaluate(
        self, source: Iterable[Any], *, pool: Callable[[list[float]], list[float]] = lambda numbers: numbers
    ) -> dict[str, float]:
        """The scores of `statistics`; without any, the mean of `metrics` over every example, summed in float64.

        Override for other scores. pool: turns sums over one rank into sums over all ranks.
        """
        if (statistics := self.statistics(source)) is not None:
            return statistics.scores()
        total: dict[str, Tensor] = {}
        count: dict[str, int] = {}
        for batch in source:
            for name, value_B in self.metrics(batch).items():
                total[name] = total.get(name, 0) + value_B.double().sum()
                count[name] = count.get(name, 0) + value_B.numel()
        pooled = pool([*(t.item() for t in total.values()), *count.values()])
        return {name: pooled[i] / pooled[len(total) + i] for i, name in enumerate(total)}

    def share(self, sum_in_place: Callable[[Tensor], None]) -> None:
        """Called once if several ranks train. sum_in_place: replaces a tensor by its sum over them.

        Override if training fills buffers of the task from its batches: they must be equal on all ranks.
        """

    def after_step(self, step: int) -> None:
        """Called after each step: for moving averages, target networks, annealed temperatures."""
