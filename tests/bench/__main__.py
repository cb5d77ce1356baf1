"""Run the benchmarks and append their tables to RESULTS.md.

python -m tests.bench                 all of them
python -m tests.bench overhead help   those named
python -m tests.bench mnist           needs DLCLI_DATA; minutes
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import sys
from pathlib import Path

import torch

from dlcli.runtime import Runtime
from tests.bench import accuracy, overhead, startup

BENCHES = {
    "overhead": overhead.run,
    "help": startup.run,
    "digits": accuracy.digits,
    "mnist": accuracy.mnist,
    "fashion_mnist": accuracy.fashion_mnist,
}
RESULTS = Path(__file__).with_name("RESULTS.md")


def machine() -> str:
    versions = " ".join(f"{p} {importlib.metadata.version(p)}" for p in ("torch", "typer", "rich"))
    model = Runtime(torch.device("cpu"), "fp32", 1).device_name()
    return f"{model}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}"


def main(names: list[str]) -> None:
    unknown = [name for name in names if name not in BENCHES]
    if unknown:
        sys.exit(f"no such bench: {', '.join(unknown)} ({', '.join(BENCHES)})")
    for name in names or BENCHES:
        table = BENCHES[name]()
        text = f"\n## {name}, {datetime.date.today()}\n\n`python -m tests.bench {name}` on {machine()}\n\n{table}\n"
        print(text, flush=True)
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(text)


main(sys.argv[1:])
