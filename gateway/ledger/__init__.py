"""What became of every request, kept in SQLite or PostgreSQL.

The promise, which tests hold (docs/ledger.md):

- A request that has ended is in the database at the latest `flush_seconds` later, once. What ends a process without warning (kill -9,
  power) loses at most the requests that ended in that time, and those that were running.
- While the database can't be written (full disk, lost server), requests are answered as quickly as ever, and wait in memory: up to
  `queue` of them are written when it is back. Beyond that the newest are dropped, counted and logged.
- A shutdown writes what waits before the process ends, for a few seconds at most.

    row      what is kept of a request, and how it is made from the request's record
    prices   what tokens cost
    meter    what a running request has spent so far
    tables   the tables, and reading them
    writer   the one thread that writes, in batches
"""

from gateway.ledger.prices import Price, Prices
from gateway.ledger.row import Feedback, Row
from gateway.ledger.writer import Ledger

__all__ = ["Feedback", "Ledger", "Price", "Prices", "Row"]
