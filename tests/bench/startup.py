"""CPU time of `dlcli --help` against that of a one-command Typer app, in turn."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROUNDS = 15
ONE_COMMAND = '''
import typer

def main(
    name: str = typer.Argument("world", help="Whom to greet."), loud: bool = typer.Option(False, help="Shout.")
) -> None:
    """Say hello."""

typer.run(main)
'''


def cpu_s(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONDONTWRITEBYTECODE": ""})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def run() -> str:
    with tempfile.TemporaryDirectory() as folder:
        app = Path(folder, "app.py")
        app.write_text(ONE_COMMAND)
        ours = [sys.executable, "-m", "dlcli", "--help"]
        theirs = [sys.executable, str(app), "--help"]
        pairs = [(cpu_s(ours), cpu_s(theirs)) for _ in range(ROUNDS + 1)][1:]
    ratios = [a / b for a, b in pairs]
    a, b = (statistics.median(side) for side in zip(*pairs, strict=True))
    return (
        "| | CPU s | against it |\n|---|---|---|\n"
        f"| dlcli --help | {a:.3f} | |\n"
        f"| one-command Typer app --help | {b:.3f} | {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}) |"
    )
