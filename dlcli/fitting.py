"""How many examples an evaluation takes at once: as many as fit, by what the network's operations give out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dlcli.datasets.residency import free_memory

CPU_BYTES = 128 * 2**20  # for activations: on a CPU a larger batch is no faster, and only takes memory
GPU_SHARE = 0.5  # of the free memory
AT_ONCE = 3  # outputs of the largest operation that are alive together: what it reads, what it gives, and one to spare
MOST = 8_192  # examples
WITHOUT_MEASURE = 1_000  # where nothing could be measured


class Outputs(TorchDispatchMode):
    """Within the block: the bytes of the largest tensor that each operation has given, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes: list[int] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = func(*args, **(kwargs or {}))
        tensors = [t for t in (given if isinstance(given, tuple | list) else (given,)) if isinstance(t, torch.Tensor)]
        self.num_bytes.append(max((t.numel() * t.element_size() for t in tensors), default=0))
        return given


def bytes_per_example(run: Callable[[int], Any]) -> float:
    """Of the largest output that grows with the batch. run: does the operations on a batch of so many examples."""
    measured = []
    for num_examples in (4, 8):
        with Outputs() as outputs:
            run(num_examples)
        measured.append(outputs.num_bytes)
    few, many = measured
    return max((b - a for a, b in zip(few, many, strict=False)), default=0) / 4


def eval_batch_size(bytes_per_example: float, device: torch.device) -> int:
    """A power of two; on a CPU the same on every machine, so that scores repeat to the last digit."""
    if not bytes_per_example:
        return WITHOUT_MEASURE
    room = CPU_BYTES if device.type == "cpu" else GPU_SHARE * (free_memory(device) or CPU_BYTES)
    fitting = int(room / (AT_ONCE * bytes_per_example))
    return min(MOST, 2 ** max(0, fitting.bit_length() - 1))
