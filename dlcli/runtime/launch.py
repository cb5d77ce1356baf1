"""Start one process per device, watch over them, and make one exit code of theirs.

A rank is `python -m dlcli ARGUMENTS` with the variables that torchrun gives its ranks, so that dlcli finds its place
in one way only. torchrun itself (torch 2.15) was tried for it: it costs 1.3 CPU-seconds and torch's memory in a process
that only waits; it starts a group again after any failure, a misspelt setting too; a Ctrl-C loses the ranks' exit codes
in a traceback, and they have 30 s; and when it is killed itself the ranks train on. Its meeting point is open to the
network; here it is a socket of this machine alone, handed open to rank 0: no port can be lost on the way.
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
SETTLE_S = 2.0  # after the first failure: a rank that was killed takes others with it, and they may be seen first
GRACE_S = 30.0  # for the others to end when one is lost; one that hangs in an exchange on a GPU never does
FAULT = 70
PROGRAM = ("-m", "dlcli")


def launch(argv: list[str], *, devices: int, max_restarts: int, program: Sequence[str] = PROGRAM) -> int:
    """Run `dlcli ARGV` once per device, on this machine; the exit code. program: what python runs, if not dlcli.

    A rank that dies (by a signal, or with 70) ends the others, and all are started again, max_restarts times at most:
    they find their number in TORCHELASTIC_RESTART_COUNT, and TORCHELASTIC_RUN_ID stays. A rank that ends with an error
    of the user's ends the others for good. SIGINT, SIGTERM and SIGHUP are handed on, and the ranks' clean end is waited
    for; a second one gives them some seconds. Raises EnvironmentFault when ranks are lost and no restart is left.
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
    hint = "dlcli resume goes on from the last checkpoint; dlcli train --max-restarts=3 does so by itself."
    raise EnvironmentFault(f"{group.what_was_lost()}; the run has stopped", hint=hint)


class Group:
    """The ranks of one start. command: what python runs; environment: what they find besides their place."""

    def __init__(self, command: list[str], devices: int, environment: dict[str, str]):
        self.codes: list[int | None] = [None] * devices
        self.was_ended = [False] * devices  # by us: what they die of then tells nothing
        with socket.create_server(("127.0.0.1", 0)) as listener:
            shared = {"OMP_NUM_THREADS": str(max(1, usable_cores() // devices))} | os.environ | environment
            shared |= {"WORLD_SIZE": str(devices), "LOCAL_WORLD_SIZE": str(devices), "MASTER_ADDR": "127.0.0.1"}
            shared["MASTER_PORT"] = str(listener.getsockname()[1])
            shared.pop("TORCHELASTIC_USE_AGENT_STORE", None)
            self.ranks = [
                start_rank(command, rank, shared, listener.fileno() if rank == 0 else None) for rank in range(devices)
            ]

    def watch(self, forwarding: Forwarding) -> int:
        """Wait for all to end, handing signals on; the group's exit code."""
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
        """`rank 1 of 2 was ended by SIGKILL`."""
        rank = self._lost_rank()
        assert rank is not None
        code = self.codes[rank] or 0
        how = f"was ended by {signal_name(-code)}" if code < 0 else f"ended with {code}, a fault of dlcli's own"
        return f"rank {rank} of {len(self.codes)} {how}"

    def _lost_rank(self) -> int | None:
        """The first that died of itself: by a signal that asks nobody, or of a fault."""
        for rank, code in enumerate(self.codes):
            if code is not None and not self.was_ended[rank] and (code == FAULT or (code < 0 and -code not in WATCHED)):
                return rank
        return None

    def _poll(self) -> bool:
        """Note who has ended; whether somebody is left."""
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
            with suppress(ProcessLookupError):  # it has ended meanwhile
                process.send_signal(number)

    def _code(self, forwarding: Forwarding) -> int:
        """0 when all ended well; the signal's after one; else what a rank that ended of itself says: rather its own
        mistake than that others were lost.
        """
        failed = [code for code, ended in zip(self.codes, self.was_ended, strict=True) if code and not ended]
        said = [128 - code if code < 0 else code for code in failed]
        own = [code for code in said if code not in (EnvironmentFault.code, 128 + signal.SIGKILL)]
        if forwarding.received and any(self.codes):
            return own[0] if own else 128 + forwarding.received
        return (own or said or [0])[0]


class Forwarding:
    """Within the block signals are noted, to be handed on to the ranks, once each: they are in sessions of their own,
    where a terminal's Ctrl-C does not reach them a second time. What was ignored (nohup) stays ignored.
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
    """One rank, in a session of its own; rank 0 alone reads what is typed, and gets the open socket."""
    own = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    own.pop(LISTEN_FD, None)
    if listen_fd is not None:
        own[LISTEN_FD] = str(listen_fd)
    safe_path = [] if {"", os.getcwd()} & set(sys.path) else ["-P"]  # as this process was: with the folder, or without
    return subprocess.Popen(
        [sys.executable, *safe_path, *command],
        env=own,
        stdin=None if rank == 0 else subprocess.DEVNULL,
        pass_fds=[] if listen_fd is None else [listen_fd],
        start_new_session=True,
        preexec_fn=dying_with(os.getpid()),
    )


def dying_with(parent: int) -> Callable[[], None] | None:
    """Run in a child before its program: it gets SIGTERM, and saves, when the launcher is killed. Linux only."""
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
