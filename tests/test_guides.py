"""The recipes of CONTRIBUTING.md run as they are written, in a copy of dlcli; the guides name what exists."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from program import REPOSITORY, environment

from dlcli.completion import TABLE

GUIDES = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md")
RECIPES = ("A model", "A dataset of a known kind", "A new kind of data", "A task", "A metric", "A command")


class Block(NamedTuple):
    """A fenced block: its language, the file that it is or changes, its text."""

    language: str
    path: str
    text: str


def blocks(markdown: str) -> Iterator[Block]:
    for found in re.finditer(r"^```(\w+) ?(\S*)\n(.*?)^```$", markdown, re.MULTILINE | re.DOTALL):
        yield Block(*found.groups())


def recipes() -> dict[str, list[Block]]:
    """The blocks of each `### ` section of CONTRIBUTING.md."""
    parts = re.split(r"^##+ (.+)\n", (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    return {name: list(blocks(sections[name])) for name in RECIPES}


def commands(section: list[Block]) -> list[list[str]]:
    lines = [line for block in section if block.language == "console" for line in block.text.splitlines()]
    return [shlex.split(line.removeprefix("$ dlcli ")) for line in lines if line.startswith("$ dlcli ")]


def change(path: Path, diff: str) -> None:
    """Apply a block of ` `, `-` and `+` lines; what it expects must be in the file exactly once."""
    lines = diff.splitlines(keepends=True)
    before, after = ("".join(line[1:] for line in lines if line[0] in signs) for signs in (" -", " +"))
    text = path.read_text(encoding="utf-8")
    assert text.count(before) == 1, f"{path.name} does not have these lines once:\n{before}"
    path.write_text(text.replace(before, after), encoding="utf-8")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of dlcli with every recipe carried out, in the order of the guide."""
    folder = tmp_path_factory.mktemp("checkout")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("dlcli", "conf"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=ignored)
    for section in recipes().values():
        for block in section:
            if block.language == "diff":
                change(folder / block.path, block.text)
            elif block.path:
                path = folder / block.path
                assert not path.exists(), f"{block.path} is there already: choose another example"
                path.write_text(block.text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where the commands run and the runs are kept."""
    return tmp_path_factory.mktemp("desk")


def run(words: list[str], checkout: Path, desk: Path, **env: str) -> str:
    if words[0] == "train":
        words = [*words, "tracker=none", "runtime.threads=1", "runtime.device=cpu"]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "dlcli", *words], cwd=desk, capture_output=True, text=True, check=False,
        env=environment(**({"PYTHONPATH": str(checkout)} | env)), timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, f"dlcli {' '.join(words)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def last_scores(desk: Path) -> dict[str, float]:
    newest = max((desk / "outputs").glob("*/*/summary.json"), key=lambda path: path.stat().st_mtime_ns)
    return json.loads(newest.read_text())["metrics"]


@pytest.mark.parametrize(
    ("name", "score", "at_least"),
    [
        ("A model", "val/accuracy", 0.8),
        ("A dataset of a known kind", "val/accuracy", 0.8),
        ("A new kind of data", "val/r2", 0.3),
        ("A task", "val/accuracy", 0.8),
        ("A metric", "val/top3", 0.9),
    ],
)
def test_a_recipe_learns(name: str, score: str, at_least: float, checkout: Path, desk: Path) -> None:
    section = recipes()[name]
    assert commands(section), name
    for words in commands(section):
        run(words, checkout, desk)
    assert last_scores(desk)[score] >= at_least, last_scores(desk)


def test_the_same_files_work_in_a_folder_of_ones_own(tmp_path: Path) -> None:
    for block in recipes()["A model"]:
        if block.path:
            path = tmp_path / block.path.removeprefix("dlcli/models/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text.replace("dlcli.models.residual_mlp", "residual_mlp"), encoding="utf-8")
    words = ["train", "digits", "model=residual_mlp", "trainer.epochs=1"]
    run(words, REPOSITORY, tmp_path, PYTHONPATH=f"{tmp_path}{os.pathsep}{REPOSITORY}")
    assert last_scores(tmp_path)["val/accuracy"] > 0.3


def test_a_command_is_one_file_and_its_line(checkout: Path, desk: Path) -> None:
    run(["train", "digits", "trainer.epochs=1"], checkout, desk)
    plain, as_json = (run(words, checkout, desk) for words in commands(recipes()["A command"]))
    assert "optimizer" in plain and "adam" in plain
    assert {"group": "optimizer", "option": "adam"} in [json.loads(line) for line in as_json.splitlines()]
    assert "choices" in run(["--help"], checkout, desk)


def test_a_recipe_touches_the_files_that_architecture_counts() -> None:
    touched = {
        name: sorted(f"{'+' if block.language != 'diff' else '~'} {block.path}" for block in section if block.path)
        for name, section in recipes().items()
    }
    assert touched["A model"] == ["+ conf/model/residual_mlp.yaml", "+ dlcli/models/residual_mlp.py"]
    assert touched["A dataset of a known kind"] == ["+ conf/dataset/parity.yaml", "+ dlcli/datasets/parity.py"]
    assert touched["A task"] == ["+ conf/task/focal.yaml", "+ dlcli/tasks/focal.py"]
    assert touched["A metric"] == ["~ conf/task/focal.yaml", "~ dlcli/tasks/focal.py"]
    assert set(touched["A command"]) == {"+ dlcli/commands/choices.py", "~ dlcli/cli.py"}


def test_the_python_of_the_guide_is_tidy(checkout: Path) -> None:
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent))
    if ruff is None:
        pytest.skip("needs ruff: pip install -e '.[test]'")
    shutil.copy(REPOSITORY / "pyproject.toml", checkout)
    paths = [block.path for section in recipes().values() for block in section if block.language == "python"]
    for command in (("check",), ("format", "--check")):
        done = subprocess.run([ruff, *command, *paths], cwd=checkout, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_files_that_the_guides_name_exist() -> None:
    """`dlcli/x.py`, `conf/x.yaml`, `tests/x.py`, and in ARCHITECTURE.md files of dlcli without `dlcli/`."""
    made = {block.path for section in recipes().values() for block in section} | {"conf/model/mine.yaml"}
    absent = set()
    for guide in GUIDES:
        text = (REPOSITORY / guide).read_text(encoding="utf-8")
        for name in re.findall(r"(?<![\w/.])(?:[a-z_]+/)+[a-z_]+\.(?:py|yaml)\b", text):
            if not any((REPOSITORY / top / name).is_file() for top in ("", "dlcli")) and name not in made:
                absent.add(f"{guide}: {name}")
    assert not absent, absent


def test_architecture_draws_every_package() -> None:
    text = (REPOSITORY / "ARCHITECTURE.md").read_text(encoding="utf-8")
    picture = text.partition("## The packages")[2].partition("## ")[0]
    packages = {path.parent.name for path in (REPOSITORY / "dlcli").glob("*/*.py")} - {"conf"}
    assert {name for name in packages if not re.search(rf"\b{name}\b", picture)} == set()


def test_the_way_climbs_nowhere() -> None:
    """Each stop of the way is in a package at or below that of the stop that calls it; the packages are counted."""
    text = (REPOSITORY / "ARCHITECTURE.md").read_text(encoding="utf-8")
    way = text.partition("## From word to weight")[2].partition("\n## ")[0]
    layers = (
        "cli.py",
        "commands",
        "sweep",
        "planning",
        "evaluation",
        "inference",
        "training",
        "reporting",
        "runs",
        "config",
    )
    below = ("datasets", "models", "tasks", "optimizers", "runtime")
    height = {name: depth for depth, name in enumerate(layers)} | dict.fromkeys(below, len(layers))
    callers: list[tuple[int, str]] = []
    for indent, stop in re.findall(r"^    ( *)(\S+?)(?:,|\s)", way, re.MULTILINE):
        package = stop.partition("/")[0]
        callers = [caller for caller in callers if caller[0] < len(indent)]
        if callers:
            assert height[package] >= height[callers[-1][1]], f"{stop} is above {callers[-1][1]}"
        callers.append((len(indent), package))
    packages = set(re.findall(r"^ +([a-z]+)/", way, re.MULTILINE))
    assert packages <= height.keys()
    assert f"enters {len(packages)} packages" in way, sorted(packages)


def test_a_commit_is_checked_by_the_tools_of_the_test_extra() -> None:
    hooks = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    pinned = {
        name.partition("==")[0]
        for name in tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"][
            "test"
        ]
        if "==" in name
    }
    assert {hook["entry"].split()[0] for hook in hooks} == pinned == {"ruff", "mypy"}
    assert all(hook["language"] == "system" for hook in hooks), "the installed versions, not others of their own"


@pytest.mark.parametrize("guide", [*GUIDES, "docs/commands.md", "docs/experiments.md"])
def test_links_between_the_guides_lead_somewhere(guide: str) -> None:
    path = REPOSITORY / guide
    links = re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_the_readme_shows_all_commands_on_one_screen_and_a_line_for_each_package() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    screen = readme.partition("## Commands\n")[2].partition("```\n")[2].partition("```\n")[0]
    assert 20 < len(screen.splitlines()) <= 40
    table = [line.partition("\t")[0] for line in TABLE.read_text(encoding="utf-8").splitlines() if line[:1].strip()]
    groups = {path.partition(" ")[0] for path in table if " " in path}
    assert [path for path in table if path not in groups and f"dlcli {path}" not in screen] == []
    house = readme.partition("## The house\n")[2].partition("```\n")[2].partition("```\n")[0]
    lines = re.findall(r"^  ([a-z]+)/ ", house, re.MULTILINE)
    assert len(lines) == len(set(lines))
    assert set(lines) == {path.parent.name for path in (REPOSITORY / "dlcli").glob("*/*.py")}
