"""Kinds of data: each is one object, and nobody outside its file asks for it by name."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec

import pytest
from program import REPOSITORY

from dlcli.config.folders import packaged_conf
from dlcli.datasets.kinds import KINDS, Kind, kind_of

PACKAGE = REPOSITORY / "dlcli"


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_a_kind_is_made_asked_and_used(kind: Kind) -> None:
    assert callable(import_module(kind.made_by).made_up)
    assert kind.question and find_spec(f"dlcli.inference.predict.{kind.name}")
    assert kind is kind_of({"facts": {"gives": kind.name}})
    yamls = [path.read_text(encoding="utf-8") for path in (packaged_conf() / "dataset").glob("*.yaml")]
    is_default = kind is kind_of({})
    assert is_default or any(f"gives: {kind.name}" in text for text in yamls), "a dataset gives it"
    assert (PACKAGE / "datasets" / "kinds" / f"{kind.name}.py").is_file()


def test_an_unknown_kind_has_nothing() -> None:
    kind = kind_of({"facts": {"gives": "smells"}})
    assert (kind.name, kind.made_by, kind.question) == ("smells", "", "")
    kind.check_size({})


def test_nobody_compares_a_kind_by_its_name() -> None:
    """Outside the kinds themselves nothing compares what a dataset gives with a name."""
    guilty = []
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name in ("kinds", "files"):  # formats of files know nothing of kinds
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Compare):
                continue
            words = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
            names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
            if words & set(KINDS) and names & {"kind", "gives", "given", "kind_of"}:
                guilty.append(f"{path.relative_to(REPOSITORY)}:{node.lineno}")
    assert guilty == []


def test_kinds_import_nothing_heavy() -> None:
    code = "import sys, dlcli.datasets.kinds; sys.exit(bool({'torch', 'numpy', 'PIL'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0
