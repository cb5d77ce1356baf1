"""Starts a run or resumes one, alone or among ranks. torch is not imported before the ranks meet."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dlcli.config import Composed
from dlcli.config.stored import change_stored, check_stored
from dlcli.datasets.kinds import check_size
from dlcli.errors import CheckpointError, ConfigError, DlcliError
from dlcli.reporting.display import open_display
from dlcli.reporting.wandb_tracker import new_run_id
from dlcli.runs.events import Display, Recorder, Silent, Unheard, now
from dlcli.runs.find import all_runs
from dlcli.runs.folder import RunFolder
from dlcli.runs.provenance import git_commit, origin, versions, writer
from dlcli.runtime.ranks import Ranks, SingleProcess
from dlcli.runtime.rendezvous import find_ranks
from dlcli.runtime.signals import Signals
from dlcli.training.completing import settle
from dlcli.training.extension import ENDS, check_extension, more
from dlcli.training.session import Session, in_a_command
from dlcli.training.trial import Trial

RESUME_KEYS = (
    "trainer.epochs",
    "trainer.max_steps",
    "trainer.max_time",
    "trainer.keep_checkpoints",
    "trainer.save_every",
    "regularization.early_stopping.patience",
    "dataset.root",
    "dataset.num_workers",
    "runtime.device",
    "runtime.devices",
    "runtime.threads",
)


def train(
    composed: Composed, *, outputs: Path, display: Display, trusted: Sequence[str] = (), profile: bool = False
) -> int:
    """Start a run of a composed config, or this rank's part of it; return the exit code."""
    ranks = meet(composed.tree)
    if found := ranks.broadcast(launched_before(outputs) if ranks.is_primary and ranks.attempt else None):
        return resume(RunFolder(Path(found)), (), display=display, search=composed.search, trusted=trusted, ranks=ranks)
    tree = settle(composed.tree, outputs)
    if not ranks.is_primary:
        run = RunFolder(Path(ranks.broadcast(None)))
        record = run.read_record()
        return Session(run, record["config"], record, Unheard(), composed.search, trusted, ranks=ranks).execute()
    run = RunFolder.create(outputs.absolute(), composed.experiment, tree["name"])
    return train_in(run, replace(composed, tree=tree), display=display, trusted=trusted, profile=profile, ranks=ranks)


def train_in(
    run: RunFolder,
    composed: Composed,
    *,
    display: Display,
    trusted: Sequence[str] = (),
    profile: bool = False,
    ranks: SingleProcess | Ranks | None = None,
    trial: Trial | None = None,
    signals: Signals | None = None,
    **facts: Any,
) -> int:
    """Start a run in a folder made for it; return the exit code. facts: more entries for its record.

    signals: notes the signals that arrive, for a caller with more to do afterwards.
    """
    run.lock()
    run.checkpoints.mkdir(exist_ok=True)
    record = new_record(run, composed, **facts)
    run.write_record(record)
    ranks = ranks or SingleProcess()
    ranks.broadcast(str(run.path))
    recorder = Recorder(run.events, display)
    session = Session(run, composed.tree, record, recorder, composed.search, trusted, warnings=composed.warnings)
    session.ranks, session.profile, session.trial = ranks, profile, trial
    session.signals = signals or session.signals
    return session.execute()


def new_record(run: RunFolder, composed: Composed, **facts: Any) -> dict[str, Any]:
    """Write the content of run.yaml before the first step."""
    return {
        "name": run.name,
        "experiment": composed.experiment,
        "created": now(),
        "config": composed.tree,
        "overrides": list(composed.overrides),
        "choices": composed.choices,
        "versions": versions(),
        "git": git_commit(),
        "wandb_id": new_run_id(),
        "launch": os.environ.get("TORCHELASTIC_RUN_ID"),
        **facts,
    }


def composed_again(record: dict[str, Any], tree: dict[str, Any], search: Sequence[Path]) -> Composed:
    """Return what a run's record was composed to, with `tree` as its config."""
    choices = record.get("choices") or {}
    return Composed(record["experiment"], tuple(record["overrides"]), dict(choices), tree, tuple(search))


def measured(tree: dict[str, Any], device: object, *, left_open: Sequence[object] = ("auto",)) -> dict[str, Any]:
    """Fill in what a config left open with a run's choices. device: the fingerprint in that run's record."""
    runtime, found = dict(tree["runtime"]), device if isinstance(device, dict) else {}
    for key in ("threads", "precision", "channels_last"):
        if runtime.get(key) in left_open and found.get(key) is not None:
            runtime[key] = found[key]
    return {**tree, "runtime": runtime}


def devices_to_launch(tree: dict[str, Any]) -> int:
    """Return the number of ranks to start: 1 if no more are wanted, or if this process is one of them."""
    return 1 if find_ranks() else int(tree["runtime"]["devices"])


def launch_again(devices: int, max_restarts: int) -> int:
    """Run this same command once per device; return the exit code."""
    from dlcli.runtime.launch import launch

    return launch(sys.argv[1:], devices=devices, max_restarts=max_restarts)


def open_display_of_rank(*, as_json: bool) -> Display:
    """Open the display on rank 0; the others are silent."""
    place = find_ranks()
    return Silent() if place and place.rank else open_display("json" if as_json else "auto")


def meet(tree: dict[str, Any]) -> SingleProcess | Ranks:
    """Join the ranks that this process was started with; runtime.devices becomes their number."""
    place = find_ranks()
    if place is None:
        return SingleProcess()
    from dlcli.runtime.device import choose_device
    from dlcli.runtime.rendezvous import join_ranks

    tree["runtime"]["devices"] = place.world_size
    return join_ranks(place, choose_device(tree["runtime"]["device"], place.local_rank))


def launched_before(outputs: Path) -> str | None:
    """Return the run that an earlier start of these ranks has begun."""
    launch = os.environ.get("TORCHELASTIC_RUN_ID")
    for run in all_runs(outputs.absolute()):
        with contextlib.suppress(DlcliError):
            if launch and run.read_record().get("launch") == launch:
                return str(run.path)
    return None


def resume(
    run: RunFolder,
    words: Sequence[str],
    *,
    display: Display,
    search: Sequence[Path],
    trusted: Sequence[str] = (),
    ranks: SingleProcess | Ranks | None = None,
    trial: Trial | None = None,
    signals: Signals | None = None,
) -> int:
    """Continue an interrupted run, or extend a finished one; return the exit code."""
    run = RunFolder(run.path.absolute())
    record, tree, stored = to_resume(run, words)
    ranks = ranks or meet(tree)
    record["config"] = tree
    if not ranks.is_primary:
        if not ranks.broadcast(None):
            ranks.close()
            return 0
        return Session(run, tree, record, Unheard(), search, trusted, resumes=True, ranks=ranks).execute()
    run.lock()
    summary = run.read_summary() or {}
    if summary.get("status") == "completed" and not any(word.partition("=")[0] in ENDS for word in words):
        run.unlock()
        ranks.broadcast(False)
        ranks.close()
        display.event(
            {
                "event": "note",
                "message": f"{run.name} is finished already; nothing changed",
                "hint": f"To train it further:  dlcli resume {in_a_command(run)} {more(tree, summary)}",
            }
        )
        display.event(summary)
        display.close()
        return 0
    if summary.get("status") == "completed":
        check_extension(stored, tree, summary)
    run.checkpoints.mkdir(exist_ok=True)
    ranks.broadcast(True)
    recorder = Recorder(run.events, display)
    session = Session(run, tree, record, recorder, search, trusted, resumes=True, words=words, ranks=ranks)
    session.trial, session.signals = trial, signals or session.signals
    return session.execute()


def to_resume(run: RunFolder, words: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return a run's record, its config changed by `words`, and the old config. CheckpointError if damaged."""
    record = run.read_record()
    try:
        stored = check_stored(record.get("config"))
        check_size(stored["dataset"])
        if lacking := [key for key in ("name", "experiment", "overrides", "versions", "wandb_id") if key not in record]:
            raise ConfigError(f"it lacks {', '.join(lacking)}")
    except (ConfigError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{run.run_yaml} cannot be resumed from: {error}", hint=origin(writer(record))) from error
    tree = change_stored(stored, words, RESUME_KEYS)
    if place := find_ranks():
        tree["runtime"]["devices"] = place.world_size
    keep_batch(stored, tree)
    return record, tree, stored


def keep_batch(stored: dict[str, Any], tree: dict[str, Any]) -> None:
    """Keep a step's examples on another number of devices by changing the micro-batches. ConfigError if impossible.

    The same gradients to rounding, not the same bits.
    """
    before, now_many = (config["runtime"]["devices"] for config in (stored, tree))
    total = stored["trainer"]["accumulate_grad_batches"] * before
    if "tp" in (stored["runtime"].get("parallel"), tree["runtime"].get("parallel")) or before == now_many:
        return
    if total % now_many:
        message = f"runtime.devices={now_many} cannot make the run's steps: {total} micro-batches on {before} devices"
        raise ConfigError(message, hint=f"Choose runtime.devices={before}, or a divisor of {total}.")
    tree["trainer"]["accumulate_grad_batches"] = total // now_many
