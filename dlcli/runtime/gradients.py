"""Puts gradients side by side in one flat buffer, so that ranks exchange all of them, and the loss, in one message.

Shapes: a parameter and its gradient (*shape); P parameters of one dtype, S numbers of all their gradients together
(padded); the buffer is (S + P + 2,): gradients, one flag per parameter, the loss and a count. The mean loss is ().
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dlcli.errors import EnvironmentFault

ALIGNMENT = 16  # elements: every gradient begins at a place that suits vectorised kernels


class FlatGradients:
    """A flat buffer for the gradients of `parameters`, which are on one device.

    It holds the gradients, one flag per parameter (1 if it has a gradient), the loss and a 1, all multiplied by the
    rank's number of examples. The sum over ranks, divided by the sum of the ones, is the result of one device.
    float16 and bfloat16 gradients are summed in float32. Averaged gradients of the buffer's own dtype stay views of it
    in the shape and layout of their parameter: nothing is copied back, and nothing is allocated per step.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], dtype: torch.dtype):
        self.parameters = list(parameters)
        starts, size = [], 0
        for parameter in self.parameters:
            starts.append(size)
            size += -(-parameter.numel() // ALIGNMENT) * ALIGNMENT
        count = len(self.parameters)
        self.buffer = torch.zeros(size + count + 2, dtype=dtype, device=self.parameters[0].device)
        strides = [torch.empty_like(p, device="meta").stride() for p in self.parameters]
        self.slots = [
            self.buffer.as_strided(p.shape, stride, start)
            for p, stride, start in zip(self.parameters, strides, starts, strict=True)
        ]
        self.flags, self.loss, self.num_examples = self.buffer[size:-2], self.buffer[-2], self.buffer[-1]
        self.flags_of: dict[tuple[bool, ...], Tensor] = {}
        self.taking_part: list[bool] | None = None

    @torch.no_grad()
    def average(self, loss: Tensor, num_examples: int, sum_over_ranks: Callable[[Tensor], None]) -> Tensor:
        """Give every rank the gradient, and the mean loss () float, of the examples of all of them.

        loss: (), the mean over this rank's num_examples. If there are 0, its gradients count for nothing, whatever
        they are. A parameter without a gradient on any rank keeps none.
        """
        self._pack(loss, num_examples)
        sum_over_ranks(self.buffer)
        self.buffer[:-1].div_(self.num_examples)
        self._unpack(is_counted=num_examples > 0)
        return self.loss.clone()

    def _pack(self, loss: Tensor, num_examples: int) -> None:
        if num_examples == 0:
            self.buffer.zero_()  # not a product: 0 times NaN is NaN
            return
        has_gradient = tuple(p.grad is not None for p in self.parameters)
        filled = [slot for slot, has in zip(self.slots, has_gradient, strict=True) if has]
        empty = [slot for slot, has in zip(self.slots, has_gradient, strict=True) if not has]
        if filled:
            torch._foreach_copy_(filled, [p.grad for p in self.parameters if p.grad is not None])
        if empty:
            torch._foreach_zero_(empty)
        if has_gradient not in self.flags_of:
            self.flags_of[has_gradient] = torch.tensor(has_gradient).to(self.flags)
        self.flags.copy_(self.flags_of[has_gradient])
        self.loss.copy_(loss.detach())
        self.num_examples.fill_(1)
        self.buffer.mul_(num_examples)

    def _unpack(self, *, is_counted: bool) -> None:
        """Give the averaged gradients (*shape) to parameters for which a rank has one. is_counted: this rank counts."""
        is_fresh = self.taking_part is None or self.buffer.device.type == "cpu"
        if is_fresh:
            self.taking_part = (self.flags > 0).tolist()  # waits for a GPU: at the first step only
        copied: list[tuple[Tensor, Tensor]] = []
        for parameter, slot, takes_part in zip(self.parameters, self.slots, self.taking_part or (), strict=True):
            if not takes_part:
                if parameter.grad is not None and is_counted and not is_fresh:
                    raise late_gradient(parameter)
                parameter.grad = None
            elif parameter.dtype == slot.dtype:
                parameter.grad = slot
            else:
                parameter.grad = torch.empty_like(parameter) if parameter.grad is None else parameter.grad
                copied.append((parameter.grad, slot))
        if copied:
            gradients, slots = zip(*copied, strict=True)
            torch._foreach_copy_(gradients, slots)


def late_gradient(parameter: nn.Parameter) -> EnvironmentFault:
    return EnvironmentFault(
        f"a parameter of shape {list(parameter.shape)} has its first gradient after the first step, which several "
        "GPUs cannot agree on without waiting for each other at every step",
        hint="Let every trained parameter take part in the first step's loss, or use runtime.devices=1.",
    )


def flat_gradients(parameters: Sequence[nn.Parameter]) -> list[FlatGradients]:
    """One buffer for the parameters summed in float32, and one for those in float64 if there are any."""
    wide = [p for p in parameters if p.dtype == torch.float64]
    narrow = [p for p in parameters if p.dtype != torch.float64]
    groups = ((narrow, torch.float32), (wide, torch.float64))
    return [FlatGradients(members, dtype) for members, dtype in groups if members]
