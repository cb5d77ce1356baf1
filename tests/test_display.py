"""Three readers of one list of events; errors and tables; terminals that are narrow, plain, closed or full."""

from __future__ import annotations

import fcntl
import io
import json
import math
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import pytest

from dlcli.config.naming import choice, option_of
from dlcli.errors import ConfigError, DataError, Problem
from dlcli.reporting import display as display_module
from dlcli.reporting import output
from dlcli.reporting.display import JsonDisplay, open_display
from dlcli.reporting.errors import print_error, render_error
from dlcli.reporting.format import Columns, flow, metric_value, sparkline, summary_of
from dlcli.reporting.output import Output, encodable
from dlcli.reporting.plain_display import PlainDisplay
from dlcli.reporting.tables import print_table

RUN = "outputs/digits/20261121-101502-calm-otter"
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
SHOW, HIDE = "\x1b[?25h", "\x1b[?25l"

Event = dict[str, Any]


def started(**changes: Any) -> Event:
    config = {
        "dataset": {"name": "digits", "batch_size": 64},
        "model": {"_target_": "dlcli.models.mlp.MLP", "hidden": [128, 64]},
        "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.003},
        "schedule": {"_target_": "dlcli.optimizers.schedules.cosine"},
        "regularization": {"dropout": 0.1, "l1": 0.0, "early_stopping": {"patience": None, "min_delta": 0.0}},
        "augmentation": {},
        "trainer": {"epochs": 30, "accumulate": 1},
        "seed": 0,
    }
    event = {"event": "run_started", "run": RUN, "name": "calm-otter", "experiment": "digits", "seed": 0}
    return event | {"overrides": ["optimizer.lr=0.003"], "config": config, "versions": {"dlcli": "0.1.0"}} | changes


def prepared(epochs: int | None = 30, monitor: str = "val/accuracy") -> Event:
    sizes: Event = {
        "train_examples": 1257,
        "val_examples": 180,
        "test_examples": 360,
        "parameters": 25450,
        "trainable": 1290,
    }
    where: Event = {"device": "cpu", "device_name": "Intel Xeon", "precision": "fp32", "source": "resident"}
    steps: Event = {"steps_per_epoch": 20, "steps": epochs and 20 * epochs, "epochs": epochs, "monitor": monitor}
    ready: Event = {"event": "run_prepared", "source_reason": "0.1 MB fit in memory"}
    return ready | sizes | where | steps


def epoch(number: int, metrics: dict[str, float] | None = None, *, best: bool = True) -> Event:
    default = {"train/loss": 0.28714, "train/accuracy": 0.91, "val/loss": 0.3, "val/accuracy": 0.9742}
    speed = {"lr": 0.001, "examples_per_s": 98120.4, "seconds": 0.6}
    return {"event": "epoch", "epoch": number, "step": 20 * number, "metrics": metrics or default, "best": best} | speed


def finished(status: str = "completed", **changes: Any) -> Event:
    event: Event = {
        "event": "run_finished",
        "run": RUN,
        "status": status,
        "checkpoint": f"{RUN}/checkpoints/step-00000600",
    }
    event |= {"metrics": {"val/accuracy": 0.9749, "test/accuracy": 0.9722}, "reason": None, "step": 600, "epoch": 30}
    event |= {"best_epoch": 28, "seconds": 12.1, "peak_memory_mb": 412.0}
    return event | {"next": ["dlcli eval calm-otter", "dlcli runs show calm-otter"]} | changes


def story(num: int = 30) -> list[Event]:
    """A run of `num` epochs whose accuracy grows until the last but one."""
    epochs = [
        epoch(e, {"train/loss": 2 / e, "val/accuracy": 1 - 1 / (e + 1)}, best=e < max(num, 2))
        for e in range(1, num + 1)
    ]
    values = {"event": "values", "step": 20, "epoch": 1, "values": {"train/loss": 0.4}}
    warning = {"event": "warning", "message": "2 threads are slower here", "hint": "runtime.threads=1"}
    return [started(), warning, prepared(num), values, *epochs, finished(epoch=num, step=20 * num)]


# ------------------------------------------------------------------------------------------------------------- JSON


def test_json_is_the_events_and_nothing_else() -> None:
    out = io.StringIO()
    display = open_display("json", stdout=out, stderr=out)
    for event in story(3):
        display.event(event)
        display.progress(1, lambda: pytest.fail("the loss was read"))
    display.close()
    assert [json.loads(line) for line in out.getvalue().splitlines()] == story(3)


def test_json_stays_strict_when_the_loss_is_not_a_number_and_one_line_whatever_the_text() -> None:
    out = io.StringIO()
    JsonDisplay(out).event({"event": "epoch", "metrics": {"train/loss": math.nan}, "text": "a\nb\x1b[31m\x7f é"})
    line = out.getvalue()
    assert json.loads(line)["metrics"] == {"train/loss": None}
    assert line.count("\n") == 1 and line.isascii() and line.strip().isprintable()


# ------------------------------------------------------------------------------------------------------------ plain


def plain(events: list[Event]) -> tuple[str, str]:
    out, err = io.StringIO(), io.StringIO()
    display = open_display("auto", stdout=out, stderr=err)
    assert isinstance(display, PlainDisplay)
    for event in events:
        display.event(event)
        display.progress(1, lambda: pytest.fail("the loss was read"))
    display.close()
    return out.getvalue(), err.getvalue()


def test_plain_is_one_line_of_words_per_fact() -> None:
    out, _ = plain([started(), prepared(), epoch(1), finished()])
    assert out.splitlines() == [
        f"start run={RUN} experiment=digits model=mlp seed=0 changed=optimizer.lr=0.003",
        "ready device=cpu precision=fp32 parameters=25450 trainable=1290 train=1257 val=180 test=360 source=resident "
        "steps=600 epochs=30",
        "epoch=1 step=20 train_loss=0.2871 train_accuracy=0.91 val_loss=0.3 val_accuracy=0.9742 lr=1.0e-03 "
        "examples_per_s=98120 seconds=0.6 best=yes",
        "done status=completed epoch=30 step=600 best_epoch=28 val_accuracy=0.9749 test_accuracy=0.9722 seconds=12.1 "
        f"peak_memory_mb=412 run={RUN} checkpoint={RUN}/checkpoints/step-00000600",
    ]


def test_plain_has_advice_on_stderr_and_no_escapes_anywhere() -> None:
    out, err = plain(story(200))
    assert err.splitlines()[:2] == ["warning: 2 threads are slower here", "hint: runtime.threads=1"]
    assert "next: dlcli eval calm-otter" in err
    assert "warning" not in out and "\x1b" not in out + err and "\r" not in out + err
    assert len(out.splitlines()) == 200 + 3


def test_plain_quotes_values_with_blanks_and_escapes_control_characters() -> None:
    out, err = plain([finished("failed", reason='bad "word"\n\x1b[31m'), {"event": "note", "message": "a\x1b[2Jb"}])
    assert r'reason="bad \"word\"\n\x1b[31m"' in out
    assert out.count("\n") == 1 and "a\\x1b[2Jb" in err


def test_plain_names_a_metric_by_its_split_and_survives_a_nan() -> None:
    out, _ = plain([{"event": "evaluated", "split": "test", "metrics": {"accuracy": 0.5, "test/loss": math.nan}}])
    assert out == "evaluated split=test test_accuracy=0.5 test_loss=nan\n"


# ---------------------------------------------------------------------------------------------------------- terminal


class Terminal:
    """A pseudo-terminal of a size; `stream` is the program's side, `text` what arrived on the other."""

    def __init__(self, columns: int, rows: int, encoding: str = "utf-8"):
        self._reading_end, writing_end = pty.openpty()
        fcntl.ioctl(writing_end, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.stream: TextIO = os.fdopen(writing_end, "w", encoding=encoding)
        self._parts: list[bytes] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            while part := os.read(self._reading_end, 65536):
                self._parts.append(part)
        except OSError:
            os.close(self._reading_end)  # the other side was closed

    @property
    def text(self) -> str:
        if not self.stream.closed:
            self.stream.close()
        self._reader.join()
        return b"".join(self._parts).decode().replace("\r\n", "\n")


@pytest.fixture(autouse=True)
def ordinary_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)


def show(
    events: list[Event], columns: int = 80, rows: int = 24, *, encoding: str = "utf-8", steps: bool = False
) -> str:
    """All that a terminal receives of a run; with `steps`, the display is asked to draw after every step."""
    terminal = Terminal(columns, rows, encoding)
    display = open_display("auto", stdout=terminal.stream, stderr=terminal.stream)
    for event in events:
        if event["event"] == "epoch" and steps:
            for step in range(event["step"] - 19, event["step"] + 1):
                display._drawn = display._due = 0.0  # type: ignore[attr-defined]
                display.progress(step, lambda: 0.1234)
        display.event(event)
    display.close()
    return terminal.text


def final_lines(text: str) -> list[str]:
    """What stays on an endless screen: follows new lines, cursor up and erased lines; drops colours."""
    lines, row = [""], 0
    for word in re.split(r"(\n|\r|\x1b\[1A|\x1b\[2K)", text):
        if word == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif word == "\x1b[1A":
            row -= 1
        elif word == "\x1b[2K":
            lines[row] = ""
        elif word != "\r":
            lines[row] += ESCAPE.sub("", word)
    return lines


@pytest.mark.parametrize("columns", [80, 160])
@pytest.mark.parametrize("num", [1, 30, 200])
def test_no_line_is_wider_than_the_terminal_and_none_is_cut(columns: int, num: int) -> None:
    text = show(story(num), columns, steps=num == 30)
    lines = [line for part in ESCAPE.sub("\n", text).replace("\r", "\n").split("\n") for line in [part]]
    assert max(map(len, lines)) < columns
    assert "…" not in text.replace("starting …", "") and "..." not in text


@pytest.mark.parametrize("ending", ["completed", "interrupted", "failed", None])
def test_the_cursor_is_hidden_while_it_runs_and_given_back_however_it_ends(ending: str | None) -> None:
    events = story(3)[:-1] + ([finished(ending)] if ending else [])
    text = show(events, steps=True)
    assert text.count(HIDE) == 1 and text.rindex(SHOW) > text.rindex(HIDE)
    if ending is None:
        assert " 3" in text and "train loss" in ESCAPE.sub("", text[text.rindex(HIDE) :])


@pytest.mark.parametrize("steps", [False, True])
def test_every_epoch_is_shown_once_for_good_and_the_best_one_has_the_star(steps: bool) -> None:
    text = show(story(30), steps=steps)
    rows = [line for line in final_lines(text) if re.match(r" *(★ )?\d+ ", line)]
    assert [int(line.split("★")[-1].split()[0]) for line in rows] == list(range(1, 31))
    assert "★ 29" in rows[28] and not any("★" in row for row in rows[21:28])


@pytest.mark.parametrize("columns", [80, 160])
def test_the_header_says_what_is_trained_before_anything_is_loaded(columns: int) -> None:
    text = ESCAPE.sub("", show([started()], columns))
    for fact in (
        "dlcli 0.1.0",
        "digits",
        RUN,
        "model mlp",
        "optimizer adam lr=0.003",
        "schedule cosine",
        "dropout=0.1",
    ):
        assert fact in text
    for fact in ("augmentation none", "30 epochs", "batch 64", "seed 0", "changed   optimizer.lr=0.003"):
        assert fact in text
    assert "l1" not in text and "early_stopping" not in text


def test_then_the_device_the_sizes_and_where_the_data_come_from() -> None:
    text = " ".join(ESCAPE.sub("", show([started(), prepared()], 160)).split())
    assert "cpu Intel Xeon · fp32 · 25,450 parameters, 1,290 trainable · 1,257 train / 180 val / 360 test" in text
    assert "resident: 0.1 MB fit in memory" in text


def test_what_is_trained_later_is_said_before_and_when_it_happens() -> None:
    later = [{"epoch": 2, "groups": ["rest"], "trainable": 25450}]
    woken = {"event": "unfrozen", "step": 20, **later[0]}
    ready = prepared() | {"trainable_later": later}
    events = [started(), ready, epoch(1), woken, epoch(2), finished()]
    text = " ".join(ESCAPE.sub("", show(events, 160)).split())
    assert "25,450 parameters, 1,290 trainable, 25,450 from epoch 2 · 1,257 train" in text
    assert "epoch 2 trains rest too: 25,450 parameters trainable" in text
    out, _ = plain(events)
    assert "trainable=1290 trainable_from_epoch_2=25450 train=1257" in out
    assert "unfrozen groups=rest epoch=2 step=20 trainable=25450" in out.splitlines()


def test_the_progress_line_has_place_loss_and_remaining_time() -> None:
    lines = ESCAPE.sub("\n", show([started(), prepared(), epoch(1), epoch(2)], steps=True)).splitlines()
    bars = [line for line in lines if "loss 0.1234" in line]
    assert any(re.match(r"  epoch 2/30 ━+─+ 7/20  loss 0.1234  0:00 left  run 0:\d\d$", line.rstrip()) for line in bars)
    assert any("epoch 1/30" in line and "20/20" in line and "evaluating" in line for line in bars)


def test_a_run_limited_by_time_has_no_number_of_epochs() -> None:
    text = ESCAPE.sub("", show([started(), prepared(None), epoch(1)], steps=True))
    assert "epoch 1 ━" in text and "None" not in text


def test_the_loss_is_read_only_when_something_is_drawn() -> None:
    terminal, reads = Terminal(80, 24), []
    display = open_display("auto", stdout=terminal.stream, stderr=terminal.stream)
    display.event(prepared())

    def loss() -> float:
        reads.append(1)
        return 0.5

    display.progress(1, loss)
    display._due = math.inf  # type: ignore[attr-defined]
    for step in range(2, 20):
        display.progress(step, loss)
    display.close()
    assert len(reads) <= 1 and terminal.text


def test_quick_epochs_do_not_each_redraw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlcli.reporting.rich_display.monotonic", lambda: 100.0)  # no time passes
    text = show(story(200))
    assert text.count("\x1b[2K") < 30  # the first and the last picture
    assert all(f" {e} " in text for e in range(1, 201))


def test_a_finished_run_shows_curves_result_and_the_next_commands(tmp_path: Path) -> None:
    (tmp_path / "curves.png").write_bytes(b"")
    lines = final_lines(show([*story(30)[:-1], finished(run=str(tmp_path))], 160))
    text = "\n".join(lines)
    assert re.search(r"val acc  50\.0 [▁-█]{14} 96\.8    train loss  2 [▁-█]{14} 0\.0667", text)
    assert "✓ best val accuracy 97.49 % at epoch 28 · test accuracy 97.22 % · 12.1 s · peak 412 MB" in text
    assert f"curves    {tmp_path}/curves.png" in text
    assert "next      dlcli eval calm-otter\n            dlcli runs show calm-otter" in text


def test_an_interrupted_run_says_how_to_continue() -> None:
    event = finished("interrupted", step=74, epoch=4, metrics={}, next=[], reason="SIGINT")
    text = "\n".join(final_lines(show([started(), prepared(), epoch(1), event])))
    assert "■ stopped at epoch 4, step 74 of 600 · SIGINT · saved, resumes exactly" in text
    assert "continue  dlcli resume calm-otter" in text


def test_a_failed_run_says_why_and_not_that_it_was_saved() -> None:
    event = finished("failed", step=74, epoch=4, metrics={}, next=[], reason="the loss is nan\x1b[2J", checkpoint=None)
    text = "\n".join(final_lines(show([started(), prepared(), event])))
    assert "✗ failed at epoch 4, step 74 of 600 · the loss is nan\\x1b[2J" in text
    assert "saved" not in text


def test_a_resumed_run_starts_with_where_it_is() -> None:
    resumed = {"event": "run_resumed", "run": RUN, "step": 1230, "epoch": 2}
    assert f"resumed {RUN} · epoch 2, step 1,230" in ESCAPE.sub("", show([resumed, prepared()]))


def test_a_gan_gets_columns_for_its_own_metrics() -> None:
    metrics = {"train/loss/generator": 1.2, "train/loss/discriminator": 0.7, "val/frechet": 31.25}
    text = "\n".join(final_lines(show([started(), prepared(monitor="val/frechet"), epoch(1, metrics)])))
    assert "discriminator loss  generator loss  val frechet" in text and "31.2500" in text


def test_a_metric_that_appears_later_gets_a_column_too() -> None:
    few: list[Event] = [epoch(e, {"train/loss": 1.0}) for e in range(1, 4)]
    lines = final_lines(show([started(), prepared(), *few, epoch(4)], 160))
    assert sum(line.lstrip().startswith("epoch") for line in lines) == sum("val acc %" in line for line in lines) == 1
    late = final_lines(
        show([started(), prepared(), *(epoch(e, {"train/loss": 1.0}) for e in range(1, 20)), epoch(20)], 160)
    )
    headings = [line for line in late if line.lstrip().startswith("epoch")]
    assert "val acc %" not in headings[0] and "val acc %" in headings[-1]


def test_without_colour_the_text_is_the_same_but_has_no_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    coloured = show(story(3))
    monkeypatch.setenv("NO_COLOR", "1")
    plain_text = show(story(3))
    colours = re.compile(r"\x1b\[[0-9;]*(?<![0-9])(3[0-7]|9[0-7]|38)[;m]")
    assert colours.search(coloured) and not colours.search(plain_text)
    assert final_lines(coloured) == final_lines(plain_text)


def test_a_terminal_of_ascii_gets_ascii() -> None:
    text = show([*story(3), started(run="outputs/é")], encoding="ascii", steps=True)
    assert text.isascii() and " * 2 " in text and "outputs/\\xe9" in text and "####" in text


def test_values_cannot_steer_the_terminal() -> None:
    evil = "\x1b]0;owned\x07\x9b2J"
    events = [started(name=evil, overrides=[evil], experiment=evil), {"event": "note", "message": evil, "hint": evil}]
    text = show([*events, prepared() | {"device_name": evil}, epoch(1, {f"train/{evil}": 1.0})])
    assert "\x1b]" not in text and "\x07" not in text and "\x9b" not in text
    assert "owned" in text


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_terminal_without_escapes_gets_plain_lines(term: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", term)
    terminal = Terminal(80, 24)
    assert isinstance(open_display("auto", stdout=terminal.stream, stderr=terminal.stream), PlainDisplay)
    assert terminal.text == ""


def test_a_print_by_somebody_else_appears_above_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(80, 24)
    monkeypatch.setattr(sys, "stdout", terminal.stream)
    display = open_display("auto")
    display.event(prepared())
    print("from elsewhere")
    display.close()
    assert sys.stdout is terminal.stream
    assert "from elsewhere\n" in ESCAPE.sub("", terminal.text)


def test_a_very_small_window_and_one_without_a_size_are_drawn() -> None:
    assert "97.42" in show([started(), prepared(), epoch(1), finished()], 30, 5, steps=True)
    assert "97.42" in show([started(), prepared(), epoch(1), finished()], 0, 0, steps=True)


# ------------------------------------------------------------------------------------------------- streams that break


class Broken(io.StringIO):
    """Accepts `writes` writes, then is a pipe that nobody reads."""

    def __init__(self, writes: int = 0, *, terminal: bool = False):
        super().__init__()
        self.writes, self.tries, self.terminal = writes, 0, terminal

    def write(self, text: str) -> int:
        self.tries += 1
        if self.tries > self.writes:
            raise BrokenPipeError(32, "Broken pipe")
        return super().write(text)

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.parametrize("make", [lambda s: JsonDisplay(s), lambda s: PlainDisplay(s, io.StringIO())])
def test_a_broken_pipe_is_tried_once_and_never_raises(make: Callable[[TextIO], Any]) -> None:
    stream = Broken(writes=1)
    display = make(stream)
    for event in story(3):
        display.event(event)
    display.close()
    assert stream.tries == 2
    assert stream.getvalue().count("\n") == 1


def test_a_terminal_that_goes_away_does_not_stop_the_run() -> None:
    stream = Broken(writes=3, terminal=True)
    display = open_display("auto", stdout=stream, stderr=stream)
    for event in story(3):
        display.event(event)
        display.progress(1, lambda: 0.5)
    display.close()
    assert stream.tries == 4


def test_a_closed_stream_is_like_a_broken_one() -> None:
    stream = io.StringIO()
    stream.close()
    display = open_display("auto", stdout=stream, stderr=stream)
    display.event(started())
    display.close()
    assert display._out.broken  # type: ignore[attr-defined]


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
from dlcli.reporting.display import open_display
display = open_display({mode!r})
for step in range(20000):
    display.event({{"event": "epoch", "epoch": step, "step": step, "metrics": {{}}}})
display.close()
assert not {{"rich", "torch", "matplotlib"}} & set(sys.modules)
print("the run went on", file=sys.stderr)
"""


@pytest.mark.parametrize("mode", ["auto", "json"])
@pytest.mark.parametrize("sink", ["| head -1", "> /dev/full"])
def test_a_process_ends_well_when_nobody_reads(mode: str, sink: str) -> None:
    script = SCRIPT.format(root=str(Path(__file__).parents[1]), mode=mode)
    command = ["bash", "-c", f'set -o pipefail; "$0" -c "$1" {sink}', sys.executable, script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "the run went on\n")
    assert done.stdout.count("\n") == (1 if "head" in sink else 0)


# -------------------------------------------------------------------------------------------------- errors and tables


def mistakes() -> ConfigError:
    problems = [
        Problem("optimzer.lr=0.1", "no such key", "optimizer.lr"),
        Problem("trainer.epochs=ten", 'must be a whole number ≥ 1, got the word "ten"'),
        Problem("model=lenett", "no such model.", "lenet"),
    ]
    return ConfigError("3 problems", problems=problems, hint="dlcli train mnist optimizer.lr=0.1 model=lenet")


def test_every_mistake_of_a_command_is_told_with_its_word_and_a_better_one() -> None:
    out = io.StringIO()
    print_error(mistakes(), stream=out)
    assert out.getvalue().splitlines() == [
        "error: 3 problems in the command, nothing was started",
        "",
        "  1  optimzer.lr=0.1     no such key. Did you mean optimizer.lr ?",
        '  2  trainer.epochs=ten  must be a whole number ≥ 1, got the word "ten"',
        "  3  model=lenett        no such model. Did you mean lenet ?",
        "",
        "hint: dlcli train mnist optimizer.lr=0.1 model=lenet",
    ]


def test_an_error_is_what_and_what_to_do() -> None:
    error = DataError("no file at /data\x1b[31m\nhint: rm -rf", hint="dataset.root=FOLDER")
    assert render_error(error) == "error: no file at /data\\x1b[31m\\nhint: rm -rf\nhint: dataset.root=FOLDER\n"
    assert render_error(DataError("nothing")) == "error: nothing\n"


def test_on_a_terminal_an_error_has_a_red_cross_and_hangs_below_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(60, 24)
    print_error(mistakes(), stream=terminal.stream)
    text = terminal.text
    assert text.startswith("\x1b[31m✗\x1b[0m 3 problems")
    assert max(len(line) for line in ESCAPE.sub("", text).splitlines()[:-1]) <= 60
    assert '\n                         word "ten"\n' in text
    monkeypatch.setenv("NO_COLOR", "1")
    assert render_error(mistakes(), terminal=True).startswith("✗ 3 problems")


def test_an_error_can_be_told_in_ascii() -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print_error(DataError("✗ é ★"), stream=out)
    out.seek(0)
    assert out.read() == "error: x \\xe9 *\n"


def test_a_table_for_a_pipe_is_aligned_and_greppable() -> None:
    out = io.StringIO()
    print_table("runs", ["name", "score"], [["calm-otter", "97.4"], ["a\nb", None]], stream=out)
    assert out.getvalue() == "name        score\ncalm-otter   97.4\na\\nb            -\n"


def test_an_empty_table_is_its_header() -> None:
    out = io.StringIO()
    print_table("runs", ["name", "score"], [], stream=out)
    assert out.getvalue() == "name  score\n"


def test_a_table_as_json_is_the_rows() -> None:
    out = io.StringIO()
    print_table("runs", ["name"], [["x"]], json_rows=[{"name": "x", "score": math.nan}], stream=out)
    assert [json.loads(line) for line in out.getvalue().splitlines()] == [{"name": "x", "score": None}]


@pytest.mark.parametrize("columns", [40, 80])
def test_a_table_on_a_terminal_folds_what_is_long_and_cuts_nothing(columns: int) -> None:
    terminal, long = Terminal(columns, 24), "word" * 30
    print_table("runs", ["name", "score"], [[long, 1.5], ["\x1b[2J[red]b", 2]], stream=terminal.stream)
    text = ESCAPE.sub("", terminal.text)
    assert "runs\n" in text and "…" not in text and "\\x1b[2J[red]b" in text
    assert "".join(re.findall("(?:word|wor|wo|w|ord|rd|d|o|r)+", text.split("score")[1].split("\\x1b")[0])) == long
    assert max(map(len, text.splitlines())) <= columns


# ------------------------------------------------------------------------------------------------------------- pieces


def test_unknown_modes_are_refused() -> None:
    with pytest.raises(ValueError, match="'fancy' is not known"):
        open_display("fancy")


def test_an_output_spells_in_its_encoding() -> None:
    assert encodable("✓ ★ é", "latin-1") == "+ * é"
    assert encodable("✓", "utf-8") == "✓"
    assert encodable("é", "no-such-encoding") == "\\xe9"
    assert Output(io.StringIO()).write("abc") == 3


def test_every_symbol_of_the_terminal_display_has_an_ascii_form() -> None:
    folder = Path(display_module.__file__).parent
    names = ("display.py", "rich_display.py", "plain_display.py", "format.py", "output.py")
    source = "".join((folder / name).read_text(encoding="utf-8") for name in names)
    symbols = {c for c in source if not c.isascii()} - set("▁▂▃▄▅▆▇█")
    assert symbols <= {chr(number) for number in output.ASCII}


def test_a_narrow_table_keeps_the_epoch_and_the_monitored_score_to_the_last() -> None:
    metrics = ["train/loss", "train/accuracy", "val/loss", "val/accuracy"]
    headings = [Columns(metrics, "val/accuracy", width).heading() for width in range(20, 140)]
    assert headings[0].split("  ")[-1] == "val acc %" and "epoch" in headings[0]
    assert all(len(heading) < width for width, heading in enumerate(headings, 20))
    assert all(name in headings[-1] for name in ("train loss", "val loss", "train acc %", "lr", "examples/s", "time"))


def test_numbers_keep_their_width() -> None:
    assert [metric_value("val/loss", v) for v in (0.0, 12.5, 1e-7, 3e8, math.nan)] == [
        "0.0000",
        "12.5000",
        "1.00e-07",
        "3.00e+08",
        "nan",
    ]
    assert metric_value("val/accuracy", 0.98766) == "98.77 %"
    assert metric_value("val/loss", None) == "–"


def test_a_sparkline_rises_falls_and_skips_what_is_no_number() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([1.0, math.nan, 0.0]) == "█▁"
    assert sparkline([2.0, 2.0]) == "▄▄"
    assert sparkline([]) == ""
    assert len(sparkline(list(range(1000)))) == 14 and sparkline([0.0, 1.0], ascii_only=True) == "_#"


def test_lines_break_between_items_only() -> None:
    assert flow(["one two", "three", "four"], 16) == ["  one two", "  three · four"]
    assert flow(["an item longer than the line", "b"], 16) == ["  an item longer than the line", "  b"]


@pytest.mark.parametrize(
    ("node", "name"),
    [
        ({"_target_": "dlcli.models.lenet5.LeNet5"}, "lenet5"),
        ({"_target_": "dlcli.models.resnet.build_resnet"}, "resnet"),
        ({"_target_": "torch.optim.AdamW"}, "adamw"),
        ({"facts": {}, "generator": {"_target_": "dlcli.models.gan_mlp.Generator"}}, "gan_mlp"),
        ({}, None),
        (None, None),
    ],
)
def test_a_node_is_called_by_a_short_name(node: object, name: str | None) -> None:
    assert choice(node) == name


def test_a_summary_of_an_empty_config_is_short_but_there() -> None:
    assert summary_of({}, partial(option_of, config={}, choices=None)) == ["regularization none", "augmentation none"]


def test_a_summary_calls_the_model_as_it_was_chosen_and_augmentation_none_where_nothing_is_moved() -> None:
    config = {
        "model": {"_target_": "dlcli.models.recurrent.Recurrent"},
        "augmentation": {"rotation": None, "flip": None, "padding_mode": "zeros"},
    }
    chosen = partial(option_of, config=config, choices={"model": "lstm"})
    assert summary_of(config, chosen) == ["model lstm", "regularization none", "augmentation none"]
    config["augmentation"]["rotation"] = 10
    assert "augmentation rotation=10 padding_mode=zeros" in summary_of(
        config, partial(option_of, config=config, choices=None)
    )
    assert "model recurrent" in summary_of(config, partial(option_of, config=config, choices={}))
