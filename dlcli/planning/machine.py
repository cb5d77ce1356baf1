"""What this machine has for deep learning: versions, devices, memory, disk, data and the tracker. For `dlcli doctor`.

torch is asked in a process of its own: an installation that crashes or hangs at import is a finding, not the end.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from dlcli import __version__
from dlcli.datasets.storage.roots import data_roots
from dlcli.errors import printable

TORCH_S = 120.0  # the first import from a cold network disk has been seen to take a minute

_ASK_TORCH = """
import json
facts = {}
try:
    import torch
    facts["torch"] = torch.__version__
    facts["cuda"] = torch.version.cuda or torch.version.hip or "not in this build of torch"
    facts["threads"] = torch.get_num_threads()
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    facts["gpus"] = [f"{p.name}, {p.total_memory / 2**30:.1f} GiB" for p in gpus]
except BaseException as error:
    facts.setdefault("torch", f"broken: {type(error).__name__}: {error}")
try:
    import torchvision
    facts["torchvision"] = torchvision.__version__
except BaseException as error:
    facts["torchvision"] = f"broken: {type(error).__name__}: {error}"
print(json.dumps(facts))
"""
# What is looked for in each data root, by a file of it that is always there; folders as torchvision lays them out too.
_SETS = {
    "MNIST": [
        f"{at}train-images-idx3-ubyte{gz}" for at in ("MNIST/raw/", "MNIST/", "mnist/", "") for gz in ("", ".gz")
    ],
    "FashionMNIST": [
        f"{at}train-images-idx3-ubyte{gz}"
        for at in ("FashionMNIST/raw/", "FashionMNIST/", "fashion-mnist/", "fashion_mnist/")
        for gz in ("", ".gz")
    ],
    "CIFAR-10": [
        f"{at}{name}"
        for at in ("", "CIFAR10/", "CIFAR-10/", "cifar10/", "cifar-10/")
        for name in ("cifar-10-batches-py", "cifar-10-python.tar.gz", "cifar-10-batches-bin", "cifar-10-binary.tar.gz")
    ],
}
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")


def examine(outputs: Path) -> dict[str, Any]:
    """Every finding by its name, in the order of the report; `gpus` and `data` are lists of text."""
    torch = _ask_torch()
    return {
        "dlcli": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "torch": torch.get("torch", "broken"),
        "torchvision": torch.get("torchvision", "broken"),
        "cuda": torch.get("cuda", "unknown"),
        "gpus": torch.get("gpus", []),
        "cpu_cores": usable_cores(),
        "threads": torch.get("threads"),
        "memory": _memory(),
        "outputs": _outputs(outputs),
        "data": found_data(),
        "wandb": _wandb(),
    }


def _ask_torch() -> dict[str, Any]:
    try:
        # -W ignore: a warning about an old driver must not stand in the report as an answer
        asked = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _ASK_TORCH], capture_output=True, text=True, timeout=TORCH_S
        )
    except subprocess.TimeoutExpired:
        return {"torch": f"broken: its import takes more than {TORCH_S:.0f} s"}
    except OSError as error:
        return {"torch": f"broken: {error}"}
    try:
        return json.loads(asked.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        last = (asked.stderr.strip().splitlines() or ["no message"])[-1]
        return {"torch": f"broken: its import ended Python with code {asked.returncode}: {printable(last)}"}


def usable_cores() -> int:
    """Cores that this process may use: its affinity, else all."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


def _memory() -> str:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if rest}
        return f"{kib['MemAvailable'] / 2**20:.1f} GiB available of {kib['MemTotal'] / 2**20:.1f} GiB"
    except (OSError, KeyError, ValueError, IndexError):
        return "unknown"


def _outputs(outputs: Path) -> str:
    there = next(folder for folder in [outputs.absolute(), *outputs.absolute().parents] if folder.is_dir())
    free = f"{shutil.disk_usage(there).free / 2**30:.1f} GiB free"
    return f"{outputs.absolute()}: {free}" + ("" if os.access(there, os.W_OK) else ", not writable")


def found_data() -> list[str]:
    """`NAME in PLACE` for the known sets and for archives that may hold images, in every data root."""
    found = ["digits: comes with scikit-learn"]
    given = os.environ.get("DLCLI_DATA")
    if given and not _exists(Path(given).expanduser()):
        found.append(f"DLCLI_DATA={printable(given)}: there is no such folder")
    for root in data_roots(None):
        for name, signs in _SETS.items():
            if sign := next((sign for sign in signs if _exists(root / sign)), None):
                found.append(f"{name}: {(root / sign).absolute().parent}")
        found += [f"archive: {path}" for path in _archives(root) if not path.name.startswith("cifar-10-")]
    return list(dict.fromkeys(found))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a folder that may not be entered
        return False


def _archives(root: Path, most: int = 10) -> list[Path]:
    """Archives in a root and in its folders."""
    try:
        return sorted(p.absolute() for p in [*root.glob("*"), *root.glob("*/*")] if p.name.endswith(_ARCHIVES))[:most]
    except OSError:
        return []


def _wandb() -> str:
    from importlib.metadata import PackageNotFoundError, version

    from dlcli.reporting.wandb_tracker import has_key, resolve_mode

    try:
        installed = version("wandb")
    except PackageNotFoundError:
        return "not installed"
    return f"{installed}, {'a key is configured' if has_key() else 'no key'}, mode {resolve_mode()}"
