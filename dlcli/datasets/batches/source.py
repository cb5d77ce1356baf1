"""The sources of batches: in which order examples are read, and from which step on.

A source has no state. The position in training is a function of the step, the order of an epoch of (seed, epoch), and
an example's augmentation of (seed, epoch, row): a resumed run sees the same batches as an uninterrupted one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from dlcli.datasets.batches.examples import Examples, private_generator
from dlcli.datasets.batches.supply import Augmentation, Share, batch_bounds, supply_of
from dlcli.errors import ConfigError

EVALUATION = -1  # the epoch of an evaluation


class TrainSource:
    """Endless shuffled training batches of `examples` at `indices`.

    batch_size: examples in a micro-batch. accumulate: micro-batches in a step. The last batch of an epoch may be
    shorter and its last step may have fewer micro-batches; no example is left out.
    augment: for images, (images_BCHW float32 in [0, 1], keys_B int64) -> images_BCHW, or None; if its `alternates` is
    true it gets a third argument, turns_B bool: which examples are mirrored now. For records, their `collate` calls it.
    mean, std, workers, resident: for labelled images only.
    """

    def __init__(
        self,
        examples: Examples,
        indices: Tensor,
        *,
        batch_size: int,
        accumulate: int,
        seed: int,
        device: torch.device | str,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        augment: Augmentation | None = None,
        workers: int = 0,
        resident: bool = True,
        share: Share = (0, 1),
    ) -> None:
        check_positive(batch_size=batch_size, accumulate=accumulate, num_examples=len(indices))
        self.accumulate, self.seed, self.num_examples = accumulate, seed, len(indices)
        self.batches_per_epoch = len(batch_bounds(self.num_examples, batch_size, share[1])) - 1
        self.steps_per_epoch = -(-self.batches_per_epoch // accumulate)
        self.kind = "resident" if resident else "loader"
        self._supply = supply_of(
            examples,
            indices,
            batch_size=batch_size,
            device=device,
            mean=mean,
            std=std,
            workers=workers,
            resident=resident,
            share=share,
        )
        self._augment = augment

    def from_step(self, step: int, *, views: int = 1) -> Iterator[list[Any]]:
        """The micro-batches of each step after the first `step` steps. Closing it ends its workers.

        views: how often each image is in its batch, each time augmented differently; without augmentation, once.
        """
        first_epoch, first_step = divmod(step, self.steps_per_epoch)
        skipped = first_step * self.accumulate * self._supply.batch_size * self._supply.share[1]

        def epochs() -> Iterator[tuple[int, Tensor]]:
            yield first_epoch, self._order(first_epoch)[skipped:]
            for epoch in itertools.count(first_epoch + 1):
                yield epoch, self._order(epoch)

        batches = self._supply.batches(epochs, augment=self._augment, seed=self.seed, views=views)
        for step_in_epoch in itertools.chain(range(first_step, self.steps_per_epoch), self._steps()):
            left = self.batches_per_epoch - step_in_epoch * self.accumulate
            yield list(itertools.islice(batches, min(self.accumulate, left)))

    def _steps(self) -> Iterator[int]:
        while True:
            yield from range(self.steps_per_epoch)

    def _order(self, epoch: int) -> Tensor:
        generator = private_generator("order", self.seed, epoch)
        return self._supply.order(generator, self._supply.batch_size * self.accumulate * self._supply.share[1])


class EvalSource:
    """The batches of `examples` at `indices`, in that order and not augmented; iterate as often as needed."""

    def __init__(
        self,
        examples: Examples,
        indices: Tensor,
        *,
        batch_size: int,
        device: torch.device | str,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        workers: int = 0,
        resident: bool = True,
        share: Share = (0, 1),
    ) -> None:
        check_positive(batch_size=batch_size, num_examples=len(indices))
        self.num_examples = len(indices)
        self.kind = "resident" if resident else "loader"
        self._supply = supply_of(
            examples,
            indices,
            batch_size=batch_size,
            device=device,
            mean=mean,
            std=std,
            workers=workers,
            resident=resident,
            share=share,
        )

    @property
    def batch_size(self) -> int:
        return self._supply.batch_size

    def halve(self) -> None:
        """Smaller batches from the next iteration on: these did not fit."""
        self._supply.batch_size = max(1, self._supply.batch_size // 2)

    def __len__(self) -> int:
        return len(batch_bounds(self.num_examples, self._supply.batch_size, self._supply.share[1])) - 1

    def __iter__(self) -> Iterator[Any]:
        return self._supply.batches(lambda: iter([(EVALUATION, self._supply.order_of_evaluation())]))


def check_positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ConfigError(f"{name}={number}: there must be at least one.", hint=f"Choose a {name} of 1 or more.")
