"""Moving averages of the weights: they are evaluated and saved while the raw weights go on training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Exponential moving average of the trained parameters (Polyak and Juditsky 1992; decay as in Tarvainen 2017).

    The decay starts low, min(decay, (1 + n) / (10 + n)) after n updates, so that the average forgets its random start.
    Buffers (running statistics of batch norm) are averages already and are copied.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.decay, self.num_updates = decay, 0
        self.live = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.shadow = {name: p.detach().clone() for name, p in self.live.items()}

    @torch.no_grad()
    def update(self) -> None:
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        torch._foreach_lerp_(list(self.shadow.values()), [p.detach() for p in self.live.values()], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average and the live weights, in place."""
        for name, p in self.live.items():
            kept = p.detach().clone()
            p.copy_(self.shadow[name])
            self.shadow[name].copy_(kept)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block the network has the averaged weights."""
        self.swap()
        try:
            yield
        finally:
            self.swap()


class NoAverage:
    """The null object: uses the network's own weights."""

    def __init__(self) -> None:
        self.num_updates = 0
        self.live: dict[str, nn.Parameter] = {}
        self.shadow: dict[str, Tensor] = {}

    def update(self) -> None:
        pass

    @contextmanager
    def in_place(self) -> Iterator[None]:
        yield
