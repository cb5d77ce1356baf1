"""What can go wrong around a run: a clear message, the exit code of FAULTS, and nothing lost that was there before."""

from __future__ import annotations

import gzip
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from program import QUICK, environment, events_of
from program import real_dlcli as dlcli  # starts, signals and exit codes are the point here

from dlcli.runs.checkpoint import newest_valid
from dlcli.runs.events import read_events
from dlcli.runs.find import all_runs
from dlcli.runs.folder import RunFolder

PATIENCE_S = 180  # against a hang only
LONG = (*QUICK, "trainer.epochs=100000")  # ended by what the test does to it

# A user's own network whose answer is not a number at the training steps named in BAD_STEPS.
FRAGILE = """
import os
import torch
from dlcli.models.mlp import MLP

class Fragile(MLP):
    def __init__(self, **settings):
        super().__init__(**settings)
        self.num_calls = 0

    def forward(self, images):
        logits = super().forward(images)
        if self.training and images.device.type != "meta":
            self.num_calls += 1
            if self.num_calls in eval(os.environ["BAD_STEPS"]):
                return logits * float(os.environ.get("BAD_VALUE", "nan"))
        return logits
"""


def start(*words: str, cwd: Path, **more: Any) -> subprocess.Popen[str]:
    env = environment(**more.pop("env", {}))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "dlcli", *words],
        cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more,
    )  # fmt: skip


def only_run(cwd: Path) -> RunFolder:
    (run,) = all_runs(cwd / "outputs")
    return run


def wait_for(what: Callable[[], Any]) -> Any:
    until = time.monotonic() + PATIENCE_S
    while not (found := what()):
        assert time.monotonic() < until, "it never came"
        time.sleep(0.01)
    return found


def wait_for_checkpoint(cwd: Path) -> RunFolder:
    wait_for(lambda: list(cwd.glob("outputs/*/*/checkpoints/last/checkpoint.json")))
    return only_run(cwd)


def assert_one_message(stderr: str, *parts: str) -> None:
    """One error line that holds the parts (the hint counts), and no traceback."""
    assert "Traceback" not in stderr
    (line,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
    told = stderr[stderr.index(line) :]
    for part in parts:
        assert part in told, told


def user_model(cwd: Path) -> dict[str, str]:
    """./conf/model/fragile.yaml and its module; the environment that finds it."""
    (cwd / "conf/model").mkdir(parents=True)
    (cwd / "conf/model/fragile.yaml").write_text(
        "_target_: fragile.Fragile\nfacts: {kind: classifier, min_size: 1}\nhidden: [16]\n"
        "num_classes: ${dataset.num_classes}\nimage_shape: ${dataset.image_shape}\n"
    )
    (cwd / "fragile.py").write_text(FRAGILE)
    return {"PYTHONPATH": f"{environment()['PYTHONPATH']}{os.pathsep}{cwd}"}


# ----------------------------------------------------------------------------------------------------------------- data


def no_data(folder: Path) -> dict[str, str]:
    return {"DLCLI_DATA": "", "DLCLI_CACHE": str(folder / "cache")}


def test_missing_data_without_download(tmp_path: Path) -> None:
    done = dlcli("train", "mnist", "tracker=none", "dataset.download=false", cwd=tmp_path, **no_data(tmp_path))
    assert done.returncode == 3
    assert_one_message(done.stderr, "MNIST was not found", "dataset.root=PATH", "dlcli train digits")


def test_missing_data_without_a_network(tmp_path: Path) -> None:
    command = ["unshare", "-rn", sys.executable, "-P", "-m", "dlcli", "train", "mnist", "tracker=none"]
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rn", "true"], check=False).returncode:
        pytest.skip("needs unshare -rn, to be without a network")
    env = environment(**no_data(tmp_path))
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 3
    assert_one_message(done.stderr, "MNIST was not found", "dataset.root=PATH")
    assert not list((tmp_path / "cache").rglob("*.gz")), "no half file is left"


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 3)


def of_another_content(path: Path) -> None:
    """Whole as a .gz, right in size, wrong in one pixel: only the checksum can tell."""
    payload = bytearray(gzip.decompress(path.read_bytes()))
    payload[-1] ^= 1
    path.write_bytes(gzip.compress(bytes(payload), compresslevel=1))


@pytest.mark.parametrize("damage", [flipped, truncated, of_another_content], ids=lambda damage: damage.__name__)
def test_damaged_mnist(damage: Callable[[Path], None], data_root: Path, tmp_path: Path) -> None:
    raw = tmp_path / "mine/MNIST/raw"
    shutil.copytree(data_root / "MNIST/raw", raw)
    damage(raw / "t10k-images-idx3-ubyte.gz")
    words = ("mnist", "tracker=none", f"dataset.root={tmp_path / 'mine'}")
    done = dlcli("train", *words, cwd=tmp_path, **no_data(tmp_path))
    assert done.returncode == 3
    assert_one_message(done.stderr, "t10k-images-idx3-ubyte.gz", "Replace it with an intact copy")
    assert only_run(tmp_path).read_summary()["status"] == "failed"


# -------------------------------------------------------------------------------------------------------------- outputs


def refused_before_torch(cwd: Path, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    script = "import sys; from dlcli.cli import run; code = run(sys.argv[1:]); print(code, 'torch' in sys.modules)"
    command = [*prefix, sys.executable, "-P", "-c", script, "train", *QUICK]
    return subprocess.run(
        command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def test_a_file_in_place_of_the_outputs(tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("mine")
    done = refused_before_torch(tmp_path)
    assert done.stdout.split() == ["5", "False"], done.stderr
    assert_one_message(done.stderr, "outputs", "--outputs DIR")
    assert (tmp_path / "outputs").read_text() == "mine"


def test_read_only_outputs(tmp_path: Path) -> None:
    folder = tmp_path / "outputs"
    folder.mkdir()
    prefix: tuple[str, ...] = ()
    if os.geteuid() == 0:  # whom a mode does not stop
        mount = f"mount -t tmpfs -o ro none {folder}"
        if subprocess.run(["unshare", "-m", "sh", "-c", mount], check=False, capture_output=True).returncode:
            pytest.skip("needs a user that is not root, or leave to mount a read-only file system")
        prefix = ("unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh")
    else:
        folder.chmod(0o555)
    done = refused_before_torch(tmp_path, prefix)
    assert done.stdout.split() == ["5", "False"], done.stderr
    assert_one_message(done.stderr, str(folder), "--outputs DIR")


def test_the_run_folder_is_deleted_during_training(tmp_path: Path) -> None:
    process = start("train", *LONG, cwd=tmp_path)
    run = wait_for_checkpoint(tmp_path)
    run.path.rename(tmp_path / "elsewhere")
    _, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 5
    assert_one_message(stderr, "No such file or directory")
    assert not run.path.exists()


def make_run(outputs: Path) -> str:
    run = RunFolder.create(outputs, "digits", "same", now=datetime(2026, 11, 21, 12, 0, 0))
    run.lock()
    return str(run.path)


def test_32_runs_in_the_same_second_have_32_folders(tmp_path: Path) -> None:
    with ProcessPoolExecutor(32) as pool:
        paths = list(pool.map(make_run, [tmp_path / "outputs"] * 32))
    assert len(set(paths)) == 32
    assert len(all_runs(tmp_path / "outputs")) == 32


def test_commands_started_at_once_have_a_folder_each(tmp_path: Path) -> None:
    processes = [start("train", *QUICK, "name=twin", cwd=tmp_path) for _ in range(3)]
    for process in processes:
        _, stderr = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, stderr
    runs = all_runs(tmp_path / "outputs")
    assert len(runs) == 3
    for run in runs:
        events = list(read_events(run.events))
        assert [e["event"] for e in events].count("run_finished") == 1, "no file holds the lines of two runs"
        assert events[0]["name"] == run.name and run.read_summary()["status"] == "completed"


# ---------------------------------------------------------------------------------------------------------- the machine


def test_no_gpu(tmp_path: Path) -> None:
    done = dlcli("train", *QUICK, "runtime.device=cuda", cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 5
    assert_one_message(done.stderr, "runtime.device=cuda", "there is cpu", "runtime.device=cpu")


def limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))


def test_out_of_memory(tmp_path: Path) -> None:
    words = ("model.hidden=[40000,40000]", "dataset.batch_size=48", "trainer.accumulate_grad_batches=2")
    process = start("train", *QUICK, *words, cwd=tmp_path, preexec_fn=limit_memory)
    _, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 5
    remedy = "dataset.batch_size=24 trainer.accumulate_grad_batches=4 keeps the effective batch of 96."
    assert_one_message(stderr, "out of memory: 6,400,000,000 bytes more were needed", remedy)
    assert only_run(tmp_path).read_summary()["status"] == "failed"


def test_a_data_worker_is_killed(tmp_path: Path) -> None:
    process = start("train", *LONG, "dataset.num_workers=2", cwd=tmp_path)
    run = wait_for_checkpoint(tmp_path)

    def workers() -> list[int]:
        return [int(p) for p in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]

    def is_killed() -> bool:
        """One of the workers, which begin anew with every evaluation."""
        for pid in workers():
            try:
                os.kill(pid, signal.SIGKILL)
                return True
            except ProcessLookupError:
                continue
        return False

    wait_for(lambda: process.poll() is not None or (is_killed() and time.sleep(0.5)))
    _, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 5, stderr
    assert_one_message(stderr, "worker", "dataset.num_workers=")
    checkpoint, damaged = newest_valid(run.checkpoints)
    assert checkpoint is not None and not damaged
    assert checkpoint.manifest.step == run.read_summary()["step"], "saved at the step it had come to"


# ------------------------------------------------------------------------------------------------------ the loss is NaN

SWEEP = """
import json, os, sys
from dlcli.cli import run
for step in json.loads(sys.argv[1]):
    os.environ["BAD_STEPS"] = f"[{step}]"
    code = run(["train", *sys.argv[2:], f"name=at-{step}"])
    print(step, code, file=open("codes", "a"))
"""


def assert_stopped_before(run: RunFolder, step: int) -> None:
    """It ended at the step before, says so, and everything it left is finite."""
    summary = run.read_summary()
    assert summary["status"] == "failed" and f"at step {step}" in summary["reason"]
    assert summary["step"] == step - 1
    assert list(read_events(run.events))[-1]["event"] == "run_finished"
    checkpoint, damaged = newest_valid(run.checkpoints)
    assert not damaged
    if step > 21:  # an epoch had ended
        assert checkpoint is not None and 0 < checkpoint.manifest.step < step
        assert all(torch.isfinite(t).all() for t in checkpoint.weights.values() if t.is_floating_point())
    else:
        assert checkpoint is None


@pytest.mark.parametrize(
    "steps", [(1, 2, 21, 22, 30), pytest.param((*range(3, 21), *range(23, 30)), marks=pytest.mark.slow)]
)
def test_the_loss_is_no_number_at_step_k(steps: tuple[int, ...], tmp_path: Path) -> None:
    env = environment(**user_model(tmp_path))
    command = [sys.executable, "-P", "-c", SWEEP, json.dumps(steps), *QUICK, "model=fragile"]
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=PATIENCE_S * 4, check=False
    )
    assert (tmp_path / "codes").read_text().split() == [word for step in steps for word in (str(step), "6")], (
        done.stderr
    )
    for step in steps:
        run = next(run for run in all_runs(tmp_path / "outputs") if run.name == f"at-{step}")
        assert_stopped_before(run, step)
        assert f"error: the loss is nan at step {step}," in done.stderr
    assert "Traceback" not in done.stderr and "optimizer.lr" in done.stderr and "clip_norm" in done.stderr


def test_a_run_that_diverged_can_be_resumed(tmp_path: Path) -> None:
    env = user_model(tmp_path)
    done = dlcli("train", *QUICK, "model=fragile", "name=bad", cwd=tmp_path, BAD_STEPS="[30]", BAD_VALUE="inf", **env)
    assert done.returncode == 6, done.stderr
    assert_one_message(done.stderr, "at step 30", "optimizer.lr")
    assert_stopped_before(only_run(tmp_path), 30)
    resumed = dlcli("resume", "bad", "--json", cwd=tmp_path, BAD_STEPS="[]", **env)
    assert resumed.returncode == 0, resumed.stderr
    events = events_of(resumed.stdout)
    assert (events[0]["event"], events[0]["step"], events[-1]["status"]) == ("run_resumed", 21, "completed")


def test_a_learning_rate_that_diverges(tmp_path: Path) -> None:
    words = ("optimizer=sgd", "optimizer.lr=1000", "regularization=none", "schedule=constant", "trainer.epochs=20")
    done = dlcli("train", *QUICK, *words, cwd=tmp_path)
    assert done.returncode == 6, done.stderr
    assert_one_message(done.stderr, "at step ", "Use a smaller optimizer.lr")
    checkpoint, _ = newest_valid(only_run(tmp_path).checkpoints)
    assert checkpoint is None or all(torch.isfinite(t).all() for t in checkpoint.weights.values())


# ----------------------------------------------------------------------------------------------------- signals, streams


def test_ctrl_c_twice(tmp_path: Path) -> None:
    process = start("train", *LONG, cwd=tmp_path)
    run = wait_for_checkpoint(tmp_path)
    time.sleep(random.Random(0).uniform(0, 0.2))
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert "Traceback" not in stdout + stderr
    checkpoint, damaged = newest_valid(run.checkpoints)
    assert checkpoint is not None and not damaged


def shell(line: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    line = line.replace("DLCLI", f"{sys.executable} -P -m dlcli").replace("QUICK", " ".join(QUICK))
    command = ["bash", "-c", f"set -o pipefail; {line}"]
    return subprocess.run(
        command, cwd=cwd, env=environment(**env), capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


@pytest.mark.parametrize(
    "line",
    [
        "DLCLI train QUICK > /dev/full",
        "DLCLI train QUICK --json > /dev/full",
        "DLCLI train QUICK | head -1",
        "DLCLI train QUICK <&- >&-",
        "DLCLI train QUICK <&- >&- 2>&-",
    ],
)
def test_the_result_is_saved_where_nobody_listens(line: str, tmp_path: Path) -> None:
    done = shell(line, tmp_path)
    run = only_run(tmp_path)
    assert run.read_summary()["status"] == "completed"
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert list(read_events(run.events))[-1]["event"] == "run_finished"
    assert newest_valid(run.checkpoints)[0] is not None
    assert all(line.startswith(b"{") for line in run.events.read_bytes().splitlines()), "no stray output in a file"


def test_a_pipe_closed_by_a_listing(tmp_path: Path) -> None:
    for number in range(3):
        RunFolder.create(tmp_path / "outputs", "digits", f"run-{number}")
    done = shell("DLCLI runs ls | head -1; DLCLI list > /dev/full", tmp_path)
    assert "Traceback" not in done.stderr and "fault" not in done.stderr


def test_a_bare_environment(tmp_path: Path) -> None:
    bare = {
        "LC_ALL": "C",
        "TERM": "dumb",
        "COLUMNS": "20",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": environment()["PYTHONPATH"],
    }
    command = [sys.executable, "-P", "-m", "dlcli", "train", *QUICK]
    done = subprocess.run(
        command, cwd=tmp_path, env=bare, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE_S, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"\x1b" not in done.stdout + done.stderr and b"Traceback" not in done.stderr
    assert b"\nepoch=2 " in done.stdout
