"""Processes (ranks) that train one network together: how each finds its place, meets the others and exchanges tensors.

ranks = SingleProcess()          # one process: the null object, torch.distributed is never imported
if place := find_ranks():        # torchrun, Slurm, or runtime.devices=N started several
    ranks = join_ranks(place, device)
loss = ranks.average_gradients(parameters, loss, num_examples)      # before clipping and the update

Nothing here imports torch before ranks are joined: a process knows its place before it needs torch.

Shapes: a parameter, its gradient and its buffers have the same shape (*shape) on every rank; losses and norms are ().
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dlcli.errors import DlcliError, EnvironmentFault, printable

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dlcli.runtime.gradients import FlatGradients

TIMEOUT_S = 600.0  # time for the other ranks to come, and to answer in any exchange


class SingleProcess:
    """The null object: one process."""

    rank = data_rank = 0
    world_size = num_data_ranks = 1
    local_rank = attempt = 0
    is_primary = True

    def average_gradients(self, parameters: Iterable[nn.Parameter], loss: Tensor, num_examples: int) -> Tensor:
        return loss

    def weigh(self, loss: Tensor, num_examples: int) -> Tensor:
        return loss

    def clip_gradients(self, parameters: Iterable[nn.Parameter], clip_norm: float) -> Tensor:
        from torch.nn.utils import clip_grad_norm_

        return clip_grad_norm_(parameters, clip_norm)

    def all_reduce(self, numbers: list[float]) -> list[float]:
        return numbers

    def all_reduce_data(self, numbers: list[float]) -> list[float]:
        return numbers

    def agree(self, numbers: list[float]) -> list[float]:
        return numbers

    def broadcast(self, value: Any) -> Any:
        return value

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def gather_tensors(self, tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        return [dict(tensors)]

    def average_buffers(self, network: nn.Module) -> None:
        pass

    def sum_in_place(self, tensor: Tensor) -> None:
        pass

    def peer_faults(self) -> AbstractContextManager[None]:
        return nullcontext()

    def barrier(self) -> None:
        pass

    def close(self) -> None:
        pass


class Ranks:
    """The processes of torch's default group, made by `join_ranks`: gloo for tensors on the CPU, nccl for GPUs.

    All ranks call every method, in the same order. Results have the same bits on all of them, since each sum is
    computed in one place and sent to the others. A lost rank ends the wait of the others with an
    EnvironmentFault: at once on CPUs; on GPUs nccl's watchdog ends the process when the timeout is over.
    """

    def __init__(self, place: Place, *, timeout_s: float = TIMEOUT_S):
        import torch.distributed

        self.place, self.timeout_s = place, timeout_s
        self.rank, self.world_size, self.local_rank = place.rank, place.world_size, place.local_rank
        self.data_rank, self.num_data_ranks = place.rank, place.world_size  # each rank sees its own share of a batch
        self.is_primary, self.attempt = place.rank == 0, place.attempt
        self._dist: Any = torch.distributed
        self._flat: dict[tuple[int, ...], list[FlatGradients]] = {}

    def average_gradients(self, parameters: Iterable[nn.Parameter], loss: Tensor, num_examples: int) -> Tensor:
        """Give each parameter the gradient (*shape) over the examples of all ranks, in one exchange; the mean loss, ().

        loss: (), the mean over this rank's num_examples, which may be 0. If it is NaN or infinite on one rank, it
        comes back so on all. Nothing waits for a GPU after the first step.
        """
        trained = [p for p in parameters if p.requires_grad]
        key = tuple(map(id, trained))
        if key not in self._flat:
            from dlcli.runtime.gradients import flat_gradients

            self._flat[key] = flat_gradients(trained)  # it holds the parameters, so their ids stay theirs
        means = [flat.average(loss, num_examples, self.sum_in_place) for flat in self._flat[key]]
        return means[0]

    def weigh(self, loss: Tensor, num_examples: int) -> Tensor:
        """The loss () to call backward on, for a step with so many examples on this rank; here it does not change."""
        return loss

    def clip_gradients(self, parameters: Iterable[nn.Parameter], clip_norm: float) -> Tensor:
        """Scale all gradients together down to a norm of clip_norm; returns the norm before, ()."""
        from torch.nn.utils import clip_grad_norm_

        return clip_grad_norm_(parameters, clip_norm)

    def sum_in_place(self, tensor: Tensor) -> None:
        """Replace a tensor of any shape by its sum over all ranks, in place."""
        with self.peer_faults():
            self._dist.all_reduce(tensor)

    def all_reduce(self, numbers: list[float]) -> list[float]:
        """The sum of each number over all ranks, in float64."""
        return self._reduce(numbers, self._dist.ReduceOp.SUM)

    def all_reduce_data(self, numbers: list[float]) -> list[float]:
        """Turn sums over this rank's examples into sums over the examples of all ranks."""
        return self.all_reduce(numbers) if self.num_data_ranks > 1 else numbers

    def agree(self, numbers: list[float]) -> list[float]:
        """The largest of each number over all ranks."""
        return self._reduce(numbers, self._dist.ReduceOp.MAX)

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value on every rank; it must be JSON data."""
        data = self._bytes(value) if self.is_primary else None
        size = int(self.all_reduce([0.0 if data is None else len(data)])[0])
        data = self._empty_bytes(size) if data is None else data
        with self.peer_faults():
            self._dist.broadcast(data, 0)
        return json.loads(bytes(data.tolist()))

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in the order of the ranks; each must be JSON data."""
        data = self._bytes(value)
        sizes = [0.0] * self.world_size
        sizes[self.rank] = len(data)
        sizes = self.all_reduce(sizes)
        padded = self._empty_bytes(int(max(sizes)))
        padded[: len(data)] = data
        parts = [self._empty_bytes(len(padded)) for _ in sizes]
        with self.peer_faults():
            self._dist.all_gather(parts, padded)
        return [json.loads(bytes(part[: int(size)].tolist())) for part, size in zip(parts, sizes, strict=True)]

    def gather_tensors(self, tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Every rank's tensors (any shapes) on the CPU, in order of ranks, for rank 0; the others get an empty list."""
        import torch
        from safetensors.torch import load, save

        own = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        data = torch.frombuffer(bytearray(save(own)), dtype=torch.uint8)
        sizes = [0.0] * self.world_size
        sizes[self.rank] = len(data)
        sizes = self.all_reduce(sizes)
        with self.peer_faults():
            if not self.is_primary:
                self._dist.send(data, 0)
                return []
            found = [own]
            for rank in range(1, self.world_size):
                received = self._empty_bytes(int(sizes[rank]))
                self._dist.recv(received, rank)
                found.append(load(received.numpy().tobytes()))
            return found

    def average_buffers(self, network: nn.Module) -> None:
        """Replace running statistics (C,) by their mean over the ranks, and counters () by the largest. Equal ones keep
        their bits.
        """
        import torch

        for buffer in network.buffers():
            if not buffer.is_floating_point():
                with self.peer_faults():
                    self._dist.all_reduce(buffer, self._dist.ReduceOp.MAX)
                continue
            first = buffer.detach().clone()
            with self.peer_faults():
                self._dist.broadcast(first, 0)
            difference = torch.where(buffer == first, 0, buffer - first)  # infinity minus infinity is 0 here
            self.sum_in_place(difference)
            buffer.copy_(first + difference / self.world_size)

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.all_reduce([0.0])

    def close(self) -> None:
        """Leave the group. It does not wait for others, so it may follow a fault. Call it before the process ends."""
        self._flat.clear()
        if self._dist.is_initialized():
            self._dist.destroy_process_group()
            # gloo's threads may still hold Python objects of the last exchange (of sharded networks), and abort the
            # process if they release them after the interpreter has ended: seen in 4 of 16 ends without this pause.
            time.sleep(0.1)

    @contextmanager
    def peer_faults(self) -> Iterator[None]:
        """Within the block a lost rank raises EnvironmentFault. For all other code that talks to the other ranks."""
        try:
            yield
        except RuntimeError as error:
            if not says_a_rank_is_lost(str(error)) and not isinstance(error, self._dist.DistError):
                raise
            raise lost_rank(self.rank, self.world_size, error) from error

    def _reduce(self, numbers: list[float], operation: Any) -> list[float]:
        import torch

        tensor = torch.tensor(numbers, dtype=torch.float64)
        with self.peer_faults():
            self._dist.all_reduce(tensor, operation)
        return tensor.tolist()

    def _bytes(self, value: Any) -> Tensor:
        import torch

        return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)

    def _empty_bytes(self, size: int) -> Tensor:
        import torch

        return torch.zeros(size, dtype=torch.uint8)


# ------------------------------------------------------------------------------------------------------------- finding


@dataclass(frozen=True)
class Place:
    """The place of this process among the ranks, and their meeting point.

    rank: 0 to world_size - 1; local_rank: the number on its own machine, and of its GPU. attempt: earlier starts of the
    group. is_hosted: torchrun keeps the meeting point, not rank 0; listen_fd: rank 0's socket, opened beforehand.
    """

    rank: int
    world_size: int
    local_rank: int
    master_addr: str
    master_port: int
    attempt: int = 0
    is_hosted: bool = False
    listen_fd: int | None = None


def says_a_rank_is_lost(text: str) -> bool:
    """Whether gloo or nccl reports a lost connection; `enforce fail` is about tensors that differ: a bug of dlcli."""
    lost = r"gloo/transport|closed by peer|reset by peer|Broken pipe|Timed out waiting|NCCL|timed out after"
    return bool(re.search(lost, text)) and "enforce fail" not in text


def lost_rank(rank: int, world_size: int, error: BaseException) -> DlcliError:
    others = "the other rank" if world_size == 2 else f"one of the other {world_size - 1} ranks"
    return EnvironmentFault(
        f"{others} was lost, or did not answer in time (this is rank {rank}): {first_line(error)}",
        hint="Its own last words, or the system's log if it was killed, say why. dlcli resume goes on from the last "
        "checkpoint; dlcli train --max-restarts=3 does so by itself.",
    )


def first_line(error: BaseException) -> str:
    """torch's message, without the place in its source and without its advice."""
    line = (str(error).splitlines() or [""])[0]
    line = re.sub(r"^\[[^\]]*\.(cc|cpp|h):\d+\] ", "", line)
    return printable(line.split(". ")[0], limit=160)
