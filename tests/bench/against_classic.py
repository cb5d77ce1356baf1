"""dlcli against the classic program (classic.py) on the same network: time per image, memory, time to 99.0 %.

Each side has a process of its own, since what one sets (threads, malloc, memory formats) would change the other. They
take turns: the parent asks one after the other for a block of steps.

python -m tests.bench.against_classic FILE...      the table of results that classic.py --json wrote
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tests.bench.measure import cost_of, environment, in_turn, mnist_root, ratios, spread, table

STEPS = 40  # of one block
ROUNDS = 12
BATCH = 64
CLASSIC = Path(__file__).with_name("classic.py")
SIDES = {  # what the table says -> what the child does
    "classic program: torchvision, DataLoader, Adam": ("classic",),
    "dlcli train mnist runtime=cpu (strict fp32)": ("dlcli", "runtime=cpu"),
    "dlcli train mnist (runtime=auto)": ("dlcli", "runtime=auto"),
}


class Side:
    """A child process that does STEPS steps whenever it is asked to."""

    def __init__(self, words: tuple[str, ...]) -> None:
        command = [sys.executable, "-m", "tests.bench.against_classic", *words]
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
        )
        self.told = ""

    def block(self) -> float:
        """CPU microseconds per image."""
        assert self._child.stdin is not None and self._child.stdout is not None
        while True:
            self._child.stdin.write("go\n")
            self._child.stdin.flush()
            for line in self._child.stdout:
                kind, _, value = line.strip().partition(" ")
                if kind == "chose":
                    self.told = value
                elif kind == "cut":  # the source was opened for something else, and closed
                    break
                elif kind == "took":
                    return float(value) / STEPS / BATCH * 1e6
            else:
                raise subprocess.CalledProcessError(self._child.wait(), self._child.args, stderr="a side ended early")

    def close(self) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait()


def in_blocks(batches: Iterable[Any]) -> Iterator[Any]:
    """The child's side: hands on STEPS batches when asked, and says what CPU time they took."""
    ready = iter(batches)
    while sys.stdin.readline():
        start, is_whole = time.process_time(), False
        try:
            for _ in range(STEPS):
                yield next(ready)
            is_whole = True
        finally:
            print(f"took {time.process_time() - start}" if is_whole else "cut", flush=True)
    os._exit(0)


def run() -> str:
    """The classic program against dlcli on the same network: CPU time per image."""
    sides = {name: Side(words) for name, words in SIDES.items()}
    mnist_root()
    try:
        rounds = in_turn(ROUNDS, *(side.block for side in sides.values()))
    finally:
        for side in sides.values():
            side.close()
    columns = dict(zip(sides, zip(*rounds, strict=True), strict=True))
    theirs = next(iter(columns.values()))
    rows = [
        (f"{name}{sides[name].told}", f"{statistics.median(us):.0f}", f"{statistics.median(us) * 0.06:.1f}",
         "" if us is theirs else spread(ratios(us, theirs)))
        for name, us in columns.items()
    ]  # fmt: skip
    told = f"{ROUNDS} paired blocks of {STEPS} steps, each side in its own process, batch {BATCH}; CPU time, medians."
    head = ("", "us per image", "s per 60,000 images", "against the classic program")
    return f"{told}\n\n{table(head, rows)}"


def play_classic() -> None:
    import torch

    from tests.bench import classic

    torch.manual_seed(0)
    train, model = classic.loader(mnist_root(), train=True), classic.Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for x, y in in_blocks(batch for _ in range(100) for batch in train):
        classic.step(model, optimizer, x, y)


def play_dlcli(*words: str) -> None:
    from dlcli.config import compose_command
    from tests.bench.overhead import reporting

    class Blocks:
        def __init__(self, source: Any) -> None:
            self._source = source

        def __getattr__(self, name: str) -> Any:
            return getattr(self._source, name)

        def from_step(self, step: int) -> Iterator[Any]:
            return in_blocks(self._source.from_step(step))

    tree = compose_command(["mnist", "trainer.epochs=100", "trainer.eval_every=1000000", *words]).tree
    with tempfile.TemporaryDirectory() as folder, reporting(tree, Path(folder)) as training:
        facts = training.describe()
        layout = ", channels last" if facts.get("channels_last") else ""
        print(f"chose : {facts['precision']}{layout}, {facts['threads']} thread(s)", flush=True)
        training.train_source = Blocks(training.train_source)
        training.run()


# --------------------------------------------------------------------------------------------------------------- memory

BARE = """
import sys
import numpy as np
import torch
import torch.nn.functional as F
sys.path.insert(0, sys.argv[3])
from dlcli.models.mnist_net import MnistNet

torch.manual_seed(0)
images = torch.from_numpy(np.load(sys.argv[1], mmap_mode="c"))
labels = torch.from_numpy(np.load(sys.argv[2]))
model = MnistNet(num_classes=10, image_shape=(1, 28, 28))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

def batch(rows):
    return (images[rows].float() / 255 - 0.1307) / 0.3081, labels[rows]

for rows in torch.randperm(55000).split(64)[:STEPS]:
    x, y = batch(rows)
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
model.eval()
with torch.no_grad():
    for rows in torch.arange(45000, 60000).split(1000):
        x, y = batch(rows)
        (model(x).argmax(1) == y).sum().item()
"""
FEW = 60  # steps of training, then every held-out example at 1,000 in a batch


def memory() -> str:
    """Peak resident memory of whole processes."""
    from tests.bench.startup import decoded

    root = mnist_root()
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "bare.py")
        script.write_text(BARE.replace("STEPS", str(FEW)))
        arrays = decoded(root, Path(folder))
        ours = (sys.executable, "-m", "dlcli", "train", "mnist", f"trainer.max_steps={FEW}", "--outputs", folder)
        sides = {
            "bare loop on one uint8 tensor": (sys.executable, str(script), *arrays, str(CLASSIC.parents[2])),
            "classic program": (sys.executable, str(CLASSIC), str(root), "--epochs", "1", "--steps", str(FEW)),
            "dlcli train mnist runtime=cpu": (*ours, "runtime=cpu"),
            "dlcli train mnist": ours,
        }
        rounds = in_turn(2, *(lambda c=c: cost_of(c).peak_mb for c in sides.values()))
    columns = list(zip(*rounds, strict=True))
    bare, classic = columns[:2]
    rows = [
        (name, f"{statistics.median(mb):.0f}", spread(ratios(mb, bare), 2), spread(ratios(mb, classic), 2))
        for name, mb in zip(sides, columns, strict=True)
    ]
    told = f"{FEW} steps at batch {BATCH}, then 15,000 held-out images (classic: 10,000) at batch 1,000; one thread."
    return f"{told}\n\n" + table(("", "peak MB", "against the bare loop", "against the classic program"), rows)


# ------------------------------------------------------------------------------------------------------- time to 99.0 %


def to_99() -> str:
    """The classic program until it scores 99.0 %: minutes."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "classic_99.json")
        cost_of((sys.executable, str(CLASSIC), str(mnist_root()), "--until", "99", "--json", str(file)))
        return told([file])


def told(files: Iterable[Path]) -> str:
    results = [json.loads(file.read_text()) for file in files]
    rows = [
        (r["seed"], ", ".join(f"{e['accuracy']:.2f}" for e in r["epochs"]), f"{r['cpu_s']:.0f}", f"{r['wall_s']:.0f}")
        for r in results
    ]
    mean = statistics.mean(r["cpu_s"] for r in results)
    head = ("seed", "test accuracy after each epoch, %", "CPU s of the whole process", "wall s")
    line = f"`python tests/bench/classic.py DATA --until {results[0]['until']:g}`, {results[0]['threads']} thread(s):"
    return f"{line} mean {mean:.1f} CPU-seconds\n\n{table(head, rows)}"


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["classic"]:
            play_classic()
        case ["dlcli", *words]:
            play_dlcli(*words)
        case files:
            print(told(map(Path, files)))
