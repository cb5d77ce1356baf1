"""What a run's folder says of how it went: its events and its summary, read without torch."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from dlcli.runs.events import read_events
from dlcli.runs.find import row
from dlcli.runs.folder import RunFolder
from dlcli.training.extension import more

Tree = dict[str, Any]


@dataclass(frozen=True)
class Evidence:
    """One run. name: as a command takes it; status: as `dlcli runs ls` says it; reason: why it ended, in its own words.

    config, overrides: as it was begun; prepared: the last `run_prepared` event; evaluations, values: the `epoch` and
    `values` events in order; summary: empty where the run was killed or goes on.
    """

    name: str
    experiment: str
    status: str
    reason: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    overrides: Sequence[str] = ()
    prepared: Mapping[str, Any] = field(default_factory=dict)
    evaluations: Sequence[Tree] = ()
    values: Sequence[Tree] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)

    # -- numbers

    def series(self, metric: str) -> list[float]:
        """A metric over the evaluations, such as `train/loss`; empty unless each of them has it as a finite number."""
        found = [number(each.get("metrics", {}).get(metric)) for each in self.evaluations]
        return [] if None in found else [value for value in found if value is not None]

    def last(self, metric: str) -> float | None:
        found = self.series(metric)
        return found[-1] if found else None

    def steps(self) -> list[int]:
        """The step of each evaluation."""
        return [int(each.get("step") or 0) for each in self.evaluations]

    def epochs(self) -> list[int]:
        """The epoch of each evaluation, from 1."""
        return [int(each.get("epoch") or 0) for each in self.evaluations]

    def epochs_done(self) -> int:
        """The settings of the run, as far as they are recorded."""
        return int(self.summary.get("epoch") or max(self.epochs(), default=0))

    def scores(self) -> list[float]:
        """The monitored score over the evaluations, turned so that larger is better; empty where there is none."""
        sign = -1.0 if self.prepared.get("mode") == "min" else 1.0
        return [sign * value for value in self.series(str(self.prepared.get("monitor")))]

    def best(self) -> int | None:
        """Which evaluation has the best score, the first of equals."""
        scores = self.scores()
        return scores.index(max(scores)) if scores else None

    def seconds(self) -> dict[str, float]:
        """Where the time of the training went, the start left out: data, device, evaluation, saving."""
        found = {name: number(value) for name, value in (self.summary.get("time") or {}).items()}
        return {name: value for name, value in found.items() if value is not None and name != "start"}

    def share(self, what: str) -> float:
        """The share of the training's time, in [0, 1]; 0 if it was not measured."""
        seconds = self.seconds()
        total = sum(seconds.values())
        return seconds.get(what, 0.0) / total if total > 0 else 0.0

    # -- settings and commands

    def setting(self, key: str, default: Any = None) -> Any:
        """`optimizer.lr` of the run's config."""
        node: Any = self.config
        for part in key.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        return default if node is None else node

    def again(self, *words: str, verb: str = "train") -> str:
        """The command that trains the run again with some settings changed; what they replace is left out."""
        changed = {word.partition("=")[0] for word in words}
        kept = [word for word in self.overrides if not _is_replaced(word.partition("=")[0], changed)]
        return shlex.join(["dlcli", *verb.split(), self.experiment, *kept, *words])

    def longer(self) -> str:
        """The command that trains the run further: about twice as long, by the setting that ended it."""
        if self.status != "completed":
            return f"dlcli resume {self.name}"
        try:
            return f"dlcli resume {self.name} {more(dict(self.config), dict(self.summary))}"
        except (KeyError, TypeError, ValueError):  # a record of another dlcli, or one that was edited
            return f"dlcli resume {self.name} trainer.epochs={2 * max(1, self.epochs_done())}"


def _is_replaced(key: str, changed: set[str]) -> bool:
    """Whether a word for `key` says nothing once `changed` are set; a name is of one run only."""
    return key == "name" or any(key == other or key.startswith(f"{other}.") for other in changed)


def read_evidence(run: RunFolder, name: str) -> Evidence:
    """name: how a command names the run."""
    kinds: dict[str, list[Tree]] = {}
    for event in read_events(run.events):
        kinds.setdefault(str(event.get("event")), []).append(event)
    started = kinds.get("run_started", [{}])[0]
    summary = run.read_summary() or {}
    overrides = started.get("overrides")
    return Evidence(
        name=name,
        experiment=str(started.get("experiment") or run.experiment),
        status=row(run).status,
        reason=str(summary.get("reason") or ""),
        config=_mapping(started.get("config")),
        overrides=[str(word) for word in overrides] if isinstance(overrides, list) else [],
        prepared=kinds.get("run_prepared", [{}])[-1],
        evaluations=[each for each in kinds.get("epoch", []) if isinstance(each.get("metrics"), dict)],
        values=kinds.get("values", []),
        summary={**summary, "time": _mapping(summary.get("time"))},
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def number(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and isfinite(value) else None
