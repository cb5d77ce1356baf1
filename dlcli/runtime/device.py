"""The device of the tensors and how they are computed: precision, threads, seeds, random states."""

from __future__ import annotations

import contextlib
import ctypes
import platform
import re
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import Module

from dlcli.errors import EnvironmentFault, OutOfMemory

TORCHS_THREADS = torch.get_num_threads()  # before any run has set them: a process may train several runs, one by one
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)


@dataclass(frozen=True)
class Runtime:
    """device; precision: fp32, tf32, bf16 or fp16; threads: of the CPU; channels_last: memory format of images."""

    device: torch.device
    precision: str
    threads: int
    channels_last: bool = False

    def place(self, module: Module) -> None:
        """Move a module to the device, with filters in the chosen memory format; their outputs follow it."""
        module.to(self.device)
        if self.channels_last:
            module.to(memory_format=torch.channels_last)

    def use_threads(self) -> None:
        torch.set_num_threads(self.threads)

    def autocast(self) -> Callable[[], AbstractContextManager[Any]]:
        """Gives contexts of the precision, for a forward pass."""
        if self.precision in ("fp32", "tf32"):
            return nullcontext
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
        return partial(torch.autocast, self.device.type, dtype=dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """Scales the loss so that fp16's gradients do not vanish; does nothing in other precisions."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def device_name(self) -> str:
        """The GPU's or the processor's model; empty if the system does not give it."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        try:
            lines = Path("/proc/cpuinfo").read_text().splitlines()
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        except (OSError, StopIteration):
            return platform.processor()

    def fingerprint(self) -> dict[str, Any]:
        """The facts besides the seed that bits depend on: if any differs, a resume is not bit-exact, and says so."""
        return {
            "torch": torch.__version__,
            "device": self.device.type if self.device.type == "cpu" else self.device_name(),
            "cpu": torch.backends.cpu.get_cpu_capability(),
            "threads": self.threads,
            "precision": self.precision,
            "channels_last": self.channels_last,
        }

    def peak_memory_mb(self) -> float:
        """The peak memory of the device if it has its own memory, otherwise of this process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        with contextlib.suppress(OSError, StopIteration):  # since reset_peak_memory; ru_maxrss is since the start
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**10
        per_mb = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / per_mb


def start_runtime(
    settings: Mapping[str, Any], *, stored: Mapping[str, Any] | None = None, local_rank: int = 0
) -> Runtime:
    """Choose the device and set everything that is global to a process, whatever ran in it before.

    local_rank: the rank whose GPU it is, if several work together.
    stored: `fingerprint()` of the run that is resumed or inspected; its choices win if the settings leave one open.
    Raises EnvironmentFault for a device that does not exist.
    """
    device = choose_device(settings["device"], local_rank)
    keep_memory()
    reset_peak_memory(device)
    before = _choices(stored or {})
    wanted = (before if settings["threads"] in (None, "auto") else settings).get("threads")
    torch.set_num_threads(wanted or TORCHS_THREADS)
    if settings["deterministic"] != torch.are_deterministic_algorithms_enabled():
        import os

        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS gives the same bits only with this
        torch.use_deterministic_algorithms(settings["deterministic"])
    precision = before.get("precision", "auto") if settings["precision"] == "auto" else settings["precision"]
    precision = choose_precision(precision, device)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = not settings["deterministic"]
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "fp32"
    channels_last = settings.get("channels_last", False)  # runs of an older dlcli do not store it
    channels_last = before.get("channels_last", False) if channels_last == "auto" else channels_last
    return Runtime(device, precision, torch.get_num_threads(), channels_last)


def _choices(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The choices in a stored fingerprint, checked for their types, because it comes from a file."""
    kinds = {"threads": int, "precision": str, "channels_last": bool}
    found = {key: stored[key] for key, kind in kinds.items() if type(stored.get(key)) is kind}
    if found.get("precision", "fp32") not in ("fp32", "tf32", "bf16"):
        found.pop("precision")
    if not 1 <= found.get("threads", 1) <= 4_096:
        found.pop("threads")
    return found


def reset_peak_memory(device: torch.device) -> None:
    """Start a new peak, so that it is of one run if a process trains several; if that fails, it is of all so far."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def keep_memory() -> None:
    """Let glibc keep freed memory: otherwise large activations are mapped, faulted in and unmapped at every step.

    Measured at batch 256 on a CPU: 1.3 to 1.5 times the speed. Other C libraries are not changed.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    for option, number in ((M_MMAP_THRESHOLD, 2**30), (M_TRIM_THRESHOLD, 2**31 - 1)):
        library.mallopt(option, number)


def choose_device(setting: str, local_rank: int = 0) -> torch.device:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if setting == "auto" and not count:
        return torch.device("cpu")
    device = torch.device("cuda" if setting == "auto" else setting)
    here = ", ".join(["cpu", *(f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(count))])
    number = local_rank if device.index is None else device.index
    if device.type == "cuda" and number >= count:
        message = f"runtime.device={setting}: there is no GPU {number} here; there is {here}"
        raise EnvironmentFault(message, hint="runtime.device=cpu, or runtime=auto to use what there is")
    return torch.device("cuda", number) if device.type == "cuda" else device


def choose_precision(setting: str, device: torch.device) -> str:
    """auto: bfloat16 on a GPU that has it, otherwise single precision (on a CPU, until it is measured).

    fp16 and tf32 need a GPU: EnvironmentFault without.
    """
    if setting in ("fp16", "tf32") and device.type == "cpu":
        message = f"runtime.precision={setting} needs a GPU; this run is on the CPU"
        raise EnvironmentFault(message, hint="runtime.precision=bf16 or fp32")
    if setting != "auto":
        return setting
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


# -------------------------------------------------------------------------------------------------------- out of memory


@contextmanager
def memory_faults(remedy: Callable[[], str]) -> Iterator[None]:
    """Turns the several ways of running out of memory into OutOfMemory."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(f"out of memory: {_brief(error)}", hint=remedy()) from error
    except RuntimeError as error:
        if not any(words in str(error) for words in ("can't allocate memory", "not enough memory", "Cannot allocate")):
            raise
        raise OutOfMemory(f"out of memory: {_brief(error)}", hint=remedy()) from error


def _brief(error: BaseException) -> str:
    text = (str(error) or type(error).__name__).splitlines()[0]
    if asked := re.search(r"tried to allocate ([\d.]+) ?(\w+)", text, re.IGNORECASE):
        number, unit = asked.groups()
        return f"{int(number):,} bytes more were needed" if unit == "bytes" else f"{number} {unit} more were needed"
    return text.rsplit("] ", 1)[-1].split(". ")[0]


@contextmanager
def compile_faults() -> Iterator[None]:
    """Reports a network that cannot be compiled here: not a bug of dlcli; often there is no C++ compiler."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        message = (
            f"the network cannot be compiled: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        )
        raise EnvironmentFault(message, hint="runtime.compile=false, or install a C++ compiler.") from error


def wait_for(device: torch.device) -> None:
    """Wait until the device has finished all its work: before a clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
