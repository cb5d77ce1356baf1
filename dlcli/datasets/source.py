"""Where batches come from: images on the device, or read by workers; the same batches, bit for bit, either way.

A source has no state. The position in training is a function of the step, the order of an epoch one of (seed, epoch),
an example's augmentation one of (seed, epoch, row): a resumed run sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from dlcli.datasets.examples import Batch, Examples, private_generator
from dlcli.datasets.keyed_random import mirror_turns, sample_keys
from dlcli.datasets.pixels import Pixels
from dlcli.datasets.workers import read_batches
from dlcli.errors import ConfigError, EnvironmentFault

Augmentation = Callable[..., Tensor]
Share = tuple[int, int]  # (rank, ranks): of each batch, this rank's even part
Epochs = Callable[[], Iterator[tuple[int, Tensor]]]  # (epoch, (n,) int64 positions in the order to be read, on the CPU)


class TrainSource:
    """Endless shuffled training batches of `examples` at `indices`.

    batch_size: examples in a micro-batch. accumulate: micro-batches in a step. The last batch of an epoch may be
    shorter and its last step may have fewer micro-batches; no example is left out.
    augment: (images_BCHW float32 in [0, 1], keys_B int64) -> images_BCHW, or None; one whose `alternates` is true is
    given a third, turns_B bool: whose turn it is to be mirrored.
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
        mean: Sequence[float],
        std: Sequence[float],
        augment: Augmentation | None = None,
        workers: int = 0,
        resident: bool,
        share: Share = (0, 1),
    ) -> None:
        check_positive(batch_size=batch_size, accumulate=accumulate, num_examples=len(indices))
        self.accumulate, self.seed, self.num_examples = accumulate, seed, len(indices)
        self.batches_per_epoch = len(batch_bounds(self.num_examples, batch_size, share[1])) - 1
        self.steps_per_epoch = -(-self.batches_per_epoch // accumulate)
        self.kind = "resident" if resident else "loader"
        self._supply = Supply(
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

    def from_step(self, step: int) -> Iterator[list[Batch]]:
        """The micro-batches of each step from `step` (steps already done) on. Closing it ends its workers."""
        first_epoch, first_step = divmod(step, self.steps_per_epoch)
        skipped = first_step * self.accumulate * self._supply.batch_size * self._supply.share[1]

        def epochs() -> Iterator[tuple[int, Tensor]]:
            yield first_epoch, self._order(first_epoch)[skipped:]
            for epoch in itertools.count(first_epoch + 1):
                yield epoch, self._order(epoch)

        batches = self._supply.batches(epochs, augment=self._augment, seed=self.seed)
        for step_in_epoch in itertools.chain(range(first_step, self.steps_per_epoch), self._steps()):
            left = self.batches_per_epoch - step_in_epoch * self.accumulate
            yield list(itertools.islice(batches, min(self.accumulate, left)))

    def _steps(self) -> Iterator[int]:
        while True:
            yield from range(self.steps_per_epoch)

    def _order(self, epoch: int) -> Tensor:
        return torch.randperm(self.num_examples, generator=private_generator("order", self.seed, epoch))


class EvalSource:
    """The batches of `examples` at `indices` in that order, not augmented; iterate as often as needed."""

    def __init__(
        self,
        examples: Examples,
        indices: Tensor,
        *,
        batch_size: int,
        device: torch.device | str,
        mean: Sequence[float],
        std: Sequence[float],
        workers: int = 0,
        resident: bool,
        share: Share = (0, 1),
    ) -> None:
        check_positive(batch_size=batch_size, num_examples=len(indices))
        self.num_examples = len(indices)
        self.kind = "resident" if resident else "loader"
        self._supply = Supply(
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

    def __iter__(self) -> Iterator[Batch]:
        return self._supply.batches(lambda: iter([(0, torch.arange(self.num_examples))]))


class Supply:
    """Chosen examples as batches on the device, in any order; their images are resident there, or read by workers."""

    def __init__(
        self,
        examples: Examples,
        indices: Tensor,
        *,
        batch_size: int,
        device: torch.device | str,
        mean: Sequence[float],
        std: Sequence[float],
        workers: int,
        resident: bool,
        share: Share,
    ) -> None:
        if len(indices) < share[1]:
            raise ConfigError(
                f"runtime.devices={share[1]}: there are only {len(indices)} examples in a split",
                hint=f"runtime.devices={max(1, len(indices))} or fewer.",
            )
        self.share = share
        self.examples, self.indices, self.batch_size = examples, indices, batch_size
        self.device, self.workers, self.resident = torch.device(device), workers, resident
        self.index = indices.to(self.device)
        self.labels = examples.labels[indices].to(self.device)
        channels = len(examples.images[0] if examples.images is not None else examples.read(int(indices[0])))
        self.pixels = Pixels(mean, std, channels=channels, device=self.device)
        self.images = self._place() if resident else None

    def _place(self) -> Tensor:
        """uint8 images on the device: on the CPU the whole split, mapped from the cache; else those chosen."""
        images = self.examples.images
        if images is None:
            raise EnvironmentFault(
                "dataset.resident=true, but these images are too many to be held in memory.",
                hint="dataset.resident=auto, and dataset.workers=2 to read them in other processes.",
            )
        return images if self.device.type == "cpu" else images[self.indices].to(self.device)

    def batches(self, epochs: Epochs, *, augment: Augmentation | None = None, seed: int = 0) -> Iterator[Batch]:
        """The batches of each epoch. Per-epoch work is done for all its batches at once; a batch costs 3 operations."""
        fetch = self._gather if self.images is not None else self._open_loader(epochs)
        for epoch, order in epochs():
            mine, sizes = self._cut(len(order))
            order_n = (order if mine is None else order[mine]).to(self.device)
            index_n, labels_n = self.index[order_n], self.labels[order_n]
            rows_n = index_n if self.device.type == "cpu" else order_n  # rows of self.images
            draws_n = [] if augment is None else [sample_keys(seed, epoch, index_n)]
            if getattr(augment, "alternates", False):
                draws_n.append(mirror_turns(seed, epoch, index_n))
            for rows_B, index_B, labels_B, *draws_B in zip(
                *(values_n.split(sizes) for values_n in (rows_n, index_n, labels_n, *draws_n)), strict=True
            ):
                yield Batch(self._prepare(fetch(rows_B), augment, draws_B), labels_B, index_B)

    def _cut(self, num_examples: int) -> tuple[Tensor | None, int | list[int]]:
        """Which of so many examples are this rank's, None for all; and the sizes of its batches of them."""
        rank, ranks = self.share
        if ranks == 1:
            return None, self.batch_size
        bounds = batch_bounds(num_examples, self.batch_size, ranks)
        parts = [even_part(start, end, rank, ranks) for start, end in itertools.pairwise(bounds)]
        return torch.cat([torch.arange(*part) for part in parts]), [end - start for start, end in parts]

    def _gather(self, rows_B: Tensor) -> Tensor:
        assert self.images is not None
        # index_select takes 5 us for 64 images of 28 x 28, images[rows] 40 us.
        return self.images.index_select(0, rows_B)

    def _open_loader(self, epochs: Epochs) -> Callable[[Tensor], Tensor]:
        """The same batches through a DataLoader: its schedule runs ahead of, and equal to, the order asked for."""
        schedule = (rows_B.tolist() for _, order in epochs() for rows_B in self._rows(order))
        pin_memory = self.device.type == "cuda"
        read = read_batches(self.examples, schedule, workers=self.workers, pin_memory=pin_memory)
        return lambda rows_B: next(read).to(self.device, non_blocking=pin_memory)

    def _rows(self, order: Tensor) -> Sequence[Tensor]:
        mine, sizes = self._cut(len(order))
        return self.indices[order if mine is None else order[mine]].split(sizes)

    def _prepare(self, images_BCHW: Tensor, augment: Augmentation | None, draws_B: Sequence[Tensor]) -> Tensor:
        if augment is None:
            return self.pixels.from_bytes(images_BCHW)
        return self.pixels.normalise(augment(self.pixels.unit(images_BCHW), *draws_B))


def check_positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ConfigError(f"{name}={number}: there must be at least one.", hint=f"Choose a {name} of 1 or more.")


def batch_bounds(num_examples: int, batch_size: int, ranks: int) -> list[int]:
    """Where the batches of all ranks together begin, and the end. No rank is left without an example: fewer than there
    are ranks, at the end, go with the batch before.
    """
    whole = batch_size * ranks
    starts = list(range(0, num_examples, whole))
    if len(starts) > 1 and num_examples - starts[-1] < ranks:
        starts.pop()
    return [*starts, num_examples]


def even_part(start: int, end: int, rank: int, ranks: int) -> tuple[int, int]:
    """The rank's part of [start, end): the first ranks have one more where it does not come out even."""
    size, left = divmod(end - start, ranks)
    first = start + rank * size + min(rank, left)
    return first, first + size + (rank < left)
