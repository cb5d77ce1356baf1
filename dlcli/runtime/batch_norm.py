"""Batch norm over the examples of all ranks, on CPUs and GPUs alike (torch's own SyncBatchNorm needs a GPU).

    synchronise(network, ranks)      # in place; names in the checkpoint do not change

Shapes: x (B, C) or (B, C, ...); statistics (C,) in float32, or float64 for float64 inputs; R ranks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dlcli.runtime.ranks import Ranks, SingleProcess


def synchronise(network: nn.Module, ranks: SingleProcess | Ranks) -> None:
    """Replace every batch norm below `network` by one over all ranks, with the same parameters and buffers.

    From then on every rank must run the network forward and backward equally often, even on a batch without examples:
    the statistics and their gradients are exchanged there.
    """
    if ranks.world_size == 1:
        return
    for name, child in network.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            setattr(network, name, SynchronisedBatchNorm(child, ranks))
        else:
            synchronise(child, ranks)


class SynchronisedBatchNorm(_BatchNorm):
    """The batch norm `like`, but over the batches of all ranks together instead of the batch of one device."""

    def __init__(self, like: _BatchNorm, ranks: SingleProcess | Ranks):
        super().__init__(like.num_features, like.eps, like.momentum, affine=False, track_running_stats=False)
        self.affine, self.track_running_stats = like.affine, like.track_running_stats
        self.weight, self.bias = like.weight, like.bias
        self.running_mean, self.running_var = like.running_mean, like.running_var
        self.num_batches_tracked = like.num_batches_tracked
        self.train(like.training)
        self.ranks = ranks

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        """x (B, C, ...) -> the same shape and dtype. In evaluation it works like any batch norm."""
        if not self.training:
            return super().forward(input)
        x = input if input.dtype == torch.float64 else input.float()
        mean_C, variance_C, count = self._statistics(x)
        self._track(mean_C.detach(), variance_C.detach(), count)
        shape = [1, -1] + [1] * (x.dim() - 2)
        scale_C = torch.rsqrt(variance_C + self.eps)
        shift_C = -mean_C * scale_C
        if self.affine:
            scale_C, shift_C = scale_C * self.weight, shift_C * self.weight + self.bias
        return torch.addcmul(shift_C.view(shape), x, scale_C.view(shape)).to(input.dtype)

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and biased variance (C,) of all ranks' x, and the count () of numbers of each channel over all ranks.

        Each rank gives its mean and its sum of squared deviations from it; they are merged as in Chan, Golub and
        LeVeque (1979, eq. 2.1), which loses no digits if the mean is large, unlike a sum of squares.
        """
        dims = [0, *range(2, x.dim())]
        count = x.numel() // x.shape[1]
        mean_C = x.sum(dims) / max(count, 1)
        squares_C = (x - mean_C.view([1, -1] + [1] * (x.dim() - 2))).square().sum(dims)
        own = torch.cat([mean_C, squares_C, x.new_tensor([count])])
        mean_RC, squares_RC, count_R1 = gather(own, self.ranks, len(x)).split([len(mean_C), len(mean_C), 1], dim=1)
        total = count_R1.sum()
        mean_C = (mean_RC * count_R1).sum(0) / total
        variance_C = (squares_RC + count_R1 * (mean_RC - mean_C).square()).sum(0) / total
        return mean_C, variance_C, total.detach()

    @torch.no_grad()
    def _track(self, mean_C: Tensor, variance_C: Tensor, count: Tensor) -> None:
        """Update the running statistics (C,), with the unbiased variance, like torch's batch norm."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        unbiased_C = variance_C * (count / (count - 1).clamp(min=1))
        self.running_mean.lerp_(mean_C.to(self.running_mean.dtype), share)
        self.running_var.lerp_(unbiased_C.to(self.running_var.dtype), share)


def gather(own_K: Tensor, ranks: SingleProcess | Ranks, num_examples: int) -> Tensor:
    """Every rank's numbers (R, K), with a gradient to this rank's own (K,). num_examples: in this rank's batch."""
    return _Gather.apply(own_K, ranks, num_examples)


class _Gather(torch.autograd.Function):
    """Gathers (K,) -> (R, K): rows of zeros except the rank's own, summed over ranks: exact, and any backend can do it.

    Each rank differentiates the mean loss of its own n examples, but its numbers also enter the other ranks' losses.
    The average of the ranks' gradients, weighted by n, must be the gradient of the mean over all examples: so the
    gradient (K,) of a rank's own row is sum_r(n_r * gradient_r) / n.
    """

    @staticmethod
    def forward(ctx: Any, own_K: Tensor, ranks: SingleProcess | Ranks, num_examples: int) -> Tensor:
        ctx.ranks, ctx.num_examples = ranks, num_examples
        rows_RK = own_K.new_zeros(ranks.world_size, len(own_K))
        rows_RK[ranks.rank] = own_K
        ranks.sum_in_place(rows_RK)
        return rows_RK

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        gradient_RK = gradients[0] * ctx.num_examples
        ctx.ranks.sum_in_place(gradient_RK)
        return gradient_RK[ctx.ranks.rank] / max(ctx.num_examples, 1), None, None
