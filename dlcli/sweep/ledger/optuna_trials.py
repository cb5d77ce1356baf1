"""Axes, points and records in Optuna's words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from dlcli.sweep.space.space import Axis
from dlcli.sweep.study.definition import Definition, Objective
from dlcli.sweep.study.trial_record import RESULTS, Record


def distribution(axis: Axis) -> BaseDistribution:
    if axis.values:
        return CategoricalDistribution(axis.values)
    if axis.is_whole:
        return IntDistribution(int(axis.low), int(axis.high), log=axis.is_log, step=int(axis.step or 1))
    return FloatDistribution(axis.low, axis.high, log=axis.is_log, step=axis.step)


def text_of(axis: Axis, value: Any) -> str:
    return str(value) if axis.values else axis.written(value)


def value_of(axis: Axis, text: str) -> Any:
    return text if axis.values else int(text) if axis.is_whole else float(text)


def state_of(record: Record) -> TrialState:
    if record.state in ("running", "waiting"):
        return TrialState.RUNNING if record.state == "running" else TrialState.WAITING
    if record.state in RESULTS:
        return TrialState.COMPLETE
    return TrialState.PRUNED if record.state == "pruned" else TrialState.FAIL


def values_of(record: Record, objectives: Sequence[Objective]) -> list[float] | None:
    """What a sampler learns: of a trial that diverged, which is a result, as bad as can be."""
    if record.state == "diverged":
        return [-math.inf if objective.goal == "max" else math.inf for objective in objectives]
    return record.values if record.state in RESULTS else None


def frozen(record: Record, definition: Definition) -> FrozenTrial:
    """A trial as its folder has it, with the notes of samplers and pruners."""
    axes = {axis.key: axis for axis in definition.axes}
    return create_trial(
        state=state_of(record),
        values=values_of(record, definition.objectives),
        params={key: value_of(axes[key], text) for key, text in record.point.items()},
        distributions={key: distribution(axes[key]) for key in record.point},
        user_attrs={"record": record.as_dict()},
        system_attrs=record.sampler,
        intermediate_values={int(step): score for step, score in record.reports.items()},
    )
