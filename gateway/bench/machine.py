"""Where, when and with which code a run was made."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from backends.llama_cpp.cores import available
from strategies.fusion import native

BUSY = 0.5
"""Load per core from which on figures are not to be trusted."""


@dataclass(frozen=True, slots=True)
class Machine:
    """cores: those this process may use. memory: of the machine, bytes. load: averages over 1, 5 and 15 minutes, None where the
    system tells none. llama_cpp_python: version, None if it is not installed. fuser: "native" or "python", what the
    fuser's core is (strategies.fusion.native)."""

    cpu: str
    cores: int
    memory: int | None
    load: tuple[float, float, float] | None
    system: str
    python: str
    llama_cpp_python: str | None
    fuser: str = "python"

    @property
    def busy(self) -> bool:
        """Whether others were computing when it was looked at."""
        return self.load is not None and self.load[0] > BUSY * self.cores


@dataclass(frozen=True, slots=True)
class Commit:
    """The checkout that the code runs from. dirty: tracked files differ from it."""

    id: str
    dirty: bool


def look() -> Machine:
    """This machine, now."""
    try:
        binding = importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:
        binding = None
    python, system = platform.python_version(), platform.platform()
    return Machine(_cpu(), available(), _memory(), _load(), system, python, binding, native.name())


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    named = _output("sysctl", "-n", "machdep.cpu.brand_string") if sys.platform == "darwin" else None
    return named or platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not a POSIX system
        return None


def _load() -> tuple[float, float, float] | None:
    try:
        return os.getloadavg()
    except (AttributeError, OSError):
        return None


def commit() -> Commit | None:
    """The commit of this code. None where it does not come from a checkout: installed, or there is no git."""
    here = str(Path(__file__).parent)
    # An installed copy may lie in the tree of another project: only a tracked file belongs to its repository.
    if _output("git", "-C", here, "ls-files", "--error-unmatch", str(Path("..", "__init__.py"))) is None:
        return None
    found = _output("git", "-C", here, "rev-parse", "HEAD")
    changes = _output("git", "-C", here, "status", "--porcelain", "--untracked-files=no")
    return Commit(found, bool(changes)) if found else None


def _output(program: str, *args: str) -> str | None:
    """What a program prints; None if it is not there or fails."""
    path = shutil.which(program)
    if path is None:
        return None
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # reading must not disturb who works in the checkout
    try:
        done = subprocess.run([path, *args], capture_output=True, text=True, timeout=10, check=False, env=environment)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
