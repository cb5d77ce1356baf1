"""Several ranks train as one: the same bits on all, the gradient of all their examples, one voice, nothing lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from faults import events, outcome, run_of
from program import dlcli, environment, events_of
from rank_forge import RankForge, held, run_ranks
from safetensors.torch import load_file

PLAIN = (
    "tracker=none",
    "runtime.threads=1",
    "runtime.device=cpu",
    "runtime.precision=fp32",
    "runtime.channels_last=false",
)
SHORT = (*PLAIN, "trainer.max_steps=5")
CNN = ("model=simple_cnn", "model.channels=[8]", "model.hidden=[]")


@pytest.fixture(scope="module")
def forge() -> Iterator[RankForge]:
    with RankForge() as forge:
        yield forge


def last_weights(cwd: Path) -> dict[str, torch.Tensor]:
    return load_file(run_of(cwd) / "checkpoints" / "last" / "model.safetensors")


def furthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name].double() - b[name].double()).abs().max().item() for name in a)


CASES = {
    "classification": ("digits",),
    "gan": ("digits_gan",),
    "vision transformer": ("digits", "model=vit", "model.patch=4"),
    "batch norm over all": ("digits", *CNN, "regularization.batch_norm=true"),
    "accumulate, clip, averages": (
        "digits", "trainer.accumulate_grad_batches=2", "regularization.clip_norm=0.5", "regularization.ema=0.9",
    ),
    "mixes": ("digits", "regularization.mixup=0.3", "regularization.cutmix=1.0", "augmentation=light"),
    "contrastive, two views": ("digits_contrastive",),
    "one epoch, ragged": ("digits", "trainer.max_steps=12", "dataset.batch_size=50"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_after_five_steps_all_ranks_agree_bit_for_bit(forge: RankForge, tmp_path: Path, case: str) -> None:
    words = CASES[case]
    first, second = run_ranks(forge, "train", *SHORT, *words, cwd=tmp_path)
    assert (first.code, second.code) == (0, 0), first.stderr + second.stderr
    ours, theirs = held(tmp_path)
    assert ours == theirs
    assert len(list((tmp_path / "outputs").glob("*/*/events.jsonl"))) == 1
    assert second.stdout == "" and "Traceback" not in first.stderr + second.stderr


def test_a_distilled_student_agrees_too(forge: RankForge, tmp_path: Path) -> None:
    teacher = forge.run("train", "digits", *SHORT, "name=teacher", cwd=tmp_path)
    assert teacher.code == 0, teacher.stderr
    words = ("digits_distill", "task.teacher=teacher", *SHORT)
    assert [child.code for child in run_ranks(forge, "train", *words, cwd=tmp_path)] == [0, 0]

    ours, theirs = held(tmp_path)
    assert ours == theirs


@pytest.mark.parametrize("model", [(), (*CNN, "regularization.batch_norm=true")], ids=["mlp", "batch norm"])
def test_two_of_32_are_one_of_64(forge: RankForge, tmp_path: Path, model: tuple[str, ...]) -> None:
    """Over an epoch with a ragged end: 1,294 examples are 20 batches of 64 and one of 14."""
    words = ("digits", *PLAIN, *model, "trainer.epochs=1", "optimizer=sgd", "regularization.dropout=0")
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert forge.run("train", *words, "dataset.batch_size=64", cwd=alone).code == 0
    assert [c.code for c in run_ranks(forge, "train", *words, "dataset.batch_size=32", cwd=together)] == [0, 0]
    assert furthest(last_weights(alone), last_weights(together)) < 1e-5
    (one,), (two,) = (events(run_of(cwd), "epoch") for cwd in (alone, together))
    assert one["metrics"] == pytest.approx(two["metrics"], abs=1e-5)


DROPPED = ("digits", *PLAIN, "trainer.epochs=4", "trainer.save_every=3", "augmentation=light", "runtime.devices=2")


def start(cwd: Path, *words: str) -> subprocess.Popen[str]:
    cwd.mkdir(exist_ok=True)
    command = [sys.executable, "-P", "-m", "dlcli", *words]
    return subprocess.Popen(
        command, cwd=cwd, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_checkpoint(cwd: Path, parent: subprocess.Popen[str]) -> None:
    while not list(cwd.glob("outputs/*/*/checkpoints/last")):
        assert parent.poll() is None, parent.communicate()
        time.sleep(0.01)


def rank_pid(parent: int, rank: int) -> int:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return next(int(c) for c in children if f"\0RANK={rank}\0" in "\0" + Path(f"/proc/{c}/environ").read_text())


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cwd = tmp_path_factory.mktemp("whole")
    done = dlcli("train", *DROPPED, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return run_of(cwd)


def same_weights(run: Path, other: Path) -> bool:
    ours, theirs = (load_file(r / "checkpoints" / "last" / "model.safetensors") for r in (run, other))
    return outcome(run)["last is"] == outcome(other)["last is"] and furthest(ours, theirs) == 0.0


def test_a_rank_that_is_killed_leaves_a_run_that_resumes_exactly(tmp_path: Path, uninterrupted: Path) -> None:
    parent = start(tmp_path, "train", *DROPPED)
    wait_for_checkpoint(tmp_path, parent)
    os.kill(rank_pid(parent.pid, 1), signal.SIGKILL)
    _, said = parent.communicate(timeout=120)
    assert parent.returncode == 5 and "rank 1 of 2 was ended by SIGKILL" in said and "Traceback" not in said
    resumed = dlcli("resume", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert same_weights(run_of(tmp_path), uninterrupted)


def test_max_restarts_starts_again_by_itself(tmp_path: Path, uninterrupted: Path) -> None:
    parent = start(tmp_path, "train", *DROPPED, "--max-restarts", "1")
    wait_for_checkpoint(tmp_path, parent)
    os.kill(rank_pid(parent.pid, 1), signal.SIGKILL)
    _, said = parent.communicate(timeout=120)
    assert parent.returncode == 0, said
    assert "all ranks start again (1 of 1)" in said
    assert same_weights(run_of(tmp_path), uninterrupted)


def test_a_signal_stops_all_ranks_at_one_step(tmp_path: Path, uninterrupted: Path) -> None:
    parent = start(tmp_path, "train", *DROPPED)
    wait_for_checkpoint(tmp_path, parent)
    parent.send_signal(signal.SIGTERM)
    _, said = parent.communicate(timeout=120)
    assert parent.returncode in (143, 0) and "Traceback" not in said
    assert dlcli("resume", cwd=tmp_path).returncode == 0
    assert same_weights(run_of(tmp_path), uninterrupted)


def test_what_two_devices_saved_one_device_evaluates_and_trains_further(tmp_path: Path, uninterrupted: Path) -> None:
    outputs = str(uninterrupted.parents[1])
    assert dlcli("eval", str(uninterrupted), "--outputs", outputs, cwd=tmp_path).returncode == 0
    words = ("trainer.epochs=5", "runtime.devices=1")
    done = dlcli("resume", str(uninterrupted), *words, "--outputs", outputs, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = [e["message"] for e in events_of(done.stdout) if e["event"] == "warning"]
    assert any("not be bit-exact: devices was 2, here it is 1" in message for message in told)


@pytest.mark.parametrize(
    "how",
    [("runtime.parallel=fsdp",), ("runtime.parallel=tp", "model=vit", "model.patch=4")],
    ids=["fsdp", "tp"],
)
def test_parts_of_a_network_train_as_the_whole(forge: RankForge, tmp_path: Path, how: tuple[str, ...]) -> None:
    words = (
        "digits",
        *SHORT,
        *how[1:],
        "optimizer=momentum",
        "regularization.dropout=0",
        "regularization.clip_norm=1.0",
    )
    size = 64 if "tp" in how[0] else 32  # split layers: all ranks see the same batches
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert forge.run("train", *words, "dataset.batch_size=64", cwd=alone).code == 0
    children = run_ranks(forge, "train", *words, how[0], f"dataset.batch_size={size}", cwd=together)
    assert [child.code for child in children] == [0, 0], "".join(child.stderr for child in children)
    assert furthest(last_weights(alone), last_weights(together)) < 1e-4
    assert forge.run("eval", cwd=together).code == 0


def test_mistakes_are_told_once_and_start_no_rank(tmp_path: Path) -> None:
    done = dlcli("train", "digits", "runtime.devices=2", "optimizer.lrr=1", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("optimizer.lrr=1") >= 1 and "1 problem" in done.stderr
    assert not (tmp_path / "outputs").exists()


def test_a_loss_that_is_not_finite_ends_all_ranks(tmp_path: Path) -> None:
    done = dlcli("train", *DROPPED, "optimizer=sgd", "optimizer.lr=1000", "schedule=constant", cwd=tmp_path)
    assert done.returncode == 6 and "Traceback" not in done.stderr
    assert done.stderr.count("error:") == 1


@pytest.mark.parametrize("by", ["torchrun", "slurm"])
def test_other_launchers_ranks_are_taken_as_they_come(forge: RankForge, tmp_path: Path, by: str) -> None:
    words = ("train", "digits", *SHORT)
    if by == "slurm":
        shared = {"SLURM_NTASKS": "2", "SLURM_STEP_ID": "0", "SLURM_JOB_ID": str(os.getpid()),
                  "SLURM_STEP_NODELIST": "localhost"}  # fmt: skip
        children = [
            forge.start(*words, cwd=tmp_path, **shared, SLURM_PROCID=str(r), SLURM_LOCALID=str(r)) for r in (0, 1)
        ]
        assert [child.wait() for child in children] == [0, 0], children[0].stderr
    else:
        command = [
            sys.executable,
            "-P",
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            "2",
            "--standalone",
            "-m",
            "dlcli",
        ]
        done = subprocess.run(
            [*command, *words], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    (prepared,) = events(run_of(tmp_path), "run_prepared")
    assert prepared["devices"] == 2
