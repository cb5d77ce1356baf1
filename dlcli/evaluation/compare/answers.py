"""Which held-out examples a network got right: kept with its run, so that two are compared without torch.

eval/test-right.json    {"weights": sha256 of the checkpoint's weights, "fingerprint": of the split's data,
                         "rows": sha256 of its row numbers, "examples": N, "right": N bits in hexadecimal}
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlcli.errors import CheckpointError, DataError, EnvironmentFault
from dlcli.runs.disk import read_json, write_atomically
from dlcli.runs.find import find_checkpoint
from dlcli.runs.folder import RunFolder

if TYPE_CHECKING:
    from dlcli.evaluation.score import Report


@dataclass(frozen=True)
class RightAnswers:
    """weights, fingerprint, rows: sha256 (hex) of what answered and what was asked; right: a bit an example, hex."""

    weights: str
    fingerprint: str
    rows: str
    examples: int
    right: str

    def is_about_the_same(self, other: RightAnswers) -> bool:
        """Whether both were asked the same examples."""
        return (self.fingerprint, self.rows, self.examples) == (other.fingerprint, other.rows, other.examples)

    def lost_and_won(self, other: RightAnswers) -> tuple[int, int]:
        """How many only this network got right, and how many only the other."""
        mine, theirs = int(self.right, 16), int(other.right, 16)
        both = mine & theirs
        return (mine ^ both).bit_count(), (theirs ^ both).bit_count()


def answers_of(
    run: RunFolder, split: str, *, search: Sequence[Path] | None = None, trusted: Sequence[str] = ()
) -> RightAnswers:
    """Those of a run's best checkpoint, as kept; else asked for now, which imports torch, and kept.

    Errors: CheckpointError for a checkpoint that is none, or of no classifier; DataError where the data have changed.
    """
    folder = find_checkpoint(str(run.path), run.outputs)
    if found := kept(run, split, weights_of(folder)):
        return found
    print(f"evaluating {run.name} on the {split} split", file=sys.stderr, flush=True)
    from dlcli.evaluation import score
    from dlcli.inference import trained
    from dlcli.training.allow_list import Builder

    loaded = trained.load(folder, builder=Builder.for_search(search, trusted))
    report = score.score(loaded, trained.read_data(loaded), split)
    if report.is_same_data is False:
        message = f"the {split} data are not those that {run.name} was trained with"
        raise DataError(message, hint="Name their folder: DLCLI_DATA=DIR")
    answers = from_report(report, weights_of(folder))
    if answers is None:
        raise CheckpointError(
            f"{run.name} is not a classifier: it gets no example right or wrong", hint="dlcli runs ls"
        )
    keep(run, split, answers)
    return answers


def from_report(report: Report, weights: str) -> RightAnswers | None:
    """The answers in an evaluation; None where nothing was classified."""
    if report.rows is None or report.right is None:
        return None
    rows = hashlib.sha256(report.rows.numpy().tobytes()).hexdigest()
    bits = "".join("01"[right] for right in report.right.tolist())
    return RightAnswers(weights, report.fingerprint, rows, len(bits), f"{int(bits, 2):x}")


def keep(run: RunFolder, split: str, answers: RightAnswers) -> None:
    """Write them down; a folder that cannot be written keeps none, and nobody needs it to."""
    with suppress(OSError, EnvironmentFault):
        _file(run, split).parent.mkdir(exist_ok=True)
        write_atomically(_file(run, split), json.dumps(asdict(answers)).encode())


def keep_of(folder: Path, checkpoint: Path, report: Report) -> None:
    """Keep an evaluation's answers where they are those of the run's best checkpoint, and somebody may compare it."""
    run = RunFolder(folder)
    if report.is_same_data is False or (run.checkpoints / "best").resolve() != checkpoint.resolve():
        return
    if found := from_report(report, weights_of(checkpoint)):
        keep(run, report.split, found)


def kept(run: RunFolder, split: str, weights: str) -> RightAnswers | None:
    """The answers stored in the run's folder, if they are from these weights."""
    content = read_json(_file(run, split)) or {}
    kinds: dict[str, Any] = {"weights": str, "fingerprint": str, "rows": str, "examples": int, "right": str}
    if content.keys() != kinds.keys() or any(type(content[key]) is not kind for key, kind in kinds.items()):
        return None
    answers = RightAnswers(**content)
    return answers if answers.weights == weights and _is_hex(answers.right) else None


def weights_of(checkpoint: Path) -> str:
    """sha256 of a checkpoint's weights, as it says itself; empty where it does not."""
    body = (read_json(checkpoint / "checkpoint.json") or {}).get("body")
    try:
        return str(body["files"]["model.safetensors"]["sha256"])  # type: ignore[index]
    except (KeyError, TypeError):
        return ""


def _file(run: RunFolder, split: str) -> Path:
    return run.path / "eval" / f"{split}-right.json"


def _is_hex(text: str) -> bool:
    try:
        return int(text, 16) >= 0
    except ValueError:
        return False
