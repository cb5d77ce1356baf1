"""Workers as jobs of Slurm, submitted through submitit: started again when they die or their time is over.

The jobs outlive the process that submitted them: `dlcli sweep resume` finds them by what is written here.

    outputs/sweeps/<name>/workers/slurm.json      job numbers
    outputs/sweeps/<name>/workers/slurm/          their scripts and logs

Whether a job is at work is asked of squeue, and how it ended of a file of its own: sacct needs a database that many
clusters lack, without which submitit's job.state stays UNKNOWN.
"""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from dlcli.errors import EnvironmentFault, printable
from dlcli.runs.disk import read_json, write_atomically
from dlcli.sweep.ledger.address import VARIABLE
from dlcli.sweep.workers.job import become, read_end
from dlcli.sweep.workers.local import safe_path
from dlcli.sweep.workers.slots import LOST, Slots

PROGRAMS = ("sbatch", "srun", "squeue", "scancel")
ASK_S = 3.0  # between two looks at the queue: the controller serves everybody
PATIENCE_S = 60.0  # for a program of Slurm to answer


def check_programs() -> None:
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        message = f"launcher=slurm: this machine has no {', '.join(missing)}"
        raise EnvironmentFault(message, hint="Start it on a node of the cluster, or take launcher=local.")


class SlurmWorkers(Slots):
    """settings: all of launchers.SETTINGS["slurm"]; storage: the full address of a shared ledger."""

    is_stopped_from_outside = True  # at the end of its time, or preempted: SIGTERM, and it hands its trial back

    def __init__(self, folder: Path, count: int, settings: Mapping[str, Any], storage: str | None = None):
        super().__init__(folder, count)
        self.settings, self.storage = settings, storage
        self.jobs: dict[int, str] = {}
        self._queue: set[str] = set()
        self._asked = 0.0
        self._cancelled: set[str] = set()

    def start(self) -> None:
        """Go on with the jobs that are there, and submit the others."""
        self._file.parent.mkdir(exist_ok=True)
        known = {int(slot): str(job) for slot, job in (read_json(self._file) or {}).items()}
        queue = queued_jobs() if known else None
        for slot, job in known.items():
            if slot < self.count and queue and job in queue:
                self.jobs[slot] = job
                self.at_work.add(slot)
        if self.jobs:
            self.notes.append(f"{len(self.jobs)} jobs of before are still in the queue, and go on")
        for slot in set(range(self.count)) - self.at_work:
            self._begin(slot)

    def begin(self, slot: int) -> None:
        import submitit

        self.end(slot).unlink(missing_ok=True)
        python = shlex.join([sys.executable, *safe_path()])
        executor = submitit.SlurmExecutor(folder=self._logs, python=python)
        executor.update_parameters(**parameters(self.settings, self.folder.name))
        try:
            with _environment(self.storage), redirect_stderr(io.StringIO()):  # submitit prints what it raises, too
                job = executor.submit(become, str(self.folder), str(self.end(slot)), tuple(safe_path()))
        except (submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedSubmissionError, OSError) as error:
            message = str(error).strip().splitlines()
            hint = "The settings are launcher.partition, launcher.account, ...: what does sinfo show?"
            raise EnvironmentFault(
                f"sbatch has refused: {printable(message[-1] if message else error)}", hint=hint
            ) from error
        self.jobs[slot] = str(job.job_id)
        self._queue.add(self.jobs[slot])
        write_atomically(self._file, json.dumps(self.jobs).encode())

    def poll(self, slot: int) -> int | None:
        code = read_end(self.end(slot))
        if code == 0:
            return code
        self._look()
        if self.jobs[slot] in self._queue:  # also preempted, and to be begun again by Slurm itself
            return None
        return LOST if (code := read_end(self.end(slot))) is None else code

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._asked > ASK_S:
            self._asked = now
            queue = queued_jobs()
            if queue is not None:  # otherwise the controller does not answer, and the jobs go on without it
                self._queue = queue

    def stop(self, number: int) -> None:
        """SIGTERM for what runs; what waits to be begun is taken out of the queue, and so is all at SIGKILL."""
        jobs = [self.jobs[slot] for slot in self.at_work]
        if not jobs:
            return
        if number == signal.SIGKILL:
            new = [job for job in jobs if job not in self._cancelled]
            self._cancelled.update(new)
            if new:
                _call("scancel", *new)
        else:
            _call("scancel", "--state=PENDING", *jobs)
            _call("scancel", "--signal=TERM", *jobs)

    def log(self, slot: int) -> Path:
        return self._logs / f"{self.jobs.get(slot, 'none')}_0_log.err"

    def end(self, slot: int) -> Path:
        return self._logs / f"{slot}.end"

    @property
    def _logs(self) -> Path:
        return self.folder / "workers" / "slurm"

    @property
    def _file(self) -> Path:
        return self.folder / "workers" / "slurm.json"

    def facts(self) -> dict[str, Any]:
        devices = [f"{self.settings['gpus']} GPU"] if self.settings["gpus"] else ["cpu"]
        return {"workers": self.count, "launcher": "slurm", "devices": devices, "threads": self.settings["cpus"]}


def parameters(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """For submitit: what sbatch is asked for."""
    plain = {key: settings[key] for key in ("partition", "account", "qos", "constraint", "exclude", "gres")}
    return {key: value for key, value in plain.items() if value is not None} | {
        "job_name": f"dlcli-{name}",
        "time": settings["timeout_min"],
        "nodes": 1,
        "ntasks_per_node": 1,
        "cpus_per_task": settings["cpus"],
        **({"gpus_per_node": settings["gpus"]} if settings["gpus"] else {}),
        **({"mem": f"{round(settings['mem_gb'] * 1024)}M"} if settings["mem_gb"] else {}),
        "setup": [f"export OMP_NUM_THREADS={settings['cpus']}"],
        # submitit would ask for USR2, of which the loaders' workers would die; a worker saves at SIGTERM
        "additional_parameters": {"signal": f"TERM@{settings['save_s']}", "requeue": True},
    }


def queued_jobs() -> set[str] | None:
    """Those of this user that run, wait or are ending; None where Slurm does not say."""
    said = _call("squeue", "--me", "--noheader", "--format=%i")
    return None if said is None else set(said.split())


def _call(program: str, *words: str) -> str | None:
    """What a program of Slurm prints; None where it fails."""
    try:
        done = subprocess.run([program, *words], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


@contextmanager
def _environment(storage: str | None) -> Iterator[None]:
    """What sbatch hands on to a job: without the places of a job or rank that submits it, and with the ledger's
    address, whose password is in no file of the sweep.
    """
    before = dict(os.environ)
    places = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    for name in before:
        if (name.startswith("SLURM_") and name != "SLURM_CONF") or name in places:
            del os.environ[name]
    if storage:
        os.environ[VARIABLE] = storage
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
