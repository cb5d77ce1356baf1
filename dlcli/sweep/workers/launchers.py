"""Where a sweep's workers are started: on this machine, or by a cluster, as `launcher=` says in the command.

    launcher=local                                     processes here (the default; local.py)
    launcher=slurm launcher.partition=gpu              jobs of Slurm, through submitit (slurm.py)
    launcher=ray launcher.address=auto                 actors of Ray (ray_workers.py)

Wherever it runs, a worker is the same process; it needs the sweep's folder, or a ledger that machines share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dlcli.errors import ConfigError, EnvironmentFault, Problem, nearest, printable
from dlcli.sweep.workers.local import Workers, threads_each, visible_gpus
from dlcli.sweep.workers.slots import Slots


@dataclass(frozen=True)
class Setting:
    """kind: of its value; least: of a number; default: None leaves it to the cluster."""

    kind: type
    meaning: str
    default: Any = None
    least: int = 1


SETTINGS = {
    "local": {},
    "slurm": {
        "partition": Setting(str, "where jobs are queued"),
        "timeout_min": Setting(int, "minutes a job may last; then the next goes on with its trial", 60),
        "cpus": Setting(int, "cores of each worker", 1),
        "gpus": Setting(int, "GPUs of each worker", 0, least=0),
        "mem_gb": Setting(float, "memory of each worker"),
        "account": Setting(str, "who pays"),
        "qos": Setting(str, "quality of service"),
        "constraint": Setting(str, "what the nodes must have"),
        "exclude": Setting(str, "nodes that are not taken"),
        "gres": Setting(str, "other resources"),
        "save_s": Setting(int, "seconds before the end of its time in which a worker saves", 60),
    },
    "ray": {
        "address": Setting(
            str, "of the cluster: auto, host:port, ray://host:port, or local for one of its own", "auto"
        ),
        "cpus": Setting(int, "cores of each worker", 1),
        "gpus": Setting(int, "GPUs of each worker", 0, least=0),
        "mem_gb": Setting(float, "memory of each worker"),
    },
}
PACKAGES = {"slurm": "submitit", "ray": "ray"}


@dataclass(frozen=True)
class Launch:
    """name: of SETTINGS; settings: what `launcher.KEY=VALUE` words say."""

    name: str = "local"
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_local(self) -> bool:
        return self.name == "local"

    def check(self) -> None:
        """Raise EnvironmentFault if it cannot start anything from here; before the sweep has a folder."""
        package = PACKAGES.get(self.name)
        if package and find_spec(package) is None:
            message = f"launcher={self.name} needs {package}, which is not installed"
            raise EnvironmentFault(message, hint=f"pip install 'dlcli[{self.name}]'")
        if self.name == "slurm":
            from dlcli.sweep.workers.slurm import check_programs

            check_programs()
        elif self.name == "ray":
            from dlcli.sweep.workers.ray_workers import check_address

            check_address(self.all_settings()["address"])

    def workers(self, folder: Path, count: int, storage: str | None) -> Slots:
        if self.name == "slurm":
            from dlcli.sweep.workers.slurm import SlurmWorkers

            return SlurmWorkers(folder, count, self.all_settings(), storage)
        if self.name == "ray":
            from dlcli.sweep.workers.ray_workers import RayWorkers

            return RayWorkers(folder, count, self.all_settings(), storage)
        return Workers(folder, count, storage)

    def all_settings(self) -> dict[str, Any]:
        return {key: setting.default for key, setting in SETTINGS[self.name].items()} | dict(self.settings)

    def threads(self, workers: int) -> int:
        """The resources of each worker."""
        return threads_each(workers) if self.is_local else self.all_settings()["cpus"]

    def is_on_cpu(self) -> bool:
        return not visible_gpus() if self.is_local else not self.all_settings()["gpus"]

    def as_dict(self, workers: int) -> dict[str, Any]:
        """For the sweep's definition: a resume starts as many, and where they were."""
        return {"name": self.name, "settings": dict(self.settings), "workers": workers}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Launch:
        """Checked as the words were: the file may come from anywhere."""
        settings = plain.get("settings") or {}
        words = [f"launcher={plain.get('name', 'local')}", *(f"launcher.{key}={settings[key]}" for key in settings)]
        return read_launch(words)[1]


def read_launch(words: Sequence[str]) -> tuple[list[str], Launch]:
    """The words without those of the launcher, and what these say. ConfigError for what is wrong with them."""
    rest = [word for word in words if not word.startswith(("launcher=", "launcher."))]
    names = [word.partition("=")[2] for word in words if word.startswith("launcher=")]
    name = names[-1] if names else "local"
    if name not in SETTINGS:
        better = nearest(name, SETTINGS)
        hint = f"{f'Did you mean launcher={better}? ' if better else ''}({', '.join(SETTINGS)})"
        raise ConfigError(f"launcher={printable(name)}: there is no such launcher", hint=hint)
    settings: dict[str, Any] = {}
    problems = []
    for word in words:
        if word.startswith("launcher."):
            key, _, text = word[len("launcher.") :].partition("=")
            value = _read(name, key, text)
            if isinstance(value, Problem):
                problems.append(value)
            else:
                settings[key] = value
    if problems:
        several = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        raise ConfigError(f"{several} with the launcher, nothing was started", problems=problems)
    return rest, Launch(name, settings)


def _read(name: str, key: str, text: str) -> Any:
    """A setting's value, or what is wrong with it."""
    where = printable(f"launcher.{key}={text}", limit=80)
    setting = SETTINGS[name].get(key)
    if setting is None:
        better = nearest(key, SETTINGS[name], cutoff=0.5)
        known = ", ".join(SETTINGS[name]) or "launcher=slurm and launcher=ray have some"
        message = f"launcher={name} has no such setting ({known})"
        return Problem(where, message, f"launcher.{better}={printable(text)}" if better else None)
    if setting.kind is str:
        is_word = bool(text) and text.isprintable() and " " not in text
        return text if is_word else Problem(where, f"must be a word: {setting.meaning}")
    try:
        value = setting.kind(text)
    except ValueError:
        value = None
    is_right = value is not None and (value >= setting.least if setting.kind is int else 0 < value < 1e6)
    number = f"a whole number from {setting.least}" if setting.kind is int else "a number above 0"
    return value if is_right else Problem(where, f"must be {number}: {setting.meaning}")
