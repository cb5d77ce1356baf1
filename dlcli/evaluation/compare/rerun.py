"""A run trained again from its own record, and whether the result is the same: bit for bit, within noise, or not.

The record's config decides, with what the runtime measured then; the code, the packages and the data are those of now,
and what differs in them is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dlcli.config.tree import copied
from dlcli.errors import CheckpointError, ConfigError, DlcliError
from dlcli.evaluation.compare.answers import answers_of, weights_of
from dlcli.evaluation.compare.verdict import Ask, choose_metric, read_side
from dlcli.evaluation.significance import mcnemar, next_interval
from dlcli.reporting.format import metric_name, metric_value
from dlcli.runs.events import Display, read_events
from dlcli.runs.folder import RunFolder
from dlcli.training import start

BIT_FOR_BIT, WITHIN_NOISE, OTHER = "same", "within noise", "not the same"


class Repeat(NamedTuple):
    """word: one of the three above; reason: how it was decided."""

    word: str
    reason: str


def prepare(run: RunFolder) -> tuple[dict[str, Any], dict[str, Any]]:
    """The record and the config of a run that came to its end. Raises ConfigError for what cannot be run again."""
    record, tree, _ = start.to_resume(run, ())
    if isinstance(record.get("seeds"), list):
        names = f"{run.name}/seed-{record['seeds'][0]}"
        raise ConfigError(f"{run.name} is a group of several seeds", hint=f"Name one of them: dlcli rerun {names}")
    status = (run.read_summary() or {}).get("status", "killed")
    if status != "completed":
        remedy = "Its trial was stopped by the sweep." if status == "pruned" else f"dlcli resume {run.name}"
        raise ConfigError(f"{run.name} did not come to its end ({status}); there is no result to repeat", hint=remedy)
    return record, start.measured(copied(tree), record.get("device"), left_open=("auto", None)) | {"name": None}


def cautions(run: RunFolder, tree: dict[str, Any]) -> list[str]:
    """Why the bits may differ though nothing is wrong."""
    found = []
    if tree["trainer"]["max_time"]:
        found.append(f"trainer.max_time={tree['trainer']['max_time']}: how far it came depended on the clock")
    steps = {event.get("steps") for event in read_events(run.events) if event.get("event") == "run_prepared"}
    if len(steps) > 1:
        found.append("it was trained further after it was finished; now it is trained in one go")
    return found


def train_again(
    run: RunFolder,
    record: dict[str, Any],
    tree: dict[str, Any],
    *,
    outputs: Path,
    display: Display,
    search: Sequence[Path],
    trusted: Sequence[str] = (),
) -> RunFolder:
    """A new run of the record's config; DlcliError where it fails, and Stopped where a signal ended it."""
    again = RunFolder.create(outputs.absolute(), str(record["experiment"]))
    composed = start.composed_again(record, tree, search)
    code = start.train_in(again, composed, display=display, trusted=trusted, rerun_of=str(run.path.absolute()))
    if code:
        raise Stopped(code)
    return again


class Stopped(Exception):
    """By a signal; code: what the program ends with."""

    def __init__(self, code: int):
        super().__init__(code)
        self.code = code


# ------------------------------------------------------------------------------------------------------------- verdicts


def judge(before: RunFolder, after: RunFolder, ask: Ask) -> Repeat:
    """Whether the second run came to the result of the first."""
    one, other = scores(before), scores(after)
    names = [name for name in one if name in other]
    if not names:
        return Repeat(OTHER, "they have no score in common")
    compared = [which for which in ("best", "last") if _step(before, which) == _step(after, which) is not None]
    equal = all(_weights(before, which) == _weights(after, which) != "" for which in compared)
    if "last" in compared and equal and all(one[name] == other[name] for name in names):
        steps = " and ".join(compared)
        return Repeat(BIT_FOR_BIT, f"the weights of {steps} and {len(names)} scores, to the last bit")
    name = choose_metric([read_side(before), read_side(after)], None)
    gap = f"{metric_name(name)} {metric_value(name, one[name])}, now {metric_value(name, other[name])}"
    found = [by_examples(before, after, name, ask), by_seeds(before, name, other[name])]
    if message := next((repeat for repeat in found if repeat and repeat.word == WITHIN_NOISE), None):
        return Repeat(WITHIN_NOISE, f"{gap}; {message.reason}")
    reasons = [repeat.reason for repeat in found if repeat] or ["nothing tells how much chance would change"]
    return Repeat(OTHER, "; ".join([gap, *reasons]))


def scores(run: RunFolder) -> dict[str, float]:
    """The difference of each metric of a single run, by name."""
    side = read_side(run)
    return {name: values[0] for name in side.scores if (values := side.values(name))}


def by_examples(before: RunFolder, after: RunFolder, metric: str, ask: Ask) -> Repeat | None:
    """By McNemar's test on the examples that each gets right; None where nobody can tell."""
    split, _, name = metric.partition("/")
    if name != "accuracy":
        return None
    try:
        one, other = ask(before, split), ask(after, split)
    except DlcliError as error:
        return Repeat(OTHER, error.message)
    if not one.is_about_the_same(other):
        return Repeat(OTHER, f"their {split} examples are not the same")
    lost, won = one.lost_and_won(other)
    found = mcnemar(lost, won, one.examples)
    message = f"{lost} lost, {won} won of {one.examples:,} {split} examples, p = {found.p:.2g} (McNemar)"
    return Repeat(WITHIN_NOISE if found.is_noise else OTHER, message)


def by_seeds(before: RunFolder, metric: str, value: float) -> Repeat | None:
    """By the spread of the other seeds of its group; None where it belongs to none, or too few came to an end."""
    if not before.is_member:
        return None
    summary = RunFolder(before.path.parent).read_summary() or {}
    rows = summary.get("per_seed") if summary.get("event") == "seeds_finished" else None
    values = [row[metric] for row in (rows or {}).values() if isinstance(row.get(metric), int | float)]
    if len(values) < 2:
        return None
    low, high = next_interval(values)
    bounds = f"{metric_value(metric, low)} to {metric_value(metric, high)}"
    is_within = low <= value <= high
    message = f"{'within' if is_within else 'beyond'} what {len(values)} seeds let expect, {bounds}"
    return Repeat(WITHIN_NOISE if is_within else OTHER, message)


def _step(run: RunFolder, which: str) -> str | None:
    link = run.checkpoints / which
    return link.resolve().name if link.is_dir() else None


def _weights(run: RunFolder, which: str) -> str:
    return weights_of((run.checkpoints / which).resolve())


def asker(search: Sequence[Path], trusted: Sequence[str]) -> Ask:
    """Asks a run's network, where its answers are not kept yet."""
    return lambda run, split: answers_of(run, split, search=search, trusted=trusted)


def check_rerun(run: RunFolder) -> None:
    """Raise CheckpointError where the run has no checkpoint to compare with."""
    if _step(run, "last") is None:
        raise CheckpointError(f"{run.name} has no checkpoint to compare with", hint="Its folder was thinned out?")
