"""What only a GPU can show; skipped elsewhere, and says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from program import dlcli, events_of
from safetensors.torch import load_file

pytestmark = pytest.mark.gpu
WORDS = ("runtime=gpu", "runtime.deterministic=true", "schedule=constant", "tracker=none", "augmentation=light")


@pytest.fixture(autouse=True)
def gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


def weights(run: str) -> dict[str, torch.Tensor]:
    return load_file(Path(run) / "checkpoints" / "last" / "model.safetensors")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_learns_and_an_extended_one_ends_like_one_at_once(tmp_path: Path, precision: str) -> None:
    words = ("digits", *WORDS, f"runtime.precision={precision}", "--json")
    whole = events_of(dlcli("train", *words, "trainer.epochs=12", cwd=tmp_path).stdout)[-1]
    assert whole["metrics"]["test/accuracy"] > 0.85
    half = events_of(dlcli("train", *words, "trainer.epochs=6", cwd=tmp_path).stdout)[-1]
    dlcli("resume", half["run"], "trainer.epochs=12", cwd=tmp_path)
    first, second = weights(whole["run"]), weights(half["run"])
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_checkpoint_of_a_gpu_is_scored_on_a_cpu(tmp_path: Path) -> None:
    run = events_of(dlcli("train", "digits", *WORDS, "trainer.epochs=6", "--json", cwd=tmp_path).stdout)[-1]
    scored = events_of(dlcli("eval", run["run"], "runtime.device=cpu", "--json", cwd=tmp_path).stdout)[-1]
    assert scored["metrics"]["test/accuracy"] == pytest.approx(run["metrics"]["test/accuracy"], abs=0.02)


def test_a_loss_that_is_no_number_ends_with_6_and_a_finite_checkpoint(tmp_path: Path) -> None:
    words = ("digits", *WORDS, "optimizer=sgd", "optimizer.lr=1000", "trainer.epochs=5", "--json")
    done = dlcli("train", *words, cwd=tmp_path)
    assert done.returncode == 6, done.stderr
    run = events_of(done.stdout)[-1]["run"]
    if (Path(run) / "checkpoints" / "last").exists():
        assert all(torch.isfinite(tensor).all() for tensor in weights(run).values())
