"""One WebSocket to one server's door: the handshake, requests and their answers, signs of life."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import aiohttp
import anyio

from backends.errors import (
    BackendError,
    BackendOverloaded,
    BackendTimeout,
    BackendUnavailable,
    CapabilityMissing,
    ContextTooLong,
    RequestRejected,
)
from backends.openai_http.failures import NETWORK, from_exception, from_response, not_protocol, presentable
from backends.vllm import frames
from backends.vllm.settings import VLLMSettings

AGENT = "modelnet-gateway"
NO_EXTENSION = "its vLLM runs without the modelnet-vllm extension (see docs/vllm.md for the flags)"

F = TypeVar("F", bound=frames.Frame)


class Connection:
    """Made by `dial`. info: what the server said of itself in WELCOME. lost: why it is of no use any more, None if it is.

    Two tasks of its own read from it and send signs of life; `aclose` ends them.
    """

    def __init__(self, model: str, settings: VLLMSettings, http: aiohttp.ClientSession, socket: Any) -> None:
        self.info: dict[str, Any] = {}
        self.lost: BackendError | None = None
        self._model = model
        self._settings = settings
        self._http = http
        self._socket = socket
        self._requests = itertools.count(1)
        self._sessions = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[frames.Frame]] = {}
        self._parts: dict[int, list[bytes]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._heard = 0.0

    @classmethod
    async def dial(cls, model: str, settings: VLLMSettings, url: str) -> Connection:
        """Connect and shake hands. Raises CapabilityMissing where there is no extension, or one that does not fit."""
        http = aiohttp.ClientSession(
            headers={
                **settings.headers,
                **({"Authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}),
            },
            connector=aiohttp.TCPConnector(ssl=settings.verify, limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=settings.connect_timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )
        socket = None
        try:
            with anyio.fail_after(settings.connect_timeout):
                where = url.rstrip("/").removesuffix("/v1") + frames.ROUTE
                socket = await http.ws_connect(where, compress=0, max_msg_size=0, autoping=True)
            connection = cls(model, settings, http, socket)
            await connection._shake_hands()
            return connection
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                if socket is not None:
                    with suppress(*NETWORK), anyio.move_on_after(1):
                        await socket.close()
                await http.close()
            if isinstance(error, aiohttp.WSServerHandshakeError):
                raise _refused(model, error) from error
            if isinstance(error, NETWORK):
                raise from_exception(model, error) from error
            if isinstance(error, frames.FrameError):
                raise not_protocol(model, str(error)) from error
            raise

    def new_session(self) -> int:
        """A number that no session on this connection had yet."""
        return next(self._sessions)

    async def end_session(self, number: int) -> None:
        """Have the server end what there may be of it. Where the connection is lost, it is gone already."""
        with suppress(BackendError):
            await self.send(frames.Close(number))

    async def ask(self, kind: type[F], make: Callable[[int], frames.Frame], timeout: float, session: int = 0) -> F:
        """Send the frame that `make` makes of a request's number; its answer, which must be of `kind`.

        Raises the error that a FAIL stands for, BackendTimeout, BackendUnavailable.
        """
        number = next(self._requests) & 0xFFFFFFFF
        future: asyncio.Future[frames.Frame] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            with anyio.fail_after(timeout):
                await self.send(make(number))
                answer = await future
        except TimeoutError as error:
            raise BackendTimeout(self._model, f"The server of model {self._model!r} did not answer in time.") from error
        finally:
            del self._waiting[number]
            self._parts.pop(number, None)
            if future.done() and not future.cancelled():
                future.exception()  # the connection was lost while we sent: that was raised already
        if isinstance(answer, frames.Fail):
            raise self._error(answer)
        if not isinstance(answer, kind):
            raise BackendUnavailable(self._model, f"The server of model {self._model!r} answered something else.")
        return answer

    async def send(self, frame: frames.Frame) -> None:
        if self.lost is not None:
            raise _again(self.lost)
        try:
            await self._socket.send_bytes(frame.encode())
        except NETWORK as error:
            self._lose(from_exception(self._model, error), error)
            assert self.lost is not None
            raise _again(self.lost) from error

    async def table(self) -> tuple[list[bytes], list[int], str]:
        """The vocabulary: tokens, end ids, fingerprint."""
        answer = await self.ask(frames.TablePart, frames.Vocab, self._settings.first_byte_timeout)
        try:
            return await anyio.to_thread.run_sync(frames.decode_table, answer.data)
        except frames.FrameError as error:
            raise not_protocol(self._model, str(error)) from error

    async def aclose(self) -> None:
        """Hang up. Idempotent."""
        self._lose(BackendUnavailable(self._model, f"Model {self._model!r} is closed."))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with suppress(*NETWORK), anyio.move_on_after(1, shield=True):
            await self._socket.close()
        await self._http.close()

    async def _shake_hands(self) -> None:
        settings = self._settings
        try:
            # The first time the server reads its vocabulary.
            with anyio.fail_after(settings.connect_timeout + 30):
                hello = frames.Hello(frames.LOWEST, frames.HIGHEST, settings.heartbeat, AGENT)
                await self._socket.send_bytes(hello.encode())
                answer = self._decode(await self._socket.receive())
        except NETWORK as error:
            raise from_exception(self._model, error) from error
        if isinstance(answer, frames.Refused):
            raise CapabilityMissing(self._model, f"Model {self._model!r} opens no token sessions: {answer.message}")
        if not isinstance(answer, frames.Welcome):
            raise BackendUnavailable(self._model, f"The server of model {self._model!r} broke the connection.")
        if not frames.LOWEST <= answer.version <= frames.HIGHEST:
            theirs = answer.version, answer.version
            said = frames.disagreement((frames.LOWEST, frames.HIGHEST), theirs)
            raise CapabilityMissing(self._model, f"Model {self._model!r} opens no token sessions: {said}")
        self.info = answer.info
        self._heard = asyncio.get_running_loop().time()
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._beat())]

    async def _read(self) -> None:
        """Hand every answer to whoever waits for it, until the connection ends."""
        loop = asyncio.get_running_loop()
        cause: Exception | None = None
        try:
            while (frame := self._decode(await self._socket.receive())) is not None:
                self._heard = loop.time()
                if isinstance(frame, frames.TablePart):
                    self._part(frame)
                elif not isinstance(frame, frames.Beat):
                    self._settle(getattr(frame, "request", 0), frame)
        except (aiohttp.ClientError, OSError, frames.FrameError) as error:
            cause = error
        self._lose(BackendUnavailable(self._model, f"The server of model {self._model!r} broke the connection."), cause)

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        with suppress(BackendError):
            while True:
                await asyncio.sleep(self._settings.heartbeat)
                if loop.time() - self._heard > 3 * self._settings.heartbeat:
                    said = f"The server of model {self._model!r} gives no sign of life."
                    self._lose(BackendUnavailable(self._model, said))
                    return
                await self.send(frames.Beat())

    def _part(self, frame: frames.TablePart) -> None:
        """Parts come in order; whoever asked gets them all at once."""
        if frame.request not in self._waiting:
            return
        parts = self._parts.setdefault(frame.request, [])
        parts.append(frame.data)
        if len(parts) == frame.parts:
            self._settle(frame.request, frames.TablePart(frame.request, 0, 1, b"".join(parts)))

    def _settle(self, request: int, frame: frames.Frame) -> None:
        future = self._waiting.get(request)
        if future is not None and not future.done():
            future.set_result(frame)

    def _lose(self, error: BackendError, cause: Exception | None = None) -> None:
        if self.lost is not None:
            return
        if cause is not None:
            error.__cause__ = cause
        self.lost = error
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(_again(error))

    def _decode(self, message: Any) -> frames.Frame | None:
        if message.type is aiohttp.WSMsgType.BINARY:
            return frames.decode(message.data)
        if message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.CLOSED):
            return None
        if message.type is aiohttp.WSMsgType.ERROR and isinstance(message.data, Exception):
            raise aiohttp.ClientConnectionError(str(message.data))
        raise frames.FrameError("not a binary message")

    def _error(self, fail: frames.Fail) -> BackendError:
        model, text = self._model, presentable(fail.message)
        if fail.code == frames.TOO_LONG:
            said = f"Model {model!r} can read {fail.limit} tokens; {fail.tokens} are needed."
            return ContextTooLong(model, said, tokens=fail.tokens, limit=fail.limit)
        if fail.code == frames.OVERLOADED:
            return BackendOverloaded(model, f"The server of model {model!r} is at capacity; try again shortly.", 1.0)
        if fail.code == frames.REJECTED:
            return RequestRejected(model, f"The server of model {model!r} rejected the request: {text}")
        if fail.code == frames.UNSUPPORTED:
            return CapabilityMissing(model, f"Model {model!r} opens no token sessions: {text}")
        return BackendUnavailable(model, f"The server of model {model!r} failed: {text}")


def _refused(model: str, error: aiohttp.WSServerHandshakeError) -> BackendError:
    if error.status in (403, 404, 405, 426):  # a WebSocket on an unknown route is 403 in Starlette, 404 behind proxies
        return CapabilityMissing(model, f"Model {model!r} opens no token sessions: {NO_EXTENSION}.")
    return from_response(model, error.status, error.headers or {}, b"")


def _again(error: BackendError) -> BackendError:
    """A fresh exception of the same kind: one object raised in several tasks would mix their tracebacks."""
    fresh = type(error)(error.model, error.message)
    fresh.__cause__ = error.__cause__
    return fresh
