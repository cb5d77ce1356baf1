"""Facts of a run, without torch or YAML: each is read from the run's folder when first needed.

A plain list of 2,000 runs opens no config; a filter on one reads the first line of each events.jsonl. The summary comes
before it (a group of seeds has no events of its own); run.yaml, slow to read, only if neither holds the config.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from dlcli.config.folders import GROUPS
from dlcli.config.renamed import renamed_record
from dlcli.errors import CheckpointError
from dlcli.runs.disk import MAX_JSON_BYTES
from dlcli.runs.find import RunRow, all_runs, row
from dlcli.runs.folder import SWEEPS, RunFolder

BIN = ".bin"  # a folder beside those of the experiments
CHOICES = tuple(group for group in GROUPS if group != "experiment")
MISSING: Any = object()  # what a run does not say; null is a value


class RunFacts:
    """A run: `row` is its line in the list; everything else is read when needed, and kept."""

    def __init__(self, run: RunFolder):
        self.run = run
        self.row: RunRow = row(run)
        if not run.stamp:  # a trial of a sweep or one of several seeds: its folder tells neither
            experiment = self.summary.get("experiment") or self.started.get("experiment") or self.row.experiment
            self.row = replace(self.row, experiment=str(experiment), created=_local(self.started.get("time")))

    @cached_property
    def summary(self) -> dict[str, Any]:
        return self.run.read_summary() or {}

    @cached_property
    def started(self) -> dict[str, Any]:
        """The run_started event, or {}."""
        try:
            with self.run.events.open("rb") as file:
                event = json.loads(file.readline(MAX_JSON_BYTES))
        except (OSError, ValueError, RecursionError):
            return {}
        return renamed_record(event) if isinstance(event, dict) and event.get("event") == "run_started" else {}

    @cached_property
    def config(self) -> dict[str, Any]:
        for said in (self.summary, self.started):
            if isinstance(config := said.get("config"), dict):
                return config
        try:
            config = self.run.read_record().get("config")
        except CheckpointError:
            return {}
        return config if isinstance(config, dict) else {}

    @cached_property
    def choices(self) -> dict[str, str]:
        """Return the option of each group: as recorded, otherwise from the config."""
        for said in (self.summary, self.started):
            if isinstance(chosen := said.get("choices"), dict):
                return {str(group): str(option) for group, option in chosen.items()}
        return _recorded_choices(self.run.run_yaml) or self._derived_choices()

    def _derived_choices(self) -> dict[str, str]:
        from dlcli.config.naming import option_of

        message = {group: option_of(group, self.config, None) for group in CHOICES}
        return {group: str(option) for group, option in message.items() if option}

    @property
    def overrides(self) -> list[str]:
        said = self.summary.get("overrides") or self.started.get("overrides")
        return [str(word) for word in said] if isinstance(said, list) else []

    @property
    def seconds(self) -> float | None:
        return _number(self.summary.get("seconds"))

    @property
    def num_seeds(self) -> int:
        """Return the number of seeds in a group; 0 for a run."""
        seeds = self.summary.get("seeds")
        return len(seeds) if isinstance(seeds, list) else 0

    @property
    def num_diverged(self) -> int:
        """Return the number of seeds of a group that diverged; 0 for a run."""
        diverged = self.summary.get("diverged")
        return len(diverged) if self.num_seeds and isinstance(diverged, list) else 0

    @property
    def deviations(self) -> dict[str, float]:
        """Standard deviation of each metric over the seeds of a group."""
        said = self.summary.get("deviations")
        pairs = said.items() if isinstance(said, dict) else ()
        return {str(name): number for name, value in pairs if (number := _number(value)) is not None}

    def value(self, key: str) -> Any:
        """What the run says under a key of `dlcli runs ls`, or MISSING: the cheap places first."""
        if key in OWN:
            return OWN[key](self)
        if key in self.row.metrics:
            return self.row.metrics[key]
        if "/" in key and "." not in key:  # a metric that it lacks: its config need not be read for that
            return MISSING
        if key in CHOICES or "." not in key:
            chosen = self.choices.get(key)
            if chosen is not None:
                return chosen
        node: Any = self.config
        for part in key.split("."):
            node = node.get(part, MISSING) if isinstance(node, Mapping) else MISSING
        return MISSING if isinstance(node, Mapping) else node


OWN: dict[str, Callable[[RunFacts], Any]] = {
    "name": lambda facts: facts.row.name,
    "experiment": lambda facts: facts.row.experiment,
    "status": lambda facts: facts.row.status,
    "created": lambda facts: facts.row.created or MISSING,
    "seconds": lambda facts: facts.seconds,
    "epochs": lambda facts: facts.row.epochs,
}


def config_keys(facts: RunFacts) -> list[str]:
    """Every key of a run's config that has a value, dotted."""
    return list(_dotted(facts.config, ""))


def _dotted(node: Mapping[str, Any], prefix: str) -> list[str]:
    keys: list[str] = []
    for key, value in node.items():
        keys += _dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [f"{prefix}{key}"]
    return keys


# ------------------------------------------------------------------------------------------------------------ the lists


def gather(outputs: Path, *, in_bin: bool = False, sweep: str | None = None) -> list[RunFacts]:
    """The runs, those in the bin, or the trials of a sweep, newest first. ConfigError for a sweep that is not there."""
    if sweep is not None:
        return [RunFacts(run) for run in sweep_trials(outputs, sweep)]
    return [RunFacts(run) for run in (binned_runs(outputs) if in_bin else all_runs(outputs))]


def binned_runs(outputs: Path) -> list[RunFolder]:
    """The runs that `dlcli runs rm` moved away, newest first."""
    found = [RunFolder(folder) for experiment in folders(outputs / BIN) for folder in folders(experiment, links=True)]
    return sorted(found, key=lambda run: (run.stamp, run.folder_name), reverse=True)


def sweep_trials(outputs: Path, sweep: str) -> list[RunFolder]:
    """The run folders of a sweep, by its path, name, unique beginning or `latest`; the highest number first."""
    place = outputs / SWEEPS / sweep
    if place not in folders(outputs / SWEEPS):  # not its whole name
        from dlcli.runs.find import find_sweep

        place = find_sweep(sweep, outputs)
    trials = [folder for folder in folders(place) if folder.name.isdecimal()]
    return [RunFolder(folder) for folder in sorted(trials, key=lambda folder: int(folder.name), reverse=True)]


def folders(path: Path, *, links: bool = False) -> list[Path]:
    """The folders in a folder, without hidden ones; links: those too that are links to one."""
    try:
        with os.scandir(path) as entries:
            names = [e.name for e in entries if not e.name.startswith(".") and e.is_dir(follow_symlinks=links)]
    except OSError:
        return []
    return [path / name for name in sorted(names)]


# ------------------------------------------------------------------------------------------------------------- records

_CHOICES_BLOCK = re.compile(r"^choices:\n((?:  [^\s#].*\n)+)", re.MULTILINE)
_CHOICE_LINE = re.compile(r"  (\w+): '?([^'\n]+)'?")


def _recorded_choices(run_yaml: Path) -> dict[str, str]:
    """`choices` of a run.yaml, which dlcli wrote itself, by its lines: a YAML reader takes fifty times as long."""
    try:
        with run_yaml.open(encoding="utf-8", errors="replace") as file:
            block = _CHOICES_BLOCK.search(file.read(MAX_JSON_BYTES))
    except OSError:
        return {}
    return dict(_CHOICE_LINE.findall(block[1])) if block else {}


def _local(time: object) -> str:
    """An event's time as a list shows it: local, without a zone."""
    try:
        return datetime.fromisoformat(str(time)).astimezone().strftime("%Y-%m-%dT%H:%M:%S")
    except ValueError:
        return ""


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
