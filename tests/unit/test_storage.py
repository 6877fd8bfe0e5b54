"""The databases: what is written beside a busy interpreter."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.storage import StorageError, open_database

TABLE = "CREATE TABLE rows (id TEXT PRIMARY KEY, number BIGINT NOT NULL, note TEXT)"
INSERT = "INSERT INTO rows (id, number, note) VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET number = rows.number + excluded.number"


@pytest.fixture
def busy() -> Iterator[None]:
    """A thread that never lets go of the interpreter by itself, as an event loop under load."""
    over = threading.Event()

    def spin() -> None:
        while not over.is_set():
            sum(range(500))

    thread = threading.Thread(target=spin)
    thread.start()
    yield
    over.set()
    thread.join()


@pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 350])
def test_many_rows_are_written_as_one_by_one(tmp_path: Path, count: int) -> None:
    database = open_database(str(tmp_path / "rows.db"), (TABLE,), "rows")
    rows = [(f"id {number % 120}", number, None if number % 3 else "a ? b") for number in range(count)]
    database.many(INSERT, iter(rows))
    expected: dict[str, tuple[int, str | None]] = {}
    for id, number, note in rows:
        expected[id] = (expected[id][0] + number, expected[id][1]) if id in expected else (number, note)
    found = database.run("SELECT id, number, note FROM rows")
    assert {id: (number, note) for id, number, note in found} == expected
    database.close()


def test_a_row_that_is_refused_is_a_storage_error(tmp_path: Path) -> None:
    database = open_database(str(tmp_path / "rows.db"), (TABLE,), "rows")
    with pytest.raises(StorageError), database.transaction():
        database.many(INSERT, [("a", 1, ""), ("b", None, "")])
    assert database.run("SELECT id FROM rows") == []
    database.close()


@pytest.mark.usefixtures("busy")
def test_a_batch_does_not_wait_for_the_interpreter_at_every_row(tmp_path: Path) -> None:
    """Against an INSERT for each, beside the same load: each of those waits for a switch interval."""
    database = open_database(str(tmp_path / "rows.db"), (TABLE,), "rows")
    took: list[float] = []
    for one in (True, False):
        began = time.perf_counter()
        with database.transaction():
            rows = [(f"{one} {number}", number, "") for number in range(200)]
            for part in [[row] for row in rows] if one else [rows]:
                database.many(INSERT, part)
        took.append(time.perf_counter() - began)
    assert took[1] < took[0] / 3
    database.close()
