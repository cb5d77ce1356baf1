"""Weights & Biases, kept at arm's length: a separate process reads events.jsonl and feeds W&B (see follower.py).

    follower = start_follower(run.path, project="dlcli", mode="auto", run_id=new_run_id())
    ...                                                   # train; the events are written as if nobody read them
    print(follower.finish(timeout_s=10))                  # one line: where the charts are, or how to upload them

The training process never imports wandb, is never asked for a login, and is neither slowed nor stopped by it.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dlcli import PACKAGE
from dlcli.errors import ConfigError, TrackerError, printable
from dlcli.runs.disk import read_json, write_atomically
from dlcli.runs.folder import RunFolder
from dlcli.runs.redaction import redact

MODES = ("auto", "online", "offline", "disabled")
NO_KEY = "Log in once with `wandb login`, or set WANDB_API_KEY."
NO_UPLOAD = "Check the network (HTTPS_PROXY, WANDB_BASE_URL) and the key (`wandb login`, WANDB_API_KEY)"
NOT_INSTALLED = "Install it with: pip install wandb"
HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")  # W&B's own, under its two names

# The follower gets these variables and WANDB_*, and no other: what it does not know it cannot give away.
_NEEDED = (
    "PATH HOME USER LOGNAME LANG LANGUAGE TMPDIR NETRC VIRTUAL_ENV LD_LIBRARY_PATH SSL_CERT_FILE SSL_CERT_DIR "
    "REQUESTS_CA_BUNDLE CURL_CA_BUNDLE HTTP_PROXY HTTPS_PROXY NO_PROXY ALL_PROXY"
)
QUEUE, END = ".runs", "."  # the ending of a queue's file, and its last line
QUEUE_WAIT_S = 20.0
PLAN, STATUS = "follower.json", "status.json"  # in <run>/wandb: what the follower is to do, and how it fares


def new_run_id() -> str:
    """A new W&B run id: 8 letters and digits."""
    return "".join(secrets.choice("abcdefghijklmnopqrstuvwxyz0123456789") for _ in range(8))


# ------------------------------------------------------------------------------------------------------ online or not


def resolve_mode(environment: Mapping[str, str] = os.environ) -> str:
    """Resolve "auto": "online" if a key is configured, otherwise "offline"; WANDB_MODE comes first."""
    asked = environment.get("WANDB_MODE", "").lower()
    if asked == "disabled" or environment.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes"):
        return "disabled"
    if asked in ("offline", "dryrun"):
        return "offline"
    return "online" if has_key(environment) else "offline"


def has_key(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a W&B key is configured: in the environment, as an identity token file, or in the netrc file."""
    if environment.get("WANDB_API_KEY") or environment.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    import netrc

    base_url = environment.get("WANDB_BASE_URL")
    hosts = (urlsplit(base_url).netloc,) if base_url else HOSTS
    path = os.path.expanduser(environment.get("NETRC") or "~/.netrc")
    try:
        logins = netrc.netrc(path)
    except (OSError, ValueError, netrc.NetrcParseError):
        return False
    return any(host in logins.hosts for host in hosts)


# -------------------------------------------------------------------------------------------------- beside the training


@dataclass
class Follower:
    """The process that feeds W&B, seen from the training; it outlives the training if it must."""

    run: RunFolder
    mode: str
    process: subprocess.Popen[bytes]

    @property
    def message(self) -> str:
        """One line for the start of a run."""
        if self.mode == "online":
            return "W&B: online"
        return f"W&B: offline in the run folder; upload with: dlcli sync {self.run.name}"

    def finish(self, timeout_s: float = 10.0) -> str:
        """Wait at most `timeout_s` for the last rows to arrive, and say in one line what became of them."""
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.returncode = 0  # left to itself on purpose; Popen would complain that nobody waits for it
        status = read_status(self.run)
        upload = f"dlcli sync {self.run.name}"
        if status.get("state") == "finished" and status.get("mode") == "online":
            return f"W&B: {printable(status.get('url') or 'uploaded')}"
        if status.get("state") == "finished" or status.get("mode") == "offline":
            why = f" ({printable(status['error'])})" if status.get("error") else ""
            return f"W&B: kept offline{why}; upload with: {upload}"
        if status.get("state") in ("starting", "following"):
            return f"W&B: still busy in the background; should the run not arrive: {upload}"
        return f"W&B: failed ({printable(status.get('error', 'no answer'))}); upload with: {upload}"


def start_follower(run_folder: Path, *, mode: str, **facts: Any) -> Follower | None:
    """Start the process that feeds W&B from `run_folder`'s events; None when there is nothing to feed.

    At a resume, call this after events.jsonl was cut back to the checkpoint. facts: as for `plan_for`.
    Errors, only when W&B was asked for by name (mode "online"): TrackerError without a key or without wandb.
    """
    run = RunFolder(Path(run_folder).resolve())
    plan = plan_for(run, mode=mode, **facts)
    return Follower(run, plan["mode"], _spawn(run, plan)) if plan else None


def plan_for(
    run: RunFolder,
    *,
    project: str,
    mode: str,
    run_id: str,
    entity: str | None = None,
    name: str | None = None,
    group: str | None = None,
    pid: int | None = None,
) -> dict[str, Any] | None:
    """Plan the follower of a run; None when W&B is switched off or not installed. pid: of the training, else
    this process; group: of runs that W&B shows together.
    """
    if mode not in MODES:
        raise ConfigError(f"tracker.mode={printable(mode)} is not known", hint=f"It is one of: {', '.join(MODES)}.")
    chosen = resolve_mode() if mode == "auto" else mode
    if mode == "online":
        require_online()
    if chosen == "disabled" or find_spec("wandb") is None:
        return None
    return {
        "project": project,
        "entity": entity,
        "name": name or run.name,
        "group": group,
        "run_id": run_id,
        "mode": chosen,
        "pid": pid or os.getpid(),
        "fall_back": True,
    }


class RunQueue:
    """One process that feeds W&B from the runs of a worker, one after another: wandb is imported once.

    folder: of the sweep; name: of the worker. The process outlives the worker if it must.
    """

    def __init__(self, folder: Path, name: str):
        self.path = folder / "workers" / f"{name}{QUEUE}"
        self._process: subprocess.Popen[bytes] | None = None

    def add(self, run: RunFolder, facts: Mapping[str, Any]) -> None:
        """Feed this run next. facts: as for `plan_for`."""
        run = RunFolder(run.path.resolve())
        if (plan := plan_for(run, **facts)) is None:
            return
        _write_plan(run, plan | {"is_queued": True})
        self.path.parent.mkdir(exist_ok=True)
        self._tell(str(run.path))
        if self._process is None:
            self._process = _start(self.path, run)

    def _tell(self, line: str) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def __enter__(self) -> RunQueue:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is None:
            return
        self._tell(END)
        try:
            self._process.wait(QUEUE_WAIT_S)
        except subprocess.TimeoutExpired:
            self._process.returncode = 0  # left to itself on purpose


def require_online() -> None:
    if find_spec("wandb") is None:
        raise TrackerError("wandb is not installed, and W&B was asked for", hint=NOT_INSTALLED)
    if not has_key():
        raise TrackerError("no W&B key is configured", hint=NO_KEY)


def _spawn(run: RunFolder, plan: dict[str, Any]) -> subprocess.Popen[bytes]:
    """The arguments hold the run's path and nothing else: W&B writes its process's arguments into its file."""
    _write_plan(run, plan)
    return _start(run.path, run)


def _write_plan(run: RunFolder, plan: dict[str, Any]) -> None:
    try:
        run.wandb.mkdir(exist_ok=True)
        write_atomically(run.wandb / PLAN, json.dumps(redact(plan)).encode())
        write_atomically(run.wandb / STATUS, json.dumps({"state": "starting", "mode": plan["mode"]}).encode())
    except OSError as error:
        raise _not_started(error) from error


def _start(what: Path, run: RunFolder) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "dlcli.reporting.wandb_follower",
                str(what),
            ],  # -P: no module of the user's folder
            cwd=what if what.is_dir() else what.parent,
            env=_environment(run),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # the terminal's Ctrl-C is not meant for it
        )
    except OSError as error:
        raise _not_started(error) from error


def _not_started(error: OSError) -> TrackerError:
    return TrackerError(f"the W&B process cannot be started: {error}", hint="Train without it: tracker=none")


def _environment(run: RunFolder) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name.upper() in _NEEDED.split() or name.startswith(("WANDB_", "LC_", "XDG_", "PYTHONUTF8"))
    }
    kept["PYTHONPATH"] = os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
    # Without these wandb writes to ~/.cache, ~/.config and ~/.local: nothing is written outside the run.
    for folder in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"):
        kept.setdefault(folder, str(run.wandb / "cache"))
    kept.setdefault("WANDB_ERROR_REPORTING", "false")
    return kept


def read_status(run: RunFolder) -> dict[str, Any]:
    """state: starting, following, finished or failed; mode: online or offline; url, error."""
    return read_json(run.wandb / STATUS) or {}


# ---------------------------------------------------------------------------------------------------------- afterwards


def sync_run(run: RunFolder, *, project: str | None = None, connect_s: float = 20.0, timeout_s: float = 600.0) -> str:
    """Upload a run by replaying its events; returns its address.

    Errors: TrackerError without a key, without a connection within `connect_s`, or not done within `timeout_s`.
    """
    require_online()
    if not run.events.is_file():
        raise TrackerError(f"{run.name} has no events to upload: {printable(run.events)}", hint="See: dlcli runs ls")
    settings = _tracker_settings(run)
    plan = {
        "project": project or settings.get("project") or "dlcli",
        "entity": settings.get("entity"),
        "name": run.name,
        "group": settings["group"],
        "run_id": settings["run_id"],
        "mode": "online",
        "pid": None,
        "fall_back": False,
    }
    run = RunFolder(run.path.resolve())
    process = _spawn(run, plan)
    try:
        return _await_upload(run, process, connect_s, timeout_s)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _tracker_settings(run: RunFolder) -> dict[str, Any]:
    """From run.yaml: project, entity and run_id; without one an id that is the same at every upload."""
    record = run.read_record() if run.run_yaml.is_file() else {}
    config = record.get("config")
    tracker = config.get("tracker") if isinstance(config, dict) else None
    settings = dict(tracker) if isinstance(tracker, dict) else {}
    settings["group"] = record.get("group")
    settings["run_id"] = record.get("wandb_id") or sha256(run.folder_name.encode()).hexdigest()[:12]
    return settings


def _await_upload(run: RunFolder, process: subprocess.Popen[bytes], connect_s: float, timeout_s: float) -> str:
    start = time.monotonic()
    while True:
        ended = process.poll() is not None
        status, waited = read_status(run), time.monotonic() - start
        if status.get("state") == "finished":
            return str(status.get("url") or run.name)
        if ended or status.get("state") == "failed":
            why = printable(status.get("error", "the W&B process ended"))
            raise TrackerError(
                f"{run.name} was not uploaded: {why}", hint=f"{NO_UPLOAD}, then again: dlcli sync {run.name}"
            )
        if waited > (connect_s if status.get("state") == "starting" else timeout_s):
            raise TrackerError(
                f"{run.name} was not uploaded: no answer from W&B in {waited:.0f} s",
                hint=f"{NO_UPLOAD}, then again: dlcli sync {run.name}",
            )
        time.sleep(0.1)
