"""Records: columns, padding, batches of like length; the same examples whoever shares them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from dlcli.datasets.batches.records import Dense, Records, bucketed, fingerprint_of, ragged
from dlcli.datasets.batches.source import EvalSource, TrainSource

LENGTHS = [1 + i * i % 17 for i in range(203)]


class Batch(NamedTuple):
    values: Tensor
    lengths: Tensor
    index: Tensor  # type: ignore[assignment]


def collate(taken: Mapping[str, Any], index_B: Tensor, augment: object, keys_B: object) -> Batch:
    return Batch(taken["values"].values, taken["values"].lengths, index_B)


@pytest.fixture
def records() -> Records:
    values = ragged([np.full(length, row) for row, length in enumerate(LENGTHS)], np.int64, fill=-1)
    return Records({"values": values}, collate, fingerprint_of(values.values), lengths=values.lengths)


def source(records: Records, rank: int = 0, ranks: int = 1, **changes: Any) -> TrainSource:
    settings: dict[str, Any] = {"batch_size": 4, "accumulate": 2, "seed": 3, "device": "cpu", "share": (rank, ranks)}
    return TrainSource(records, torch.arange(len(records)), **(settings | changes))


def test_examples_are_padded_behind_their_end(records: Records) -> None:
    batch = records.batch(torch.tensor([4, 0, 2]))
    assert batch.lengths.tolist() == [LENGTHS[4], LENGTHS[0], LENGTHS[2]]
    assert batch.values.shape == (3, max(batch.lengths))
    assert batch.values[1].tolist() == [0] + [-1] * (batch.values.shape[1] - 1)
    assert (batch.values == torch.tensor([[4], [0], [2]])).sum(1).tolist() == batch.lengths.tolist()


def test_a_split_of_empty_examples_has_batches_too() -> None:
    empty = ragged([[], []], np.float32, shape=(3,))
    padded = empty.take(torch.tensor([0, 1]))
    assert padded.values.shape == (2, 0, 3) and padded.num_parts == 0


def test_an_epoch_has_every_example_once_and_little_padding(records: Records) -> None:
    batches = [batch for step in islice(source(records).from_step(0), 26) for batch in step]
    assert sorted(torch.cat([batch.index for batch in batches]).tolist()) == list(range(203))
    padded = sum(batch.values.numel() for batch in batches)
    in_order = sum(4 * max(LENGTHS[i : i + 4]) for i in range(0, 203, 4))
    assert padded < 1.1 * sum(LENGTHS) < 1.2 * sum(LENGTHS) < in_order


def test_another_epoch_has_another_order_and_any_step_can_be_started_from(records: Records) -> None:
    steps = list(islice(source(records).from_step(0), 60))
    assert [b.index.tolist() for b in steps[0]] != [b.index.tolist() for b in steps[26]]
    again = list(islice(source(records).from_step(37), 23))
    for one, other in zip(steps[37:], again, strict=True):
        assert all(a.values.equal(b.values) and a.index.equal(b.index) for a, b in zip(one, other, strict=True))


def test_a_step_has_the_same_examples_on_another_number_of_devices(records: Records) -> None:
    """As after a resume, which keeps the examples of a step: a bucket must not depend on who shares it."""
    alone = source(records, accumulate=2)
    shared = [source(records, rank, 2, accumulate=1) for rank in range(2)]
    for step in (0, 7, 12):
        expected = torch.cat([batch.index for batch in next(alone.from_step(step))])
        found = torch.cat([batch.index for part in shared for batch in next(part.from_step(step))])
        assert found.sort().values.equal(expected.sort().values)


def test_evaluation_goes_by_length_and_over_everything(records: Records) -> None:
    found = EvalSource(records, torch.arange(203), batch_size=10, device="cpu")
    lengths = torch.cat([batch.lengths for batch in found])
    assert lengths.equal(torch.tensor(LENGTHS).sort().values)


def test_columns_are_moved_once(records: Records) -> None:
    device = torch.device("cpu")
    assert records.to(device) is records.to(device)


def test_steps_of_like_length_hold_every_example_and_the_short_one_stays_last() -> None:
    lengths = torch.tensor(LENGTHS)
    generator = torch.Generator().manual_seed(0)
    order = bucketed(torch.randperm(203, generator=generator), lengths, 8, generator, pool=5)
    assert order.sort().values.equal(torch.arange(203))


def test_dense_columns_give_rows() -> None:
    assert Dense(torch.arange(10)).take(torch.tensor([3, 1])).tolist() == [3, 1]
