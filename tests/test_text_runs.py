"""Whole runs on texts: killed, they end bit for bit like one that was not; they go on with texts, and translate."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import Forge, differences, killed_and_resumed, num_lines, outcome, run_of
from program import environment, events_of
from test_language_model import PROSE

QUICK = (
    "shakespeare", "dataset=text", "dataset.context_length=16", "model.hidden_size=16", "model.num_layers=1",
    "model.num_heads=2",
    "model.ffn_size=32", "dataset.batch_size=8", "regularization.dropout=0.1", "dataset.val_size=0.1",
    "dataset.test_size=0.1", "tracker=none", "runtime.device=cpu", "trainer.epochs=3", "trainer.save_every=7",
    "trainer.log_every=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def forge() -> Iterator[Forge]:
    with Forge() as forge:
        yield forge


def test_a_killed_language_model_ends_like_one_that_was_not_and_goes_on_with_texts(
    forge: Forge, tmp_path: Path
) -> None:
    """With dropout, and blocks that are cut elsewhere in each epoch. A vocabulary of byte pairs is peeked at."""
    (tmp_path / "book.txt").write_text(PROSE * 12)
    words = (*QUICK, f"dataset.path={tmp_path / 'book.txt'}", "dataset.tokenizer=bpe")
    child = forge.run("train", *words, cwd=tmp_path / "whole")
    assert child.code == 0, child.stderr
    reference = run_of(tmp_path / "whole")
    run, hits = killed_and_resumed(forge, tmp_path / "killed", words, lines=num_lines(reference), kills=1, seed=0)
    assert hits == 1
    assert differences(outcome(run), outcome(reference)) == []

    def answers(*words: str) -> list[dict[str, Any]]:
        child = forge.run(*words, "--json", cwd=tmp_path / "killed")
        assert child.code in (0, 3), child.stderr
        return events_of(child.stdout)

    (scored,) = answers("eval")
    assert scored["metrics"]["test/bits_per_character"] > 0
    first, second = answers("generate", "--prompt", "she", "--tokens", "20", "--seed", "3", "--num", "2")
    assert (first["prompt"], first["seed"], second["seed"]) == ("she", 3, 4)
    assert first["text"] and first["text"] != second["text"]
    assert answers("generate", "--prompt", "she", "--tokens", "20", "--seed", "4") == [second]
    (answered,) = answers("predict", "she")
    assert answered["continuation"] and len(answered["next"]) == 3
    generated_by_hand(tmp_path / "killed")
    (tmp_path / "beginning.txt").write_text("she")
    in_file, absent = answers("predict", str(tmp_path / "beginning.txt"), "none.txt")
    assert in_file == answered and absent["error"] == "cannot be read: No such file or directory"


def generated_by_hand(cwd: Path) -> None:
    """The prompt on stdin; no seed where none could change the text; a pipe that is closed."""

    def start(*words: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-m", "dlcli", "generate", *words]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=cwd, env=environment(), stdin=pipe, stdout=pipe, stderr=pipe)

    for words, is_told in ((("--temperature", "0"), False), (("--top-k", "1"), False), (("--top-k", "2"), True)):
        text, told = start("--prompt", "-", "--tokens", "5", *words).communicate(b"she")
        assert text.startswith(b"she") and (b"--seed" in told) == is_told
    with start("--tokens", "100000", "--seed", "0") as child:
        assert child.stdout is not None and child.stderr is not None
        assert len(child.stdout.read(10)) == 10
        child.stdout.close()
        told = child.stderr.read()
    assert (child.returncode, told) == (141, b""), "as a program that a closed pipe ends"


def test_a_killed_translator_ends_like_one_that_was_not_and_translates(forge: Forge, tmp_path: Path) -> None:
    words_of = list(itertools.product(("red", "blue", "old"), ("bird", "bell", "sea", "storm"), ("comes", "goes")))
    lines = [f"the {a} {b} {c}\tla {b} {a} {c}" for a, b, c in words_of] * 4
    (tmp_path / "pairs.tsv").write_text("".join(f"{line} {i}\n" for i, line in enumerate(lines)))
    words = (
        "multi30k", "dataset=pairs", f"dataset.path={tmp_path / 'pairs.tsv'}", "dataset.num_tokens=280",
        "model.hidden_size=16", "model.num_layers=1", "model.num_heads=2", "model.ffn_size=32", "dataset.batch_size=8",
        "tracker=none", "runtime.device=cpu", "trainer.epochs=4", "trainer.save_every=7", "trainer.log_every=1",
    )  # fmt: skip
    child = forge.run("train", *words, cwd=tmp_path / "whole")
    assert child.code == 0, child.stderr
    reference = run_of(tmp_path / "whole")
    run, hits = killed_and_resumed(forge, tmp_path / "killed", words, lines=num_lines(reference), kills=1, seed=0)
    assert hits == 1
    assert differences(outcome(run), outcome(reference)) == []
    child = forge.run("eval", "--json", cwd=tmp_path / "killed")
    assert 0 <= events_of(child.stdout)[0]["metrics"]["test/bleu"] <= 100
    child = forge.run("predict", "the red bird", " ", "--json", cwd=tmp_path / "killed")
    first, second = events_of(child.stdout)
    told = [first["translation"], *first["others"]]
    assert 1 <= len(told) <= 3 and len(set(told)) == len(told), "three at most, no two alike"
    assert second == {"input": " ", "error": "is empty"}
    child = forge.run("predict", "the red bird", "task.beam_size=1", "--json", cwd=tmp_path / "killed")
    assert events_of(child.stdout)[0]["others"] == [], "the likeliest token, always: one translation"
    child = forge.run("eval", "task.beam_size=4", "--json", cwd=tmp_path / "killed")
    assert 0 <= events_of(child.stdout)[0]["metrics"]["test/bleu"] <= 100, "by another beam than the run's"
    (tmp_path / "killed" / "some.tsv").write_text("the red bird\tla bird red\n")
    child = forge.run("predict", "some.tsv", "none.tsv", "--json", cwd=tmp_path / "killed")
    in_file, absent = events_of(child.stdout)
    assert in_file == first and absent["error"] == "cannot be read: No such file or directory"
