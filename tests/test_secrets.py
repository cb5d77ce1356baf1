"""A secret given in the environment, the config, argv or a URL is in no file of the run, W&B's included."""

from __future__ import annotations

import base64
import gzip
import os
import zipfile
import zlib
from pathlib import Path

import pytest
from program import QUICK, dlcli

# One for each way in, so that a hit says where it came from; none of them occurs anywhere else.
CANARIES = {
    "WANDB_API_KEY": "c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00",
    "MY_TOKEN": "canary-of-a-token-4711",
    "DB_PASSWORD": "canary/of a=password+4712",
    "AWS_SECRET_ACCESS_KEY": "canaryOfASecretKey4713",
}
IN_CONFIG, IN_URL, IN_YAML = "canary-in-the-config-4714", "canary-in-a-url-4715", "canary-in-a-yaml-4716"


def spellings(secret: str) -> list[bytes]:
    """As text, base64 and in UTF-16: what a careless writer may have made of it."""
    raw = secret.encode()
    return [raw, base64.b64encode(raw).rstrip(b"="), secret.encode("utf-16-le")]


def contents(path: Path) -> list[bytes]:
    """The bytes of a file, and of what is packed in it."""
    raw = path.read_bytes()
    found = [raw]
    if raw[:2] == b"\x1f\x8b":
        found.append(gzip.decompress(raw))
    elif raw[:8] == b"\x89PNG\r\n\x1a\n":
        found += [zlib.decompress(chunk) for chunk in _compressed_texts(raw)]
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            found += [archive.read(name) for name in archive.namelist()]
    return found


def _compressed_texts(png: bytes) -> list[bytes]:
    """The zTXt chunks of a PNG, without the names in front."""
    at, found = 8, []
    while at < len(png):
        size, kind = int.from_bytes(png[at : at + 4], "big"), png[at + 4 : at + 8]
        if kind == b"zTXt":
            found.append(png[at + 8 : at + 8 + size].partition(b"\0")[2][1:])
        at += size + 12
    return found


def hits(folder: Path, secrets: list[str]) -> list[str]:
    """`file: secret` for every secret in a file, a file's name or a link's target under the folder."""
    paths = list(folder.rglob("*"))
    assert len([path for path in paths if path.is_file()]) > 5, "there was something to search"
    found = []
    for path in paths:
        names = str(path).encode() + (os.readlink(path).encode() if path.is_symlink() else b"")
        texts = [names, *(contents(path) if path.is_file() else [])]
        found += [f"{path}: {s}" for s in secrets if any(form in text for form in spellings(s) for text in texts)]
    return found


def train(folder: Path, *words: str, **env: str) -> str:
    """A run with W&B offline and every canary in the environment; all that it printed."""
    done = dlcli("train", *QUICK[:1], *QUICK[2:], "tracker.mode=offline", *words, cwd=folder, **CANARIES, **env)
    assert done.returncode == 0, done.stderr
    assert list(folder.glob("outputs/*/*/wandb/offline-run-*/*.wandb")), "W&B wrote its file"
    return done.stdout + done.stderr


@pytest.mark.parametrize("secret", list(CANARIES.values()))
def test_the_search_finds_what_is_there(secret: str, tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"empty-{number}").touch()
    assert hits(tmp_path, [secret]) == []
    (tmp_path / "text").write_bytes(b"\0key=" + secret.encode() + b"\xff")
    (tmp_path / "packed.gz").write_bytes(gzip.compress(b"a" * 99 + secret.encode()))
    assert len(hits(tmp_path, [secret])) == 2


def test_secrets_of_the_environment_the_config_and_argv(tmp_path: Path) -> None:
    words = (
        f"tracker.project={IN_CONFIG}",
        f"dataset.root=https://user:{IN_URL}@host/x",
        f"tracker.entity={CANARIES['MY_TOKEN']}",
    )
    shown = train(tmp_path, *words, PROJECT_SECRET=IN_CONFIG, NOTE=f"https://user:{IN_URL}@host/x")
    secrets = [*CANARIES.values(), IN_CONFIG, IN_URL]
    assert hits(tmp_path / "outputs", secrets) == []
    assert not [secret for secret in secrets if secret in shown], "nor on the terminal"
    (run_yaml,) = tmp_path.glob("outputs/*/*/run.yaml")
    assert "***" in run_yaml.read_text() and "https://***@host/x" in run_yaml.read_text()


def test_a_secret_in_a_file_of_the_users(tmp_path: Path) -> None:
    """A model of the user's with an api_key: what is built gets it, what is written down does not."""
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "keyed.py").write_text(
        "from dlcli.models.mlp import MLP\n\n"
        "def make(api_key, **settings):\n"
        f"    assert api_key == {IN_YAML!r}\n    return MLP(**settings)\n"
    )
    (tmp_path / "conf/model/keyed.yaml").write_text(
        f"_target_: keyed.make\nfacts: {{kind: classifier, min_size: 1}}\napi_key: {IN_YAML}\nhidden: [16]\n"
        "num_classes: ${dataset.num_classes}\nimage_shape: ${dataset.image_shape}\n"
    )
    repository = str(Path(__file__).parents[1])
    shown = train(tmp_path, "model=keyed", PYTHONPATH=os.pathsep.join([repository, str(tmp_path)]))
    assert hits(tmp_path / "outputs", [*CANARIES.values(), IN_YAML]) == []
    assert IN_YAML not in shown


def test_a_secret_in_a_word_that_is_refused(tmp_path: Path) -> None:
    """Refused before anything is written; a key of the word's own is not repeated by another command."""
    done = dlcli("train", "digits", f"tracker.api_key={IN_CONFIG}", cwd=tmp_path, **CANARIES)
    assert done.returncode == 2 and list(tmp_path.iterdir()) == []
