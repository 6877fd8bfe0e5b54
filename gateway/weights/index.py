"""Where the user's package index keeps a wheel: asked of pip itself, so all of its configuration counts.

Index addresses, mirrors, credentials, proxies, certificates: pip knows them, and this project names no index host. pip is
run as a program that only plans an installation: `--dry-run` installs nothing, `--only-binary :all:` never builds (and so
never runs anything of the package), `fast-deps` reads a wheel's metadata alone where the index can send ranges.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from gateway.weights.errors import DownloadFailed, Unreachable

_PATIENCE = 300.0  # seconds for all of pip's questions to the index


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel in an index. sha256: hex digest, None where the index gives none."""

    requirement: str
    url: str
    sha256: str | None

    @property
    def filename(self) -> str:
        return unquote(urlsplit(self.url).path).rpartition("/")[2]


Index = Callable[[Sequence[str]], list[Wheel]]
"""`name==version`… → their wheels, in the same order. Raises DownloadFailed."""


def pip_index(requirements: Sequence[str]) -> list[Wheel]:
    """Ask pip. Raises DownloadFailed (no pip, not in the index) or Unreachable (no answer from the index)."""
    with tempfile.TemporaryDirectory(prefix="modelnet-") as folder:
        report = Path(folder) / "report.json"
        plan = ["install", "--dry-run", "--ignore-installed", "--no-deps", "--only-binary", ":all:"]
        quiet = ["--quiet", "--no-input", "--disable-pip-version-check", "--retries", "2", "--report", str(report)]
        run = _run([*_pip(), *plan, "--use-feature", "fast-deps", *quiet, *requirements])
        if run.returncode == 2 and "fast-deps" in run.stderr:  # an option of some releases only
            run = _run([*_pip(), *plan, *quiet, *requirements])
        if run.returncode != 0 or not report.exists():
            raise _failure(run.stderr)
        installs = json.loads(report.read_text("utf-8"))["install"]
    found = {_canonical(item["metadata"]["name"]): item["download_info"] for item in installs}
    return [_wheel(requirement, found) for requirement in requirements]


def _pip() -> list[str]:
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    for name in ("pip3", "pip"):
        if program := shutil.which(name):
            return [program]
    raise DownloadFailed("needs pip to look packages up, and there is none")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except subprocess.TimeoutExpired as error:
        raise Unreachable(f"the package index did not answer within {_PATIENCE:.0f} s") from error


def _failure(stderr: str) -> DownloadFailed:
    """pip's own words, the last error of them."""
    errors = [line.removeprefix("ERROR: ") for line in stderr.splitlines() if line.startswith("ERROR: ")]
    if "after connection broken by" in stderr and "(from versions: none)" in stderr:
        return Unreachable("the package index can't be reached")
    return DownloadFailed(errors[-1] if errors else "pip gave no answer")


def _wheel(requirement: str, found: dict[str, Any]) -> Wheel:
    info = found.get(_canonical(requirement.partition("==")[0]))
    if info is None:
        raise DownloadFailed(f"the package index has no {requirement}")
    hashes = info.get("archive_info", {}).get("hashes", {})
    return Wheel(requirement, info["url"], hashes.get("sha256"))


def _canonical(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
