"""Composing with Hydra: the tree of an experiment and the chosen groups, from the folders of the search path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from dlcli.config.folders import groups, options, packaged_conf
from dlcli.config.plain_yaml import check_user_yaml
from dlcli.config.renamed import new_name
from dlcli.config.schema import say
from dlcli.config.tree import BUILD_KEYS, OPEN_NODES, leaves, lookup, plain_data
from dlcli.config.words import Reading, spell_key
from dlcli.errors import ConfigError, Problem, printable

GIVEN_FILE = "__file__"  # the name in Hydra of an experiment given as a file; no option has this name


def check_files(reading: Reading) -> None:
    """Check the user's own YAML files before Hydra reads them: plain, small, without aliases and tags."""
    packaged = packaged_conf()
    paths = [p for group in groups(reading.search) for p in options(group, reading.search).values()]
    paths += [conf / "train.yaml" for conf in reading.search if (conf / "train.yaml").is_file()]
    paths += [reading.experiment_path] if reading.experiment_path else []
    for path in paths:
        if packaged not in path.parents:
            try:
                check_user_yaml(path)
                if _sets_hydra(path):
                    reading.wrong(str(path), "cannot be composed: hydra: its own settings have no effect in dlcli")
            except ConfigError as error:
                problem = error.problems[0] if error.problems else Problem(str(path), error.message)
                reading.wrong(problem.where, f"cannot be composed: {problem.message}")


def _sets_hydra(path: Path) -> bool:
    import yaml

    text = path.read_text(encoding="utf-8")
    return "hydra" in text and "hydra" in (yaml.safe_load(text) or {})


def compose(reading: Reading) -> Any:
    """Return the OmegaConf tree with every group chosen and no value set; None, with a problem noted, on failure."""
    from omegaconf import open_dict

    chosen = [f"{group}={word.value}" for group, word in reading.chosen.items()]
    experiment = GIVEN_FILE if reading.experiment_path else reading.experiment
    config = _compose_with_hydra([f"experiment={experiment}", *chosen], reading)
    if config is None:
        return None
    choices = config.hydra.runtime.choices
    reading.choices = {
        g: choices[g] for g in groups(reading.search) if g != "experiment" and choices.get(g) is not None
    }
    plain = _compose_with_hydra([f"{g}={o}" for g, o in reading.choices.items()], reading)
    if plain is None:
        return None
    with open_dict(config), open_dict(plain):
        config.pop("hydra")
        plain.pop("hydra")
        for group in reading.chosen:
            config[group] = plain[group]
    _check_experiment_keys(plain_data(config, resolve=False), plain_data(plain, resolve=False), reading)
    return config


def _check_experiment_keys(tree: Mapping[str, Any], plain: Mapping[str, Any], reading: Reading) -> None:
    """Check that an experiment sets only keys that its options have."""
    known = dict(leaves(plain))
    where = str(reading.experiment_path or f"conf/experiment/{reading.experiment}.yaml")
    for key, value in _build_keys(tree):
        if lookup(plain, key) != value:
            said = f"{key}={printable(value, limit=60)}: the chosen options decide what is built"
            reading.wrong(where, f"cannot be composed: {said}")
    for key, value in leaves(tree):
        if key in known or key.startswith(tuple(f"{node}." for node in OPEN_NODES)):
            continue
        if isinstance(lookup(plain, key), Mapping):
            reading.wrong(where, f"cannot be composed: {key}: is a group of settings, got {say(value)}")
        else:
            better = new_name(key) or spell_key(key, reading, known)
            message = f"cannot be composed: {key}: there is no such setting"
            reading.wrong(where, f"{message}; did you mean {better}?" if better else message)


def _build_keys(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if name in BUILD_KEYS:
            yield prefix + name, value
        elif isinstance(value, Mapping):
            yield from _build_keys(value, f"{prefix}{name}.")


def _compose_with_hydra(overrides: list[str], reading: Reading) -> Any:
    from hydra import compose as hydra_compose
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        with _hydra(reading):
            return hydra_compose("train", overrides=overrides, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, AssertionError, RecursionError) as error:
        lines = [line for line in str(error.__cause__ or error).splitlines() if line.strip()]
        where = str(reading.experiment_path or reading.experiment)
        reading.wrong(where, f"cannot be composed: {printable(lines[0] if lines else type(error).__name__)}")
        return None


def _hydra(reading: Reading) -> Any:
    """Open Hydra's context with the search path, nearest first, and an experiment given as a file."""
    from hydra import initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    if reading.experiment_path is not None:
        node = OmegaConf.load(reading.experiment_path)
        ConfigStore.instance().store(name=GIVEN_FILE, group="experiment", node=node, package="_global_")
    UsersConf.folders = [str(path) for path in reading.search if path != packaged_conf()]
    _register(UsersConf)
    return initialize_config_dir(str(packaged_conf()), version_base="1.3")


class UsersConf:
    """Hydra's search-path plugin that puts the user's folders before dlcli's own."""

    folders: list[str]


@cache
def _register(users: type[UsersConf]) -> None:
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class Plugin(SearchPathPlugin):
        def manipulate_search_path(self, search_path: Any) -> None:
            for folder in reversed(users.folders):
                search_path.prepend(provider="user", path=f"file://{folder}")

    Plugins.instance().register(Plugin)
