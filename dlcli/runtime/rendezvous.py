"""How this process finds its rank, and how the ranks meet."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

from dlcli.errors import EnvironmentFault, printable
from dlcli.runtime.ranks import TIMEOUT_S, Place, Ranks, first_line

if TYPE_CHECKING:
    import torch

LISTEN_FD = "DLCLI_MASTER_LISTEN_FD"  # rank 0's end of the meeting point, opened by `dlcli.runtime.launch`
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
FIRST_SPECIAL_STEP = (
    0xFFFFFFF0  # Slurm's numbers for a batch script and an interactive shell, which are not tasks of srun
)


def find_ranks(env: Mapping[str, str] = os.environ) -> Place | None:
    """The place that torchrun, `dlcli.runtime.launch` or Slurm's srun gave this process; None if it is alone.

    Raises EnvironmentFault if only some of the variables are set.
    """
    if any(name in env for name in TORCHRUN[:3]):
        return _torchrun(env)
    step = env.get("SLURM_STEP_ID", env.get("SLURM_STEPID", ""))
    if step.isdecimal() and int(step) < FIRST_SPECIAL_STEP and "SLURM_PROCID" in env:
        return _slurm(env, int(step))
    return None


def _torchrun(env: Mapping[str, str]) -> Place | None:
    missing = [name for name in TORCHRUN if not env.get(name)]
    if missing == ["MASTER_ADDR", "MASTER_PORT"] and env["WORLD_SIZE"] == "1":
        return None
    if missing:
        given = ", ".join(f"{name}={printable(env[name], limit=40)}" for name in TORCHRUN if env.get(name))
        raise EnvironmentFault(
            f"{given or 'RANK'} is set without {', '.join(missing)}: no rank can be found",
            hint=f"torchrun sets all five; for one process: env -u {' -u '.join(TORCHRUN[:3])} dlcli ...",
        )
    rank, world_size, local_rank = (_number(env, name, 0) for name in TORCHRUN[:3])
    port, descriptor = _number(env, "MASTER_PORT", 1, 65_535), env.get(LISTEN_FD)
    if rank >= world_size:
        raise EnvironmentFault(
            f"RANK={rank} of WORLD_SIZE={world_size}", hint="Ranks count from 0 to WORLD_SIZE - 1; torchrun sets them."
        )
    if world_size == 1:
        return None
    listen_fd = int(descriptor) if descriptor and rank == 0 else None
    attempt = _number(env, "TORCHELASTIC_RESTART_COUNT", 0) if "TORCHELASTIC_RESTART_COUNT" in env else 0
    is_hosted = env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return Place(rank, world_size, local_rank, env["MASTER_ADDR"], port, attempt, is_hosted, listen_fd)


def _slurm(env: Mapping[str, str], step: int) -> Place | None:
    tasks = "SLURM_STEP_NUM_TASKS" if env.get("SLURM_STEP_NUM_TASKS") else "SLURM_NTASKS"
    if env.get(tasks) in (None, "", "1"):
        return None
    missing = [name for name in ("SLURM_LOCALID", "SLURM_STEP_NODELIST", "SLURM_JOB_ID") if not env.get(name)]
    if missing:
        raise EnvironmentFault(
            f"{tasks}={printable(env[tasks], limit=40)} is set without {', '.join(missing)}: no rank can be found",
            hint="Start all ranks with srun: srun --ntasks=2 dlcli train ...; or one: srun --ntasks=1 dlcli train ...",
        )
    job = _number(env, "SLURM_JOB_ID", 0)
    port = _number(env, "MASTER_PORT", 1, 65_535) if env.get("MASTER_PORT") else port_of(job, step)
    return Place(
        rank=_number(env, "SLURM_PROCID", 0),
        world_size=_number(env, tasks, 1),
        local_rank=_number(env, "SLURM_LOCALID", 0),
        master_addr=env.get("MASTER_ADDR") or first_host(env["SLURM_STEP_NODELIST"]),
        master_port=port,
    )


def _number(env: Mapping[str, str], name: str, low: int, high: int = 2**31 - 1) -> int:
    text = env.get(name, "")
    if not (text.isascii() and text.isdecimal() and low <= int(text) <= high):
        raise EnvironmentFault(
            f"{name}={printable(text, limit=40)} is not a whole number from {low} to {high:,}",
            hint="torchrun and srun set it; if you set it by hand, give a plain number.",
        )
    return int(text)


def first_host(nodes: str) -> str:
    """The first host of a list in Slurm's notation: `n[03-12,20],m1` -> n03."""
    found = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", found.group() if found else nodes)


def port_of(job: int, step: int) -> int:
    """The port: the same for all ranks of a job's step, another for other steps; below those that systems assign."""
    return 10_000 + (job * 97 + step) % 20_000


# ------------------------------------------------------------------------------------------------------------- meeting


def join_ranks(place: Place, device: torch.device, *, timeout_s: float = TIMEOUT_S) -> Ranks:
    """Meet the other ranks. device: this rank's own. Raises EnvironmentFault if they do not come in time."""
    import torch
    import torch.distributed as dist

    if place.master_addr in ("127.0.0.1", "localhost", "::1") and sys.platform == "linux":
        os.environ.setdefault(
            "GLOO_SOCKET_IFNAME", "lo"
        )  # otherwise gloo uses the host's name, which must then resolve
    if place.listen_fd is not None:
        os.set_inheritable(place.listen_fd, False)  # not inherited by processes that this rank starts
    if device.type == "cuda":
        torch.cuda.set_device(device)
    wait = timedelta(seconds=timeout_s)
    try:
        store = dist.TCPStore(
            place.master_addr,
            place.master_port,
            place.world_size,
            is_master=place.rank == 0 and not place.is_hosted,
            timeout=wait,
            master_listen_fd=place.listen_fd,
        )
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=dist.PrefixStore(f"attempt_{place.attempt}", store),
            rank=place.rank,
            world_size=place.world_size,
            timeout=wait,
        )
    except (RuntimeError, ValueError) as error:
        raise EnvironmentFault(
            f"rank {place.rank} could not meet the other {place.world_size - 1} at {printable(place.master_addr)}:"
            f"{place.master_port} in {timeout_s:g} s: {first_line(error)}",
            hint="Start all ranks together; on several machines, MASTER_ADDR must be the name of the first one, as all "
            "of them see it, and MASTER_PORT must be free there.",
        ) from error
    return Ranks(place, timeout_s=timeout_s)
