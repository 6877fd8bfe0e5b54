"""The ledger's tables: writing batches, forgetting what is old, and reading."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gateway.ledger.row import COLUMNS, Feedback, Row
from gateway.storage import Database, open_database

_MIGRATIONS = (
    """
    CREATE TABLE requests (
        id TEXT PRIMARY KEY,
        at DOUBLE PRECISION NOT NULL,
        request_id TEXT NOT NULL,
        endpoint TEXT NOT NULL,
        completion TEXT,
        key TEXT,
        route TEXT,
        arm TEXT,
        arm_by TEXT,
        subject TEXT,
        shares TEXT,
        shadow_of TEXT,
        model TEXT,
        wiring TEXT,
        shape TEXT NOT NULL,
        kind TEXT NOT NULL,
        status BIGINT NOT NULL,
        outcome TEXT NOT NULL,
        error TEXT,
        prompt_tokens BIGINT NOT NULL,
        completion_tokens BIGINT NOT NULL,
        nano BIGINT NOT NULL,
        seconds DOUBLE PRECISION NOT NULL,
        first_token DOUBLE PRECISION,
        stages TEXT,
        attempts TEXT,
        texts TEXT
    );
    CREATE INDEX requests_at ON requests (at);
    CREATE INDEX requests_route ON requests (route, at);
    CREATE INDEX requests_completion ON requests (completion);
    CREATE TABLE feedback (
        completion TEXT PRIMARY KEY,
        key TEXT,
        at DOUBLE PRECISION NOT NULL,
        score DOUBLE PRECISION NOT NULL
    );
    CREATE INDEX feedback_at ON feedback (at)
    """,
)

_INSERT = (
    f"INSERT INTO requests ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608 - constants
    " ON CONFLICT (id) DO NOTHING"
)
_SCORE = (
    "INSERT INTO feedback (completion, key, at, score) VALUES (?, ?, ?, ?)"
    " ON CONFLICT (completion) DO UPDATE SET key = excluded.key, at = excluded.at, score = excluded.score"
)
_CHUNK = 2000
"""Rows deleted in one transaction: other writers wait no longer than that takes."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What a report needs of one request to a route."""

    at: float
    arm: str
    arm_by: str | None
    subject: str | None
    shares: str | None
    shadow_of: str | None
    outcome: str
    tokens: int
    nano: int
    seconds: float
    first_token: float | None
    attempts: str | None
    score: float | None


class Tables:
    """Everything raises StorageError where the database fails."""

    def __init__(self, target: str) -> None:
        self._database: Database = open_database(target, _MIGRATIONS, "ledger")

    def close(self) -> None:
        self._database.close()

    def write(self, rows: Sequence[Row | Feedback]) -> None:
        """All of them or none. Writing a row twice changes nothing, so a batch whose end is not known can be written again."""
        requests = [row.values() for row in rows if isinstance(row, Row)]
        scores = {row.completion: row for row in rows if isinstance(row, Feedback)}
        with self._database.transaction():
            if requests:
                self._database.many(_INSERT, requests)
            if scores:
                ordered = sorted(scores.values(), key=lambda row: row.completion)
                self._database.many(_SCORE, [(row.completion, row.key, row.at, row.score) for row in ordered])

    def forget(self, before: float) -> int:
        """Delete some of what is older than that moment (Unix seconds); how many rows. 0: nothing is left to delete."""
        deleted = 0
        for table, name in (("requests", "id"), ("feedback", "completion")):
            old = f"SELECT {name} FROM {table} WHERE at < ? LIMIT {_CHUNK}"  # noqa: S608 - constants
            with self._database.transaction():
                deleted += len(
                    self._database.run(
                        f"DELETE FROM {table} WHERE {name} IN ({old}) RETURNING {name}",  # noqa: S608
                        (before,),
                    )
                )
        return deleted

    def owner(self, completion: str) -> tuple[str | None] | None:
        """(the key's id,) of a completion, None if there is no such one."""
        found = self._database.run("SELECT key FROM requests WHERE completion = ?", (completion,))
        return (found[0][0],) if found else None

    def observations(self, route: str, since: float, until: float) -> Iterator[Observation]:
        """Of a route's requests that came in a time (Unix seconds), in order. Scores count from the completion's own key only."""
        sql = (
            "SELECT r.at, r.arm, r.arm_by, r.subject, r.shares, r.shadow_of, r.outcome,"
            " r.prompt_tokens + r.completion_tokens, r.nano, r.seconds, r.first_token, r.attempts, f.score"
            " FROM requests r LEFT JOIN feedback f"
            " ON f.completion = r.completion AND COALESCE(f.key, '') = COALESCE(r.key, '')"
            " WHERE r.route = ? AND r.arm IS NOT NULL AND r.at >= ? AND r.at < ? ORDER BY r.at"
        )
        for row in self._database.each(sql, (route, since, until)):
            yield Observation(*row)

    def rows(self, limit: int = 100) -> list[dict[str, object]]:
        """The last requests, newest first, as they stand in the table."""
        sql = f"SELECT {', '.join(COLUMNS)} FROM requests ORDER BY at DESC LIMIT ?"  # noqa: S608 - constants
        return [dict(zip(COLUMNS, row, strict=True)) for row in self._database.run(sql, (limit,))]

    def count(self) -> int:
        """Rows of requests."""
        return int(self._database.run("SELECT COUNT(*) FROM requests")[0][0])
