"""A split of any data but plain labelled images: columns in memory, and how rows of them become a batch.

    records = Records({"tokens": ragged(sentences), "labels": Dense(labels)}, SentenceBatch.collate, fingerprint)

Letters: N examples, B of them in a batch, L the longest of a batch, T the parts of all examples together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor


class Column(Protocol):
    """One property of N examples. Your own kind of column needs these four names."""

    @property
    def nbytes(self) -> int:
        """The device of the values."""

    def __len__(self) -> int: ...

    def to(self, device: torch.device) -> Any:
        """The same column with its values on the device."""

    def take(self, rows_B: Tensor, epoch_key: int | None) -> Any:
        """These rows ((B,) int64 on the CPU) in the form that `collate` takes.

        epoch_key: an int64 that is a function of (seed, epoch), for a column that differs in each epoch of training;
        None at an evaluation.
        """


@dataclass(frozen=True)
class Dense:
    """values: (N, ...) of any dtype. take: (B, ...)."""

    values: Tensor

    @property
    def nbytes(self) -> int:
        return self.values.nbytes

    def __len__(self) -> int:
        return len(self.values)

    def to(self, device: torch.device) -> Dense:
        return Dense(self.values.to(device))

    def take(self, rows_B: Tensor, epoch_key: int | None = None) -> Tensor:
        return self.values.index_select(0, rows_B.to(self.values.device, non_blocking=True))


class Padded(NamedTuple):
    """values: (B, L, ...), filled up after each example's end; lengths: (B,) int64, on the same device.

    longest: L. num_parts: the sum of the lengths, known without waiting for the device.
    """

    values: Tensor
    lengths: Tensor
    num_parts: int


@dataclass(frozen=True)
class Ragged:
    """Examples of different lengths, one after the other. values: (T, ...); starts: (N + 1,) int64, on the CPU.

    take: Padded, with `fill` after each end.
    """

    values: Tensor
    starts: Tensor
    fill: float = 0

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.starts.nbytes

    @property
    def lengths(self) -> Tensor:
        """(N,) int64."""
        return self.starts.diff()

    def __len__(self) -> int:
        return len(self.starts) - 1

    def to(self, device: torch.device) -> Ragged:
        return replace(self, values=self.values.to(device))

    def take(self, rows_B: Tensor, epoch_key: int | None = None) -> Padded:
        starts_B = self.starts[rows_B]
        lengths_B = self.starts[rows_B + 1] - starts_B
        longest = int(lengths_B.max())  # on the CPU: no wait for the device
        device = self.values.device
        # from pageable memory: copied into a buffer of the driver at once, without waiting for the device
        first_B1, length_B1 = (t.to(device, non_blocking=True)[:, None] for t in (starts_B, lengths_B))
        place_L = torch.arange(longest, device=device)
        is_padding_BL = place_L >= length_B1
        shape = (len(rows_B), longest, *self.values.shape[1:])
        if not len(self.values):  # if all examples of a split are empty
            return Padded(self.values.new_zeros(shape), length_B1[:, 0], 0)
        index_BL = (first_B1 + place_L).masked_fill(is_padding_BL, 0)
        values = self.values.index_select(0, index_BL.flatten()).view(shape)
        values = values.masked_fill(is_padding_BL.view(*is_padding_BL.shape, *[1] * (values.dim() - 2)), self.fill)
        return Padded(values, length_B1[:, 0], int(lengths_B.sum()))


def ragged(
    parts: Iterable[np.ndarray | Sequence[int]], dtype: Any, *, shape: Sequence[int] = (), fill: float = 0
) -> Ragged:
    """N arrays (length, *shape), one after the other, as one column. dtype: of NumPy."""
    arrays = [np.asarray(part, dtype=dtype).reshape(-1, *shape) for part in parts]
    starts = np.zeros(len(arrays) + 1, dtype=np.int64)
    np.cumsum([len(array) for array in arrays], out=starts[1:])
    values = np.concatenate(arrays) if arrays else np.zeros((0, *shape), dtype)
    return Ragged(torch.from_numpy(values), torch.from_numpy(starts), fill)


Collate = Callable[..., Any]


@dataclass(frozen=True)
class Records:
    """One split: N examples in memory.

    columns: by name, N rows each.
    collate: (taken: the rows of each column, by name; index_B: (B,) int64 on the device; augment: an augmentation or
    None; keys_B: its keys or None) -> the batch: a NamedTuple of tensors on the columns' device. The first dimension of
    the first tensor is B; `inputs` are the arguments that a model is called with.
    fingerprint: sha256 (hex) of the content.
    labels: (N,) int64 on the CPU, if each example has one class.
    lengths: (N,) int64 on the CPU, if examples of similar length should share a batch.
    """

    columns: Mapping[str, Column]
    collate: Collate
    fingerprint: str
    labels: Tensor | None = None
    lengths: Tensor | None = None
    _placed: dict[torch.device, Records] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    @property
    def nbytes(self) -> int:
        return sum(column.nbytes for column in self.columns.values())

    def to(self, device: torch.device) -> Records:
        """The same records with their columns on the device; they are moved only once."""
        if device not in self._placed:
            columns = {name: column.to(device) for name, column in self.columns.items()}
            self._placed[device] = replace(self, columns=columns)
        return self._placed[device]

    def batch(
        self,
        rows_B: Tensor,
        *,
        epoch_key: int | None = None,
        augment: Callable[..., Any] | None = None,
        keys_B: Tensor | None = None,
    ) -> Any:
        """The examples at rows_B ((B,) int64 on the CPU) as a batch on the columns' device."""
        taken = {name: column.take(rows_B, epoch_key) for name, column in self.columns.items()}
        first = next(iter(taken.values()))
        device = (first.values if isinstance(first, Padded) else first).device
        return self.collate(taken, rows_B.to(device, non_blocking=True), augment, keys_B)


def fingerprint_of(*arrays: np.ndarray | Tensor | str) -> str:
    """sha256 (hex) of shapes, dtypes and contents."""
    digest = hashlib.sha256()
    for array in arrays:
        if isinstance(array, str):
            digest.update(array.encode())
            continue
        array = array.numpy() if isinstance(array, Tensor) else array
        digest.update(f"{array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def bucketed(
    order_N: Tensor, lengths_N: Tensor, step_size: int, generator: torch.Generator, *, pool: int = 50
) -> Tensor:
    """A random order whose batches hold examples of similar length: less padding, and still another order each epoch.

    order_N: (N,) a random permutation. step_size: examples of a step. Each `pool` of steps is sorted by length, then
    whole steps are shuffled; a short last step stays the last.
    """
    sizes = lengths_N[order_N]
    parts = [
        part[sizes_p.argsort(stable=True)]
        for part, sizes_p in zip(order_N.split(pool * step_size), sizes.split(pool * step_size), strict=True)
    ]
    whole = len(order_N) // step_size
    sorted_N = torch.cat(parts)
    steps = sorted_N[: whole * step_size].view(whole, step_size)[torch.randperm(whole, generator=generator)]
    return torch.cat([steps.flatten(), sorted_N[whole * step_size :]])
