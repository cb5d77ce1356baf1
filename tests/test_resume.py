"""Resume: a run that was killed or stopped at any moment ends bit for bit like one that never was."""

from __future__ import annotations

import io
import json
import os
import pty
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
from faults import (
    PATIENCE_S,
    Child,
    Forge,
    differences,
    events,
    killed_and_resumed,
    num_lines,
    only_run,
    outcome,
    run_of,
)
from program import dlcli, environment, events_of, train_quickly

PLAIN = ("tracker=none", "runtime.threads=1", "runtime.device=cpu", "trainer.log_every=1")
# shuffled, augmented, with dropout, mixup, averaged weights and clipping, saved in the middle of epochs: 126 steps
EVERYTHING = (
    "digits", "augmentation=light", "regularization=strong", "trainer.epochs=6", "trainer.save_every=7", *PLAIN,
)  # fmt: skip
VARIANTS = {
    "gan": ("digits_gan", "trainer.epochs=4", "trainer.save_every=8", *PLAIN),
    "ema": ("digits", "regularization.ema=0.95", "trainer.epochs=4", "trainer.save_every=5", *PLAIN),
    "accumulate": ("digits", "trainer.accumulate_grad_batches=2", "trainer.epochs=6", "trainer.save_every=5", *PLAIN),
    "channels last": ("digits", "model=simple_cnn", "model.channels=[8]", "model.hidden=[]", "optimizer=momentum",
                      "runtime.channels_last=true", "trainer.epochs=3", "trainer.save_every=9", *PLAIN),
    "bf16": ("digits", "runtime.precision=bf16", "trainer.epochs=4", "trainer.save_every=9", *PLAIN),
    "fp32": ("digits", "runtime.precision=fp32", "trainer.epochs=4", "trainer.save_every=9", *PLAIN),
    "plateau": ("digits", "schedule=plateau", "schedule.patience=0", "trainer.epochs=3", *PLAIN),
    "mixes": ("digits", "regularization.mixup=0.3", "regularization.cutmix=1.0", "trainer.epochs=4", *PLAIN),
    "table": ("diabetes", "trainer.epochs=12", "trainer.save_every=5", *PLAIN),
    "momentum": ("digits", "optimizer=nesterov", "schedule=one_cycle", "trainer.epochs=4", *PLAIN),
}  # fmt: skip
WORKERS = [(0, 0), (2, 2), (0, 2), (2, 0)]


@pytest.fixture(scope="module")
def forge() -> Iterator[Forge]:
    with Forge() as forge:
        yield forge


class References:
    """Runs that nothing happened to, each made once."""

    def __init__(self, forge: Forge, folder: Path):
        self.forge, self.folder, self.made = forge, folder, dict[tuple[str, ...], Path]()

    def __call__(self, *words: str) -> Path:
        if words not in self.made:
            cwd = self.folder / str(len(self.made))
            child = self.forge.run("train", *words, cwd=cwd)
            assert child.code == 0, child.stderr
            self.made[words] = run_of(cwd)
        return self.made[words]


@pytest.fixture(scope="module")
def uninterrupted(forge: Forge, tmp_path_factory: pytest.TempPathFactory) -> References:
    return References(forge, tmp_path_factory.mktemp("references"))


def moments(few: int, many: int) -> list[Any]:
    """Seeds of random moments: `few` of them always, the rest with `-m slow`."""
    return [*range(few), *(pytest.param(i, marks=pytest.mark.slow) for i in range(few, many))]


def copied(run: Path, folder: Path) -> Path:
    """A copy of a run that may be changed."""
    target = folder / "outputs" / run.parent.name / run.name
    shutil.copytree(run, target, symlinks=True)
    return target


def newest_step(run: Path) -> int:
    from dlcli.runs.checkpoint import newest_valid

    found, damaged = newest_valid(run / "checkpoints")
    assert not damaged
    return found.manifest.step if found else 0


# -------------------------------------------------------------------------------------------------------------- SIGKILL


@pytest.mark.parametrize("workers", WORKERS, ids=lambda pair: f"{pair[0]}to{pair[1]}")
@pytest.mark.parametrize("moment", moments(2, 20))
def test_killed_at_a_random_moment(
    forge: Forge, uninterrupted: References, tmp_path: Path, moment: int, workers: tuple[int, int]
) -> None:
    reference = uninterrupted(*EVERYTHING)
    before, after = (f"dataset.num_workers={n}" for n in workers)
    run, hits = killed_and_resumed(
        forge,
        tmp_path,
        (*EVERYTHING, before),
        lines=num_lines(reference),
        kills=1 + moment % 2,
        seed=100 * moment + workers[0] * 10 + workers[1],
        resume=(after,) if before != after else (),
    )
    assert hits == 1 + moment % 2
    assert differences(outcome(run), outcome(reference)) == []


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("moment", moments(1, 5))
def test_killed_variants(forge: Forge, uninterrupted: References, tmp_path: Path, variant: str, moment: int) -> None:
    reference = uninterrupted(*VARIANTS[variant])
    run, hits = killed_and_resumed(forge, tmp_path, VARIANTS[variant], lines=num_lines(reference), kills=1, seed=moment)
    assert hits == 1
    assert differences(outcome(run), outcome(reference)) == []


@pytest.mark.parametrize("moment", moments(1, 5))
def test_killed_distillation_needs_its_teacher_no_more(
    forge: Forge, uninterrupted: References, tmp_path: Path, moment: int
) -> None:
    teacher = copied(uninterrupted(*VARIANTS["fp32"]), tmp_path / "teacher")
    words = ("digits_distill", "trainer.epochs=4", "trainer.save_every=8", *PLAIN)
    reference = uninterrupted(*words, f"task.teacher={uninterrupted(*VARIANTS['fp32'])}")
    child = forge.start("train", *words, f"task.teacher={teacher}", cwd=tmp_path / "student")
    assert child.wait_for_lines(random.Random(moment).randint(30, num_lines(reference) - 20))
    assert child.kill()
    shutil.rmtree(tmp_path / "teacher")
    run = run_of(tmp_path / "student")
    resumed = forge.run("resume", str(run), cwd=tmp_path / "student")
    assert resumed.code == 0, resumed.stderr
    assert differences(outcome(run), outcome(reference)) == []


@pytest.mark.parametrize("moment", moments(1, 3))
def test_killed_and_resumed_through_the_real_command(uninterrupted: References, tmp_path: Path, moment: int) -> None:
    reference = uninterrupted(*EVERYTHING)
    command = [sys.executable, "-P", "-m", "dlcli", "train", *EVERYTHING]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL)
    wanted = random.Random(moment).randint(num_lines(reference) // 5, num_lines(reference) - 20)
    until = time.monotonic() + PATIENCE_S
    while num_lines(only_run(tmp_path)) < wanted and process.poll() is None and time.monotonic() < until:
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    done = dlcli("resume", "latest", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert differences(outcome(run_of(tmp_path)), outcome(reference)) == []


def test_killed_before_the_first_checkpoint_starts_afresh(
    forge: Forge, uninterrupted: References, tmp_path: Path
) -> None:
    child = forge.start("train", *EVERYTHING, cwd=tmp_path)
    assert child.wait_for_lines(3) and child.kill()
    run = run_of(tmp_path)
    assert newest_step(run) == 0
    assert forge.run("resume", cwd=tmp_path).code == 0
    assert [event["event"] for event in events(run)].count("run_started") == 1
    assert differences(outcome(run), outcome(uninterrupted(*EVERYTHING))) == []


def test_killed_beside_its_workers_can_be_resumed_at_once(forge: Forge, tmp_path: Path) -> None:
    """The workers outlive a killed parent for seconds; the run's lock must not."""
    child = forge.start("train", *EVERYTHING, "dataset.num_workers=2", cwd=tmp_path)
    assert child.wait_for_lines(60) and child.kill()
    resumed = forge.run("resume", "latest", cwd=tmp_path)
    assert resumed.code == 0, resumed.stderr


# --------------------------------------------------------------------------------------------- what a resume may change


def test_a_finished_run_is_left_as_it_is(forge: Forge, uninterrupted: References, tmp_path: Path) -> None:
    run = copied(uninterrupted(*EVERYTHING), tmp_path)

    def content() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"}

    before = content()
    child = forge.run("resume", str(run), cwd=tmp_path)
    assert child.code == 0
    assert "finished already" in child.stdout + child.stderr
    assert content() == before


def test_an_extension_goes_on_where_the_run_ended(forge: Forge, uninterrupted: References, tmp_path: Path) -> None:
    words = ("digits", "schedule=constant", "regularization=strong", "augmentation=light", *PLAIN)
    run = copied(uninterrupted(*words, "trainer.epochs=2"), tmp_path)
    child = forge.run("resume", str(run), "trainer.epochs=4", cwd=tmp_path)
    assert child.code == 0, child.stderr
    assert events(run, "run_resumed")[-1]["step"] == 42
    assert differences(outcome(run), outcome(uninterrupted(*words, "trainer.epochs=4"))) == []


def test_an_extension_that_is_killed_is_the_same(forge: Forge, uninterrupted: References, tmp_path: Path) -> None:
    words = ("digits", "schedule=constant", "regularization=strong", "augmentation=light", *PLAIN)
    run = copied(uninterrupted(*words, "trainer.epochs=2"), tmp_path)
    reference = uninterrupted(*words, "trainer.epochs=4")
    child = forge.start("resume", str(run), "trainer.epochs=4", cwd=tmp_path)
    assert child.wait_for_lines(num_lines(reference) - 15, run) and child.kill()
    assert forge.run("resume", str(run), cwd=tmp_path).code == 0  # without a word: the extension is on record
    assert differences(outcome(run), outcome(reference)) == []


@pytest.mark.parametrize("word", ["optimizer.lr=0.1", "model.hidden=[4]", "seed=1", "dataset.batch_size=8"])
def test_a_forbidden_key_is_named(forge: Forge, uninterrupted: References, tmp_path: Path, word: str) -> None:
    run = copied(uninterrupted(*EVERYTHING), tmp_path)
    before = (run / "run.yaml").read_bytes()
    child = forge.run("resume", str(run), word, cwd=tmp_path)
    assert child.code == 2
    assert word in child.stderr and "Traceback" not in child.stderr
    assert (run / "run.yaml").read_bytes() == before


def test_a_run_cannot_end_before_where_it_is(forge: Forge, uninterrupted: References, tmp_path: Path) -> None:
    run = copied(uninterrupted(*EVERYTHING), tmp_path)
    child = forge.run("resume", str(run), "trainer.epochs=3", cwd=tmp_path)
    assert child.code == 2 and "6 epochs" in child.stderr


def test_of_two_resumes_the_second_is_refused(forge: Forge, uninterrupted: References, tmp_path: Path) -> None:
    reference = uninterrupted(*EVERYTHING)
    child = forge.start("train", *EVERYTHING, cwd=tmp_path)
    assert child.wait_for_lines(50) and child.kill()
    run = run_of(tmp_path)
    first = forge.start("resume", str(run), "trainer.keep_checkpoints=3", cwd=tmp_path)
    assert first.wait_for_lines(60, run)
    os.kill(first.pid, signal.SIGSTOP)  # it holds the run, for as long as we like
    second = forge.run("resume", str(run), cwd=tmp_path)
    os.kill(first.pid, signal.SIGCONT)
    assert second.code == 5 and f"pid {first.pid}" in second.stderr and "Traceback" not in second.stderr
    assert first.wait() == 0, first.stderr
    assert differences(outcome(run), outcome(reference)) == []


def test_changed_data_are_refused(forge: Forge, tmp_path: Path) -> None:
    images(tmp_path / "images", seed=0)
    words = ("image_folder", f"dataset.root={tmp_path / 'images'}", "trainer.epochs=2", *PLAIN)
    small = ("model=mlp", "dataset.image_shape=[3,16,16]", "dataset.batch_size=4", "dataset.val_size=4")
    done = forge.run("train", *words, *small, cwd=tmp_path / "run")
    assert done.code == 0, done.stderr
    run = run_of(tmp_path / "run")
    before = outcome(run)
    images(tmp_path / "images", seed=1)
    child = forge.run("resume", str(run), "trainer.epochs=4", cwd=tmp_path / "run")
    assert child.code == 3, child.stderr
    assert "fingerprint" in child.stderr and "Traceback" not in child.stderr
    assert before["last is"] == os.readlink(run / "checkpoints" / "last")


@pytest.mark.parametrize("command", ["resume", "eval"])
def test_data_that_moved_are_found_where_the_command_says(forge: Forge, tmp_path: Path, command: str) -> None:
    images(tmp_path / "images", seed=0)
    words = ("image_folder", f"dataset.root={tmp_path / 'images'}", "trainer.epochs=2", *PLAIN)
    small = ("model=mlp", "dataset.image_shape=[3,16,16]", "dataset.batch_size=4", "dataset.val_size=4")
    assert forge.run("train", *words, *small, cwd=tmp_path / "run").code == 0
    os.rename(tmp_path / "images", tmp_path / "moved")
    run = str(run_of(tmp_path / "run"))
    more = ("trainer.epochs=3",) if command == "resume" else ()
    lost = forge.run(command, run, *more, cwd=tmp_path / "run")
    assert lost.code == 3 and "Traceback" not in lost.stderr
    found = forge.run(command, run, *more, f"dataset.root={tmp_path / 'moved'}", cwd=tmp_path / "run")
    assert found.code == 0, found.stderr


def images(folder: Path, *, seed: int) -> None:
    """24 small noisy pictures of two classes."""
    import numpy as np
    from PIL import Image

    chance = np.random.default_rng(seed)
    for kind in ("cat", "dog"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for i in range(12):
            Image.fromarray(chance.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / kind / f"{i}.png")


# -------------------------------------------------------------------------------------------------- damaged checkpoints


@pytest.mark.parametrize("file", ["model.safetensors", "state.safetensors", "checkpoint.json"])
def test_the_checkpoint_before_a_damaged_one_is_taken(
    forge: Forge, uninterrupted: References, tmp_path: Path, file: str
) -> None:
    child = forge.start("train", *EVERYTHING, cwd=tmp_path)
    assert child.wait_for_lines(100) and child.kill()
    run = run_of(tmp_path)
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    (newest / file).write_bytes((newest / file).read_bytes()[:-1])
    resumed = forge.run("resume", str(run), cwd=tmp_path)
    assert resumed.code == 0, resumed.stderr
    assert any(newest.name in event["message"] for event in events(run, "warning"))
    assert events(run, "run_resumed")[-1]["step"] < int(newest.name[5:])
    assert differences(outcome(run), outcome(uninterrupted(*EVERYTHING))) == []


def test_a_damaged_newer_checkpoint_does_not_crowd_out_the_whole_ones(forge: Forge, tmp_path: Path) -> None:
    child = forge.start("train", *EVERYTHING, cwd=tmp_path)
    assert child.wait_for_lines(100) and child.kill()
    run = run_of(tmp_path)
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    (newest / "state.safetensors").unlink()
    os.rename(newest, newest.with_name("step-00000999"))  # so that the training never comes to write it again
    assert forge.run("resume", str(run), cwd=tmp_path).code == 0
    kept = sorted(path.name for path in (run / "checkpoints").glob("step-*") if not path.is_symlink())
    assert kept[-2:] == ["step-00000119", "step-00000126"]


def test_no_whole_checkpoint_is_said(forge: Forge, uninterrupted: References, tmp_path: Path) -> None:
    run = copied(uninterrupted(*EVERYTHING), tmp_path)
    for folder in (run / "checkpoints").glob("step-*"):
        (folder / "state.safetensors").write_bytes(b"")
    child = forge.run("resume", str(run), "trainer.epochs=7", cwd=tmp_path)
    assert child.code == 4 and "Traceback" not in child.stderr


WRONG_STATES: dict[str, Any] = {
    "progress is a list": lambda state: state.update(progress=[]),
    "progress lacks its step": lambda state: state["progress"].pop("step"),
    "evaluations are numbers": lambda state: state["progress"].update(evaluations=[1]),
    "evaluations are words": lambda state: state["progress"].update(evaluations=["one"]),
    "step is a word": lambda state: state["progress"].update(step="12"),
    "step is negative": lambda state: state["progress"].update(step=-1),
    "step is another": lambda state: state["progress"].update(step=3),
    "scores are words": lambda state: state["progress"].update(scores=["a"] * 6),
    "sums are lists": lambda state: state["progress"].update(sums={"loss": [1]}),
    "sums are words": lambda state: state["progress"].update(sums={"loss": "1"}),
    "seconds are a word": lambda state: state["progress"].update(seconds="1"),
    "examples are a word": lambda state: state["progress"].update(examples="1"),
    "no optimizers": lambda state: state.update(optimizers={}),
    "optimizers of another phase": lambda state: state.update(optimizers={"generator": state["optimizers"]["model"]}),
    "fewer names": lambda state: state["optimizers"]["model"][0]["param_names"].pop(),
    "group is a word": lambda state: state.update(optimizers={"model": ["x"]}),
    "lr is a word": lambda state: state["optimizers"]["model"][0].update(lr="fast"),
    "lr is a list": lambda state: state["optimizers"]["model"][0].update(initial_lr=[1]),
    "betas are words": lambda state: state["optimizers"]["model"][0].update(betas=["a", "b"]),
    "groups lack lr": lambda state: state["optimizers"]["model"][0].pop("lr"),
    "averages are missing": lambda state: state.pop("averages"),
    "averages are words": lambda state: state.update(averages={"model": "x"}),
    "length is huge": lambda state: state.update(events_length=10**30),
    "length is a word": lambda state: state.update(events_length="x"),
}


@pytest.mark.parametrize("wrong", WRONG_STATES)
def test_a_wrong_training_state_with_right_digests_is_refused(
    forge: Forge, uninterrupted: References, tmp_path: Path, wrong: str
) -> None:
    run = copied(uninterrupted(*EVERYTHING), tmp_path)
    for folder in (run / "checkpoints").glob("step-*"):
        body = json.loads((folder / "checkpoint.json").read_text())["body"]
        WRONG_STATES[wrong](body["state"])
        rewrite(folder, body)
    child = forge.run("resume", str(run), "trainer.epochs=7", cwd=tmp_path)
    if wrong.startswith("length"):  # nothing is cut then
        assert child.code == 0, child.stderr
    else:
        assert (child.code, "Traceback" in child.stderr) == (4, False), child.stderr


FIRST = "model/layers.1.weight"
WRONG_TENSORS: dict[str, Any] = {
    "moment of another shape": lambda t: t.update({f"optimizer/{FIRST}/exp_avg": t[f"optimizer/{FIRST}/exp_avg"][:3]}),
    "moment is one number": lambda t: t.update({f"optimizer/{FIRST}/exp_avg": t[f"optimizer/{FIRST}/step"].clone()}),
    "moment of whole numbers": lambda t: t.update(
        {f"optimizer/{FIRST}/exp_avg": t[f"optimizer/{FIRST}/exp_avg"].int()}
    ),
    "moment is missing": lambda t: t.pop(f"optimizer/{FIRST}/exp_avg_sq"),
    "moment of nobody": lambda t: t.update({"optimizer/model/nobody/exp_avg": t[f"optimizer/{FIRST}/step"].clone()}),
    "count of many numbers": lambda t: t.update({f"optimizer/{FIRST}/step": t[f"optimizer/{FIRST}/exp_avg"].clone()}),
    "raw weights are missing": lambda t: t.pop(f"raw/{FIRST}"),
    "raw weights are one number": lambda t: t.update({f"raw/{FIRST}": t[f"optimizer/{FIRST}/step"].clone()}),
    "raw weights of another shape": lambda t: t.update({f"raw/{FIRST}": t[f"raw/{FIRST}"][:1].clone()}),
    "raw weights transposed": lambda t: t.update({f"raw/{FIRST}": t[f"raw/{FIRST}"].T.contiguous()}),
    "raw weights of whole numbers": lambda t: t.update({f"raw/{FIRST}": t[f"raw/{FIRST}"].long()}),
    "no random state": lambda t: t.pop("random/torch"),
    "short random state": lambda t: t.update({"random/torch": t["random/torch"][:10]}),
    "random state of floats": lambda t: t.update({"random/torch": t["random/torch"].float()}),
    "short words": lambda t: t.update({"random/python": t["random/python"][:10]}),
    "huge words": lambda t: t.update({"random/python": t["random/python"] * 2**31}),
    "words below zero": lambda t: t.update({"random/numpy": -t["random/numpy"]}),
    "fractional words": lambda t: t.update({"random/python": t["random/python"].double() + 0.5}),
    "no words": lambda t: t.update({"random/numpy": t["random/numpy"][:0]}),
    "two gausses": lambda t: t.update({"random/python_gauss": t["random/torch"][:2].double()}),
    "nothing": dict.clear,
}


@pytest.mark.parametrize("wrong", WRONG_TENSORS)
def test_wrong_training_tensors_with_right_digests_are_refused(
    forge: Forge, uninterrupted: References, tmp_path: Path, wrong: str
) -> None:
    from safetensors.torch import load, save
    from test_checkpoint import forge_digests

    run = copied(uninterrupted(*EVERYTHING), tmp_path)
    for folder in (run / "checkpoints").glob("step-*"):
        tensors = load((folder / "state.safetensors").read_bytes())
        WRONG_TENSORS[wrong](tensors)
        (folder / "state.safetensors").write_bytes(save({name: t.contiguous() for name, t in tensors.items()}))
        forge_digests(folder)
    child = forge.run("resume", str(run), "trainer.epochs=7", cwd=tmp_path)
    assert (child.code, "Traceback" in child.stderr) == (4, False), child.stderr


def rewrite(folder: Path, body: dict[str, Any]) -> None:
    from dlcli.runs.checkpoint import _manifest_bytes

    (folder / "checkpoint.json").write_bytes(_manifest_bytes(body))


# --------------------------------------------------------------------------------------------------- SIGTERM and Ctrl-C


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("moment", moments(3, 20))
def test_a_signal_loses_no_step(
    forge: Forge, uninterrupted: References, tmp_path: Path, number: signal.Signals, moment: int
) -> None:
    reference = uninterrupted(*EVERYTHING)
    chance = random.Random(moment * 2 + number)
    words = (*EVERYTHING, f"dataset.num_workers={2 * (moment % 2)}")
    child = forge.start("train", *words, cwd=tmp_path)
    assert child.wait_for_lines(chance.randint(1, num_lines(reference) - 12))
    time.sleep(chance.random() * 0.01)
    child.signal(number)
    check_stopped(child, number)
    assert forge.run("resume", cwd=tmp_path).code == 0
    assert differences(outcome(run_of(tmp_path)), outcome(reference)) == []


def check_stopped(child: Child, number: int) -> None:
    """The promised exit code, the record closed, the last step done kept, nothing half-written, no traceback."""
    assert child.wait() == 128 + number, child.stderr
    assert "Traceback" not in child.stdout + child.stderr
    run = run_of(child.cwd)
    last = events(run)[-1]
    assert (last["event"], last["status"]) == ("run_finished", "interrupted")
    assert last.get("step", 0) == newest_step(run)
    recorded = [event["step"] for event in events(run, "values")]
    assert recorded[-1:] == ([last["step"]] if last.get("step") else [])
    assert [p.name for p in (run / "checkpoints").glob(".*")] == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_during_evaluation(
    forge: Forge, uninterrupted: References, tmp_path: Path, number: signal.Signals
) -> None:
    """With 800 batches of one example; the step before it is kept, and a resume evaluates first."""
    words = (*EVERYTHING, "dataset.eval_batch_size=1", "dataset.val_size=800", "trainer.epochs=3")
    words = tuple(w for w in words if w != "trainer.epochs=6")
    reference = uninterrupted(*words)
    line = next(i for i, event in enumerate(events(reference), 1) if event["event"] == "epoch") - 1
    for attempt in range(5):  # on a busy machine the signal may come when the evaluation is over
        cwd = tmp_path / str(attempt)
        cwd.mkdir()
        child = forge.start("train", *words, cwd=cwd)
        assert child.wait_for_lines(line)
        time.sleep(0.01)
        child.signal(number)
        check_stopped(child, number)
        run = run_of(cwd)
        if not events(run, "epoch"):
            break
    assert events(run, "epoch") == [], "one signal of five came during it"
    assert forge.run("resume", cwd=cwd).code == 0
    assert differences(outcome(run), outcome(reference)) == []


def test_a_second_signal_during_the_save_leaves_at_once(forge: Forge, tmp_path: Path) -> None:
    """Of a network so large that its save takes a while. What lies there half-written is no checkpoint to anybody."""
    words = ("digits", "model.hidden=[1024,1024]", "trainer.epochs=3", "trainer.save_every=4", *PLAIN)
    reference = forge.run("train", *words, cwd=tmp_path / "reference")
    assert reference.code == 0, reference.stderr
    left_at_once = 0
    for attempt in range(3):
        child = forge.start("train", *words, cwd=tmp_path / str(attempt))
        assert child.wait_for_lines(12 + 9 * attempt)
        run = run_of(child.cwd)
        child.signal(signal.SIGTERM)
        while not child.is_over() and not list((run / "checkpoints").glob(".tmp-step-*")):
            time.sleep(0.0002)
        child.signal(signal.SIGINT if attempt % 2 else signal.SIGTERM)
        assert child.wait() == (130 if attempt % 2 and "run_finished" not in last_of(run) else 143)
        left_at_once += last_of(run) != "run_finished"
        assert newest_step(run) >= 4
        assert forge.run("resume", str(run), cwd=child.cwd).code == 0
        assert differences(outcome(run), outcome(run_of(tmp_path / "reference"))) == []
    assert left_at_once


def last_of(run: Path) -> str:
    return events(run)[-1]["event"]


@pytest.mark.parametrize("moment", moments(2, 8))
def test_a_signal_while_torch_is_imported(tmp_path: Path, moment: int) -> None:
    """The first seconds of the real command: from the announcement on, the record is closed."""
    number = (signal.SIGTERM, signal.SIGINT)[moment % 2]
    process = start_command(tmp_path, "train", *EVERYTHING)
    until = time.monotonic() + PATIENCE_S
    while num_lines(only_run(tmp_path)) < 1 and time.monotonic() < until:
        time.sleep(0.001)
    time.sleep(random.Random(moment).random() * 1.5)
    process.send_signal(number)
    _, told = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 128 + number, told
    assert "Traceback" not in told
    last = events(run_of(tmp_path))[-1]
    assert (last["event"], last["status"]) == ("run_finished", "interrupted")
    assert last.get("step", 0) == newest_step(run_of(tmp_path))


@pytest.mark.parametrize("moment", moments(1, 6))
def test_ctrl_c_while_the_config_is_composed(tmp_path: Path, moment: int) -> None:
    process = start_command(tmp_path, "train", *EVERYTHING)
    until = time.monotonic() + PATIENCE_S
    while "_yaml" not in Path(f"/proc/{process.pid}/maps").read_text() and time.monotonic() < until:
        time.sleep(0.001)  # Hydra is being imported now
    time.sleep(random.Random(moment).random() * 0.1)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=PATIENCE_S)
    # One that passed through exec("...") makes CPython end by the signal itself, which is 130 to a shell as well.
    assert process.returncode in (130, -signal.SIGINT), told
    assert "Traceback" not in told


def start_command(cwd: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "dlcli", *words]
    return subprocess.Popen(
        command, cwd=cwd, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def test_ctrl_c_in_a_terminal_reaches_the_workers_too(tmp_path: Path) -> None:
    """The whole process group gets it: no traceback of a worker, the state saved, the cursor shown again."""
    pid, terminal = pty.fork()
    if not pid:
        try:
            os.chdir(tmp_path)
            command = ["-P", "-m", "dlcli", "train", *EVERYTHING, "dataset.num_workers=2"]
            os.execve(sys.executable, [sys.executable, *command], environment(TERM="xterm"))
        finally:
            os._exit(99)
    shown = b""
    is_sent = False
    while chunk := read_terminal(terminal):
        shown += chunk
        if not is_sent and num_lines(only_run(tmp_path)) > 40:
            os.write(terminal, b"\x03")
            is_sent = True
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 130
    assert b"Traceback" not in shown and b"KeyboardInterrupt" not in shown
    last = events(run_of(tmp_path))[-1]
    assert (last["status"], last["step"]) == ("interrupted", newest_step(run_of(tmp_path)))
    assert shown.rfind(b"\x1b[?25h") >= shown.rfind(b"\x1b[?25l")


def read_terminal(terminal: int) -> bytes:
    """What came; empty at the end (Linux says so with an error)."""
    try:
        return os.read(terminal, 65_536)
    except OSError:
        return b""


# ----------------------------------------------------------------------------------------------------------- the census


@pytest.fixture
def training(tmp_path: Path) -> Iterator[Any]:
    """A Training in the middle of its second epoch, everything switched on."""
    live = build_training(tmp_path)
    from dlcli.runtime.signals import Interrupted

    live.recorder.display = Stopper(live, at=30)
    with pytest.raises(Interrupted):
        live.run()
    yield live
    live.recorder.close()


def build_training(cwd: Path, resume_from: Any = None) -> Any:
    from dlcli.config import compose_command
    from dlcli.reporting.display import open_display
    from dlcli.runs.events import Recorder
    from dlcli.runs.folder import RunFolder
    from dlcli.runtime.signals import Signals
    from dlcli.training.allow_list import Builder
    from dlcli.training.completing import complete
    from dlcli.training.trainer import Training

    tree = complete(compose_command(list(EVERYTHING)).tree)
    run = RunFolder.create(cwd / "outputs", "digits")
    run.checkpoints.mkdir()
    recorder = Recorder(run.events, open_display("json", stdout=io.StringIO()))
    facts = {"run": run.name, "experiment": "digits"}
    return Training(tree, run, recorder, Signals(), builder=Builder.for_search(), facts=facts, resume_from=resume_from)


class Stopper:
    """A display that sends the training a signal at a step."""

    def __init__(self, training: Any, at: int):
        self.training, self.at = training, at

    def event(self, event: dict[str, Any]) -> None:
        pass

    def progress(self, step: int, loss: Any) -> None:
        if step == self.at:
            self.training.signals.received = signal.SIGTERM

    def close(self) -> None:
        pass


def test_every_attribute_of_a_training_is_saved_or_derived(training: Any) -> None:
    named = (*training.saved, *training.derived)
    assert sorted(vars(training)) == sorted(named)
    assert len(set(named)) == len(named)


def test_every_field_of_progress_is_saved_and_restored(training: Any, tmp_path: Path) -> None:
    from dlcli.runs.checkpoint import read
    from dlcli.training.state import Progress

    saved = read(training.run_folder.checkpoints / "last")
    assert set(saved.manifest.state["progress"]) == {field.name for field in fields(Progress)}
    resumed = build_training(tmp_path / "again", resume_from=saved)
    assert asdict(resumed.progress) == asdict(training.progress)
    assert resumed.progress.step == 30 and resumed.progress.sums and resumed.progress.scores
    resumed.recorder.close()


# ------------------------------------------------------------------------------------------ when it evaluates and saves


def steps_of(run: Path, name: str) -> list[int]:
    return [event["step"] for event in events(run, name)]


@pytest.mark.parametrize(
    ("words", "evaluated", "saved"),
    [
        (("trainer.epochs=2",), [21, 42], [21, 42]),
        (("trainer.epochs=2", "trainer.eval_every=10"), [10, 20, 30, 40, 42], [10, 20, 30, 40, 42]),
        (("trainer.max_steps=25",), [21, 25], [21, 25]),
        (("trainer.max_steps=25", "trainer.epochs=1"), [21, 25], [21, 25]),
        (("trainer.max_steps=3",), [3], [3]),
        (("trainer.max_steps=20", "trainer.save_every=8", "trainer.eval_every=20"), [20], [8, 16, 20]),
    ],
)
def test_steps_of_evaluations_and_saves(
    forge: Forge, tmp_path: Path, words: tuple[str, ...], evaluated: list[int], saved: list[int]
) -> None:
    child = forge.run("train", "digits", *words, *PLAIN, cwd=tmp_path)
    assert child.code == 0, child.stderr
    run = run_of(tmp_path)
    assert steps_of(run, "epoch") == evaluated
    assert sorted(set(steps_of(run, "checkpoint"))) == saved
    assert events(run, "run_finished")[-1]["step"] == evaluated[-1]


def test_evaluating_more_often_changes_no_weight(forge: Forge, uninterrupted: References, tmp_path: Path) -> None:
    child = forge.run("train", *EVERYTHING, "trainer.eval_every=5", cwd=tmp_path)
    assert child.code == 0, child.stderr
    ours, reference = outcome(run_of(tmp_path)), outcome(uninterrupted(*EVERYTHING))
    for file in ("last/model.safetensors", "last/state.safetensors"):
        assert ours[file] == reference[file]


def test_early_stopping_restores_the_best_weights(forge: Forge, tmp_path: Path) -> None:
    """A learning rate that ruins what was learnt: the last weights are worse, the scores told are the best ones'."""
    words = ("optimizer=sgd", "optimizer.lr=1.5", "schedule=constant", "regularization.early_stopping.patience=3")
    child = forge.run("train", "digits", "trainer.epochs=60", *words, *PLAIN, cwd=tmp_path)
    assert child.code == 0, child.stderr
    run = run_of(tmp_path)
    finished = events(run, "run_finished")[-1]
    assert finished["epoch"] < 60 and finished["best_epoch"] == finished["epoch"] - 3
    assert os.readlink(run / "checkpoints" / "best") != os.readlink(run / "checkpoints" / "last")
    evaluated = forge.run("eval", f"{run.name.split('-', 2)[2]}/best", "--json", cwd=tmp_path)
    assert evaluated.code == 0, evaluated.stderr
    again = json.loads(evaluated.stdout)["metrics"]
    assert again == {name: finished["metrics"][name] for name in again}
    assert len(again) == 2


def test_a_time_limit_stretches_the_schedule_and_ends_the_run(forge: Forge, tmp_path: Path) -> None:
    words = ("trainer.max_time=3s", "trainer.epochs=100000", "schedule=cosine", "tracker=none", "runtime.threads=1")
    child = forge.run("train", "digits", *words, cwd=tmp_path)
    assert child.code == 0, child.stderr
    run = run_of(tmp_path)
    rates = [event["lr"] for event in events(run, "epoch")]
    assert rates[-1] < 0.2 * max(rates)
    assert events(run)[-1]["status"] == "completed"
    assert events(run, "evaluated")


def test_an_extension_that_would_change_nothing_is_refused(tmp_path: Path) -> None:
    run = train_quickly(tmp_path, "trainer.max_steps=20")["run"]
    for words, told in (
        (["trainer.epochs=20"], "trainer.max_steps=20 decides"),
        (["trainer.max_steps=5"], "has 20 steps already"),
    ):
        done = dlcli("resume", run, *words, cwd=tmp_path)
        assert done.returncode == 2 and told in done.stderr, done.stderr
    done = dlcli("resume", run, "trainer.max_steps=30", "--json", cwd=tmp_path)
    assert events_of(done.stdout)[-1]["step"] == 30, done.stderr


def test_a_run_that_stopped_early_says_so_and_goes_on_only_with_more_patience(tmp_path: Path) -> None:
    words = ("regularization.early_stopping.patience=1", "trainer.epochs=40", "optimizer.lr=0.05", "schedule=constant")
    finished = train_quickly(tmp_path, *words)
    assert finished["epoch"] < 40 and "stopped early" in finished["reason"]
    done = dlcli("resume", finished["run"], "trainer.epochs=50", cwd=tmp_path)
    assert done.returncode == 2 and "early_stopping.patience" in done.stderr


def test_a_resume_that_cannot_start_leaves_a_finished_run_as_it_was(tmp_path: Path) -> None:
    run = Path(train_quickly(tmp_path)["run"])
    files = ("summary.json", "run.yaml", "events.jsonl")
    before = [(run / name).read_text() for name in files]
    done = dlcli("resume", str(run), "trainer.epochs=9", "runtime.device=cuda:77", cwd=tmp_path)
    assert done.returncode == 5, done.stderr
    assert [(run / name).read_text() for name in files] == before
    assert "trainer.epochs=9" in done.stderr, "the hint keeps the words"


def test_what_nohup_ignores_stays_ignored() -> None:
    from dlcli.runtime.signals import Signals

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received is None
    finally:
        signal.signal(signal.SIGHUP, before)
