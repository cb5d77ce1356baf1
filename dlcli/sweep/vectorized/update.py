"""torch's optimizers over stacked parameters: the same rules, with one number per trial for each coefficient.

A rule changes its gradients in place: gradients of many trials are large, and a fresh page of memory costs a CPU more
than the arithmetic on it. A trial that is not alive keeps its parameters to the last bit; its gradient must be 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dlcli.sweep.vectorized.stack import shaped

LEAST_LR = 1e-20  # Adam's rule divides by the learning rate; a step this small is lost in rounding


class Group:
    """One parameter group. settings: of each trial, the same as in its own optimizer.

    rows: the coefficients of a stretch of steps, each (S, T) float32 on the device.
    """

    def __init__(self, settings: Sequence[Mapping[str, Any]]):
        self.names: list[str] = settings[0]["param_names"]
        self.settings = settings
        self.lr_T, self.decay_T = self["lr"], self["weight_decay"]
        self.decays = bool(self.decay_T.any())
        self.rows: tuple[Tensor, ...] = ()

    def __getitem__(self, key: str) -> Tensor:
        """(T,) float64, or (T, 2) for betas."""
        return torch.tensor([own[key] for own in self.settings], dtype=torch.float64)

    def place(self, rows_ST: Sequence[Tensor], device: torch.device) -> None:
        """Move a stretch's coefficients to the device at once: a copy at every step would wait for it."""
        size = torch.broadcast_shapes(*(row.shape for row in rows_ST))
        self.rows = torch.stack([row.expand(size) for row in rows_ST]).float().to(device).unbind(0)


class Rule:
    """An optimizer. settings: for each trial, the param_groups of its own optimizer."""

    num_states = 0

    def __init__(self, parameters: Mapping[str, Tensor], settings: Sequence[Sequence[Mapping[str, Any]]]):
        self.parameters = parameters
        self.groups = [Group([own[number] for own in settings]) for number in range(len(settings[0]))]
        names = [name for group in self.groups for name in group.names]
        self.state = {name: [torch.zeros_like(parameters[name]) for _ in range(self.num_states)] for name in names}

    def prepare(self, scale_ST: Tensor, first_step: int) -> None:
        """Compute the coefficients of the steps after `first_step`. scale_ST: (S, T) float64, the schedules' shares."""
        device = next(iter(self.parameters.values())).device
        step_S1 = torch.arange(first_step + 1, first_step + 1 + len(scale_ST), dtype=torch.float64)[:, None]
        for group in self.groups:
            group.place(self.coefficients(group, group.lr_T * scale_ST, step_S1), device)

    @torch.no_grad()
    def update(self, row: int, gradients: Mapping[str, Tensor], alive_T: Tensor | None) -> None:
        """Take step `row` of those prepared. alive_T: (T,) bool, None for all."""
        for group in self.groups:
            numbers = [rows_ST[row] for rows_ST in group.rows]
            if alive_T is not None:
                numbers = self.spared(numbers, alive_T)
            for name in group.names:
                if name not in gradients:  # not part of the loss: torch's optimizers skip it too
                    continue
                parameter = self.parameters[name]
                self.change(group, name, gradients[name], *(shaped(number_T, parameter) for number_T in numbers))

    def coefficients(self, group: Group, lr_ST: Tensor, step_S1: Tensor) -> list[Tensor]:
        raise NotImplementedError

    def spared(self, numbers: list[Tensor], alive_T: Tensor) -> list[Tensor]:
        """Coefficients that keep a trial unchanged that is not alive and has gradient 0."""
        raise NotImplementedError

    def change(self, group: Group, name: str, gradient: Tensor, *numbers: Tensor) -> None:
        raise NotImplementedError


class SGD(Rule):
    """torch.optim.SGD with momentum, Nesterov's or not, and weight decay."""

    num_states = 1

    def coefficients(self, group: Group, lr_ST: Tensor, step_S1: Tensor) -> list[Tensor]:
        return [lr_ST, group["momentum"], group.decay_T]

    def spared(self, numbers: list[Tensor], alive_T: Tensor) -> list[Tensor]:
        lr_T, momentum_T, decay_T = numbers
        return [lr_T, momentum_T * alive_T, decay_T * alive_T]

    def change(self, group: Group, name: str, gradient: Tensor, *numbers: Tensor) -> None:
        (lr, momentum, decay), (velocity,) = numbers, self.state[name]
        if group.decays:
            gradient.addcmul_(decay, self.parameters[name])
        torch.addcmul(gradient, momentum, velocity, out=velocity)
        step = gradient.addcmul_(momentum, velocity) if group.settings[0]["nesterov"] else velocity
        self.parameters[name].addcmul_(lr, step, value=-1)


class PlainSGD(SGD):
    """The update if no trial has momentum."""

    num_states = 0

    def change(self, group: Group, name: str, gradient: Tensor, *numbers: Tensor) -> None:
        lr, _, decay = numbers
        if group.decays:
            gradient.addcmul_(decay, self.parameters[name])
        self.parameters[name].addcmul_(lr, gradient, value=-1)


class Adam(Rule):
    """torch.optim.Adam in fewer passes over the memory.

    With a = 1 / (step size * root of bias correction 2) and b = eps / step size, both numbers per trial, the update is
    -m / (a * root(v) + b): that of the documentation, with numerator and denominator divided by the step size.
    """

    num_states = 2
    is_decoupled = False

    def coefficients(self, group: Group, lr_ST: Tensor, step_S1: Tensor) -> list[Tensor]:
        beta1_T, beta2_T = group["betas"].unbind(1)
        size_ST = lr_ST.clamp(min=LEAST_LR) / (1 - beta1_T**step_S1)
        a_ST = 1 / (size_ST * (1 - beta2_T**step_S1).sqrt())
        decay_ST = 1 - lr_ST * group.decay_T if self.is_decoupled else group.decay_T
        return [a_ST, group["eps"] / size_ST, 1 - beta1_T, 1 - beta2_T, decay_ST]

    def spared(self, numbers: list[Tensor], alive_T: Tensor) -> list[Tensor]:
        """A gradient of 0 that replaces the moments entirely makes them 0, and the update too."""
        a_T, b_T, new1_T, new2_T, decay_T = numbers
        new1_T, new2_T = (torch.where(alive_T, new_T, 1.0) for new_T in (new1_T, new2_T))
        return [a_T, b_T, new1_T, new2_T, torch.where(alive_T, decay_T, float(self.is_decoupled))]

    def change(self, group: Group, name: str, gradient: Tensor, *numbers: Tensor) -> None:
        (a, b, new1, new2, decay), (first, second) = numbers, self.state[name]
        if group.decays and self.is_decoupled:
            self.parameters[name].mul_(decay)
        elif group.decays:
            gradient.addcmul_(decay, self.parameters[name])
        first.lerp_(gradient, new1)
        second.lerp_(gradient.square_(), new2)
        root = torch.sqrt(second, out=gradient)
        self.parameters[name].addcdiv_(first, torch.addcmul(b, a, root, out=root), value=-1)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2)."""

    is_decoupled = True


RULES: dict[type[torch.optim.Optimizer], type[Rule]] = {
    torch.optim.SGD: SGD,
    torch.optim.Adam: Adam,
    torch.optim.AdamW: AdamW,
}


def build_rule(parameters: Mapping[str, Tensor], optimizers: Sequence[torch.optim.Optimizer]) -> Rule:
    """The rule and settings of the trials' own optimizers, over stacked parameters."""
    settings = [optimizer.param_groups for optimizer in optimizers]
    rule = RULES[type(optimizers[0])]
    if rule is SGD and not any(group["momentum"] for groups in settings for group in groups):
        rule = PlainSGD
    return rule(parameters, settings)
