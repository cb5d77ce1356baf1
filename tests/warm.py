"""Commands in forks of one process that has imported what they need: a command then starts in milliseconds, not in 3 s.

The process is a program of its own, started at the first command; no pool of threads runs in it when it forks. What a
fork cannot take over (a variable that Python or a library reads at its start) makes `can_run` say no.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

AT_START = ("OMP_", "MKL_", "OPENBLAS_", "KMP_", "GOMP_", "PYTHON", "LD_", "CUDA", "NVIDIA", "TORCH", "ATEN_", "LC_",
            "LANG", "MPL", "MALLOC_", "HF_", "COVERAGE", "TERMINAL_WIDTH", "FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS",
            "DLCLI_TESTS_REAL", "TZ")  # fmt: skip


class Server:
    """The client's side of the process that forks."""

    def __init__(self, env: dict[str, str]):
        self.env, self._lock = env, threading.Lock()
        self._socket, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__, str(theirs.fileno())],
            env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[theirs.fileno()],
        )  # fmt: skip
        theirs.close()
        assert self._socket.recv(1) == b"+"
        atexit.register(self.close)

    def close(self) -> None:
        self._socket.close()
        self._process.wait()

    def can_run(self, env: dict[str, str]) -> bool:
        def of_start(found: dict[str, str]) -> dict[str, str]:
            return {name: value for name, value in found.items() if name.startswith(AT_START)}

        return of_start(env) == of_start(self.env) and self._process.poll() is None

    def run(
        self, words: tuple[str, ...], cwd: Path, env: dict[str, str], stdin: bytes | None, timeout: float
    ) -> subprocess.CompletedProcess[str]:
        request = json.dumps({"words": words, "cwd": str(cwd), "env": env, "umask": _umask()}).encode()
        pipes = [os.pipe() for _ in range(4)]  # stdin, stdout, stderr, result: each (to read, to write)
        if stdin is None:
            os.close(pipes[0][0])
            pipes[0] = (os.open(os.devnull, os.O_RDONLY), pipes[0][1])
        theirs = [pipes[0][0], pipes[1][1], pipes[2][1], pipes[3][1]]
        with self._lock:
            socket.send_fds(self._socket, [len(request).to_bytes(8, "big")], theirs)
            self._socket.sendall(request)
        for number in theirs:
            os.close(number)
        found: dict[int, bytes] = {}
        readers = [threading.Thread(target=_read, args=(pipes[n][0], n, found)) for n in (1, 2)]
        readers.append(threading.Thread(target=_write, args=(pipes[0][1], (stdin or b"").decode("latin-1").encode())))
        with os.fdopen(pipes[3][0]) as result:
            pid = int(result.readline())
            over: list[str] = []
            timer = threading.Timer(timeout, lambda: (over.append("over"), _kill(pid)))
            timer.start()
            for thread in readers:
                thread.start()
            code = int(result.readline())
        for thread in readers:
            thread.join()
        timer.cancel()
        if over:
            raise subprocess.TimeoutExpired(["dlcli", *words], timeout, found[1], found[2])
        out, err = (found[n].decode().replace("\r\n", "\n").replace("\r", "\n") for n in (1, 2))
        return subprocess.CompletedProcess(["dlcli", *words], code, out, err)


def _umask() -> int:
    before = os.umask(0o22)
    os.umask(before)
    return before


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _read(number: int, name: int, found: dict[int, bytes]) -> None:
    with os.fdopen(number, "rb") as file:
        found[name] = file.read()


def _write(number: int, data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError), os.fdopen(number, "wb") as file:
        file.write(data)


# ----------------------------------------------------------------------------------------------- the process that forks


def serve(ours: socket.socket) -> None:
    import matplotlib  # noqa: F401
    import torch

    import dlcli.cli
    import dlcli.config
    import dlcli.datasets.digits
    import dlcli.inference.trained
    import dlcli.reporting.wandb_tracker
    import dlcli.training.session

    dlcli.cli.make_app()
    dlcli.config.compose_command(["digits"])
    images = torch.empty(4, 4, device="meta")  # torch imports half of itself, 3 s, at the first of these
    torch.nn.BatchNorm1d(4, device="meta")(images)[torch.empty(4, dtype=torch.int64, device="meta")]
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks that watch over a command
    ours.sendall(b"+")
    while True:
        head, numbers, _, _ = socket.recv_fds(ours, 8, 4)
        if not head:
            return
        wanted, text = int.from_bytes(head, "big"), b""
        while len(text) < wanted:
            text += ours.recv(wanted - len(text))
        if os.fork() == 0:
            ours.close()
            _watch(json.loads(text), numbers)
        for number in numbers:
            os.close(number)


def _watch(request: dict[str, Any], numbers: list[int]) -> None:
    """Fork the command and write down its process and how it ended; never returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        os.close(numbers[3])
        _command(request, numbers[:3])
    for number in numbers[:3]:
        os.close(number)
    os.write(numbers[3], f"{pid}\n".encode())
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.write(numbers[3], f"{code}\n".encode())
    os._exit(0)


def _command(request: dict[str, Any], numbers: list[int]) -> None:
    """`dlcli WORDS` from its first line to its exit code; never returns."""
    code = 99
    try:
        _prepare(request, numbers)
        from dlcli.cli import main

        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except BaseException:
            traceback.print_exc()
            code = 1
        threading._shutdown()  # type: ignore[attr-defined]  # what the interpreter does at its end: threads, then atexit
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                code = 120
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code & 0xFF)


def _prepare(request: dict[str, Any], numbers: list[int]) -> None:
    """Files, folder and environment as a fresh process has them, and no state left of what was asked before."""
    import tempfile

    import numpy as np

    import dlcli.config.composing

    atexit._clear()
    for target, number in enumerate(numbers):
        os.dup2(number, target)
        os.close(number)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, m, closefd=False) for n, m in ((0, "r"), (1, "w"), (2, "w")))
    sys.stderr.reconfigure(line_buffering=True, errors="backslashreplace")
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.argv = ["dlcli", *request["words"]]
    tempfile.tempdir = None
    np.random.seed()
    for found in vars(dlcli.config.composing).values():
        if hasattr(found, "cache_clear"):
            found.cache_clear()


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
