"""What the ranks of tests/rank_forge.py are forked from: dlcli as it is, but each rank writes down what it holds."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any


def observe() -> None:
    """Let every session write down what its rank holds."""
    from dlcli.training.session import Session

    score = Session._test

    def note_and_score(session: Session) -> None:
        rank = session.ranks.rank
        Path(f".held-{rank}").write_text(json.dumps(holdings(session.training)))
        score(session)

    Session._test = note_and_score  # type: ignore[method-assign]


def holdings(training: Any) -> dict[str, Any]:
    from dlcli.training.state import optimizer_tensors

    tensors = dict(training.task.state_dict())
    for phase, optimizer in training.optimizers.items():
        state, _ = optimizer_tensors(phase, optimizer)
        tensors |= state
    for phase, average in training.averages.items():
        tensors |= {f"average/{phase}/{name}": tensor for name, tensor in average.shadow.items()}
    found = {name: digest(tensor) for name, tensor in tensors.items()}
    progress = asdict(training.progress)
    return found | {"lr": training.lr()} | {key: progress[key] for key in ("step", "scores", "evaluations", "examples")}


def digest(tensor: Any) -> str:
    whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return hashlib.sha256(whole.detach().contiguous().numpy().tobytes()).hexdigest()


def main() -> None:
    import torch.distributed

    assert torch.distributed.is_available()
    observe()
    from faults import serve

    for answer in serve():
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
