"""Sources give the same batches whatever reads them, from any step on."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dlcli.datasets.augmentation import Augment
from dlcli.datasets.batches.examples import Batch, LabelledImages, split_validation
from dlcli.datasets.batches.pixels import Pixels
from dlcli.datasets.batches.residency import choose_residency
from dlcli.datasets.batches.source import EvalSource, TrainSource
from dlcli.errors import ConfigError, DataError, EnvironmentFault

AUGMENT = Augment(rotation=10, flip=0.5, crop=[0.8, 1.0], shift=1, jitter=0.2, erase=0.5)
STATISTICS: dict[str, Any] = {"device": "cpu", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
RESIDENT: dict[str, Any] = {"resident": True}
LOADERS: list[dict[str, Any]] = [{"resident": False, "workers": 0}, {"resident": False, "workers": 2}]


def train_source(examples: LabelledImages, **changes: Any) -> TrainSource:
    indices, _ = split_validation(len(examples), 17, seed=0)
    settings: dict[str, Any] = {
        "batch_size": 8,
        "accumulate": 3,
        "seed": 5,
        "augment": AUGMENT,
        **STATISTICS,
        **RESIDENT,
    }
    return TrainSource(examples, indices, **(settings | changes))


def take(source: TrainSource, step: int, count: int) -> list[list[Batch]]:
    steps = source.from_step(step)
    try:
        return list(itertools.islice(steps, count))
    finally:
        steps.close()  # type: ignore[attr-defined]


def same(ours: list[list[Batch]], theirs: list[list[Batch]]) -> bool:
    assert [len(step) for step in ours] == [len(step) for step in theirs]
    pairs = zip(itertools.chain(*ours), itertools.chain(*theirs), strict=True)
    return all(a.equal(b) for x, y in pairs for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("augment", [None, AUGMENT], ids=["plain", "augmented"])
@pytest.mark.parametrize("reading", LOADERS, ids=["in this process", "two workers"])
def test_loader_and_resident_batches_are_bit_identical(
    reading: dict, augment: Augment | None, examples: LabelledImages
) -> None:
    resident = take(train_source(examples, augment=augment), 0, 10)
    loaded = take(train_source(examples, augment=augment, **reading), 0, 10)
    assert same(resident, loaded)
    from_the_middle = take(train_source(examples, augment=augment, **reading), 6, 4)
    assert same(resident[6:], from_the_middle)


@pytest.mark.parametrize("reading", [RESIDENT, *LOADERS], ids=["resident", "in this process", "two workers"])
def test_two_views_are_the_same_images_augmented_otherwise(reading: dict, examples: LabelledImages) -> None:
    def taken(source: TrainSource, views: int, step: int = 0) -> list[list[Batch]]:
        steps = source.from_step(step, views=views)
        try:
            return list(itertools.islice(steps, 6 - step))
        finally:
            steps.close()  # type: ignore[attr-defined]

    augment = Augment(rotation=10, flip="alternate", shift=1)
    once, twice = (taken(train_source(examples, augment=augment, **reading), views) for views in (1, 2))
    for one, two in zip(itertools.chain(*once), itertools.chain(*twice), strict=True):
        first, second = two.images.chunk(2)
        assert first.equal(one.images) and not (first == second).flatten(1).all(1).any()
        assert two.labels.equal(one.labels.repeat(2)) and two.index.equal(one.index.repeat(2))
    assert same(taken(train_source(examples, augment=augment, **reading), 2, step=4), twice[4:])
    plain = take(train_source(examples, augment=None, **reading), 0, 6)
    assert same(taken(train_source(examples, augment=None, **reading), 2), plain), "nothing to make a view with"


def test_any_step_can_be_started_from(examples: LabelledImages) -> None:
    source = train_source(examples)
    whole = take(source, 0, 12)
    for step in range(12):
        assert same(whole[step:], take(source, step, 12 - step))


def test_an_epoch_has_every_chosen_example_once(examples: LabelledImages) -> None:
    source = train_source(examples)
    assert (source.num_examples, source.steps_per_epoch, source.kind) == (83, 4, "resident")
    epochs = take(source, 0, 8)
    assert [[len(batch.index) for batch in step] for step in epochs[:4]] == [[8, 8, 8], [8, 8, 8], [8, 8, 8], [8, 3]]
    orders = [torch.cat([batch.index for step in epochs[i : i + 4] for batch in step]) for i in (0, 4)]
    chosen, _ = split_validation(100, 17, seed=0)
    assert all(order.sort().values.equal(chosen) for order in orders) and not orders[0].equal(orders[1])


def test_batches_are_the_examples_named_by_their_index(examples: LabelledImages) -> None:
    assert examples.images is not None
    for batch in itertools.chain(*take(train_source(examples, augment=None), 2, 3)):
        assert batch.labels.equal(examples.labels[batch.index]) and batch.labels.dtype == torch.int64
        mean, std = (torch.tensor(STATISTICS[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
        expected = (examples.images[batch.index].float() / 255 - mean) / std
        assert batch.images.dtype == torch.float32
        torch.testing.assert_close(batch.images, expected, rtol=1e-5, atol=1e-6)


def test_an_augmented_image_does_not_depend_on_the_batch_size(examples: LabelledImages) -> None:
    def by_index(batch_size: int) -> dict[int, torch.Tensor]:
        steps = take(train_source(examples, batch_size=batch_size, accumulate=1), 0, -(-83 // batch_size))
        return {int(i): image for step in steps for b in step for i, image in zip(b.index, b.images, strict=True)}

    small, large = by_index(7), by_index(32)
    assert small.keys() == large.keys() and all(small[index].equal(large[index]) for index in small)


def test_seeds_give_other_orders_and_other_augmentation(examples: LabelledImages) -> None:
    ours, theirs = (take(train_source(examples, seed=seed), 0, 1)[0][0] for seed in (0, 1))
    assert not ours.index.equal(theirs.index)


@pytest.mark.parametrize("reading", [RESIDENT, *LOADERS], ids=["resident", "in this process", "two workers"])
def test_evaluation_goes_in_order_and_can_be_repeated(reading: dict, examples: LabelledImages) -> None:
    _, chosen = split_validation(100, 17, seed=0)
    source = EvalSource(examples, chosen, batch_size=7, **STATISTICS, **reading)
    first, second = list(source), list(source)
    assert len(source) == len(first) == 3 and source.num_examples == 17
    assert torch.cat([batch.index for batch in first]).equal(chosen)
    assert same([first], [second])
    reference = EvalSource(examples, chosen, batch_size=7, **STATISTICS, resident=True)
    assert same([first], [list(reference)])


@pytest.mark.parametrize("reading", [RESIDENT, *LOADERS], ids=["resident", "in this process", "two workers"])
def test_sources_leave_the_global_generators_alone(reading: dict, examples: LabelledImages) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
    take(train_source(examples, **reading), 1, 3)
    assert torch.get_rng_state().equal(before[0]) and np.random.get_state()[1].tolist() == before[1]  # type: ignore[index]


def test_workers_end_when_the_steps_are_closed(examples: LabelledImages) -> None:
    handler = signal.getsignal(signal.SIGCHLD)
    steps = train_source(examples, resident=False, workers=2).from_step(0)
    next(steps)
    assert len(multiprocessing.active_children()) == 2
    steps.close()  # type: ignore[attr-defined]
    assert multiprocessing.active_children() == []
    assert signal.getsignal(signal.SIGCHLD) == handler


def test_a_killed_worker_is_an_environment_fault(examples: LabelledImages) -> None:
    steps = train_source(examples, resident=False, workers=2).from_step(0)
    next(steps)
    pid = multiprocessing.active_children()[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(EnvironmentFault, match="worker process died") as caught:
        list(itertools.islice(steps, 100))
    assert (
        "\n" not in caught.value.message and "dataset.num_workers" in str(caught.value.hint) and caught.value.code == 5
    )
    assert multiprocessing.active_children() == []


def test_workers_ignore_ctrl_c_and_terminate(examples: LabelledImages) -> None:
    steps = train_source(examples, resident=False, workers=2).from_step(0)
    reference = take(train_source(examples), 0, 8)
    ours = [next(steps)]
    for worker in multiprocessing.active_children():
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGINT)
        os.kill(worker.pid, signal.SIGTERM)
    ours += itertools.islice(steps, 7)
    steps.close()  # type: ignore[attr-defined]
    assert same(ours, reference)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_workers_end_when_the_parent_is_killed(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    code = (
        "import sys, time, multiprocessing; sys.path[:0] = ['.', 'tests/datasets']\n"
        "from conftest import random_examples; from test_source import train_source\n"
        "steps = train_source(random_examples(100), resident=False, workers=2).from_step(0); next(steps)\n"
        "print(*(child.pid for child in multiprocessing.active_children()), flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = parent.stdout.readline().split()
        parent.kill()
    assert len(pids) == 2
    deadline = time.monotonic() + 15
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.2)


def alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


class Faulty:
    """Cannot read row 40."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, index: int) -> torch.Tensor:
        if index == 40:
            raise self.error
        return torch.zeros(3, 6, 5, dtype=torch.uint8)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("error", [ValueError("odd"), DataError("cat.png is damaged", hint="Replace it.")])
def test_an_image_that_cannot_be_read_is_named(error: Exception, workers: int) -> None:
    examples = LabelledImages(torch.zeros(60, dtype=torch.int64), None, Faulty(error), "0")
    source = EvalSource(examples, torch.arange(60), batch_size=8, **STATISTICS, resident=False, workers=workers)
    with pytest.raises(DataError, match=r"Example 40.*(odd|cat\.png)") as caught:
        list(source)
    assert "\n" not in caught.value.message
    assert multiprocessing.active_children() == []


def test_pixels_go_there_and_back() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, 3, 1, 1)
    pixels = Pixels([0.5, 0.4, 0.3], [0.2, 0.3, 0.4], channels=3)
    unit = pixels.unit(images)
    assert unit.min() == 0 and unit.max() == 1
    torch.testing.assert_close(pixels.denormalise(pixels.normalise(unit)), unit, rtol=0, atol=1e-6)
    torch.testing.assert_close(pixels.from_bytes(images), pixels.normalise(unit), rtol=0, atol=1e-5)
    with pytest.raises(ConfigError, match="number"):
        Pixels([0.5, 0.5], [0.2], channels=3)
    with pytest.raises(ConfigError, match="above 0"):
        Pixels([0.5], [0.0], channels=3)


def test_residency_is_chosen_by_size_and_setting() -> None:
    assert choose_residency(5_200_000, "auto", 0, "cpu") == (True, "5.2 MB fit in memory")
    assert choose_residency(5_200_000, "auto", 2, "cpu") == (False, "dataset.num_workers=2")
    assert choose_residency(5_200_000, False, 0, "cpu") == (False, "dataset.in_memory=false")
    assert choose_residency(10**15, True, 0, "cpu") == (True, "dataset.in_memory=true")
    resident, reason = choose_residency(10**15, "auto", 0, "cpu")
    assert not resident and "more than half" in reason
    assert choose_residency(None, "auto", 0, "cpu")[0] is False
    with pytest.raises(EnvironmentFault, match="in_memory=true"):
        choose_residency(None, True, 0, "cpu")
    with pytest.raises(ConfigError, match="in_memory=maybe"):
        choose_residency(1, "maybe", 0, "cpu")


@pytest.mark.parametrize("change", [{"batch_size": 0}, {"accumulate": 0}])
def test_sizes_must_be_positive(change: dict, examples: LabelledImages) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        train_source(examples, **change)


def test_steps_are_made_lazily(examples: LabelledImages) -> None:
    steps: Iterator[list[Batch]] = train_source(examples).from_step(10**9)
    assert len(next(steps)) in (2, 3)
