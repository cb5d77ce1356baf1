"""`dlcli learn`: each topic in a pipe and in a terminal; its picture, its mistakes, what it claims."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shlex
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from program import dlcli, environment, events_of

from dlcli.completion import complete
from dlcli.lessons import TOPICS
from dlcli.lessons.backprop import SHOWN
from dlcli.lessons.charts import HEIGHT, block, side_by_side
from dlcli.lessons.lesson import Chart

LAST_LINES = ("code", "picture", "for", "next")


def rows_of(topic: str, table: str, *words: str, cwd: Path) -> list[dict[str, object]]:
    done = dlcli("learn", topic, *words, "--json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return [event for event in events_of(done.stdout) if event.get("table") == table]


# ------------------------------------------------------------------------------------------------------- as it is seen


@pytest.mark.parametrize("topic", TOPICS)
def test_a_topic_prints_tables_draws_a_picture_and_ends_with_a_command(topic: str, tmp_path: Path) -> None:
    done = dlcli("learn", topic, cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[-4:]] == list(LAST_LINES)
    assert lines[-1].split(None, 1)[1].startswith("dlcli train ")
    assert "\x1b" not in done.stdout and not re.search("[⠀-⣿]", done.stdout), "a pipe gets neither colours nor curves"
    assert Path(lines[-4].split()[1]).read_text().startswith('"""'), "the code that was run, to be read"
    with Image.open(tmp_path / lines[-3].split()[1]) as picture:
        assert picture.width > 900 and picture.height > 400 and np.unique(picture.convert("L")).size > 20
    assert [p.name for p in tmp_path.iterdir()] == ["outputs"], "nothing in the user's folder but outputs/"
    assert dlcli("learn", topic, cwd=tmp_path).stdout == done.stdout, "the same again"


def test_alone_it_lists_the_topics(tmp_path: Path) -> None:
    done = dlcli("learn", cwd=tmp_path)
    assert done.returncode == 0 and [line.split()[0] for line in done.stdout.splitlines()] == ["name", *TOPICS]
    rows = events_of(dlcli("learn", "--json", cwd=tmp_path).stdout)
    assert [row["command"] for row in rows] == [f"dlcli learn {topic}" for topic in TOPICS]


def test_its_folder_is_no_run(tmp_path: Path) -> None:
    assert dlcli("learn", "activations", cwd=tmp_path).returncode == 0
    assert dlcli("runs", "ls", "--json", cwd=tmp_path).stdout == ""
    assert dlcli("runs", "prune", "--yes", cwd=tmp_path).returncode == 0
    assert (tmp_path / "outputs/learn/activations.png").is_file()


@pytest.mark.parametrize("topic", TOPICS)
def test_json_has_an_object_per_row_and_one_for_the_whole_and_torch_is_not_imported(topic: str, tmp_path: Path) -> None:
    script = """
import sys
from dlcli.cli import run
code = run(sys.argv[1:])
heavy = ("torch", "torchvision", "hydra", "omegaconf", "wandb", "sklearn", "scipy", "pandas", "matplotlib.pyplot")
print(code, [m for m in heavy if m in sys.modules], file=sys.stderr)
"""
    command = [sys.executable, "-P", "-c", script, "learn", topic, "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.stderr.splitlines() == ["0 []"]
    *rows, end = events_of(done.stdout)
    assert rows and all(row["event"] == "learned" and row["topic"] == topic for row in rows)
    assert end["event"] == "lesson_finished" and len(end["next"]) == 1
    assert Path(tmp_path / end["picture"]).is_file() and Path(end["code"]).is_file()


def in_a_terminal(*words: str, cwd: Path, columns: int, **env: str) -> str:
    """What a terminal of so many columns receives."""
    from fcntl import ioctl
    from termios import TIOCSWINSZ

    ours, theirs = pty.openpty()
    ioctl(theirs, TIOCSWINSZ, struct.pack("HHHH", 60, columns, 0, 0))
    command = [sys.executable, "-P", "-m", "dlcli", *words]
    child = subprocess.Popen(
        command, cwd=cwd, env=environment(TERM="xterm", **env), stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    received, end = b"", time.monotonic() + 60
    while time.monotonic() < end and select.select([ours], [], [], 60)[0]:
        try:
            received += os.read(ours, 65536)
        except OSError:  # the child has closed it
            break
    os.close(ours)
    assert child.wait(30) == 0, received.decode()
    return re.sub(r"\x1b\[[0-9;]*m", "", received.decode()).replace("\r\n", "\n")


@pytest.mark.parametrize(("topic", "columns"), [("activations", 60), ("backprop", 80), ("optimizers", 150)])
def test_a_terminal_shows_curves_and_no_line_is_too_long(topic: str, columns: int, tmp_path: Path) -> None:
    shown = in_a_terminal("learn", topic, cwd=tmp_path, columns=columns)
    assert re.search("[⠀-⣿]", shown)
    for line in shown.splitlines():
        assert len(line) <= columns or line.startswith(("code", "picture", "next")), "paths and commands stay whole"


def test_a_terminal_without_braille_gets_curves_of_ascii(tmp_path: Path) -> None:
    shown = in_a_terminal("learn", "neuron", cwd=tmp_path, columns=80, PYTHONIOENCODING="ascii")
    assert shown.isascii() and re.search(r"[.':]{5}", shown)


# ----------------------------------------------------------------------------------------------------------- the curves


def test_a_chart_has_its_curve_between_its_limits() -> None:
    rows = block(Chart("line", [0.0, 0.5, 1.0], (0, 2)), 27, ascii_only=True)
    assert len(rows) == HEIGHT + 2 and rows[0].strip() == "line"
    assert rows[1].split()[0] == "1" and rows[HEIGHT].split()[0] == "0"
    columns = [max(row.rfind("."), row.rfind("'"), row.rfind(":")) for row in rows[1 : HEIGHT + 1]]
    assert columns == sorted(columns, reverse=True), "it rises to the right"


@pytest.mark.parametrize("ys", [[1.0], [2.0, 2.0], [float("nan")] * 3, [0.0, float("inf"), 1.0], [1e30, -1e30]])
def test_a_chart_takes_any_values(ys: list[float]) -> None:
    for ascii_only in (False, True):
        lines = list(side_by_side([Chart("any", ys, (0, 1))] * 3, width=80, ascii_only=ascii_only))
        assert all(len(line) <= 80 for line in lines)


# ------------------------------------------------------------------------------------------------------ what it claims


def test_the_neuron_gets_every_point_right_for_any_seed(tmp_path: Path) -> None:
    for seed in ("0", "5"):
        before, after = rows_of("neuron", "neuron", "--seed", seed, cwd=tmp_path)
        assert after["accuracy"] == 1.0 and after["loss"] < before["loss"]
    xor = rows_of("neuron", "neuron", "--data", "xor", cwd=tmp_path)[1]
    assert xor["accuracy"] < 0.8


def test_backprop_says_honestly_what_each_start_reaches(tmp_path: Path) -> None:
    rows = rows_of("backprop", "backprop", cwd=tmp_path)
    learned = {(row["data"], row["lr"]): row["learned"] for row in rows}
    assert [row["data"] for row in rows] == [*SHOWN, *SHOWN]
    assert learned["xor", 0.01] == "nothing" and learned["clouds", 0.01] == "a straight line"
    assert learned["moons", 1.0] == learned["xor", 1.0] == "a bent line"
    (own,) = rows_of("backprop", "backprop", "--data", "circles", "--lr", "1", "--epochs", "10", cwd=tmp_path)
    assert (own["lr"], own["scale"]) == (1.0, 0.01)


def test_optimizers_arrive_and_a_rate_that_is_too_large_diverges(tmp_path: Path) -> None:
    best = {row["optimizer"]: row for row in rows_of("optimizers", "descents", cwd=tmp_path)}
    assert best["sgd"]["last_loss"] > 0.1 and best["sgd"]["arrives"] == "not in 100"
    assert all(isinstance(row["arrives"], int) for name, row in best.items() if name != "sgd")
    shared = {row["optimizer"]: row for row in rows_of("optimizers", "descents", "--lr", "0.03", cwd=tmp_path)}
    assert shared["sgd"]["arrives"] == "diverged" != shared["momentum"]["arrives"]


def test_regularization_lowers_the_test_loss_and_l1_empties_weights(tmp_path: Path) -> None:
    rows = rows_of("regularization", "overfitting", cwd=tmp_path)
    nothing, with_l1, with_l2, _ = rows
    assert nothing["train_accuracy"] > 0.99 and nothing["test_loss"] > np.log(2), "surer than a guess, and wrong"
    assert all(row["test_loss"] < nothing["test_loss"] for row in rows[1:])
    assert with_l1["small_weights"] > 25 > with_l2["small_weights"]
    layers = {row["layer"]: row for row in rows_of("regularization", "layers", cwd=tmp_path)}
    assert layers["batch norm, training"]["std"] == pytest.approx(1, abs=1e-3)
    assert layers["dropout 0.5, training"]["mean"] == pytest.approx(3, abs=0.15)


@pytest.mark.parametrize("topic", TOPICS)
def test_the_command_for_real_works_when_pasted(topic: str, tmp_path: Path) -> None:
    line = dlcli("learn", topic, cwd=tmp_path).stdout.splitlines()[-1].split(None, 1)[1]
    words = shlex.split(line)[1:]
    quick = ["trainer.epochs=2", "tracker=none", "runtime.threads=1", "runtime.device=cpu", "--json"]
    done = dlcli(*words, *quick, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert events_of(done.stdout)[-1]["metrics"]["test/accuracy"] > 0.2, "of ten digits"


# ------------------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["nuron"], 2, "neuron"),
        (["neuron", "--data", "mons"], 2, "Did you mean moons?"),
        (["neuron", "--data", "zzz"], 2, "separable, clouds, moons, circles, xor"),
        (["neuron", "--lrr", "1"], 2, "--lr"),
        (["neuron", "--lr", "nan"], 2, "must be a number"),
        (["neuron", "--epochs", "0"], 2, "1<=x<="),
        (["neuron", "--picture", "x.pdf"], 2, "--picture x.png"),
        (["neuron", "--picture", "/proc/nowhere/x.png"], 5, "could not be written"),
        (["backprop", "--scale", "inf"], 2, "inf"),
        (["--json", "neuron"], 2, "dlcli learn neuron --json"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else None,
)
def test_a_mistake_is_told_with_its_remedy(words: list[str], code: int, said: str, tmp_path: Path) -> None:
    done = dlcli("learn", *words, cwd=tmp_path)
    assert done.returncode == code and said in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_picture_goes_where_it_is_asked_for_and_an_unwritable_outputs_is_only_a_warning(tmp_path: Path) -> None:
    asked = tmp_path / "new" / "mine.png"
    assert dlcli("learn", "neuron", "--picture", str(asked), cwd=tmp_path).returncode == 0
    assert asked.is_file() and not (tmp_path / "outputs").exists()
    done = dlcli("learn", "neuron", "--outputs", "/proc/nowhere", "--json", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr.startswith("warning: the picture could not be written")
    assert events_of(done.stdout)[-1]["picture"] is None


@pytest.mark.parametrize(
    "words",
    [
        ("regularization", "--strength", "100", "--lr", "1000"),
        ("optimizers", "--lr", "1000", "--steps", "2000"),
        ("backprop", "--lr", "1000", "--scale", "1000", "--epochs", "50"),
        ("neuron", "--lr", "0", "--epochs", "1"),
    ],
    ids=" ".join,
)
def test_wild_settings_are_shown_and_never_fail(words: tuple[str, ...], tmp_path: Path) -> None:
    """Divergence is a lesson too; no warning of NumPy's reaches the user, and JSON stays JSON."""
    done = dlcli("learn", *words, "--json", cwd=tmp_path, PYTHONWARNINGS="error")
    assert done.returncode == 0 and done.stderr == ""
    for line in done.stdout.splitlines():
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_topics_flags_and_data_are_completed() -> None:
    assert complete(["learn"], "") == list(TOPICS)
    assert complete(["learn", "neuron"], "--da") == ["--data"]
    assert complete(["learn", "neuron", "--data"], "c") == ["clouds", "circles"]
