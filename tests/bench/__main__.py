"""Run the benchmarks and append their tables to RESULTS.md.

python -m tests.bench                 all of them: hours
python -m tests.bench overhead help   those named
python -m tests.bench --list          their names and what they say
python -m tests.bench --dry peers     print only

The peers are an extra: pip install -e ".[bench]"; those that are not there are named as missing. What trains on MNIST
needs DLCLI_DATA. A bench is a function that returns text, and one line in BENCHES.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

from dlcli.runtime.device import Runtime
from tests.bench import (
    accuracy,
    against_classic,
    checkpointing,
    data_path,
    inference,
    overhead,
    peers,
    ranks,
    registry,
    startup,
    sweeps,
    systems,
    vectorized,
)

BENCHES = {  # those to accuracy take minutes to an hour, the others less than five minutes
    "overhead": overhead.run,
    "peers": peers.run,
    "help": startup.help,
    "registry": registry.run,
    "sweep_status": registry.sweep_status,
    "sweep_rate": sweeps.rate,
    "sweep_tpe": sweeps.tpe,
    "sweep_kills": sweeps.kills,
    "first_step": startup.first_step,
    "classic": against_classic.run,
    "memory": against_classic.memory,
    "data": data_path.run,
    "checkpoint": checkpointing.run,
    "inference": inference.run,
    "ranks": ranks.run,
    "vectorized": vectorized.run,
    "digits": accuracy.digits,
    "classic_99": against_classic.to_99,
    "mnist_99": accuracy.mnist_99,
    "mnist_fast": accuracy.mnist_fast,
    "mnist": accuracy.mnist,
    "fashion_mnist": accuracy.fashion_mnist,
    "systems": systems.run,
}
RESULTS = Path(__file__).with_name("RESULTS.md")


def machine() -> str:
    import torch

    versions = " ".join(f"{p} {importlib.metadata.version(p)}" for p in ("torch", "typer", "rich"))
    model = Runtime(torch.device("cpu"), "fp32", 1).device_name()
    return f"{model}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}"


def section(name: str) -> str:
    """The heading, the command, the machine and how busy it was, and the table."""
    busy, began = os.getloadavg()[0], time.monotonic()
    text = BENCHES[name]()
    facts = f"load {busy:.1f} before and {os.getloadavg()[0]:.1f} after, {time.monotonic() - began:.0f} s"
    return f"\n## {name}, {datetime.date.today()}\n\n`python -m tests.bench {name}` on {machine()}; {facts}\n\n{text}\n"


def main(words: list[str]) -> int:
    names = [word for word in words if word not in ("--dry", "--list")]
    if "--list" in words:
        print("\n".join(f"{name:14} {(bench.__doc__ or '').splitlines()[0]}" for name, bench in BENCHES.items()))
        return 0
    if unknown := [name for name in names if name not in BENCHES]:
        sys.exit(f"no such bench: {', '.join(unknown)} ({', '.join(BENCHES)})")
    failed = 0
    for name in names or BENCHES:
        try:
            text = section(name)
        except subprocess.CalledProcessError as error:  # the others are measured all the same
            print(f"{name} failed: {error}\n{error.stderr or ''}", file=sys.stderr)
            failed = 1
            continue
        print(text, flush=True)
        if "--dry" not in words:
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(text)
    return failed


sys.exit(main(sys.argv[1:]))
