"""From the words of `dlcli sweep` to a checked definition: all mistakes reported at once, before anything starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dlcli.config import Composed, compose_command
from dlcli.config.folders import options, packaged_conf, search_path, unknown_option
from dlcli.config.plain_yaml import check_user_yaml
from dlcli.errors import ConfigError, Problem, nearest, printable
from dlcli.sweep.space.axes import read_axes
from dlcli.sweep.space.space import Axis, Space
from dlcli.sweep.study.definition import EXTRA_OBJECTIVES, PRUNERS, SAMPLERS, Definition, Objective, checked_choice

DEFAULT_TRIALS = 20
MOST_STARTS = 10  # trials that fill the space evenly before TPE and GP learn from them
MOST_IN_A_POPULATION = 50
MOST_ARCHITECTURES = 64  # combinations of groups that are all composed before anything starts
FILE_KEYS = ("space", "trials", "sampler", "pruner", "objectives", "keep", "workers", "max_failures", "seed")


@dataclass(frozen=True)
class Request:
    """What the command says besides words; None where it says nothing."""

    trials: int | None = None
    sampler: str | None = None
    pruner: str | None = None
    objectives: tuple[str, ...] = ()
    seed: int | None = None
    keep: int | None = None
    max_failures: int | None = None
    workers: int | None = None
    storage: str | None = None
    grace_s: float = 60.0
    config_dir: str | None = None
    trusted: tuple[str, ...] = ()
    name: str | None = None

    def flags(self) -> list[str]:
        """As they stand in a command that asks for the same, the ledger's address left out."""
        asked = {name: getattr(self, name) for name in ("trials", "sampler", "pruner", "seed", "keep", "max_failures")}
        given = [(f"--{name.replace('_', '-')}", str(value)) for name, value in asked.items() if value is not None]
        given += [("--objective", name) for name in self.objectives]
        return [word for pair in given for word in pair]


@dataclass(frozen=True)
class Asked:
    """definition: checked, without a name yet; composed: its first trial; size: of the space, None if endless."""

    definition: Definition
    composed: Composed
    size: int | None
    workers: int
    notes: tuple[str, ...] = ()


def read_request(
    words: Sequence[str], request: Request, *, device_is_cpu: bool, workers: int, threads: Callable[[int], int]
) -> Asked:
    """Check it all. device_is_cpu, threads: what each of so many workers will have, to pin what `runtime=auto` would
    measure; workers: where the request leaves it open.
    """
    search = search_path(request.config_dir)
    words, request = _with_file([_absolute(word) for word in words], request, search)
    workers = request.workers or workers
    plain, axes, reading = read_axes(words, search)
    if not axes and not reading.problems:
        compose_command(plain, config_dir=request.config_dir, command="sweep")  # its own mistakes first
        raise ConfigError(
            "nothing is varied: no word means several values",
            hint="For example: dlcli sweep digits optimizer.lr=1e-4:1e-1:log model.hidden=[64],[128,64] --trials 8",
        )
    space = Space.of(axes)
    made: dict[tuple[str, ...], Any] = {}
    first, problems = _compose_everywhere(plain, space, request.config_dir, made)
    problems = [*reading.problems, *problems]
    if problems or first is None:
        problems.sort(key=lambda p: next((i for i, w in enumerate(words) if p.where.startswith(w[:79])), len(words)))
        raise ConfigError(
            f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in the command, nothing was started",
            hint=_try(words, problems),
            problems=problems,
        )
    objectives = _objectives(request.objectives, first)
    sampler = _sampler(request.sampler, space, len(objectives))
    pruner = _pruner(request.pruner, len(objectives))
    pinned, notes = _pinned(first, objectives, device_is_cpu=device_is_cpu, threads=threads(workers))
    size = len(space.grid()) if all(axis.count() is not None for axis in axes) else None
    trials, more = _trials(request.trials, sampler, size)
    users = [str(path) for path in search if path != packaged_conf()]
    definition = Definition(
        name="",
        experiment=first.experiment,
        words=(*plain, *pinned),
        axes=tuple(axes),
        objectives=objectives,
        trials=trials,
        sampler=sampler,
        pruner=pruner,
        seed=request.seed or 0,
        keep=3 if request.keep is None else request.keep,
        max_failures=request.max_failures,
        storage=request.storage,
        grace_s=request.grace_s,
        config_dir=users[0] if users else None,
        starts=max(2, min(MOST_STARTS, trials // 4)),
        population=max(4, min(MOST_IN_A_POPULATION, trials // 3)),
        own_process=_wants_own_process(first, axes),
        trusted=request.trusted,
    )
    return Asked(definition, first, size, workers, (*notes, *more))


def _absolute(word: str) -> str:
    """An experiment given as a file is the same from every folder."""
    is_file = word.endswith((".yaml", ".yml")) and "=" not in word and Path(word).is_file()
    return str(Path(word).resolve()) if is_file else word


def _with_file(words: Sequence[str], request: Request, search: Sequence[Path]) -> tuple[list[str], Request]:
    """`sweep=NAME` taken from conf/sweep/NAME.yaml; what the command says itself comes first."""
    names = [word.partition("=")[2] for word in words if word.startswith("sweep=")]
    rest = [word for word in words if not word.startswith("sweep=")]
    if not names:
        return rest, request
    known = options("sweep", search)
    if len(names) > 1 or names[0] not in known:
        raise unknown_option("sweep", names[-1], known)
    path = known[names[0]]
    check_user_yaml(path)
    body = _body(path)
    varied = {word.partition("=")[0] for word in rest}
    space = [f"{key}={value}" for key, value in body.get("space", {}).items() if key not in varied]
    given = {key: value for key, value in body.items() if key not in ("space", "objectives")}
    given["objectives"] = tuple(body.get("objectives", ()))
    missing = {key: value for key, value in given.items() if getattr(request, key) in (None, ())}
    return [*rest, *space], replace(request, **missing)


def _body(path: Path) -> dict[str, Any]:
    import yaml

    body = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    problems = []
    for key, value in body.items():
        if key not in FILE_KEYS:
            better = nearest(str(key), FILE_KEYS)
            problems.append(Problem(f"{path}: {key}", f"a sweep has no such setting ({', '.join(FILE_KEYS)})", better))
        elif key in ("trials", "keep", "workers", "max_failures", "seed"):
            if type(value) is not int or value < (0 if key in ("keep", "seed", "max_failures") else 1):
                problems.append(Problem(f"{path}: {key}", f"must be a whole number, got {printable(value)}"))
        elif key in ("sampler", "pruner") and not isinstance(value, str):
            problems.append(Problem(f"{path}: {key}", f"must be a word, got {printable(value)}"))
        elif key == "objectives" and not (isinstance(value, list) and all(isinstance(o, str) for o in value)):
            problems.append(Problem(f"{path}: {key}", f"must be a list of words, got {printable(value)}"))
        elif key == "space" and not (isinstance(value, dict) and all(isinstance(v, str) for v in value.values())):
            message = 'must be settings, each with its value in quotes, like optimizer.lr: "1e-4:1e-1:log"'
            problems.append(Problem(f"{path}: {key}", message))
    if problems:
        raise ConfigError(f"{path} cannot be used", problems=problems)
    return body


# ------------------------------------------------------------------------------------------- composing beforehand


def _compose_everywhere(
    plain: Sequence[str], space: Space, config_dir: str | None, made: dict[tuple[str, ...], Any]
) -> tuple[Composed | None, list[Problem]]:
    """The first trial's config, and what is wrong anywhere: every architecture, each value of each choice and both
    ends of each range are composed once at least.
    """
    problems: dict[tuple[str, str], Problem] = {}
    first = None
    for point in _probes(space):
        try:
            composed = compose_command([*plain, *space.words(point)], config_dir=config_dir, command="sweep", made=made)
            first = first or composed
        except ConfigError as error:
            for problem in error.problems or [Problem("the command", error.message)]:
                message = _of_axis(problem, space.axes)
                problems.setdefault((message.where, problem.message.partition(", got")[0]), message)
    return first, list(problems.values())


def _probes(space: Space) -> Iterator[dict[str, str]]:
    """Points that have all there is: of each architecture one, of the first that has an axis every end of it."""
    groups = space.group_points()
    if len(groups) > MOST_ARCHITECTURES:  # each option once, with the first of the others
        varied = {key for point in groups for key in point}
        first = groups[0]
        chosen = {key: list(dict.fromkeys(point[key] for point in groups)) for key in varied}
        groups = [{**first, key: value} for key in varied for value in chosen[key]]
    seen: set[str] = set()
    for begun in groups:
        axes = [axis for axis in space.axes if axis.key not in begun and axis.applies(begun)]
        new = [axis for axis in axes if axis.key not in seen]
        rounds = max([len(axis.ends()) for axis in new], default=1)
        for i in range(rounds):
            yield begun | {axis.key: axis.ends()[i % len(axis.ends())] for axis in axes}
        seen.update(axis.key for axis in new)


def _of_axis(problem: Problem, axes: Sequence[Axis]) -> Problem:
    """A problem of one value as a problem of the word that the user wrote."""
    axis = next((axis for axis in axes if axis.text and problem.where.partition("=")[0] == axis.key), None)
    if axis is None:
        return problem
    tried = problem.where if axis.text != problem.where else None
    message = f"{problem.message}{f' (tried {tried})' if tried else ''}"
    return Problem(printable(axis.text, limit=80), message, _better_axis(problem, axis))


def _better_axis(problem: Problem, axis: Axis) -> str | None:
    """The user's word with the better value in the place of the wrong one, or after the better key."""
    if problem.better is None:
        return None
    key, _, value = problem.better.partition("=")
    if key != axis.key:
        return f"{key}={axis.text.partition('=')[2]}"
    wrong = problem.where.partition("=")[2]
    values = dict.fromkeys(value if text == wrong else text for text in axis.values)
    return f"{key}={','.join(values)}" if values else None


def _try(words: Sequence[str], problems: Sequence[Problem]) -> str | None:
    better = {p.where: p.better for p in problems}
    if not all(better.values()):
        return None
    return "try:  " + " ".join(["dlcli", "sweep", *(better.get(printable(word, limit=80)) or word for word in words)])


# ----------------------------------------------------------------------------------------------------- what is chosen


def _objectives(names: Sequence[str], composed: Composed) -> tuple[Objective, ...]:
    facts = composed.tree["task"]["facts"]
    scores = {f"val/{name}": goal for name, goal in facts["scores"].items()}
    known = scores | EXTRA_OBJECTIVES
    asked = [part for name in names for part in name.split(",") if part] or [composed.tree["trainer"]["monitor"]]
    found: list[Objective] = []
    for name in asked:
        if name.startswith("test/"):
            message = f"--objective {printable(name)}: nothing is selected on the test split"
            raise ConfigError(message, hint=f"--objective val/{printable(name[5:])}; then score the best: dlcli eval")
        full = name if name in known else f"val/{name}"
        if full not in known:
            better = nearest(name, known, cutoff=0.5)
            hint = f"{f'Did you mean {better}? ' if better else ''}({', '.join(known)})"
            raise ConfigError(f"--objective {printable(name)}: there is no such objective", hint=hint)
        if any(objective.name == full for objective in found):
            raise ConfigError(f"--objective {full} is named twice", hint="Name each objective once.")
        found.append(Objective(full, known[full]))
    if all(objective.name in EXTRA_OBJECTIVES for objective in found):
        message = "a sweep for nothing but size or speed ends with a network that knows nothing"
        raise ConfigError(message, hint=f"--objective {next(iter(scores))},{found[0].name}")
    return tuple(found)


def _sampler(asked: str | None, space: Space, objectives: int) -> str:
    sampler = checked_choice("sampler", asked or ("tpe" if objectives == 1 else "nsga2"), list(SAMPLERS))
    if sampler == "grid":
        space.grid()
    if sampler == "cmaes":
        if objectives > 1:
            raise ConfigError("--sampler cmaes has one objective", hint="--sampler nsga2 has several.")
        if not any(not axis.values for axis in space.axes):
            raise ConfigError("--sampler cmaes needs ranges; here there are choices only", hint="--sampler tpe")
    return sampler


def _pruner(asked: str | None, objectives: int) -> str:
    pruner = checked_choice("pruner", asked or ("median" if objectives == 1 else "none"), list(PRUNERS))
    if pruner != "none" and objectives > 1:
        message = f"--pruner {pruner} compares by one objective; here are {objectives}"
        raise ConfigError(message, hint="--pruner none, or one --objective")
    return pruner


def _trials(asked: int | None, sampler: str, size: int | None) -> tuple[int, list[str]]:
    """How many, and what is to be said of that."""
    if sampler == "grid":
        assert size is not None
        return min(asked or size, size), []
    if size is not None and size < (asked or DEFAULT_TRIALS):
        several = (
            f"the space has {size} points: a repeated one is reused, not trained again; --sampler grid has each once"
        )
        return asked or size, [several]
    return asked or DEFAULT_TRIALS, []


def _wants_own_process(composed: Composed, axes: Sequence[Axis]) -> bool:
    """Whether a trial leaves something behind in its process: what was compiled for one would count for the next."""
    return bool(composed.tree["runtime"]["compile"]) or any(axis.key.partition(".")[0] == "runtime" for axis in axes)


def _pinned(
    composed: Composed, objectives: Sequence[Objective], *, device_is_cpu: bool, threads: int
) -> tuple[list[str], list[str]]:
    """Words that leave nothing to measurement, so that trials differ in what is varied only and repeat to the bit; and
    what is monitored.
    """
    runtime, pinned = composed.tree["runtime"], []
    if device_is_cpu and runtime["device"] in ("auto", "cpu"):
        if runtime["threads"] in (None, "auto"):
            pinned.append(f"runtime.threads={threads}")
        if runtime["precision"] == "auto":
            pinned.append("runtime.precision=fp32")
        if runtime["channels_last"] == "auto":
            pinned.append("runtime.channels_last=false")
    notes = [f"the same for every trial: {' '.join(pinned)}"] if pinned else []
    score = next(objective.name for objective in objectives if objective.name not in EXTRA_OBJECTIVES)
    if composed.tree["trainer"]["monitor"] != score:
        pinned.append(f"trainer.monitor={score}")
    return pinned, notes
