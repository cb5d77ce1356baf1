"""Decides whether a data set's images are kept on the device: by size, unless the config decides."""

from __future__ import annotations

from pathlib import Path

import torch

from dlcli.datasets.batches.examples import Examples
from dlcli.datasets.batches.records import Records
from dlcli.errors import ConfigError, EnvironmentFault

SHARE = 0.5  # of the free memory: the rest is for the network, its optimizer and activations


def choose_residency(
    num_bytes: int | None, setting: bool | str, workers: int, device: torch.device | str
) -> tuple[bool, str]:
    """(resident?, the reason as a clause to show). num_bytes: of the images as uint8; None if they are not in memory.

    setting: dataset.in_memory, which is true, false or "auto".
    """
    choice = str(setting).lower()
    if choice not in ("auto", "true", "false"):
        raise ConfigError(f"dataset.in_memory={setting} is not known.", hint="Choose auto, true or false.")
    if choice == "false":
        return False, "dataset.in_memory=false"
    if num_bytes is None:
        if choice == "true":
            raise EnvironmentFault(
                "dataset.in_memory=true, but these images are too many to be held in memory.",
                hint="dataset.in_memory=auto, and dataset.num_workers=2 to read them in other processes.",
            )
        return False, "the images are too many to be held in memory"
    if choice == "true":
        return True, "dataset.in_memory=true" + (
            f", so that dataset.num_workers={workers} are not used" if workers else ""
        )
    if workers > 0:
        return False, f"dataset.num_workers={workers}"
    return compare(num_bytes, torch.device(device))


def compare(num_bytes: int, device: torch.device) -> tuple[bool, str]:
    free = free_memory(device)
    size = readable(num_bytes)
    where = "memory" if device.type == "cpu" else f"the memory of {device}"
    if free is None or num_bytes <= SHARE * free:
        return True, f"{size} fit in {where}"
    return False, f"{size} are more than half of the {readable(free)} free in {where}"


def num_bytes(examples: Examples) -> int | None:
    """num_bytes of choose_residency for one split; None if its images are not in memory."""
    if isinstance(examples, Records):
        return examples.nbytes
    return None if examples.images is None else examples.images.nbytes


def readable(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def free_memory(device: torch.device) -> int | None:
    """Bytes free on the device (for a CPU: in the machine or this container, whichever is less); None if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = [number for number in (meminfo(), cgroup()) if number is not None]
    return min(found) if found else None


def meminfo() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None


def cgroup() -> int | None:
    """Bytes that a container with a memory limit may still take."""
    try:
        folder = Path("/sys/fs/cgroup")
        return int((folder / "memory.max").read_text()) - int((folder / "memory.current").read_text())
    except (OSError, ValueError):  # no cgroup v2, or no limit ("max")
        return None
