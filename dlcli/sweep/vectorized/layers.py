"""Layers that compute T trials at once: the trials are side by side in the channels.

Images and feature maps are (B, T*C, H, W), trial after trial; vectors are (B, T*F), or (B, T, F) after a linear layer.
Layers that work on each element, or pool over rows and columns, run unchanged. If all trials see the same images, the
first layer takes them once, as (B, C, H, W): one convolution of C channels to T*C', one product with T*F' columns.

A network whose own code mixes channels in another way would be wrong here: `probe.py` compares before it chooses.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcli.sweep.vectorized.stack import PerTrialDropout, Stack, replace


class CannotStack(Exception):
    """Raised for a network without a stacked form; the message says why."""


class StackedLayer(nn.Module):
    """tensors: short name -> (T, ...) of the replaced layer; not registered, because they belong to the Stack."""

    def __init__(self, layer: nn.Module, tensors: Mapping[str, Tensor], num_trials: int):
        super().__init__()
        self.num_trials = num_trials
        for name in (*layer._parameters, *layer._buffers):
            setattr(self, name, tensors.get(name))


class StackedLinear(StackedLayer):
    """(B, F) shared by all, (B, T*F) or (B, T, F) -> (B, T, F'), without a copy from one linear layer to the next."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear, tensors: Mapping[str, Tensor], num_trials: int):
        super().__init__(layer, tensors, num_trials)
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 2 and x.shape[1] == self.in_features:
            bias = None if self.bias is None else self.bias.flatten()
            wide = F.linear(x, self.weight.flatten(0, 1), bias)
            return wide.unflatten(1, (self.num_trials, self.out_features))
        # Weights on the left, so that their gradient comes out in their own order; otherwise it would be copied.
        x_TFB = x.reshape(len(x), self.num_trials, self.in_features).permute(1, 2, 0)
        if self.bias is None:
            return torch.bmm(self.weight, x_TFB).permute(2, 0, 1)
        return torch.baddbmm(self.bias[:, :, None], self.weight, x_TFB).permute(2, 0, 1)


class StackedConv2d(StackedLayer):
    """(B, C, H, W) shared by all, or (B, T*C, H, W) -> (B, T*C', H', W'): one convolution with T times the groups."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Conv2d, tensors: Mapping[str, Tensor], num_trials: int):
        if layer.padding_mode != "zeros":
            raise CannotStack(f"a convolution has padding_mode={layer.padding_mode}")
        super().__init__(layer, tensors, num_trials)
        self.in_channels, self.groups = layer.in_channels, layer.groups
        self.settings = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}

    def forward(self, x: Tensor) -> Tensor:
        groups = self.groups * self.num_trials
        if x.shape[1] == self.in_channels:
            if self.groups == 1:
                groups = 1
            else:
                x = repeated(x, self.num_trials)
        bias = None if self.bias is None else self.bias.flatten()
        return F.conv2d(x, self.weight.flatten(0, 1), bias, groups=groups, **self.settings)  # type: ignore[arg-type]


class StackedBatchNorm(StackedLayer):
    """Batch norm of T times the channels, of maps (B, T*C, H, W) or vectors (B, T*F) or (B, T, F)."""

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(self, layer: nn.BatchNorm1d | nn.BatchNorm2d, tensors: Mapping[str, Tensor], num_trials: int):
        if layer.momentum is None:
            raise CannotStack("a batch norm has momentum=None, a cumulative average")
        super().__init__(layer, tensors, num_trials)
        self.num_features, self.momentum, self.eps = layer.num_features, layer.momentum, layer.eps

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 3 and x.shape[1] == self.num_features:
            x = repeated(x, self.num_trials)
        tensors = (self.running_mean, self.running_var, self.weight, self.bias)
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
        wide = x.flatten(1) if x.dim() == 3 else x
        mean, var, weight, bias = (None if tensor is None else tensor.flatten() for tensor in tensors)
        out = F.batch_norm(wide, mean, var, weight, bias, self.training or mean is None, self.momentum, self.eps)
        return out.view(x.shape)


class StackedDropout(StackedLayer):
    """Dropout with a share per trial; p: (T,) float."""

    p: Tensor

    def __init__(self, layer: PerTrialDropout, tensors: Mapping[str, Tensor], num_trials: int):
        super().__init__(layer, tensors, num_trials)
        self.kept = [1 - p for p in self.p.tolist()]

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        shape_BTF = (len(x), self.num_trials, x[0].numel() // self.num_trials)
        if (
            x.device.type == "cpu"
        ):  # bernoulli_ with one share is several times faster here than rand, or than bernoulli_ with many shares
            noise_BTF = x.new_empty(shape_BTF)
            for trial, kept in enumerate(self.kept):
                noise_BTF[:, trial].bernoulli_(kept).div_(kept)
        else:
            p_T1 = self.p[:, None]
            noise_BTF = (torch.rand(shape_BTF, device=x.device) >= p_T1).to(x.dtype) / (1 - p_T1).to(x.dtype)
        return x * noise_BTF.view(x.shape)


FORMS: dict[type[nn.Module], type[StackedLayer]] = {
    nn.Linear: StackedLinear,
    nn.Conv2d: StackedConv2d,
    nn.BatchNorm1d: StackedBatchNorm,
    nn.BatchNorm2d: StackedBatchNorm,
    PerTrialDropout: StackedDropout,
}
TAKES_SHARED = (nn.Linear, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d)


def repeated(x: Tensor, num_trials: int) -> Tensor:
    """(B, C, ...) seen by all trials -> (B, T*C, ...)."""
    return x.unsqueeze(1).expand(-1, num_trials, *x.shape[1:]).flatten(1, 2)


def stack_layers(stack: Stack) -> tuple[nn.Module, bool]:
    """The template with its layers stacked over the Stack's tensors; and whether it takes shared images once.

    Raises CannotStack for a layer with tensors that has no stacked form.
    """
    network, tensors = deepcopy(stack.template), stack.tensors()
    swapped: dict[nn.Module, nn.Module] = {}
    for name, module in list(network.named_modules(remove_duplicate=False)):
        form = FORMS.get(type(module))
        if form is None:
            if module._parameters or module._buffers:
                raise CannotStack(f"{type(module).__name__} ({name or 'the network itself'}) has no stacked form")
            continue
        if module not in swapped:
            prefix = f"{name}." if name else ""
            own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.rpartition(".")[0] == name}
            swapped[module] = form(module, own, stack.num_trials)
        if not name:
            return swapped[module], True
        replace(network, name, swapped[module])
    first = next((m for m in stack.template.modules() if "Dropout" in type(m).__name__ or type(m) in FORMS), None)
    return network, isinstance(first, TAKES_SHARED)
