"""The builder: it builds only targets that a YAML file of the config folders names.

Exact strings are compared before anything is imported, so nothing in a checkpoint's config can reach
`os.system`, `torch.load` or `torch.hub.load`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from dlcli.config.folders import search_path
from dlcli.config.plain_yaml import targets
from dlcli.errors import CheckpointError, ConfigError, printable
from dlcli.runs.provenance import origin

Tree = Mapping[str, Any]


class Builder:
    """Builds the nodes whose targets are allowed.

    allowed: exact dotted paths; trusted: packages named by the user with --trust, any target of which is allowed.
    """

    def __init__(self, allowed: frozenset[str], trusted: Sequence[str] = ()):
        self.allowed, self.trusted = allowed, tuple(trusted)

    @classmethod
    def for_search(cls, search: Sequence[Path] | None = None, trusted: Sequence[str] = ()) -> Builder:
        return cls(targets(search if search is not None else search_path()), trusted)

    def check(self, tree: Any, *, written_by: str | None = None) -> None:
        """Raise CheckpointError when any `_target_` in the tree may not be built. written_by: dlcli's version then."""
        if isinstance(tree, Mapping):
            if "_target_" in tree:
                self._admit(tree["_target_"], written_by)
            for value in tree.values():
                self.check(value, written_by=written_by)
        elif isinstance(tree, list):
            for value in tree:
                self.check(value, written_by=written_by)

    def build(self, node: Tree, **live: Any) -> Any:
        """The object that a node describes; `live` objects replace or join its arguments."""
        self._admit(node.get("_target_"))
        target = _locate(node["_target_"])
        arguments = {k: self._argument(v) for k, v in node.items() if k not in ("_target_", "_partial_", "facts")}
        arguments |= live
        if node.get("_partial_"):
            _check_signature(target, arguments, node, is_partial=True)
            return partial(target, **arguments)
        _check_signature(target, arguments, node, is_partial=False)
        return target(**arguments)

    def _argument(self, value: Any) -> Any:
        return self.build(value) if isinstance(value, Mapping) and "_target_" in value else value

    def _admit(self, target: Any, written_by: str | None = None) -> None:
        if isinstance(target, str) and target in self.allowed:
            return
        package = target.split(".")[0] if isinstance(target, str) else ""
        if package and package in self.trusted:
            return
        message = f"the config asks to build {printable(target)}, which no config file of yours or dlcli's names"
        if written_by and package == "dlcli":
            raise CheckpointError(message, hint=origin(written_by))
        hint = f"If it is your own code, name its package: --trust {printable(package) or 'PACKAGE'}"
        raise CheckpointError(message, hint=hint)


def _locate(dotted: str) -> Callable[..., Any]:
    """Import the object named `package.module.Name`."""
    module, _, name = dotted.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"_target_: {printable(dotted)} cannot be imported: {printable(error)}",
            hint="Install its package, or correct the name. For a file in this folder: PYTHONPATH=. dlcli ...",
        ) from error


def _check_signature(target: Callable[..., Any], arguments: Tree, node: Tree, *, is_partial: bool) -> None:
    """Raise ConfigError, with the known names, if the target does not take the arguments."""
    signature = inspect.signature(target)
    try:
        (signature.bind_partial if is_partial else signature.bind)(**arguments)
    except TypeError as error:
        known = ", ".join(signature.parameters)
        raise ConfigError(f"{node['_target_']}: {error}", hint=f"It takes: {known}") from error
