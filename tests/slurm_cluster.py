"""A real Slurm on this machine's loopback for the tests: a controller and two nodes, started without systemd.

Needs root and Debian's packages: apt-get install --no-install-recommends slurm-wlm munge
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue")
CONF = """
ClusterName=dlcli
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
SlurmdTimeout=30
KillWait=15
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=2000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=2000
PartitionName=small Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


def why_not() -> str | None:
    """Why no cluster can be started here."""
    missing = [program for program in PROGRAMS if shutil.which(program, path=_path()) is None]
    if missing or os.getuid() != 0:
        return "needs root and a Slurm: apt-get install --no-install-recommends slurm-wlm munge"
    return None


def _path() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


@dataclass
class Cluster:
    """variables: what a process needs to find it."""

    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="dlcli-slurm-", dir="/tmp")))
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def variables(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": _path()}

    def start(self) -> None:
        self.folder.chmod(0o755)
        (self.folder / "state").mkdir()
        host = socket.gethostname().partition(".")[0]
        conf = CONF.format(host=host, folder=self.folder, ports=_free_ports(3))
        (self.folder / "slurm.conf").write_text(conf)
        self._start_munge()
        self._run("slurmctld", "-D", "-c")
        for node in ("n1", "n2"):
            self._run("slurmd", "-D", "-N", node)
        until = time.monotonic() + 60
        while self.call("sinfo", "--noheader", "--format=%T").split() != ["idle"]:
            assert time.monotonic() < until, self._logs()
            time.sleep(0.3)

    def _start_munge(self) -> None:
        account = pwd.getpwnam("munge")
        home = self.folder / "munge"
        home.mkdir()
        (home / "key").write_bytes(os.urandom(128))
        (home / "key").chmod(0o400)
        for path in (home, home / "key"):
            os.chown(path, account.pw_uid, account.pw_gid)
        os.chown(self.folder, account.pw_uid, account.pw_gid)  # for its socket
        names = {name: f"--{name}-file={home}/{name}" for name in ("log", "pid", "seed", "key")}
        self._run(
            "munged", "--foreground", f"--socket={self.folder}/munge.socket", *names.values(),
            user=account.pw_uid, group=account.pw_gid,
        )  # fmt: skip
        until = time.monotonic() + 30
        while not (self.folder / "munge.socket").exists():
            assert time.monotonic() < until, self._logs()
            time.sleep(0.1)

    def _run(self, program: str, *words: str, **account: int) -> None:
        path = shutil.which(program, path=_path())
        assert path
        with (self.folder / f"{program}.out").open("ab") as log:
            self.processes.append(
                subprocess.Popen(
                    [path, *words],
                    env=os.environ | self.variables,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd="/",
                    **account,
                )
            )

    def call(self, program: str, *words: str) -> str:
        done = subprocess.run(
            [program, *words], env=os.environ | self.variables, capture_output=True, text=True, check=False, timeout=60
        )
        return done.stdout

    def remove(self) -> None:
        self.call("scancel", "--me")
        until = time.monotonic() + 20
        while self.call("squeue", "--noheader").strip() and time.monotonic() < until:
            time.sleep(0.3)
        for process in reversed(self.processes):
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _logs(self) -> str:
        files = [*self.folder.glob("*.out"), *self.folder.glob("*.log")]
        return "\n".join(f"{path.name}: {path.read_text(errors='replace')[-1500:]}" for path in files)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [held.getsockname()[1] for held in sockets]
    for held in sockets:
        held.close()
    return ports
