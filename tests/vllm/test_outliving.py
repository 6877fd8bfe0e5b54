"""Engines end with the run that started them, whatever ends that. Harmless processes stand for them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import vllm_engines
from vllm_engines import Engine

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")

RUN = """
import sys
from pathlib import Path
sys.path.insert(0, {support!r})
import vllm_engines
vllm_engines.PYTHON = Path({python!r})
engine = vllm_engines.Engine("smol", Path({log!r}))
engine.launch()
print(engine._process.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """What an engine is started with: a server with a process of its own, neither of which ends."""
    file = tmp_path / "python"
    file.write_text("#!/bin/sh\nsleep 300 &\nexec sleep 300\n")
    file.chmod(0o755)
    return file


def running(group: int) -> list[int]:
    """Processes of a group that have not ended."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, its = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:3]
            except OSError:
                continue
            if int(its) == group and state != "Z":
                found.append(int(entry.name))
    return found


def until(count: int, group: int) -> None:
    deadline = time.monotonic() + 20
    while len(running(group)) != count:
        assert time.monotonic() < deadline, running(group)
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_engine_ends_with_the_run_that_is_killed(tmp_path: Path, python: Path, number: int) -> None:
    program = RUN.format(support=str(Path(vllm_engines.__file__).parent), python=str(python), log=str(tmp_path / "log"))
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as run:
        assert run.stdout is not None
        group = int(run.stdout.readline())
        until(2, group)
        os.killpg(run.pid, number)
    try:
        until(0, group)
    finally:
        for left in running(group):
            os.kill(left, signal.SIGKILL)


def test_one_that_was_ended_is_watched_no_more(tmp_path: Path, python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that is started again."""
    monkeypatch.setattr(vllm_engines, "PYTHON", python)
    engine = Engine("smol", tmp_path / "log")
    groups = []
    for _ in range(2):
        engine.launch()
        assert engine._process is not None
        assert engine._watch is not None
        groups.append((engine._process.pid, engine._watch._process))
        until(2, engine._process.pid)
        engine.kill()
    for group, watch in groups:
        assert not running(group)
        assert watch.returncode == 0
