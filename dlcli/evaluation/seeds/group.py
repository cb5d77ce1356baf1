"""One experiment with several seeds: runs one after another in one process, and one result of them all.

    outputs/<experiment>/<date-time>-<name>/      the group: run.yaml, summary.json, .lock
        seed-0/  seed-1/  ...                     ordinary runs, bit for bit those of `dlcli train ... seed=0`

What the first seed measured (`runtime=auto`) the others take over, so that they differ in the seed and in nothing else.
A seed that diverges is counted and reported; a group that was stopped is finished by `dlcli resume`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dlcli.config import Composed
from dlcli.config.tree import copied, lookup
from dlcli.errors import CheckpointError, ConfigError, DivergedError, DlcliError
from dlcli.evaluation.seeds.results import gathered, member
from dlcli.runs.events import Display, finite
from dlcli.runs.folder import RunFolder
from dlcli.runtime.rendezvous import find_ranks
from dlcli.runtime.signals import Interrupted, Signals
from dlcli.training import completing, start
from dlcli.training.extension import ENDS, check_extension, more

MOST_SEEDS = 1_000


def train(
    composed: Composed, count: int, *, outputs: Path, display: Display, trusted: Sequence[str] = (), profile: bool
) -> int:
    """Runs of a composed config with `count` seeds, from its own on; returns the exit code. profile: the first."""
    check_count(composed, count)
    composed = replace(composed, tree=completing.settle(composed.tree, outputs))
    first = composed.tree["seed"]
    run = RunFolder.create(outputs.absolute(), composed.experiment, composed.tree["name"])
    run.lock()
    record = start.new_record(run, composed, seeds=list(range(first, first + count)))
    run.write_record(record)
    return SeedGroup(run, record, composed, display, trusted, profile=profile).execute()


def check_count(composed: Composed, count: int) -> None:
    """Raise ConfigError for a number of seeds, or a config, that cannot be trained so."""
    if not 2 <= count <= MOST_SEEDS:
        message = f"--seeds {count}: there must be 2 to {MOST_SEEDS:,}, for one run has no spread"
        raise ConfigError(message, hint="--seeds 5 is a good number; without --seeds it is one run.")
    devices = composed.tree["runtime"]["devices"]
    if find_ranks() or devices > 1:
        message = (
            f"--seeds {count} trains one run after another in one process; runtime.devices={devices} needs several"
        )
        raise ConfigError(
            message, hint="Choose runtime.devices=1, or train each seed by itself: dlcli train ... seed=1"
        )


def is_group(record: object) -> bool:
    """Whether a run's record is that of several seeds."""
    return isinstance(record, dict) and isinstance(record.get("seeds"), list)


def resume(
    run: RunFolder, words: Sequence[str], *, display: Display, search: Sequence[Path], trusted: Sequence[str] = ()
) -> int:
    """Finish what is missing of a group, or train all its seeds further; returns the exit code."""
    run = RunFolder(run.path.absolute())
    record, tree, _ = start.to_resume(run, words)
    if not all(type(seed) is int and seed >= 0 for seed in record["seeds"]) or len(record["seeds"]) < 2:
        raise CheckpointError(
            f"{run.run_yaml}: its seeds are no list of numbers", hint="Train the group again: dlcli train --seeds N"
        )
    check_count(start.composed_again(record, tree, search), len(record["seeds"]))
    run.lock()
    group = SeedGroup(run, record, start.composed_again(record, tree, search), display, trusted, words=tuple(words))
    if refused := group.refusal():
        run.unlock()
        raise refused
    summary = run.read_summary() or {}
    if summary.get("status") == "completed" and not group.missing():
        run.unlock()
        first = next(filter(None, (member(run, seed).read_summary() for seed in record["seeds"])), {})
        hint = f"To train its seeds further:  dlcli resume {start.in_a_command(run)} {more(tree, first)}"
        message = f"{run.name} is finished already; nothing changed"
        display.event({"event": "note", "message": message, "hint": hint})
        display.event(summary)
        display.close()
        return 0
    run.write_record(record | {"config": tree})
    return group.execute()


@dataclass
class SeedGroup:
    """One execution of a group. Its config is the first seed's; words: what a resume changed in it."""

    run: RunFolder
    record: dict[str, Any]
    composed: Composed
    display: Display
    trusted: Sequence[str] = ()
    words: Sequence[str] = ()
    profile: bool = False
    signals: Signals = field(default_factory=Signals)
    diverged: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.seeds: list[int] = self.record["seeds"]
        said = (self.run.read_summary() or {}).get("diverged")
        if isinstance(said, list) and not self.words:
            self.diverged = {seed for seed in said if seed in self.seeds}

    # ----------------------------------------------------------------------------------------------- what is to be done

    def config_of(self, seed: int) -> dict[str, Any]:
        """The config of one seed, with what the first of them has measured."""
        tree = copied(self.composed.tree) | {"seed": seed, "name": None}
        return start.measured(tree, next(self._fingerprints(), None))

    def _fingerprints(self) -> Iterator[object]:
        for seed in self.seeds:
            run = member(self.run, seed)
            if run.run_yaml.is_file() and (device := run.read_record().get("device")):
                yield device

    def changes(self, seed: int) -> list[str]:
        """The words that a resume of this seed's run needs, to have the group's config."""
        run = member(self.run, seed)
        stored, wanted = run.read_record().get("config"), self.config_of(seed)
        pairs = [(key, lookup(wanted, key)) for key in start.RESUME_KEYS if lookup(stored, key) != lookup(wanted, key)]
        return [f"{key}={as_word(value)}" for key, value in pairs]

    def is_done(self, seed: int) -> bool:
        if seed in self.diverged:
            return True
        run = member(self.run, seed)
        if (run.read_summary() or {}).get("status") != "completed":
            return False
        goes_on = any(word.partition("=")[0] in ENDS for word in self.changes(seed))
        return not goes_on or self._refused(seed) is not None

    def missing(self) -> list[int]:
        return [seed for seed in self.seeds if not self.is_done(seed)]

    def refusal(self) -> ConfigError | None:
        """Why none of the finished runs would go on with the words of this resume."""
        if self.words and not self.missing():
            return next(filter(None, map(self._refused, self.seeds)), None)
        return None

    def _refused(self, seed: int) -> ConfigError | None:
        """Why a finished run would not go on, such as one that stopped early."""
        run = member(self.run, seed)
        try:
            check_extension(run.read_record()["config"], self.config_of(seed), run.read_summary() or {})
        except ConfigError as error:
            return error
        return None

    # -------------------------------------------------------------------------------------------------------- the doing

    def execute(self) -> int:
        """Train what is missing. Raises the DlcliError that ended it; a seed that diverges ends nothing."""
        self.display.event({"event": "seeds_started", **self._facts()})
        with self.signals:
            try:
                for number, seed in enumerate(self.seeds, 1):
                    self.signals.raise_if_received()
                    code = self._go_through(seed, number)
                    if code:
                        self._finish("interrupted")
                        return code
                return self._end()
            except Interrupted:
                self._finish("interrupted")
                return self.signals.exit_code
            except BaseException as error:
                if isinstance(error, DlcliError):
                    error.is_on_record = True
                self._finish("failed", reason=getattr(error, "message", None) or f"{type(error).__name__}: {error}")
                raise
            finally:
                self.display.close()
                self.run.unlock()

    def _go_through(self, seed: int, number: int) -> int:
        """One seed's run: trained, gone on with, or shown where it is done; its exit code."""
        is_done, resumes = self.is_done(seed), member(self.run, seed).run_yaml.is_file()
        facts = {"seed": seed, "number": number, "of": len(self.seeds), "resumes": resumes}
        self.display.event({"event": "seed_started", **facts})
        if is_done:
            if summary := member(self.run, seed).read_summary():
                self.display.event(summary)
            return 0
        self._tell_what_is_taken_over(seed)
        try:
            code = self._train(seed, profile=self.profile and number == 1)
        except DivergedError:
            self.diverged.add(seed)
            code = 0
        if not code:
            self._write("killed")  # so it reads if the next one is: whoever ends properly says it again
        return code

    def _train(self, seed: int, *, profile: bool) -> int:
        """Train a new run or continue one; the exit code, also of a signal that came too late to interrupt it."""
        run, signals = member(self.run, seed), Signals()
        common: dict[str, Any] = {"display": self.display, "trusted": self.trusted, "signals": signals}
        if run.run_yaml.is_file():
            code = start.resume(run, self.changes(seed), search=self.composed.search, **common)
        else:
            run.path.mkdir(exist_ok=True)
            warnings = self.composed.warnings if seed == self.seeds[0] else ()
            composed = replace(self.composed, tree=self.config_of(seed), warnings=warnings)
            code = start.train_in(run, composed, profile=profile, group=self.run.folder_name, **common)
        return signals.exit_code if signals.received else code

    def _tell_what_is_taken_over(self, seed: int) -> None:
        """Once, before the second seed: what the first has measured."""
        before, after = self.composed.tree["runtime"], self.config_of(seed)["runtime"]
        found = [f"runtime.{key}={as_word(after[key])}" for key in after if after[key] != before.get(key)]
        if found and self.seeds.index(seed) == 1:
            message = f"measured for seed {self.seeds[0]}, taken over by the others: {' '.join(found)}"
            self.display.event({"event": "note", "message": message})

    # ---------------------------------------------------------------------------------------------------------- the end

    def _facts(self) -> dict[str, Any]:
        facts = {key: self.record.get(key) for key in ("experiment", "name", "overrides", "choices")}
        return {"run": str(self.run.path), **facts, "config": self.composed.tree, "seeds": self.seeds}

    def _write(self, status: str, *, reason: str | None = None) -> dict[str, Any]:
        found = gathered(self.run, self.seeds, sorted(self.diverged))
        summary = finite({"event": "seeds_finished", "status": status, "reason": reason, **found, **self._facts()})
        summary["next"] = self._next(status, found)
        self.run.write_summary(summary)
        return summary

    def _finish(self, status: str, *, reason: str | None = None) -> None:
        self.display.event(self._write(status, reason=reason))

    def _end(self) -> int:
        if len(self.diverged) < len(self.seeds):
            self._finish("completed")
            return 0
        message = f"every one of the {len(self.seeds)} seeds of {self.run.name} diverged"
        raise DivergedError(
            message, hint="A smaller optimizer.lr or regularization.clip_norm=1.0 is the likely remedy."
        )

    def _next(self, status: str, found: dict[str, Any]) -> list[str]:
        name = start.in_a_command(self.run)
        if status == "completed":
            best = next((run for run in found["runs"] if found["per_seed"].get(run.removeprefix("seed-"))), "seed-0")
            evaluated, space, rest = f"{self.run.name}/{best}", *name.partition(" ")[1:]
            return [f"dlcli eval {evaluated}{space}{rest}", f"dlcli compare {self.run.name} OTHER{space}{rest}"]
        return [" ".join(["dlcli resume", name, *self.words])]


def as_word(value: object) -> str:
    """A value as a command line has it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
