"""Builds objects from configs; no other module does.

A node of the config names its class by `_target_`; only a target in a YAML file of the conf search path may be built,
compared as an exact string before anything is imported. So nothing in a checkpoint's config can reach `os.system`,
`torch.load` or `torch.hub.load`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import nn

from dlcli.datasets.batches.examples import Data, Examples, LabelledImages, split_validation
from dlcli.datasets.batches.pixels import Pixels
from dlcli.datasets.batches.records import Records
from dlcli.datasets.batches.residency import choose_residency, compare, num_bytes
from dlcli.datasets.batches.source import EvalSource, Share, TrainSource
from dlcli.datasets.kinds import kind_of
from dlcli.errors import CheckpointError, ConfigError, EnvironmentFault, printable
from dlcli.optimizers.averaging import Average, NoAverage
from dlcli.optimizers.groups import build_optimizer
from dlcli.optimizers.penalties import L1, Penalty, add_auxiliary, has_auxiliary
from dlcli.optimizers.schedules import Schedule
from dlcli.optimizers.stepping import spare_compiler
from dlcli.runtime.device import Runtime
from dlcli.runtime.ranks import Ranks, SingleProcess
from dlcli.tasks.task import Task
from dlcli.training.allow_list import Builder, Tree
from dlcli.training.eval_batch import eval_batch_size

LARGEST_NETWORK = (
    20_000_000_000  # parameters; a stored config that asks for more is refused before anything is allocated
)
SHOWN_IMAGES = 2_000  # at most, to a network that prepares itself


# ------------------------------------------------------------------------------------------------------------ the parts


def build_networks(builder: Builder, model: Tree) -> dict[str, nn.Module]:
    """Build the network of a model node as {"model": ...}, or several networks by name."""
    if "_target_" in model:
        return {"model": builder.build(model)}
    return {name: builder.build(node) for name, node in model.items() if name != "facts"}


def build_task(builder: Builder, tree: Tree, *, teacher: Tree | None = None) -> Task:
    """Build the task with its networks, freshly initialised from torch's global generator.

    teacher: the model node of the network to learn from, if the task has one.
    """
    live: dict[str, Any] = build_networks(builder, tree["model"])
    if "teacher" in tree["task"]:
        if teacher is None:
            raise CheckpointError("the run does not say which network its teacher is", hint="Train it again.")
        live["teacher"] = build_networks(builder, teacher)["model"]
    return builder.build(tree["task"], **live)


def build_meta_task(
    builder: Builder, tree: Tree, *, teacher: Tree | None = None, largest: float = LARGEST_NETWORK
) -> Task:
    """Build the task without memory: shapes and names only. Raises ConfigError if they do not fit together.

    largest: parameters and buffers, in numbers; inf where nothing is going to be allocated.
    """
    try:
        with torch.device("meta"):
            task = build_task(builder, tree, teacher=teacher)
        size = num_numbers(task)
    except (RuntimeError, ValueError, OverflowError, MemoryError) as error:
        raise ConfigError(f"the model cannot be built: {first_line(error)}", hint="dlcli config show") from error
    if size > largest:
        message = f"the model has {size:,} parameters and buffers, more than {largest:,}"
        raise ConfigError(message, hint="Choose a smaller model: dlcli list model")
    return task


def num_numbers(task: Task) -> int:
    """Count the numbers in parameters and buffers: the memory needed before anything is computed."""
    return sum(tensor.numel() for tensor in chain(task.parameters(), task.buffers()))


def first_line(error: BaseException) -> str:
    """Return the first line of an error, for a message."""
    return printable((str(error) or type(error).__name__).splitlines()[0])


def build_data(builder: Builder, tree: Tree) -> Data:
    return builder.build(tree["dataset"]["reader"])


def build_augmentation(builder: Builder, tree: Tree) -> Any:
    """Build the augmentation; None if every setting is off or none applies to this kind of data."""
    if not kind_of(tree["dataset"]).is_augmented:
        return None
    augment = builder.build(tree["augmentation"])
    return None if augment.is_identity else augment


def split_training(tree: Tree, data: Data) -> tuple[torch.Tensor, Examples, torch.Tensor]:
    """Split by the run's seed: indices to train on, examples to validate on and their indices; never the test split."""
    if data.val is not None:
        return torch.arange(len(data.train)), data.val, torch.arange(len(data.val))
    wanted = tree["dataset"]["val_size"]
    val_size = wanted if isinstance(wanted, int) else max(1, round(wanted * len(data.train)))
    train, val = split_validation(len(data.train), val_size, tree["seed"])
    return train, data.train, val


def build_train_source(
    builder: Builder,
    tree: Tree,
    examples: Examples,
    indices: torch.Tensor,
    device: torch.device,
    *,
    share: Share = (0, 1),
) -> tuple[TrainSource, str]:
    """Choose the source of training batches; return it with the reason for the choice."""
    settings = tree["dataset"]
    is_resident, reason = _residency(examples, settings, device)
    source = TrainSource(
        examples,
        indices,
        batch_size=settings["batch_size"],
        accumulate=tree["trainer"]["accumulate_grad_batches"],
        seed=tree["seed"],
        device=device,
        **_reading(settings),
        augment=build_augmentation(builder, tree),
        resident=is_resident,
        share=share,
    )
    return source, reason


def _residency(examples: Examples, settings: Tree, device: torch.device) -> tuple[bool, str]:
    if isinstance(examples, Records):
        return True, compare(examples.nbytes, device)[1]
    setting, workers = settings["in_memory"], settings["num_workers"]
    return choose_residency(num_bytes(examples), setting, workers, device)


def _reading(settings: Tree) -> dict[str, Any]:
    """How labelled images are read; other data have none of it."""
    arguments = {"mean": "mean", "std": "std", "num_workers": "workers"}
    return {arguments[name]: settings[name] for name in arguments if name in settings}


def build_eval_source(
    tree: Tree,
    examples: Examples,
    indices: torch.Tensor | None,
    device: torch.device,
    *,
    share: Share = (0, 1),
    activations: float = 0.0,
) -> EvalSource:
    """activations: bytes per example, as `check_shapes` gives them."""
    settings, chosen = tree["dataset"], tree["dataset"]["eval_batch_size"]
    is_resident, _ = _residency(examples, settings, device)
    return EvalSource(
        examples,
        torch.arange(len(examples)) if indices is None else indices,
        batch_size=eval_batch_size(activations, device) if chosen == "auto" else chosen,
        device=device,
        **_reading(settings),
        resident=is_resident,
        share=share,
    )


def prepare_networks(task: Task, tree: Tree, data: Data) -> None:
    """Show some normalised training images to each freshly built network that has a method `prepare`.

    A loaded network does not need this: its weights are prepared already.
    """
    networks = [network for phase in task.phases if hasattr(network := getattr(task, phase), "prepare")]
    if not networks:
        return
    train, _, _ = split_training(tree, data)
    rows = train[:: -(-len(train) // SHOWN_IMAGES)]  # from all over the data: a folder's come class by class
    settings, examples = tree["dataset"], data.train
    assert isinstance(examples, LabelledImages), "only classifiers of images prepare themselves"
    pixels = Pixels(settings["mean"], settings["std"], channels=settings["image_shape"][0])
    if examples.images is None:
        images = torch.stack([examples.read(row) for row in rows.tolist()])
    else:
        images = examples.images[rows]
    for network in networks:
        network.prepare(pixels.from_bytes(images))


def split_ranks(ranks: SingleProcess | Ranks) -> SingleProcess | Ranks:
    """Return the ranks as the holders of parts of each layer, which all see the same batches."""
    if ranks.world_size == 1:
        return ranks
    from dlcli.runtime.sharding import Split

    return Split(ranks)  # type: ignore[arg-type]


def tensor_parallel_plan(network: nn.Module) -> dict[str, str]:
    """Return the network's own plan for splitting its layers over devices. Raises ConfigError if it has none."""
    plan: Callable[[], dict[str, str]] | None = getattr(network, "tensor_parallel_plan", None)
    if plan is None:
        message = f"runtime.parallel=tp: {type(network).__name__} does not say how its layers are split"
        raise ConfigError(message, hint="runtime.parallel=ddp or fsdp, or model=vit")
    return plan()


def build_optimizers(
    builder: Builder, tree: Tree, task: Task, runtime: Runtime, steps_per_epoch: int = 1
) -> dict[str, torch.optim.Optimizer]:
    """One optimizer per phase, over the phase's network; fused where it can be: one kernel for all parameters, which on
    a GPU can skip a bad update by itself. Not under fp16: a fused SGD whose first step is skipped goes on with a
    momentum that was never set.
    """
    spare_compiler()
    make = builder.build(tree["optimizer"])
    if (
        runtime.device.type in ("cpu", "cuda")
        and runtime.precision != "fp16"
        and "fused" in inspect.signature(make.func).parameters
    ):
        make = partial(make, fused=True)
    if any(hasattr(p, "full_tensor") for p in task.parameters()):
        from dlcli.runtime.sharding import optimizer_settings

        taken = inspect.signature(getattr(make, "func", make)).parameters
        make = partial(make, **{k: v for k, v in optimizer_settings(task.parameters()).items() if k in taken})
    patterns = tree["parameter_groups"]
    return {phase: build_optimizer(getattr(task, phase), make, patterns, steps_per_epoch) for phase in task.phases}


def build_schedule(builder: Builder, tree: Tree) -> Schedule:
    return builder.build(tree["schedule"])


def build_penalties(tree: Tree, task: Task) -> list[Penalty]:
    weight = tree["regularization"]["l1"]
    penalties: list[Penalty] = [L1(weight)] if weight else []
    return penalties + ([add_auxiliary] if has_auxiliary(task) else [])


def build_averages(tree: Tree, task: Task) -> dict[str, Average | NoAverage]:
    """One average of weights per phase."""
    decay = tree["regularization"]["ema"]
    return {phase: Average(getattr(task, phase), decay) if decay else NoAverage() for phase in task.phases}


def missing_package(error: ImportError) -> EnvironmentFault:
    return EnvironmentFault(f"the package {error.name} is missing", hint=f"pip install {error.name}")
