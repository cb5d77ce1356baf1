"""The commands as users type them: help that works when pasted, JSON for scripts, names of checkpoints, images."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from program import QUICK, REPOSITORY, environment, events_of
from program import real_dlcli as dlcli  # starts, signals and exit codes are the point here

from dlcli.runs.checkpoint import read
from dlcli.runs.folder import RunFolder

COMMANDS = (
    "train", "eval", "resume", "predict", "generate", "runs ls", "runs show", "runs rm",
    "runs restore", "runs prune", "runs export", "config show", "config why", "list", "sync", "doctor",
    "completion", "plan", "info", "why", "compare", "rerun", "tune batch", "tune lr", "tune workers", "sweep start",
    "sweep resume", "sweep join", "sweep status", "sweep top", "sweep apply",
    "learn", "learn neuron", "learn activations", "learn backprop", "learn optimizers", "learn regularization",
)  # fmt: skip
HEAVY = ("torch", "torchvision", "hydra", "omegaconf", "wandb", "matplotlib", "sklearn")


@pytest.fixture(scope="session")
def trained(quick_run: Path) -> Path:
    """The folder in which the quick run was made: a user's working directory."""
    return quick_run.parents[2]


def answer(*words: str, cwd: Path, **more: Any) -> dict[str, Any]:
    """The one JSON object that a command prints."""
    done = dlcli(*words, "--json", cwd=cwd, **more)
    assert done.returncode == 0, done.stderr
    (event,) = events_of(done.stdout)
    return event


# -------------------------------------------------------------------------------------------------------------- help


def example_of(command: str) -> str:
    done = dlcli(*command.split(), "--help", cwd=REPOSITORY, COLUMNS="200")
    assert done.returncode == 0, done.stderr
    (example,) = re.findall(r"Example: (dlcli .*)", done.stdout)
    return re.sub(r"\s*│?$", "", example)


@pytest.fixture(scope="session")
def quick_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs in which a sweep of two trials lies."""
    folder = tmp_path_factory.mktemp("sweep")
    done = dlcli("sweep", *QUICK, "optimizer.lr=0.01,0.001", "--sampler", "grid", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "outputs"


def train_to_write(folder: Path) -> None:
    """The latest run is a language model's, of two steps."""
    (folder / "play.txt").write_text("ROMEO:\nWhat said my man?\n" * 40)
    words = (
        "dataset=text",
        "dataset.path=play.txt",
        "model.num_layers=1",
        "dataset.context_length=16",
        "trainer.max_steps=2",
    )
    done = dlcli("train", "shakespeare", *words, "tracker=none", cwd=folder)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_in_the_help_works_when_pasted(
    command: str, quick_run: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """In a folder with one run, or one removed, or a sweep; `train` and `resume` with fewer epochs, `sync` without a
    key.
    """
    example = example_of(command)
    assert example.startswith(f"dlcli {command.removesuffix(' start')}"), "it shows this command"
    shutil.copytree(quick_run.parents[1], tmp_path / "outputs", symlinks=True)
    Image.new("L", (8, 8)).save(tmp_path / "picture.png")
    if command.startswith("sweep "):
        shutil.copytree(request.getfixturevalue("quick_sweep"), tmp_path / "outputs", symlinks=True, dirs_exist_ok=True)
    if command == "generate":
        train_to_write(tmp_path)
    if command == "runs restore":
        assert dlcli("runs", "rm", "latest", cwd=tmp_path).returncode == 0
    words = [re.sub(r"epochs=\d+", "epochs=3", word) for word in shlex.split(example)[1:]]
    if command in ("train", "sweep start"):
        words += ["trainer.epochs=1", "tracker=none"]
    done = dlcli(*words, cwd=tmp_path, HOME=str(tmp_path), NETRC=str(tmp_path / "netrc"))
    assert done.returncode == (7 if command == "sync" else 0), done.stderr
    assert "Traceback" not in done.stderr


def test_the_readme_names_every_command() -> None:
    text = (REPOSITORY / "README.md").read_text()
    assert [command for command in COMMANDS if f"dlcli {command}" not in text] == []


def test_the_help_names_every_command() -> None:
    done = dlcli("--help", cwd=REPOSITORY)
    assert all(re.search(rf"\b{command.split()[0]}\b", done.stdout) for command in COMMANDS)
    assert dlcli("--version", cwd=REPOSITORY).stdout.startswith("dlcli 0.")


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["train", "--help"],
        ["list"],
        ["list", "model"],
        ["runs", "ls"],
        ["runs", "ls", "model=mlp val/loss<9", "--sort", "optimizer.lr"],
        ["runs", "export", "--format", "markdown"],
        ["runs", "prune", "seed=0"],
        ["runs", "show"],
        ["completion", "bash"],
    ],
    ids=" ".join,
)
def test_what_answers_at_once_imports_nothing_heavy(words: list[str], trained: Path) -> None:
    script = f"""
import sys
from dlcli.cli import run
code = run(sys.argv[1:])
print(code, [m for m in {HEAVY} if m in sys.modules], file=sys.stderr)
"""
    command = [sys.executable, "-P", "-c", script, *words]
    done = subprocess.run(command, cwd=trained, env=environment(), capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "0 []", done.stderr


def test_completion_imports_nothing_heavy(trained: Path) -> None:
    script = f"""
import sys
from dlcli.cli import main
try:
    main()
except SystemExit as end:
    print(end.code, [m for m in {HEAVY} if m in sys.modules], file=sys.stderr)
"""
    for line, found in (
        ("dlcli train mn", "mnist"),
        ("dlcli train model=re", "model=resnet"),
        ("dlcli eval la", "latest"),
    ):
        asked = {"_DLCLI_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
        command = [sys.executable, "-P", "-c", script]
        done = subprocess.run(
            command, cwd=trained, env=environment(**asked), capture_output=True, text=True, check=False
        )
        assert found in done.stdout.split() and done.stderr.splitlines() == ["0 []"], done.stdout + done.stderr


def test_an_unknown_command_names_the_nearest(tmp_path: Path) -> None:
    done = dlcli("trian", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and "trian" in done.stderr and "train" in done.stderr.replace("trian", "")


# ------------------------------------------------------------------------------------------------------------- train


def test_json_of_train_is_json_alone(tmp_path: Path) -> None:
    done = dlcli("train", *QUICK, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    events = events_of(done.stdout)
    assert [e["event"] for e in events].count("epoch") == 2
    last = events[-1]
    assert last["event"] == "run_finished" and last["status"] == "completed"
    assert {"val/accuracy", "test/accuracy"} <= last["metrics"].keys()
    assert Path(last["run"]).is_dir() and (Path(last["checkpoint"]) / "model.safetensors").is_file()
    assert events_of((Path(last["run"]) / "events.jsonl").read_text()) == events, "the file says the same"


def test_plain_output_is_greppable(tmp_path: Path) -> None:
    done = dlcli("train", *QUICK, cwd=tmp_path)
    epochs = [line for line in done.stdout.splitlines() if line.startswith("epoch=")]
    assert [dict(word.split("=", 1) for word in shlex.split(line))["epoch"] for line in epochs] == ["1", "2"]
    assert all("val_accuracy=" in line and "\x1b" not in line for line in epochs)


def baselines() -> dict[str, float]:
    """Test accuracy on the digits of the commonest class, and of softmax regression fitted by gradient descent."""
    import torch

    from dlcli.datasets.digits import read_digits

    data = read_digits()
    assert data.train.images is not None and data.test.images is not None
    x, y = data.train.images.flatten(1).float() / 255, data.train.labels
    x_test, y_test = data.test.images.flatten(1).float() / 255, data.test.labels
    weight = torch.zeros(65, 10, requires_grad=True)

    def logits(images: torch.Tensor) -> torch.Tensor:
        return images @ weight[:64] + weight[64]

    for _ in range(300):
        (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits(x), y), weight)
        with torch.no_grad():
            weight -= 2.0 * gradient
    majority = torch.bincount(y).argmax()
    linear = (logits(x_test).argmax(1) == y_test).double().mean().item()
    return {"majority": (y_test == majority).double().mean().item(), "linear": linear}


def test_the_default_experiment_learns(tmp_path: Path) -> None:
    done = dlcli("train", "tracker=none", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    accuracy = events_of(done.stdout)[-1]["metrics"]["test/accuracy"]
    simple = baselines()
    assert simple["majority"] < 0.15 and 0.9 < simple["linear"] < 0.97, simple
    assert accuracy >= 0.97 and accuracy > simple["linear"], simple


# -------------------------------------------------------------------------------------------------------------- eval


def wilson(right: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson (1927), eq. 3, written out a second time."""
    p = right / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    return middle - half, middle + half


def test_eval_gives_the_scores_of_the_training(quick_run: Path, trained: Path) -> None:
    event = answer("eval", cwd=trained)
    assert event["event"] == "eval_finished"
    finished = RunFolder(quick_run).read_summary()
    assert finished is not None
    assert event["metrics"] == {k: v for k, v in finished["metrics"].items() if k.startswith("test/")}, (
        "to the last bit"
    )
    accuracy, (low, high) = event["metrics"]["test/accuracy"], event["intervals"]["test/accuracy"]
    assert low < accuracy < high
    assert (low, high) == pytest.approx(wilson(round(accuracy * event["examples"]), event["examples"]), abs=1e-6)
    confusion = np.array(event["confusion"])
    assert confusion.sum() == event["examples"] and confusion.trace() == round(accuracy * event["examples"])
    assert 0 <= event["calibration_error"] <= 1 and event["baseline"] < 0.15 and event["same_data"] is True
    assert all(Path(path).is_file() for path in event["pictures"].values()) and event["pictures"]


def references(run: Path) -> list[str]:
    name = RunFolder(run).name
    step = (run / "checkpoints/best").resolve()
    return [
        "checkpoint", "best", "latest", "last", name, run.name, name[:-2],
        f"{name}/last", f"{name}/best", f"{name}/{step.name}",
        str(run), str(run / "checkpoints"), str(run / "checkpoints/best"), str(step), str(step / "model.safetensors"),
        os.path.relpath(step, run.parents[2]),
    ]  # fmt: skip


def test_every_name_of_a_checkpoint(quick_run: Path, trained: Path) -> None:
    """In one process: each reference is found and scored; here the best checkpoint is also the last."""
    assert (quick_run / "checkpoints/best").resolve() == (quick_run / "checkpoints/last").resolve()
    script = (
        "import json, sys\nfrom dlcli.cli import run\n"
        "for words in json.load(sys.stdin): print(run(words), file=sys.stderr)"
    )
    commands = [["eval", reference, "--json"] for reference in references(quick_run)]
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        cwd=trained, env=environment(), input=json.dumps(commands), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr.split() == ["0"] * len(commands), done.stderr
    events = events_of(done.stdout)
    assert {event["checkpoint"] for event in events} == {str((quick_run / "checkpoints/best").resolve())}
    assert len({json.dumps(event["metrics"]) for event in events}) == 1


def test_a_copied_checkpoint_needs_nothing_else(quick_run: Path, trained: Path, tmp_path: Path) -> None:
    shutil.copytree((quick_run / "checkpoints/best").resolve(), tmp_path / "far/mine")
    (tmp_path / "empty").mkdir()
    event = answer("eval", str(tmp_path / "far/mine"), cwd=tmp_path / "empty")
    assert event["metrics"] == answer("eval", cwd=trained)["metrics"]
    assert event["run"] is None and event["pictures"] == {}
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()].count("model.safetensors") == 1
    assert list((tmp_path / "empty").iterdir()) == []


def test_eval_of_what_is_not_there(trained: Path, tmp_path: Path) -> None:
    assert dlcli("eval", "nothing-like-it", cwd=trained).returncode == 2
    nothing = dlcli("eval", cwd=tmp_path)
    assert nothing.returncode == 2 and "dlcli train" in nothing.stderr
    unknown = dlcli("eval", "latest", "--split", "tset", cwd=trained)
    assert unknown.returncode == 2 and "test, val or train" in unknown.stderr


def image_folder(root: Path, seed: int) -> None:
    """Two classes of 6 x 6 pixels, dark and bright: 20 training and 10 test images of each."""
    generator = np.random.default_rng(seed)
    for split, count in (("train", 20), ("test", 10)):
        for name, level in (("bright", 200), ("dark", 50)):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = generator.integers(level - 40, level + 40, (6, 6, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number:02}.png")


def test_eval_says_so_when_the_data_are_others(tmp_path: Path) -> None:
    image_folder(tmp_path / "mine", seed=0)
    words = (
        "image_folder", *QUICK[1:], f"dataset.root={tmp_path / 'mine'}",
        "dataset.image_shape=[3,6,6]", "dataset.val_size=10",
        "model=mlp", "model.hidden=[8]",
    )  # fmt: skip
    env = {"DLCLI_CACHE": str(tmp_path / "cache")}
    done = dlcli("train", *words, "--json", cwd=tmp_path, **env)
    assert done.returncode == 0, done.stderr
    assert answer("eval", cwd=tmp_path, **env)["same_data"] is True
    image_folder(tmp_path / "mine", seed=1)
    assert answer("eval", cwd=tmp_path, **env)["same_data"] is False
    told = dlcli("eval", cwd=tmp_path, **env)
    assert told.returncode == 0 and "warning: the test data are not those of the training" in told.stderr


# ----------------------------------------------------------------------------------------------------------- predict


def draw_digits(folder: Path, count: int) -> list[int]:
    """The first test digits as PNG files `0.png`, ...; their labels."""
    from dlcli.datasets.digits import read_digits

    data = read_digits()
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(data.test.read(number)[0].numpy()).save(folder / f"{number}.png")
    return data.test.labels[:count].tolist()


def test_predict_answers_in_order_and_tells_what_failed(trained: Path, tmp_path: Path) -> None:
    labels = draw_digits(tmp_path / "digits", 6)
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.png").touch()
    names = [str(tmp_path / f"digits/{n}.png") for n in (3, 0)]
    bad = [str(tmp_path / name) for name in ("text.png", "empty.png", "missing.png")]
    done = dlcli("predict", names[0], *bad, names[1], str(tmp_path / "digits"), "--json", cwd=trained)
    assert done.returncode == 3, done.stderr
    answers = events_of(done.stdout)
    folder = [str(tmp_path / f"digits/{n}.png") for n in range(6)]
    assert [a["image"] for a in answers] == [names[0], *bad, names[1], *folder]
    assert ["error" in a for a in answers] == [False, True, True, True, False, *[False] * 6]
    for a in answers:
        if "classes" in a:
            shares = [c["probability"] for c in a["classes"]]
            assert len(shares) == 3 and shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1 + 1e-6
    assert answers[1]["error"] == "is not an image of a known format."
    taken = [int(a["classes"][0]["class"]) for a in answers[-6:]]
    assert sum(t == label for t, label in zip(taken, labels, strict=True)) >= 4, "a trained network sees most of them"
    assert answers[0]["classes"] == answers[-3]["classes"], "the same image, the same answer"


def test_predict_as_a_table_and_from_stdin(trained: Path, tmp_path: Path) -> None:
    draw_digits(tmp_path, 1)
    raw = (tmp_path / "0.png").read_bytes()
    command = [sys.executable, "-P", "-m", "dlcli", "predict", "-", "--top", "1"]
    table = subprocess.run(command, cwd=trained, env=environment(), input=raw, capture_output=True, check=False)
    assert table.returncode == 0, table.stderr
    assert re.search(rb"\d+\.\d %", table.stdout)
    as_json = subprocess.run(
        [*command, "--json"], cwd=trained, env=environment(), input=raw, capture_output=True, check=False
    )
    (from_stdin,) = events_of(as_json.stdout.decode())
    from_file = answer("predict", str(tmp_path / "0.png"), "--top", "1", cwd=trained)
    assert from_stdin["classes"] == from_file["classes"]
    nothing = subprocess.run(command, cwd=trained, env=environment(), input=b"", capture_output=True, check=False)
    assert nothing.returncode == 3 and b"Traceback" not in nothing.stderr


def test_predict_tells_in_its_table_what_is_no_image(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not an image")
    done = dlcli("predict", str(tmp_path / "text.png"), cwd=trained)
    assert done.returncode == 3 and "object at 0x" not in done.stdout + done.stderr
    header, row = done.stdout.splitlines()
    assert header.split() == ["image", "error"]
    assert row.split(maxsplit=1) == [str(tmp_path / "text.png"), "is not an image of a known format"]


def test_predict_takes_images_of_every_mode(trained: Path, tmp_path: Path) -> None:
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"):
        buffer = io.BytesIO()
        image = Image.new(mode, (31, 17))
        image.save(buffer, "TIFF" if mode == "CMYK" else "PNG")
        (tmp_path / f"{mode.replace(';', '-')}.{'tif' if mode == 'CMYK' else 'png'}").write_bytes(buffer.getvalue())
    done = dlcli("predict", str(tmp_path), "--json", cwd=trained)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(events_of(done.stdout)) == 8


# --------------------------------------------------------------------------------------------------------- runs, list


def test_runs_ls_and_show(quick_run: Path, trained: Path) -> None:
    name = RunFolder(quick_run).name
    rows = events_of(dlcli("runs", "ls", "--json", cwd=trained).stdout)
    assert [(row["name"], row["status"], row["experiment"]) for row in rows] == [(name, "completed", "digits")]
    assert name in dlcli("runs", "ls", cwd=trained).stdout
    report = json.loads(dlcli("runs", "show", name, "--json", cwd=trained).stdout)
    assert report["name"] == name and len(report["epochs"]) == 2
    shown = dlcli("runs", "show", cwd=trained)
    assert shown.returncode == 0 and name in shown.stdout and f"next: dlcli eval {name}" in shown.stderr


def test_list(tmp_path: Path) -> None:
    names = [row["name"] for row in events_of(dlcli("list", "model", "--json", cwd=tmp_path).stdout)]
    assert {"mlp", "lenet5", "resnet", "mnist_net", "simple_cnn"} <= set(names)
    assert "mnist" in dlcli("list", cwd=tmp_path).stdout
    unknown = dlcli("list", "modle", cwd=tmp_path)
    assert unknown.returncode == 2 and "model" in unknown.stderr


def test_a_finished_run_resumed_changes_nothing(quick_run: Path, tmp_path: Path) -> None:
    shutil.copytree(quick_run.parents[1], tmp_path / "outputs", symlinks=True)
    (run,) = (tmp_path / "outputs/digits").iterdir()
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"}
    done = dlcli("resume", cwd=tmp_path)
    assert done.returncode == 0 and "finished already" in done.stdout + done.stderr
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"} == before
    assert read(run / "checkpoints/last").manifest.step > 0
