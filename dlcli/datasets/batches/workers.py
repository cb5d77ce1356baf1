"""Reads images in other processes: a DataLoader whose workers only decode, and the error if one of them dies.

Order, augmentation and normalisation stay in the main process, so the number of workers changes no bit of a batch.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dlcli.datasets.batches.examples import LabelledImages
from dlcli.errors import DataError, DlcliError, EnvironmentFault, printable


def read_batches(
    examples: LabelledImages, schedule: Iterable[list[int]], *, workers: int, pin_memory: bool
) -> Iterator[Tensor]:
    """(B, C, H, W) uint8 for each list of rows in `schedule`, in order, read ahead by `workers` processes.

    Raises DataError for an image that cannot be read, EnvironmentFault when a worker dies.
    """
    loader = DataLoader(
        Decoder(examples),
        sampler=schedule,
        batch_size=None,  # the schedule's items are whole batches already
        collate_fn=unchanged,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=prepare_worker if workers else None,
        multiprocessing_context=start_method() if workers else None,
        generator=torch.Generator(),  # otherwise it would draw from the global generator
    )
    with worker_faults(), quiet_start():
        batches = iter(loader)
    try:
        while True:
            with worker_faults():
                batch = next(batches, None)
            if batch is None:
                return
            if isinstance(batch, Unreadable):
                raise DataError(batch.message, hint=batch.hint)
            yield batch
    finally:
        # Deleting the iterator also ends its workers, but after an error the traceback keeps it alive.
        if hasattr(batches, "_shutdown_workers"):
            batches._shutdown_workers()


@dataclass(frozen=True)
class Unreadable:
    """An error that is returned, not raised: a DataLoader would wrap it in a page of traceback."""

    message: str
    hint: str | None


class Decoder(Dataset):
    """rows -> (B, C, H, W) uint8."""

    def __init__(self, examples: LabelledImages) -> None:
        self.images, self.read = examples.images, examples.read

    def __getitem__(self, rows: list[int]) -> Tensor | Unreadable:
        if self.images is not None:
            return self.images[torch.tensor(rows)]
        images = []
        for row in rows:
            try:
                images.append(self.read(row))
            except DlcliError as error:
                return Unreadable(f"Example {row}: {error.message}", error.hint)
            except Exception as error:  # the user's own reader may raise anything: the example is the place to look
                return Unreadable(f"Example {row} cannot be read: {printable(repr(error))}", None)
        return torch.stack(images)


def unchanged(batch: Any) -> Any:
    return batch


def prepare_worker(_: int) -> None:
    """Ctrl-C and SIGTERM reach the whole process group, but only the parent decides when to stop.

    A worker ends when its queue is closed, and within 5 s of the parent's death (torch's own watchdog).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)


def start_method() -> str | None:
    """fork where it is safe: a worker starts in milliseconds and shares the images; spawn would import torch again."""
    return "fork" if sys.platform == "linux" and "fork" in multiprocessing.get_all_start_methods() else None


@contextlib.contextmanager
def quiet_start() -> Iterator[None]:
    """Guards the start of workers: no signal hits a half-started one, and torch's SIGCHLD handler is removed after it.

    That handler raises wherever the main thread happens to be; without it, a dead worker is noticed when its batch is
    waited for (within 5 s), where the fault can be reported properly.
    """
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD) if is_main else None
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        with warnings.catch_warnings():
            # Python 3.12 warns about fork with threads; torch's threads are idle and the workers use none of them.
            warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
            yield
    finally:
        if is_main and before is not None:
            signal.signal(signal.SIGCHLD, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


@contextlib.contextmanager
def worker_faults() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        if isinstance(error, RuntimeError) and "worker" not in str(error):
            raise  # not from a worker: such as an error of the device
        raise EnvironmentFault(
            f"A data worker process died: {printable(str(error).splitlines()[0] if str(error) else repr(error))}",
            hint="Usually memory (or /dev/shm) is full: dataset.num_workers=1, or dataset.num_workers=0 for none.",
        ) from error
