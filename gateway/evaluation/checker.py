"""Algebra in a process of its own: an answer may be `9**9**9**9`, and comparing it may never end.

The process (`gateway.evaluation.algebra`) is started when the first expression is to be compared, answers one comparison at a time, and
is killed and replaced if that takes too long. Results are kept: the same answer comes again and again.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Self

SECONDS = 5.0
"""For one comparison; then it is not shown to be equal."""
START_SECONDS = 60.0
"""For the process to import its libraries."""


def available() -> bool:
    """Whether expressions can be compared up to algebra at all."""
    return importlib.util.find_spec("math_verify") is not None


class Checker:
    """`equal(answer, given)` for `judge`. Close it. May be used from several threads."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader: threading.Thread | None = None
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], bool] = {}
        self.timeouts = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def equal(self, answer: str, given: str) -> bool:
        """Never raises and never takes much longer than its limit. False without math-verify."""
        with self._lock:
            key = answer, given
            if key not in self._known:
                self._known[key] = self._ask(key) if available() else False
            return self._known[key]

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            if self._reader is not None:
                self._reader.join()  # it reads to the end, which has come
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):  # what was not taken any more
                        pipe.close()

    def _ask(self, key: tuple[str, str]) -> bool:
        for _ in range(2):  # a process that died is replaced once
            process = self._started()
            if process is None or process.stdin is None:
                return False
            try:
                process.stdin.write(json.dumps(key) + "\n")
                process.stdin.flush()
                line = self._lines.get(timeout=self._seconds)
            except queue.Empty:
                self.timeouts += 1
                self.close()
                return False
            except (OSError, ValueError):
                line = None
            if line is not None:
                return line == "true"
            self.close()
        return False

    def _started(self) -> subprocess.Popen[str] | None:
        if self._process is None:
            self._lines = queue.Queue()
            root = str(Path(__file__).resolve().parents[2])
            search = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH")) if part)
            # -P: what lies in the working directory is nobody's module.
            command = [sys.executable, "-P", "-m", "gateway.evaluation.algebra"]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                encoding="utf-8", env={**os.environ, "PYTHONPATH": search},
            )  # fmt: skip
            self._reader = threading.Thread(target=_read, args=(self._process.stdout, self._lines), daemon=True)
            self._reader.start()
            try:
                ready = self._lines.get(timeout=START_SECONDS)
            except queue.Empty:
                ready = None
            if ready != "ready":
                self.close()
        return self._process


def _read(pipe: IO[str], lines: queue.Queue[str | None]) -> None:
    """Hands on what the process says; None at its end."""
    try:
        for line in pipe:
            lines.put(line.strip())
    except (OSError, ValueError):  # closed under our hands
        pass
    lines.put(None)
