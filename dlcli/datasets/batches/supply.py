"""Gives chosen examples as batches on the device, in any order: resident images, images read by workers, or records."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from dlcli.datasets.batches.examples import Batch, Examples, LabelledImages
from dlcli.datasets.batches.keyed_random import keys_of_view, mirror_turns, sample_keys
from dlcli.datasets.batches.pixels import Pixels
from dlcli.datasets.batches.records import Records, bucketed
from dlcli.datasets.batches.workers import read_batches
from dlcli.errors import ConfigError, EnvironmentFault

Augmentation = Callable[..., Any]
Share = tuple[int, int]  # (rank, ranks): this rank's even part of each batch
Epochs = Callable[[], Iterator[tuple[int, Tensor]]]  # (epoch, (n,) int64 positions in the order to be read, on the CPU)


def supply_of(
    examples: Examples, indices: Tensor, *, batch_size: int, device: torch.device | str, share: Share, **reading: Any
) -> Supply:
    """The supply for this kind of examples. reading: for labelled images only, see ImageSupply."""
    if isinstance(examples, Records):
        return RecordSupply(examples, indices, batch_size=batch_size, device=device, share=share)
    return ImageSupply(examples, indices, batch_size=batch_size, device=device, share=share, **reading)


class Supply:
    """The examples at `indices`, as batches on the device."""

    def __init__(
        self, examples: Examples, indices: Tensor, *, batch_size: int, device: torch.device | str, share: Share
    ) -> None:
        if len(indices) < share[1]:
            raise ConfigError(
                f"runtime.devices={share[1]}: there are only {len(indices)} examples in a split",
                hint=f"runtime.devices={max(1, len(indices))} or fewer.",
            )
        self.indices, self.batch_size, self.share = indices, batch_size, share
        self.device = torch.device(device)

    def batches(
        self, epochs: Epochs, *, augment: Augmentation | None = None, seed: int = 0, views: int = 1
    ) -> Iterator[Any]:
        """The batches of each epoch. seed: of the augmentation; views: how many of each augmented labelled image."""
        raise NotImplementedError

    def order(self, generator: torch.Generator, examples_per_step: int) -> Tensor:
        """A random order of an epoch: (N,) int64 positions in `indices`, on the CPU.

        examples_per_step: of all ranks; a resume on another number of ranks keeps it, and so the order.
        """
        return torch.randperm(len(self.indices), generator=generator)

    def order_of_evaluation(self) -> Tensor:
        """The order of an evaluation: that of `indices`, unless another order is cheaper."""
        return torch.arange(len(self.indices))

    def _cut(self, num_examples: int) -> tuple[Tensor | None, int | list[int]]:
        """This rank's part of so many examples (None: all), and the sizes of its batches."""
        rank, ranks = self.share
        if ranks == 1:
            return None, self.batch_size
        bounds = batch_bounds(num_examples, self.batch_size, ranks)
        parts = [even_part(start, end, rank, ranks) for start, end in itertools.pairwise(bounds)]
        return torch.cat([torch.arange(*part) for part in parts]), [end - start for start, end in parts]

    def _rows(self, order: Tensor) -> Sequence[Tensor]:
        """The rows of each of this rank's batches, (B,) int64 on the CPU."""
        mine, sizes = self._cut(len(order))
        return self.indices[order if mine is None else order[mine]].split(sizes)


class RecordSupply(Supply):
    """Records are resident: a reader maps data larger than memory."""

    def __init__(
        self, examples: Records, indices: Tensor, *, batch_size: int, device: torch.device | str, share: Share
    ) -> None:
        super().__init__(examples, indices, batch_size=batch_size, device=device, share=share)
        self.records = examples.to(self.device)
        self.lengths = None if examples.lengths is None else examples.lengths[indices]

    def batches(
        self, epochs: Epochs, *, augment: Augmentation | None = None, seed: int = 0, views: int = 1
    ) -> Iterator[Any]:
        for epoch, order in epochs():
            epoch_key = None if epoch < 0 else int(sample_keys(seed, epoch, torch.zeros(1, dtype=torch.int64)))
            for rows_B in self._rows(order):
                keys_B = (
                    None if augment is None else sample_keys(seed, epoch, rows_B.to(self.device, non_blocking=True))
                )
                yield self.records.batch(rows_B, epoch_key=epoch_key, augment=augment, keys_B=keys_B)

    def order(self, generator: torch.Generator, examples_per_step: int) -> Tensor:
        order = super().order(generator, examples_per_step)
        if self.lengths is None:
            return order
        return bucketed(order, self.lengths, examples_per_step, generator)

    def order_of_evaluation(self) -> Tensor:
        """By length, so that there is little padding; scores do not depend on the order."""
        return super().order_of_evaluation() if self.lengths is None else self.lengths.argsort(stable=True)


class ImageSupply(Supply):
    """Labelled images: resident on the device, or read by workers; the same batches, bit for bit, either way."""

    def __init__(
        self,
        examples: LabelledImages,
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
        super().__init__(examples, indices, batch_size=batch_size, device=device, share=share)
        self.examples, self.workers, self.resident = examples, workers, resident
        self.index = indices.to(self.device)
        self.labels = examples.labels[indices].to(self.device)
        channels = len(examples.images[0] if examples.images is not None else examples.read(int(indices[0])))
        self.pixels = Pixels(mean, std, channels=channels, device=self.device)
        self.images = self._place() if resident else None

    def _place(self) -> Tensor:
        """uint8 images on the device: on the CPU the whole split, mapped from the cache; else the chosen ones."""
        images = self.examples.images
        if images is None:
            raise EnvironmentFault(
                "dataset.in_memory=true, but these images are too many to be held in memory.",
                hint="dataset.in_memory=auto, and dataset.num_workers=2 to read them in other processes.",
            )
        return images if self.device.type == "cpu" else images[self.indices].to(self.device)

    def batches(
        self, epochs: Epochs, *, augment: Augmentation | None = None, seed: int = 0, views: int = 1
    ) -> Iterator[Batch]:
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
                bytes_BCHW, num_views = fetch(rows_B), views if draws_B else 1
                images = [self._prepare(bytes_BCHW, augment, of_view(draws_B, view)) for view in range(num_views)]
                if num_views == 1:
                    yield Batch(images[0], labels_B, index_B)
                else:
                    yield Batch(torch.cat(images), labels_B.repeat(num_views), index_B.repeat(num_views))

    def _gather(self, rows_B: Tensor) -> Tensor:
        assert self.images is not None
        # index_select takes 5 us for 64 images of 28 x 28, images[rows] 40 us.
        return self.images.index_select(0, rows_B)

    def _open_loader(self, epochs: Epochs) -> Callable[[Tensor], Tensor]:
        """The same batches through a DataLoader, whose schedule runs ahead in the same order."""
        schedule = (rows_B.tolist() for _, order in epochs() for rows_B in self._rows(order))
        pin_memory = self.device.type == "cuda"
        read = read_batches(self.examples, schedule, workers=self.workers, pin_memory=pin_memory)
        return lambda rows_B: next(read).to(self.device, non_blocking=pin_memory)

    def _prepare(self, images_BCHW: Tensor, augment: Augmentation | None, draws_B: Sequence[Tensor]) -> Tensor:
        if augment is None:
            return self.pixels.from_bytes(images_BCHW)
        return self.pixels.normalise(augment(self.pixels.unit(images_BCHW), *draws_B))


def of_view(draws_B: Sequence[Tensor], view: int) -> Sequence[Tensor]:
    """The keys of another view of the same images; every second view mirrors the other half."""
    if view == 0:
        return draws_B
    keys_B, *turns = draws_B
    return [keys_of_view(keys_B, view), *(turns_B ^ (view % 2 == 1) for turns_B in turns)]


def batch_bounds(num_examples: int, batch_size: int, ranks: int) -> list[int]:
    """The starts of the batches of all ranks together, and the end. Every rank has an example in every batch: if fewer
    examples than ranks are left at the end, they join the batch before.
    """
    whole = batch_size * ranks
    starts = list(range(0, num_examples, whole))
    if len(starts) > 1 and num_examples - starts[-1] < ranks:
        starts.pop()
    return [*starts, num_examples]


def even_part(start: int, end: int, rank: int, ranks: int) -> tuple[int, int]:
    """The rank's part of [start, end): if it does not divide evenly, the first ranks have one more."""
    size, left = divmod(end - start, ranks)
    first = start + rank * size + min(rank, left)
    return first, first + size + (rank < left)
