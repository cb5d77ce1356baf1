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

from dlcli.config.folders import packaged_conf
from dlcli.config.plain_yaml import targets

PACKAGE = REPOSITORY / "dlcli"
FILES = sorted(PACKAGE.rglob("*.py"))
# The rooms of the house. A room imports only rooms in a row below its own, late imports included; rooms of one row
# do not import one another.
ROWS = (
    ("cli",),
    ("commands",),
    ("sweep", "lessons", "completion"),
    ("planning", "evaluation"),
    ("inference",),
    ("training",),
    ("reporting",),
    ("runs",),
    ("config",),
    ("tasks", "models", "datasets", "optimizers"),
    ("runtime",),
    ("errors",),
)
FLOOR = {room: floor for floor, row in enumerate(ROWS) for room in row}
ROOT = ("__init__", "__main__", "cli", "completion", "errors")  # the modules that lie loose in dlcli/
MOST_LOOSE, MOST_ROOMS = 8, 20
LONGEST_FILE, LONGEST_FUNCTION = 450, 60  # lines
HEAVY = ("torch", "torchvision", "hydra", "omegaconf", "wandb", "matplotlib", "sklearn", "numpy", "safetensors", "PIL")
HEAVY += ("optuna", "scipy", "sqlalchemy", "submitit", "ray")


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_of(path: Path) -> str:
    """`datasets.mnist` for dlcli/datasets/mnist.py."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path, *, at_top_only: bool = False) -> set[str]:
    """Dotted names a file imports, dlcli's own without `dlcli.`; what stands under TYPE_CHECKING is no import."""
    found: set[str] = set()
    for node in _statements(_tree(path), into_functions=not at_top_only):
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


OWN = {module_of(path) for path in FILES} - {"__init__"}


def own_imports(path: Path) -> set[str]:
    """dlcli's own modules that a file imports, in functions too."""
    return {name for name in imports(path) if name in OWN}


def room_of(module: str) -> str:
    """The room that a module is in: its top package, or its own name where it lies loose."""
    top = module.split(".")[0]
    return "cli" if top == "__main__" else top


def arrows() -> Iterator[tuple[str, str]]:
    """Every import of one module of dlcli by another."""
    for path in FILES:
        for name in own_imports(path) if module_of(path) in OWN else ():
            yield module_of(path), name


def test_imports_point_down_the_house() -> None:
    climbing = sorted(
        f"{one} -> {other}"
        for one, other in arrows()
        if room_of(one) != room_of(other) and FLOOR[room_of(one)] >= FLOOR[room_of(other)]
    )
    assert climbing == []


def test_the_rooms_are_few_and_hardly_anything_lies_loose() -> None:
    rooms = {room_of(module) for module in OWN}
    assert rooms == set(FLOOR), rooms ^ set(FLOOR)
    loose = [path.stem for path in PACKAGE.glob("*.py")]
    assert len(rooms) <= MOST_ROOMS
    assert len(loose) <= MOST_LOOSE
    assert set(loose) == set(ROOT)


def test_the_loop_knows_neither_configs_nor_files_nor_screens() -> None:
    tensors_only = ["training.loop", "evaluation.scores", *(name for name in OWN if room_of(name) == "runtime")]
    allowed = ("tasks", "optimizers", "runtime", "errors")
    for name in tensors_only:
        path = PACKAGE.joinpath(*name.split("."))
        found = imports(path / "__init__.py" if path.is_dir() else path.with_suffix(".py"))
        assert {room_of(module) for module in found & OWN} <= set(allowed), name
        assert not {module.split(".")[0] for module in found} & {"hydra", "omegaconf", "wandb", "rich", "typer"}


def test_hydra_stands_in_one_place_and_wandb_in_another() -> None:
    users = {
        package: {module_of(p) for p in FILES if package in {name.split(".")[0] for name in imports(p)}}
        for package in ("hydra", "wandb", "typer", "optuna", "ray", "submitit")
    }
    assert users["hydra"] == {"config.words", "config.composing"}, users["hydra"]
    assert all(name.startswith("sweep.") for package in ("optuna", "ray", "submitit") for name in users[package]), users
    assert users["wandb"] == {"reporting.wandb_follower"}, "in the tracker's own process"
    assert all(name == "cli" or name.startswith("commands") for name in users["typer"]), users["typer"]


def test_only_the_builder_imports_what_a_config_names() -> None:
    """The one import of a module by a name that stands in a config is behind the allow-list."""
    users = {
        module_of(path)
        for path in FILES
        if any(isinstance(node, ast.Name) and node.id == "import_module" for node in ast.walk(_tree(path)))
    }
    lookups = {"inference.predict", "datasets.made_up"}  # of dlcli's own modules, by the kind of data
    assert users - lookups == {"training.allow_list", "training.completing"}


def circles(nodes: set[str], graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach one another (Tarjan's strongly connected components of two and more)."""
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = lowest[node] = len(index)
        stack.append(node)
        for other in graph.get(node, ()):
            if other not in index:
                visit(other)
                lowest[node] = min(lowest[node], lowest[other])
            elif other in stack:
                lowest[node] = min(lowest[node], index[other])
        if lowest[node] == index[node]:
            group = [stack.pop()]
            while group[-1] != node:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted(nodes):
        if node not in index:
            visit(node)
    return found


def test_there_is_no_circle_among_the_modules_late_imports_included() -> None:
    graph: dict[str, set[str]] = {}
    for one, other in arrows():
        graph.setdefault(one, set()).add(other)
    assert circles(OWN, graph) == []


def folder_of(module: str) -> str:
    """`sweep.ledger` for sweep/ledger/claims.py, `sweep` for sweep/run.py."""
    return module if PACKAGE.joinpath(*module.split(".")).is_dir() else module.rpartition(".")[0]


def test_there_is_no_circle_among_the_rooms_nor_among_the_folders_inside_one() -> None:
    rooms: dict[str, set[str]] = {}
    folders: dict[str, set[str]] = {}
    for one, other in arrows():
        if room_of(one) != room_of(other):
            rooms.setdefault(room_of(one), set()).add(room_of(other))
        here, there = folder_of(one), folder_of(other)
        if here and there and here != there:
            folders.setdefault(here, set()).add(there)
    assert circles(set(rooms), rooms) == []
    assert circles(set(folders), folders) == []


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
    "cli", "completion", "errors", "training.session", "training.start", "training.completing", "runtime.launch",
    "runtime.rendezvous", "planning.machine", "datasets.kinds", "datasets.storage.roots", "datasets.files.image_tree",
    "inference.predict", "inference.predict.images", "inference.image_files", "evaluation.significance",
    "evaluation.diagnosis.evidence", "evaluation.diagnosis.reasons", "sweep.run", "sweep.request",
    "sweep.workers.overseer", "sweep.workers.launchers", "sweep.results.report", "sweep.status.reading",
    "sweep.status.display",
]  # fmt: skip
NOT_LIGHT = {"config.composing", "config.words", "runs.checkpoint", "reporting.pictures", "reporting.wandb_follower"}
LIGHT += [
    module_of(path)
    for room in ("commands", "config", "reporting", "runs", "evaluation/compare", "evaluation/seeds")
    for path in sorted((PACKAGE / room).glob("*.py"))
    if module_of(path) not in NOT_LIGHT
]


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


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_functions_are_short(path: Path) -> None:
    long = {
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > LONGEST_FUNCTION
    }
    assert long == set()


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
