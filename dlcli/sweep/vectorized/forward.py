"""The logits of T trials from one batch: by `torch.func`, or by stacked layers.

Images are (B, C, H, W) if all trials see the same, otherwise (B, T, C, H, W); logits are (B, T, K).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.func import functional_call, vmap

from dlcli.sweep.vectorized.layers import repeated, stack_layers
from dlcli.sweep.vectorized.stack import Stack


class VmapForward:
    """Any network, unchanged: functional_call over the stacked tensors, mapped over the trials."""

    def __init__(self, stack: Stack):
        self.stack, self.network = stack, stack.template

    def __call__(self, images: Tensor) -> Tensor:
        in_dims = (0, 0, 1 if images.dim() == 5 else None)
        mapped = vmap(self._one, in_dims=in_dims, out_dims=1, randomness="different")
        return mapped(self.stack.parameters, self.stack.fixed, images)

    def _one(self, parameters: dict[str, Tensor], fixed: dict[str, Tensor], images_BCHW: Tensor) -> Tensor:
        return functional_call(self.network, (parameters, fixed), (images_BCHW,))


class LayersForward:
    """The forward of networks whose layers have a stacked form; raises CannotStack for others."""

    def __init__(self, stack: Stack):
        self.num_trials = stack.num_trials
        self.network, self.takes_shared = stack_layers(stack)

    def __call__(self, images: Tensor) -> Tensor:
        if images.dim() == 5:
            images = images.flatten(1, 2)
        elif not self.takes_shared:
            images = repeated(images, self.num_trials)
        return self.network(images).reshape(len(images), self.num_trials, -1)


Forward = VmapForward | LayersForward
FORWARDS: dict[str, Callable[[Stack], Forward]] = {"vmap": VmapForward, "layers": LayersForward}


class AsModel(nn.Module):
    """A forward in the role of a task's model: images (B, C, H, W) or (B, T*C, H, W) -> logits (B, T, K)."""

    def __init__(self, forward: Forward, num_trials: int, num_channels: int):
        super().__init__()
        self.stacked, self.num_trials, self.num_channels = forward, num_trials, num_channels

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1] != self.num_channels:
            images = images.unflatten(1, (self.num_trials, self.num_channels))
        return self.stacked(images)


def set_mode(network: nn.Module, training: bool, *, dropout: bool = True) -> None:
    """train() or eval(); dropout=False leaves its layers in evaluation, so that two ways can be compared."""
    network.train(training)
    if not dropout:
        for module in network.modules():
            if "Dropout" in type(module).__name__:
                module.eval()
