"""`dlcli tune`: what it proposes is measured, and helps."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from program import QUICK, dlcli, events_of

WORDS = ("digits", "runtime.threads=1", "runtime.device=cpu")


def proposed(folder: Path, what: str, *words: str) -> tuple[list[dict[str, object]], dict[str, object]]:
    done = dlcli("tune", what, *WORDS, *words, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    *rows, last = events_of(done.stdout)
    assert {row["event"] for row in rows} == {"measured"} and last["event"] == "proposed"
    assert not (folder / "outputs").exists()
    return rows, last


def loss_after_an_epoch(folder: Path, lr: float) -> float:
    words = ("trainer.epochs=1", "schedule=constant", f"optimizer.lr={lr:g}")
    done = dlcli("train", *QUICK, *words, "--json", "--outputs", f"{lr:g}", cwd=folder)
    assert done.returncode == 0, done.stderr
    return events_of(done.stdout)[-1]["metrics"]["val/loss"]


def test_the_learning_rate_proposed_learns_faster_than_far_smaller_and_larger_ones(tmp_path: Path) -> None:
    _, last = proposed(tmp_path, "lr")
    lr = float(str(last["words"]).split("=")[1].rstrip("']"))
    assert str(last["command"]).startswith("dlcli train digits")
    losses = [loss_after_an_epoch(tmp_path, lr * factor) for factor in (0.02, 1.0, 100.0)]
    assert losses[1] == min(losses), (lr, losses)


def test_batch_sizes_double_and_the_proposed_one_is_among_them(tmp_path: Path) -> None:
    rows, last = proposed(tmp_path, "batch", "model.hidden=[16]")
    sizes = [row["batch_size"] for row in rows]
    assert sizes[:3] == [8, 16, 32] and all(b == 2 * a for a, b in pairwise(sizes))
    assert last["words"] in [[f"dataset.batch_size={size}"] for size in sizes]


def test_images_that_fit_in_memory_need_no_workers(tmp_path: Path) -> None:
    rows, last = proposed(tmp_path, "workers")
    assert [row["workers"] for row in rows][:2] == ["resident", 0]
    assert last["words"] == ["dataset.num_workers=0", "dataset.in_memory=auto"]


@pytest.mark.parametrize("word", ["optimizer.lrr=1", "task=distillation"])
def test_a_mistake_is_told_before_anything_is_measured(tmp_path: Path, word: str) -> None:
    done = dlcli("tune", "lr", *WORDS, word, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
