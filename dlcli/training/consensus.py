"""Agreement of ranks besides gradients: when to stop for a signal, and which random numbers each rank has."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch import Tensor

from dlcli.datasets.batches.keyed_random import splitmix
from dlcli.runtime.random import random_tensors
from dlcli.runtime.ranks import Ranks, SingleProcess
from dlcli.runtime.signals import Signals

PATIENCE_S = 0.5  # at most about this long from a signal to the step at which all stop
MOST_STEPS = 100


class Agreement:
    """Signals that all ranks know of: a signal that only some ranks received does not stop these alone.

    received: the signal to stop for, None if there is none. A single process reads it at once; among ranks it changes
    only in `come_to`, which all call at the same steps, about every half second.
    """

    def __init__(self, ranks: SingleProcess | Ranks, signals: Signals):
        self.ranks, self.signals = ranks, signals
        self.is_alone = ranks.world_size == 1
        self._agreed: int | None = None
        self._last, self._next, self._time = 0, 0, time.monotonic()

    @property
    def received(self) -> int | None:
        return self.signals.received if self.is_alone else self._agreed

    def steps_left(self, step: int) -> int:
        """The steps until the ranks ask one another again."""
        return MOST_STEPS if self.is_alone else max(1, self._next - step)

    def come_to(self, step: int) -> None:
        if self.is_alone or step < self._next:
            return
        now = time.monotonic()
        step_s = (now - self._time) / max(1, step - self._last)
        number, slowest_s = self.ranks.agree([float(self.signals.received or 0), step_s])
        self._last, self._time = step, now
        self._next = step + max(1, min(MOST_STEPS, int(PATIENCE_S / max(slowest_s, 1e-6))))
        if number:
            self._agreed = self.signals.received = int(number)


def seed_of_rank(seed: int, rank: int) -> int:
    """Return the seed for dropout and noise on a rank; the first rank has the numbers of a run on one device."""
    return splitmix((splitmix(seed) + rank) % 2**64) % 2**32


def all_random_tensors(ranks: SingleProcess | Ranks, device: torch.device) -> dict[str, Tensor]:
    """Gather every rank's random states on rank 0, those of rank r > 0 under `rank<r>/`."""
    own = random_tensors(device)
    if ranks.num_data_ranks == 1:
        return own
    gathered = ranks.gather_tensors(own)
    return {f"{_prefix(rank)}{name}": tensor for rank, states in enumerate(gathered) for name, tensor in states.items()}


def random_tensors_of(ranks: SingleProcess | Ranks, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return this rank's random states in a checkpoint; if fewer ranks saved it, the rank's initial ones."""
    prefix = _prefix(ranks.data_rank)
    names = [name for name in state if name.startswith(f"{prefix}random/")]
    if names:
        return {name.removeprefix(prefix): state[name] for name in names}
    return random_tensors(torch.device("cpu"))


def _prefix(rank: int) -> str:
    return f"rank{rank}/" if rank else ""
