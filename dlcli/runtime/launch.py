"""Starts one process per device, watches them, and combines their exit codes into one.

A rank is `python -m dlcli ARGUMENTS` with the variables that torchrun gives its ranks, so that dlcli has a single way
to find its place. torchrun itself (torch 2.15) was tried: it costs 1.3 CPU-seconds and torch's memory in a process that
only waits; it starts a group again after any failure, even a misspelt setting; a Ctrl-C loses the ranks' exit codes in
a traceback, and they have 30 s; and if torchrun is killed, the ranks train on. Its meeting point is open to the
network; here it is a socket of this machine alone, handed to rank 0 already open: no other process can take its port.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

from dlcli.errors import EnvironmentFault
from dlcli.runtime.rendezvous import LISTEN_FD
from dlcli.runtime.signals import WATCHED

POLL_S = 0.05
SETTLE_S = 2.0  # after the first failure: a killed rank takes others with it, and they may be noticed first
GRACE_S = 30.0  # time for the others to end if one is lost; one that hangs in an exchange on a GPU never ends
FAULT = 70
PROGRAM = ("-m", "dlcli")


def launch(argv: list[str], *, devices: int, max_restarts: int, program: Sequence[str] = PROGRAM) -> int:
    """Run `dlcli ARGV` once per device, on this machine; the exit code. program: for python to run instead of dlcli.

    A rank that dies (by a signal, or with 70) ends the others, and all are started again, at most max_restarts times:
    TORCHELASTIC_RESTART_COUNT counts the restarts, and TORCHELASTIC_RUN_ID stays the same. A rank that ends with a
    user's error ends the others for good. SIGINT, SIGTERM and SIGHUP are passed on, and the launcher waits for the
    ranks' clean end; after a second signal it waits only some seconds. Raises EnvironmentFault when ranks
    are lost and no restart is left.
    """
    run_id = uuid.uuid4().hex
    with Forwarding() as forwarding:
        for restart in range(max_restarts + 1):
            counts = {"RESTART_COUNT": str(restart), "MAX_RESTARTS": str(max_restarts), "RUN_ID": run_id}
            group = Group([*program, *argv], devices, {f"TORCHELASTIC_{key}": value for key, value in counts.items()})
            code = group.watch(forwarding)
            if not group.is_lost() or forwarding.received:
                return code
            if restart < max_restarts:
                tell(f"{group.what_was_lost()}; all ranks start again ({restart + 1} of {max_restarts})")
    hint = "dlcli resume continues from the last checkpoint; dlcli train --max-restarts=3 does so automatically."
    raise EnvironmentFault(f"{group.what_was_lost()}; the run has stopped", hint=hint)


class Group:
    """The ranks of one start. command: for python to run; environment: variables besides those of their place."""

    def __init__(self, command: list[str], devices: int, environment: dict[str, str]):
        self.codes: list[int | None] = [None] * devices
        self.was_ended = [False] * devices  # ended by us: their exit codes then mean nothing
        with socket.create_server(("127.0.0.1", 0)) as listener:
            shared = {"OMP_NUM_THREADS": str(max(1, usable_cores() // devices))} | os.environ | environment
            shared |= {"WORLD_SIZE": str(devices), "LOCAL_WORLD_SIZE": str(devices), "MASTER_ADDR": "127.0.0.1"}
            shared["MASTER_PORT"] = str(listener.getsockname()[1])
            shared.pop("TORCHELASTIC_USE_AGENT_STORE", None)
            self.ranks = [
                start_rank(command, rank, shared, listener.fileno() if rank == 0 else None) for rank in range(devices)
            ]

    def watch(self, forwarding: Forwarding) -> int:
        """Wait for all to end and pass signals on; the group's exit code."""
        deadline: float | None = None
        while self._poll():
            for number in forwarding.take():
                self._send(number)
            if deadline is None and any(code not in (None, 0) for code in self.codes) and not forwarding.received:
                deadline = time.monotonic() + GRACE_S
                self._settle()
                self._end(signal.SIGTERM)
            if deadline is None and forwarding.count > 1:
                deadline = time.monotonic() + SETTLE_S
            if deadline is not None and time.monotonic() > deadline:
                self._end(signal.SIGKILL)
            time.sleep(POLL_S)
        return self._code(forwarding)

    def is_lost(self) -> bool:
        return self._lost_rank() is not None

    def what_was_lost(self) -> str:
        """A clause on the lost rank: `rank 1 of 2 was ended by SIGKILL`."""
        rank = self._lost_rank()
        assert rank is not None
        code = self.codes[rank] or 0
        how = f"was ended by {signal_name(-code)}" if code < 0 else f"ended with {code}, a fault of dlcli's own"
        return f"rank {rank} of {len(self.codes)} {how}"

    def _lost_rank(self) -> int | None:
        """The first rank that died on its own: by a signal it could not catch, or of a fault."""
        for rank, code in enumerate(self.codes):
            if code is not None and not self.was_ended[rank] and (code == FAULT or (code < 0 and -code not in WATCHED)):
                return rank
        return None

    def _poll(self) -> bool:
        """Note which ranks have ended; whether any is left."""
        self.codes = [process.poll() for process in self.ranks]
        return None in self.codes

    def _settle(self) -> None:
        until = time.monotonic() + SETTLE_S
        while self._poll() and time.monotonic() < until:
            time.sleep(POLL_S)

    def _end(self, number: int) -> None:
        self.was_ended = [ended or code is None for ended, code in zip(self.was_ended, self.codes, strict=True)]
        self._send(number)

    def _send(self, number: int) -> None:
        for process in self.ranks:
            with suppress(ProcessLookupError):  # it has ended in the meantime
                process.send_signal(number)

    def _code(self, forwarding: Forwarding) -> int:
        """0 if all ended well; after a signal, the signal's code; else the code of a rank that ended on its own: rather
        one for its own mistake than one for the loss of others.
        """
        failed = [code for code, ended in zip(self.codes, self.was_ended, strict=True) if code and not ended]
        said = [128 - code if code < 0 else code for code in failed]
        own = [code for code in said if code not in (EnvironmentFault.code, 128 + signal.SIGKILL)]
        if forwarding.received and any(self.codes):
            return own[0] if own else 128 + forwarding.received
        return (own or said or [0])[0]


class Forwarding:
    """Within the block signals are noted, to be passed on to the ranks once each: the ranks have their own sessions, so
    that a terminal's Ctrl-C does not reach them a second time. Signals that were ignored (nohup) stay ignored.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.count = 0
        self._waiting: list[int] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Forwarding:
        for number in WATCHED:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received, self.count = self.received or number, self.count + 1
        self._waiting.append(number)

    def take(self) -> list[int]:
        """The signals that came since the last call."""
        waiting, self._waiting = self._waiting, []
        return waiting


def start_rank(
    command: list[str], rank: int, environment: dict[str, str], listen_fd: int | None
) -> subprocess.Popen[Any]:
    """One rank, in its own session; only rank 0 reads the keyboard and gets the open socket."""
    own = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    own.pop(LISTEN_FD, None)
    if listen_fd is not None:
        own[LISTEN_FD] = str(listen_fd)
    safe_path = (
        [] if {"", os.getcwd()} & set(sys.path) else ["-P"]
    )  # like this process: with the current folder on the path, or without
    return subprocess.Popen(
        [sys.executable, *safe_path, *command],
        env=own,
        stdin=None if rank == 0 else subprocess.DEVNULL,
        pass_fds=[] if listen_fd is None else [listen_fd],
        start_new_session=True,
        preexec_fn=dying_with(os.getpid()),
    )


def dying_with(parent: int) -> Callable[[], None] | None:
    """Run in a child before its program: it gets SIGTERM, and saves, if the launcher is killed. Linux only."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up here: nothing is loaded between fork and exec
    set_death_signal, sigterm = 1, int(signal.SIGTERM)

    def ask() -> None:
        prctl(set_death_signal, sigterm)
        if os.getppid() != parent:  # killed in between
            os.kill(os.getpid(), sigterm)

    return ask


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
