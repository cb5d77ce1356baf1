"""The data path: images per second of each kind of source, and a data set's first start against its second.

python -m tests.bench.data_path read EXPERIMENT      reads its data once; the JSON goes to the file $RESULT
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

from tests.bench.measure import give_result, in_turn, mnist_root, ratios, result_of, spread, table

BATCHES = 150  # of one block, 64 images each
ROUNDS = 10
SOURCES = {  # what the table says -> words
    "resident": (),
    "resident, augmentation=flip_shift": ("augmentation=flip_shift",),
    "resident, augmentation=standard": ("augmentation=standard",),
    "loader, workers=0": ("dataset.in_memory=false",),
    "loader, workers=2": ("dataset.in_memory=false", "dataset.num_workers=2"),
}


def run() -> str:
    """Images per second of each source; a first start against a second."""
    return f"{speeds()}\n\n{starts()}"


# ---------------------------------------------------------------------------------------------------- images per second


def speeds() -> str:
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        sides = {"torchvision DataLoader as people write it, workers=0": classic_batches(workers=0)}
        sides |= {"the same, workers=2": classic_batches(workers=2)}
        for name, words in SOURCES.items():
            sides[f"dlcli, {name}"] = batches_of(Path(folder), words)
        rounds = in_turn(ROUNDS, *(lambda b=b: taken(b) for b in sides.values()))
        for batches in sides.values():
            close(batches)
    columns = dict(zip(sides, zip(*rounds, strict=True), strict=True))
    cpu = {name: [c for c, _ in column] for name, column in columns.items()}
    theirs = next(iter(cpu.values()))
    images = BATCHES * 64
    rows = [
        (
            name,
            f"{statistics.median(cpu[name]) / images * 1e6:.1f}",
            f"{images / statistics.median(wall for _, wall in column):,.0f}",
            spread(ratios(theirs, cpu[name]), 1),
        )
        for name, column in columns.items()
    ]
    told = (
        f"{ROUNDS} paired blocks of {BATCHES} MNIST batches of 64, one thread a process; CPU time of workers counted."
    )
    return f"{told}\n\n" + table(("", "CPU us per image", "images per wall second", "times as fast by CPU"), rows)


def batches_of(folder: Path, words: tuple[str, ...]) -> Iterator[Any]:
    """Endless batches of dlcli's own source."""
    from dlcli.config import compose_command
    from tests.bench.overhead import reporting

    tree = compose_command(["mnist", "runtime=cpu", "runtime.threads=1", *words]).tree
    with reporting(tree, folder) as training:  # its end does no harm: a source has no state
        return training.train_source.from_step(0)


def classic_batches(*, workers: int) -> Iterator[Any]:
    from torch.utils.data import DataLoader

    from tests.bench import classic

    made = classic.loader(mnist_root(), train=True)
    loader = DataLoader(made.dataset, batch_size=64, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    return chain.from_iterable(repeat(loader))


def taken(batches: Iterator[Any]) -> tuple[float, float]:
    """CPU (workers included) and wall seconds of a block."""
    cpu, wall = cpu_with_workers_s(), time.monotonic()
    for _ in islice(batches, BATCHES):
        pass
    return cpu_with_workers_s() - cpu, time.monotonic() - wall


def cpu_with_workers_s() -> float:
    """Of this process, exactly, and of its living children, to 10 ms: Linux only tells so much of them."""
    me, tick, ticks = str(os.getpid()), os.sysconf("SC_CLK_TCK"), 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if fields[1] == me:
            ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / tick


def close(batches: Iterator[Any]) -> None:
    getattr(batches, "close", lambda: None)()


# -------------------------------------------------------------------------------------------------- first, second start


def starts() -> str:
    """Reading with an empty cache, and again. Imports are over before; every page of the images is touched."""
    rows = []
    for experiment in ("mnist", "cifar10_subset"):
        first, second = zip(*(first_and_second(experiment) for _ in range(5)), strict=True)
        for kind in ("cpu_s", "wall_s"):
            a, b = ([read[kind] for read in reads] for reads in (first, second))
            medians = [f"{statistics.median(side):.3f}" for side in (a, b)]
            rows.append((experiment, kind.replace("_s", " s"), *medians, spread(ratios(b, a), 2)))
    return table(("data set", "", "first start (decode)", "second (cached)", "second against first"), rows)


def first_and_second(experiment: str) -> tuple[dict[str, float], dict[str, float]]:
    with tempfile.TemporaryDirectory() as cache:
        first, second = (result_of("tests.bench.data_path", "read", experiment, DLCLI_CACHE=cache) for _ in range(2))
    return first, second


def read(experiment: str) -> dict[str, float]:
    import torch

    from dlcli.config import compose_command
    from dlcli.training import build
    from dlcli.training.allow_list import Builder

    torch.set_num_threads(1)
    tree = compose_command([experiment]).tree
    builder = Builder.for_search()
    builder.check(tree)
    wall, cpu = time.monotonic(), time.process_time()
    data = build.build_data(builder, tree)
    for split in (data.train, data.test):
        assert split.images is not None
        split.images.flatten()[::4096].sum()
    return {"cpu_s": time.process_time() - cpu, "wall_s": time.monotonic() - wall}


if __name__ == "__main__":
    give_result(read(sys.argv[2]))
