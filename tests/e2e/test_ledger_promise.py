"""What the ledger promises, against real processes that are killed and a real PostgreSQL that goes away."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from served import Process
from services import Postgres, postgres

from gateway.ledger.tables import Tables

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

FLUSH = 0.25
WRITE = 2.0
"""Seconds that a batch may take to be written on a machine that is busy with the load as well."""

CONFIG = """
models:
  a: {{backend: fake, answer: "one two three"}}
  long: {{backend: fake, delay: 0.2, answer: "one two three four five six seven eight nine"}}
key_store: {{database: "{keys}"}}
ledger: {{database: "{ledger}", flush_seconds: {flush}}}
server: {{log: {{level: error}}}}
"""


@contextlib.contextmanager
def gateway(folder: Path, ledger: str, keys: str = "keys.db", name: str = "gateway") -> Iterator[Process]:
    file = folder / f"{name}.yaml"
    file.write_text(CONFIG.format(ledger=ledger, keys=keys, flush=FLUSH), encoding="utf-8")
    arguments = ["-m", "gateway", "serve", "--config", str(file), "--port", "0"]
    process = Process(folder, name, arguments, r"serving on (http://\S+)/v1", {})
    try:
        yield process
    finally:
        if process.process.poll() is None:
            process.end()


class Load:
    """Clients that ask until they are stopped. ended: completion → when its client had all of it."""

    def __init__(self, url: str, clients: int = 12) -> None:
        self._url = f"{url}/v1/chat/completions"
        self._clients = clients
        self.ended: dict[str, float] = {}
        self.slowest = 0.0
        self.failed = 0
        self._stop = False

    async def run(self) -> None:
        async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as tasks:
            for number in range(self._clients):
                tasks.create_task(self._client(session, "long" if number % 4 == 3 else "a"))

    def stop(self) -> None:
        self._stop = True

    async def _client(self, session: aiohttp.ClientSession, model: str) -> None:
        body = {"model": model, "messages": [{"role": "user", "content": "Why?"}]}
        while not self._stop:
            began = time.monotonic()
            try:
                async with session.post(self._url, json=body) as reply:
                    value = await reply.json()
            except aiohttp.ClientError:
                return
            if reply.status != 200:
                self.failed += 1
                continue
            self.ended[value["id"]] = time.monotonic()
            if model == "a":
                self.slowest = max(self.slowest, time.monotonic() - began)


class Seen:
    """What another process can read of the ledger while it is written. lags: seconds that the oldest answer not yet there waits."""

    def __init__(self, file: Path, load: Load) -> None:
        self._rows = sqlite3.connect(file, timeout=5)
        self._load = load
        self.kept: set[str] = set()
        self.lags: list[float] = []

    async def run(self, seconds: float) -> None:
        """Look every few milliseconds: until the first rows are there, and `seconds` longer."""
        deadline = time.monotonic() + 60
        while not self.kept:
            assert time.monotonic() < deadline, "nothing was written for a minute"
            await self._look()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            await self._look()

    async def _look(self) -> None:
        await asyncio.sleep(0.05)
        before, ended = time.monotonic(), dict(self._load.ended)
        self.kept = kept_in(self._rows)
        missing = [moment for completion, moment in ended.items() if completion not in self.kept]
        if self.kept:
            self.lags.append(before - min(missing) if missing else 0.0)


def kept_in(rows: sqlite3.Connection) -> set[str]:
    return {completion for (completion,) in rows.execute("SELECT completion FROM requests WHERE outcome = 'ok'")}


@pytest.mark.parametrize("after", [1.0, 1.7, 2.3])
async def test_kill_9_loses_at_most_the_last_moment(tmp_path: Path, after: float) -> None:
    """What was written stays, whatever the moment of the kill; only what a batch had not taken yet is lost.

    How long a batch takes is the disk's and the machine's affair, so its time is watched and not assumed: the gateway may be
    behind by FLUSH and what a write takes, and on the whole it is not.
    """
    with gateway(tmp_path, "ledger.db") as process:
        load = Load(process.url, clients=6)
        seen = Seen(tmp_path / "ledger.db", load)
        running = asyncio.create_task(load.run())
        await seen.run(after)
        killed = time.monotonic()
        process.process.send_signal(signal.SIGKILL)
        process.process.wait()
        await running
    rows = sqlite3.connect(tmp_path / "ledger.db")
    assert rows.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    kept = kept_in(rows)
    (doubles,) = rows.execute("SELECT COUNT(*) - COUNT(DISTINCT completion) FROM requests").fetchone()
    rows.close()
    assert doubles == 0
    assert seen.kept
    assert seen.kept <= kept
    lost = [killed - moment for completion, moment in load.ended.items() if completion not in kept]
    assert max(lost, default=0.0) <= max(seen.lags) + FLUSH + WRITE, f"{len(lost)} of {len(load.ended)} lost"
    assert statistics.median(seen.lags) <= FLUSH + WRITE
    # And the next process goes on in the same file.
    with gateway(tmp_path, "ledger.db") as process:
        async with aiohttp.ClientSession() as session:
            body = {"model": "a", "messages": [{"role": "user", "content": "Why?"}]}
            async with session.post(f"{process.url}/v1/chat/completions", json=body) as reply:
                assert reply.status == 200
    tables = Tables(str(tmp_path / "ledger.db"))
    assert tables.count() >= len(kept) + 1
    tables.close()


async def test_a_shutdown_loses_nothing(tmp_path: Path) -> None:
    with gateway(tmp_path, "ledger.db") as process:
        load = Load(process.url)
        running = asyncio.create_task(load.run())
        await asyncio.sleep(1.0)
        assert await asyncio.to_thread(process.end) == 0
        await running
    rows = sqlite3.connect(tmp_path / "ledger.db")
    kept = {completion for (completion,) in rows.execute("SELECT completion FROM requests")}
    rows.close()
    assert set(load.ended) <= kept


@pytest.fixture
def server() -> Iterator[Postgres]:
    with postgres() as running:
        yield running


async def test_postgresql_away_slows_nobody_and_loses_nothing(tmp_path: Path, server: Postgres) -> None:
    """Two processes over one server; it is stopped hard under load, and comes back."""
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(gateway(tmp_path, server.url, name="one"))
        second = stack.enter_context(gateway(tmp_path, server.url, name="two"))
        loads = [Load(first.url, 4), Load(second.url, 4)]
        running = [asyncio.create_task(load.run()) for load in loads]
        await asyncio.sleep(1.0)
        await asyncio.to_thread(server.stop, "immediate")
        await asyncio.sleep(1.5)
        for load in loads:
            load.slowest = 0.0
        await asyncio.sleep(1.0)
        slowest = max(load.slowest for load in loads)
        await asyncio.to_thread(server.start)
        await asyncio.sleep(0.5)
        for load in loads:
            load.stop()
        await asyncio.gather(*running)
        ended = {completion for load in loads for completion in load.ended}
        assert not [load.failed for load in loads if load.failed]
        tables = Tables(server.url)
        deadline = time.monotonic() + 30
        while tables.count() < len(ended):
            assert time.monotonic() < deadline, (tables.count(), len(ended))
            await asyncio.sleep(0.2)
        assert tables.count() == len(ended)
        found = tables.rows(5)
        tables.close()
    assert slowest < 2.0
    assert {row["outcome"] for row in found} == {"ok"}
    for name in ("one", "two"):
        log = (tmp_path / f"{name}.log").read_text()
        assert "ledger_unwritable" in log
        assert "not-secret" not in log


async def test_keys_and_spending_in_postgresql(tmp_path: Path, server: Postgres) -> None:
    """A key made on one machine holds on another, and so does what was spent on it."""
    from gateway.keys import Budget, Rights
    from gateway.keys.store import KeyStore

    store = KeyStore(server.url)
    key, text = store.create("team", Rights(budget=Budget(60, "tokens", "day")))
    body = {"model": "a", "messages": [{"role": "user", "content": "Why?"}]}
    headers = {"authorization": f"Bearer {text}"}
    statuses: list[int] = []
    with contextlib.ExitStack() as stack:
        urls = [
            stack.enter_context(gateway(tmp_path, f"{name}.db", keys=server.url, name=name)).url
            for name in ("one", "two")
        ]
        async with aiohttp.ClientSession(headers=headers) as session:
            for number in range(8):
                async with session.post(f"{urls[number % 2]}/v1/chat/completions", json=body) as reply:
                    statuses.append(reply.status)
                await asyncio.sleep(1.2)  # the other process reads what was spent every second
        assert statuses[0] == 200
        assert statuses[-2:] == [429, 429]
        spent = store.spending()[key.id, ""].tokens
        assert 60 <= spent <= 60 + 30
        store.revoke(key.id)
        await asyncio.sleep(1.5)
        async with aiohttp.ClientSession(headers=headers) as session:
            for url in urls:
                async with session.get(f"{url}/v1/models") as reply:
                    assert reply.status == 401
    store.close()


async def test_old_rows_are_forgotten_in_postgresql(tmp_path: Path, server: Postgres) -> None:
    from gateway.ledger import Feedback, Ledger, Row

    ledger = Ledger(server.url, flush=0.05, days=1.0)
    for number in range(5):
        ledger.put(Row(f"old-{number}", 1.0))
        ledger.put(Row(f"new-{number}", time.time(), completion=f"c{number}", route="r", arm="x", model="n\x00l"))
        ledger.put(Feedback(f"c{number}", None, time.time(), 0.5))
    ledger.start()
    deadline = time.monotonic() + 10
    tables = Tables(server.url)
    while tables.count() != 5 or ledger.waiting:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    assert [found.score for found in tables.observations("r", 0, 1e12)] == [0.5] * 5
    tables.close()
    ledger.close()


async def test_a_row_that_postgresql_does_not_take_stands_in_nobodys_way(server: Postgres) -> None:
    from gateway.ledger import Ledger, Row

    ledger = Ledger(server.url, flush=0.05)
    for number in range(9):
        ledger.put(Row(f"row-{number}", 1.0, nano=2**63 if number == 4 else 1))
    ledger.start()
    deadline = time.monotonic() + 10
    while ledger.written != 8 or ledger.failing is not None:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    assert (ledger.dropped, ledger.waiting) == (1, 0)
    ledger.close()


async def test_who_may_only_read_can_have_a_report(server: Postgres) -> None:
    import psycopg

    Tables(server.url).close()
    with psycopg.connect(server.url, autocommit=True) as owner:
        owner.execute("CREATE ROLE reader LOGIN PASSWORD 'reads'")
        owner.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader")
    tables = Tables(server.url.replace("modelnet:not-secret", "reader:reads"))
    assert list(tables.observations("r", 0, 1e12)) == []
    tables.close()
