"""A worker: what is no result, whose run another has, signals between trials, a process of its own where needed."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from dlcli.config import compose_command
from dlcli.errors import EnvironmentFault
from dlcli.reporting.wandb_tracker import RunQueue
from dlcli.runs.folder import RunFolder
from dlcli.runtime.signals import Signals
from dlcli.sweep.ledger.claims import Claim
from dlcli.sweep.ledger.heartbeat import this_worker
from dlcli.sweep.ledger.opening import open_ledger
from dlcli.sweep.request import Request, read_request
from dlcli.sweep.study.definition import Definition
from dlcli.sweep.study.trial_record import trial_folder
from dlcli.sweep.workers.trial import Held, _summary_of_the_end, run_trial

WORDS = ("digits", "tracker=none", "trainer.epochs=1", "model.hidden=[8]", "optimizer.lr=0.1,0.01")


def ask(*words: str, **more: Any) -> Definition:
    request = Request(**more)
    return read_request(words, request, device_is_cpu=True, workers=1, threads=lambda workers: 1).definition


def test_a_run_without_its_summary_is_no_result(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with pytest.raises(EnvironmentFault, match=r"summary.json was not written"):
        _summary_of_the_end(run)
    run.write_summary({"status": "interrupted", "metrics": {"val/loss": 0.1}})
    with pytest.raises(EnvironmentFault):
        _summary_of_the_end(run)


def test_a_run_that_another_process_has_goes_back(tmp_path: Path) -> None:
    """Its worker was taken for dead: asleep, or cut off."""
    from dataclasses import replace

    definition = replace(ask(*WORDS), name="s")
    ledger = open_ledger(tmp_path, definition)
    claim = ledger.claim(this_worker())
    assert isinstance(claim, Claim)
    with RunFolder(trial_folder(tmp_path, 0)), pytest.raises(Held):
        run_trial(claim, definition, tmp_path, {}, RunQueue(tmp_path, "w"), Signals())
    ledger.release(claim)
    assert ledger.records()[0].state == "waiting"


def test_a_signal_between_two_trials_reaches_the_next() -> None:
    """It came while torch was being imported, say: the run's own block of the same signals sees it."""
    with Signals() as signals:
        before = signal.getsignal(signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        with signals:
            assert signals.received == signal.SIGTERM
            assert signal.getsignal(signal.SIGTERM) == before
        assert signal.getsignal(signal.SIGTERM) == before, "the outer block still listens"
    assert signal.getsignal(signal.SIGTERM) != before


@pytest.mark.parametrize(
    ("words", "own"),
    [
        ((), False),
        (("runtime.compile=true",), True),
        (("runtime.compile=True",), True),
        (("runtime.precision=fp32,bf16",), True),
        (("runtime=cpu,auto",), True),
    ],
)
def test_what_leaves_something_behind_gets_a_process_of_its_own(words: tuple[str, ...], own: bool) -> None:
    assert ask(*WORDS, *words).own_process is own


def test_a_sweep_trains_the_same_wherever_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    text = "defaults:\n  - override /dataset: digits\ntrainer: {epochs: 2}\n"
    (tmp_path / "a" / "conf" / "experiment" / "digits.yaml").write_text(text)
    (tmp_path / "a" / "mine.yaml").write_text(text.replace("2", "3"))
    monkeypatch.chdir(tmp_path / "a")
    of_conf, of_file = ask(*WORDS[:2], *WORDS[4:]), ask("mine.yaml", *WORDS[1:2], *WORDS[4:])
    monkeypatch.chdir(tmp_path / "b")
    for definition, epochs in ((of_conf, 2), (of_file, 3)):
        words = definition.words_of({"optimizer.lr": "0.1"})
        assert compose_command(words, search=definition.search()).tree["trainer"]["epochs"] == epochs
    packaged = ask(*WORDS)
    monkeypatch.chdir(tmp_path / "a")
    words = packaged.words_of({"optimizer.lr": "0.1"})
    assert compose_command(words, search=packaged.search()).tree["model"]["hidden"] == [8], "dlcli's own digits"


def test_extending_a_sweep_changes_no_sampler() -> None:
    definition = ask(*WORDS, trials=8)
    assert definition.with_trials(80).starts == definition.starts == 2
