"""Which runs are meant, and in which order: `dlcli runs ls digits "val/accuracy>0.98 model=lenet5" --sort val/loss`.

    KEY OP VALUE, separated by blanks (or `and`); OP is = != > >= < <= or ~ (contains, whatever the case)

KEY is a metric (`val/accuracy`; `accuracy` where one metric only ends so), a group (`model`), a config key
(`optimizer.lr`, `seed`), or name, experiment, status, created, seconds, epochs. A word without OP is an experiment.
What a run does not say is neither equal to anything nor more or less. Dates compare as far as they are written:
`created>=2026-11-01`, `created=2026-11`. Per cent are numbers: `val/accuracy>98%`.
"""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dlcli.errors import ConfigError, Problem, nearest, printable
from dlcli.runs.facts import CHOICES, MISSING, OWN, RunFacts, config_keys

STATUSES = ("completed", "interrupted", "failed", "running", "killed", "pruned")
WORDS = ("name", "experiment", "status", *CHOICES)  # their values are words: neither more nor less
SPLITS = ("train/", "val/", "test/")
SIGNS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    "=": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
    "~": operator.contains,
}
_SIGN = re.compile(r"\s*(==|>=|<=|!=|=|>|<|~)\s*")
_DATE = re.compile(r"\d{4}(-\d\d(-\d\d(T\d\d(:\d\d(:\d\d)?)?)?)?)?")
_SMALL_IS_GOOD = re.compile(
    r"(?<![a-z])(loss|error|perplexity|distance|nll|brier|ece|mae|mse|rmse|wer|cer|fid|bits|seconds)(?![a-z])"
)
NO_RUN = "no run has"
KEYS = f"KEY is a metric (val/accuracy), a group (model), a config key (optimizer.lr), or {', '.join(OWN)}."
QUOTE = 'Write KEY OP VALUE in quotes, as in "val/accuracy>0.98": a shell keeps > and < to itself.'


@dataclass(frozen=True)
class Condition:
    """One `KEY OP VALUE`."""

    key: str
    sign: str
    word: str

    def __str__(self) -> str:
        return f"{self.key}{self.sign}{self.word}"


@dataclass(frozen=True)
class Query:
    """The words of a command, taken apart."""

    experiment: str | None = None
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True)
class Selection:
    """The runs that a query means, in order; `asked`: the keys that tell them apart, worth a column of their own."""

    runs: list[RunFacts]
    asked: tuple[str, ...] = ()


def parse_query(words: Sequence[str]) -> Query:
    """Parse one quoted word or several. ConfigError reports every word that is not a condition."""
    experiment, conditions, problems, is_cut = None, [], [], False
    for token in _SIGN.sub(lambda match: match[1], _close_lists(" ".join(words))).split():
        key, sign, word = _split(token)
        if token == "and":
            continue
        if sign and key and word and not _SIGN.search(word):
            conditions.append(Condition(key, sign, word))
        elif not sign and experiment is None and not _looks_like_a_key(token):
            experiment = token
        else:
            problems.append(Problem(token, _malformed(token, key, sign)))
            is_cut = is_cut or (token != "or" and not (key and word))  # as a shell leaves it
    if problems:
        raise _mistakes(problems, QUOTE if is_cut else None)
    return Query(experiment, tuple(conditions))


def select(runs: Sequence[RunFacts], query: Query, sort: str | None = None) -> Selection:
    """The runs that a query means, as they come (newest first) or sorted.

    sort: a key; metrics are sorted best first, all else from small to large; `-KEY` turns it round.
    Errors: ConfigError for an experiment that is none; for every key that no run has and every value that cannot be.
    """
    among = _of_experiment(runs, query.experiment)
    if not among:
        return Selection([])
    problems: list[Problem] = []
    conditions = [c for condition in query.conditions if (c := _checked(condition, among, problems)) is not None]
    key = _resolve((sort or "").lstrip("+-"), among, "--sort ", problems) if sort else None
    if problems:
        is_unknown = any(p.better is None and p.message.startswith(NO_RUN) for p in problems)
        raise _mistakes(problems, KEYS if is_unknown else None)
    conditions.sort(key=lambda condition: condition.key not in OWN and "/" not in condition.key)  # no config in vain
    found = [run for run in among if all(matches(condition, run.value(condition.key)) for condition in conditions)]
    asked = [condition.key for condition in conditions if condition.sign != "="] + ([key] if key else [])
    if key is not None:
        found = _in_order(found, key, turned=str(sort).startswith("-"))
    return Selection(found, tuple(dict.fromkeys(asked)))


def matches(condition: Condition, value: Any) -> bool:
    """Whether a run's value meets a condition, whose word has been checked."""
    if condition.sign == "!=":
        return not matches(replace(condition, sign="="), value)
    if value is MISSING:
        return False
    if condition.sign == "~":
        return condition.word.lower() in text_of(value).lower()
    compare, wanted = SIGNS[condition.sign], number_of(condition.word)
    if condition.key == "created":
        return compare(str(value)[: len(condition.word)], condition.word)
    if _is_number(value) and wanted is not None:
        return math.isclose(value, wanted, rel_tol=1e-9) if condition.sign == "=" else compare(value, wanted)
    return condition.sign == "=" and text_of(value) == condition.word


def text_of(value: Any) -> str:
    """A value of a config as a command would write it: 0.1, true, null, [1,28,28]."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return json.dumps(value, separators=(",", ":"), default=str)


def number_of(word: str) -> float | None:
    """Read a number like 0.98, 98% or 1e-3; None if it is not a finite number."""
    try:
        number = float(word.removesuffix("%")) / (100 if word.endswith("%") else 1)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def why_none(runs: Sequence[RunFacts], query: Query) -> str:
    """Say what the runs have instead, if one condition excludes all: `model is mlp, lenet5`; "" if none does."""
    among, message = _of_experiment(runs, query.experiment), []
    for condition in query.conditions:
        key = _resolve(condition.key, among, "", []) or condition.key
        values = [value for run in among if (value := run.value(key)) not in (MISSING, None)]
        if not any(matches(replace(condition, key=key), value) for value in values):
            message.append(f"{key} is {_span(values)}")
    return "; ".join(message)


def _span(values: Sequence[Any], most: int = 6) -> str:
    if not values:
        return "in none of them"
    if all(_is_number(value) for value in values) and len(set(values)) > 2:
        return f"from {min(values):.4g} to {max(values):.4g}"
    words = list(dict.fromkeys(printable(text_of(value), limit=40) for value in values))
    return ", ".join(words[:most]) + (", ..." if len(words) > most else "")


# -------------------------------------------------------------------------------------------------------------- words


def _close_lists(text: str) -> str:
    """[64, 64] -> [64,64]: blanks in brackets belong to the value, and text_of writes none."""
    depth, kept = 0, []
    for sign in text:
        depth = max(0, depth + (sign == "[") - (sign == "]"))
        if not depth or not sign.isspace():
            kept.append(sign)
    return "".join(kept)


def _split(token: str) -> tuple[str, str, str]:
    sign = _SIGN.search(token)
    return (token[: sign.start()], sign[1].replace("==", "="), token[sign.end() :]) if sign else (token, "", "")


def _looks_like_a_key(token: str) -> bool:
    return token.startswith(SPLITS) or token in OWN or token in CHOICES or "." in token or token == "or"


def _malformed(token: str, key: str, sign: str) -> str:
    if token == "or":
        return "conditions hold together (and); there is no `or`: ask twice"
    if not sign:
        return "it is not a condition"
    if key and not token.endswith(sign):
        return "it has two signs: separate two conditions by a blank"
    return "a key is missing in front" if not key else "a value is missing after it"


def _mistakes(problems: Sequence[Problem], hint: str | None) -> ConfigError:
    message = "; ".join(f"{p.where}: {p.message}" for p in problems)
    return ConfigError(message, hint=hint, problems=problems, undone="listed")


def _of_experiment(runs: Sequence[RunFacts], experiment: str | None) -> list[RunFacts]:
    """ConfigError for an experiment that has neither runs nor a config."""
    if experiment is None or not runs:
        return list(runs)
    of_it = [run for run in runs if experiment.replace("/", "-") == run.row.experiment.replace("/", "-")]
    return of_it or _none_of(experiment, sorted({run.row.experiment for run in runs}))


def _none_of(experiment: str, with_runs: Sequence[str]) -> list[RunFacts]:
    from dlcli.config.folders import options, search_path

    if experiment in options("experiment", search_path()):
        return []
    better = nearest(experiment, with_runs)
    raise ConfigError(
        f"there is no experiment {printable(experiment)}",
        hint=f"{f'Did you mean {better}? ' if better else ''}There are runs of: {', '.join(with_runs)}.",
    )


# --------------------------------------------------------------------------------------------------------------- keys


def _checked(condition: Condition, runs: Sequence[RunFacts], problems: list[Problem]) -> Condition | None:
    """The condition with its full key, or None and a problem more."""
    key = _resolve(condition.key, runs, "", problems, condition)
    if key is None:
        return None
    message, better = _wrong_value(key, condition)
    if message:
        problems.append(Problem(str(condition), message, better))
        return None
    return replace(condition, key=key)


def _wrong_value(key: str, condition: Condition) -> tuple[str, str | None]:
    """Return what is wrong with a condition's value, and a better condition; ("", None) if nothing is."""
    word, is_order = printable(condition.word), condition.sign in (">", ">=", "<", "<=")
    if key == "created" and condition.sign != "~" and not _DATE.fullmatch(condition.word):
        return f"a date is written 2026-11-01 or 2026-11-01T14:30, got {word}", None
    if key in WORDS and is_order:
        return f"{key} is a word, neither more nor less than another", f"{condition.key}={word}"
    if is_order and key != "created" and number_of(condition.word) is None:
        return f'must be a number, got "{word}"', None
    if key == "status" and condition.sign in ("=", "!=") and condition.word not in STATUSES:
        better = nearest(condition.word, STATUSES)
        return f"there is no such status ({', '.join(STATUSES)})", f"status{condition.sign}{better}" if better else None
    return "", None


def _resolve(
    key: str, runs: Sequence[RunFacts], before: str, problems: list[Problem], condition: Condition | None = None
) -> str | None:
    """The full name of a key that some run has, or None and a problem more."""
    metrics = list(dict.fromkeys(name for run in runs for name in run.row.metrics))
    if key in OWN or key in CHOICES or key in metrics:
        return key
    held_out = [name for name in metrics if not name.startswith("train/")] or metrics
    short = [name for name in held_out if name.partition("/")[2] == key or name.rpartition("/")[2] == key]
    if len(short) == 1:
        return short[0]
    if not short and any(run.value(key) is not MISSING for run in runs):
        return key
    rest = f"{condition.sign}{condition.word}" if condition else ""
    better = short[0] if short else _nearest_key(key, metrics, runs)
    several = f"{printable(key)} is not one metric but {len(short)}: {', '.join(short)}"
    message = several if short else f"{NO_RUN} {printable(key)}"
    problems.append(Problem(f"{before}{key}{rest}", message, f"{before}{better}{rest}" if better else None))
    return None


def _nearest_key(key: str, metrics: Sequence[str], runs: Sequence[RunFacts], looked_at: int = 20) -> str | None:
    """The key most like it; one whose last word it is comes first: `lr` is optimizer.lr."""
    configs = [name for run in runs[:looked_at] for name in config_keys(run)]
    names = list(dict.fromkeys([*metrics, *OWN, *CHOICES, *configs]))
    return next((name for name in names if name.rpartition(".")[2] == key), None) or nearest(key, names)


# -------------------------------------------------------------------------------------------------------------- order


def _in_order(runs: Sequence[RunFacts], key: str, *, turned: bool) -> list[RunFacts]:
    """By a key; equal ones stay newest first, and those that do not say it come last either way."""
    saying = [run for run in runs if run.value(key) is not MISSING and run.value(key) is not None]
    silent = [run for run in runs if run.value(key) is MISSING or run.value(key) is None]
    is_metric = any(key in run.row.metrics for run in saying)
    high_first = is_metric and is_high_good(key, saying)
    return sorted(saying, key=lambda run: _rank(run.value(key)), reverse=high_first != turned) + silent


def is_high_good(metric: str, runs: Sequence[RunFacts]) -> bool:
    """As the task of a run with this metric declares it; where none does, by the metric's name."""
    kind = metric.partition("/")[2] or metric
    declared = next(_declared(kind, runs), None)
    return declared == "max" if declared else not _SMALL_IS_GOOD.search(kind.lower())


def _declared(kind: str, runs: Sequence[RunFacts], looked_at: int = 20) -> Iterator[str]:
    for run in runs[:looked_at]:
        if (mode := run.value(f"task.facts.scores.{kind}")) in ("max", "min"):
            yield str(mode)


def _rank(value: Any) -> tuple[bool, float, str]:
    """Numbers before words."""
    return (False, float(value), "") if _is_number(value) else (True, 0.0, text_of(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
