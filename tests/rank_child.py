"""A rank for the tests of `dlcli.runtime.launch`: python tests/rank_child.py WHAT; it knows nothing of torch."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

RANK = int(os.environ["RANK"])


def main(what: str) -> int:
    Path(f"pid-{RANK}").write_text(str(os.getpid()))
    Path(f"started-{RANK}-{os.environ['TORCHELASTIC_RESTART_COUNT']}").write_text(os.environ["TORCHELASTIC_RUN_ID"])
    name, _, value = what.partition("=")
    if name == "exit" and RANK == 1:
        return int(value)
    if name == "die" and RANK == 1 and int(os.environ["TORCHELASTIC_RESTART_COUNT"]) < int(value):
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "die" and os.environ["TORCHELASTIC_RESTART_COUNT"] == value:
        return 0
    return wait_for_a_signal()


def wait_for_a_signal() -> int:
    """As a run does: note the signal, save for a while, end with 128 + its number."""
    received: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: received.append(number))
    Path(f"ready-{RANK}").touch()
    for _ in range(600):
        if received:
            time.sleep(0.3)
            Path(f"signals-{RANK}").write_text(" ".join(map(str, received)))
            return 128 + received[0]
        time.sleep(0.05)
    return 9


sys.exit(main(sys.argv[1]))
