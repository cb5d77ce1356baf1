"""What a sweep is: written once, when it is started, and never changed but for the number of its trials.

outputs/sweeps/<name>/sweep.json        with every word, axis and choice; a shared ledger holds a copy
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from dlcli.config.folders import packaged_conf, search_path
from dlcli.errors import CheckpointError, ConfigError, nearest, printable
from dlcli.runs.disk import read_json, write_atomically
from dlcli.runs.folder import SWEEP_FILE as FILE
from dlcli.sweep.space.space import Axis, Space

SAMPLERS = {
    "tpe": "learns from what is finished (Bergstra et al. 2011)",
    "random": "draws",
    "quasi-random": "fills the space evenly (Sobol 1967)",
    "grid": "every point once",
    "gp": "a Gaussian process; few, dear trials",
    "cmaes": "CMA-ES, for ranges only (Hansen 2016)",
    "nsga2": "several objectives (Deb et al. 2002)",
}
PRUNERS = {
    "none": "every trial is trained to its end",
    "median": "stops a trial below the median of the others",
    "halving": "asynchronous successive halving (Li et al. 2020)",
    "hyperband": "successive halving with several starts (Li et al. 2018)",
}
EXTRA_OBJECTIVES = {"parameters": "min", "latency": "min", "time": "min"}  # besides the scores of the task


@dataclass(frozen=True)
class Objective:
    """name: val/<score>, parameters, latency (ms of an answer for one example) or time (s of training)."""

    name: str
    goal: str


@dataclass(frozen=True)
class Definition:
    """words: what all trials have in common; seed: of the sampler; keep: how many trials' weights stay.

    grace_s: how long a worker on another machine may be silent before its trial is taken over; config_dir: the user's
    own, an absolute path; starts, population: of TPE and GP, of NSGA-II; own_process: whether each trial needs one.
    """

    name: str
    experiment: str
    words: tuple[str, ...]
    axes: tuple[Axis, ...]
    objectives: tuple[Objective, ...]
    trials: int
    sampler: str = "tpe"
    pruner: str = "median"
    seed: int = 0
    keep: int = 3
    max_failures: int | None = None
    storage: str | None = None
    grace_s: float = 60.0
    config_dir: str | None = None
    starts: int = 2
    population: int = 4
    own_process: bool = False
    trusted: tuple[str, ...] = ()
    created: str = ""
    command: str = ""
    launcher: dict[str, Any] = field(default_factory=dict, hash=False)  # as launchers.Launch has written it

    def search(self) -> list[Path]:
        """The config folders: those of the place where the sweep was started, wherever its workers are."""
        return [packaged_conf()] if self.config_dir is None else search_path(self.config_dir)

    @property
    def space(self) -> Space:
        return Space.of(self.axes)

    def words_of(self, point: Mapping[str, str]) -> list[str]:
        """The words of a trial: `dlcli train WORDS` alone makes the same."""
        return [*self.words, *self.space.words(point)]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"axes": [axis.as_dict() for axis in self.axes]}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Definition:
        """Raises ConfigError for what was not written by `as_dict`."""
        try:
            known = {entry.name for entry in fields(cls)}
            given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items() if k in known}
            given["axes"] = tuple(Axis.from_dict(axis) for axis in plain["axes"])
            given["objectives"] = tuple(Objective(**objective) for objective in plain["objectives"])
            return cls(**given)
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"the sweep's definition cannot be read: {printable(repr(error))}") from error

    def write(self, folder: Path) -> None:
        write_atomically(folder / FILE, (json.dumps(self.as_dict(), indent=1) + "\n").encode())

    def with_trials(self, trials: int) -> Definition:
        return replace(self, trials=trials)


def read_definition(folder: Path) -> Definition:
    plain = read_json(folder / FILE)
    if plain is None:
        raise CheckpointError(f"{printable(folder / FILE)} is missing or damaged", hint="Was the folder changed?")
    return Definition.from_dict(plain)


def checked_choice(what: str, value: str, choices: Sequence[str]) -> str:
    """`value`, or ConfigError with the nearest that is one of the choices."""
    if value in choices:
        return value
    better = nearest(value, choices, cutoff=0.5)
    hint = f"{f'Did you mean --{what} {better}? ' if better else ''}({', '.join(choices)})"
    raise ConfigError(f"--{what} {printable(value)}: there is no such {what}", hint=hint)
