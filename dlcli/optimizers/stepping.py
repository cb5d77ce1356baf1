"""torch's optimizers without the parts that only torch.compile and the profiler need.

The first optimizer of a process imports torch._dynamo, to mark four methods as not to be compiled: 1.5 to 2.3 seconds
of CPU, half of the way to the first step. dlcli compiles networks, never optimizers, so the marks are set without it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch


def spare_compiler() -> None:
    """Let torch.optim.Optimizer's methods run unmarked. Call it before the first optimizer is made.

    `torch._disable_dynamo` keeps the function that it calls in `__dynamo_disable`, and imports the compiler if there is
    none yet. Versions of torch that work differently are left alone.
    """
    for method in vars(torch.optim.Optimizer).values():
        inner = getattr(method, "__wrapped__", None)
        if inner is not None and getattr(method, "__code__", None) is not None and _is_disabled(method):
            inner.__dict__.setdefault("__dynamo_disable", inner)


def _is_disabled(method: Any) -> bool:
    return method.__code__.co_filename.endswith("_compile.py")


def bare_step(optimizer: torch.optim.Optimizer) -> Callable[[], Any]:
    """`optimizer.step` without the label for the profiler and the break for the compiler that torch wraps around it.

    The label costs 6 us of a tiny network's 250; the break imports torch._dynamo. An optimizer with hooks, or one that
    is to be differentiated, keeps both.
    """
    step = type(optimizer).step
    hooks = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    if not getattr(step, "hooked", False) or any(getattr(optimizer, name, None) for name in hooks):
        return optimizer.step
    step = step.__wrapped__  # type: ignore[attr-defined]
    if getattr(step, "__name__", "") == "step" and step.__code__.co_name == "_use_grad":
        if optimizer.defaults.get("differentiable", False):
            return partial(step, optimizer)
        step = torch.no_grad()(step.__wrapped__)
    return partial(step, optimizer)
