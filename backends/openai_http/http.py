"""The one module that speaks HTTP to a model's server: pool, timeouts, headers, and nothing of what is said."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import anyio
import orjson

from backends.errors import BackendUnavailable
from backends.openai_http.failures import NETWORK, from_exception, from_response
from backends.openai_http.settings import OpenAIHTTPSettings

ERROR_BODY = 64 * 1024
"""Most bytes read of an error's body."""
JSON_BODY = 64 * 1024 * 1024
"""Most bytes read of a JSON answer: some thousand log-probabilities fit a hundred times."""
_LAST_READ = 0.25  # seconds to wait for the end of a body whose last event is already here


class Body:
    """The bytes of a streamed answer, as they come."""

    def __init__(self, model: str, response: aiohttp.ClientResponse, timeouts: tuple[float, float]) -> None:
        self._model = model
        self._response = response
        self._timeouts = timeouts
        self.content_type = response.content_type

    async def read(self) -> bytes:
        """More bytes; b"" at the end. Raises a BackendError where the connection breaks or stalls."""
        first, between = self._timeouts
        self._timeouts = between, between
        try:
            with anyio.fail_after(first):
                return await self._response.content.readany()
        except NETWORK as error:
            raise from_exception(self._model, error) from error

    async def drain(self) -> None:
        """After the last event: read the end of the body, so that the connection can be used again."""
        with anyio.move_on_after(_LAST_READ):
            try:
                await self._response.content.readany()
            except NETWORK:
                return


class Upstream:
    """A pool of connections to one server. Redirects are not followed, cookies not kept, proxies not read from the
    environment: nothing but the settings decides where a request goes."""

    def __init__(self, model: str, settings: OpenAIHTTPSettings) -> None:
        self._model = model
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    async def call(
        self, method: str, url: str, body: Mapping[str, Any] | None = None, within: float | None = None
    ) -> Any:
        """One request, its whole JSON answer. Raises a BackendError for anything but 200 and JSON.

        within: seconds until the whole answer is here; None: the settings' `first_byte_timeout`.
        """
        deadline = anyio.current_time() + (within or self._settings.first_byte_timeout)
        async with self._send(method, url, body, deadline) as response:
            try:
                with anyio.fail_after(deadline - anyio.current_time()):
                    data = await _bounded(response, JSON_BODY)
                return orjson.loads(data)
            except NETWORK as error:
                raise from_exception(self._model, error) from error

    @asynccontextmanager
    async def stream(self, url: str, body: Mapping[str, Any]) -> AsyncIterator[Body]:
        """One POST whose answer is read in pieces. Leaving early closes the connection at once: the server notices."""
        deadline = anyio.current_time() + self._settings.first_byte_timeout
        async with self._send("POST", url, body, deadline) as response:
            yield Body(self._model, response, (deadline - anyio.current_time(), self._settings.chunk_timeout))

    async def aclose(self) -> None:
        """Close all connections. Idempotent."""
        self._closed = True
        if self._session is not None:
            await self._session.close()

    @asynccontextmanager
    async def _send(
        self, method: str, url: str, body: Mapping[str, Any] | None, deadline: float
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        session = self._open_session()
        try:
            with anyio.fail_after(deadline - anyio.current_time()):
                response = await session.request(
                    method, url, data=None if body is None else orjson.dumps(body), allow_redirects=False
                )
        except NETWORK as error:
            raise from_exception(self._model, error) from error
        try:
            if response.status != 200:
                raise from_response(self._model, response.status, response.headers, await self._error_body(response))
            yield response
        finally:
            # Whole answers give their connection back to the pool by themselves; `close` is for all others.
            response.close()

    async def _error_body(self, response: aiohttp.ClientResponse) -> bytes:
        try:
            with anyio.fail_after(self._settings.connect_timeout):
                return await _bounded(response, ERROR_BODY)
        except NETWORK:
            return b""  # the status says enough

    def _open_session(self) -> aiohttp.ClientSession:
        if self._closed:
            raise BackendUnavailable(self._model, f"Model {self._model!r} is closed.")
        if self._session is None:
            settings = self._settings
            headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", **settings.headers}
            if settings.api_key:
                headers["Authorization"] = f"Bearer {settings.api_key}"
            self._session = aiohttp.ClientSession(
                # limit=0: admission is bounded before, by seats; a pool that queues would hide it.
                connector=aiohttp.TCPConnector(
                    limit=0, keepalive_timeout=settings.keep_alive, ssl=settings.verify, ttl_dns_cache=60
                ),
                timeout=aiohttp.ClientTimeout(
                    total=None, connect=settings.connect_timeout, sock_connect=settings.connect_timeout
                ),
                headers=headers,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=True,
                trust_env=False,
            )
        return self._session


async def _bounded(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The body, up to a limit; what is beyond it is cut, which no longer is JSON."""
    parts: list[bytes] = []
    size = 0
    while size < limit and (part := await response.content.readany()):
        parts.append(part)
        size += len(part)
    return b"".join(parts)[:limit]
