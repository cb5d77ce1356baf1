"""Workers on a cluster of Ray: an actor for each keeps the usual process on some node, and hands signals on to it.

An actor's process cannot be the worker itself: Ray answers SIGTERM with an end, where a worker saves. When the driver
or the actor dies, the system sends the worker SIGTERM (launch.dying_with).
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dlcli.errors import EnvironmentFault, printable
from dlcli.runtime.launch import dying_with
from dlcli.runtime.signals import WATCHED
from dlcli.sweep.ledger.address import VARIABLE
from dlcli.sweep.study.definition import FILE, Definition, read_definition
from dlcli.sweep.workers.local import safe_path
from dlcli.sweep.workers.slots import LOST, MORE, Slots

PROBE_S = 10.0
LAST_WORDS = 4_000  # bytes of a worker's log that travel


class Keeper:
    """In the actor: one worker's process. Where the node does not see the sweep's folder, it gets one of its own."""

    def __init__(self, folder: str, slot: int, definition: dict[str, Any], storage: str | None, options: list[str]):
        self.folder, self.storage, self.options = Path(folder), storage, options
        if not (self.folder / FILE).is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            Definition.from_dict(definition).write(self.folder)
        self.log = log_of(self.folder, slot)
        self.log.parent.mkdir(exist_ok=True)
        self._start()

    def _start(self) -> None:
        environment = dict(os.environ) | ({VARIABLE: self.storage} if self.storage else {})
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.options, "-m", "dlcli.sweep.workers.worker", str(self.folder)],
                env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                preexec_fn=dying_with(os.getpid()),
            )  # fmt: skip

    def poll(self) -> tuple[int | None, bytes]:
        """The exit code, None while it is at work; and what it said last."""
        code = self.process.poll()
        if code == MORE:
            self._start()
            code = None
        return code, b"" if code is None else self.log.read_bytes()[-LAST_WORDS:]

    def stop(self, number: int) -> None:
        with suppress(ProcessLookupError):
            self.process.send_signal(number)


class RayWorkers(Slots):
    """settings: all of launchers.SETTINGS["ray"]; storage: the full address of a shared ledger."""

    def __init__(self, folder: Path, count: int, settings: Mapping[str, Any], storage: str | None = None):
        super().__init__(folder, count)
        self.settings, self.storage = settings, storage
        self.keepers: dict[int, Any] = {}
        self._asked: dict[int, Any] = {}  # answers that are on their way
        self._answered: set[int] = set()
        self._killed: set[int] = set()

    def start(self) -> None:
        connect(self.settings["address"])
        super().start()

    def begin(self, slot: int) -> None:
        import ray

        needs: dict[str, Any] = {"num_cpus": self.settings["cpus"], "num_gpus": self.settings["gpus"]}
        if self.settings["mem_gb"]:
            needs["memory"] = int(self.settings["mem_gb"] * 2**30)
        actor: Any = ray.remote(Keeper).options(max_restarts=0, **needs)
        definition = read_definition(self.folder).as_dict()
        self.keepers[slot] = actor.remote(str(self.folder), slot, definition, self.storage, safe_path())
        self._asked.pop(slot, None)
        self._answered.discard(slot)

    def poll(self, slot: int) -> int | None:
        import ray

        if slot not in self._asked:
            self._asked[slot] = self.keepers[slot].poll.remote()
        if not ray.wait([self._asked[slot]], timeout=0)[0]:  # busy, or no node has room for it yet
            return None
        try:
            code, said = ray.get(self._asked.pop(slot))
        except ray.exceptions.RayError as error:
            self._keep_words(slot, f"error: {type(error).__name__}: {error}".encode())
            return LOST
        self._answered.add(slot)
        if code is not None:
            self._keep_words(slot, said)
            del self.keepers[slot]
        return code

    def _keep_words(self, slot: int, said: bytes) -> None:
        """Report a node that does not share the folder, or that is gone."""
        if not self.log(slot).is_file():
            self.log(slot).parent.mkdir(exist_ok=True)
            self.log(slot).write_bytes(said)

    def stop(self, number: int) -> None:
        """SIGTERM for what runs; an actor that no node has room for is given up."""
        import ray

        for slot in sorted(self.at_work):
            keeper = self.keepers[slot]
            if slot not in self._answered:
                ray.kill(keeper)
            elif number != signal.SIGKILL:
                keeper.stop.remote(signal.SIGTERM)
            elif slot not in self._killed:
                self._killed.add(slot)
                keeper.stop.remote(signal.SIGKILL)

    def log(self, slot: int) -> Path:
        return log_of(self.folder, slot)

    def facts(self) -> dict[str, Any]:
        devices = [f"{self.settings['gpus']} GPU"] if self.settings["gpus"] else ["cpu"]
        return {"workers": self.count, "launcher": "ray", "devices": devices, "threads": self.settings["cpus"]}


def log_of(folder: Path, slot: int) -> Path:
    return folder / "workers" / f"ray-{slot}.log"


def check_address(address: str) -> None:
    """Whether somebody listens there. ray.init would try for many minutes, deaf to Ctrl-C."""
    if address == "local":
        return
    place = _running_here() if address == "auto" else address.removeprefix("ray://")
    if not place:
        raise _no_cluster(address, "no cluster runs on this machine")
    parts = urlsplit(f"//{place}")
    try:
        socket.create_connection((parts.hostname or "", parts.port or 0), timeout=PROBE_S).close()
    except (OSError, ValueError) as error:
        raise _no_cluster(address, str(error)) from error


def _running_here() -> str | None:
    """What Ray means by `auto`."""
    with suppress(OSError):
        folder = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray"
        return os.environ.get("RAY_ADDRESS") or (folder / "ray_current_cluster").read_text().strip()
    return None


def _no_cluster(address: str, reason: str) -> EnvironmentFault:
    hint = "Start one with: ray start --head; or launcher.address=local for one that lives as long as the sweep."
    return EnvironmentFault(f"launcher.address={printable(address)} cannot be used: {printable(reason)}", hint=hint)


def connect(address: str) -> None:
    """Errors: EnvironmentFault where there is no such cluster."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    own: dict[str, Any] = {}
    if address == "local":  # guarded by a token of its own: Ray's default is one in ~/.ray that all clusters share
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        own = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    import ray

    handlers = {number: signal.getsignal(number) for number in WATCHED}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except Exception as error:  # ConnectionError, RuntimeError, ValueError, its own: all mean the same here
        message = str(error).strip().splitlines()
        raise _no_cluster(address, message[0] if message else type(error).__name__) from error
    finally:
        for number, handler in handlers.items():  # Ray puts its own in the place of those that let workers save
            signal.signal(number, handler)
