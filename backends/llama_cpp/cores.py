"""The process's budget of computing threads.

llama.cpp's threads wait for each other by spinning. With more of them than cores every wait costs a time slice: 10 to 50
times the work itself was measured. So a pass first leases its threads here, and all models together never exceed the cores.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Cores:
    """`total` cores (None: those this process may use), leased first come, first served."""

    def __init__(self, total: int | None = None) -> None:
        self.total = available() if total is None else total
        if self.total < 1:
            raise ValueError("there must be at least one core")
        self._free = self.total
        self._line: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def lease(self, most: int) -> Iterator[int]:
        """Wait for one core, and take up to `most` of those that are free and that nobody behind waits for.

        Blocks the calling thread. Gives the number leased.
        """
        if most < 1:
            raise ValueError("a lease is at least one core")
        mine = object()
        with self._changed:
            self._line.append(mine)
            while self._line[0] is not mine or self._free == 0:
                self._changed.wait()
            self._line.popleft()
            count = min(most, max(1, self._free - len(self._line)))
            self._free -= count
            self._changed.notify_all()
        try:
            yield count
        finally:
            with self._changed:
                self._free += count
                self._changed.notify_all()

    @property
    def free(self) -> int:
        """Cores not leased now."""
        return self._free


def available() -> int:
    """Cores this process may use: its affinity, and the quota of its container if there is one (cgroup v2)."""
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    return max(1, min(count, _quota(Path("/sys/fs/cgroup/cpu.max"), count)))


def _quota(file: Path, otherwise: int) -> int:
    try:
        quota, period = file.read_text().split()
        return otherwise if quota == "max" else max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return otherwise
