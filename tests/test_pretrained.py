"""Weights to begin with: of a run, of a file, of torchvision; and which layers start fresh."""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from program import QUICK, dlcli, events_of, train_quickly
from safetensors.torch import save_file

from dlcli.config import compose_command
from dlcli.config.folders import packaged_conf
from dlcli.datasets.storage.download import download
from dlcli.errors import ConfigError, DataError, EnvironmentFault
from dlcli.tasks.task import Task
from dlcli.training import build
from dlcli.training.allow_list import Builder
from dlcli.training.pretrained import load_pretrained


def fresh(*words: str) -> tuple[Task, dict]:
    tree = compose_command(["cifar10_resnet", *words]).tree
    torch.manual_seed(1)
    return build.build_task(Builder.for_search([packaged_conf()]), tree), tree


def other_weights(num_classes: int = 10, **sizes: object) -> dict[str, torch.Tensor]:
    from dlcli.models.resnet import build_resnet

    torch.manual_seed(2)
    return build_resnet(num_classes=num_classes, image_shape=[3, 32, 32], **sizes).state_dict()  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_network_for_other_classes_keeps_its_fresh_head(tmp_path: Path, suffix: str) -> None:
    weights, path = other_weights(num_classes=3), tmp_path / f"other{suffix}"
    save_file(weights, path) if suffix == ".safetensors" else torch.save({"state_dict": weights}, path)
    task, tree = fresh(f"trainer.pretrained={path}")
    head = task.get_parameter("model.fc.weight").clone()
    told = load_pretrained(task, tree)
    assert "2 start fresh: fc.weight, fc.bias" in told
    own = task.get_submodule("model").state_dict()
    assert all(own[name].equal(t) for name, t in weights.items() if not name.startswith("fc."))
    assert own["fc.weight"].equal(head)


@pytest.mark.parametrize("place", ["torch/hub/checkpoints", "cache/weights"])
def test_torchvisions_weights_are_found_where_torch_or_dlcli_keeps_them(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.models import ResNet18_Weights

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("DLCLI_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / place
    folder.mkdir(parents=True)
    weights = other_weights(num_classes=1000, stem="imagenet")
    torch.save(weights, folder / ResNet18_Weights.DEFAULT.url.rpartition("/")[2])
    task, tree = fresh("trainer.pretrained=imagenet")
    told = load_pretrained(task, tree)
    assert "3 start fresh: conv1.weight, fc.weight, fc.bias" in told, "the stem for small images has a smaller kernel"
    assert task.get_parameter("model.layer1.0.conv1.weight").equal(weights["layer1.0.conv1.weight"])


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torchvision's ResNet-18 is fetched from: a file here. Torch's folder and dlcli's cache are empty."""
    from torchvision.models import ResNet18_Weights

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("DLCLI_CACHE", str(tmp_path / "cache"))
    unnamed, here = tmp_path / "resnet18.pth", tmp_path / "server"
    torch.save(other_weights(num_classes=1000, stem="imagenet"), unnamed)
    path = here / f"resnet18-{hashlib.sha256(unnamed.read_bytes()).hexdigest()[:8]}.pth"
    here.mkdir()
    unnamed.rename(path)
    weights = ResNet18_Weights.DEFAULT
    monkeypatch.setattr(weights, "_value_", replace(weights.value, url=path.as_uri()))
    return path


def test_torchvisions_weights_are_fetched_into_dlclis_cache_and_nowhere_else(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, tree = fresh("trainer.pretrained=imagenet")
    first = load_pretrained(task, tree)
    assert [path.name for path in (tmp_path / "cache" / "weights").iterdir()] == [published.name]
    assert not (tmp_path / "torch").exists() and capsys.readouterr() == ("", "")
    published.unlink()
    assert load_pretrained(task, tree) == first, "the second time nothing is fetched"


def test_weights_that_cannot_be_fetched_are_told_with_the_address_and_the_ways_out(
    published: Path, tmp_path: Path
) -> None:
    task, tree = fresh("trainer.pretrained=imagenet")
    address, folder = published.as_uri(), tmp_path / "cache" / "weights"
    published.write_bytes(b"another content")
    with pytest.raises(EnvironmentFault, match=r"the 15 bytes received have SHA256 [0-9a-f]{64}, not [0-9a-f]{8}$"):
        load_pretrained(task, tree)
    published.unlink()
    with pytest.raises(EnvironmentFault) as caught:
        load_pretrained(task, tree)
    reason = "No such file or directory"
    told = f"trainer.pretrained=imagenet: the weights cannot be fetched from {address}: {reason}"
    assert caught.value.message == told
    assert caught.value.hint == f"Put that file into {folder}, or give its path: trainer.pretrained=FILE"
    assert list(folder.iterdir()) == [], "nothing is left behind"


@pytest.fixture(params=["garbage", "cut", "chunk"])
def broken(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """The address of a server that answers no HTTP, or stops in the middle, and what is told of it."""
    head = b"HTTP/1.1 200 OK\r\n"
    answer, told = {
        "garbage": (b"SSH-2.0-OpenSSH\r\n", "BadStatusLine: SSH-2.0-OpenSSH"),
        "cut": (head + b"Content-Length: 900\r\n\r\n" + b"x" * 400, "the 400 bytes received have"),
        "chunk": (head + b"Transfer-Encoding: chunked\r\n\r\n190\r\n" + b"x" * 100, "IncompleteRead: IncompleteRead"),
    }[request.param]
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):  # closed at the end
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(65_536)
                        connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", told
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_server_that_breaks_off_or_answers_anything_else_is_told_and_leaves_nothing_behind(
    broken: tuple[str, str], published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.models import ResNet18_Weights

    server, told = broken
    url, weights = f"{server}/{published.name}", ResNet18_Weights.DEFAULT
    monkeypatch.setattr(weights, "_value_", replace(weights.value, url=url))
    task, tree = fresh("trainer.pretrained=imagenet")
    with pytest.raises(EnvironmentFault) as caught:
        load_pretrained(task, tree)
    assert f"cannot be fetched from {url}: {told}" in caught.value.message
    assert "trainer.pretrained=FILE" in str(caught.value.hint)
    with pytest.raises(DataError, match=re.escape(f"{url}: {told}")):
        download([url], tmp_path / "data" / "images.gz", md5="0" * 32, size_limit=1_000)
    assert [*(tmp_path / "cache" / "weights").iterdir(), *(tmp_path / "data").iterdir()] == []


def test_a_misspelt_source_of_weights_is_refused_before_anything_starts(tmp_path: Path) -> None:
    words = ("mnist", "model=resnet", "tracker=none", "dataset.root=/nowhere/at/all")
    done = dlcli("train", *words, "trainer.pretrained=im", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.splitlines() == [
        "error: trainer.pretrained=im: there is no such file or run",
        "hint: Did you mean trainer.pretrained=imagenet? It is a file of weights, a run of outputs, or imagenet.",
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_would_run_something_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps({"fc.weight": Harmful()}))
    task, tree = fresh(f"trainer.pretrained={path}")
    with pytest.raises(DataError, match="cannot be read"):
        load_pretrained(task, tree)
    assert not (tmp_path / "ran").exists()


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_file({"layers.0.weight": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    task, tree = fresh(f"trainer.pretrained={tmp_path / 'other.safetensors'}")
    with pytest.raises(ConfigError, match="none of its 1 tensors fits"):
        load_pretrained(task, tree)


def test_models_without_imagenet_weights_are_told_before_anything_starts() -> None:
    with pytest.raises(ConfigError) as caught:
        compose_command(["mnist", "trainer.pretrained=imagenet"])
    assert caught.value.problems[0].better in ("model=mobilenet", "model=resnet", "model=shufflenet")


def test_a_run_goes_on_from_another_runs_weights(tmp_path: Path) -> None:
    train_quickly(tmp_path, "name=first", "trainer.epochs=4")
    (first,) = (run for run in (tmp_path / "outputs" / "digits").iterdir() if run.name.endswith("-first"))
    before = [
        e["metrics"]["val/loss"] for e in events_of((first / "events.jsonl").read_text()) if e["event"] == "epoch"
    ]
    done = dlcli("train", *QUICK, "trainer.pretrained=first", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = events_of(done.stdout)
    assert any("tensors taken from" in event.get("message", "") for event in told)
    after = [event["metrics"]["val/loss"] for event in told if event["event"] == "epoch"]
    assert after[0] < before[0] / 2
