"""Faults at chosen moments: dlcli in forked children of one process that has imported torch, and what a run came to.

    with Forge() as forge:                                  # torch is imported once, 3 s
        child = forge.start("train", "digits", cwd=folder)  # then a command starts in 5 ms
        child.wait_for_lines(40)                            # of its events.jsonl
        child.kill(signal.SIGKILL)

A child is the program itself: `dlcli.cli.run` on its words, with its own process group, files and environment.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PATIENCE_S = 180  # against a hang only; nothing here is judged by a clock


class Forge:
    """The parent of the children; a context."""

    program = __file__  # of the process that forks

    def __enter__(self) -> Forge:
        from program import REPOSITORY, environment

        self.server = subprocess.Popen(
            [sys.executable, "-P", self.program],
            cwd=REPOSITORY,
            env=environment(OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1", MPLBACKEND="agg"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._receive() == {"ready": True}
        return self

    def __exit__(self, *_: object) -> None:
        assert self.server.stdin is not None and self.server.stdout is not None
        self.server.stdin.close()
        self.server.wait(timeout=PATIENCE_S)
        self.server.stdout.close()

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return self._receive()

    def _receive(self) -> dict[str, Any]:
        assert self.server.stdout is not None
        return json.loads(self.server.stdout.readline())

    def start(
        self,
        *words: str,
        cwd: Path,
        traced: bool = False,
        max_file_bytes: int | None = None,
        more_memory_bytes: int | None = None,
        **env: str,
    ) -> Child:
        """`dlcli WORDS`. traced: it waits until a tracer has taken hold of it; more memory: than torch takes anyway."""
        cwd.mkdir(parents=True, exist_ok=True)
        out = cwd / f".child-{time.monotonic_ns()}"
        request = {"words": words, "cwd": str(cwd), "out": str(out), "env": env, "traced": traced}
        answer = self.ask(**request, max_file_bytes=max_file_bytes, more_memory_bytes=more_memory_bytes)
        return Child(self, answer["pid"], cwd, out)

    def run(self, *words: str, cwd: Path, **options: Any) -> Child:
        """`dlcli WORDS` to its end."""
        child = self.start(*words, cwd=cwd, **options)
        child.wait()
        return child


@dataclass(frozen=True)
class Call:
    """A system call of the thread that saves: number `nth` of its name in that thread, and of more than others make."""

    name: str
    nth: int
    text: str

    @property
    def files(self) -> str:
        """The names it is about, without their folders."""
        opened = re.match(r"\d+<([^<>]+)>", self.text)
        names = [opened[1]] if opened else re.findall(r'"([^"]+)"', self.text)
        return " ".join(map(os.path.basename, names))


CALLS = ("mkdir", "mkdirat", "pwrite64", "fsync", "rename", "renameat", "renameat2", "symlink", "symlinkat", "unlink",
         "unlinkat", "rmdir")  # fmt: skip


def traced(forge: Forge, *words: str, cwd: Path, inject: str | None = None) -> tuple[Child, list[Call]]:
    """Run a command under strace; the calls that change files. inject: a fault, such as `fsync:error=EIO:when=3`."""
    (cwd / "outputs" / "digits").mkdir(parents=True)  # two calls fewer that are not the saver's
    child = forge.start(*words, cwd=cwd, traced=True)
    log = cwd / ".strace"
    fault = ["-e", f"inject={inject}"] if inject else []
    names = ",".join(f"?{name}" for name in CALLS)  # ?: not every architecture has each
    subprocess.run(
        ["strace", "-f", "-qq", "-y", "-s", "20", "-e", f"trace={names}", *fault, "-o", log, "-p", str(child.pid)],
        check=False,
        capture_output=True,
        timeout=PATIENCE_S,
    )
    child.wait()
    calls, counts = [], dict[tuple[str, str], int]()
    lines = log.read_text(errors="replace").splitlines()
    made = [(m[1], m[2], m[3]) for line in lines if (m := re.match(r"(\d+) +(\w+)\((.*)", line))]
    saver = next((thread for thread, name, text in made if "mkdir" in name and ".tmp-step-" in text), "")
    for thread, name, text in made:
        counts[thread, name] = counts.get((thread, name), 0) + 1
        if thread == saver:
            calls.append(Call(name, counts[thread, name], text.replace(f"-{child.pid}", "")))
    most = {
        name: max((n for (t, other), n in counts.items() if t != saver and other == name), default=0) for name in CALLS
    }
    return child, [call for call in calls if call.nth > most[call.name]]  # a fault hits the nth call of each thread


@dataclass
class Child:
    forge: Forge
    pid: int
    cwd: Path
    out: Path
    code: int | None = None
    stdout: str = field(default="", repr=False)
    stderr: str = field(default="", repr=False)

    def wait(self) -> int:
        """Its exit code, negative for a signal, as in subprocess."""
        if self.code is None:
            code = self.forge.ask(wait=self.pid)["code"]
            if code is None:
                self.signal(signal.SIGKILL)
                self.forge.ask(wait=self.pid)
                raise AssertionError(f"no end after {PATIENCE_S} s")
            self.code = code
            self.stdout, self.stderr = (_text(self.out.with_suffix(end)) for end in (".out", ".err"))
        return self.code

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> bool:
        """SIGKILL; whether it was still running."""
        self.signal(signal.SIGKILL)
        return self.wait() == -signal.SIGKILL

    def is_over(self) -> bool:
        """Whether it has ended (and waits for `wait`)."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
        except OSError:
            return True

    def wait_for_lines(self, count: int, run: Path | None = None) -> bool:
        """Until the run's events.jsonl has `count` lines; False when the child ended before."""
        until = time.monotonic() + PATIENCE_S
        while num_lines(run or only_run(self.cwd)) < count:
            if self.is_over():
                return False
            assert time.monotonic() < until, "no progress"
            time.sleep(0.0005)
        return True


def only_run(cwd: Path) -> Path | None:
    """The run folder under cwd/outputs; None before there is one."""
    found = list(cwd.glob("outputs/*/*"))
    assert len(found) <= 1, found
    return found[0] if found else None


def run_of(cwd: Path) -> Path:
    found = only_run(cwd)
    assert found is not None
    return found


def num_lines(run: Path | None) -> int:
    try:
        return 0 if run is None else (run / "events.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def _text(path: Path) -> str:
    text = path.read_text(errors="backslashreplace")
    path.unlink()
    return text


def events(run: Path, name: str | None = None) -> list[dict[str, Any]]:
    """The events of a run, or those of one kind; every line must be whole."""
    found = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [event for event in found if name in (None, event["event"])]


def outcome(run: Path) -> dict[str, Any]:
    """All that two equal trainings have in common: bytes of the tensors, positions, every recorded number but times."""
    found: dict[str, Any] = {}
    for name in ("last", "best"):
        folder = run / "checkpoints" / name
        found[f"{name} is"] = os.readlink(folder)
        for file in ("model.safetensors", "state.safetensors"):
            found[f"{name}/{file}"] = hashlib.sha256((folder / file).read_bytes()).hexdigest()
        state = json.loads((folder / "checkpoint.json").read_text())["body"]["state"]
        found |= {f"{name}/{part}": state[part] for part in ("optimizers", "averages", "scaler")}
    for event in events(run, "epoch"):
        found[f"epoch at {event['step']}"] = [event[key] for key in ("epoch", "metrics", "lr", "best")]
    for event in events(run, "values"):
        found[f"values at {event['step']}"] = event["values"]
    steps = [event["step"] for event in events(run, "values")]
    assert steps == sorted(set(steps)), "a step stands twice in events.jsonl"
    finished = events(run, "run_finished")[-1]
    return found | {"scores": finished["metrics"], "status": finished["status"], "step": finished["step"]}


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    return sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))


def killed_and_resumed(
    forge: Forge, cwd: Path, words: tuple[str, ...], *, lines: int, kills: int, seed: int, resume: tuple[str, ...] = ()
) -> tuple[Path, int]:
    """Train, be killed with SIGKILL at random moments between the first checkpoint and the end, resume until the end.

    lines: of the events.jsonl of an uninterrupted training. Returns the run's folder and the number of kills that hit.
    """
    chance = random.Random(seed)
    child = forge.start("train", *words, cwd=cwd)
    hits, first = 0, lines // 6
    for _ in range(kills):
        child.wait_for_lines(first := chance.randint(first, max(first, lines - lines // 6)))
        time.sleep(chance.random() * 0.01)
        hits += child.kill()
        child = forge.start("resume", str(run_of(cwd)), *resume, cwd=cwd)
    assert child.wait() == 0, child.stderr
    return run_of(cwd), hits


# ----------------------------------------------------------------------------------------------- the process that forks


def serve() -> Iterator[dict[str, Any]]:
    import matplotlib.pyplot  # noqa: F401
    import torch

    import dlcli.cli
    import dlcli.config
    import dlcli.datasets.digits
    import dlcli.inference.trained
    import dlcli.reporting.pictures
    import dlcli.reporting.wandb_tracker
    import dlcli.training.session

    torch.set_num_threads(1)
    dlcli.cli.make_app()
    dlcli.config.compose_command(["digits"])
    images = torch.empty(4, 4, device="meta")  # torch imports half of itself, 3 s, at the first of these
    torch.nn.BatchNorm1d(4, device="meta")(images)[torch.empty(4, dtype=torch.int64, device="meta")]
    yield {"ready": True}
    for line in sys.stdin:
        request = json.loads(line)
        yield {"code": wait(request["wait"])} if "wait" in request else {"pid": fork(request)}


def wait(pid: int) -> int | None:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    return None


def fork(request: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        prepare(request)
        from dlcli.cli import run

        code = run(list(request["words"]))
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def prepare(request: dict[str, Any]) -> None:
    """Files, folder, environment and limits of a child, as a fresh process has them."""
    os.setpgid(0, 0)
    os.chdir(request["cwd"])
    os.environ.update(request["env"])
    sys.path[:0] = filter(None, request["env"].get("PYTHONPATH", "").split(os.pathsep))
    for number, target in ((0, "/dev/null"), (1, request["out"] + ".out"), (2, request["out"] + ".err")):
        opened = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, m, closefd=False) for n, m in ((0, "r"), (1, "w"), (2, "w")))
    sys.stderr.reconfigure(line_buffering=True)
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
    if request["max_file_bytes"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["max_file_bytes"],) * 2)
    if request["more_memory_bytes"]:
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + request["more_memory_bytes"],) * 2)
    if request["traced"]:
        ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1 % 2**64), 0, 0, 0)  # PR_SET_PTRACER: anybody
    while request["traced"] and "TracerPid:\t0\n" in Path("/proc/self/status").read_text():
        time.sleep(0.001)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    for answer in serve():
        print(json.dumps(answer), flush=True)
