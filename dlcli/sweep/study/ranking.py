"""Which finished trials are best. Plain data; only what was trained to its end counts as a result."""

from __future__ import annotations

from collections.abc import Sequence

from dlcli.sweep.study.definition import Objective
from dlcli.sweep.study.trial_record import Record


def ranked(records: Sequence[Record], objectives: Sequence[Objective]) -> list[Record]:
    """Completed trials, the best by the first objective first; then the earlier. A reused result is listed once."""
    results = [
        record for record in records if record.state == "completed" and record.values and record.reuse_of is None
    ]
    return sorted(results, key=lambda record: (_costs(record, objectives)[0], record.number))


def front(records: Sequence[Record], objectives: Sequence[Objective]) -> list[Record]:
    """The Pareto front: completed trials that no other is as good as in all objectives and better than in one."""
    results = ranked(records, objectives)
    costs = [_costs(record, objectives) for record in results]
    return [
        record
        for record, cost in zip(results, costs, strict=True)
        if not any(other != cost and all(o <= c for o, c in zip(other, cost, strict=True)) for other in costs)
    ]


def _costs(record: Record, objectives: Sequence[Objective]) -> tuple[float, ...]:
    """Smaller is better in each."""
    values = record.values or []
    return tuple(-value if o.goal == "max" else value for o, value in zip(objectives, values, strict=True))
