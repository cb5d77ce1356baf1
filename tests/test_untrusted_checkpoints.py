"""Checkpoints and runs from strangers: nothing that they say is run, imported, unpickled or filled in."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import Child, Forge, run_of
from program import dlcli
from test_checkpoint import FIRST, MANIFEST, STATE, WEIGHTS, forge_digests, refused

TARGETS = (
    "os.system", "posix.system", "builtins.eval", "builtins.exec", "builtins.open", "builtins.getattr",
    "subprocess.Popen", "subprocess.run", "torch.hub.load", "torch.load", "torch.hub.download_url_to_file",
    "torch.jit.load", "torch.compile", "pickle.loads", "dlcli.cli.main", "dlcli.cli.run", "importlib.import_module",
    "functools.partial", "operator.methodcaller", "runpy.run_path", "shutil.rmtree", "pathlib.Path.unlink", "os", "",
    "evil.payload", "hydra.utils.instantiate", "hydra.utils.get_method", "dlcli.models.mlp.nn.os.system",
    "dlcli.models.mlp.MLP.__init__.__globals__", "dlcli.models.mlp.MLP ", "dlcli..models.mlp.MLP", "__main__.x",
)  # fmt: skip
ODD_TARGETS = (None, 7, True, [], ["os.system"], {"_target_": "os.system"}, 1.5)
PLACES = (
    "model", "task", "optimizer", "schedule", "augmentation", "dataset.reader", "dataset", "trainer", "regularization",
    "runtime", "tracker", "parameter_groups", "model.extra", "task.facts", "dataset.reader.extra", "extra.deep.deeper",
    "in a list", "teacher", "teacher.extra",
)  # fmt: skip
MARKER = "payload-was-here"


@pytest.fixture(scope="module")
def forge() -> Iterator[Forge]:
    with Forge() as forge:
        yield forge


@pytest.fixture(scope="module")
def run(forge: Forge, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cwd = tmp_path_factory.mktemp("stranger")
    words = ("digits", "model.hidden=[16]", "tracker=none", "runtime.threads=1", "trainer.epochs=1")
    child = forge.run("train", *words, cwd=cwd)
    assert child.code == 0, child.stderr
    return run_of(cwd)


@pytest.fixture
def step(run: Path, tmp_path: Path) -> Path:
    source = (run / "checkpoints" / "last").resolve()
    return Path(shutil.copytree(source, tmp_path / source.name))


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A folder with a module whose mere import leaves the marker; it stands on the path of every child here."""
    folder = tmp_path / "evil-path"
    folder.mkdir()
    (folder / "evil.py").write_text(
        f"open({str(tmp_path / MARKER)!r}, 'w').close()\ndef payload(*args, **kwargs): pass\n"
    )
    return folder


def arguments(marker: Path) -> dict[str, Any]:
    """What each of the targets would leave the marker with, were it called."""
    command = f"touch {marker}"
    return {"command": command, "args": ["sh", "-c", command], "_args_": [command], "model": str(marker)}


def plant(body: dict[str, Any], place: str, target: Any, marker: Path) -> None:
    node = body if place.startswith("teacher") else body["config"]
    payload = {"_target_": target, **arguments(marker)}
    if place == "in a list":
        body["config"]["model"]["extra"] = [1, [{"x": payload}]]
        return
    *parents, leaf = place.split(".")
    for parent in parents:
        if not isinstance(node.get(parent), dict):
            node[parent] = {}
        node = node[parent]
    here = node.get(leaf)
    node[leaf] = {**here, **payload} if isinstance(here, dict) else payload


def evaluate(forge: Forge, folder: Path, *flags: str) -> Child:
    return forge.run("eval", str(folder), *flags, cwd=folder.parent / "cwd")


@pytest.mark.parametrize("place", PLACES)
def test_no_target_of_a_stranger_is_built(forge: Forge, step: Path, evil: Path, tmp_path: Path, place: str) -> None:
    original = (step / MANIFEST).read_bytes()
    # every target at the places that are built, each of a few anywhere else
    targets = (*TARGETS, *ODD_TARGETS) if place in ("model", "dataset.reader") else (*TARGETS[::6], *ODD_TARGETS[-2:])
    for target in targets:
        (step / MANIFEST).write_bytes(original)
        forge_digests(step, lambda body, target=target: plant(body, place, target, tmp_path / MARKER))
        child = forge.run("eval", str(step), cwd=tmp_path / "cwd", PYTHONPATH=str(evil))
        refused(child, f"{target} at {place}")
        assert not (tmp_path / MARKER).exists(), f"{target} at {place}"


@pytest.mark.parametrize("command", ["eval", "predict", "resume"])
def test_the_real_command_refuses(run: Path, tmp_path: Path, evil: Path, command: str) -> None:
    copy = tmp_path / "outputs" / run.parent.name / run.name
    shutil.copytree(run, copy, symlinks=True)
    forge_digests(
        (copy / "checkpoints" / "last").resolve(), lambda body: plant(body, "model", "evil.payload", tmp_path / MARKER)
    )
    record = (copy / "run.yaml").read_text()
    (copy / "run.yaml").write_text(record.replace("dlcli.models.mlp.MLP", "evil.payload"))
    words = {"eval": (str(copy),), "predict": ("x.png", "--run", str(copy)), "resume": (str(copy), "trainer.epochs=2")}
    path = os.pathsep.join([str(Path(__file__).resolve().parents[1]), str(evil)])
    from PIL import Image

    Image.new("L", (8, 8)).save(tmp_path / "x.png")
    done = dlcli(command, *words[command], cwd=tmp_path, PYTHONPATH=path)
    assert done.returncode == 4, done.stderr
    assert "evil.payload" in done.stderr and "--trust evil" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / MARKER).exists()


class Payload:
    """What a pickle may do to whoever opens it."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("name", [WEIGHTS, STATE, MANIFEST])
@pytest.mark.parametrize("kind", ["pickle", "torch.save", "old torch.save", "behind a header"])
def test_a_pickle_in_the_place_of_a_file_is_not_opened(
    forge: Forge, step: Path, tmp_path: Path, name: str, kind: str
) -> None:
    marker = tmp_path / MARKER
    data = pickle.dumps(Payload(marker))
    if "torch" in kind:
        torch.save({FIRST: Payload(marker)}, step / "x", _use_new_zipfile_serialization=kind == "torch.save")
        data = (step / "x").read_bytes()
    elif kind == "behind a header":
        data = (step / name).read_bytes() + data
    if name == MANIFEST:
        (step / name).write_bytes(data)
    else:
        (step / name).write_bytes(data)
        forge_digests(step)
    refused(evaluate(forge, step), f"{kind} as {name}")
    assert not marker.exists()


@pytest.mark.parametrize("name", ["model.pt", "model.ckpt", "last.pth"])
def test_a_pickled_file_by_itself_is_refused(forge: Forge, tmp_path: Path, name: str) -> None:
    torch.save({"x": Payload(tmp_path / MARKER)}, tmp_path / name)
    child = forge.run("eval", str(tmp_path / name), cwd=tmp_path)
    assert child.code in (2, 4) and "Traceback" not in child.stderr, child.stderr
    assert not (tmp_path / MARKER).exists()


YAMLS = {
    "apply": "!!python/object/apply:os.system ['touch MARKER']",
    "new": "!!python/object/new:os.system ['touch MARKER']",
    "name": "!!python/name:os.system",
    "module": "!!python/module:evil",
    "object": "!!python/object:evil.payload {}",
    "long tag": "!<tag:yaml.org,2002:python/object/apply:os.system> ['touch MARKER']",
}


@pytest.mark.parametrize("kind", YAMLS)
@pytest.mark.parametrize("command", ["resume", "runs show"])
def test_a_run_yaml_with_tags_is_refused(
    forge: Forge, run: Path, tmp_path: Path, evil: Path, kind: str, command: str
) -> None:
    copy = tmp_path / "outputs" / run.parent.name / run.name
    shutil.copytree(run, copy, symlinks=True)
    planted = YAMLS[kind].replace("MARKER", str(tmp_path / MARKER))
    (copy / "run.yaml").write_text((copy / "run.yaml").read_text() + f"extra: {planted}\n")
    words = [*command.split(), str(copy), *(["trainer.epochs=2"] if command == "resume" else [])]
    child = forge.run(*words, cwd=tmp_path, PYTHONPATH=str(evil))
    assert "Traceback" not in child.stderr
    assert child.code == 4 if command == "resume" else child.code in (0, 4), child.stderr
    assert not (tmp_path / MARKER).exists()


def test_interpolations_of_a_stored_config_stay_text(forge: Forge, step: Path, tmp_path: Path) -> None:
    """Where text may stand it is text; where a number or a name must stand it is refused; nothing is filled in."""
    secret = "the-value-of-a-variable"

    def change(body: dict[str, Any]) -> None:
        body["config"]["dataset"]["name"] = "${oc.env:STRANGERS_WISH}"
        body["run"] = "${oc.env:STRANGERS_WISH}"

    forge_digests(step, change)
    child = forge.run("eval", str(step), cwd=tmp_path, STRANGERS_WISH=secret)
    assert secret not in child.stdout + child.stderr
    assert "Traceback" not in child.stderr and child.code in (0, 4)
    for key, value in (("hidden", "${oc.env:STRANGERS_WISH}"), ("hidden", ["${oc.decode:16}"]), ("_target_", "${x}")):
        forge_digests(step, lambda body, key=key, value=value: body["config"]["model"].update({key: value}))
        child = forge.run("eval", str(step), cwd=tmp_path, STRANGERS_WISH=secret)
        refused(child, f"{key}={value}")
        assert secret not in child.stderr


def test_a_trusted_package_may_be_named(step: Path, tmp_path: Path) -> None:
    """`--trust mine` is the user's word; nobody else's package comes with it."""
    folder = tmp_path / "path" / "mine"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("from dlcli.models.mlp import MLP\n")
    forge_digests(step, lambda body: body["config"]["model"].update(_target_="mine.MLP"))
    path = os.pathsep.join([str(Path(__file__).resolve().parents[1]), str(folder.parent)])
    refused_by_default = dlcli("eval", str(step), cwd=tmp_path, PYTHONPATH=path)
    assert refused_by_default.returncode == 4 and "--trust mine" in refused_by_default.stderr
    other = dlcli("eval", str(step), "--trust", "min", cwd=tmp_path, PYTHONPATH=path)
    assert other.returncode == 4
    done = dlcli("eval", str(step), "--trust", "mine", "--json", cwd=tmp_path, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["event"] == "eval_finished"


def test_the_payload_would_work(forge: Forge, step: Path, evil: Path, tmp_path: Path) -> None:
    """That the tests above could fail: to whom the user trusts, all is open."""
    forge_digests(step, lambda body: plant(body, "model", "evil.payload", tmp_path / MARKER))
    forge.run("eval", str(step), "--trust", "evil", cwd=tmp_path / "cwd", PYTHONPATH=str(evil))
    assert (tmp_path / MARKER).exists()


def test_control_characters_of_a_stranger_do_not_reach_the_terminal(forge: Forge, step: Path) -> None:
    forge_digests(step, lambda body: body["config"]["model"].update(_target_="\x1b]0;owned\x07"))
    child = evaluate(forge, step)
    refused(child, "escape")
    assert "\x1b" not in child.stderr and "\x07" not in child.stderr
    forge_digests(step, lambda body: body["config"]["model"].update(_target_="dlcli.models.mlp.MLP"))
    forge_digests(step, lambda body: body.update(run="\x1b[31mred\x07", classes=[f"\x1b[3{i}m" for i in range(10)]))
    child = evaluate(forge, step)
    assert "\x1b" not in child.stdout + child.stderr and "\x07" not in child.stdout + child.stderr


@pytest.mark.parametrize(
    "sizes",
    [
        {"facts": {"gives": "boxes"}, "image_shape": [16, 16384, 16384]},
        {"facts": {"gives": "masks"}, "image_shape": [16, 16384, 16384]},
        {"facts": {"gives": "stream"}, "context_length": 1_000_000, "num_tokens": 10_000_000},
    ],
)
def test_sizes_that_no_memory_holds_are_refused(forge: Forge, step: Path, sizes: dict[str, Any]) -> None:
    forge_digests(step, lambda body: body["config"]["dataset"].update(sizes))
    refused(evaluate(forge, step), str(sizes))
