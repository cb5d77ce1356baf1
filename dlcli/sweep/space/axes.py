"""Words that mean several values, as `dlcli sweep` takes them: Hydra's own sweep words, and spellings no shell eats.

model=mlp,lenet5                            a choice; choice(mlp,lenet5) and glob(*) too
optimizer.lr=tag(log,interval(1e-4,1e-1))   a range, by its logarithm;  in short  optimizer.lr=1e-4:1e-1:log
model.hidden_size=int(interval(16,64))            whole numbers;              in short  model.hidden_size=16:64
trainer.epochs=range(1,10,2)                1, 3, 5, 7, 9
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import ROUND_CEILING, Decimal
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from dlcli.config.folders import bodies, groups, options
from dlcli.config.settings import SETTINGS
from dlcli.config.tree import ABSENT, lookup
from dlcli.config.words import Reading, parse_override
from dlcli.errors import nearest
from dlcli.sweep.space.space import Axis

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_SHORT = re.compile(rf"(?:(?P<before>[a-z]+):)?(?P<low>{_NUMBER}):(?P<high>{_NUMBER})(?::(?P<after>.*))?")
_MODES = ("log", "int")
NOT_VARIED = {
    "experiment": "one sweep is of one experiment",
    "name": "trials are numbered; --name names the sweep",
    "runtime.devices": "a trial runs on one device; --workers says how many run at once",
    "runtime.device": "each worker is given its device",
    "tracker": "it changes no result",
}


def read_axes(words: Sequence[str], search: Sequence[Path]) -> tuple[list[str], list[Axis], Reading]:
    """(words of one value, axes, problems): what varies and what does not. What is wrong with a plain word is found
    when it is composed.
    """
    reading = Reading(search=search)
    plain: list[str] = []
    axes: list[Axis] = []
    for word in words:
        axis = None if word.startswith("-") or "=" not in word else _read_axis(word, reading)
        if axis is None:
            plain.append(word)
        elif why := NOT_VARIED.get(axis.key):
            reading.wrong(word, f"cannot be varied: {why}")
        elif any(other.key == axis.key for other in axes):
            reading.wrong(word, f"{axis.key} is varied already")
        else:
            axes.append(axis)
    bad = {problem.where for problem in reading.problems}
    return [word for word in plain if word not in bad], _conditional(axes, search), reading


def _read_axis(word: str, reading: Reading) -> Axis | None:
    """The axis that a word means; None for a word of one value, and for one that a problem was noted of."""
    override = parse_override(word, Reading(search=()))
    if override is None:
        return None
    key, value = override.key_or_group, override.value()
    if not override.is_sweep_override():
        short = _SHORT.fullmatch(value) if isinstance(value, str) else None
        return _short_range(word, key, short, reading) if short else None
    if not re.fullmatch(r"[\w./-]+", key) or word.startswith(("+", "~")):
        reading.wrong(word, "is not written like key=value,value")
        return None
    kind = type(value).__name__
    if kind == "IntervalSweep":
        is_whole = isinstance(value.start, int)
        return _range(word, key, value.start, value.end, reading, is_log="log" in value.tags, is_whole=is_whole)
    if kind == "RangeSweep":
        return _stepped(word, key, value, reading)
    if kind == "Glob":
        names = [name for name in sorted(options(key, reading.search)) if _is_in(name, value)]
        if not names:
            reading.wrong(word, f"matches no {key} ({', '.join(sorted(options(key, reading.search))) or 'none'})")
        return Axis(key, tuple(names), text=word) if names else None
    value.shuffle = False
    texts = (text.lower() if text in ("True", "False") else text for text in override.sweep_string_iterator())
    return Axis(key, tuple(dict.fromkeys(texts)), text=word)


def _is_in(name: str, glob: Any) -> bool:
    return any(fnmatchcase(name, p) for p in glob.include) and not any(fnmatchcase(name, p) for p in glob.exclude)


def _short_range(word: str, key: str, match: re.Match[str], reading: Reading) -> Axis | None:
    modes = [mode for part in (match["before"], match["after"]) if part for mode in part.split(":")]
    for mode in modes:
        if mode not in _MODES:
            better = nearest(mode, _MODES, cutoff=0.5)
            message = f'"{mode}" cannot follow a range; log and int can'
            reading.wrong(word, message, word.replace(f":{mode}", f":{better}") if better else None)
            return None
    low, high = (_number(match[end]) for end in ("low", "high"))
    return _range(word, key, low, high, reading, is_log="log" in modes, is_whole="int" in modes)


def _number(text: str) -> float:
    return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)


def _range(
    word: str, key: str, low: float, high: float, reading: Reading, *, is_log: bool, is_whole: bool
) -> Axis | None:
    if not low < high:
        reading.wrong(word, f"ends at {high:g}, which is not above its start {low:g}")
    elif is_log and low <= 0:
        reading.wrong(word, f"begins at {low:g}; a logarithm needs a start above 0")
    elif is_whole and not (float(low).is_integer() and float(high).is_integer()):
        reading.wrong(word, "has ends that are not whole numbers")
    else:
        is_whole = is_whole or _takes_whole_numbers_only(key, low, high)
        low, high = (int(low), int(high)) if is_whole else (float(low), float(high))
        return Axis(key, low=low, high=high, is_log=is_log, is_whole=is_whole, text=word)
    return None


def _takes_whole_numbers_only(key: str, low: float, high: float) -> bool:
    """Whether 2.5 would be wrong where 2 is right: then a range without int( ) means whole numbers too."""
    if not (float(low).is_integer() and float(high).is_integer()):
        return False
    setting = SETTINGS.get(key)
    return setting is not None and setting.check(int(low)) is None and setting.check(low + 0.5) is not None


def _stepped(word: str, key: str, value: Any, reading: Reading) -> Axis | None:
    is_whole = all(isinstance(number or 0, int) for number in (value.start, value.stop, value.step))
    start, stop, step = (Decimal(str(number or 0)) for number in (value.start, value.stop, value.step))
    if step <= 0 or start >= stop:
        reading.wrong(word, f"holds no value: from {start} to below {stop} in steps of {step}")
        return None
    last = start + ((stop - start) / step).to_integral_value(ROUND_CEILING) * step - step  # below stop, as in Python
    low, high, by = (int(n) if is_whole else float(n) for n in (start, last, step))
    return Axis(key, low=low, high=high, step=by, is_whole=is_whole, text=word)


def _conditional(axes: Sequence[Axis], search: Sequence[Path]) -> list[Axis]:
    """The axes, with those of settings that only some of the varied options of their group have marked so."""
    from dataclasses import replace

    varied = {axis.key: axis.values for axis in axes if axis.key in groups(search)}
    found: list[Axis] = []
    for axis in axes:
        group, _, rest = axis.key.partition(".")
        having = tuple(
            name
            for name, body in bodies(group, search)
            if group in varied and name in varied[group] and rest and lookup(body, rest) is not ABSENT
        )
        is_partial = bool(having) and rest and set(having) != set(varied[group])
        found.append(replace(axis, only_with=having) if is_partial else axis)
    return found
