"""The limits of every key in Valkey or Redis, for all processes that share them. One script, one round trip a decision.

A server that does not answer within `timeout`, or not at all, is down from then on: nobody waits for it any more, until the task
that `run` is finds it again. What became of requests in between is the caller's to decide.

Requests under way are leases: a process renews its own, and those of a process that is gone count as lost after LEASE_SECONDS.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import anyio
import structlog

from gateway.keys.key import Key
from gateway.limits.verdict import Ask, Levels, Reason, Verdict, verdict

LEASE_SECONDS = 60.0
RENEW_SECONDS = 15.0
RETRY_SECONDS = 0.5
SLICES = 25
CONNECTIONS = 8
"""A decision takes the server some ten microseconds: more connections would wait for each other there instead of here."""
NO_PERIOD = "-"

T = TypeVar("T")

_SCRIPT = Path(__file__).with_name("limits.lua")

log = structlog.get_logger("modelnet.limits")


class SharedDown(Exception):
    """The server can't be asked now."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A request that was admitted: its verdict, and the lease it holds."""

    verdict: Verdict
    lease: str


class SharedLimits:
    """url: redis://, rediss:// or unix://, as of the client. timeout: seconds for an answer. prefix: of every name stored there."""

    def __init__(self, url: str, timeout: float, prefix: str = "modelnet") -> None:
        # Imported here: only who shares limits needs the client.
        try:
            from redis import asyncio as client
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
        except ImportError as error:
            raise ValueError("sharing limits needs the client: pip install 'modelnet-gateway[shared]'") from error
        pool: Any = client.BlockingConnectionPool.from_url(
            url.replace("valkey://", "redis://", 1).replace("valkeys://", "rediss://", 1),
            # Time is measured around whole calls, waiting for a connection included.
            timeout=None,
            socket_timeout=None,
            socket_connect_timeout=None,
            retry=Retry(NoBackoff(), 0),
            decode_responses=True,
            max_connections=CONNECTIONS,
        )
        self._client: Any = client.Redis.from_pool(pool)
        self._script = self._client.register_script(_SCRIPT.read_text(encoding="utf-8"))
        self._timeout = timeout
        self._prefix = prefix
        self._leases: dict[str, str] = {}
        self._lost = anyio.Event()
        self.down = False
        self.failures = 0

    async def admit(self, key: Key, ask: Ask, spent: int, period: str | None, now: int = 0) -> Taken:
        """Take what a request asks for, or say why not. spent: of the budget, as far as this process knows; period: of it.

        now: microseconds, for tests; 0 is the server's clock. Raises SharedDown.
        """
        rights, budget = key.rights, key.rights.budget
        lease = uuid.uuid4().hex
        arguments = [
            *("admit", now, lease),
            *(rights.requests_per_minute or 0, rights.tokens_per_minute or 0, rights.concurrency or 0),
            *(budget.amount if budget else 0, period if period is not None else NO_PERIOD, spent),
            *(ask.tokens, ask.of(budget.unit) if budget else 0, round(LEASE_SECONDS * 1e6)),
        ]
        reason, wait, requests, tokens, held = await self._call(key.id, arguments)
        levels = Levels(int(requests), int(tokens), int(held))
        found = verdict(rights, cast(Reason, reason) or None, int(wait), levels)
        if found.refused is None:
            self._leases[lease] = key.id
        return Taken(found, lease)

    async def settle(self, key: Key, lease: str, tokens: int, budget: int, period: str | None, now: int = 0) -> None:
        """A request has ended and has spent this. A lease that the server does not know (it lost it) is charged all the same.

        Raises SharedDown.
        """
        self._leases.pop(lease, None)
        limit = key.rights.tokens_per_minute or 0
        await self._call(key.id, ["settle", now, lease, limit, tokens, budget, NO_PERIOD if period is None else period])

    async def run(self) -> None:
        """Renew leases, and look for a server that is down. Until cancelled."""
        await self._begin()
        while True:
            with anyio.move_on_after(RENEW_SECONDS):
                await self._lost.wait()
            if self.down:
                await self._find()
            else:
                await self._renew()

    async def aclose(self) -> None:
        """Never raises."""
        with anyio.move_on_after(self._timeout):
            try:
                await self._client.aclose()
            except Exception as error:  # noqa: BLE001 - a connection that is broken is closed enough
                log.debug("limits_close_failed", reason=str(error))

    async def _begin(self) -> None:
        """Connect and hand over the script before the first request needs it."""
        try:
            await self._within(self._client.script_load(self._script.script))
        except Exception as error:  # noqa: BLE001 - the first request finds out
            log.warning("limits_not_there_yet", error=type(error).__name__)

    async def _find(self) -> None:
        while True:
            await anyio.sleep(RETRY_SECONDS)
            try:
                await self._within(self._client.ping())
            except Exception:  # noqa: BLE001, S112 - down is down, whatever the client says of it
                continue
            self.down = False
            self._lost = anyio.Event()
            log.info("limits_back")
            return

    async def _renew(self) -> None:
        by_key: dict[str, list[str]] = {}
        for lease, id in self._leases.items():
            by_key.setdefault(id, []).append(lease)
        for id, leases in by_key.items():
            try:
                await self._call(id, ["renew", 0, round(LEASE_SECONDS * 1e6), *leases])
            except SharedDown:
                return

    async def _within(self, call: Coroutine[Any, Any, T]) -> T:
        """The call's result, or TimeoutError. The time is taken in slices: while this process is too busy to look at its own sockets,
        every slice takes longer, so a server is not taken for dead because of us."""
        task = asyncio.ensure_future(call)
        for _ in range(SLICES):
            await asyncio.wait([task], timeout=self._timeout / SLICES)
            if task.done():
                return task.result()
        task.cancel()
        await asyncio.wait([task], timeout=self._timeout)
        if not task.cancelled() and task.done() and task.exception() is None:
            return task.result()
        raise TimeoutError

    async def _call(self, id: str, arguments: list[Any]) -> Any:
        if self.down:
            raise SharedDown
        base = f"{self._prefix}:{{{id}}}"  # braces: in a cluster all of a key is in one place
        try:
            # Shielded: a client that leaves now must not leave behind what the server has already counted. It is bounded.
            with anyio.CancelScope(shield=True):
                keys = [f"{base}:state", f"{base}:leases", f"{base}:held"]
                return await self._within(self._script(keys=keys, args=arguments))
        except Exception as error:
            # Whatever it was: asking again within this request would only make it slower.
            self.failures += 1
            if not self.down:
                self.down = True
                log.error("limits_down", error=type(error).__name__, reason=str(error)[:200])
                self._lost.set()
            raise SharedDown from error
