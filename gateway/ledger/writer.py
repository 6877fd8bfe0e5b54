"""The one thread that writes the ledger.

`put` is a few instructions on the event loop: no lock that anyone holds for long, no disk, no waiting. Everything else, turning rows
into text included, happens in the thread.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque

import structlog

from gateway.ledger.row import Feedback, Row
from gateway.ledger.tables import Tables
from gateway.storage import StorageError, Unfit

BATCH = 500
"""Rows of one transaction."""
RETRY_SECONDS = 0.5
RETRY_MOST = 15.0
FORGET_SECONDS = 3600.0
CLOSE_SECONDS = 5.0
REMEMBERED = 20_000
"""Completions whose key is kept in memory, for feedback that comes soon."""

DAY = 86_400.0

log = structlog.get_logger("modelnet.ledger")


class Ledger:
    """target: as of `open_database`. flush: seconds between two batches. queue: rows that may wait. days: how long rows are kept."""

    def __init__(self, target: str, *, flush: float = 0.25, queue: int = 20_000, days: float | None = None) -> None:
        self._target = target
        self._flush = flush
        self._most = queue
        self._days = days
        self._waiting: deque[Row | Feedback] = deque()
        self._owners: OrderedDict[str, str | None] = OrderedDict()
        self._tables: Tables | None = None
        self._wake = threading.Event()
        self._tried = threading.Event()
        self._ending = False
        self._thread = threading.Thread(target=self._work, name="ledger", daemon=True)
        self._forgot = 0.0
        self.dropped = 0
        self.written = 0
        self.failing: str | None = None

    def start(self, patience: float = 0.0) -> None:
        """Begin to write. Waits at most `patience` seconds until the database was opened or has failed: a new file wants the disk's
        attention several times, and no request should wait in memory for that. One that can't be reached yet is no reason not to serve.
        """
        self._thread.start()
        self._tried.wait(patience)

    @property
    def latest(self) -> float:
        """Seconds after which what other processes are just writing should be in the database."""
        return 2 * self._flush

    @property
    def waiting(self) -> int:
        """Rows not yet in the database."""
        return len(self._waiting)

    @property
    def crowded(self) -> bool:
        """Half of the room for waiting rows is taken: the rest is for requests."""
        return 2 * len(self._waiting) >= self._most

    def put(self, row: Row | Feedback) -> None:
        """Keep a row. Never waits, never raises."""
        if isinstance(row, Row) and row.completion is not None:
            self._owners[row.completion] = row.key
            if len(self._owners) > REMEMBERED:
                self._owners.popitem(last=False)
        if len(self._waiting) >= self._most:
            self.dropped += 1
            return
        self._waiting.append(row)
        if len(self._waiting) >= BATCH:
            self._wake.set()

    def owner(self, completion: str) -> tuple[str | None] | None:
        """(the key's id,) of a completion that ended here not long ago, None where that is not known. Never waits."""
        return (self._owners[completion],) if completion in self._owners else None

    def find_owner(self, completion: str) -> tuple[str | None] | None:
        """The same, from the database. For a thread. Raises StorageError."""
        tables = Tables(self._target)
        try:
            return tables.owner(completion)
        finally:
            tables.close()

    def close(self) -> None:
        """Write what waits, for at most CLOSE_SECONDS."""
        self._ending = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(CLOSE_SECONDS)
        if self._waiting:
            log.error("ledger_rows_lost", rows=len(self._waiting))

    def _work(self) -> None:
        pause, told = 0.0, 0  # the first time there is nothing to write yet: the database is opened
        deadline: float | None = None
        while True:
            self._wake.wait(pause)
            self._wake.clear()
            if self._ending and deadline is None:
                deadline = time.monotonic() + CLOSE_SECONDS - 1
            try:
                self._write_all()
                self._forget()
                pause = self._flush
            except Exception as error:
                if _is_the_databases(error):
                    self._fail(str(error))
                    pause = min(RETRY_MOST, max(RETRY_SECONDS, pause * 2))
                else:
                    # A row that can't be written must not end the thread, nor stand before all others for ever.
                    log.exception("ledger_batch_failed", rows=min(BATCH, len(self._waiting)))
                    self._fail(type(error).__name__)
                    self._skip()
            self._tried.set()
            if self.dropped > told:
                log.error("ledger_rows_dropped", rows=self.dropped - told)
                told = self.dropped
            if deadline is not None:
                if not self._waiting or time.monotonic() > deadline:
                    break
                pause = min(pause, RETRY_SECONDS)
        if self._tables is not None:
            self._tables.close()

    def _write_all(self) -> None:
        while self._waiting or self._tables is None:
            if self._tables is None:
                self._tables = Tables(self._target)
            # Only this thread takes rows away, so the first ones stay the first ones.
            batch = [self._waiting[index] for index in range(min(BATCH, len(self._waiting)))]
            if batch:
                self._tables.write(batch)
                for _ in batch:
                    self._waiting.popleft()
                self.written += len(batch)
            self._back()

    def _back(self) -> None:
        if self.failing is not None:
            log.info("ledger_back", after=self.failing)
            self.failing = None

    def _skip(self) -> None:
        """Write the first rows one by one, and leave out those that can't be written for their own sake."""
        for _ in range(min(BATCH, len(self._waiting))):
            try:
                if self._tables is None:
                    self._tables = Tables(self._target)
                self._tables.write([self._waiting[0]])
                self.written += 1
            except Exception as error:  # noqa: BLE001 - whatever is wrong with this row, the next one is to be tried
                if _is_the_databases(error):
                    self._fail(str(error))
                    return
                self.dropped += 1
                log.error("ledger_row_failed", error=type(error).__name__)
            self._waiting.popleft()
        self._back()

    def _forget(self) -> None:
        if self._days is None or self._tables is None or time.monotonic() < self._forgot:
            return
        if self._tables.forget(time.time() - self._days * DAY) == 0:
            self._forgot = time.monotonic() + FORGET_SECONDS

    def _fail(self, reason: str) -> None:
        if self.failing is None:
            log.error("ledger_unwritable", reason=reason, waiting=len(self._waiting))
        self.failing = reason
        if self._tables is not None:
            self._tables.close()
            self._tables = None


def _is_the_databases(error: Exception) -> bool:
    """Whether it is the database that fails, and no row's fault."""
    return isinstance(error, StorageError) and not isinstance(error, Unfit)
