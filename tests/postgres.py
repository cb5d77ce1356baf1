"""A real PostgreSQL for the tests, from the system's package: started on a free loopback port, stopped at the end."""

from __future__ import annotations

import glob
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

USER = "tester"


def find_binaries() -> Path | None:
    """The folder of initdb and postgres: the newest that Debian's packages, or the PATH, have."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/postgres"), key=lambda path: int(path.split("/")[4]))
    path = found[-1] if found else shutil.which("postgres")
    return Path(path).parent if path else None


@dataclass
class Server:
    """password: the user's, asked for over TCP. The data belong to an unprivileged user: initdb refuses root."""

    binaries: Path
    password: str = field(default_factory=lambda: f"canary-{secrets.token_hex(12)}")
    port: int = 0
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="dlcli-postgres-", dir="/tmp")))
    process: subprocess.Popen[bytes] | None = None

    def make(self) -> None:
        if account := _account():
            os.chown(self.folder, account.pw_uid, account.pw_gid)
        secret = self.folder / "password"
        secret.write_text(self.password)
        secret.chmod(0o644)
        self._run("initdb", "-D", str(self.data), "-U", USER, "--auth=scram-sha-256", f"--pwfile={secret}", "-N")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def start(self) -> None:
        """Returns when it answers. Written to disk lazily: it is thrown away."""
        options = ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={self.folder}"]
        fast = ["-c", "fsync=off", "-c", "shared_buffers=16MB", "-c", "max_connections=60"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(self.binaries / "postgres"), "-D", str(self.data), "-p", str(self.port), *options, *fast],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd="/", **_as_account(),
            )  # fmt: skip
        until = time.monotonic() + 60
        while self._call("pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)).returncode:
            assert self.process.poll() is None and time.monotonic() < until, (self.folder / "log").read_text()
            time.sleep(0.1)

    def stop(self) -> None:
        """At once, as in a power cut: the others' connections break."""
        if self.process is not None:
            self.process.send_signal(3)  # SIGQUIT: immediate shutdown
            self.process.wait(timeout=30)
            self.process = None

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def address(self, database: str, *, password: bool = True) -> str:
        user = f"{USER}:{self.password}" if password else USER
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def make_database(self, name: str) -> str:
        """The address of a new one."""
        done = self.query("postgres", f'CREATE DATABASE "{name}"')
        assert done.returncode == 0, done.stderr
        return self.address(name)

    def query(self, database: str, text: str) -> subprocess.CompletedProcess[str]:
        return self._call("psql", "-X", "-A", "-t", "-d", self.address(database), "-c", text)

    def _run(self, program: str, *words: str) -> None:
        done = self._call(program, *words)
        assert done.returncode == 0, done.stdout + done.stderr

    def _call(self, program: str, *words: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.binaries / program), *words]
        return subprocess.run(command, cwd="/", capture_output=True, text=True, check=False, **_as_account())


def _account() -> pwd.struct_passwd | None:
    """Who the server runs as, where the tests are root."""
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return None


def _as_account() -> dict[str, object]:
    account = _account()
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}
