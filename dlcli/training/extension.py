"""Training a finished run further: which setting ends it, and whether a change of the setting lets it continue."""

from __future__ import annotations

from typing import Any

from dlcli.config.settings import seconds
from dlcli.errors import ConfigError

PATIENCE = "regularization.early_stopping.patience"
ENDS = ("trainer.epochs", "trainer.max_steps", "trainer.max_time", PATIENCE)
Tree = dict[str, Any]


def patience(tree: Tree) -> int | None:
    return tree["regularization"]["early_stopping"]["patience"]


def more(tree: Tree, summary: Tree) -> str:
    """Return the `key=value` that makes a finished run about twice as long, by the setting that ended it."""
    trainer, step = tree["trainer"], summary.get("step") or 0
    if summary.get("stopped_early"):
        return f"{PATIENCE}={2 * (patience(tree) or 1)}"
    if trainer["max_steps"] and step >= trainer["max_steps"]:
        return f"trainer.max_steps={2 * step}"
    if trainer["max_time"]:
        return f"trainer.max_time={round(2 * seconds(trainer['max_time']))}s"
    return f"trainer.epochs={2 * trainer['epochs']}"


def check_extension(before: Tree, tree: Tree, summary: Tree) -> None:
    """Raise ConfigError unless a finished run will continue. before, tree: its old and its new config."""
    trainer, step = tree["trainer"], summary.get("step") or 0
    waits = patience(tree)
    if summary.get("stopped_early") and waits is not None and waits <= (patience(before) or 0):
        message = f"the run stopped early, after {waits} evaluations without a better score; more epochs change nothing"
        raise ConfigError(message, hint=f"{PATIENCE}=null trains it to its end, {PATIENCE}={2 * waits} waits longer.")
    if trainer["max_steps"] is not None and trainer["max_steps"] <= step:
        message = f"trainer.max_steps={trainer['max_steps']} decides when it ends, and the run has {step} steps already"
        raise ConfigError(message, hint=f"trainer.max_steps={2 * step} goes on")
    if trainer["max_time"]:
        if seconds(trainer["max_time"]) <= (summary.get("seconds") or 0):
            message = f"trainer.max_time={trainer['max_time']} decides when it ends, and the run has trained that long"
            raise ConfigError(message, hint=f"{more(tree, {})} goes on")
        return
    per_epoch = summary.get("steps_per_epoch") or 1
    if trainer["max_steps"] is None and trainer["epochs"] * per_epoch <= step:
        message = f"trainer.epochs={trainer['epochs']}: the run has {-(-step // per_epoch)} epochs already"
        raise ConfigError(message, hint=f"trainer.epochs={2 * -(-step // per_epoch)} goes on")
