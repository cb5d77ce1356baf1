"""Whether one run is better than another, or several than the first: which test can tell, and what it says.

    two groups of the same seeds      paired t-test, where the one has all seeds of the other
    two groups of other seeds         Welch's t-test
    two runs of classifiers           McNemar's exact test on the examples that each gets right
    anything else                     can't tell, and the command that would

The first two speak of the experiment whatever the seed, the third of these two networks only. They need three seeds of
each, and some spread; a group that diverges in more of its seeds is worse, whatever the others came to.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isnan
from typing import Any

from dlcli.config.stored import check_stored
from dlcli.errors import CheckpointError, ConfigError, DlcliError, nearest, printable
from dlcli.evaluation.compare.answers import RightAnswers, weights_of
from dlcli.evaluation.seeds.results import member
from dlcli.evaluation.significance import Difference, deviation, mcnemar, mean, mean_interval, paired_t, welch_t
from dlcli.reporting.format import metric_name, told_seeds
from dlcli.runs.find import find_checkpoint, row
from dlcli.runs.folder import RunFolder
from dlcli.runs.provenance import origin, writer

BETTER, WORSE, SAME, UNKNOWN = "better", "worse", "no difference beyond noise", "can't tell"
USUAL_SEEDS, FEWEST_SEEDS = 5, 3
Ask = Callable[[RunFolder, str], RightAnswers]  # run, split -> its answers


@dataclass(frozen=True)
class Side:
    """A run or a group of seeds. scores: metric -> seed -> value; a single run has one seed. diverged: seeds."""

    run: RunFolder
    record: dict[str, Any]
    scores: dict[str, dict[int, float]]
    is_group: bool
    status: str
    diverged: tuple[int, ...] = ()

    @property
    def seeds(self) -> list[int]:
        return self.record["seeds"] if self.is_group else [self.record["config"]["seed"]]

    @property
    def share_diverged(self) -> float:
        return len(self.diverged) / len(self.seeds)

    def told_diverged(self) -> str:
        """b diverged in 2 of 3 seeds (0, 2)"""
        which = f" ({told_seeds(self.diverged)})" if self.diverged else ""
        return f"{self.run.name} diverged in {len(self.diverged) or 'none'} of {len(self.seeds)} seeds{which}"

    def values(self, metric: str) -> list[float]:
        return list(self.scores.get(metric, {}).values())

    def facts_of(self, metric: str) -> dict[str, Any]:
        """mean, deviation, interval; the last two None for a single value."""
        values = self.values(metric)
        many = len(values) > 1
        return {
            "mean": mean(values) if values else None,
            "deviation": deviation(values) if many else None,
            "interval": list(mean_interval(values)) if many else None,
        }


@dataclass(frozen=True)
class Verdict:
    """One side against the baseline. word: one of the four above; reason: why it cannot be decided; hints: commands."""

    word: str
    test: str = ""
    difference: Difference | None = None
    reason: str = ""
    hints: tuple[str, ...] = ()


def read_side(run: RunFolder) -> Side:
    """From the run's folder, without torch. Raises CheckpointError for a damaged record, or one without a score."""
    record = run.read_record()
    try:
        check_stored(record.get("config"))
    except (ConfigError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{run.run_yaml}: {error}", hint=origin(writer(record))) from error
    summary, shown = run.read_summary() or {}, row(run)
    is_group = isinstance(record.get("seeds"), list)
    if is_group:
        record |= _facts_of_members(run, record["seeds"])
        rows = {int(seed): metrics for seed, metrics in (summary.get("per_seed") or {}).items()}
    else:
        rows = {record["config"]["seed"]: shown.metrics}
    scores: dict[str, dict[int, float]] = {}
    for seed, metrics in rows.items():
        for name, value in metrics.items():
            if isinstance(value, int | float) and not name.startswith("train/"):
                scores.setdefault(name, {})[seed] = float(value)
    said = summary.get("diverged") if is_group else ()
    diverged = tuple(said) if isinstance(said, list) else ()
    if not scores and diverged:
        message = f"{run.name} has no score: seed{'s' if len(diverged) > 1 else ''} {told_seeds(diverged)} diverged"
        raise CheckpointError(message, hint=_why(run, diverged))
    if not scores:
        raise CheckpointError(f"{run.name} has no score yet ({shown.status})", hint=f"dlcli resume {run.name}")
    return Side(run, record, scores, is_group, shown.status, diverged)


# ------------------------------------------------------------------------------------------------------------- metrics


def direction(side: Side, metric: str) -> str | None:
    """max or min: which way is better; None for what the task does not judge by."""
    return side.record["config"]["task"]["facts"]["scores"].get(metric.partition("/")[2])


def choose_metric(sides: Sequence[Side], wanted: str | None) -> str:
    """What is judged by: `wanted`, else the score of the baseline's task, on test or on val.

    Raises ConfigError where not all sides have it.
    """
    names = [n for n in sides[0].scores if all(n in side.scores and direction(side, n) for side in sides)]
    if not names:
        message = f"{' and '.join(side.run.name for side in sides)} have no score in common"
        raise ConfigError(message, hint="Compare runs of the same task.")
    if wanted is not None:
        found = next((n for n in (wanted, f"test/{wanted}", f"val/{wanted}") if n in names), None)
        if found is None:
            better = nearest(wanted, names)
            hint = f"{f'Did you mean {better}? ' if better else ''}They have: {', '.join(names)}."
            raise ConfigError(f"--metric {printable(wanted)}: not every run has that score", hint=hint)
        return found
    monitor = str(sides[0].record["config"]["task"]["facts"]["monitor"])
    asked = (monitor.replace("val/", "test/", 1), monitor)
    return next((name for name in asked if name in names), names[0])


# ------------------------------------------------------------------------------------------------------------- verdicts


def compare(baseline: Side, side: Side, metric: str, ask: Ask) -> Verdict:
    """Whether `side` is better than the baseline. ask: called for two single runs, whose scores alone cannot tell."""
    if baseline.run.path.resolve() == side.run.path.resolve():
        values = baseline.values(metric)
        return Verdict(SAME, "it is the same run", paired_t(values, values) if len(values) > 1 else None)
    if other := _other_data(baseline, side, metric):
        return Verdict(UNKNOWN, reason=other)
    if baseline.is_group != side.is_group:
        single, group = (side, baseline) if baseline.is_group else (baseline, side)
        message = f"{single.run.name} is one run, {group.run.name} several: one run has no spread"
        return Verdict(UNKNOWN, reason=message, hints=(seeds_command(single, group.seeds),))
    if not baseline.is_group:
        return _of_two_networks(baseline, side, metric, ask)
    return _of_seeds(baseline, side, metric)


def _of_seeds(baseline: Side, side: Side, metric: str) -> Verdict:
    verdict = _of_scores(baseline, side, metric)
    if side.share_diverged <= baseline.share_diverged:
        return verdict
    message = f"{side.told_diverged()}, {baseline.told_diverged()}"
    reason = f"{message}; of the others: {verdict.reason}" if verdict.reason else message
    return replace(verdict, word=WORSE, reason=reason, hints=(_why(side.run, side.diverged),))


def _of_scores(baseline: Side, side: Side, metric: str) -> Verdict:
    """By the seeds that came to an end. Which test it is follows from how the seeds were chosen, never from its p."""
    before, after = baseline.scores[metric], side.scores[metric]
    is_paired = len(set(baseline.seeds) & set(side.seeds)) == min(len(baseline.seeds), len(side.seeds))
    common = [seed for seed in before if seed in after]
    if (len(common) if is_paired else min(len(before), len(after))) < FEWEST_SEEDS:
        return _too_few(baseline, side, metric)
    if is_paired:
        found = paired_t([before[s] for s in common], [after[s] for s in common])
        test = f"paired t-test over the seeds {told_seeds(common)}"
    else:
        found = welch_t(list(before.values()), list(after.values()))
        test = f"Welch's t-test of {len(before)} and {len(after)} seeds"
    if isnan(found.p):
        message = f"every seed shows the same step ({found.value:+.4g}): no spread tells how much of it is chance"
        return Verdict(UNKNOWN, test, reason=message, hints=_more_seeds(baseline, side))
    word = word_of(found, direction(baseline, metric))
    return Verdict(word, test, found, hints=_more_seeds(baseline, side) if word == SAME else ())


def _too_few(baseline: Side, side: Side, metric: str) -> Verdict:
    """Fewer than three seeds to compare: what is not finished is, otherwise more are trained."""
    few = min(baseline, side, key=lambda one: len(one.values(metric)))
    ended = len(few.values(metric))
    message = f"{ended} of the seeds of {few.run.name} came to an end; {FEWEST_SEEDS} of each are needed"
    if ended >= FEWEST_SEEDS:
        message = f"fewer than {FEWEST_SEEDS} of the seeds that both have came to an end in both"
    unfinished = [one for one in (baseline, side) if len(one.values(metric)) + len(one.diverged) < len(one.seeds)]
    go_on = tuple(f"dlcli resume {one.run.name}" for one in unfinished)
    return Verdict(UNKNOWN, reason=message, hints=go_on or _more_seeds(baseline, side))


def _more_seeds(*sides: Side) -> tuple[str, ...]:
    """The commands that train each with twice as many seeds, the same ones."""
    first, count = sides[0].seeds[0], max(USUAL_SEEDS, 2 * max(len(side.seeds) for side in sides))
    return tuple(dict.fromkeys(seeds_command(side, range(first, first + count)) for side in sides))


def _why(run: RunFolder, diverged: Sequence[int]) -> str:
    return f"dlcli why {run.name}/seed-{diverged[0]}"


def _of_two_networks(baseline: Side, side: Side, metric: str, ask: Ask) -> Verdict:
    """By what each gets right, where both are classifiers and it is accuracy that counts."""
    hints = tuple(dict.fromkeys(seeds_command(s, range(USUAL_SEEDS)) for s in (baseline, side)))
    split, _, name = metric.partition("/")
    if name != "accuracy":
        message = f"they are single runs, and one run's {metric_name(metric)} has no spread"
        return Verdict(UNKNOWN, reason=message, hints=hints)
    try:
        if is_same_network(baseline.run, side.run):
            return Verdict(
                SAME, "their weights are the same, bit for bit", mcnemar(0, 0, 1)._replace(interval=(0.0, 0.0))
            )
        before, after = ask(baseline.run, split), ask(side.run, split)
    except DlcliError as error:
        return Verdict(UNKNOWN, reason=error.message, hints=hints)
    if not before.is_about_the_same(after):
        return Verdict(UNKNOWN, reason=f"their {split} examples are not the same", hints=hints)
    found = mcnemar(*before.lost_and_won(after), before.examples)
    test = f"McNemar's exact test on {before.examples:,} {split} examples"
    return Verdict(word_of(found, "max"), test, found, hints=hints)


def is_same_network(one: RunFolder, other: RunFolder) -> bool:
    """Whether the weights of their best checkpoints are equal, as the checkpoints say themselves."""
    weights = {weights_of(find_checkpoint(str(run.path), run.outputs)) for run in (one, other)}
    return len(weights) == 1 and weights != {""}


def word_of(difference: Difference, mode: str | None) -> str:
    """better, worse, or no difference beyond noise. mode: max or min, which way is better."""
    if difference.is_noise:
        return SAME
    return BETTER if (difference.value > 0) == (mode == "max") else WORSE


def _other_data(baseline: Side, side: Side, metric: str) -> str | None:
    """Why the scores are of different data, if they are."""
    split = metric.partition("/")[0]
    one, other = (_fingerprint(side.record.get("data"), split) for side in (baseline, side))
    if not one or not other or one == other:
        return None
    return f"their {split} data differ (fingerprints {one[:12]} and {other[:12]})"


def _fingerprint(data: object, split: str) -> str:
    """The fingerprint of a split's data; the validation split is cut from the training data where there is none."""
    return str(data.get(split) or data.get("train") or "") if isinstance(data, dict) else ""


def _facts_of_members(group: RunFolder, seeds: Sequence[int]) -> dict[str, Any]:
    """Device and data of a group: those of its first run that says."""
    for run in (member(group, seed) for seed in seeds):
        record = run.read_record() if run.run_yaml.is_file() else {}
        if "device" in record:
            return {key: record.get(key) for key in ("device", "data")}
    return {}


def seeds_command(side: Side, seeds: Sequence[int]) -> str:
    """The command that trains a run's config with several seeds."""
    words = [w for w in side.record.get("overrides") or () if w.partition("=")[0] not in ("name", "seed")]
    seed = [f"seed={seeds[0]}"] if seeds[0] else []
    quoted = [shlex.quote(word) for word in [*words, *seed]]
    return " ".join(["dlcli train", str(side.record["experiment"]), *quoted, f"--seeds {len(seeds)}"])
