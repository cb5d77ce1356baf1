"""How the terminal display sets facts in columns and lines: strings in, strings out, no Rich."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from dlcli.errors import printable


def time_shares(event: Mapping[str, Any]) -> list[str]:
    """Where a run's time went, like `device 81 %`, in the order that things happen; empty where nobody measured."""
    seconds = {name: s for name, s in (event.get("time") or {}).items() if isinstance(s, int | float)}
    total = sum(seconds.values())
    return [f"{name} {100 * s / total:.0f} %" for name, s in seconds.items()] if total > 0 else []


BLOCKS = "▁▂▃▄▅▆▇█"
BLOCKS_ASCII = "_.,-=+*#"
SHARES = ("cer", "mean_iou", "map", "map50")  # and what ends in accuracy
SPARK_WIDTH = 14  # columns: two sparklines and their values fit side by side into 80


class Columns:
    """Which columns a table of epochs has in a window of `width` columns, and how its rows are written.

    Every metric is a column; where the window is narrow, the less important ones are left out, never cut.
    """

    def __init__(self, metrics: Iterable[str], monitor: str | None, width: int):
        self.metrics = tuple(sorted(metrics, key=_place))
        gap = 2 if width < 100 else 3
        columns = [("epoch", 7, 0, "epoch")]
        for name in self.metrics:
            label = printable(metric_name(name, short=True), limit=28)
            columns.append((label, max(len(label), 8) + gap, 0 if name == monitor else _rank(name), name))
        columns += [
            ("lr", 7 + gap, 4, "lr"),
            ("examples/s", 10 + gap, 5, "examples_per_s"),
            ("time", 6 + gap, 3, "seconds"),
        ]
        while len(columns) > 1 and sum(column[1] for column in columns) >= width:
            # The least important column; of equals, the one further to the right.
            columns.remove(max(reversed(columns), key=lambda column: column[2]))
        self._columns = columns

    def heading(self) -> str:
        return "".join(f"{label:>{width}}" for label, width, _, _ in self._columns)

    def row(self, event: Mapping[str, Any], is_best: bool) -> str:
        """The line of one `epoch` event, with a star in front of the best one's number."""
        cells = [f"{'★ ' if is_best else ''}{event.get('epoch')}"]
        for _, _, _, key in self._columns[1:]:
            cells.append(self._cell(event, key))
        return "".join(f"{cell:>{width}}" for cell, (_, width, _, _) in zip(cells, self._columns, strict=True))

    def _cell(self, event: Mapping[str, Any], key: str) -> str:
        if key in self.metrics:
            value = (event.get("metrics") or {}).get(key)
            return metric_value(key, value).removesuffix(" %")
        value = event.get(key)
        if value is None:
            return "–"
        return {"lr": f"{value:.1e}", "examples_per_s": f"{value:,.0f}", "seconds": _short_time(value)}[key]


def _place(name: str) -> tuple[bool, int, str]:
    """From left to right: losses, then scores; training before validation."""
    split, _, kind = name.partition("/")
    return not kind.startswith("loss"), {"train": 0, "val": 1}.get(split, 2), name


def _rank(name: str) -> int:
    """Rank a column: in a narrow window the highest is left out first."""
    for rank, beginning in enumerate(("train/loss", "val/loss"), 1):
        if name.startswith(beginning):
            return rank
    return 6 if name.startswith("val/") else 7


# -------------------------------------------------------------------------------------------------------------- facts


def summary_of(config: Mapping[str, Any], option: Callable[[str], str | None]) -> list[str]:
    """The choices of a config that a person compares: ["model mlp", "optimizer adam lr=0.001", ..., "seed 0"].

    option: gives what was chosen of a group, by name.
    """
    items = []
    for group in ("dataset", "model", "task", "optimizer", "schedule"):
        name = option(group)
        # The experiment's own name tells the data set as a rule, and classification is the ordinary task.
        if name and group != "dataset" and name != "classification":
            items.append(f"{group} {name}")
        if name and group == "optimizer" and _node(config, "optimizer", "lr") is not None:
            items[-1] += f" lr={_node(config, 'optimizer', 'lr'):g}"
    for group in ("regularization", "augmentation"):
        active = _active(config.get(group))
        if active and active[-1].startswith("padding_mode=") and len(active) == 1:  # of pictures that are not moved
            active = []
        items.append(f"{group} {' '.join(active) or 'none'}")
    epochs, steps, time = (_node(config, "trainer", key) for key in ("epochs", "max_steps", "max_time"))
    limits = [
        f"{epochs} epoch{'s' if epochs != 1 else ''}" if epochs and not (time or steps) else "",
        f"{steps} steps" if steps else "",
        str(time or ""),
    ]
    items += [limit for limit in limits if limit]
    accumulate = _node(config, "trainer", "accumulate_grad_batches") or 1
    batch = _node(config, "dataset", "batch_size")
    items += [f"batch {batch}" + (f" × {accumulate}" if accumulate > 1 else "")] if batch else []
    items += [f"seed {config['seed']}"] if config.get("seed") is not None else []
    return [printable(item) for item in items]


def _node(config: Mapping[str, Any], *keys: str) -> Any:
    node: Any = config
    for key in keys:
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


def _active(node: object) -> list[str]:
    """The settings that do something: neither null, nor false, nor zero, nor empty."""
    if not isinstance(node, Mapping):
        return []
    words = []
    for key, value in node.items():
        if key.startswith("_") or key in ("facts", "name"):
            continue
        if isinstance(value, Mapping):  # early_stopping: {patience: 10, min_delta: 0.0}
            inner = [part for part in value.values() if part and not isinstance(part, Mapping)]
            words += [f"{key}={inner[0]}"] if inner else []
        elif value is True:
            words.append(key)
        elif value and value != "none":
            words.append(f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}")
    return words


def metric_name(name: str, *, short: bool = False) -> str:
    """val/accuracy is `val accuracy`, or `val acc %` to be short; train/loss/generator is `generator loss`."""
    split, _, kind = name.partition("/")
    kind, _, part = kind.partition("/")
    words = " ".join(
        word.replace("/", " ") for word in ("" if part and split == "train" else split, part, kind) if word
    )
    return words.replace("accuracy", "acc") + " %" * is_share(name) if short else words


def is_share(name: str) -> bool:
    """Whether a metric is a share, shown in per cent: of right answers, of wrong letters, of covered pixels."""
    return name.rpartition("/")[2] in SHARES or name.endswith("accuracy")


def metric_value(name: str, value: object) -> str:
    """Shares in per cent, everything else with four digits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–"
    if is_share(name):
        return f"{100 * value:.2f} %"
    ordinary = not math.isfinite(value) or value == 0 or 1e-3 <= abs(value) < 1e4
    return f"{value:.4f}" if ordinary else f"{value:.2e}"


def metric_spread(name: str, middle: float, spread: float | None) -> str:
    """98.13 ± 0.12 %: a mean and its standard deviation over runs, where there is one."""
    shown = metric_value(name, middle)
    if spread is None:
        return shown
    if is_share(name):
        return f"{shown.removesuffix(' %')} ± {100 * spread:.2f} %"
    return f"{shown} ± {spread:.2g}"


def spark_value(name: str, value: float) -> str:
    return f"{100 * value:.1f}" if is_share(name) else f"{value:.3g}"


def count(number: float | None) -> str:
    return "?" if number is None else f"{number:,.0f}"


def trainable(prepared: Mapping[str, Any]) -> list[str]:
    """Say how many parameters a `run_prepared` event trains, and from later epochs on."""
    later = [f"{count(more['trainable'])} from epoch {more['epoch']}" for more in prepared.get("trainable_later") or ()]
    return [f"{count(prepared.get('trainable'))} trainable", *later]


def duration(seconds: float) -> str:
    """3.1 s, 2 min 05 s, 1 h 02 min"""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def _short_time(seconds: float) -> str:
    """0.6s, 42s, 3m05s, 1h02m: at most six characters"""
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    if seconds < 59.5:
        return f"{seconds:.0f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02}m"


# -------------------------------------------------------------------------------------------------------------- lines


def sparkline(values: Sequence[float], *, width: int = SPARK_WIDTH, ascii_only: bool = False) -> str:
    """The course of `values` in at most `width` characters; each is the mean of its share of them."""
    blocks = BLOCKS_ASCII if ascii_only else BLOCKS
    finite = [value for value in values if math.isfinite(value)]
    num = min(width, len(finite))
    if num == 0:
        return ""
    cuts = [len(finite) * i // num for i in range(num + 1)]
    means = [sum(finite[a:b]) / (b - a) for a, b in pairwise(cuts)]
    low, span = min(means), max(means) - min(means)
    if not span > 0:
        return blocks[3] * num
    return "".join(blocks[round((mean - low) / span * (len(blocks) - 1))] for mean in means)


def flow(items: Sequence[str], width: int, *, indent: str = "  ", between: str = " · ") -> list[str]:
    """Lines of `items`, broken between them only; an item longer than a line is alone on it."""
    lines: list[str] = []
    for item in items:
        if lines and len(lines[-1]) + len(between) + len(item) < width:
            lines[-1] += between + item
        else:
            lines.append(indent + item)
    return lines


def interval(name: str, bounds: tuple[float, float] | list[float]) -> str:
    """97.98 to 98.28 %; a share ends at 0 and 1, though the t distribution does not."""
    within = is_share(name)
    low, high = (metric_value(name, min(1.0, max(0.0, bound)) if within else bound) for bound in bounds)
    return f"{low.removesuffix(' %')} to {high}"


def ran(event: Mapping[str, Any]) -> str:
    """5 seeds, or 4 of 5 seeds; seed 3 diverged"""
    of, done, diverged = len(event["seeds"]), len(event["per_seed"]), event["diverged"]
    if done == of:
        return f"{of} seeds"
    message = f"; seed{'s' if len(diverged) > 1 else ''} {told_seeds(diverged)} diverged" if diverged else ""
    return f"{done} of {of} seeds{message}"


def told_seeds(seeds: Sequence[int]) -> str:
    """0-4 where they follow one another, otherwise 0, 2, 5."""
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{seeds[0]}-{seeds[-1]}"
    return ", ".join(map(str, seeds))
