"""Penalties added to the loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Penalty = Callable[[nn.Module], Tensor]


class L1:
    """weight * sum of |w| over weights of two or more dimensions; biases and norms are left alone (Tibshirani 1996)."""

    def __init__(self, weight: float):
        self.weight = weight

    def __call__(self, network: nn.Module) -> Tensor:
        sums = [p.abs().sum() for p in network.parameters() if p.requires_grad and p.dim() > 1]
        return self.weight * torch.stack(sums).sum()
