"""The tensors of T networks of one architecture, stacked: each parameter and buffer as (T, *its shape)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from dlcli.errors import ConfigError

Tensors = Mapping[str, Tensor]
PLAIN = (bool, int, float, str, tuple, type(None))


class PerTrialDropout(nn.Module):
    """nn.Dropout with a tensor as its share, so that it may differ from trial to trial. p: () float, in [0, 1)."""

    def __init__(self, p: float):
        super().__init__()
        self.p: Tensor
        self.register_buffer("p", torch.tensor(float(p)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * (torch.rand_like(x, dtype=torch.float32) >= self.p) / (1 - self.p)


class Stack:
    """T networks as one set of tensors, on a device.

    parameters: name -> (T, ...) leaf that requires a gradient; fixed: buffers and frozen parameters, name -> (T, ...).
    template: one of the networks, for its structure alone.
    """

    def __init__(self, networks: Sequence[nn.Module], device: torch.device):
        networks = with_tensor_dropout(networks)
        check_alike(networks)
        self.template, self.num_trials = networks[0], len(networks)
        self.parameters = _stacked([_trained(network) for network in networks], device)
        self.fixed = _stacked([_fixed(network) for network in networks], device)
        for parameter in self.parameters.values():
            parameter.requires_grad_()
        self._state_names = _state_names(self.template)

    def tensors(self) -> dict[str, Tensor]:
        """The parameters and fixed tensors themselves, under every name that the network has for them."""
        own = {**self.parameters, **self.fixed}
        return {name: own[first] for name, first in _first_names(self.template).items()}

    def copy(self, tensors: Tensors | None = None) -> dict[str, Tensor]:
        """Copies of all tensors, or of some."""
        now = {**self.parameters, **self.fixed} if tensors is None else tensors
        return {name: tensor.detach().clone() for name, tensor in now.items()}

    @torch.no_grad()
    def keep(self, kept: Tensors, where_T: Tensor) -> None:
        """Overwrite a `copy` with the current tensors, for the trials where where_T (T,) bool is true."""
        now = {**self.parameters, **self.fixed}
        for name, tensor in kept.items():
            tensor.copy_(torch.where(shaped(where_T, tensor), now[name], tensor))

    @contextmanager
    def using(self, tensors: Tensors) -> Iterator[None]:
        """Within the block the stack has the values of `tensors`, a `copy` or parameters alone."""
        own = {**self.parameters, **self.fixed}
        before = self.copy({name: own[name] for name in tensors})
        self._overwrite(tensors)
        try:
            yield
        finally:
            self._overwrite(before)

    @torch.no_grad()
    def _overwrite(self, tensors: Tensors) -> None:
        own = {**self.parameters, **self.fixed}
        for name, tensor in tensors.items():
            own[name].copy_(tensor)

    def unstack(self, tensors: Tensors, trial: int, prefix: str = "") -> dict[str, Tensor]:
        """One trial's ordinary state dict, on the CPU, from a `copy`."""
        return {
            prefix + name: tensors[first][trial].cpu().clone(memory_format=torch.contiguous_format)
            for name, first in self._state_names.items()
        }


def shaped(values_T: Tensor, like: Tensor) -> Tensor:
    """(T,) as (T, 1, ...), to multiply with a stacked tensor."""
    return values_T.view(-1, *[1] * (like.dim() - 1))


def _stacked(named: Sequence[Mapping[str, Tensor]], device: torch.device) -> dict[str, Tensor]:
    return {name: torch.stack([own[name].detach() for own in named]).to(device) for name in named[0]}


def _trained(network: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


def _fixed(network: nn.Module) -> dict[str, Tensor]:
    frozen = {name: p for name, p in network.named_parameters() if not p.requires_grad}
    return {**frozen, **dict(network.named_buffers())}


def _all_named(network: nn.Module) -> dict[str, Tensor]:
    """All names, also the other names of tied tensors."""
    buffers = dict(network.named_buffers(remove_duplicate=False))
    return {**dict(network.named_parameters(remove_duplicate=False)), **buffers}


def _first_names(network: nn.Module) -> dict[str, str]:
    """Every name of a parameter or buffer -> the name under which it is stacked."""
    first = {id(tensor): name for name, tensor in reversed({**_trained(network), **_fixed(network)}.items())}
    return {name: first[id(tensor)] for name, tensor in _all_named(network).items()}


def _state_names(network: nn.Module) -> dict[str, str]:
    """Every name of the state dict -> the name under which it is stacked."""
    first = _first_names(network)
    return {name: first[name] for name in network.state_dict()}


def with_tensor_dropout(networks: Sequence[nn.Module]) -> list[nn.Module]:
    """The networks; if the share of an nn.Dropout differs among them, they are copied and take it from a tensor."""
    shares = {name: [_share_at(network, name) for network in networks] for name in _dropouts(networks[0])}
    differing = {name: own for name, own in shares.items() if len(set(own)) > 1 and None not in own}
    if not differing:
        return [deepcopy(networks[0]), *networks[1:]]
    copies = [deepcopy(network) for network in networks]
    for name, own in differing.items():
        for network, share in zip(copies, own, strict=True):
            replace(network, name, PerTrialDropout(share or 0.0))
    return copies


def _dropouts(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if type(module) is nn.Dropout and name]


def _share_at(network: nn.Module, name: str) -> float | None:
    found = dict(network.named_modules()).get(name)
    return float(found.p) if isinstance(found, nn.Dropout) else None


def replace(network: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module at a dotted name."""
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, module)


def check_alike(networks: Sequence[nn.Module]) -> None:
    """Raise ConfigError unless the networks differ only in the values of tensors."""
    first = _structure(networks[0])
    for number, network in enumerate(networks):
        other = _structure(network)
        for key in {**first, **other}:
            if first.get(key) != other.get(key):
                message = f"{key} is {first.get(key)} in trial 0 and {other.get(key)} in trial {number}"
                raise ConfigError(
                    f"the networks cannot be trained together: {message}",
                    hint="Train them one by one, or in two groups.",
                )


def _structure(network: nn.Module) -> dict[str, Any]:
    """Names of modules, tensors and settings -> types, shapes and values."""
    found: dict[str, Any] = {}
    for name, module in network.named_modules():
        at = f"{name or 'network'} ({type(module).__name__})"
        found[name] = at
        plain = {k: v for k, v in vars(module).items() if isinstance(v, PLAIN) and k != "training"}
        found |= {f"{at}.{key}": value for key, value in plain.items()}
    for name, tensor in _all_named(network).items():
        found[f"the shape of {name}"] = (tuple(tensor.shape), tensor.dtype, tensor.requires_grad)
    return found
