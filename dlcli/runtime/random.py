"""Random states of Python, NumPy, torch and every device: seeded, kept and restored."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlcli.errors import CheckpointError

# ----------------------------------------------------------------------------------------------------------- randomness


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators, on every device."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_tensors(device: torch.device) -> dict[str, Tensor]:
    """The state of every global generator, as tensors: uint8 for torch's, int64 words for Python's and NumPy's."""
    _, words, gauss = random.getstate()
    numpy_state: Any = np.random.get_state(legacy=True)
    states = {
        "random/torch": torch.get_rng_state(),
        "random/python": torch.tensor(words, dtype=torch.int64),
        "random/python_gauss": _optional(gauss),
        "random/numpy": torch.tensor([*numpy_state[1].tolist(), numpy_state[2], numpy_state[3]], dtype=torch.int64),
        "random/numpy_gauss": torch.tensor([numpy_state[4]], dtype=torch.float64),
    }
    if device.type == "cuda":
        states["random/cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random(states: dict[str, Tensor], device: torch.device) -> None:
    """Set every global generator. Call it last: building and loading may draw. Raises CheckpointError if damaged."""
    try:
        gauss = states["random/python_gauss"]
        words = tuple(states["random/python"].tolist())
        random.setstate((3, words, gauss.item() if gauss.numel() else None))
        *keys, position, has_gauss = states["random/numpy"].tolist()
        cached = states["random/numpy_gauss"].item()
        np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, cached))
        torch.set_rng_state(states["random/torch"])
        if device.type == "cuda" and "random/cuda" in states:
            torch.cuda.set_rng_state(states["random/cuda"], device)
    except (KeyError, ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"the random states in the checkpoint cannot be set: {error}") from error


def _optional(number: float | None) -> Tensor:
    return torch.tensor([] if number is None else [number], dtype=torch.float64)


@contextmanager
def unchanged_random(device: torch.device) -> Iterator[None]:
    """Draws within the block have no effect outside it: evaluating more often does not change the training."""
    states = random_tensors(device)
    try:
        yield
    finally:
        restore_random(states, device)
