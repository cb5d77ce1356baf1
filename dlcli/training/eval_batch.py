"""Chooses an evaluation's batch size: as many examples as fit, by the size of the modules' outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from dlcli.datasets.batches.residency import free_memory

CPU_BYTES = 128 * 2**20  # for activations: on a CPU a larger batch is not faster and only takes memory
GPU_SHARE = 0.5  # of the free memory
AT_ONCE = 3  # outputs of the largest module in memory together: its input, its output, and one to spare
MOST = 8_192  # examples
WITHOUT_MEASURE = 1_000  # where nothing could be measured


def bytes_per_example(network: nn.Module, run: Callable[[int], Any], sizes: tuple[int, int] = (4, 8)) -> float:
    """Return the bytes per example of the largest output that grows with the batch. run: computes so many examples.

    By hooks on the modules: a dispatch mode would see every operation, but imports the compiler for it.
    """
    few, many = (output_bytes(network, run, num_examples) for num_examples in sizes)
    return max((b - a for a, b in zip(few, many, strict=False)), default=0) / (sizes[1] - sizes[0])


def output_bytes(network: nn.Module, run: Callable[[int], Any], num_examples: int) -> list[int]:
    """Return the bytes of each module's output, in the order of computation."""
    found: list[int] = []

    def note(module: nn.Module, given: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            found.append(output.numel() * output.element_size())

    hooks = [module.register_forward_hook(note) for module in network.modules()]
    run(num_examples)
    for hook in hooks:
        hook.remove()
    return found


def eval_batch_size(bytes_per_example: float, device: torch.device) -> int:
    """Return a power of two; on a CPU the same on every machine, so that scores repeat to the last digit."""
    if not bytes_per_example:
        return WITHOUT_MEASURE
    room = CPU_BYTES if device.type == "cpu" else GPU_SHARE * (free_memory(device) or CPU_BYTES)
    fitting = int(room / (AT_ONCE * bytes_per_example))
    return min(MOST, 2 ** max(0, fitting.bit_length() - 1))
