"""Start-up: `--help` against Typer and against peers' command lines, and the way to the first training step."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.bench.measure import Cost, cost_of, in_turn, mnist_root, ratios, spread, table

ROUNDS = 15
ONE_COMMAND = '''
import typer

def main(
    name: str = typer.Argument("world", help="Whom to greet."), loud: bool = typer.Option(False, help="Shout.")
) -> None:
    """Say hello."""

typer.run(main)
'''
HYDRA_APP = """
import hydra

@hydra.main(version_base=None, config_path=None)
def main(config):
    pass

main()
"""
# Ends the program after the first step of dlcli's loop, without changing when anything is imported before it.
UNTIL_FIRST_STEP = """
import importlib.util, os, sys

class AfterLoop:
    def find_spec(self, name, path, target=None):
        if name != "dlcli.training.loop":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module
        def and_stop(module):
            execute(module)
            train = module.train
            def one(*args, **kwargs):
                for done in train(*args, **kwargs):
                    os._exit(0)
            module.train = one
        spec.loader.exec_module = and_stop
        return spec

sys.meta_path.insert(0, AfterLoop())
from dlcli.cli import main
main()
sys.exit("there was no step")
"""
PLAIN = """
import sys
import numpy as np
import torch
from torch import nn
import torch.nn.functional as F

images = torch.from_numpy(np.load(sys.argv[1], mmap_mode="c"))
labels = torch.from_numpy(np.load(sys.argv[2]))
model = nn.Sequential(
    nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25), nn.Flatten(),
    nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10),
)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
rows = torch.randperm(len(labels))[:64]
x = (images[rows].float() / 255 - 0.1307) / 0.3081
loss = F.cross_entropy(model(x), labels[rows])
loss.backward()
optimizer.step()
import os
os._exit(0)
"""
COMMAND_LINES = {  # peer -> its command; `hydra` has none of its own
    "fabric": ("fabric", "--help"),
    "torchrun": ("torchrun", "--help"),
    "wandb": ("wandb", "--help"),
    "accelerate": ("accelerate", "--help"),
    "transformers": ("transformers", "--help"),
    "optuna": ("optuna", "--help"),
    "yolo": ("yolo", "help"),
    "ludwig": ("ludwig", "--help"),
}


def help() -> str:
    """`--help` against Typer's and against peers' command lines."""
    with tempfile.TemporaryDirectory() as folder:
        app, hydra = Path(folder, "app.py"), Path(folder, "hydra_app.py")
        app.write_text(ONE_COMMAND)
        hydra.write_text(HYDRA_APP)
        ours = (sys.executable, "-m", "dlcli", "--help")
        sides = {
            "one-command Typer app --help": (sys.executable, str(app), "--help"),
            'python -c "import typer"': (sys.executable, "-c", "import typer"),
        }
        rounds = in_turn(ROUNDS, *(lambda c=c: cost_of(c) for c in (ours, *sides.values())))
        peers = {"Hydra app": (sys.executable, str(hydra), "--help")} | installed()
        slow = {name: [cost_of(command) for _ in range(3)][1:] for name, command in peers.items()}
    mine, *others = zip(*rounds, strict=True)
    rows = [help_row("dlcli --help", mine, None)]
    rows += [help_row(name, other, mine) for name, other in zip(sides, others, strict=True)]
    rows += [help_row(f"{name} --help, 2 runs, not in turn", costs, None) for name, costs in slow.items()]
    rows += [(f"{name} --help", "not installed", "", "", "") for name in COMMAND_LINES if name not in slow]
    return table(("", "CPU s", "wall s", "dlcli against it, CPU", "wall"), rows)


def help_row(name: str, costs: Sequence[Cost], mine: Sequence[Cost] | None) -> tuple[str, ...]:
    cpu, wall = ([getattr(cost, kind) for cost in costs] for kind in ("cpu_s", "wall_s"))
    against = ["", ""]
    if mine is not None:
        ours = ([getattr(cost, kind) for cost in mine] for kind in ("cpu_s", "wall_s"))
        against = [spread(ratios(a, b), 2) for a, b in zip(ours, (cpu, wall), strict=True)]
    return (name, f"{statistics.median(cpu):.3f}", f"{statistics.median(wall):.3f}", *against)


def installed() -> dict[str, tuple[str, ...]]:
    """The peers' command lines beside this Python, or on the path, that work."""
    folder = sysconfig.get_path("scripts")
    found = {}
    for name, (program, *words) in COMMAND_LINES.items():
        path = shutil.which(program, path=folder) or shutil.which(program)
        if path and subprocess.run([path, *words], capture_output=True, check=False).returncode == 0:
            found[name] = (path, *words)
    return found


def first_step() -> str:
    """CPU time from the command to the first step: the program itself, not the W&B process that follows it."""
    root = mnist_root()
    with tempfile.TemporaryDirectory() as folder:
        plain, until = Path(folder, "plain.py"), Path(folder, "until.py")
        plain.write_text(PLAIN)
        until.write_text(UNTIL_FIRST_STEP)
        arrays = decoded(root, Path(folder))
        sides = {
            "dlcli train mnist": ("train", "mnist", "--outputs", f"{folder}/a"),
            "dlcli train mnist runtime=cpu": ("train", "mnist", "runtime=cpu", "--outputs", f"{folder}/b"),
            "dlcli train mnist runtime=cpu tracker=none": (
                "train", "mnist", "runtime=cpu", "tracker=none", "--outputs", f"{folder}/c",
            ),
        }  # fmt: skip
        commands = [(sys.executable, str(until), *words) for words in sides.values()]
        script = (sys.executable, str(plain), *arrays)
        imports = (sys.executable, "-c", "import torch")
        rounds = in_turn(10, *(lambda c=c: cost_of(c).cpu_s for c in (*commands, script, imports)))
    *ours, theirs, torch_s = zip(*rounds, strict=True)
    rows = [
        (name, f"{statistics.median(cpu):.2f}", spread(ratios(cpu, theirs), 2))
        for name, cpu in zip(sides, ours, strict=True)
    ]
    rows += [("plain script: torch, cached arrays, torch.optim.Adam, one step", f"{statistics.median(theirs):.2f}", "")]
    rows += [('python -c "import torch"', f"{statistics.median(torch_s):.2f}", spread(ratios(torch_s, theirs), 2))]
    return table(("to the end of the first step", "CPU s", "against the plain script"), rows)


def decoded(root: Path, folder: Path) -> list[str]:
    """MNIST's training images (60000, 1, 28, 28) uint8 and labels int64 as .npy, for the plain script to map."""
    import numpy as np
    from torchvision.datasets import MNIST

    data = MNIST(str(root), train=True)
    paths = [folder / "images.npy", folder / "labels.npy"]
    for path, tensor in zip(paths, (data.data[:, None], data.targets), strict=True):
        np.save(path, tensor.numpy())
    return [str(path) for path in paths]
