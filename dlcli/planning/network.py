"""The parts of a network and its cost, found without its weights: a ResNet-152 takes no memory here.

    found = inspect(tree, builder)            layers, output shapes, parameters, FLOPs, memory
    seconds = latency(tree, builder)          measured: this allocates the network
    shares = expert_load(loaded)              of a trained mixture of experts: how busy each is

The networks are built on the meta device, where a tensor is its shape. The task runs its loss on made-up examples, and
what it calls each network with is kept; each network is then run alone, once forward.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from dlcli.datasets.kinds import kind_of
from dlcli.datasets.made_up import made_up_data
from dlcli.errors import OutOfMemory
from dlcli.inference.trained import Trained, read_data
from dlcli.optimizers.freezing import trainable_from
from dlcli.optimizers.groups import build_optimizer
from dlcli.tasks.task import Task
from dlcli.training import allow_list, build
from dlcli.training.checks import on_device

MADE_UP = 8  # sentences or recordings, the longest of which is looked at
MEASURED_EXAMPLES = 4  # whose activations are measured: batch norm needs more than one
LARGEST_TIMED = 500_000_000  # parameters, which are 2 GB
MOST_EXAMPLES = 2_000  # of the test split, to see how busy experts are
WARM_UP, FEWEST_RUNS, MOST_RUNS, ENOUGH_S = 3, 10, 200, 1.0  # of a measured latency
FUNCTIONAL = {
    "relu", "gelu", "silu", "tanh", "sigmoid", "leaky_relu", "elu", "hardswish", "hardsigmoid",
    "max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d",
}  # fmt: skip
Tree = Mapping[str, Any]


@dataclass(frozen=True)
class Layer:
    """A module of a network. name: dotted, empty for the network itself; parameters include those of its children.

    output: shape for one example at its first call, None where it was not called (or gives no tensor); flops: of one
    example, of all calls; None where they are not known.
    """

    name: str
    kind: str
    output: tuple[int, ...] | None
    parameters: int
    trainable: int
    flops: int | None
    calls: int = 0


@dataclass
class Network:
    """layers: the network itself first, then its modules in order.

    flops: 2 for each multiply-add of products, convolutions and attention in one forward pass of one example; None
    where the network cannot be run on shapes alone. Bytes: of weights and buffers, of the gradients, of what the
    optimizer keeps (None if that is unknown), of what one example keeps for the backward pass.
    example: what one is, in words; trained: how many parameters are from which epoch on; functional: names of
    activations and pooling that are not modules, and so have no layer here.
    """

    layers: list[Layer]
    flops: int | None = None
    weight_bytes: int = 0
    gradient_bytes: int = 0
    optimizer_bytes: int | None = 0
    average_bytes: int = 0
    activation_bytes: int | None = None
    reason: str = ""  # why something is None
    example: str = ""
    trained: dict[int, int] = field(default_factory=dict)
    functional: list[str] = field(default_factory=list)

    @property
    def parameters(self) -> int:
        return self.layers[0].parameters

    @property
    def trainable(self) -> int:
        return self.layers[0].trainable


@dataclass
class Call:
    """What a task calls a network with, the first time."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)


def inspect(tree: Tree, builder: allow_list.Builder) -> dict[str, Network]:
    """Each network of a config by its name; nothing is allocated."""
    task = build_shapes(tree, builder)
    calls = record_calls(task, tree, 1)
    many = record_calls(task, tree, MEASURED_EXAMPLES)
    found = {}
    for name, module in networks_of(task).items():
        make, groups = builder.build(tree["optimizer"]), tree["parameter_groups"]
        optimizer = build_optimizer(module, make, groups) if name in task.phases else None  # freezes what they freeze
        found[name] = network = examine(module, calls.get(name))
        network.example = in_words(calls[name], tree) if name in calls else ""
        if name in many:
            network.activation_bytes = activations_of(module, many[name])
        if optimizer is not None:
            measure_training(network, optimizer, has_average=bool(tree["regularization"]["ema"]))
    return found


def in_words(call: Call, tree: Tree) -> str:
    """What the one example is: "26 and 40 tokens", "0.98 s of sound", "3x32x32", "14 numbers"."""
    shapes = [tuple(part.shape[1:]) for part in call.args if isinstance(part, Tensor) and part.dim() > 1]
    return kind_of(tree["dataset"]).in_words(shapes, tree["dataset"])


CANNOT_FOLLOW = (NotImplementedError, RuntimeError, ValueError, TypeError, IndexError, AssertionError)


def build_shapes(tree: Tree, builder: allow_list.Builder) -> Task:
    """The task on the meta device. A teacher, which is a run's network, is taken to be like the one taught."""
    teacher = tree["model"] if "teacher" in tree["task"] else None
    task = build.build_meta_task(builder, tree, teacher=teacher, largest=inf)
    return task.to("meta")  # tables made with NumPy, too


def networks_of(task: Task) -> dict[str, nn.Module]:
    return {name: module for name, module in task.named_children() if next(module.parameters(), None) is not None}


def record_calls(task: Task, tree: Tree, num_examples: int) -> dict[str, Call]:
    """What each network is called with for so many times the same made-up example, on the device where the task is.

    What a task does after its networks may not support the meta device (CTC's loss): by then they have been called. One
    whose training goes another way than its answers (a two-stage detector) is called for an answer.
    """
    device = next(task.parameters()).device
    batch = on_device(one_example(tree, num_examples), device)
    calls: dict[str, Call] = {}
    task.eval()
    with contextlib.ExitStack() as stack:
        for name, network in networks_of(task).items():

            def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name) -> None:
                calls.setdefault(name, Call(args, kwargs))

            stack.callback(network.register_forward_pre_hook(note, with_kwargs=True).remove)
        for phase in task.phases:
            with contextlib.suppress(*CANNOT_FOLLOW), torch.no_grad(), device:
                task.loss(batch, phase)
            if phase == "model" and hasattr(batch, "inputs"):
                calls.setdefault(phase, Call(tuple(batch.inputs)))
    return calls


def one_example(tree: Tree, times: int) -> Any:
    """A batch of one made-up example so many times: the same in each command, and of several lengths the longest."""
    num_tried = MADE_UP if kind_of(tree["dataset"]).varies_in_length else 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        examples = made_up_data(tree["dataset"], num_tried)
    alone = [examples.batch(torch.tensor([row])) for row in range(num_tried)]
    sizes = [sum(part.numel() for part in batch if isinstance(part, Tensor)) for batch in alone]
    return examples.batch(torch.full((times,), sizes.index(max(sizes))))


# ------------------------------------------------------------------------------------------------------- one network


def examine(network: nn.Module, call: Call | None) -> Network:
    """Its layers with their outputs and FLOPs, as far as it can be run on shapes."""
    run = Run()
    reason = "" if call is not None else "the task calls it with data that are not known before a training"
    if call is not None:
        try:
            run_counted(network, call, run)
        except CANNOT_FOLLOW as error:
            message = "what follows depends on their values" if "meta" in str(error) else build.first_line(error)
            reason = f"it cannot be followed to its end without data: {message}"
    layers = [layer_of(name, module, run) for name, module in network.named_modules()]
    tensors = [*network.parameters(), *network.buffers()]
    functional = sorted(run.functional)
    return Network(layers, layers[0].flops, weight_bytes=num_bytes(tensors), reason=reason, functional=functional)


@dataclass
class Run:
    """What is seen of one forward pass, by the names of modules: how often each ended, its first output, its FLOPs."""

    calls: Counter[str] = field(default_factory=Counter)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    flops: dict[str, int] = field(default_factory=dict)
    is_whole: bool = False
    inside: list[nn.Module] = field(default_factory=list)  # the modules that run now, the innermost last
    functional: set[str] = field(default_factory=set)


def layer_of(name: str, module: nn.Module, run: Run) -> Layer:
    sizes = [(p.numel(), p.requires_grad) for p in module.parameters()]
    return Layer(
        name,
        kind_of_layer(module),
        run.shapes.get(name),
        sum(size for size, _ in sizes),
        sum(size for size, is_trained in sizes if is_trained),
        run.flops.get(name, 0) if run.is_whole or run.calls[name] else None,
        run.calls[name],
    )


def kind_of_layer(module: nn.Module) -> str:
    """Its class; of recurrent layers in one module also how many there are, and whether they read both ways."""
    kind = type(module).__name__
    if not isinstance(module, nn.RNNBase):
        return kind
    kind = f"Bi{kind}" if module.bidirectional else kind
    return kind if module.num_layers == 1 else f"{kind}, {module.num_layers} layers"


def run_counted(network: nn.Module, call: Call, run: Run) -> None:
    """Run it forward once, and fill `run` as far as it comes."""
    network.eval()
    counter = FlopCounterMode(display=False)
    with contextlib.ExitStack() as stack:
        for name, module in network.named_modules():

            def begin(module: nn.Module, args: Any) -> None:
                run.inside.append(module)

            def end(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
                run.inside.pop()
                run.calls[name] += 1
                if (tensor := first_tensor(output)) is not None:
                    run.shapes.setdefault(name, tuple(tensor.shape))

            stack.callback(module.register_forward_pre_hook(begin).remove)
            stack.callback(module.register_forward_hook(end).remove)
        try:
            with torch.no_grad(), call_device(network), counter, Functional(run):
                network(*call.args, **call.kwargs)
            run.is_whole = True
        finally:
            root, counts = type(network).__name__, counter.get_flop_counts()
            run.flops |= {n.removeprefix(root).lstrip("."): sum(c.values()) for n, c in counts.items()}
            run.flops[""] = counter.get_total_flops()


class Functional(TorchDispatchMode):
    """Notes activations and pooling that are called as functions, by a module that has others inside."""

    def __init__(self, run: Run):
        super().__init__()
        self.run = run

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__.removesuffix("_with_indices").rstrip("_")
        if name in FUNCTIONAL and self.run.inside and next(self.run.inside[-1].children(), None) is not None:
            self.run.functional.add(name)
        return func(*args, **(kwargs or {}))


def call_device(network: nn.Module) -> torch.device:
    """Where tensors are made that a network makes itself, such as positions."""
    return next(network.parameters()).device


def first_tensor(output: Any) -> Tensor | None:
    """The tensor of an output, or the first one in a tuple, list or dict."""
    if isinstance(output, Tensor):
        return output
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    return next((found for part in parts if (found := first_tensor(part)) is not None), None)


def activations_of(network: nn.Module, call: Call) -> int | None:
    """Bytes of one example. In training mode; where that cannot be followed (random masks of speech), without it."""
    for is_training in (True, False):
        with contextlib.suppress(*CANNOT_FOLLOW):
            return saved_bytes(network.train(is_training), call) // MEASURED_EXAMPLES
    return None


def saved_bytes(network: nn.Module, call: Call) -> int:
    """What autograd keeps of one forward pass, the weights left out; each piece of memory counts once."""
    weights = {t.untyped_storage()._cdata for t in [*network.parameters(), *network.buffers()]}
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        if (key := tensor.untyped_storage()._cdata) not in weights:
            kept[key] = tensor  # held, so that no other gets its address
        return tensor

    with torch.enable_grad(), call_device(network), torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        network(*call.args, **call.kwargs)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def measure_training(network: Network, optimizer: torch.optim.Optimizer, *, has_average: bool) -> None:
    """Set what is trained when, and the bytes of gradients, of the optimizer's state and of the weights' average."""
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    network.trained = {step + 1: n for step, n in trainable_from(optimizer.param_groups).items()}  # a step an epoch
    network.gradient_bytes = num_bytes(trained)
    network.average_bytes = num_bytes(trained) if has_average else 0
    try:
        for p in trained:
            p.grad = torch.empty_like(p)
        optimizer.step()  # on shapes: afterwards its state is what it keeps in a training
    except CANNOT_FOLLOW as error:
        network.optimizer_bytes, network.reason = None, f"the optimizer: {build.first_line(error)}"
        return
    state = [t for kept in optimizer.state.values() for t in kept.values() if isinstance(t, Tensor)]
    network.optimizer_bytes = num_bytes(state)


def num_bytes(tensors: list[Any]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


# ----------------------------------------------------------------------------------------------------------- its time


@dataclass(frozen=True)
class Latency:
    """Seconds of one forward pass of one example: median, tenth and ninetieth percentile of so many runs."""

    median_s: float
    low_s: float
    high_s: float
    runs: int
    threads: int


def latency(tree: Tree, builder: allow_list.Builder) -> dict[str, Latency]:
    """Each network's, measured on this machine's CPU in float32. Raises OutOfMemory for one that is too large."""
    size = sum(p.numel() for p in build_shapes(tree, builder).parameters())
    if size > LARGEST_TIMED:
        raise OutOfMemory(
            f"{size:,} parameters are too many to time here (at most {LARGEST_TIMED:,})", hint="Leave --latency out."
        )
    threads = tree["runtime"]["threads"]
    if isinstance(threads, int):
        torch.set_num_threads(threads)
    task = build.build_task(builder, tree, teacher=tree["model"] if "teacher" in tree["task"] else None)
    calls = record_calls(task, tree, 1)
    return {name: time_calls(networks_of(task)[name], call) for name, call in calls.items()}


@torch.no_grad()
def time_calls(network: nn.Module, call: Call) -> Latency:
    network.eval()
    for _ in range(WARM_UP):
        network(*call.args, **call.kwargs)
    seconds = list(timed(network, call))
    tenths = statistics.quantiles(seconds, n=10)
    return Latency(statistics.median(seconds), tenths[0], tenths[-1], len(seconds), torch.get_num_threads())


def timed(network: nn.Module, call: Call) -> Iterator[float]:
    started = time.perf_counter()
    for number in range(MOST_RUNS):
        before = time.perf_counter()
        if number >= FEWEST_RUNS and before - started > ENOUGH_S:
            return
        network(*call.args, **call.kwargs)
        yield time.perf_counter() - before


# ------------------------------------------------------------------------------------------------------- its experts


@torch.no_grad()
def expert_load(loaded: Trained) -> dict[str, Tensor]:
    """The shares of the picks on test examples, for each trained network with experts: (blocks, experts) float64."""
    networks = {name: n for name, n in networks_of(loaded.task).items() if hasattr(n, "expert_load")}
    if not networks:
        return {}
    examples = read_data(loaded).test
    rows = torch.arange(min(len(examples), MOST_EXAMPLES))
    device = loaded.runtime.device
    source = build.build_eval_source(loaded.tree, examples, rows, device, activations=loaded.activations)
    parts: dict[str, list[Tensor]] = {name: [] for name in networks}
    for batch in source:
        with loaded.runtime.autocast()():
            loaded.task.metrics(batch)
        for name, network in networks.items():
            parts[name].append(network.expert_load().double().cpu())  # type: ignore[operator]
    return {name: torch.cat(loads).mean(0) for name, loads in parts.items()}
