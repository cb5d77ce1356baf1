"""What is held out may be so little that its scores are chance: then a run says so, whatever the kind of data."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from program import REPOSITORY, dlcli, events_of

from dlcli.training.checks import small_splits

PACKAGED = sorted((REPOSITORY / "conf" / "dataset").glob("*.yaml"))


def test_a_run_on_three_sentences_says_what_its_scores_are_worth(tmp_path: Path) -> None:
    (tmp_path / "three.tsv").write_text("great film\tpos\nawful film\tneg\nlovely film\tpos\n")
    words = ("tracker=none", "runtime.threads=1", "runtime.device=cpu", "trainer.epochs=1", "--json")
    done = dlcli("train", "sentences", "dataset.path=three.tsv", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    notes = [event["message"] for event in events_of(done.stdout) if event["event"] == "note"]
    for split in ("validation", "test"):
        assert f"the {split} split has 1 example: its scores mean little" in notes


@pytest.mark.parametrize(
    ("kind", "count", "is_told"),
    [
        ("images", 29, True),
        ("images", 30, False),
        ("table", 3, True),
        ("masks", 3, True),
        ("masks", 16, False),  # of many pixels each
        ("stream", 3, False),  # of many characters each
        ("images", 0, False),  # there is none
    ],
)
def test_how_many_examples_are_few(kind: str, count: int, is_told: bool) -> None:
    told = small_splits({"facts": {"gives": kind}}, {"validation": count, "test": 10_000})
    assert told == ((f"the validation split has {count} examples: its scores mean little",) if is_told else ())


def test_packaged_validation_splits_are_large_enough() -> None:
    sizes = 0
    for path in PACKAGED:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(settings["val_size"], int):
            sizes += 1
            assert small_splits(settings, {"validation": settings["val_size"]}) == (), path.name
    assert sizes > 5
