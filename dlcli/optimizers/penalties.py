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
        if not sums:  # frozen until a later epoch
            return torch.zeros((), device=next(network.parameters()).device)
        return self.weight * torch.stack(sums).sum()


def has_auxiliary(network: nn.Module) -> bool:
    """Whether a layer has its own loss: an attribute `auxiliary_loss`, None or a scalar."""
    return any(hasattr(module, "auxiliary_loss") for module in network.modules())


def add_auxiliary(network: nn.Module) -> Tensor:
    """The sum of the layers' own losses from the last forward pass, e.g. the load balance of a mixture of experts.

    Each layer's loss is read once and cleared, so that no graph outlives its step.
    """
    total = torch.zeros((), device=next(network.parameters()).device)
    for module in network.modules():
        loss = getattr(module, "auxiliary_loss", None)
        if loss is not None:
            total = total + loss
            module.auxiliary_loss = None  # type: ignore[assignment]
    return total
