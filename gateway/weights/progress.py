"""How a download is told to whoever waits for it: bars on a terminal, a few plain lines elsewhere, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as RichProgress


class Task(Protocol):
    """One thing under way, measured in bytes."""

    def advance(self, n: int) -> None:
        """n more bytes are done; negative when a start-over took some back."""
        ...

    def resize(self, total: int) -> None:
        """The total is now known better, in bytes."""
        ...


class Progress(Protocol):
    """Told what happens, from one thread."""

    def say(self, text: str) -> None:
        """One line."""
        ...

    def task(self, label: str, total: int) -> AbstractContextManager[Task]:
        """Enter for the time of one piece of work of `total` bytes."""
        ...


class Silent:
    """Says nothing."""

    def say(self, text: str) -> None:
        pass

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Task]:
        yield self

    def advance(self, n: int) -> None:
        pass

    def resize(self, total: int) -> None:
        pass


class Bars:
    """rich's progress bars: bytes, speed, time left."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False)

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Task]:
        columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
        with RichProgress(*columns, TimeRemainingColumn(), console=self._console) as bars:
            bar = bars.add_task(label, total=total)

            class Bar:
                def advance(self, n: int) -> None:
                    bars.advance(bar, n)

                def resize(self, total: int) -> None:
                    bars.update(bar, total=total)

            yield Bar()


class Lines:
    """A line at the start, at every tenth, and at the end: for logs and pipes."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def say(self, text: str) -> None:
        self._out.write(text + "\n")
        self._out.flush()

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Task]:
        start = time.monotonic()
        task = _LineTask(self, label, total)
        self.say(f"{label}: {megabytes(total)}")
        yield task
        self.say(f"{label}: done in {time.monotonic() - start:.1f} s")


class _LineTask:
    def __init__(self, lines: Lines, label: str, total: int) -> None:
        self._lines, self._label, self._total = lines, label, total
        self._done = 0
        self._told = 0  # tenths

    def advance(self, n: int) -> None:
        self._done += n
        tenths = 10 * self._done // max(self._total, 1)
        if self._told < tenths < 10:
            self._told = tenths
            self._lines.say(f"{self._label}: {10 * tenths} % ({megabytes(self._done)})")

    def resize(self, total: int) -> None:
        self._total = total


def megabytes(n: int) -> str:
    """Bytes for people."""
    return f"{n / 1e6:,.1f} MB"


def terminal_progress(out: TextIO | None = None) -> Progress:
    """Bars if `out` (standard error by default) is a terminal, lines if not."""
    out = sys.stderr if out is None else out
    return Bars(Console(file=out)) if out.isatty() else Lines(out)
