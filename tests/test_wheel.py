"""The wheel as a user gets it: built, installed in a fresh environment elsewhere, and it learns there. No network."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from program import REPOSITORY, environment, events_of

GUESSING = 0.12  # accuracy on ten classes


def call(*command: object, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """A process without our PYTHONPATH: what it imports comes from its own environment."""
    clean = {k: v for k, v in environment(**env).items() if k not in ("PYTHONPATH", "DLCLI_DATA")}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=clean, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("hatchling") is None or find_spec("pip") is None:
        pytest.skip("needs hatchling and pip to build without a network: pip install -e '.[test]'")
    folder = tmp_path_factory.mktemp("wheel")
    flags = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    call(sys.executable, "-m", "pip", "wheel", *flags, "--wheel-dir", folder, REPOSITORY, cwd=folder)
    (built,) = folder.glob("dlcli-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of a fresh environment: dlcli from the wheel, all other packages borrowed from ours."""
    home = tmp_path_factory.mktemp("elsewhere") / "venv"
    call(sys.executable, "-m", "venv", "--without-pip", home, cwd=home.parent)
    python = home / "bin" / "python"
    own = Path(call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home).stdout.strip())
    # as plain folders on the path: the editable installation of our environment, which is a .pth too, is not followed
    borrowed = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (own / "borrowed.pth").write_text("".join(f"{path}\n" for path in borrowed))
    flags = ("--no-deps", "--no-index", "--ignore-installed", "--disable-pip-version-check")
    call(sys.executable, "-m", "pip", "--python", python, "install", *flags, wheel, cwd=home)
    return home / "bin"


def test_the_wheel_brings_conf_types_and_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry = archive.read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    expected = {f"dlcli/{path.relative_to(REPOSITORY)}" for path in (REPOSITORY / "conf").rglob("*.yaml")}
    assert expected <= names
    assert {"dlcli/py.typed", "dlcli/completion.txt", "dlcli/cli.py"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "dlcli = dlcli.cli:main" in entry
    modules = {f"{path.relative_to(REPOSITORY)}" for path in (REPOSITORY / "dlcli").rglob("*.py")}
    assert modules <= names and not any(name.startswith("tests/") for name in names)


def test_what_is_installed_learns_elsewhere(installed: Path, tmp_path: Path) -> None:
    package = Path(call(installed / "python", "-c", "import dlcli; print(dlcli.__file__)", cwd=tmp_path).stdout).parent
    assert package.is_relative_to(installed.parent), f"{package} is not from the wheel"
    assert (package / "conf" / "train.yaml").is_file()
    words = ("train", "digits", "trainer.epochs=1", "tracker=none", "runtime.device=cpu", "runtime.threads=1", "--json")
    done = call(installed / "dlcli", *words, cwd=tmp_path, PATH=f"{installed}{os.pathsep}{os.environ['PATH']}")
    summary: dict[str, Any] = events_of(done.stdout)[-1]
    assert summary["status"] == "completed"
    assert summary["metrics"]["val/accuracy"] > 3 * GUESSING, summary["metrics"]
    assert Path(summary["run"]).is_relative_to(tmp_path)


def test_tab_works_where_it_is_installed(installed: Path, tmp_path: Path) -> None:
    line = {"_DLCLI_COMPLETE": "complete_bash", "COMP_WORDS": "dlcli train mnist_f", "COMP_CWORD": "2"}
    assert call(installed / "dlcli", cwd=tmp_path, **line).stdout == "mnist_fast\n"
