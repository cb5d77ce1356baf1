"""The batches of T trials: each trial has those of its own source, but one gather serves all trials.

Trials with the same seed share each batch: images (B, C, H, W) float32 and labels (B,) int64. Otherwise images are
(B, T, C, H, W) and labels (B, T), so that (B, T*C, H, W) is the same memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from dlcli.datasets.batches.examples import LabelledImages, private_generator
from dlcli.datasets.batches.keyed_random import mirror_turns, sample_keys
from dlcli.datasets.batches.pixels import Pixels

Augmentation = Callable[..., Tensor]


class ExampleBatches:
    """LabelledImages of one split, resident on the device. rows: (N,) int64 that all trials see, or (N, T)."""

    def __init__(self, examples: LabelledImages, pixels: Pixels, device: torch.device):
        assert examples.images is not None, "train_together accepts resident images only"
        self.pixels, self.device = pixels, device
        self.images, self.labels = examples.images.to(device), examples.labels.to(device)

    def take(
        self, rows: Tensor, batch_size: int, augment: Augmentation | None = None, draws: Sequence[Tensor] = ()
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels of `rows`, `batch_size` of them at a time. draws: for `augment`, each the shape of rows."""
        parts = [of_all.split(batch_size) for of_all in (rows, self.labels[rows], *draws)]
        for rows_B, labels_B, *draws_B in zip(*parts, strict=True):
            yield self._gather(rows_B, augment, draws_B), labels_B

    def _gather(self, rows: Tensor, augment: Augmentation | None, draws: Sequence[Tensor]) -> Tensor:
        bytes_NCHW = self.images.index_select(0, rows.flatten())
        if augment is None:
            images_NCHW = self.pixels.from_bytes(bytes_NCHW)
        else:
            images_NCHW = self.pixels.normalise(
                augment(self.pixels.unit(bytes_NCHW), *(draw.flatten() for draw in draws))
            )
        return images_NCHW.view(*rows.shape, *images_NCHW.shape[1:])


class TrainBatches:
    """Endless training batches, the same that `TrainSource` gives each trial. indices: for each trial, (N,) int64.

    batches_per_epoch: the last one may be shorter.
    """

    def __init__(
        self,
        examples: ExampleBatches,
        indices: Sequence[Tensor],
        seeds: Sequence[int],
        *,
        batch_size: int,
        augment: Augmentation | None,
    ):
        is_shared = len(set(seeds)) == 1
        self.examples, self.batch_size, self.augment = examples, batch_size, augment
        self.indices, self.seeds = ([indices[0]], [seeds[0]]) if is_shared else (list(indices), list(seeds))
        self.is_shared, self.num_examples = is_shared, len(indices[0])
        self.batches_per_epoch = -(-self.num_examples // batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for epoch in itertools.count():
            yield from self.epoch(epoch)

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        orders = {seed: self._order(seed, epoch) for seed in self.seeds}
        rows = [index_N[orders[seed]] for index_N, seed in zip(self.indices, self.seeds, strict=True)]
        kinds = [] if self.augment is None else [sample_keys]
        kinds += [mirror_turns] if getattr(self.augment, "alternates", False) else []
        draws = [[kind(seed, epoch, rows_N) for rows_N, seed in zip(rows, self.seeds, strict=True)] for kind in kinds]
        return self.examples.take(self._placed(rows), self.batch_size, self.augment, list(map(self._placed, draws)))

    def _order(self, seed: int, epoch: int) -> Tensor:
        return torch.randperm(self.num_examples, generator=private_generator("order", seed, epoch))

    def _placed(self, of_trials: Sequence[Tensor]) -> Tensor:
        """(N,) if all trials share it, otherwise (N, T), on the device."""
        one = of_trials[0] if self.is_shared else torch.stack(list(of_trials), 1)
        return one.to(self.examples.device)
