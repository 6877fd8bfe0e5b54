"""The edge with everything around it: keys, limits, a ledger, routes. Databases are files of the test."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from edge import Edge

from backends.catalog import Entry
from backends.fake import FakeBackend
from gateway.app import Application
from gateway.keys import Rights
from gateway.keys.store import KeyStore
from gateway.ledger.tables import Tables
from gateway.operations import Operations, open_operations
from gateway.runtime import open_runtime
from gateway.settings import Loaded, Settings
from gateway.settings.check import check
from gateway.settings.source import Source


class Operated(Edge):
    """`operations`, and the ledger as it is written."""

    operations: Operations
    loaded: Loaded
    folder: Path

    def make_key(self, name: str = "team", **rights: Any) -> tuple[str, dict[str, str]]:
        """The id of a new key, and the header that holds it. It is valid at once."""
        store = KeyStore(str(self.folder / "keys.db"))
        key, text = store.create(name, Rights(**rights))
        store.close()
        assert self.operations.keeper is not None
        self.operations.keeper.refresh()
        return key.id, {"authorization": f"Bearer {text}"}

    async def rows(self, count: int) -> list[dict[str, Any]]:
        """The ledger's rows, oldest first, once there are so many."""
        tables = Tables(str(self.folder / "ledger.db"))
        deadline = time.monotonic() + 5
        try:
            while len(found := tables.rows(1000)) < count:
                assert time.monotonic() < deadline, found
                await anyio.sleep(0.02)
        finally:
            tables.close()
        assert len(found) == count
        return found[::-1]


@asynccontextmanager
async def operated(folder: Path, *backends: FakeBackend, **sections: Any) -> AsyncIterator[Operated]:
    """An application over these backends, as `modelnet serve` builds it."""
    by_name = {backend.name: backend for backend in backends}
    values = {
        "models": {name: {"backend": "fake"} for name in by_name},
        "key_store": {"database": str(folder / "keys.db"), "refresh_seconds": 0.2},
        **sections,
    }
    values["ledger"] = {"database": str(folder / "ledger.db"), "flush_seconds": 0.05} | sections.get("ledger", {})
    settings = Settings.model_validate(values)
    loaded = Loaded(settings, folder / "test.yaml", Source(folder / "test.yaml"))
    assert not check(settings, loaded.resolve)

    async def build(name: str) -> Entry:
        await by_name[name].start()
        return Entry(by_name[name], why_not_fused=await by_name[name].why_not_fused())

    async with open_runtime(loaded, build) as runtime, open_operations(loaded) as operations:
        with anyio.fail_after(5):
            await runtime.wait_loaded()
        runtime.operations = operations
        made = Operated(Application(runtime), runtime, by_name)
        made.operations, made.loaded, made.folder = operations, loaded, folder
        yield made
