"""One of a model's servers: its connection, how much it has to do, and whether it is worth a try."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
import anyio

from backends.errors import BackendTimeout, BackendUnavailable, CapabilityMissing
from backends.openai_http import OpenAIHTTPBackend
from backends.vllm.connection import Connection
from backends.vllm.settings import VLLMSettings


class Replica:
    """load: streams and sessions on it now. readings: of those that are read early, which hold sessions of their own. text: the same
    server over the ordinary API."""

    def __init__(self, model: str, settings: VLLMSettings, url: str) -> None:
        self.url = url
        self.load = 0
        self.readings = 0
        self.text = OpenAIHTTPBackend(model, settings.text(url))
        self._model = model
        self._settings = settings
        self._connection: Connection | None = None
        self._offered = False  # it has opened token sessions before
        self._dialling = anyio.Lock()
        self._out_until = 0.0
        self._pause = settings.retry

    @property
    def out(self) -> bool:
        """It could not be reached a short while ago."""
        return anyio.current_time() < self._out_until

    def failed(self) -> None:
        """Leave it out for a while, twice as long as the last time. What fails while it is left out already, began before that."""
        if self.out:
            return
        self._out_until = anyio.current_time() + self._pause
        self._pause = min(self._pause * 2, self._settings.retry_most)

    def reached(self) -> None:
        """It answers."""
        self._out_until = 0.0
        self._pause = self._settings.retry

    @contextmanager
    def watched(self) -> Iterator[None]:
        """For the time in which an answer comes from it: one that breaks off or stalls counts as a failure of the server."""
        try:
            yield
        except (BackendUnavailable, BackendTimeout) as error:
            if error.model == self._model:
                self.failed()
            raise

    async def connection(self) -> Connection:
        """The connection, made anew if the last one was lost. Raises a BackendError."""
        async with self._dialling:
            if self._connection is not None and self._connection.lost is not None:
                lost, self._connection = self._connection, None
                with anyio.CancelScope(shield=True):
                    await lost.aclose()
            if self._connection is None:
                self._connection = await self._dial()
                self._offered = True
            return self._connection

    async def _dial(self) -> Connection:
        try:
            return await Connection.dial(self._model, self._settings, self.url)
        except CapabilityMissing as error:
            if self._offered and isinstance(error.__cause__, aiohttp.WSServerHandshakeError):
                # What proxies say while a server starts again: it says nothing of what the server can do.
                raise BackendUnavailable(
                    self._model, f"The server of model {self._model!r} can't be reached."
                ) from error
            raise

    async def aclose(self) -> None:
        if self._connection is not None:
            await self._connection.aclose()
        await self.text.aclose()
