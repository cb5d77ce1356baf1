"""The walls: imports point one way, what answers at once imports nothing heavy, files stay short, tools run clean."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from program import REPOSITORY

from dlcli.confdir import packaged_conf, targets

PACKAGE = REPOSITORY / "dlcli"
FILES = sorted(PACKAGE.rglob("*.py"))
FAMILIES = ("models", "tasks", "datasets", "optimizers", "regularization")
BELOW = (
    "loop",
    "checkpoint",
    "runtime",
    "scores",
    "ranks",
    "gradients",
    "sharding",
    "batch_norm",
    "choices",
)  # tensors only: they see neither configs nor runs
HEAVY = ("torch", "torchvision", "hydra", "omegaconf", "wandb", "matplotlib", "sklearn", "numpy", "safetensors", "PIL")
HEAVY += ("optuna", "scipy", "sqlalchemy", "submitit", "ray")
LONGEST_FILE = 450
ALLOWED = {  # the loop runs tasks, steps optimizers and averages weights: these are its vocabulary
    "loop": {"tasks.task", "regularization.averaging", "optimizers.stepping", "optimizers.freezing"}
    | {"ranks", "errors"},
}


def module_of(path: Path) -> str:
    """`datasets.mnist` for dlcli/datasets/mnist.py."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path, *, at_top_only: bool = False) -> set[str]:
    """Dotted names a file imports, dlcli's own without `dlcli.`; what stands under TYPE_CHECKING is no import."""
    found: set[str] = set()
    for node in _statements(ast.parse(path.read_text(encoding="utf-8")), into_functions=not at_top_only):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            base = node.module or ""
            own = base == "dlcli" or base.startswith("dlcli.")
            found |= {f"{base}.{a.name}" if own and _is_module(f"{base}.{a.name}") else base for a in node.names}
    return {name.removeprefix("dlcli.") for name in found}


def _statements(node: ast.AST, *, into_functions: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and not into_functions:
            continue
        yield child
        yield from _statements(child, into_functions=into_functions)


def _is_module(dotted: str) -> bool:
    path = REPOSITORY.joinpath(*dotted.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


OWN = {module_of(path) for path in FILES}


def own_imports(path: Path) -> set[str]:
    return {name for name in imports(path) if name in OWN or name in FAMILIES}


def in_family(module: str, family: str) -> bool:
    return module == family or module.startswith(family + ".")


@pytest.mark.parametrize("family", FAMILIES)
def test_families_import_neither_one_another_nor_what_is_above(family: str) -> None:
    for path in sorted((PACKAGE / family).glob("*.py")):
        foreign = {name for name in own_imports(path) if not in_family(name, family)}
        assert foreign <= {"errors"}, f"{path.name} imports {foreign - {'errors'}}"


def test_the_loop_knows_neither_configs_nor_files_nor_screens() -> None:
    assert own_imports(PACKAGE / "loop.py") <= ALLOWED["loop"]
    for name in BELOW:
        found = imports(PACKAGE / f"{name}.py")
        assert not found & {
            "config",
            "record",
            "display",
            "session",
            "build",
            "training",
            "hydra",
            "omegaconf",
            "wandb",
        }
        assert not {module.split(".")[0] for module in found} & {"hydra", "omegaconf", "wandb", "rich", "typer"}


def test_hydra_stands_in_one_place_and_wandb_in_another() -> None:
    users = {
        package: {module_of(p) for p in FILES if package in {name.split(".")[0] for name in imports(p)}}
        for package in ("hydra", "wandb", "typer", "optuna", "ray", "submitit")
    }
    assert users["hydra"] == {"config.words", "config.composing"}, users["hydra"]
    assert all(name.startswith("sweep.") for package in ("optuna", "ray", "submitit") for name in users[package]), users
    assert users["wandb"] == {"follower"}, "in the tracker's own process"
    assert all(name == "cli" or name.startswith("commands") for name in users["typer"]), users["typer"]


def test_only_build_and_what_is_above_it_builds_objects() -> None:
    """Who imports what: commands -> start -> session -> training -> assembly -> build -> the families."""
    rooms = ("build", "session", "start")
    importers = {target: {module_of(p) for p in FILES if target in own_imports(p)} for target in rooms}
    above = {
        "assembly",
        "inspection",
        "checking",
        "training",
        "session",
        "trained",
        "tuning",
        "forecast",
        "comparison.answers",
    } | {
        *(f"commands.{c}" for c in ("evaluate", "generate", "info", "plan", "predict", "tune")),
        *(f"sweep.{c}" for c in ("workers.trial", "dry_run")),
    }
    rest = {name for name in importers["build"] - above if not name.startswith("vectorized.")}
    assert not rest, rest
    assert importers["session"] == {"start"}
    starters = ("commands.", "sweep.")
    assert all(name.startswith(starters) for name in importers["start"] - {"seeds.group", "comparison.rerunning"}), (
        importers["start"]
    )


def test_there_is_no_circle_among_the_modules() -> None:
    graph = {module_of(path): {n for n in imports(path, at_top_only=True) if n in OWN} for path in FILES}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module not in done:
            for name in graph[module]:
                visit(name, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def reached_at_the_top(module: str) -> dict[str, str]:
    """Every import that importing a module of dlcli causes, and which file it stands in."""
    found: dict[str, str] = {}
    rest, seen = [module], set[str]()
    while rest:
        name = rest.pop()
        seen.add(name)
        path = PACKAGE.joinpath(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        for imported in imports(path, at_top_only=True):
            found[imported] = name
            if imported in OWN and imported not in seen:
                rest.append(imported)
    return found


LIGHT = [
    "cli",
    "confdir",
    "schema",
    "errors",
    "display",
    "runs",
    "run_names",
    "registry.report",
    "registry.facts",
    "registry.query",
    "registry.table",
    "registry.bin",
    "registry.export",
    "completion",
    "session",
    "start",
    "launch",
]
LIGHT += [
    "config",
    "tracker",
    "record",
    "redaction",
    "disk",
    "health",
    "datasets.kinds",
    "datasets.roots",
    "datasets.image_tree",
    "predicting",
    "predicting.images",
    "diagnosis.evidence",
    "diagnosis.reasons",
]
LIGHT += [f"seeds.{name}" for name in ("group", "results", "display")]
LIGHT += [f"comparison.{name}" for name in ("answers", "verdict", "report", "differences", "rerunning", "significance")]
LIGHT += [module_of(path) for path in sorted((PACKAGE / "commands").glob("*.py"))]
LIGHT += [f"sweep.{name}" for name in ("running", "asking", "workers.overseeing", "workers.launchers")]
LIGHT += [f"sweep.showing.{name}" for name in ("reading", "report", "display")]


@pytest.mark.parametrize("module", LIGHT)
def test_what_answers_at_once_imports_nothing_heavy(module: str) -> None:
    reached = reached_at_the_top(module)
    heavy = {f"{name} in {where}" for name, where in reached.items() if name.split(".")[0] in HEAVY}
    assert heavy == set()


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_a_file_says_what_it_is_and_stays_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "it opens with a sentence"
    assert len(text.splitlines()) <= LONGEST_FILE


def test_every_target_in_conf_exists() -> None:
    found = targets([packaged_conf()])
    assert len(found) > 10
    for target in found:
        module, _, name = target.rpartition(".")
        assert callable(getattr(import_module(module), name)), target


@pytest.mark.parametrize(
    "command", [("ruff", "check"), ("ruff", "format", "--check"), ("mypy",)], ids=["check", "format", "mypy"]
)
def test_the_tools_run_clean(command: tuple[str, ...]) -> None:
    tool = shutil.which(command[0], path=f"{Path(sys.executable).parent}")
    if tool is None:
        pytest.skip(f"needs {command[0]}: pip install -e '.[test]'")
    done = subprocess.run([tool, *command[1:]], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr


def test_ci_runs_the_readmes_test_command_word_for_word() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    commands = [
        line.removeprefix("$ ").split("  #")[0].strip() for line in readme.splitlines() if line.startswith("$ pip")
    ]
    assert commands[0] == "pip install -e . && dlcli train"
    assert (REPOSITORY / ".ci" / "run").read_text().rstrip().splitlines()[-1] == commands[1]
