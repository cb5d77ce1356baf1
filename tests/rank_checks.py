"""What two real ranks show. A test file has functions `check_...(ranks)`, which both ranks run, one after another.

One pair of processes for all checks of a file: each of them imports torch. This file is what they run.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import traceback
from pathlib import Path
from typing import Any

from program import REPOSITORY

from dlcli.runtime.launch import Forwarding, Group


def names(checks: dict[str, Any]) -> list[str]:
    return [name for name in checks if name.startswith("check_")]


def run_on_two_ranks(file: str, folder: Path) -> dict[str, str]:
    """What went wrong in each check of a test file, by its name: empty where nothing did."""
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    group = Group(["-W", "error", __file__, file, str(folder)], 2, {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"})
    with Forwarding() as forwarding:
        assert group.watch(forwarding) == 0, "a rank ended before its report"
    reports = [json.loads(path.read_text()) for path in sorted(folder.glob("report-*"))]
    return {name: "\n".join(report[name] for report in reports).strip() for name in reports[0]}


def main(file: str, folder: str) -> None:
    """Run the checks of a test file on this rank."""
    import torch

    from dlcli.runtime.rendezvous import find_ranks, join_ranks

    place = find_ranks()
    assert place is not None
    checks = runpy.run_path(file)
    ranks = join_ranks(place, torch.device("cpu"), timeout_s=20)
    report = {}
    for name in names(checks):
        try:
            checks[name](ranks)
            report[name] = ""
        except Exception:
            report[name] = f"rank {ranks.rank}: {traceback.format_exc()}"
    Path(folder, f"report-{ranks.rank}").write_text(json.dumps(report))
    ranks.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
