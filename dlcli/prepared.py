"""What is known of a training before its first step: the facts of the `run_prepared` event."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlcli.training import Training


def facts_of(training: Training) -> dict[str, Any]:
    """Plain data. Waits for no device."""
    source, steps = training.train_source, training.plan.steps
    return {
        "device": str(training.runtime.device),
        "device_name": training.runtime.device_name(),
        "precision": training.runtime.precision,
        "devices": training.ranks.world_size,
        "threads": training.runtime.threads,
        "channels_last": training.runtime.channels_last,
        "runtime_reason": training.runtime_reason,
        "parameters": sum(p.numel() for p in training.task.parameters()),
        **training.unfreezing.facts(training.progress.step),
        "train_examples": source.num_examples,
        "val_examples": training.val_source.num_examples,
        "test_examples": training.test_source.num_examples,
        "classes": len(training.data.classes),
        "source": source.kind,
        "source_reason": training.source_reason,
        "steps_per_epoch": source.steps_per_epoch,
        "steps": steps,
        "epochs": None if steps is None else -(-steps // source.steps_per_epoch),
        "monitor": f"val/{training.monitor}",
        "mode": training.mode,
    }
