"""The databases: how many rows are written at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.storage import StorageError, open_database

TABLE = "CREATE TABLE rows (id TEXT PRIMARY KEY, number BIGINT NOT NULL, note TEXT)"
INSERT = "INSERT INTO rows (id, number, note) VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET number = rows.number + excluded.number"


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


def test_tables_that_are_up_to_date_are_opened_without_writing(tmp_path: Path) -> None:
    """Reports and look-ups need not wait for who writes, nor be allowed to."""
    target = str(tmp_path / "rows.db")
    first = open_database(target, (TABLE,), "rows")
    with first.transaction():  # nobody else may write now
        second = open_database(target, (TABLE,), "rows")
        assert second.run("SELECT id FROM rows") == []
        second.close()
    first.close()


def test_a_batch_is_few_statements(tmp_path: Path) -> None:
    """Between two statements the interpreter is given away, and beside a busy event loop each time comes back only after 5 ms."""
    database = open_database(str(tmp_path / "rows.db"), (TABLE,), "rows")
    seen: list[str] = []
    database._connection.set_trace_callback(seen.append)  # type: ignore[attr-defined]
    with database.transaction():
        database.many(INSERT, [(f"id {number}", number, "") for number in range(250)])
    assert [statement.split()[0] for statement in seen] == ["BEGIN", *["INSERT"] * 3, "COMMIT"]
    database.close()
