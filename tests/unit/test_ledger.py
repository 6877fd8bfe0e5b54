"""The ledger: what is kept, when, and what happens while it can't be."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from backends.types import Usage
from gateway.ledger import Feedback, Ledger, Row
from gateway.ledger.row import COLUMNS, outcome
from gateway.ledger.tables import Tables
from gateway.storage import StorageError
from strategies.engine.events import BranchReport, StageReport


def row(**fields: object) -> Row:
    made = Row(uuid.uuid4().hex, time.time())
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def until(condition: object, seconds: float = 8.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def target(tmp_path: Path) -> str:
    return str(tmp_path / "ledger.db")


def test_every_column_has_a_place(target: str) -> None:
    report = StageReport(0, (BranchReport("a", "solver", Usage(3, 2)),), 0.25, 0.1, "stop")
    whole = row(
        completion="chatcmpl-1", key="k", route="r", arm="x", arm_by="user", subject="s", shares={"x": 0.25, "y": 0.75},
        model="m\x00n", wiring="a", stages=(report,), attempts=(("b", "error: 502"),), texts={"answers": ["\ud800 中"]},
    )  # fmt: skip
    tables = Tables(target)
    tables.write([whole])
    found = tables.rows()[0]
    assert set(found) == set(COLUMNS) == set(Row.__slots__)
    assert json.loads(str(found["shares"])) == {"x": 0.25, "y": 0.75}
    assert json.loads(str(found["stages"])) == [
        {"stage": 0, "models": [["a", "solver", 3, 2]], "seconds": 0.25, "first": 0.1, "end": "stop"}
    ]
    assert json.loads(str(found["attempts"])) == [["b", "error: 502"]]
    assert json.loads(str(found["texts"])) == {"answers": ["\ud800 中"]}
    assert found["model"] == "mn"
    tables.close()


def test_a_batch_written_twice_is_there_once(target: str) -> None:
    rows = [row() for _ in range(5)]
    tables = Tables(target)
    tables.write(rows)
    tables.write([*rows, row()])
    assert tables.count() == 6
    tables.close()


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        (200, None, "ok"),
        (200, "backend_unavailable", "error"),
        (499, None, "abandoned"),
        (429, "rate_limit_exceeded", "refused"),
        (400, "x", "refused"),
        (502, "x", "error"),
        (500, None, "error"),
    ],
)
def test_outcomes(status: int, error: str | None, expected: str) -> None:
    assert outcome(status, error) == expected


def test_rows_are_there_soon_and_close_waits_for_the_last(target: str) -> None:
    ledger = Ledger(target, flush=0.05)
    ledger.start()
    for _ in range(1200):
        ledger.put(row())
    until(lambda: ledger.written == 1200)
    for _ in range(700):
        ledger.put(row())
    ledger.close()
    assert Tables(target).count() == 1900
    assert ledger.waiting == ledger.dropped == 0


def test_old_rows_are_forgotten(target: str) -> None:
    tables = Tables(target)
    old, new = row(completion="old"), row(completion="new")
    old.at -= 10 * 86_400
    tables.write([old, new, Feedback("old", None, old.at, 1.0), Feedback("new", None, new.at, 1.0)])
    ledger = Ledger(target, flush=0.05, days=5)
    ledger.start()
    until(lambda: tables.count() == 1)
    ledger.close()
    connection = sqlite3.connect(target)
    assert connection.execute("SELECT completion FROM feedback").fetchall() == [("new",)]
    connection.close()
    tables.close()


def test_a_locked_database_stops_nobody_and_loses_nothing(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.storage.database.BUSY_SECONDS", 0.05)
    ledger = Ledger(target, flush=0.02)
    ledger.start()
    ledger.put(row())
    until(lambda: ledger.written == 1)
    blocker = sqlite3.connect(target, isolation_level=None)
    blocker.execute("BEGIN EXCLUSIVE")
    slow = 0
    for _ in range(2000):
        began = time.perf_counter()
        ledger.put(row())
        slow += time.perf_counter() - began > 0.02
    until(lambda: ledger.failing is not None)
    assert ledger.waiting == 2000
    assert slow < 20  # one that waits for the database waits longer; a busy machine stops everybody now and then
    blocker.execute("COMMIT")
    blocker.close()
    until(lambda: ledger.written == 2001)
    assert ledger.failing is None
    assert ledger.dropped == 0
    ledger.close()


def test_what_does_not_fit_into_memory_is_dropped_and_counted(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    ledger = Ledger(str(tmp_path / "file" / "ledger.db"), flush=0.02, queue=100)
    ledger.start()
    for _ in range(150):
        ledger.put(row())
    assert ledger.dropped == 50
    until(lambda: ledger.failing is not None)
    (tmp_path / "file").unlink()
    until(lambda: ledger.written == 100)
    ledger.close()
    assert Tables(str(tmp_path / "file" / "ledger.db")).count() == 100


def test_a_row_that_can_not_be_written_stands_in_nobodys_way(target: str) -> None:
    class Odd(Row):
        def values(self) -> tuple[object, ...]:
            raise TypeError("not like this")

    ledger = Ledger(target, flush=0.02)
    for index in range(40):
        ledger.put(Odd("odd", 0.0) if index == 20 else row())
    ledger.start()
    until(lambda: ledger.written == 39)
    assert ledger.dropped == 1
    ledger.close()


def test_a_number_that_no_column_takes_stands_in_nobodys_way(target: str) -> None:
    ledger = Ledger(target, flush=0.02)
    for index in range(40):
        ledger.put(row(prompt_tokens=2**63) if index == 20 else row())
    ledger.start()
    until(lambda: ledger.written == 39)
    until(lambda: ledger.failing is None)  # though nothing comes after it
    assert ledger.dropped == 1
    ledger.close()


def test_a_database_that_is_lost_beside_a_row_that_can_not_be_written_loses_no_other(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = True
    write = Tables.write

    def sometimes(self: Tables, rows: Any) -> None:
        if len(rows) == 1 and away:
            raise StorageError("away")
        write(self, rows)

    monkeypatch.setattr(Tables, "write", sometimes)
    ledger = Ledger(target, flush=0.02)
    for index in range(10):
        ledger.put(row(prompt_tokens=2**63) if index == 5 else row())
    ledger.start()
    until(lambda: ledger.failing == "away")
    assert (ledger.waiting, ledger.dropped) == (10, 0)
    away = False
    until(lambda: ledger.written == 9)
    ledger.close()


def test_a_file_that_was_taken_away_is_made_anew(target: str) -> None:
    """As by who rotates logs. SQLite itself would go on writing where nobody looks."""
    ledger = Ledger(target, flush=0.02)
    ledger.start()
    ledger.put(row())
    until(lambda: ledger.written == 1)
    Path(target).rename(f"{target}.old")
    for _ in range(5):
        ledger.put(row())
    until(lambda: ledger.written == 6)
    ledger.close()
    assert Tables(target).count() == 5


FULL_DISK = """
    import resource, sys, time
    sys.path.insert(0, {root!r})
    from gateway.ledger import Ledger, Row
    ledger = Ledger({target!r}, flush=0.02)
    ledger.start()
    ledger.put(Row("first", 1.0))
    while not ledger.written:
        time.sleep(0.01)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
    slow = 0
    for index in range(3000):
        began = time.perf_counter()
        ledger.put(Row(f"row-{{index}}", 1.0, model="m" * 100))
        slow += time.perf_counter() - began > 0.02
    while ledger.failing is None:
        time.sleep(0.01)
    time.sleep(0.5)
    assert ledger.waiting > 0 and ledger.dropped == 0, (ledger.waiting, ledger.dropped)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    while ledger.waiting:
        time.sleep(0.01)
    ledger.close()
    print(ledger.written, slow < 20)
"""


def test_a_full_disk_stops_nobody_and_loses_nothing(target: str) -> None:
    """Files that may not grow any more; afterwards they may."""
    code = textwrap.dedent(FULL_DISK.format(root=str(Path(__file__).parents[2]), target=target))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip().endswith("3001 True"), done.stdout + done.stderr
    tables = Tables(target)
    assert tables.count() == 3001
    tables.close()


def test_feedback_finds_its_completion_and_the_last_one_counts(target: str) -> None:
    ledger = Ledger(target, flush=0.02)
    ledger.start()
    ledger.put(row(completion="c", key="k", route="r", arm="x"))
    assert ledger.owner("c") == ("k",)
    assert ledger.owner("unknown") is None
    for score in (0.0, 0.5):
        ledger.put(Feedback("c", "k", time.time(), score))
    until(lambda: ledger.written == 3)
    assert Ledger(target, flush=0.01).find_owner("c") == ("k",)
    assert Ledger(target, flush=0.01).find_owner("unknown") is None
    tables = Tables(target)
    assert [found.score for found in tables.observations("r", 0, 1e12)] == [0.5]
    tables.write([Feedback("c", "somebody else", time.time(), 1.0)])
    assert [found.score for found in tables.observations("r", 0, 1e12)] == [None]
    tables.close()
    ledger.close()


def test_two_writers_share_one_file(target: str) -> None:
    ledgers = [Ledger(target, flush=0.02) for _ in range(2)]
    for ledger in ledgers:
        ledger.start()

    def fill(ledger: Ledger) -> None:
        for _ in range(1000):
            ledger.put(row())

    threads = [threading.Thread(target=fill, args=(ledger,)) for ledger in ledgers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for ledger in ledgers:
        ledger.close()
    tables = Tables(target)
    assert tables.count() == 2000
    tables.close()


def test_a_url_without_a_server_says_nothing_of_the_password() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(StorageError) as caught:
        Tables("postgresql://user:hunter2@127.0.0.1:1/db")
    assert "hunter2" not in str(caught.value)
