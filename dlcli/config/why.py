"""Where a key was set: the chain of files and words, with line numbers; the last one wins."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlcli.config import Composed, compose_command
from dlcli.config.checks import setting_of
from dlcli.config.folders import describe, options, packaged_conf, search_path
from dlcli.config.renamed import new_name
from dlcli.config.tree import leaves
from dlcli.errors import ConfigError, Problem, nearest


def explain(words: Sequence[str], *, config_dir: str | None = None) -> dict[str, Any]:
    """Return {key, value, expects, meaning, chain: [{place, value}]}. words: [EXPERIMENT] KEY [KEY=VALUE]...

    KEY is a setting, or a group, whose chain shows where its option was chosen; KEY= means KEY.
    Raises ConfigError for an unknown key, and for every mistake that `dlcli train` would report.
    """
    experiments = options("experiment", search_path(config_dir))
    words = list(words)
    if not any("=" not in w and w not in experiments and not w.endswith((".yaml", ".yml")) for w in words):
        at = next((i for i, w in enumerate(words) if w.endswith("=") and w.count("=") == 1), len(words))
        words[at : at + 1] = [w[:-1] for w in words[at : at + 1]]  # as completion leaves it
    plain = [w for w in words if "=" not in w]
    named = [w for w in plain if w in experiments or w.endswith((".yaml", ".yml"))]
    keys = [w for w in plain if w not in named]
    rest = [w for w in words if w not in keys]
    if len(keys) != 1:
        raise ConfigError(
            f"one setting is asked for, {len(keys)} were named", hint="dlcli config why mnist optimizer.lr"
        )
    composed = compose_command(rest, config_dir=config_dir, command="config why")
    key = keys[0]
    if key in composed.choices:
        return _explain_group(key, composed, rest)
    settings = dict(leaves(composed.tree))
    if key not in settings:
        better = nearest(key.rsplit(".", 1)[-1], [k.rsplit(".", 1)[-1] for k in settings])
        full = (
            new_name(key)
            or nearest(key, settings, cutoff=0.7)
            or next((k for k in settings if better and k.endswith("." + better)), None)
        )
        problem = Problem(key, "there is no such setting", full)
        raise ConfigError("1 problem in the command, nothing was started", problems=[problem])
    setting = setting_of(key, composed.tree)
    chain = _chain(key, composed, rest)
    return {"key": key, "value": settings[key], "expects": setting.expects, "meaning": setting.meaning, "chain": chain}


def _explain_group(group: str, composed: Composed, words: Sequence[str]) -> dict[str, Any]:
    """Explain where the option of a group was chosen (train.yaml, experiment or command), and what the option is."""
    name, known = composed.choices[group], options(group, composed.search)
    train = [conf / "train.yaml" for conf in composed.search if (conf / "train.yaml").is_file()][:1]
    experiment = _experiment_file(composed, words)
    files = [*train, *([experiment] if experiment else [])]
    chain = [found for path in files if (found := _default_in_file(path, group)) is not None]
    return {
        "key": group,
        "value": name,
        "expects": f"one of {', '.join(sorted(known))}",
        "meaning": describe(known[name]),
        "file": _short(known[name]),
        "chain": chain + _in_command(group, words),
    }


def _experiment_file(composed: Composed, words: Sequence[str]) -> Path | None:
    given = next((Path(w) for w in words if w.endswith((".yaml", ".yml")) and "=" not in w), None)
    return given or options("experiment", composed.search).get(composed.experiment)


def _chain(key: str, composed: Composed, words: Sequence[str]) -> list[dict[str, Any]]:
    """List the places in Hydra's order of merging: the option's file, train.yaml, the experiment, the command."""
    places: list[tuple[Path, str]] = []
    group, _, rest = key.partition(".")
    if group in composed.choices and rest:
        places.append((options(group, composed.search)[composed.choices[group]], rest))
    places += [(conf / "train.yaml", key) for conf in composed.search if (conf / "train.yaml").is_file()][:1]
    chosen = any(word.partition("=")[0] == group for word in words)
    experiment = _experiment_file(composed, words)
    if experiment is not None and not chosen:
        places.append((experiment, key))
    chain = [found for path, inside in places if (found := _in_file(path, inside)) is not None]
    return chain + _in_command(key, words)


def _in_command(key: str, words: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"place": f"the command, word {number}", "value": word.partition("=")[2]}
        for number, word in enumerate(words, 1)
        if re.match(rf"^\+{{0,2}}{re.escape(key)}=", word)
    ]


def _default_in_file(path: Path, group: str) -> dict[str, Any] | None:
    """Return line and option of a group in the defaults list of a YAML file, or None."""
    import yaml

    node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    defaults = next((v for k, v in pairs if k.value == "defaults" and isinstance(v, yaml.SequenceNode)), None)
    for item in defaults.value if defaults else []:
        for key, value in item.value if isinstance(item, yaml.MappingNode) else []:
            if re.fullmatch(rf"(override\s+)?/?{re.escape(group)}", key.value):
                return {"place": f"{_short(path)}:{key.start_mark.line + 1}", "value": value.value}
    return None


def _in_file(path: Path, key: str) -> dict[str, Any] | None:
    """Return line and value of a dotted key in a YAML file, or None."""
    import yaml

    text = path.read_text(encoding="utf-8")
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    line = 0
    for part in key.split("."):
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        match = next(((k, v) for k, v in pairs if k.value == part), None)
        if match is None:
            return None
        line, node = match[0].start_mark.line + 1, match[1]
    written = text[node.start_mark.index : node.end_mark.index] if node is not None else ""
    value = node.value if isinstance(node, yaml.ScalarNode) else " ".join(written.split())
    return {"place": f"{_short(path)}:{line}", "value": value}


def _short(path: Path) -> str:
    packaged = packaged_conf()
    return f"conf/{path.relative_to(packaged)} (dlcli's)" if packaged in path.parents else str(path)
