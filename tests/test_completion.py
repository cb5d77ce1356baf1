"""<TAB>: what is offered, how fast, and that it works in a real bash, also behind an equals sign."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dlcli.completion import SCRIPTS, TABLE, complete, scan, script
from dlcli.config.folders import bodies, packaged_conf
from dlcli.runs.folder import RunFolder

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in, with a model, an optimizer and an experiment of one's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DLCLI_OUTPUTS", raising=False)
    files = {
        "experiment/zebra.yaml": "defaults:\n  - override /optimizer: zopt\ntrainer:\n  epochs: 3\n",
        "model/zoo/deep.yaml": "name: deep\n",
        "optimizer/zopt.yaml": "zlr: 0.1 # a rate\nnested:\n  inner: true\nlist:\n  - a: 1\n_target_: x.Y\n",
        "optimizer/other.yaml": "other_key: 1\nkind: a # a | b.c | 3; what it is\nratio: 0.5 # a or b\n",
    }
    for name, text in files.items():
        path = tmp_path / "conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_commands_flags_and_subcommands_are_offered() -> None:
    assert complete([], "do") == ["doctor"]
    assert complete([], "ev") == ["eval"]
    assert {"runs", "sync", "doctor", "completion"} <= set(complete([], ""))
    assert complete(["sync"], "--js") == ["--json"]
    assert complete(["runs"], "") == ["ls", "show", "rm", "restore", "prune", "export"]
    of_eval = ["--help", "--config-dir", "--json", "--outputs", "--split", "--trust"]
    assert complete(["eval"], "--") == of_eval, "those that several commands share too"
    assert complete(["completion"], "") == ["bash", "zsh", "fish"]


def test_experiments_groups_options_and_keys_are_offered(conf: Path) -> None:
    assert complete(["train"], "zeb") == ["zebra"]
    assert complete(["train", "zebra"], "zeb") == []
    assert complete(["train", "zebra"], "mo") == ["model="]
    assert complete(["train"], "model=zo") == ["model=zoo/deep"]
    assert complete(["train", "zebra"], "optimizer.z") == ["optimizer.zlr="]
    assert complete(["train", "zebra"], "optimizer.") == ["optimizer.nested.inner=", "optimizer.zlr="]
    assert complete(["train", "zebra", "optimizer=other"], "optimizer.o") == ["optimizer.other_key="]
    assert complete(["train", "zebra"], "optimizer.nested.inner=") == [
        "optimizer.nested.inner=true",
        "optimizer.nested.inner=false",
    ]
    assert "trainer." in complete(["train", "zebra"], "tr")
    assert "trainer.epochs=" in complete(["train", "zebra"], "trainer.ep")


def test_runs_and_their_checkpoints_are_offered(conf: Path) -> None:
    run = RunFolder.create(conf / "outputs", "digits", "calm-otter")
    (run.checkpoints / "step-00000060").mkdir(parents=True)
    for words in (["eval"], ["resume"], ["predict", "--run"], ["runs", "show"], ["sync"], ["eval", "--json"]):
        assert complete(words, "ca") == ["calm-otter"], words
    assert complete(["eval"], "calm-otter/") == ["calm-otter/best", "calm-otter/last", "calm-otter/step-00000060"]
    assert complete(["sync"], run.stamp[:6]) == [run.folder_name]
    assert complete(["sync", "--outputs", "elsewhere"], "") == complete(["sync", "calm-otter"], "") == []


def test_removed_runs_are_offered_to_be_restored(conf: Path) -> None:
    RunFolder.create(conf / "outputs", "digits", "calm-otter")
    assert complete(["runs", "rm"], "") == complete(["runs", "rm", "x"], "") == ["latest", "calm-otter"]
    assert complete(["runs", "restore"], "") == []
    removed = RunFolder.create(conf / "outputs" / ".bin", "digits", "old-otter")
    assert complete(["runs", "restore"], "") == ["latest", "old-otter", removed.folder_name]
    assert complete(["runs", "rm"], "old") == []


def test_filters_begin_with_an_experiment(conf: Path) -> None:
    for command in ("ls", "prune", "export"):
        assert complete(["runs", command], "zeb") == ["zebra"]
        assert complete(["runs", command, "--sort", "val/loss"], "zeb") == ["zebra"]
    assert complete(["runs", "export", "--format"], "") == ["csv", "json", "markdown"]
    (conf / "outputs/sweeps/my-sweep/0001").mkdir(parents=True)
    assert complete(["runs", "ls", "--sweep"], "m") == ["my-sweep"]


def test_only_runs_with_a_checkpoint_are_offered_where_one_is_needed(conf: Path) -> None:
    failed = RunFolder.create(conf / "outputs", "digits", "failed-start")
    assert complete(["eval"], "") == complete(["predict", "--run"], "") == []
    trained = RunFolder.create(conf / "outputs", "digits", "calm-otter")
    (trained.checkpoints / "step-00000060").mkdir(parents=True)
    assert complete(["eval"], "") == complete(["predict", "a.png", "--run"], "") == ["latest", "calm-otter"]
    assert complete(["predict"], "--run=c") == ["--run=calm-otter"]
    assert complete(["predict"], "") == [], "files, by the shell itself"
    assert failed.name in complete(["resume"], "") and failed.name in complete(["runs", "show"], "")


def test_fixed_choices_are_offered(conf: Path) -> None:
    assert complete(["list"], "mo") == ["model"] and complete(["list", "model"], "") == []
    assert complete(["eval", "--split"], "") == ["test", "val", "train"]
    assert complete(["eval", "latest"], "--split=v") == ["--split=val"]
    precisions = [f"runtime.precision={word}" for word in ("auto", "fp32", "tf32", "bf16", "fp16")]
    assert complete(["train", "mnist"], "runtime.precision=") == precisions
    assert complete(["train", "mnist"], "dataset.download=") == ["dataset.download=true", "dataset.download=false"]
    assert complete(["train", "cifar10", "model=resnet"], "model.stem=") == ["model.stem=cifar", "model.stem=imagenet"]
    kinds = [f"optimizer.kind={word}" for word in ("a", "b.c", "3")]
    assert complete(["train", "optimizer=other"], "optimizer.kind=") == kinds
    assert complete(["train", "optimizer=other"], "optimizer.ratio=") == []


def test_choices_by_comment_are_those_of_the_checks() -> None:
    """What the YAML files list for people and for <TAB> is what is accepted, and all of it."""
    from typing import Literal, get_args, get_origin

    from dlcli.config.settings import SETTINGS

    literal = {key: s.annotation for key, s in SETTINGS.items() if get_origin(s.annotation) is Literal}
    for key, annotation in literal.items():
        words = ["train", "digits", *chosen_for(key)]
        assert complete(words, f"{key}=") == complete([*words, "tracker=wandb"], f"{key}=")
        offered = {word.partition("=")[2] for word in complete(words, f"{key}=")}
        assert offered == {str(choice) for choice in get_args(annotation)}, key


def chosen_for(key: str) -> list[str]:
    """The option that has the setting, where digits' own has not."""
    group, _, name = key.partition(".")
    having = [option for option, body in bodies(group, [packaged_conf()]) if name in body]
    default = {"model": "mlp", "dataset": "digits", "task": "classification"}.get(group)
    return [] if default is None or default in having or not having else [f"{group}={having[0]}"]


def test_config_why_takes_keys_without_an_equals_sign(conf: Path) -> None:
    assert complete(["config", "why", "zebra"], "trainer.ep") == ["trainer.epochs"]
    assert complete(["config", "why", "zebra"], "opt") == ["optimizer", "optimizer."]
    assert complete(["config", "why", "zebra", "trainer.epochs"], "trainer.ep") == ["trainer.epochs="]
    assert complete(["config", "why", "zebra"], "optimizer=zo") == ["optimizer=zopt"]
    assert complete(["config", "show", "zebra"], "trainer.ep") == ["trainer.epochs="]


def test_yaml_is_scanned_by_its_indentation(conf: Path) -> None:
    found = dict(scan(conf / "conf/optimizer/zopt.yaml", "optimizer"))
    assert found == {"optimizer.zlr": "0.1", "optimizer.nested.inner": "true"}


def test_an_answer_takes_a_fifth_of_a_second_and_imports_nothing_heavy(conf: Path) -> None:
    code = (  # as cli.main does it
        "import sys; from dlcli.completion import complete\n"
        "print(complete(['train', 'zebra'], 'optimizer.z'))\n"
        "sys.exit(any(name in sys.modules for name in ('typer', 'yaml', 'torch', 'hydra', 'rich')))"
    )
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(REPO)}, text=True,
                              capture_output=True)  # fmt: skip
        seconds.append(time.perf_counter() - start)
        assert (done.returncode, done.stdout) == (0, "['optimizer.zlr=']\n")
    assert min(seconds) < 0.2, seconds


@pytest.mark.parametrize("shell", sorted(SCRIPTS))
def test_every_script_says_how_to_keep_it_and_is_understood(shell: str, tmp_path: Path) -> None:
    text = script(shell)
    assert "# to keep it:" in text and "_DLCLI_COMPLETE=complete_" in text.replace(" complete_", "=complete_")
    if program := shutil.which(shell):
        (tmp_path / "script").write_text(text)
        assert subprocess.run([program, "-n", str(tmp_path / "script")]).returncode == 0


class Bash:
    """An interactive bash on a pseudo-terminal, with `dlcli` on its PATH."""

    def __init__(self, folder: Path):
        wrapper = folder / "bin" / "dlcli"
        wrapper.parent.mkdir()
        wrapper.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m dlcli "$@"\n')
        wrapper.chmod(0o755)
        (folder / "script").write_text(script("bash"))
        path = f"{wrapper.parent}:{os.environ['PATH']}"
        environment = {"PATH": path, "PYTHONPATH": str(REPO), "HOME": str(folder), "TERM": "dumb", "PS1": "> "}
        self.fd, end = pty.openpty()
        self.process = subprocess.Popen(
            ["bash", "--norc", "-i"], cwd=folder, env=environment, stdin=end, stdout=end, stderr=end,
            start_new_session=True,
        )  # fmt: skip
        os.close(end)
        self.type("bind 'set bell-style none'; . ./script; echo ready\n", until="\r\nready")

    def type(self, text: str, *, until: str, wait_s: float = 20.0) -> str:
        """Type, and read what appears until `until` stands there."""
        os.write(self.fd, text.encode())
        seen, deadline = "", time.monotonic() + wait_s
        while until not in seen and time.monotonic() < deadline:
            if select.select([self.fd], [], [], 0.1)[0]:
                seen += os.read(self.fd, 4096).decode(errors="replace")
        assert until in seen, f"{text!r} gave {seen!r}"
        return seen

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.fd)


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_tab_completes_in_a_real_bash(conf: Path) -> None:
    bash = Bash(conf)
    try:
        for typed, becomes in (
            ("dlcli doc\t", "dlcli doctor "),
            ("dlcli tr\t", "dlcli train "),
            ("dlcli train zeb\t", "dlcli train zebra "),
            ("dlcli train zebra mod\t", "dlcli train zebra model="),
            ("dlcli train zebra model=zo\t", "dlcli train zebra model=zoo/deep "),
            ("dlcli train mn\t", "dlcli train mnist"),
            ("dlcli train mnist model=re\t", "dlcli train mnist model=resnet"),
            ("dlcli train mnist optimizer.l\t", "dlcli train mnist optimizer.lr="),
            ("dlcli train zebra optimizer.z\t", "dlcli train zebra optimizer.zlr="),
            ("dlcli train zebra runtime.precision=b\t", "dlcli train zebra runtime.precision=bf16"),
            ("dlcli config why zebra trainer.ep\t", "dlcli config why zebra trainer.epochs "),
            ("dlcli eval --split v\t", "dlcli eval --split val "),
        ):
            bash.type(typed, until=becomes)
            bash.type("\x15", until="")  # Ctrl-U: away with the line
            time.sleep(0.1)
    finally:
        bash.close()


def test_the_commands_offered_are_those_that_exist() -> None:
    from dlcli.cli import make_app

    group = make_app()
    registered = getattr(group, "commands", None)
    if registered is None:  # a Typer app, not yet a click group
        import typer.main

        registered = typer.main.get_command(group).commands  # type: ignore[attr-defined]
    assert complete([], "") == sorted(registered)


def test_the_table_is_that_of_the_typer_app() -> None:
    from completion_table import table

    remedy = "the commands have changed: run  python -m tests.completion_table"
    assert TABLE.read_text(encoding="utf-8") == table(), remedy


def test_flags_are_those_of_the_subcommand_on_the_line() -> None:
    assert "--sort" in complete(["runs", "ls"], "--") and "--sort" not in complete(["runs", "show"], "--")
    assert complete(["config", "show"], "--") == ["--help", "--config-dir", "--json"]
    assert "--sampler" in complete(["sweep", "digits"], "--") and "--sampler" not in complete(["sweep", "top"], "--")
    assert complete(["export"], "--") == ["--help"] and complete(["serve"], "") == [], "commands that do not exist"


def test_tune_takes_experiments_and_settings(conf: Path) -> None:
    assert complete(["tune", "lr"], "zeb") == ["zebra"]
    assert complete(["tune", "lr", "zebra"], "optimizer.z") == ["optimizer.zlr="]


def test_a_sweep_takes_an_experiment_or_a_subcommand_with_a_sweeps_name(conf: Path) -> None:
    (conf / "outputs" / "sweeps" / "zebra-calm-otter").mkdir(parents=True)
    found = complete(["sweep"], "")
    assert {"resume", "join", "status", "top", "apply", "zebra", "optimizer=", "sweep="} <= set(found)
    assert complete(["sweep", "zebra"], "optimizer=zo") == ["optimizer=zopt"]
    assert complete(["sweep"], "sweep=l") == ["sweep=learning_rate"]
    assert complete(["sweep", "top"], "z") == ["zebra-calm-otter"]
    assert complete(["sweep", "resume", "zebra-calm-otter"], "") == []
    assert complete(["sweep", "zebra", "--pruner"], "") == ["none", "median", "halving", "hyperband"]
    assert complete(["train"], "swe") == [], "a training composes none"
