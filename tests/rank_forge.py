"""Several ranks of one run as forked children of one process that has imported torch: starting them costs nothing.

    with RankForge() as forge:
        done = run_ranks(forge, "train", "digits", cwd=folder)     # two ranks, found as torchrun's would be

Before its test split is scored, each rank writes what it holds: `held(folder)`.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from faults import Child, Forge


class RankForge(Forge):
    program = str(Path(__file__).with_name("rank_observer.py"))  # which lets each rank write down what it holds


def start_ranks(forge: Forge, *words: str, cwd: Path, ranks: int = 2, **env: str) -> list[Child]:
    """`dlcli WORDS` on each of several ranks, with what torchrun would tell them."""
    shared = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())} | env
    return [forge.start(*words, cwd=cwd, **shared, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(ranks)]


def run_ranks(forge: Forge, *words: str, cwd: Path, ranks: int = 2, **env: str) -> list[Child]:
    """The same, to their end."""
    children = start_ranks(forge, *words, cwd=cwd, ranks=ranks, **env)
    for child in children:
        child.wait()
    return children


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def held(cwd: Path) -> list[dict[str, Any]]:
    """What each rank held at the end of its training, by name: the bits of its tensors, its scores."""
    return [json.loads(path.read_text()) for path in sorted(cwd.glob(".held-*"))]
