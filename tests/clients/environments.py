"""Environments of the clients that the gateway is tried with, one for each, apart from the gateway's own.

    python tests/clients/environments.py [NAME …]       make them, or say why not; with no name: all
    python tests/clients/environments.py --core          those that every run of the tests has

A client is a folder beside this file with a `requirements.txt` (pip) or a `package.json` (npm). Its environment is kept in
`clients/NAME` under MODELNET_HOME or ~/.cache/modelnet, and made again when that file, or Python, is another one. A `source.txt`
names what is unpacked beside it as its authors published it: with their own tests.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
CORE = ("openai2", "openai3", "langchain", "openai_node")
"""Small, and quick to install."""
ALWAYS = (*CORE, "openai_own", "schemathesis")
"""In every run of the tests: these, and the suites that others wrote for servers like this one."""

SECONDS = 600
"""Most that one installation may take."""


class NotInstalled(Exception):
    """There is no environment; the message says why."""


@dataclass(frozen=True)
class Environment:
    """One client's. `folder`: where it is kept."""

    name: str

    @property
    def folder(self) -> Path:
        home = Path(os.environ.get("MODELNET_HOME") or Path.home() / ".cache" / "modelnet")
        return home / "clients" / self.name

    @property
    def node(self) -> bool:
        return (HERE / self.name / "package.json").exists()

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def program(self, name: str) -> Path:
        """A command that the client brings."""
        return self.folder / "bin" / name

    @property
    def _wanted(self) -> str:
        source = HERE / self.name / ("package.json" if self.node else "requirements.txt")
        about = b"" if self.node else sys.version.encode()
        return hashlib.sha256(source.read_bytes() + about).hexdigest()

    @property
    def ready(self) -> bool:
        stamp = self.folder / ".ready"
        return stamp.exists() and stamp.read_text() == self._wanted

    def make(self) -> None:
        """Install it unless it is there. Raises NotInstalled."""
        if self.ready:
            return
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with (self.folder.parent / f".{self.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two runs of the tests may want it at once
            if self.ready:
                return
            shutil.rmtree(self.folder, ignore_errors=True)
            self._npm() if self.node else self._pip()
            (self.folder / ".ready").write_text(self._wanted)

    def _pip(self) -> None:
        _run([sys.executable, "-m", "venv", str(self.folder)])
        pip = [str(self.python), "-m", "pip", "--disable-pip-version-check", "--no-input"]
        needs = HERE / self.name / "requirements.txt"
        _run([*pip, "install", "--quiet", "--prefer-binary", "--requirement", str(needs)])
        if (source := HERE / self.name / "source.txt").exists():
            place = self.folder / "source"
            wanted = source.read_text(encoding="utf-8").strip()
            _run([*pip, "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest", str(place), wanted])
            for archive in place.glob("*.tar.gz"):
                with tarfile.open(archive) as files:
                    files.extractall(place, filter="data")

    def _npm(self) -> None:
        if shutil.which("npm") is None or shutil.which("node") is None:
            raise NotInstalled("node and npm are not here")
        self.folder.mkdir(parents=True)
        shutil.copy(HERE / self.name / "package.json", self.folder)
        _run(["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"], self.folder)


def _run(command: list[str], folder: Path | None = None) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise NotInstalled(f"installing took more than {SECONDS} seconds") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise NotInstalled("; ".join(said[-3:]) or f"exit code {done.returncode}")


def names() -> list[str]:
    """All clients."""
    files = [*HERE.glob("*/requirements.txt"), *HERE.glob("*/package.json")]
    return sorted(file.parent.name for file in files)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*names(), []], help="which (default: all)")
    parser.add_argument("--core", action="store_true", help="those that every run of the tests has")
    given = parser.parse_args()
    for name in ALWAYS if given.core else given.names or names():
        try:
            Environment(name).make()
        except NotInstalled as error:
            sys.stdout.write(f"{name}: not installed: {error}\n")
        else:
            sys.stdout.write(f"{name}: ready in {Environment(name).folder}\n")


if __name__ == "__main__":
    main()
