"""A trial's settings as an experiment of the user's own: `./conf/experiment/NAME.yaml`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from dlcli.config import compose_command
from dlcli.config.folders import options, packaged_conf
from dlcli.config.words import Reading, parse_word
from dlcli.errors import ConfigError, printable
from dlcli.runs.disk import write_atomically
from dlcli.runs.find import find_sweep
from dlcli.runs.names import checked_name
from dlcli.sweep.status.display import figure
from dlcli.sweep.status.reading import open_reader
from dlcli.sweep.study.definition import Definition, read_definition
from dlcli.sweep.study.ranking import ranked
from dlcli.sweep.study.trial_record import Record

LEFT_OUT = ("name", "tracker.", "runtime.threads", "runtime.precision", "runtime.channels_last", "runtime.device")


def apply_trial(
    name: str, as_name: str, *, number: int | None, outputs: Path, storage: str | None, config_dir: str | None
) -> tuple[Path, str]:
    """Write the best trial, or trial `number`; the file and the command that runs it."""
    folder = find_sweep(name, outputs)
    definition = read_definition(folder)
    record = _chosen(open_reader(folder, definition, storage).records(), definition, number)
    conf = Path(config_dir or "conf").expanduser()
    target = conf / "experiment" / f"{checked_name(as_name, 'experiment')}.yaml"
    if target.exists() or as_name in options("experiment", [conf, packaged_conf()]):
        where = f": {target}" if target.exists() else ""
        raise ConfigError(f"there is an experiment {as_name} already{where}", hint=f"Choose another: --as {as_name}_2")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, experiment_yaml(definition, record, as_name).encode())
    command = f"dlcli train {as_name}" + (f" --config-dir {shlex.quote(config_dir)}" if config_dir else "")
    compose_command([as_name], config_dir=config_dir)  # what was written composes
    return target, command


def _chosen(records: list[Record], definition: Definition, number: int | None) -> Record:
    if number is None:
        order = ranked(records, definition.objectives)
        if not order:
            raise ConfigError(f"{definition.name} has no completed trial", hint=f"dlcli sweep status {definition.name}")
        return order[0]
    found = next((record for record in records if record.number == number), None)
    if found is None or found.state != "completed":
        state = "there is none" if found is None else f"it is {found.state}"
        message = f"--trial {number}: {state}; a completed one is needed"
        raise ConfigError(message, hint=f"dlcli sweep top {definition.name}")
    return found


def experiment_yaml(definition: Definition, record: Record, as_name: str) -> str:
    """The first comment is the command, the second where it comes from and its figure; then what differs from the
    experiment, which is first among the defaults.
    """
    words = [word for word in definition.words_of(record.point) if "=" in word]
    words = [word for word in words if not word.startswith(LEFT_OUT)]
    base = next((word for word in definition.words if "=" not in word), None) or definition.experiment
    reading = Reading(search=definition.search())
    chosen = [parsed for word in words if (parsed := parse_word(word, reading))]
    groups = [word for word in chosen if "." not in word.key and word.key not in ("seed",)]
    values = [word for word in chosen if word not in groups]
    figures = " · ".join(
        f"{objective.name} {figure(objective.name, value)}"
        for objective, value in zip(definition.objectives, record.values or (), strict=True)
    )
    lines = [
        f"# dlcli train {as_name}",
        f"# {figures}: trial {record.number} of {definition.trials} of the sweep {definition.name}.",
        "#",
        f"# {printable(definition.command, limit=400)}",
        "defaults:",
        f"  - {_base(base, definition)}",
        *(f"  - override /{word.key}: {word.value}" for word in groups),
        "",
        _dump(_tree([(word.key, word.value) for word in values])),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _base(base: str, definition: Definition) -> str:
    if base.endswith((".yaml", ".yml")):
        message = f"the sweep's experiment is the file {printable(base)}, which lies in no conf folder"
        raise ConfigError(message, hint="Copy it to ./conf/experiment, and sweep it by its name.")
    return base


def _tree(values: list[tuple[str, Any]]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in values:
        node = tree
        *parents, leaf = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def _dump(tree: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(tree, sort_keys=False, default_flow_style=None) if tree else ""
