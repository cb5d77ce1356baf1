"""One execution of a run, from its first event to its last. No torch is imported until the run is announced."""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlcli.datasets.kinds import kind_of
from dlcli.errors import CheckpointError, ConfigError, DlcliError, EnvironmentFault
from dlcli.reporting.output import place
from dlcli.reporting.wandb_tracker import Follower, start_follower
from dlcli.runs.events import Recorder, finite, now, read_events
from dlcli.runs.find import all_runs, outputs_folder
from dlcli.runs.folder import RunFolder
from dlcli.runtime.ranks import Ranks, SingleProcess
from dlcli.runtime.signals import Interrupted, Signals
from dlcli.training.trial import NEVER, Pruned, Trial

if TYPE_CHECKING:
    from dlcli.runs.checkpoint import Checkpoint
    from dlcli.training.trainer import Training


@dataclass
class Session:
    """An execution of a run: its folder, its record, its signals, and how it ended."""

    run: RunFolder
    tree: dict[str, Any]
    record: dict[str, Any]
    recorder: Recorder
    search: Sequence[Path] | None = None
    trusted: Sequence[str] = ()
    resumes: bool = False
    words: Sequence[str] = ()
    checkpoint: Checkpoint | None = None
    warnings: Sequence[str] = ()
    signals: Signals = field(default_factory=Signals)
    began: float = field(default_factory=time.monotonic)
    training: Training | None = None
    test_scores: dict[str, float] = field(default_factory=dict)
    follower: Follower | None = None
    ranks: SingleProcess | Ranks = field(default_factory=SingleProcess)
    profile: bool = False
    trial: Trial | None = None

    def execute(self) -> int:
        """Run to the end and return the exit code. Raises the DlcliError that ended it, after it is on record."""
        with self.signals:
            try:
                self._train()
                self._finish("completed")
                return 0
            except Interrupted:
                self._finish("interrupted")
                return self.signals.exit_code
            except Pruned as why:
                self._finish("pruned", reason=str(why))
                return 0
            except DlcliError as error:
                self._finish("failed", reason=error.message)
                error.is_on_record = True
                error.is_told_elsewhere = not self.ranks.is_primary and error.code != EnvironmentFault.code
                raise
            except BaseException as error:
                with contextlib.suppress(OSError):
                    self.run.log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
                    error.add_note(str(self.run.log))  # the program's last line names this file for the traceback
                self._finish("failed", reason=f"{type(error).__name__}: {error}")
                raise
            finally:
                self.recorder.close()
                self.run.unlock()
                self.ranks.close()

    def _train(self) -> None:
        if self.resumes:
            if self.ranks.is_primary:  # said at once: reading the checkpoint imports torch
                print(f"resuming {self.run.name}", file=sys.stderr, flush=True)
            self.checkpoint = self._checkpoint_to_resume()
        if self.checkpoint is None:
            self._begin()
        self.signals.raise_if_received()
        self.training = self._build(self.checkpoint)
        if self.checkpoint is not None:
            self._take_up(self.checkpoint)
        for warning in self.warnings:
            self.recorder.warn(warning)
        if self.checkpoint is None:
            warm_up = self.training.plan.long_warm_up(self.tree["schedule"].get("warmup", 0))
            for message in filter(None, (*self.training.data.notes, self.training.pretrained, warm_up)):
                self.recorder.note(message)
        self.recorder.emit("run_prepared", **self.training.describe())
        self.training.run(profile=self.profile and self.ranks.is_primary)
        if self.trial is None:
            self._test()

    def _begin(self) -> None:
        self.recorder.cut(0)  # of a run that was killed before its first checkpoint
        self.recorder.emit(
            "run_started", time=now(), run=str(self.run.path), name=self.run.name, seed=self.tree["seed"],
            experiment=self.record["experiment"], overrides=self.record["overrides"],
            choices=self.record.get("choices"), config=self.tree, versions=self.record["versions"],
        )  # fmt: skip
        self._start_tracker()

    def _take_up(self, checkpoint: Checkpoint) -> None:
        """Cut the record back to the checkpoint. Only after all is built: a start that fails changes nothing."""
        from dlcli.runs.checkpoint import point

        # an extension that is killed from here on must not pass for the finished run it was
        if self.ranks.is_primary:
            self.run.summary.unlink(missing_ok=True)
        length = checkpoint.manifest.state.get("events_length")
        if isinstance(length, int) and 0 < length <= self.recorder.length():
            self.recorder.cut(length)
        if self.ranks.is_primary:
            point(self.run.checkpoints, "last", checkpoint.folder)  # a kill may have come before the link
        epoch = _last_epoch(checkpoint.manifest.state)
        step = checkpoint.manifest.step
        self.recorder.emit("run_resumed", time=now(), run=str(self.run.path), step=step, epoch=epoch)
        self._start_tracker()

    def _checkpoint_to_resume(self) -> Checkpoint | None:
        """Return the newest checkpoint that verifies; None if the run never saved one. Rank 0 chooses for all."""
        from dlcli.runs.checkpoint import newest_valid, read

        if not self.ranks.is_primary:
            chosen = self.ranks.broadcast(None)
            return read(Path(chosen)) if chosen else None
        checkpoint, damaged = newest_valid(self.run.checkpoints)
        self.ranks.broadcast(str(checkpoint.folder) if checkpoint else None)
        if checkpoint is None and damaged:
            raise CheckpointError(
                f"no checkpoint of {self.run.name} is whole: {damaged[0]}", hint="Train it again: dlcli train"
            )
        self.warnings = [*self.warnings, *damaged]
        return checkpoint

    def _start_tracker(self) -> None:
        settings = self.tree["tracker"]
        if settings["name"] == "none" or not self.ranks.is_primary:
            return
        facts = {key: settings[key] for key in ("project", "entity", "mode")}
        facts |= {"run_id": self.record["wandb_id"], "group": self.record.get("group")}
        if self.trial is not None:
            self.trial.feed(self.run, facts)
            return
        self.follower = start_follower(self.run.path, **facts)
        if self.follower is not None:
            self.recorder.note(self.follower.message)

    def _build(self, checkpoint: Checkpoint | None) -> Training:
        from dlcli.training.allow_list import Builder
        from dlcli.training.build import missing_package  # torch is imported here
        from dlcli.training.trainer import Training

        facts = {"run": self.run.name, "experiment": self.record["experiment"]}
        teacher = None if checkpoint else self._teacher()
        try:
            training = Training(
                self.tree,
                self.run,
                self.recorder,
                self.signals,
                builder=Builder.for_search(self.search, self.trusted),
                facts=facts,
                resume_from=checkpoint,
                teacher=teacher,
                ranks=self.ranks,
                pruner=self.trial.pruner if self.trial else NEVER,
                save_gap_s=self.trial.save_gap_s if self.trial else 0.0,
            )
        except ModuleNotFoundError as error:
            raise missing_package(error) from error
        stored = checkpoint.manifest.environment.items() if checkpoint else ()
        differs = [(what, before, training.environment.get(what)) for what, before in stored]
        self.warnings = [
            *self.warnings,
            *(f"the resume will not be bit-exact: {w} was {b}, here it is {h}" for w, b, h in differs if h != b),
        ]
        self.record |= {"device": training.environment, "data": training.data.fingerprints()}
        if self.ranks.is_primary:
            self.run.write_record(self.record)
        return training

    def _teacher(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Return model node and weights of the network that `task.teacher` names."""
        from dlcli.runs.checkpoint import read

        if "teacher" not in self.tree["task"]:
            return None
        teacher = read(Path(self.tree["task"]["teacher"]))
        weights = {n.removeprefix("model."): t for n, t in teacher.weights.items() if n.startswith("model.")}
        if not weights:
            raise CheckpointError(
                f"task.teacher={teacher.folder} has no network called model",
                hint="Name a classifier's run: dlcli runs ls",
            )
        scores = teacher.manifest.config.get("task", {}).get("facts", {}).get("scores", {})
        if "loss" not in scores:  # a loss of class answers: a contrastive network gives embeddings
            message = f"task.teacher={teacher.folder} was not trained to classify"
            raise ConfigError(message, hint="Name a classifier's run: dlcli runs ls")
        there, here = teacher.manifest.config.get("dataset", {}), self.tree["dataset"]
        for key in ("image_shape", "num_classes", "num_tokens", "num_features", "tokenizer"):
            if there.get(key) != here.get(key):
                message = (
                    f"task.teacher={teacher.folder} has dataset.{key}={there.get(key)}, this run has {here.get(key)}"
                )
                raise ConfigError(message, hint="Name a run on the same data: dlcli runs ls")
        return teacher.manifest.config["model"], weights

    def _test(self) -> None:
        """Score the best checkpoint on the test split, which no choice was based on."""
        from dlcli.runs.checkpoint import read
        from dlcli.training.state import load_weights

        training = self.training
        assert training is not None
        folder = self.ranks.broadcast(str(training.saver.best) if training.saver.best else None)
        if folder is not None:
            load_weights(training.task, read(Path(folder)).weights)
            for average in training.averages.values():
                for name, live in average.live.items():
                    average.shadow[name].copy_(live.detach())
        with training.times.during("evaluation"):
            scores = training.evaluate(training.test_source)
        self.recorder.emit("evaluated", split="test", metrics=scores)
        self.test_scores = scores

    # ---------------------------------------------------------------------------------------------------------- the end

    def _finish(self, status: str, *, reason: str | None = None) -> None:
        """Write pictures, summary and the last event, however the run ended."""
        if not self.ranks.is_primary:
            return
        if self.trial is None:
            self._draw_curves()
        summary: dict[str, Any] = {
            "run": str(self.run.path),
            "status": status,
            "checkpoint": self._best_or_last(),
            "metrics": {},
            "reason": reason,
            "experiment": self.record["experiment"],
            "name": self.run.name,
            "seconds": time.monotonic() - self.began,
            "next": self._next(status),
        }
        if self.training is not None:
            best = self.training.best_evaluation()
            progress = self.training.progress
            summary["metrics"] = {f"val/{k}": v for k, v in best["scores"].items()} if best else {}
            summary["metrics"] |= {f"test/{k}": v for k, v in self.test_scores.items()}
            summary |= {"step": progress.step, "epoch": self.training.epoch() if progress.step else 0}
            summary |= {"best_epoch": best["epoch"] if best else None, "seconds": self.training.plan.elapsed_s()}
            summary["stopped_early"] = self.training.has_stopped_early()
            summary["reason"] = reason or self.training.stop_reason
            summary["steps_per_epoch"] = self.training.train_source.steps_per_epoch
            summary["peak_memory_mb"] = self.training.runtime.peak_memory_mb()
            summary["time"] = self.training.times.summary(
                start_s=self.training.began - self.began, training_s=time.monotonic() - self.training.began
            )
        if self.training is None and self.checkpoint is not None:  # a resume that did not start: the record stays
            state = self.checkpoint.manifest
            summary |= {"step": state.step, "epoch": _last_epoch(state.state)}
            self.recorder.display.event({"event": "run_finished", **summary})
        else:
            try:
                self.run.write_summary(finite({"event": "run_finished", **summary}))
            except DlcliError as error:
                self.recorder.warn(error.message, error.hint)
            self.recorder.emit("run_finished", **summary)
        self.recorder.display.close()
        if self.follower is not None:
            is_online = self.follower.mode == "online"
            message = self.follower.finish(timeout_s=10 if is_online else 3)
            if is_online:  # where the charts are, or why they are not; offline it was said at the start
                print(message, file=sys.stderr)

    def _draw_curves(self) -> None:
        from dlcli.reporting.pictures import draw_curves

        try:
            events = list(read_events(self.run.events))
            if any(event.get("event") == "epoch" for event in events):
                draw_curves(events, self.run.curves)
        except Exception as error:  # whatever it is, the run's own end matters more
            self.recorder.warn(f"{self.run.curves} could not be drawn: {error}")

    def _best_or_last(self) -> str | None:
        for name in ("best", "last"):
            if (self.run.checkpoints / name).is_dir():
                return str(self.run.checkpoints / name)
        return None

    def _to_predict(self, name: str) -> list[str]:
        """Return the command that asks the network for answers, if it gives any."""
        if self.tree["task"]["facts"]["models"] == "language_model":
            return [f"dlcli generate {name}"]
        makes_images = self.tree["task"]["facts"]["models"] == "gan"
        question = kind_of(self.tree["dataset"]).question
        return [] if makes_images or not question else [f"dlcli predict {question} --run {name}"]

    def _next(self, status: str) -> list[str]:
        name = in_a_command(self.run)
        if status == "completed":
            return [f"dlcli eval {name}", *self._to_predict(name), f"dlcli runs show {name}"]
        can_resume = status == "interrupted" or self._best_or_last() is not None
        words = self.words if self.training is None else ()  # a resume that did not start has changed nothing yet
        return [*([" ".join(["dlcli resume", name, *words])] if can_resume else []), f"dlcli runs show {name}"]


def in_a_command(run: RunFolder) -> str:
    """Name a run for a command to paste: a name alone means the newest of that name in ./outputs."""
    outputs = run.outputs
    newest = next((other for other in all_runs(outputs) if other.name == run.name), run)
    name = run.name if newest.path.resolve() == run.path.resolve() else run.folder_name
    return name if outputs == outputs_folder(None).absolute() else f"{name} --outputs {place(outputs)}"


def _last_epoch(state: dict[str, Any]) -> int:
    """Read the device of a stored state that has not been checked yet."""
    try:
        return int(state["progress"]["evaluations"][-1]["epoch"])
    except (KeyError, IndexError, TypeError, ValueError):
        return 0
