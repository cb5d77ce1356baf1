"""Splits networks that one device cannot hold over all ranks: weights, gradients and optimizer states in shards.

    ranks = shard(task, task.phases, ranks)                          # by torch's fully_shard: each rank has its batches
    ranks = parallelize(network, network.tensor_parallel_plan(), ranks)  # by layers: all ranks the same batches

Both work in place, after the network is on its device and before optimizers are built; names do not change. A
checkpoint holds whole tensors: `full_tensors` gathers them from the shards, `load_full` and `shard_like` do the
reverse, so that one device can load what many have saved.

Shapes: a whole tensor is (N, ...), its shard about (N / R, ...) on each of R ranks; a linear layer's weight (O, I) is
(O / R, I) if split "colwise", (O, I / R) if split "rowwise". Losses and norms are ().
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from dlcli.errors import ConfigError
from dlcli.runtime.ranks import Ranks, SingleProcess

SMALLEST_SHARD = 100_000  # parameters: a layer that large is gathered separately, so that few are whole at a time


class Sharded(Ranks):
    """Ranks whose networks are sharded: fully_shard averages the gradients itself, in the backward pass."""

    _typical_examples: float | None = None

    def weigh(self, loss: Tensor, num_examples: int) -> Tensor:
        """The loss (), times this rank's examples, over their usual number, which keeps it in fp16's range.

        fully_shard gives every rank's gradient the same weight: so the loss must carry the weight of a rank with more
        or fewer examples than the others.
        """
        if self._typical_examples is None:
            self._typical_examples = max(1.0, self.agree([num_examples])[0])
        return loss * (num_examples / self._typical_examples)

    @torch.no_grad()
    def average_gradients(self, parameters: Iterable[nn.Parameter], loss: Tensor, num_examples: int) -> Tensor:
        """Turn the mean over ranks into the mean over examples; their mean loss, (). Every rank has examples."""
        share = num_examples / (self._typical_examples or 1.0)
        totals = torch.stack([loss.detach().double() * share, torch.full_like(loss, share, dtype=torch.float64)])
        self.sum_in_place(totals)
        gradients = [local(p.grad) for p in parameters if p.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, (self.world_size / totals[1]).to(gradients[0].dtype))
        return (totals[0] / totals[1]).to(loss.dtype)

    @torch.no_grad()
    def clip_gradients(self, parameters: Iterable[nn.Parameter], clip_norm: float) -> Tensor:
        """Like torch's clip_grad_norm_, which cannot mix sharded parameters with whole ones; the norm before, ()."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        squares = torch.stack([g.square().sum().double() for g in norms_of_shards(gradients)])
        self.sum_in_place(squares[:1])
        norm = squares.sum().sqrt().float()
        scale = (clip_norm / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_([local(g) for g in gradients], scale)
        return norm


class Split(Sharded):
    """Ranks with a part of every layer each: all see the same batches, and whole parameters get the same gradients."""

    def __init__(self, ranks: Ranks):
        super().__init__(ranks.place, timeout_s=ranks.timeout_s)
        self.data_rank, self.num_data_ranks = 0, 1

    def weigh(self, loss: Tensor, num_examples: int) -> Tensor:
        return loss

    def average_gradients(self, parameters: Iterable[nn.Parameter], loss: Tensor, num_examples: int) -> Tensor:
        return loss.detach()


def norms_of_shards(gradients: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """The norms of the gradients of which this rank has a part, (k,), and of those that every rank has whole, (n,)."""
    parts: list[Tensor] = []
    wholes: list[Tensor] = []
    for gradient in gradients:
        is_part = isinstance(gradient, DTensor) and any(p.is_shard() for p in gradient.placements)
        (parts if is_part else wholes).append(local(gradient))
    device = (parts or wholes)[0].device
    norms = [torch._foreach_norm(some) if some else [torch.zeros((), device=device)] for some in (parts, wholes)]
    return torch.stack(tuple(norms[0])), torch.stack(tuple(norms[1]))


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor (N, ...); it shares the memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


# ------------------------------------------------------------------------------------------------------------ in place


def shard(task: nn.Module, phases: Iterable[str], ranks: SingleProcess | Ranks) -> SingleProcess | Ranks:
    """Shard each phase's network over the ranks; the ranks to train with from now on.

    Large members of lists of layers (Transformer blocks, stages) are gathered one at a time, the rest at once. From
    then on all ranks must run the network equally often, in evaluation too: each use gathers its weights.
    """
    if isinstance(ranks, SingleProcess):
        return ranks
    for phase in phases:
        network = getattr(task, phase)
        mesh = mesh_of(network, ranks)
        for module in [*large_members(network), network]:
            fully_shard(module, mesh=mesh)
    return Sharded(ranks.place, timeout_s=ranks.timeout_s)


def large_members(network: nn.Module) -> list[nn.Module]:
    """The members of lists and sequences of layers, at any depth and inner ones first, that are large enough to be
    gathered separately.
    """
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList | nn.Sequential)]
    members = [member for module in reversed(lists) for member in module.children()]
    return [m for m in members if sum(p.numel() for p in m.parameters()) >= SMALLEST_SHARD]


def parallelize(network: nn.Module, plan: Mapping[str, str], ranks: SingleProcess | Ranks) -> SingleProcess | Ranks:
    """Split linear layers over the ranks; the ranks to train with from now on. All see the same batches.

    plan: name of a layer -> "colwise" (its outputs are split) or "rowwise" (its inputs are split, its outputs summed).
    The network's `heads` must be a multiple of the ranks, since each part has whole heads; otherwise ConfigError.
    """
    if isinstance(ranks, SingleProcess):
        return ranks
    size = ranks.world_size
    heads = getattr(network, "num_heads", size)
    if isinstance(heads, int) and heads % size:
        raise ConfigError(
            f"model.num_heads={heads} cannot be split over {size} devices",
            hint=f"Choose model.num_heads as a multiple of {size}, or runtime.devices as a divisor of {heads}.",
        )
    layers: dict[str, ParallelStyle] = {
        name: {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}[how]() for name, how in plan.items()
    }
    for name, how in plan.items():
        layer = network.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        split = layer.out_features if how == "colwise" else layer.in_features
        if split % size:
            message = (
                f"{name} has {split} {'outputs' if how == 'colwise' else 'inputs'}, not a multiple of {size} devices"
            )
            raise ConfigError(message, hint="Choose the model's widths as multiples of runtime.devices.")
    parallelize_module(network, mesh_of(network, ranks), layers)
    return Split(ranks)


def mesh_of(network: nn.Module, ranks: Ranks) -> DeviceMesh:
    return init_device_mesh(next(network.parameters()).device.type, (ranks.world_size,))


def optimizer_settings(parameters: Iterable[nn.Parameter]) -> dict[str, bool]:
    """The optimizer options for such parameters: fused kernels do not support shards (SGD's in 2.15), and `foreach`
    ones no mixture of sharded and whole parameters; by itself, torch would take the slow way for sharded ones.
    """
    return {"fused": False, "foreach": len({isinstance(p, DTensor) for p in parameters}) == 1}


# --------------------------------------------------------------------------------------------------------- checkpoints


@torch.no_grad()
def full_tensors(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the whole tensors (N, ...) on the CPU. All ranks call it, with the same names in the same order."""
    full = {}
    for name, tensor in named.items():
        whole = tensor.detach()
        if isinstance(whole, DTensor):
            whole = whole.full_tensor()
        full[name] = whole.to("cpu", copy=True)
    return full


@torch.no_grad()
def load_full(live: nn.Module | Mapping[str, Tensor], full: Mapping[str, Tensor]) -> None:
    """Copy whole tensors (N, ...) into a module's parameters and buffers, sharded or not; each rank takes its part."""
    for name, tensor in (live.state_dict() if isinstance(live, nn.Module) else live).items():
        tensor.copy_(shard_like(full[name], tensor))


def shard_like(full: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a whole tensor (N, ...), if `like` is sharded and has its shape; otherwise the tensor itself.

    An optimizer's state has the shape of its parameter, except for counters (). Nothing is sent: every rank has the
    whole.
    """
    if not isinstance(like, DTensor) or full.shape != like.shape:
        return full
    part = distribute_tensor(full.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return part.clone()  # a view would keep the whole tensor in memory
