"""HTTP as a model's server wants it: where to, with which headers, for how long, and what its failures mean to us."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import orjson

from backends.errors import BackendUnavailable
from backends.openai_http.connections import LINGER, Connection
from backends.openai_http.failures import NETWORK, from_exception, from_response
from backends.openai_http.pool import Pool, request_head, with_body
from backends.openai_http.settings import OpenAIHTTPSettings
from backends.tracecontext import TRACEPARENT

ERROR_BODY = 64 * 1024
"""Most bytes read of an error's body."""
JSON_BODY = 64 * 1024 * 1024
"""Most bytes read of a JSON answer: some thousand log-probabilities fit a hundred times."""


class Body:
    """The bytes of an answer, as they come. `close` it, or `finish` it after its last event."""

    __slots__ = ("_connection", "_first", "_model", "_timeout")

    def __init__(self, model: str, connection: Connection, first: float, timeout: float) -> None:
        self._model = model
        self._connection = connection
        self._first: float | None = first
        self._timeout = timeout

    @property
    def content_type(self) -> str:
        """Without its parameters; "" where there is none."""
        return self._connection.headers.get("content-type", "").partition(";")[0].strip().lower()

    async def read(self) -> bytes:
        """More bytes; b"" at the end. Raises a BackendError where the connection breaks or stalls."""
        timeout, self._first = self._first or self._timeout, None
        try:
            return await self._connection.read(timeout)
        except NETWORK as error:
            raise from_exception(self._model, error) from error

    async def whole(self, limit: int = JSON_BODY) -> bytes:
        """All of it, within the time that was left for the first byte. What is beyond `limit` is cut, which no longer is JSON."""
        assert self._first is not None
        if (data := self._connection.all()) is not None:
            return data[:limit]
        try:
            return await _bounded(self._connection, limit, self._first)
        except NETWORK as error:
            raise from_exception(self._model, error) from error

    async def drain(self) -> None:
        """After the last event: wait for the end of the body, a moment at most, so that the connection can be used again."""
        with suppress(*NETWORK):
            await self._connection.read(LINGER)

    def finish(self) -> None:
        """As `drain`, but nobody waits: the end of the body is awaited behind the scenes."""
        self._connection.linger()

    def close(self) -> None:
        """An answer that was not read to its end closes the connection: the server notices at once. Idempotent."""
        self._connection.close()


class Upstream:
    """A pool of connections to one server. Redirects are not followed, cookies not kept, proxies not read from the
    environment: nothing but the settings decides where a request goes."""

    def __init__(self, model: str, settings: OpenAIHTTPSettings) -> None:
        self._model = model
        self._settings = settings
        self._pool: Pool | None = None
        self._heads: dict[tuple[str, str], bytes] = {}
        self._closed = False

    async def call(
        self, method: str, url: str, body: Mapping[str, Any] | None = None, within: float | None = None
    ) -> Any:
        """One request, its whole JSON answer. Raises a BackendError for anything but 200 and JSON.

        within: seconds until the whole answer is here; None: the settings' `first_byte_timeout`.
        """
        answer = await self.ask(method, url, None if body is None else orjson.dumps(body), within, whole=True)
        try:
            return orjson.loads(await answer.whole())
        except orjson.JSONDecodeError as error:
            raise from_exception(self._model, error) from error
        finally:
            answer.close()

    @asynccontextmanager
    async def stream(self, url: str, body: Mapping[str, Any]) -> AsyncIterator[Body]:
        """One POST whose answer is read in pieces. Leaving early closes the connection at once."""
        answer = await self.ask("POST", url, orjson.dumps(body))
        try:
            yield answer
        finally:
            answer.close()

    async def ask(
        self, method: str, url: str, body: bytes | None, within: float | None = None, *, whole: bool = False
    ) -> Body:
        """One request; the beginning of its answer, whose status was 200. `close` it. Raises a BackendError.

        whole: it will be read by `Body.whole`.
        """
        pool = self._open_pool()
        head = self._heads.get((method, url))
        if head is None:
            head = self._heads[method, url] = request_head(method, url, self._headers())
        if (traceparent := TRACEPARENT.get()) is not None:
            head += b"traceparent: %b\r\n" % traceparent.encode()
        timeout = within or self._settings.first_byte_timeout
        deadline = pool.loop.time() + timeout
        try:
            connection = await pool.ask(with_body(head, body or b""), timeout, whole)
        except NETWORK as error:
            raise from_exception(self._model, error) from error
        if connection.status != 200:
            try:
                data = await self._error_body(connection)
                raise from_response(self._model, connection.status, connection.headers, data)
            finally:
                connection.close()
        left = max(0.001, deadline - pool.loop.time())
        return Body(self._model, connection, left, self._settings.chunk_timeout)

    async def aclose(self) -> None:
        """Close all connections. Idempotent."""
        self._closed = True
        if self._pool is not None:
            self._pool.close()

    async def _error_body(self, connection: Connection) -> bytes:
        try:
            return await _bounded(connection, ERROR_BODY, self._settings.connect_timeout)
        except NETWORK:
            return b""  # the status says enough

    def _headers(self) -> dict[str, str]:
        """What the settings say wins over what we send by ourselves, and the key over both."""
        settings = self._settings
        ours = {
            "User-Agent": "modelnet-gateway",
            "Accept": "*/*",
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
        }
        key = {"Authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
        by_name = {
            name.lower(): (name, value) for name, value in [*ours.items(), *settings.headers.items(), *key.items()]
        }
        return dict(by_name.values())

    def _open_pool(self) -> Pool:
        if self._closed:
            raise BackendUnavailable(self._model, f"Model {self._model!r} is closed.")
        if self._pool is None:
            settings = self._settings
            self._pool = Pool(
                settings.base_url,
                connect_timeout=settings.connect_timeout,
                keep_alive=settings.keep_alive,
                verify=settings.verify,
            )
        return self._pool


async def _bounded(connection: Connection, limit: int, timeout: float) -> bytes:
    """The body, up to a limit, all within `timeout` seconds."""
    parts: list[bytes] = []
    size = 0
    now = asyncio.get_running_loop().time
    deadline = now() + timeout
    while size < limit and (part := await connection.read(max(0.0, deadline - now()))):
        parts.append(part)
        size += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)[:limit]
