"""Real servers for end-to-end tests: Valkey (or Redis) and PostgreSQL, as the distribution's packages have them.

Every one runs in a folder of the test, on a free port of this machine, and ends with the test. Where there is no such program
the tests that need it are skipped with a message that says what to install.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

START_SECONDS = 30.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Valkey:
    """One server, without persistence: what it holds is gone when it is killed, as in the worst case."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program = program
        self._folder = folder
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        arguments = [
            *(self._program, "--port", str(self.port), "--bind", "127.0.0.1"),
            *("--save", "", "--appendonly", "no", "--dir", str(self._folder)),
        ]
        with (self._folder / "valkey.log").open("ab") as log:
            self.process = subprocess.Popen(arguments, stdout=log, stderr=log)
        _until(lambda: _answers(self.port), lambda: (self._folder / "valkey.log").read_text())

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def valkey(folder: Path) -> Iterator[Valkey]:
    """A running server. MODELNET_TEST_VALKEY names a program that is not on the path."""
    names = (os.environ.get("MODELNET_TEST_VALKEY"), "valkey-server", "redis-server")
    program = next((found for name in names if name and (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("needs a Valkey or Redis server (Debian: apt install valkey-server, or redis-server)")
    pytest.importorskip("redis", reason="needs the client (pip install redis)")
    server = Valkey(program, folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()


class Postgres:
    """One cluster. Servers refuse to run as root, so as root they run as the package's own user."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs = programs
        self._data = folder / "postgres"
        self._user = "postgres" if os.getuid() == 0 else None
        self.port = free_port()
        self.url = f"postgresql://modelnet:not-secret@127.0.0.1:{self.port}/postgres"

    def create(self) -> None:
        self._data.mkdir()
        secret = self._data.with_name("postgres-password")
        secret.write_text("not-secret\n", encoding="utf-8")
        if self._user is not None:
            for path in (self._data.parent, self._data, secret):
                shutil.chown(path, self._user)
        self._run(
            "initdb", "--pgdata", str(self._data), "--username", "modelnet", "--pwfile", str(secret),
            "--auth", "scram-sha-256", "--no-sync", "--no-instructions",
        )  # fmt: skip

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        self._run("pg_ctl", "start", "-D", str(self._data), "-w", "-o", options, "-l", str(self._data / "log"))

    def stop(self, how: str = "fast") -> None:
        self._run("pg_ctl", "stop", "-D", str(self._data), "-w", "-m", how)

    def _run(self, name: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._programs / name), *arguments],
            user=self._user,
            cwd="/",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{name}: {done.stderr.decode()}"


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    """A running server with a user and a password. In a folder of its own: pytest's are open to their owner only."""
    found = shutil.which("initdb")
    places = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    programs = next((place for place in places if (place / "initdb").exists()), None)
    if programs is None:
        pytest.skip("needs a PostgreSQL server (Debian: apt install postgresql)")
    pytest.importorskip("psycopg", reason="needs the client (pip install 'psycopg[binary]')")
    with tempfile.TemporaryDirectory(prefix="modelnet-postgres-") as folder:
        server = Postgres(programs, Path(folder))
        server.create()
        server.start()
        try:
            yield server
        finally:
            with contextlib.suppress(AssertionError):
                server.stop("immediate")


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.5) as connection:
        connection.settimeout(0.5)
        connection.sendall(b"PING\r\n")
        return connection.recv(16).startswith(b"+PONG")
    return False


def _until(condition: object, said: object) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, said()  # type: ignore[operator]
        time.sleep(0.05)
