"""The training of a run, and the facts known before its first step (the `run_prepared` event)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from typing import Any

import torch
from torch import Tensor

import dlcli
from dlcli.config.settings import seconds
from dlcli.datasets.batches.examples import commonest
from dlcli.datasets.batches.source import EvalSource
from dlcli.errors import CheckpointError, DataError, DlcliError, EnvironmentFault, printable
from dlcli.runs.checkpoint import Checkpoint
from dlcli.runs.events import Recorder, finite
from dlcli.runs.folder import RunFolder
from dlcli.runs.redaction import redact
from dlcli.runtime.device import compile_faults, memory_faults
from dlcli.runtime.random import restore_random, seed_everything, unchanged_random
from dlcli.runtime.ranks import Ranks, SingleProcess
from dlcli.runtime.signals import Interrupted, Signals
from dlcli.training import loop
from dlcli.training.allow_list import Builder
from dlcli.training.budget import Plan
from dlcli.training.clock import Times, close
from dlcli.training.consensus import Agreement, all_random_tensors, random_tensors_of, seed_of_rank
from dlcli.training.early_stopping import best_index, should_stop
from dlcli.training.metric_buffer import MetricBuffer, answers_per_step
from dlcli.training.parts import Assembly
from dlcli.training.saver import Bystander, Saver, Snapshot
from dlcli.training.state import Progress, check_same_data, gather, restore_optimizer, restore_weights, stored_progress
from dlcli.training.trial import NEVER, Pruner
from dlcli.training.unfreezing import Unfreezing


def facts_of(training: Training) -> dict[str, Any]:
    """Plain data. Waits for no device."""
    source, steps = training.train_source, training.plan.steps
    return {
        "device": str(training.runtime.device),
        "device_name": training.runtime.device_name(),
        "precision": training.runtime.precision,
        "devices": training.ranks.world_size,
        "threads": training.runtime.threads,
        "channels_last": training.runtime.channels_last,
        "runtime_reason": training.runtime_reason,
        "parameters": sum(p.numel() for p in training.task.parameters()),
        **training.unfreezing.facts(training.progress.step),
        "train_examples": source.num_examples,
        "val_examples": training.val_source.num_examples,
        "test_examples": training.test_source.num_examples,
        "classes": len(training.data.classes),
        "source": source.kind,
        "source_reason": training.source_reason,
        "steps_per_epoch": source.steps_per_epoch,
        "steps": steps,
        "epochs": None if steps is None else -(-steps // source.steps_per_epoch),
        "monitor": f"val/{training.monitor}",
        "mode": training.mode,
    }


FAILED_SAVES = 3  # in a row, after which training ends: there is no point in work that cannot be kept


class Training(Assembly):
    """The live objects of a run.

    `saved` and `derived` name every attribute: what a checkpoint keeps, and what is built again from the rest.
    """

    saved = ("task", "optimizers", "averages", "scaler", "progress")
    derived = (
        "tree", "run_folder", "recorder", "signals", "facts", "builder", "runtime", "environment", "teacher",
        "data", "train_source", "val_source", "test_source", "source_reason", "schedule", "penalties", "guard",
        "runtime_reason", "pretrained", "activations", "ranks", "agreement",
        "monitor", "mode", "plan", "epoch_started",
        "tally",  # folded into progress.sums before every save
        "saver", "failed_saves", "stop_reason", "times", "began", "pruner", "unfreezing",
    )  # fmt: skip

    def __init__(
        self,
        tree: dict[str, Any],
        run_folder: RunFolder,
        recorder: Recorder,
        signals: Signals,
        *,
        builder: Builder,
        facts: dict[str, Any],
        resume_from: Checkpoint | None = None,
        teacher: tuple[dict[str, Any], dict[str, Tensor]] | None = None,
        ranks: SingleProcess | Ranks = loop.SINGLE_PROCESS,
        pruner: Pruner = NEVER,
        save_gap_s: float = 0.0,
    ):
        super().__init__(tree, signals, builder=builder, resume_from=resume_from, teacher=teacher, ranks=ranks)
        self.run_folder, self.recorder, self.facts, self.pruner = run_folder, recorder, facts, pruner
        self.monitor = tree["trainer"]["monitor"].removeprefix("val/")
        self.mode = tree["task"]["facts"]["scores"][self.monitor]
        self.progress = Progress()
        self.tally = MetricBuffer(answers_per_step(tree), self.ranks)
        self.agreement = Agreement(self.ranks, signals)
        self.saver = (Saver if self.ranks.is_primary else Bystander)(
            run_folder.checkpoints, recorder, tree["trainer"]["keep_checkpoints"], save_gap_s
        )
        self.failed_saves = 0
        self.times, self.began = Times(), time.monotonic()
        self.stop_reason: str | None = None
        if self.ranks.data_rank:
            seed_everything(seed_of_rank(tree["seed"], self.ranks.data_rank))
        if resume_from:
            self._restore(resume_from)
        self.plan = self._plan()
        per_epoch = self.train_source.steps_per_epoch
        self.unfreezing = Unfreezing(tree["parameter_groups"], self.optimizers.values(), per_epoch)
        self.epoch_started = time.monotonic()

    def describe(self) -> dict[str, Any]:
        """The facts of the `run_prepared` event."""
        return facts_of(self)

    def _plan(self) -> Plan:
        """max_time and max_steps replace the epochs; of the two, what comes first."""
        trainer, steps_per_epoch = self.tree["trainer"], self.train_source.steps_per_epoch
        limit = trainer["max_time"]
        return Plan(
            steps=trainer["max_steps"] or (None if limit else trainer["epochs"] * steps_per_epoch),
            limit_s=seconds(limit) if limit else None,
            steps_per_epoch=steps_per_epoch,
            min_delta=self.tree["regularization"]["early_stopping"]["min_delta"],
            before_s=self.progress.seconds,
            ranks=self.ranks,
        )

    def is_done(self) -> bool:
        return self.plan.is_done(self.progress.step)

    def has_stopped_early(self) -> bool:
        return should_stop(self.progress.scores, **self.tree["regularization"]["early_stopping"])

    # ----------------------------------------------------------------------------------------------------- the training

    def run(self, *, profile: bool = False) -> None:
        """Train to the end; profile: watch some of the first steps. Raises Interrupted, with the state saved, when a
        signal came.
        """
        interval = self.tree["trainer"]["eval_every"] or self.train_source.steps_per_epoch
        save_every = self.tree["trainer"]["save_every"]
        log_every = self.tree["trainer"]["log_every"]
        self.began = time.monotonic()
        batches = self.times.waiting_for(self.task.stream(self.train_source, self.progress.step))
        steps = loop.train(
            self.task,
            batches,
            self.optimizers,
            first_step=self.progress.step,
            lr_scale=self.plan.lr_scale(self.schedule, self.progress.scores),
            penalties=self.penalties,
            clip_norm=self.tree["regularization"]["clip_norm"],
            autocast=self.runtime.autocast(),
            scaler=self.scaler,
            averages=self.averages,
            guard=self.guard,
            ranks=self.ranks,
        )
        if profile:
            from dlcli.training.trace import profiled

            folder, most = self.run_folder.path / "profile", self.steps_until_due(interval, save_every)
            steps = profiled(steps, folder, self.runtime.device, most=most, tell=self.recorder.note)
        try:
            with self.ranks.peer_faults(), memory_faults(self.memory_remedy), compile_faults():
                self._run(steps, interval=interval, log_every=log_every, save_every=save_every)
        finally:
            close(steps)
            close(batches)
            self.finish_saving()

    def _run(self, steps: Iterator[loop.StepDone], *, interval: int, log_every: int, save_every: int | None) -> None:
        """Go from step to step; the loop pauses wherever something is to be done between steps."""
        progress = self.progress
        has_stopped = self.has_stopped_early()
        while True:
            self.plan.tick()
            self.agreement.come_to(progress.step)
            is_end = self.is_done()
            if progress.step > progress.evaluated and (is_end or progress.step % interval == 0):
                self.evaluate_and_save()
                is_end, has_stopped = is_end or self.is_done(), self.has_stopped_early()
                if not (is_end or has_stopped):
                    self.pruner.look(len(progress.evaluations), progress.evaluations[-1]["scores"][self.monitor])
            elif save_every and progress.step % save_every == 0:
                self.try_save()
            self.settle(wait=is_end or has_stopped, flush=is_end or has_stopped)
            if is_end or has_stopped:
                break
            if self.agreement.received is not None:
                self.save_now()
                self.signals.raise_if_received()
            self.unfreezing.tell(progress.step, self.recorder)
            try:
                self.take_steps(steps, self.steps_until_due(interval, log_every, save_every))
            except (DataError, EnvironmentFault):  # of the source: the step it was for has touched nothing yet
                if self.agreement.is_alone:  # to gather a snapshot takes all ranks, and the others do not know
                    self.save_now()
                raise
            if progress.step % log_every == 0:
                self.record_values()
        if self.saver.step != progress.step:  # a time limit ran out in between
            self.save_now()
        if has_stopped and not is_end:
            self.note_early_stop()

    def note_early_stop(self) -> None:
        patience, best = self.tree["regularization"]["early_stopping"]["patience"], self.best_evaluation()
        message = f"stopped early: no better val/{self.monitor} in {patience} evaluations"
        self.stop_reason = f"{message}; the best is epoch {best['epoch']}" if best else message
        self.recorder.note(self.stop_reason)

    def steps_until_due(self, *intervals: int | None) -> int:
        """Steps until something is to be done between them: an interval is over, a group wakes, the end, a fold."""
        if self.plan.limit_s is not None:
            return 1
        step = self.progress.step
        due = [interval - step % interval for interval in intervals if interval]
        due += [] if self.plan.steps is None else [self.plan.steps - step]
        due += self.unfreezing.steps_until_due(step)
        return min(*due, self.tally.most_pending - len(self.tally.pending), self.agreement.steps_left(step))

    def take_steps(self, steps: Iterator[loop.StepDone], count: int) -> None:
        """`count` steps, fewer when a signal comes; their values stay on the device. All that every step pays for."""
        tally, signals, progress = self.tally, self.agreement, self.recorder.display.progress
        pending, loss = tally.pending, tally.shown_loss
        try:
            for done in islice(steps, count):
                pending.append(done)
                progress(done.step, loss)
                if signals.received is not None:
                    break
        finally:
            if pending:
                tally.last = pending[-1]
                self.progress.step = tally.last.step
        if len(pending) >= tally.most_pending:
            tally.fold(self.progress)

    def record_values(self) -> None:
        """A point of the loss curve, from the last step."""
        self.guard.check()
        values = {f"train/{name}": value for name, value in self.tally.last_values().items()}
        values["lr"] = self.lr()
        self.recorder.emit("values", step=self.progress.step, epoch=self.epoch(), values=values)

    def epoch(self) -> int:
        """The epoch that the last step belongs to, from 1."""
        return max(1, -(-self.progress.step // self.train_source.steps_per_epoch))

    def lr(self) -> float:
        return float(next(iter(self.optimizers.values())).param_groups[0]["lr"])

    # --------------------------------------------------------------------------------------------------- the evaluation

    def evaluate(self, source: EvalSource) -> dict[str, float]:
        """Scores on held-out data; leaves random numbers and task as they were. Raises Interrupted on a signal.

        Where a batch does not fit into the device's memory, half of it is tried, and so on.
        """
        while True:
            try:
                return self._evaluate(source)
            except torch.OutOfMemoryError:
                if source.batch_size == 1 or not self.agreement.is_alone:
                    raise
            source.halve()

    def _evaluate(self, source: EvalSource) -> dict[str, float]:
        with unchanged_random(self.runtime.device):
            return loop.evaluate(
                self.task,
                self._watched(source),
                autocast=self.runtime.autocast(),
                averages=self.averages,
                ranks=self.ranks,
            )

    def _watched(self, source: Iterable[Any]) -> Iterator[Any]:
        batches = iter(source)
        try:
            for batch in batches:
                if self.agreement.received is not None:
                    self.signals.raise_if_received()
                yield batch
        finally:
            close(batches)

    def evaluate_and_save(self) -> None:
        self.guard.check()
        progress = self.progress
        trained = time.monotonic()
        try:
            with self.times.during("evaluation"):
                scores = self.evaluate(self.val_source)
        except BaseException as error:
            if self.agreement.is_alone or isinstance(error, Interrupted):
                self.save_now()  # at the clean step before the evaluation, which a resume makes first
            raise
        self.plan.reserve_s = time.monotonic() - trained
        score = scores[self.monitor] * (1 if self.mode == "max" else -1)
        progress.scores.append(finite(score))
        progress.evaluated = progress.step
        self.tally.fold(self.progress)
        metrics = {f"train/{name}": total / progress.examples for name, total in progress.sums.items()}
        metrics |= {f"val/{name}": value for name, value in scores.items()}
        examples = progress.epochs_since_evaluation(self.train_source.steps_per_epoch) * self.train_source.num_examples
        examples_per_s = examples / (trained - self.epoch_started) if trained > self.epoch_started else None
        progress.evaluations.append({"step": progress.step, "epoch": self.epoch(), "scores": finite(scores)})
        progress.examples, progress.sums = 0, {}
        is_best = self.is_best()
        self.recorder.emit(
            "epoch", epoch=self.epoch(), step=progress.step, metrics=metrics, lr=self.lr(),
            examples_per_s=examples_per_s, seconds=time.monotonic() - self.epoch_started, best=is_best,
        )  # fmt: skip
        self.epoch_started = time.monotonic()
        save_every = self.tree["trainer"]["save_every"]
        if is_best or not save_every or progress.step % save_every == 0 or self.is_done() or self.has_stopped_early():
            self.try_save(is_best=is_best)

    def is_best(self) -> bool:
        """Return whether the last score is the best so far."""
        return best_index(self.progress.scores, self.progress.losses) == len(self.progress.scores) - 1

    def best_evaluation(self) -> dict[str, Any] | None:
        """The one that the checkpoint `best` is of: scores and weights that belong together."""
        best = self.progress.best
        return None if best is None else self.progress.evaluations[best]

    def best_on_disk(self) -> int | None:
        """The number of the evaluation that the checkpoint `best` is of."""
        steps = [f"step-{evaluation['step']:08d}" for evaluation in self.progress.evaluations]
        return steps.index(self.saver.best.name) if self.saver.best else None

    # -------------------------------------------------------------------------------------------------------- the state

    def try_save(self, *, is_best: bool = False) -> None:
        """Begin to save, unless it is too early, once what was being saved is whole or has failed."""
        self.settle()
        self.save(is_best=is_best)

    def save_now(self) -> None:
        """Save, and wait until it is on disk."""
        self.settle()
        self.save(now=True)
        self.settle()

    def settle(self, *, wait: bool = True, flush: bool = False) -> None:
        """See to the checkpoint being written, then to the one held back. A full disk is a warning until it has been
        one several times, or this is the end.
        """
        try:
            with self.times.during("saving"):
                if self.saver.settle(wait=wait):
                    self.failed_saves = 0
        except EnvironmentFault as error:
            self.progress.best = self.best_on_disk()
            self.failed_saves += 1
            is_last = self.signals.received is not None or self.is_done() or self.has_stopped_early()
            if self.failed_saves >= FAILED_SAVES or is_last:
                raise
            self.recorder.warn(f"{error.message}; training goes on and will try again", error.hint)
        if flush and self.saver.flush():
            self.settle()

    def finish_saving(self) -> None:
        """On every way out: what was begun is written. A fault of it comes second to what ended the training."""
        try:
            self.saver.finish()
        except DlcliError as error:
            self.recorder.warn(error.message, error.hint)
        finally:
            self.saver.close()

    def save(self, *, is_best: bool = False, now: bool = False) -> None:
        """Begin to write a checkpoint of this clean step, once; nothing at step 0, where there is nothing to lose."""
        progress = self.progress
        is_new = self.saver.step != progress.step
        if progress.step == 0 or not (is_new or is_best):
            return
        self.guard.check()
        progress.seconds = self.plan.elapsed_s()
        if is_best:
            progress.best = len(progress.evaluations) - 1
        with self.times.during("saving"):
            self.saver.write(progress.step, self.snapshot if is_new else None, is_best=is_best, now=now)

    def snapshot(self) -> Snapshot:
        """Copy the whole state of the training at this clean step."""
        weights, state, groups = gather(self.task, self.averages, self.optimizers)
        state |= all_random_tensors(self.ranks, self.runtime.device)
        self.tally.fold(self.progress)
        plain = {
            "progress": asdict(self.progress),
            "optimizers": groups,
            "averages": {phase: average.num_updates for phase, average in self.averages.items()},
            "scaler": self.scaler.state_dict(),
            "events_length": self.recorder.length(),
        }
        body = {
            "dlcli": dlcli.__version__,
            **self.facts,
            "config": redact(self.tree),
            "teacher": self.teacher,
            "classes": list(self.data.classes),
            "majority": commonest(self.data.train.labels),
            "fitted": self.data.fitted,
            "data": self.data.fingerprints(),
            "environment": self.environment,
            "state": plain,
        }
        return Snapshot(weights, state, body)

    def _restore(self, saved: Checkpoint) -> None:
        """Restore everything from the checkpoint's step; random states last, since building draws."""
        try:
            plain = saved.manifest.state
            self.progress = stored_progress(plain["progress"], saved.manifest.step)
            restore_weights(self.task, self.averages, saved)
            for phase, optimizer in self.optimizers.items():
                groups = plain["optimizers"][phase]
                restore_optimizer(phase, optimizer, saved.state, groups, saved.folder)
            if plain["scaler"]:
                self.scaler.load_state_dict(plain["scaler"])
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise CheckpointError(
                f"{saved.folder}: the training state cannot be restored: {printable(error)}"
            ) from error
        check_same_data(saved, self.data)
        best = self.best_evaluation()
        self.saver.take_up(saved.folder, self.progress.step, best["step"] if best else None)
        restore_random(random_tensors_of(self.ranks, saved.state), self.runtime.device)
