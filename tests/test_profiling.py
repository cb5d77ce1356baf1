"""`dlcli train --profile`: what it writes, and that it changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from program import QUICK, dlcli, events_of
from safetensors.torch import load_file


def trained(folder: Path, *words: str) -> tuple[Path, str]:
    done = dlcli("train", *QUICK, *words, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert not [line for line in done.stderr.splitlines() if "profiler" in line or "gpu" in line.lower()]
    return Path(events_of(done.stdout)[-1]["run"]), done.stdout


@pytest.mark.parametrize("words", [(), ("trainer.max_steps=3",)], ids=["long", "short"])
def test_a_profile_names_the_most_expensive_operations_and_changes_no_bit(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    run, said = trained(tmp_path, *words, "--profile")
    note = next(e for e in events_of(said) if e["event"] == "note" and "most expensive operations" in e["message"])
    assert "%" in note["message"] and "trace.json" in note["hint"]
    trace = json.loads((run / "profile" / "trace.json").read_text())
    assert any("aten::" in str(event.get("name")) for event in trace["traceEvents"])
    assert "aten::addmm" in (run / "profile" / "operations.txt").read_text()
    plain, _ = trained(tmp_path, *words)
    ours, theirs = (load_file(r / "checkpoints" / "last" / "model.safetensors") for r in (run, plain))
    assert all(bool((ours[name] == theirs[name]).all()) for name in theirs)
