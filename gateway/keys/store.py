"""Keys in a database, and what was spent on each. Synchronous: for a thread, or for the command line."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gateway.keys.key import NANO, Key, Rights
from gateway.keys.secrets import make_key
from gateway.storage import Database, StorageError, open_database

_MIGRATIONS = (
    """
    CREATE TABLE keys (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        digest TEXT NOT NULL,
        rights TEXT NOT NULL,
        created DOUBLE PRECISION NOT NULL,
        expires DOUBLE PRECISION,
        revoked DOUBLE PRECISION
    );
    CREATE TABLE spending (
        key TEXT NOT NULL,
        period TEXT NOT NULL,
        tokens BIGINT NOT NULL,
        nano BIGINT NOT NULL,
        PRIMARY KEY (key, period)
    )
    """,
)


class UnknownKey(Exception):
    """No key of that id."""

    def __init__(self, id: str) -> None:
        super().__init__(f"there is no key {id!r}")


@dataclass(frozen=True, slots=True)
class Spent:
    """tokens, and billionths of the currency."""

    tokens: int = 0
    nano: int = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.tokens + other.tokens, self.nano + other.nano)

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.tokens - other.tokens, self.nano - other.nano)

    def value(self) -> dict[str, Any]:
        """As JSON, the money in the currency itself."""
        return {"tokens": self.tokens, "money": self.nano / NANO}

    def of(self, unit: str) -> int:
        """In a budget's unit."""
        return self.tokens if unit == "tokens" else self.nano


Spending = dict[tuple[str, str], Spent]
"""(id of a key, name of a period) → what was spent in it."""


class KeyStore:
    """Everything raises StorageError where the database fails."""

    def __init__(self, target: str) -> None:
        self._database: Database = open_database(target, _MIGRATIONS, "keys")

    def close(self) -> None:
        self._database.close()

    def changes(self) -> int | None:
        """As of `Database.changes`."""
        return self._database.changes()

    def create(self, name: str, rights: Rights, expires: float | None = None) -> tuple[Key, str]:
        """A new key, and its text: there is no other moment at which it can be seen."""
        made = make_key()
        key = Key(made.id, name, made.digest, rights, time.time(), expires)
        self._database.run(
            "INSERT INTO keys (id, name, digest, rights, created, expires) VALUES (?, ?, ?, ?, ?, ?)",
            (key.id, name, made.digest.hex(), _rights_text(rights), key.created, expires),
        )
        return key, made.text

    def all(self) -> list[Key]:
        """In the order in which they were made, whatever their state."""
        rows = self._database.run(f"SELECT {_COLUMNS} FROM keys ORDER BY created, id")  # noqa: S608 - a constant
        return [_key(row) for row in rows]

    def get(self, id: str) -> Key:
        """Raises UnknownKey."""
        rows = self._database.run(f"SELECT {_COLUMNS} FROM keys WHERE id = ?", (id,))  # noqa: S608
        if not rows:
            raise UnknownKey(id)
        return _key(rows[0])

    def revoke(self, id: str) -> Key:
        """It never works again. Revoking twice keeps the first time. Raises UnknownKey."""
        key = self.get(id)
        if key.revoked is None:
            key = replace(key, revoked=time.time())
            self._database.run("UPDATE keys SET revoked = ? WHERE id = ?", (key.revoked, id))
        return key

    def expire(self, id: str, expires: float | None) -> Key:
        """Let it end at another moment (Unix seconds; None: never). Raises UnknownKey."""
        key = replace(self.get(id), expires=expires)
        self._database.run("UPDATE keys SET expires = ? WHERE id = ?", (expires, id))
        return key

    def change(self, id: str, rights: Rights) -> Key:
        """Give it other rights. Raises UnknownKey."""
        key = replace(self.get(id), rights=rights)
        self._database.run("UPDATE keys SET rights = ? WHERE id = ?", (_rights_text(rights), id))
        return key

    def spending(self, periods: tuple[str, ...] | None = None) -> Spending:
        """What was spent, by key and period; of these periods only, if given."""
        sql, values = "SELECT key, period, tokens, nano FROM spending", ()
        if periods is not None:
            sql += f" WHERE period IN ({', '.join('?' * len(periods))})"
            values = periods  # type: ignore[assignment]
        return {(key, period): Spent(tokens, nano) for key, period, tokens, nano in self._database.run(sql, values)}

    def spend(self, spending: Mapping[tuple[str, str], Spent]) -> None:
        """Add to what was spent: all of it, or (StorageError) nothing."""
        with self._database.transaction():
            self._database.many(
                "INSERT INTO spending (key, period, tokens, nano) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (key, period) DO UPDATE SET"
                " tokens = spending.tokens + excluded.tokens, nano = spending.nano + excluded.nano",
                # In one order everywhere, so that two processes never wait for each other's rows.
                [
                    (key, period, spent.tokens, spent.nano)
                    for (key, period), spent in sorted(spending.items(), key=_first)
                ],
            )


_COLUMNS = "id, name, digest, rights, created, expires, revoked"


def _first(item: tuple[tuple[str, str], Spent]) -> tuple[str, str]:
    return item[0]


def _key(row: tuple[Any, ...]) -> Key:
    id, name, digest, rights, created, expires, revoked = row
    try:
        return Key(id, name, bytes.fromhex(digest), Rights.of(json.loads(rights)), created, expires, revoked)
    except ValueError as error:
        raise StorageError(f"key {id} can't be read: {error}") from error


def _rights_text(rights: Rights) -> str:
    return json.dumps(rights.value(), separators=(",", ":"))
