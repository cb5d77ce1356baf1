"""Which setting ends a run, and whether a change of it trains a finished one further."""

from __future__ import annotations

from typing import Any

import pytest

from dlcli.errors import ConfigError
from dlcli.training.extension import check_extension, more


def tree(patience: int | None = None, **trainer: Any) -> dict[str, Any]:
    settings = {"epochs": 2, "max_steps": None, "max_time": None, **trainer}
    return {"trainer": settings, "regularization": {"early_stopping": {"patience": patience}}}


def summary(**more_facts: Any) -> dict[str, Any]:
    return {"step": 42, "steps_per_epoch": 21, "seconds": 10.0, "stopped_early": False, **more_facts}


@pytest.mark.parametrize(
    ("before", "facts", "expected"),
    [
        (tree(), summary(), "trainer.epochs=4"),
        (tree(max_steps=42), summary(), "trainer.max_steps=84"),
        (tree(max_time="10s"), summary(), "trainer.max_time=20s"),
        (tree(max_steps=42, max_time="100s"), summary(), "trainer.max_steps=84"),
        (tree(patience=3), summary(stopped_early=True), "regularization.early_stopping.patience=6"),
    ],
)
def test_the_setting_that_ended_it_is_the_one_to_change(before: Any, facts: Any, expected: str) -> None:
    assert more(before, facts) == expected


@pytest.mark.parametrize(
    ("before", "after", "facts", "told"),
    [
        (tree(), tree(epochs=2), summary(), "2 epochs already"),
        (tree(max_steps=42), tree(max_steps=42, epochs=20), summary(), "42 steps already"),
        (tree(max_time="10s"), tree(max_time="5s"), summary(), "trained that long"),
        (tree(max_time="10s"), tree(max_time="10s", epochs=3000), summary(), "trained that long"),
        (tree(patience=3), tree(patience=3, epochs=20), summary(stopped_early=True), "stopped early"),
        (tree(patience=3), tree(patience=2), summary(stopped_early=True), "stopped early"),
    ],
)
def test_an_extension_that_changes_nothing_is_refused(before: Any, after: Any, facts: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check_extension(before, after, facts)


@pytest.mark.parametrize(
    ("before", "after", "facts"),
    [
        (tree(), tree(epochs=3), summary()),
        (tree(max_steps=30), tree(max_steps=None), summary(step=30)),
        (tree(max_time="10s"), tree(max_time="20s"), summary()),
        (tree(patience=3), tree(patience=None, epochs=20), summary(stopped_early=True)),
        (tree(patience=3), tree(patience=9, epochs=20), summary(stopped_early=True)),
    ],
)
def test_one_that_goes_on_is_let_through(before: Any, after: Any, facts: Any) -> None:
    check_extension(before, after, facts)
