"""Muon: momentum, orthogonalised by Newton-Schulz (Keller Jordan 2024, https://kellerjordan.github.io/posts/muon/).

torch.optim.Muon takes only matrices. This one takes a whole network: matrices, convolution filters as matrices of
(out, in * height * width), and vectors (biases, norms), which it moves by plain Nesterov momentum.
Letters: N matrices of one shape, R rows, C columns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of x, x^3, x^5: steepest at 0, which needs few iterations but is not exact
EPS = 1e-7


class Muon(torch.optim.Optimizer):
    """B <- momentum B + G, then U = G + momentum B (Nesterov), and W <- (1 - lr weight_decay) W - lr s O(U).

    O(U) has the singular vectors of U, and singular values of about 1 (0.7 to 1.2); s = sqrt(max(1, R / C)), as in the
    author's code. For vectors, and in groups with `orthogonal` false, O(U) is U itself and s is 1.
    hold_norm: before each update a matrix is scaled to the Frobenius norm sqrt(R). For filters before batch norm, whose
    length only sets how fast they turn.
    fused: like torch's fused optimizers, it skips the update if the tensor `found_inf` is not 0, without waiting.
    """

    found_inf: Tensor | None = None  # set by the guard of a fused optimizer

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        orthogonal: bool = True,
        hold_norm: bool = False,
        iterations: int = 5,
        fused: bool = False,
    ):
        defaults = {
            "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "orthogonal": orthogonal,
            "hold_norm": hold_norm, "iterations": iterations, "fused": fused,
        }  # fmt: skip
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._update(parameters, group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        lr, momentum = group["lr"], group["momentum"]
        gradients: list[Tensor] = [p.grad for p in parameters]  # type: ignore[misc]
        if self.found_inf is not None:
            is_bad = self.found_inf > 0
            gradients = [torch.where(is_bad, 0.0, gradient) for gradient in gradients]
            lr = torch.where(is_bad, 0.0, lr)
        buffers = [self._buffer(p) for p in parameters]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, gradients)
        updates = list(torch._foreach_add(gradients, buffers, alpha=momentum))
        matrices = [i for i, p in enumerate(parameters) if p.dim() > 1]
        if group["orthogonal"] and matrices:
            if group["hold_norm"]:
                hold_norms([parameters[i] for i in matrices])
            made = orthogonalised([updates[i] for i in matrices], group["iterations"])
            for i, update in zip(matrices, made, strict=True):
                updates[i] = update
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
        torch._foreach_mul_(updates, lr)
        torch._foreach_sub_(parameters, updates)

    def _buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]


def hold_norms(filters: list[Tensor]) -> None:
    """Scale each tensor (R, ...) to the Frobenius norm sqrt(R), in place."""
    norms = torch._foreach_norm(filters)
    torch._foreach_mul_(filters, [len(f) ** 0.5 / norm.clamp(min=EPS) for f, norm in zip(filters, norms, strict=True)])


def orthogonalised(updates: list[Tensor], iterations: int) -> list[Tensor]:
    """The updates (R, ...), made orthogonal as matrices (R, C) and scaled by sqrt(max(1, R / C)), in their own shapes.

    Matrices of the same shape are computed together.
    """
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, update in enumerate(updates):
        alike[len(update), update.numel() // len(update)].append(i)
    results = list(updates)
    for (rows, columns), members in alike.items():
        matrices_NRC = torch.stack([updates[i].reshape(rows, columns) for i in members])
        scale = max(1.0, rows / columns) ** 0.5
        for i, matrix in zip(members, newton_schulz(matrices_NRC, iterations).mul_(scale), strict=True):
            results[i] = matrix.view(updates[i].shape)
    return results


def newton_schulz(matrices_NRC: Tensor, iterations: int) -> Tensor:
    """Each matrix with its singular values driven towards 1: X <- a X + (b A + c A A) X with A = X X^T.

    bfloat16 on a GPU, as in the author's code, because its matrix units take that; else float32.
    """
    a, b, c = COEFFICIENTS
    is_tall = matrices_NRC.shape[-2] > matrices_NRC.shape[-1]
    x = matrices_NRC.mT if is_tall else matrices_NRC  # A is the smaller of the two squares
    x = x.to(torch.bfloat16 if x.is_cuda else torch.float32)
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + EPS)  # so that no singular value is above 1
    for _ in range(iterations):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.mT if is_tall else x).to(matrices_NRC.dtype)
