"""The training state that a checkpoint holds besides the weights to use, and how it is restored, by name.

Everything read is checked against the names, shapes and types of the training that was built for it: a state that
almost fits would continue silently wrong.

Shapes: tensors are whole, never shards: a weight, its raw or averaged copy and its optimizer state (momentum and the
like) are (*shape) of the parameter; an optimizer's counters are ().
"""

from __future__ import annotations

import copy
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from dlcli.datasets.batches.examples import Data
from dlcli.errors import CheckpointError, DataError, printable
from dlcli.optimizers.averaging import Average, NoAverage
from dlcli.runs.checkpoint import Checkpoint
from dlcli.tasks.task import Task

Averages = Mapping[str, Average | NoAverage]
Optimizers = Mapping[str, torch.optim.Optimizer]


@dataclass
class Progress:
    """The progress of a training; a checkpoint keeps all of it.

    step: updates done; evaluated: step of the last evaluation; scores: monitored scores, larger is better, None for
    NaN; evaluations: (step, epoch, scores) of each; sums: of the values since the last evaluation, by the weights of
    their batches (loop.weight_of), which add up to `examples`; best: the evaluation of the checkpoint `best`, None
    before there is one; seconds: of training so far.
    """

    step: int = 0
    evaluated: int = 0
    scores: list[float | None] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    examples: int = 0
    best: int | None = None
    seconds: float = 0.0

    @property
    def losses(self) -> list[float | None]:
        """The losses on the validation split, one per evaluation; None if the task has none."""
        return [evaluation["scores"].get("loss") for evaluation in self.evaluations]

    def epochs_since_evaluation(self, steps_per_epoch: int) -> float:
        last = self.evaluations[-1]["step"] if self.evaluations else 0
        return (self.step - last) / steps_per_epoch


# -------------------------------------------------------------------------------------------------------------- keeping


def gather(
    task: Task, averages: Averages, optimizers: Optimizers
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Weights to use (averaged if there is an average), the other tensors, and the optimizers' groups by phase.

    They are copies on the CPU, each (*shape) of its parameter or buffer: training may go on while they are written.
    """
    weights = {name: copied(tensor) for name, tensor in task.state_dict().items()}
    state: dict[str, Tensor] = {}
    for phase, average in averages.items():
        state |= {f"raw/{phase}/{name}": copied(p) for name, p in average.live.items()}
        weights |= {f"{phase}.{name}": copied(tensor) for name, tensor in average.shadow.items()}
    groups = {}
    for phase, optimizer in optimizers.items():
        tensors, groups[phase] = optimizer_tensors(phase, optimizer)
        state |= tensors
    return weights, state, groups


def copied(tensor: Tensor) -> Tensor:
    """The whole tensor (*shape) on the CPU; for a shard, all ranks call it together and get the whole tensor."""
    whole = tensor.detach()
    return (whole.full_tensor() if hasattr(whole, "full_tensor") else whole).to("cpu", copy=True)


def optimizer_tensors(phase: str, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """An optimizer's state as tensors (*shape) or () by parameter name, and its groups as plain data."""
    tensors = {}
    groups = []
    for group in optimizer.param_groups:
        plain = {k: _plain(v) for k, v in group.items() if k != "params"}
        groups.append(plain)
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{phase}/{name}/{key}"] = copied(torch.as_tensor(value))
    return tensors, groups


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value.item() if isinstance(value, Tensor) else value


# ------------------------------------------------------------------------------------------------------------ restoring


def check_weights(module: torch.nn.Module, weights: Mapping[str, Tensor], where: Path) -> None:
    """Raise CheckpointError unless names, shapes and dtypes are those of the module (it may be on the meta device)."""
    wanted = module.state_dict()
    wrong = [f"{printable(n)} is missing" for n in wanted if n not in weights]
    wrong += [f"{printable(n)} is not of this model" for n in weights if n not in wanted]
    for name in wanted.keys() & weights.keys():
        have, want = weights[name], wanted[name]
        if have.shape != want.shape or have.dtype != want.dtype:
            wrong.append(f"{name} is {_shape(have)} and should be {_shape(want)}")
    if wrong:
        message = f"{printable(where)} belongs to another model: {'; '.join(sorted(wrong)[:5])}"
        raise CheckpointError(
            message, hint="A file may have been swapped. Use a checkpoint of this run: dlcli runs show RUN"
        )


def _shape(tensor: Tensor) -> str:
    return f"{'x'.join(map(str, tensor.shape)) or 'scalar'} {str(tensor.dtype).removeprefix('torch.')}"


@torch.no_grad()
def restore_weights(task: Task, averages: Averages, saved: Checkpoint) -> None:
    """Restore the averages, and the raw weights (*shape) that go on training. ValueError if they do not fit."""
    load_weights(task, saved.weights)
    for phase, average in averages.items():
        average.num_updates = int(saved.manifest.state["averages"][phase])
        for name, live in average.live.items():
            raw = saved.state[f"raw/{phase}/{name}"]
            average.shadow[name].copy_(live)
            if raw.shape != live.shape or raw.dtype != live.dtype:
                raise ValueError(f"{phase}/{name} before averaging has another shape or dtype")
            live.copy_(raw)


def are_scores(plain: Any) -> bool:
    """Return whether it is a dict of numbers; None means NaN."""
    return isinstance(plain, dict) and all(value is None or type(value) in (int, float) for value in plain.values())


def stored_progress(plain: Any, step: int) -> Progress:
    """A Progress from a checkpoint of `step`, checked for its types. Raises ValueError if it is not one."""
    progress = TypeAdapter(Progress).validate_json(json.dumps(plain), strict=True)
    numbers = [e.get(key) for e in progress.evaluations for key in ("step", "epoch")]
    scores = [e.get("scores") for e in progress.evaluations]
    if progress.step != step or not all(type(n) is int for n in numbers):
        raise ValueError("its progress is not that of its step")
    if len(scores) != len(progress.scores) or not all(are_scores(s) for s in scores):
        raise ValueError("its scores are not those of its evaluations")
    if progress.best is not None and not 0 <= progress.best < len(scores):
        raise ValueError("its best evaluation is none of its evaluations")
    if not 0 <= progress.evaluated <= step or progress.examples < 0 or (progress.sums and not progress.examples):
        raise ValueError("its sums are not those of its step")
    return progress


def restore_optimizer(
    phase: str, optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor], groups: Any, where: Path
) -> None:
    """The reverse of `optimizer_tensors`, by name. Raises CheckpointError if the parameters are not the same."""
    try:
        names = [name for group in optimizer.param_groups for name in group["param_names"]]
        if [name for group in groups for name in group["param_names"]] != names:
            raise CheckpointError(
                f"{printable(where)}: the optimizer's state is of other parameters than the {phase}'s"
            )
        prefix = f"optimizer/{phase}/"
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        stored: dict[int, dict[str, Tensor]] = {}
        for full_name, tensor in state.items():
            if full_name.startswith(prefix):
                name, _, key = full_name.removeprefix(prefix).rpartition("/")
                index = names.index(name)
                stored.setdefault(index, {})[key] = laid_out_like(parameters[index], tensor)
        _check_optimizer_state(optimizer, stored, parameters)
        numbered, at = [], 0
        for group, saved in zip(optimizer.param_groups, groups, strict=True):
            size = len(group["params"])
            _check_group(group, saved)
            restored = {k: tuple(v) if isinstance(group.get(k), tuple) else v for k, v in saved.items()}
            numbered.append({**restored, "params": list(range(at, at + size))})
            at += size
        optimizer.load_state_dict({"state": stored, "param_groups": numbered})
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"{printable(where)}: the optimizer's state cannot be restored: {printable(error)}"
        ) from error


def laid_out_like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """A state tensor of the parameter's shape, in its memory format, or as this rank's shard: fused optimizers walk
    both in the order of memory. Other shapes, such as counters (), do not change.
    """
    if tensor.shape != parameter.shape:
        return tensor
    if hasattr(parameter, "full_tensor"):
        from dlcli.runtime.sharding import shard_like

        return shard_like(tensor, parameter)
    return torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)


def load_weights(task: Task, weights: Mapping[str, Tensor]) -> None:
    """Load whole tensors (*shape) into the task; each rank takes its part. Raises RuntimeError if they do not fit."""
    if not any(hasattr(p, "full_tensor") for p in task.parameters()):
        task.load_state_dict(weights)
        return
    from dlcli.runtime.sharding import load_full

    load_full(task, weights)


def _check_optimizer_state(
    optimizer: torch.optim.Optimizer, stored: Mapping[int, Mapping[str, Tensor]], parameters: list[torch.nn.Parameter]
) -> None:
    """Raise ValueError unless each parameter's state has the names, shapes and dtypes the optimizer would give it."""
    probe = torch.nn.Parameter(torch.zeros(2, 3, dtype=parameters[0].dtype, device=parameters[0].device))
    probe.grad = torch.zeros_like(probe)
    trial = copy.copy(optimizer)
    trial.state, trial.param_groups = defaultdict(dict), [{**optimizer.param_groups[0], "params": [probe]}]
    trial.step()
    wanted = {key: torch.as_tensor(value) for key, value in trial.state[probe].items()}
    for index, tensors in stored.items():
        if tensors.keys() != wanted.keys():
            raise ValueError(f"it holds {', '.join(sorted(tensors))}, not {', '.join(sorted(wanted))}")
        for key, tensor in tensors.items():
            shapes = {(): torch.Size(), (2, 3): parameters[index].shape}
            shape = shapes.get(tuple(wanted[key].shape), tensor.shape)
            if tensor.shape != shape or tensor.dtype != wanted[key].dtype:
                raise ValueError(f"{key} is {_shape(tensor)} beside a parameter of {_shape(parameters[index])}")


def _check_group(group: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Raise ValueError unless a stored parameter group has settings of the kinds that the optimizer's own has."""
    for key in ("lr", "initial_lr"):
        if not _is_alike(saved[key], 1.0):
            raise ValueError(f"{key} is {printable(saved[key])}")
    for key in group.keys() & saved.keys() - {"params", "param_names"}:
        if not _is_alike(saved[key], group[key]):
            raise ValueError(f"{key} is {printable(saved[key])} and should be like {printable(group[key])}")


def _is_alike(saved: Any, own: Any) -> bool:
    if saved is None or own is None:  # foreach, fused: left open, or true or false
        return saved is own or isinstance(own if saved is None else saved, bool)
    if isinstance(own, tuple | list):
        return isinstance(saved, list) and len(saved) == len(own) and all(map(_is_alike, saved, own))
    if isinstance(own, bool | str):
        return type(saved) is type(own)
    return isinstance(saved, int | float) and not isinstance(saved, bool)


def check_same_data(saved: Checkpoint, data: Data) -> None:
    """Raise an error unless the data are those that the training began with: another split would mix two scores.

    The test split may differ: nothing is selected on it, and `dlcli eval` says so.
    """
    here, before = data.fingerprints(), saved.manifest.data
    for split in ("train", "val"):
        now, then = (str(found.get(split))[:12] for found in (here, before))
        if here.get(split) != before.get(split):
            what = {"train": "training", "val": "validation"}[split]
            raise DataError(
                f"the {what} data are not those of the run (fingerprint {now}, it was {then})",
                hint="Name the folder that holds them: dlcli resume RUN dataset.root=PATH",
            )
