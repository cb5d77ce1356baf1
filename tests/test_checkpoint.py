"""Checkpoints: the order of a save's system calls, faults at each of them, full disks, and every kind of damage."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import Call, Child, Forge, differences, events, num_lines, outcome, run_of, traced
from program import dlcli, environment
from safetensors.torch import load as load_tensors
from safetensors.torch import save as tensors_to_bytes

from dlcli.errors import CheckpointError, DivergedError, EnvironmentFault
from dlcli.runs import checkpoint

WORDS = ("digits", "augmentation=light", "regularization.dropout=0.3", "tracker=none", "runtime.threads=1",
         "runtime.device=cpu", "trainer.epochs=5")  # fmt: skip
LONGER = (*WORDS[:-1], "trainer.epochs=7")  # the calls of its fifth save are looked at: others make fewer of a kind
WEIGHTS, STATE, MANIFEST = "model.safetensors", "state.safetensors", "checkpoint.json"
GIB = 2**30


@pytest.fixture(scope="module")
def forge() -> Iterator[Forge]:
    with Forge() as forge:
        yield forge


@pytest.fixture(scope="module")
def finished(forge: Forge, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing happened to; copied before anything in it is changed."""
    cwd = tmp_path_factory.mktemp("finished")
    child = forge.run("train", *WORDS, cwd=cwd)
    assert child.code == 0, child.stderr
    return run_of(cwd)


@pytest.fixture(scope="module")
def finished_longer(forge: Forge, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cwd = tmp_path_factory.mktemp("longer")
    child = forge.run("train", *LONGER, cwd=cwd)
    assert child.code == 0, child.stderr
    return run_of(cwd)


@pytest.fixture
def step(finished: Path, tmp_path: Path) -> Path:
    """A copy of its best checkpoint, by itself."""
    source = (finished / "checkpoints" / "best").resolve()
    return Path(shutil.copytree(source, tmp_path / source.name))


# ----------------------------------------------------------------------------------------------------- the system calls


@pytest.fixture(scope="module")
def calls(forge: Forge, tmp_path_factory: pytest.TempPathFactory) -> list[Call]:
    """The calls of the fifth save of a run, which deletes an older one; skipped where there is no strace."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace (apt-get install strace)")
    tried = subprocess.run(["strace", "-qq", "-e", "trace=fsync", "true"], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip(f"strace may not trace here: {tried.stderr.decode()[:100]}")
    child, every = traced(forge, "train", *LONGER, cwd=tmp_path_factory.mktemp("traced"))
    assert child.code == 0, child.stderr
    starts = [i for i, call in enumerate(every) if call.name.startswith("mkdir") and ".tmp-step-" in call.files]
    fifth = next(n for n, i in enumerate(starts) if ".tmp-step-00000105" in every[i].files)
    return [call for call in every[starts[fifth] : starts[fifth + 1]] if "/checkpoints" in call.text]


def test_the_system_calls_of_a_save_stand_in_the_safe_order(calls: list[Call]) -> None:
    """Everything written and flushed under another name beside, renamed, the folder flushed; only then the links."""
    temporary, final = ".tmp-step-00000105", "step-00000105"
    order = [
        ("mkdir", temporary),
        *[(name, file) for file in (WEIGHTS, STATE, MANIFEST) for name in ("pwrite64", "fsync")],
        ("fsync", temporary),
        ("rename", f"{temporary} {final}"),
        ("fsync", "checkpoints"),
    ]
    for link in ("best", "last"):
        order += [
            ("unlink", f".tmp-{link}"),
            ("symlink", f"{final} .tmp-{link}"),
            ("rename", f".tmp-{link} {link}"),
            ("fsync", "checkpoints"),
        ]
    order += [("rename", "step-00000063 .old-step-00000063")]  # only now the oldest goes
    made = [(call.name.removesuffix("at").removesuffix("at2"), call.files) for call in calls]
    made = [call for i, call in enumerate(made) if call[0] != "pwrite64" or made[i - 1] != call]  # a long one in parts
    assert made[: len(order)] == order
    assert {name for name, _ in made[len(order) :]} <= {"unlink", "rmdir"}
    assert f'/checkpoints/{temporary}"' in calls[0].text


@pytest.mark.parametrize("few", [pytest.param(6, id="some"), pytest.param(0, id="all", marks=pytest.mark.slow)])
def test_killed_at_every_system_call_of_a_save(
    forge: Forge, finished_longer: Path, calls: list[Call], tmp_path: Path, few: int
) -> None:
    """No checkpoint that was announced is lost, and the resume ends bit for bit like the run that was not killed."""
    wanted = outcome(finished_longer)
    points = random.Random(few).sample(calls, few) if few else calls
    for number, call in enumerate(points):
        cwd = tmp_path / str(number)
        child, _ = traced(forge, "train", *LONGER, cwd=cwd, inject=f"{call.name}:signal=SIGKILL:when={call.nth}")
        assert child.code == -signal.SIGKILL, (call, child.stderr)
        run = run_of(cwd)
        newest, _ = checkpoint.newest_valid(run / "checkpoints")
        assert newest is not None and newest.manifest.step >= 84, call
        assert len([f for f in checkpoint.by_step(run / "checkpoints") if checkpoint.read(f)]) >= 2, call
        resumed = forge.run("resume", str(run), cwd=cwd)
        assert resumed.code == 0, (call, resumed.stderr)
        assert differences(outcome(run), wanted) == [], call
        assert list((run / "checkpoints").glob(".*")) == [], call


def test_killed_between_the_last_save_and_its_links(forge: Forge, tmp_path: Path) -> None:
    """Nothing is left to be trained or saved then, and still `last` and `best` end where they belong."""
    words = tuple(word for word in WORDS if "epochs" not in word)
    child = forge.run("train", *words, "trainer.epochs=2", cwd=tmp_path)
    assert child.code == 0, child.stderr
    run = run_of(tmp_path)
    wanted = outcome(run)
    assert wanted["last is"] == wanted["best is"] == "step-00000042"
    for link in ("last", "best"):
        checkpoint.point(run / "checkpoints", link, run / "checkpoints" / "step-00000021")
    (run / "summary.json").unlink()
    lines = (run / "events.jsonl").read_text().splitlines(keepends=True)
    saved = next(i for i, line in enumerate(lines) if '"checkpoint", "step": 42' in line)
    (run / "events.jsonl").write_text("".join(lines[:saved]))
    assert forge.run("resume", str(run), cwd=tmp_path).code == 0
    assert differences(outcome(run), wanted) == []


FAULTS = ["fsync:error=EIO", "pwrite64:error=ENOSPC", "rename:error=EIO", "mkdir:error=EDQUOT", "symlink:error=ENOSPC"]


@pytest.mark.parametrize("few", [pytest.param(1, id="some"), pytest.param(0, id="all", marks=pytest.mark.slow)])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_save_that_fails_is_a_warning(
    forge: Forge, finished_longer: Path, calls: list[Call], tmp_path: Path, fault: str, few: int
) -> None:
    """The training goes on, tries again at the next one, and loses nothing; no temporary is left."""
    name = fault.partition(":")[0]
    wanted = outcome(finished_longer)
    points = [call for call in calls if call.name.removesuffix("at") == name and ".old-" not in call.files]
    for number, call in enumerate(random.Random(0).sample(points, few) if few else points):
        cwd = tmp_path / str(number)
        inject = f"{call.name}:{fault.partition(':')[2]}:when={call.nth}"
        child, _ = traced(forge, "train", *LONGER, cwd=cwd, inject=inject)
        assert child.code == 0, (call, child.stderr)
        run = run_of(cwd)
        assert any("could not be saved" in event["message"] for event in events(run, "warning")), call
        assert differences(outcome(run), wanted) == [], call
        assert list((run / "checkpoints").glob(".*")) == [], call


@pytest.mark.parametrize("fault", ["fsync:error=EIO", "mkdir:error=ENOSPC"])
def test_saves_that_fail_again_and_again_end_the_run(
    forge: Forge, finished_longer: Path, calls: list[Call], tmp_path: Path, fault: str
) -> None:
    name, _, error = fault.partition(":")
    first = next(call for call in calls if call.name.removesuffix("at") == name)
    child, _ = traced(forge, "train", *LONGER, cwd=tmp_path, inject=f"{first.name}:{error}:when={first.nth}+")
    assert child.code == 5
    assert "could not be saved" in child.stderr and "hint:" in child.stderr and "Traceback" not in child.stderr
    run = run_of(tmp_path)
    newest, damaged = checkpoint.newest_valid(run / "checkpoints")
    assert newest is not None and newest.manifest.step == 84 and not damaged
    assert list((run / "checkpoints").glob(".*")) == []
    assert forge.run("resume", str(run), cwd=tmp_path).code == 0
    assert differences(outcome(run), outcome(finished_longer)) == []


# ------------------------------------------------------------------------------------------------------------ full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs (root)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_keeps_the_checkpoint_before(forge: Forge, finished: Path, small_disk: Path) -> None:
    child = forge.start("train", *WORDS, "trainer.log_every=1", cwd=small_disk)
    assert child.wait_for_lines(50)  # in the third epoch: the first checkpoint is whole
    os.kill(child.pid, signal.SIGSTOP)
    ballast = small_disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(4096)) == 4096:
            pass
    os.kill(child.pid, signal.SIGCONT)
    assert child.wait() == 5, child.stderr
    run = run_of(small_disk)
    newest, damaged = checkpoint.newest_valid(run / "checkpoints")
    assert newest is not None and newest.manifest.step >= 21 and not damaged
    assert list((run / "checkpoints").glob(".*")) == []
    ballast.unlink()
    resumed = forge.run("resume", str(run), "trainer.keep_checkpoints=2", cwd=small_disk)
    assert resumed.code == 0, resumed.stderr
    for name in ("last", "best"):
        ours, theirs = (folder / "checkpoints" / name / WEIGHTS for folder in (run, finished))
        assert ours.read_bytes() == theirs.read_bytes()


def test_the_message_of_a_full_disk(small_disk: Path, tmp_path: Path) -> None:
    """Through the real command, its own output elsewhere: what, where, and how to go on."""
    words = ("digits", "model.hidden=[1024,1024]", "tracker=none", "runtime.threads=1", "trainer.epochs=4")
    done = dlcli("train", *words, "--outputs", str(small_disk), cwd=tmp_path)
    assert done.returncode == 5
    assert "the disk is full" in done.stderr and "hint: Free some space" in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) < 12


def test_a_limit_on_file_sizes_is_told(forge: Forge, tmp_path: Path) -> None:
    child = forge.run("train", *WORDS, cwd=tmp_path, max_file_bytes=100_000)
    assert child.code == 5
    assert "too large" in child.stderr and "Traceback" not in child.stderr
    assert list((run_of(tmp_path) / "checkpoints").iterdir()) == []


# ---------------------------------------------------------------------------------------------------- the API by itself


def body_of(folder: Path) -> dict[str, Any]:
    body = json.loads((folder / MANIFEST).read_text())["body"]
    return {key: value for key, value in body.items() if key not in ("format", "step", "files")}


def test_what_is_saved_is_read_back_to_the_bit(finished: Path, tmp_path: Path) -> None:
    source = checkpoint.read(finished / "checkpoints" / "last")
    folder = checkpoint.save(tmp_path, 105, source.weights, source.state, body_of(source.folder))
    again = checkpoint.read(folder)
    for ours, theirs in ((again.weights, source.weights), (again.state, source.state)):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (folder / WEIGHTS).read_bytes() == (source.folder / WEIGHTS).read_bytes()


def test_weights_that_are_not_finite_are_never_saved(finished: Path, tmp_path: Path) -> None:
    source = checkpoint.read(finished / "checkpoints" / "last")
    weights = {name: torch.full_like(tensor, float("nan")) for name, tensor in source.weights.items()}
    with pytest.raises(DivergedError, match="not finite"):
        checkpoint.save(tmp_path, 105, weights, source.state, body_of(source.folder))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_an_environment_fault(finished: Path, tmp_path: Path) -> None:
    source = checkpoint.read(finished / "checkpoints" / "last")
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentFault):
        checkpoint.save(tmp_path / "file", 105, source.weights, source.state, body_of(source.folder))


def test_tied_weights_are_saved(finished: Path, tmp_path: Path) -> None:
    tied = torch.randn(4, 4)
    folder = checkpoint.save(
        tmp_path, 1, {"a": tied, "b": tied, "c": tied.T}, {}, body_of(finished / "checkpoints/last")
    )
    read = checkpoint.read(folder).weights
    assert torch.equal(read["a"], tied) and torch.equal(read["b"], tied) and torch.equal(read["c"], tied.T)


@pytest.mark.parametrize(
    ("first", "count"), [pytest.param(0, 100, id="100"), pytest.param(1, 2_000, id="2000", marks=pytest.mark.slow)]
)
def test_no_flipped_bit_goes_unnoticed(step: Path, first: int, count: int) -> None:
    chance = random.Random(first)
    sizes = {file: (step / file).stat().st_size for file in (WEIGHTS, STATE, MANIFEST)}
    for i in range(count):
        file = chance.choice(list(sizes)) if i % 2 else chance.choices(list(sizes), list(sizes.values()))[0]
        flip(step / file, bit := chance.randrange(sizes[file] * 8))
        with pytest.raises(CheckpointError):
            checkpoint.read(step)
        flip(step / file, bit)
    checkpoint.read(step)


def flip(path: Path, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


@pytest.mark.parametrize("count", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_no_flipped_bit_gets_past_the_command(forge: Forge, step: Path, tmp_path: Path, count: int) -> None:
    assert forge.run("eval", str(step), cwd=tmp_path).code == 0
    chance = random.Random(count)
    for _ in range(count):
        file = step / chance.choice((WEIGHTS, STATE, MANIFEST))
        flip(file, bit := chance.randrange(file.stat().st_size * 8))
        refused(forge.run("eval", str(step), cwd=tmp_path), f"bit {bit} of {file.name}")
        flip(file, bit)


def test_a_flipped_bit_through_the_real_command(step: Path, tmp_path: Path) -> None:
    flip(step / WEIGHTS, 400_000)
    done = dlcli("eval", str(step), cwd=tmp_path)
    assert done.returncode == 4
    assert done.stderr.startswith("error: the checkpoint is damaged") and "sha256" in done.stderr
    assert "hint:" in done.stderr and "Traceback" not in done.stderr


def refused(child: Child, what: str) -> None:
    assert child.code == 4, (what, child.code, child.stderr[-1500:])
    assert child.stderr.startswith("error: ") and "Traceback" not in child.stderr, (what, child.stderr)
    assert child.stdout == "", what


# --------------------------------------------------------------------------------- damage, the digests left as they are

Damage = Callable[[random.Random, Path, Path], None]  # (chance, checkpoint to be damaged, another checkpoint)


def any_file(chance: random.Random, folder: Path) -> Path:
    return folder / chance.choice((WEIGHTS, STATE, MANIFEST))


def truncate(chance: random.Random, folder: Path, other: Path) -> None:
    file = any_file(chance, folder)
    os.truncate(file, chance.randrange(file.stat().st_size))


def lengthen(chance: random.Random, folder: Path, other: Path) -> None:
    with any_file(chance, folder).open("ab") as file:
        file.write(chance.randbytes(chance.choice((1, 8, 5_000))))


def lose(chance: random.Random, folder: Path, other: Path) -> None:
    any_file(chance, folder).unlink()


def blank(chance: random.Random, folder: Path, other: Path) -> None:
    file = any_file(chance, folder)
    data = bytearray(file.read_bytes())
    at = chance.randrange(len(data) - 64)
    data[at : at + 64] = bytes(64) if any(data[at : at + 64]) else b"\1" * 64
    file.write_bytes(data)


def swap(chance: random.Random, folder: Path, other: Path) -> None:
    name = chance.choice((WEIGHTS, STATE, MANIFEST))
    shutil.copy(other / name, folder / name)


def exchange(chance: random.Random, folder: Path, other: Path) -> None:
    first, second = chance.sample((WEIGHTS, STATE, MANIFEST), 2)
    data = (folder / first).read_bytes()
    (folder / first).write_bytes((folder / second).read_bytes())
    (folder / second).write_bytes(data)


def no_file(chance: random.Random, folder: Path, other: Path) -> None:
    """Something else in the place of a file."""
    file = any_file(chance, folder)
    kept = file.rename(folder / "kept")
    kind = chance.randrange(6)
    if kind == 0:
        os.mkfifo(file)
    elif kind == 1:
        file.mkdir()
    else:
        file.symlink_to(("/dev/zero", "/dev/urandom", kept, folder / "nowhere")[kind - 2])


def garbage(chance: random.Random, folder: Path, other: Path) -> None:
    any_file(chance, folder).write_bytes(chance.randbytes(chance.randrange(100_000)))


def sparse(chance: random.Random, folder: Path, other: Path) -> None:
    os.truncate(any_file(chance, folder), 2**41)


# ---------------------------------------------------------------------------- damage, the digests made right afterwards


def forge_digests(folder: Path, change: Callable[[dict[str, Any]], object] = lambda body: None) -> None:
    """Make the manifest's digests right again, as an attacker would, with its body changed."""
    body = json.loads((folder / MANIFEST).read_text())["body"]
    for name in (WEIGHTS, STATE):
        data = (folder / name).read_bytes()
        body["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    change(body)
    (folder / MANIFEST).write_bytes(checkpoint._manifest_bytes(body))


def in_header(change: Callable[[dict[str, Any], str], object], files: tuple[str, ...] = (WEIGHTS, STATE)) -> Damage:
    """A damage to the header of one of the tensor files."""

    def damage(chance: random.Random, folder: Path, other: Path) -> None:
        file = folder / chance.choice(files)
        data = file.read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        change(header, chance.choice([name for name in header if header[name]["data_offsets"][1] > 0]))
        text = json.dumps(header).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
        forge_digests(folder)

    return damage


def raw_header(text: bytes, size: int | None = None) -> Damage:
    def damage(chance: random.Random, folder: Path, other: Path) -> None:
        file = folder / chance.choice((WEIGHTS, STATE))
        file.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text)
        forge_digests(folder)

    return damage


def in_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    def damage(chance: random.Random, folder: Path, other: Path) -> None:
        weights = load_tensors((folder / WEIGHTS).read_bytes())
        change(weights)
        (folder / WEIGHTS).write_bytes(tensors_to_bytes(weights))
        forge_digests(folder)

    return damage


def in_body(change: Callable[[dict[str, Any]], object]) -> Damage:
    return lambda chance, folder, other: forge_digests(folder, change)


def in_config(key: str, value: Any) -> Damage:
    def change(body: dict[str, Any]) -> None:
        *parents, leaf = key.split(".")
        node = body["config"]
        for parent in parents:
            node = node[parent]
        if value is ...:
            del node[leaf]
        else:
            node[leaf] = value

    return in_body(change)


def in_text(change: Callable[[str], str]) -> Damage:
    """A damage to the JSON text, the digest of its body made right where it can be."""

    def damage(chance: random.Random, folder: Path, other: Path) -> None:
        (folder / MANIFEST).write_text(change((folder / MANIFEST).read_text()))

    return damage


FIRST = "model.layers.1.weight"  # 128 x 64
DAMAGES: dict[str, Damage] = {
    "truncated": truncate, "lengthened": lengthen, "lost": lose, "blanked": blank, "swapped": swap,
    "exchanged": exchange, "no file": no_file, "garbage": garbage, "sparse": sparse,
    "header of 2^63 bytes": raw_header(b"{}", 2**63), "header longer than the file": raw_header(b"{}", 1000),
    "header of 100 MB": raw_header(b"{}", 100_000_000), "empty header": raw_header(b""),
    "header is a list": raw_header(b"[]"), "header is a number": raw_header(b"7"),
    "header is deep": raw_header(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "header lists deep": raw_header(b'{"a":' + b"[" * 100_000), "header is no UTF-8": raw_header(b'{"\xff":1}'),
    "header names twice": raw_header(
        b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
    ),
    "100,000 tensors": raw_header(
        json.dumps({f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(100_000)}).encode()
    ),
    "no tensors": in_weights(dict.clear),
    "overlapping": in_header(lambda header, name: header[name].update(data_offsets=[0, 4])),
    "reversed": in_header(lambda header, name: header[name]["data_offsets"].reverse()),
    "offset of 2^62": in_header(lambda header, name: header[name].update(data_offsets=[0, 2**62])),
    "offset below zero": in_header(lambda header, name: header[name].update(data_offsets=[-8, 0])),
    "offset is a word": in_header(lambda header, name: header[name].update(data_offsets=["0", "4"])),
    "shape below zero": in_header(lambda header, name: header[name].update(shape=[-1, -64])),
    "shape of 2^62": in_header(lambda header, name: header[name].update(shape=[2**62])),
    "shape overflows": in_header(lambda header, name: header[name].update(shape=[2**32, 2**32])),
    "shape is a word": in_header(lambda header, name: header[name].update(shape="all")),
    "no shape": in_header(lambda header, name: header[name].pop("shape")),
    "unknown dtype": in_header(lambda header, name: header[name].update(dtype="F33")),
    "other dtype": in_header(lambda header, name: header[name].update(dtype="F16")),
    "renamed": in_header(lambda header, name: header.update({"x" + name: header.pop(name)}), (WEIGHTS,)),
    "NaN": in_weights(lambda weights: weights[FIRST].fill_(float("nan"))),
    "infinity": in_weights(lambda weights: weights[FIRST].view(-1)[7].fill_(float("inf"))),
    "transposed": in_weights(lambda weights: weights.update({FIRST: weights[FIRST].T.contiguous()})),
    "flattened": in_weights(lambda weights: weights.update({FIRST: weights[FIRST].flatten()})),
    "float64": in_weights(lambda weights: weights.update({FIRST: weights[FIRST].double()})),
    "float16": in_weights(lambda weights: weights.update({FIRST: weights[FIRST].half()})),
    "whole numbers": in_weights(lambda weights: weights.update({FIRST: weights[FIRST].int()})),
    "one is missing": in_weights(lambda weights: weights.pop(FIRST)),
    "one too many": in_weights(lambda weights: weights.update({"model.layers.99.weight": torch.zeros(3)})),
    "a name of 10^6 letters": in_weights(lambda weights: weights.update({"x" * 10**6: torch.zeros(3)})),
    "a name with escapes": in_weights(lambda weights: weights.update({"\x1b]0;x\x07": torch.zeros(3)})),
    "format 999": in_body(lambda body: body.update(format=999)),
    "format 0": in_body(lambda body: body.update(format=0)),
    "format is a word": in_body(lambda body: body.update(format="1")),
    "format is true": in_body(lambda body: body.update(format=True)),
    "no config": in_body(lambda body: body.pop("config")),
    "config is a list": in_body(lambda body: body.update(config=[])),
    "config is empty": in_body(lambda body: body.update(config={})),
    "step is a word": in_body(lambda body: body.update(step="21")),
    "step below zero": in_body(lambda body: body.update(step=-1)),
    "another step": in_body(lambda body: body.update(step=22)),
    "classes are numbers": in_body(lambda body: body.update(classes=list(range(10)))),
    "too few classes": in_body(lambda body: body["classes"].pop()),
    "no classes": in_body(lambda body: body.update(classes=[])),
    "majority is a word": in_body(lambda body: body.update(majority="3")),
    "data is a list": in_body(lambda body: body.update(data=[])),
    "scores are words": in_body(lambda body: body.update(scores={"val/loss": "low"})),
    "state is a list": in_body(lambda body: body.update(state=[])),
    "teacher is a word": in_body(lambda body: body.update(teacher="os.system")),
    "an extra field": in_body(lambda body: body.update(extra=1)),
    "an extra file": in_body(lambda body: body["files"].update(extra=body["files"][WEIGHTS])),
    "a file elsewhere": in_body(lambda body: body["files"].update({"../x": body["files"].pop(WEIGHTS)})),
    "size below zero": in_body(lambda body: body["files"][WEIGHTS].update(size=-1)),
    "size of 2^62": in_body(lambda body: body["files"][WEIGHTS].update(size=2**62)),
    "size of 60 GB": in_body(lambda body: body["files"][WEIGHTS].update(size=60 * GIB)),
    "nested config": in_body(lambda body: body["config"].update(x=nested(500))),
    "deeply nested": in_text(lambda text: text[:-1] + ',"x":' + "[" * 100_000 + "]" * 100_000 + "}"),
    "a key twice": in_text(lambda text: text.replace('"classes"', '"classes":[],"classes"', 1)),
    "spaces": in_text(lambda text: text.replace(":", ": ", 1)),
    "NaN in the JSON": in_text(lambda text: text.replace('"step":', '"step":NaN,"x":', 1)),
    "a number of 10^5 digits": in_text(lambda text: text.replace('"step":', '"step":' + "9" * 10**5, 1)),
    "only a list": in_text(lambda text: "[]"), "only null": in_text(lambda text: "null"),
    "only an empty object": in_text(lambda text: "{}"), "no body": in_text(lambda text: '{"body":null,"sha256":""}'),
    "byte-order mark": in_text(lambda text: "\ufeff" + text),
    "width of 10^9": in_config("model.hidden", [10**9]), "a million layers": in_config("model.hidden", [1] * 10**6),
    "widest network": in_config("model.hidden", [65_536] * 1_000), "width below zero": in_config("model.hidden", [-1]),
    "width is a word": in_config("model.hidden", ["a"]), "hidden is a word": in_config("model.hidden", "ab"),
    "hidden is nothing": in_config("model.hidden", None), "other widths": in_config("model.hidden", [64, 64]),
    "unknown argument": in_config("model.depths", 3),
    "unknown activation": in_config("model.activation", "os.system"),
    "activation is a list": in_config("model.activation", []),
    "dropout of 7": in_config("model.dropout", 7.0), "dropout is a word": in_config("model.dropout", "0.5"),
    "model is a word": in_config("model", "dlcli.models.mlp.MLP"), "model is empty": in_config("model", {}),
    "model without target": in_config("model._target_", ...), "model is no network": in_config(
        "model", {"_target_": "dlcli.optimizers.schedules.constant", "_partial_": True}
    ),
    "model is an optimizer": in_config("model._target_", "torch.optim.Adam"),
    "model is a task": in_config("model._target_", "dlcli.tasks.gan.GAN"),
    "another model": in_config("model._target_", "dlcli.models.lenet5.LeNet5"),
    "task is a schedule": in_config("task._target_", "dlcli.optimizers.schedules.cosine"),
    "task is a reader": in_config("task", {"_target_": "dlcli.datasets.digits.read_digits"}),
    "task is a model": in_config("task._target_", "dlcli.models.mlp.MLP"),
    "task without target": in_config("task._target_", ...), "another task": in_config(
        "task._target_", "dlcli.tasks.distillation.Distillation"
    ),
    "task asks for a teacher": in_config("task.teacher", "/nowhere"),
    "reader is a model": in_config("dataset.reader._target_", "dlcli.models.mlp.MLP"),
    "reader is a schedule": in_config("dataset.reader", {"_target_": "dlcli.optimizers.schedules.constant"}),
    "reader is a word": in_config("dataset.reader", "digits"), "reader is nothing": in_config("dataset.reader", ...),
    "reader wants more": in_config("dataset.reader.more", 3),
    "shape below zero in the config": in_config("dataset.image_shape", [-1, 8, 8]),
    "shape of two": in_config("dataset.image_shape", [8, 8]),
    "the model's shape": in_config("model.image_shape", [1, -8, 8]),
    "the model's shape is huge": in_config("model.image_shape", [16_384, 16_384, 16_384]),
    "batch is a word": in_config("dataset.batch_size", "64"), "batch of 0": in_config("dataset.eval_batch_size", 0),
    "batch of 10^12": in_config("dataset.eval_batch_size", 10**12),
    "batch is true": in_config("dataset.batch_size", True),
    "no mean": in_config("dataset.mean", ...), "mean is a word": in_config("dataset.mean", "0"),
    "mean of five channels": in_config("dataset.mean", [0.5] * 5), "std of zero": in_config("dataset.std", [0.0]),
    "no classes in the config": in_config("dataset.num_classes", 1), "no seed": in_config("seed", ...),
    "seed is a word": in_config("seed", "0"), "seed is huge": in_config("seed", 2**80),
    "no trainer": in_config("trainer", ...), "no runtime": in_config("runtime", ...),
    "no data": in_config("dataset", ...),
    "no regularization": in_config("regularization", ...), "runtime is a list": in_config("runtime", []),
    "device is a word": in_config("runtime.device", "gpu"), "threads of 10^9": in_config("runtime.threads", 10**9),
    "workers of 10^9": in_config("dataset.num_workers", 10**9),
}  # fmt: skip


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.fixture(scope="module")
def other(forge: Forge, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of another run, of the same step, with another model."""
    cwd = tmp_path_factory.mktemp("other")
    words = ("digits", "model.hidden=[32]", "seed=1", "tracker=none", "runtime.threads=1", "trainer.epochs=5")
    assert forge.run("train", *words, cwd=cwd).code == 0
    return (run_of(cwd) / "checkpoints" / "last").resolve()


@pytest.mark.parametrize(
    ("first", "count"), [pytest.param(0, 150, id="150"), pytest.param(150, 1_000, id="1000", marks=pytest.mark.slow)]
)
def test_every_damage_is_refused(
    forge: Forge, finished: Path, other: Path, tmp_path: Path, first: int, count: int
) -> None:
    """Each by a CheckpointError, exit code 4, within a gigabyte of memory."""
    source = (finished / "checkpoints" / "last").resolve()
    wrong: list[str] = []
    names = list(DAMAGES)
    raw = names[:9]  # those that chance makes a different one each time
    for i in range(first, first + count):
        name = names[i] if i < len(names) else raw[i % len(raw)] if i % 3 else names[i % len(names)]
        folder = tmp_path / source.name
        shutil.copytree(source, folder)
        DAMAGES[name](random.Random(i), folder, other)
        try:
            refused(forge.run("eval", str(folder), cwd=tmp_path / "cwd", more_memory_bytes=GIB), f"{i}: {name}")
        except AssertionError as error:
            wrong.append(str(error))
        shutil.rmtree(folder)
    assert not wrong, "\n".join([f"{len(wrong)} of {count}:", *wrong])


ABSURD = [10**9, -1, 0, "x", "", None, [], {}, [[]], {"a": 1}, 1e308, 1e-308, True, 2**70, "${oc.env:HOME}", "???"]


@pytest.mark.parametrize(("first", "count"), [(0, 60), pytest.param(60, 1_000, marks=pytest.mark.slow)])
def test_an_absurd_setting_is_never_a_fault_of_dlclis_own(
    forge: Forge, finished: Path, tmp_path: Path, first: int, count: int
) -> None:
    """Any value at any place of the stored config: the answer is a score or an error, never a traceback or a hang."""
    from dlcli.config.tree import leaves

    source = (finished / "checkpoints" / "last").resolve()
    config = json.loads((source / MANIFEST).read_text())["body"]["config"]
    keys = [key for key, _ in leaves(config)] + list(config)
    wrong = []
    for i in range(first, first + count):
        chance = random.Random(i)
        key, value = chance.choice(keys), chance.choice([..., *ABSURD])
        folder = tmp_path / source.name
        shutil.copytree(source, folder)
        in_config(key, value)(chance, folder, source)
        child = forge.run("eval", str(folder), cwd=tmp_path / "cwd", more_memory_bytes=4 * GIB)
        if child.code not in (0, 3, 4, 5) or "Traceback" in child.stderr:
            wrong.append(f"{i}: {key}={value}: {child.code} {child.stderr}")
        shutil.rmtree(folder)
    assert not wrong, "\n".join([f"{len(wrong)} of {count}:", *wrong])


def test_a_fifo_in_the_place_of_the_folder_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "step-00000021")
    command = [sys.executable, "-P", "-m", "dlcli", "eval", str(tmp_path / "step-00000021")]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, timeout=60, check=False)
    assert done.returncode in (2, 4) and b"Traceback" not in done.stderr


def test_num_lines_of_a_run_that_was_not_killed(finished: Path) -> None:
    """What every comparison above rests on: the run came to its end and recorded each epoch once."""
    assert [event["epoch"] for event in events(finished, "epoch")] == [1, 2, 3, 4, 5]
    assert num_lines(finished) > 10
