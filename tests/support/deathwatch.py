"""Processes that must not outlive the run that started them, also where that is killed with SIGKILL and can tell nobody."""

from __future__ import annotations

import subprocess
import sys

_WATCH = """
import os, signal, sys
group, ended, _ = sys.stdin.buffer.read().partition(b".")  # until whoever holds the other end closes it, or is gone
if group and not ended:
    os.killpg(int(group), signal.SIGKILL)
"""


class DeathWatch:
    """A process beside this one that kills a process group once this one is gone. It sleeps until then, and nothing of what it watches
    knows of it. Make it before the group, so that no time is left in which nobody watches."""

    def __init__(self) -> None:
        # In a session of its own: what is sent to this one's group must not reach it.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _WATCH],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def over(self, group: int) -> None:
        """Watch over this process group."""
        self._say(str(group).encode())

    def end(self) -> None:
        """The group has ended: its number may be another's from now on."""
        self._say(b".")
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _say(self, what: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(what)
        self._process.stdin.flush()
