"""One trial, trained in this process: begun or continued, and watched by the pruner."""

from __future__ import annotations

import math
import statistics
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

from dlcli.config import compose_command
from dlcli.errors import DataError, DivergedError, DlcliError, EnvironmentFault, OutOfMemory
from dlcli.reporting.wandb_tracker import RunQueue
from dlcli.runs.events import Silent, read_events
from dlcli.runs.find import find_checkpoint
from dlcli.runs.folder import RunFolder
from dlcli.runtime.signals import Signals
from dlcli.sweep.ledger.claims import Claim, now
from dlcli.sweep.ledger.journal import DamagedLedger
from dlcli.sweep.study.definition import EXTRA_OBJECTIVES, Definition
from dlcli.sweep.study.trial_record import Record, trial_folder
from dlcli.training import completing, start
from dlcli.training.trial import Pruned, Trial

LATENCY_S, MOST_ANSWERS = 0.5, 500  # for one figure
SAVE_GAP_S = 5.0


class Interrupted(Exception):
    """A signal came: the trial is saved, and goes back to the ledger."""


class Held(Exception):
    """A worker that was taken for dead still has the run: the trial goes back to the ledger for a while."""


class LedgerPruner:
    """Tells the ledger each score, and asks it whether others do better."""

    def __init__(self, claim: Claim, definition: Definition):
        self.trial, self.name = claim.trial, definition.pruner
        self.reports: dict[str, float] = {}
        self._known = set(claim.trial.study.get_trials(deepcopy=False)[claim.record.number].intermediate_values)

    def look(self, evaluation: int, score: float | None) -> None:
        if score is None or not math.isfinite(score):
            return
        self.reports[str(evaluation)] = score
        if self.name == "none":
            return
        try:
            if evaluation not in self._known:
                self.trial.report(score, evaluation)
            is_hopeless = self.trial.should_prune()
        except DamagedLedger:  # it was rebuilt meanwhile, and this trial goes on unwatched
            self.name = "none"
            return
        if is_hopeless:
            raise Pruned(f"others were better at evaluation {evaluation} ({self.name})")


def run_trial(
    claim: Claim,
    definition: Definition,
    folder: Path,
    made: dict[tuple[str, ...], Any],
    tracker: RunQueue,
    signals: Signals,
) -> Record:
    """Train a claimed trial to its end; its record. made: what Hydra has composed in this process; signals: where those
    that come meanwhile are noted.

    Raises Interrupted on a signal, Held where another process has the run, and EnvironmentFault where it is the machine
    that fails: the trial is not at fault.
    """
    run = RunFolder(trial_folder(folder, claim.record.number))
    if run.is_locked():
        raise Held
    pruner = LedgerPruner(claim, definition)
    try:
        summary = run.read_summary() or {}
        if summary.get("status") not in ("completed", "pruned"):
            trial = Trial(pruner, tracker.add, SAVE_GAP_S)
            _train(claim, definition, run, trial, made, signals)
            summary = _summary_of_the_end(run)
        record = _result(claim.record, definition, run, summary)
    except DivergedError as error:
        record = claim.record.be(state="diverged", reason=error.message)
    except OutOfMemory as error:
        record = claim.record.be(state="out of memory", reason=error.message, signature="out of memory")
    except DataError as error:
        record = claim.record.be(state="data", reason=error.message, signature=f"data: {error.message}")
    except (Interrupted, EnvironmentFault):
        raise
    except DlcliError as error:
        message = "; ".join([error.message, *(f"{p.where}: {p.message}" for p in getattr(error, "problems", ()))])
        record = claim.record.be(state="bug", reason=message, signature=f"{type(error).__name__}: {message}")
    except Exception as error:
        run.log.write_text("".join(traceback.format_exception(error)), encoding="utf-8", errors="backslashreplace")
        message = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        record = claim.record.be(state="bug", reason=message, signature=_signature(error))
    finally:
        claim.record = claim.record.be(reports={**claim.record.reports, **pruner.reports})  # also when handed back
    return record.be(finished=now(), reports=claim.record.reports, seconds=_seconds(run))


def _train(
    claim: Claim,
    definition: Definition,
    run: RunFolder,
    trial: Trial,
    made: dict[tuple[str, ...], Any],
    signals: Signals,
) -> None:
    common: dict[str, Any] = {"display": Silent(), "trusted": definition.trusted, "trial": trial, "signals": signals}
    if claim.is_begun:
        code = start.resume(run, (), search=definition.search(), **common)
    else:
        composed = compose_command(definition.words_of(claim.record.point), search=definition.search(), made=made)
        code = start.train_in(
            run, replace(composed, tree=completing.settle(composed.tree, run.outputs)), group=definition.name,
            number=claim.record.number, **common,
        )  # fmt: skip
    if code:
        raise Interrupted


def _summary_of_the_end(run: RunFolder) -> dict[str, Any]:
    """What the run has said of its end; EnvironmentFault if that could not be written: then it is not a result."""
    summary = run.read_summary() or {}
    if summary.get("status") not in ("completed", "pruned"):
        raise EnvironmentFault(f"{run.summary} was not written", hint="Is there room on the disk?")
    return summary


def _result(record: Record, definition: Definition, run: RunFolder, summary: dict[str, Any]) -> Record:
    if summary.get("status") == "pruned":
        return record.be(state="pruned", reason=summary.get("reason"))
    metrics = {name: value for name, value in (summary.get("metrics") or {}).items() if isinstance(value, int | float)}
    metrics |= {name: _measured(name, run, summary, definition) for name in _extra(definition)}
    values = [metrics.get(objective.name) for objective in definition.objectives]
    if any(value is None or not math.isfinite(value) for value in values):
        return record.be(state="diverged", reason="no evaluation gave a finite score", metrics=metrics)
    return record.be(state="completed", values=values, metrics=metrics)


def _extra(definition: Definition) -> list[str]:
    return [objective.name for objective in definition.objectives if objective.name in EXTRA_OBJECTIVES]


def _measured(name: str, run: RunFolder, summary: dict[str, Any], definition: Definition) -> float:
    if name == "time":
        return float(summary["seconds"])
    if name == "parameters":
        events = read_events(run.events)
        return float(next(event["parameters"] for event in events if event.get("event") == "run_prepared"))
    return latency_ms(run, definition)


def latency_ms(run: RunFolder, definition: Definition) -> float:
    """Median time of the trained network's answer for one example, in ms, on this worker's device."""
    from dlcli.inference import trained
    from dlcli.training.allow_list import Builder

    builder = Builder.for_search(definition.search(), definition.trusted)
    loaded = trained.load(find_checkpoint(str(run.path), run.outputs), builder=builder)
    answer = trained.made_up_answer(loaded)
    times: list[float] = []
    answer()  # the first sets things up
    while sum(times) < LATENCY_S and len(times) < MOST_ANSWERS:
        began = time.perf_counter()
        answer()
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times)


def _signature(error: BaseException) -> str:
    """What makes two failures the same: their kind and where they came from."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__} at {where}"


def _seconds(run: RunFolder) -> float | None:
    seconds = (run.read_summary() or {}).get("seconds")
    return float(seconds) if isinstance(seconds, int | float) else None
