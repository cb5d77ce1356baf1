"""A run in plain lines, one event each, where stderr is not a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TextIO

from dlcli.config.naming import option_of
from dlcli.reporting.format import time_shares
from dlcli.reporting.output import Output, clean


class PlainDisplay:
    """One line of `key=value` words per fact, for pipes, CI and Slurm; warnings and advice go to stderr."""

    def __init__(self, stdout: TextIO, stderr: TextIO):
        self._out, self._err = Output(stdout), Output(stderr)
        self._lines: dict[str, Callable[[dict[str, Any]], str]] = {
            "run_started": _start_line,
            "run_resumed": _resumed_line,
            "run_prepared": _ready_line,
            "unfrozen": _unfrozen_line,
            "epoch": _epoch_line,
            "evaluated": _evaluated_line,
            "run_finished": _done_line,
        }

    def event(self, event: dict[str, Any]) -> None:
        kind = event.get("event")
        if kind in ("note", "warning"):
            self._advise(f"{kind}: {clean(event.get('message', ''))}", event.get("hint"))
        elif kind in self._lines:
            self._out.write(self._lines[kind](event) + "\n")
        if kind == "run_finished":
            for command in event.get("next") or ():
                self._err.write(f"next: {clean(command)}\n")

    def _advise(self, line: str, hint: str | None) -> None:
        self._err.write(line + "\n" + (f"hint: {clean(hint)}\n" if hint else ""))

    def progress(self, step: int, loss: Callable[[], float]) -> None:
        pass

    def close(self) -> None:
        self._out.flush()
        self._err.flush()


# -------------------------------------------------------------------------------------------------------- plain lines


def _start_line(event: dict[str, Any]) -> str:
    config = event.get("config") or {}
    model = option_of("model", config, event.get("choices"))
    facts = {"run": event.get("run"), "experiment": event.get("experiment"), "model": model}
    return pairs(
        "start", facts | {"seed": event.get("seed"), "changed": " ".join(event.get("overrides") or ()) or None}
    )


def _resumed_line(event: dict[str, Any]) -> str:
    return pairs("resumed", {key: event.get(key) for key in ("run", "step", "epoch")})


def _ready_line(event: dict[str, Any]) -> str:
    keys = ("device", "precision", "threads", "parameters", "trainable", "train", "val", "test", "source", "steps")
    facts: dict[str, Any] = {}
    for key in (*keys, "epochs"):
        facts[key] = event.get(f"{key}_examples", event.get(key))
        if key == "trainable":
            later = event.get("trainable_later") or ()
            facts |= {f"trainable_from_epoch_{more['epoch']}": more["trainable"] for more in later}
    return pairs("ready", facts | {"chosen": event.get("runtime_reason") or None})


def _unfrozen_line(event: dict[str, Any]) -> str:
    facts = {key: event.get(key) for key in ("epoch", "step", "trainable")}
    return pairs("unfrozen", {"groups": ",".join(event.get("groups") or ())} | facts)


def _epoch_line(event: dict[str, Any]) -> str:
    facts: dict[str, Any] = {"epoch": event.get("epoch"), "step": event.get("step")}
    facts |= _named(event.get("metrics"))
    if event.get("lr") is not None:
        facts["lr"] = f"{event['lr']:.1e}"
    if event.get("examples_per_s") is not None:
        facts["examples_per_s"] = f"{event['examples_per_s']:.0f}"
    return pairs("", facts | {"seconds": event.get("seconds"), "best": "yes" if event.get("best") else None})


def _evaluated_line(event: dict[str, Any]) -> str:
    return pairs("evaluated", {"split": event.get("split")} | _named(event.get("metrics"), event.get("split")))


def _done_line(event: dict[str, Any]) -> str:
    facts = {"status": event.get("status"), "reason": event.get("reason"), "epoch": event.get("epoch")}
    facts |= {"step": event.get("step"), "best_epoch": event.get("best_epoch")} | _named(event.get("metrics"))
    facts |= {key: event.get(key) for key in ("seconds", "peak_memory_mb")}
    if shares := time_shares(event):
        facts["time"] = ", ".join(shares)
    return pairs("done", facts | {key: event.get(key) for key in ("run", "checkpoint")})


def pairs(word: str, facts: Mapping[str, Any]) -> str:
    """`word key=value key=value`, without the facts that are None; values with blanks are in double quotes."""
    shown = (f"{clean(key)}={_value(value)}" for key, value in facts.items() if value is not None)
    return " ".join((word, *shown)) if word else " ".join(shown)


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e-3 or abs(value) >= 1e4 else f"{value:.4f}".rstrip("0").rstrip(".")
    text = clean(value)
    return text if text and not set(text) & set(' "') else '"' + text.replace('"', '\\"') + '"'


def _named(metrics: Mapping[str, Any] | None, split: str | None = None) -> dict[str, Any]:
    """{"val/accuracy": x} as {"val_accuracy": x}; a name without a split gets `split` in front."""
    named = {key if "/" in key or not split else f"{split}/{key}": value for key, value in (metrics or {}).items()}
    return {key.replace("/", "_"): value for key, value in named.items()}
