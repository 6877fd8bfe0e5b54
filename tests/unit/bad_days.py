"""Models on their bad days: a TCP proxy that does to connections whatever networks and servers do, and fakes that fail at random."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Literal

import anyio
import anyio.abc

from backends.fake import FakeBackend, Fault

Mood = Literal["fine", "killed", "reset", "frozen", "slow", "cut", "garbage"]
MOODS: tuple[Mood, ...] = ("fine", "killed", "reset", "frozen", "slow", "cut", "garbage")

GARBAGE = (
    b"\x00\xff\xfe garbage \r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 20\r\n\r\n<html>It works</html>",
    b'HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: {"choices": [{"ind\r\n\r\n',
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 12\r\n\r\ndata: [42]\n\n",
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}",
    b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 400\r\n\r\n{"choices": [',
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzzz\r\n",
    b"HTTP/1.1 500 Oh no\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 503 Full\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 503 Full\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 429 Slow down\r\nretry-after: 3600\r\ncontent-length: 2\r\n\r\n{}",
    b"HTTP/1.1 302 Elsewhere\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 401 No\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 404 Gone\r\ncontent-length: 0\r\n\r\n",
)


class Proxy:
    """In front of one server. mood: of connections made from now on. Open ones keep theirs, but when it is killed all are cut, and none
    can be made until it has another mood. served: connections so far."""

    def __init__(self, port: int, chance: random.Random) -> None:
        self._to = port
        self._chance = chance
        self._open: set[anyio.abc.SocketStream] = set()
        self._tasks: anyio.abc.TaskGroup | None = None
        self._listener: anyio.abc.Listener[anyio.abc.SocketStream] | None = None
        self._port = 0
        self.mood: Mood = "fine"
        self.served = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Its base_url."""
        async with anyio.create_task_group() as self._tasks:
            await self._listen()
            yield f"http://127.0.0.1:{self._port}/v1"
            self._tasks.cancel_scope.cancel()
            if self._listener is not None:
                await self._listener.aclose()

    async def feel(self, mood: Mood) -> None:
        """Another mood."""
        self.mood = mood
        if mood == "killed" and self._listener is not None:
            listener, self._listener = self._listener, None
            await listener.aclose()
            for stream in tuple(self._open):
                await reset(stream)
        elif mood != "killed" and self._listener is None:
            await self._listen()

    async def _listen(self) -> None:
        assert self._tasks is not None
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=self._port, reuse_port=True)
        self._port = listener.extra_attributes[anyio.abc.SocketAttribute.local_port]()
        self._listener = listener
        self._tasks.start_soon(self._accept, listener)

    async def _accept(self, listener: anyio.abc.Listener[anyio.abc.SocketStream]) -> None:
        try:
            await listener.serve(self._serve)
        except* anyio.ClosedResourceError:
            pass

    async def _serve(self, client: anyio.abc.SocketStream) -> None:
        self.served += 1
        self._open.add(client)
        try:
            async with client:
                with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, OSError):
                    await self._treat(client, self.mood)
        finally:
            self._open.discard(client)

    async def _treat(self, client: anyio.abc.SocketStream, mood: Mood) -> None:
        chance = self._chance
        if mood == "reset":
            await client.receive()
            await reset(client)
        elif mood == "frozen":
            while True:
                await client.receive()  # reads, and says nothing, until the client leaves
        elif mood == "garbage":
            await client.receive()
            await client.send(chance.choice(GARBAGE))
        else:
            left = chance.randrange(1, 1500) if mood == "cut" else None
            pause = chance.uniform(0.001, 0.02) if mood == "slow" else 0.0
            await self._through(client, left, pause)

    async def _through(self, client: anyio.abc.SocketStream, left: int | None, pause: float) -> None:
        """There and back. left: bytes of answers until the cut, anywhere in a line, an event or a character."""
        async with await anyio.connect_tcp("127.0.0.1", self._to) as server, anyio.create_task_group() as tasks:

            async def there() -> None:
                with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream):
                    async for data in client:
                        await server.send(data)
                tasks.cancel_scope.cancel()

            tasks.start_soon(there)
            with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream):
                async for data in server:
                    for part in (data[i : i + 64] for i in range(0, len(data), 64)) if pause else (data,):
                        await anyio.sleep(pause)
                        if left is not None and len(part) >= left:
                            await client.send(part[:left])
                            await reset(client)
                            break
                        await client.send(part)
                        left = None if left is None else left - len(part)
            tasks.cancel_scope.cancel()


async def reset(stream: anyio.abc.SocketStream) -> None:
    """End a connection with an RST where that can be done."""
    raw = stream.extra_attributes[anyio.abc.SocketAttribute.raw_socket]()
    with suppress(OSError):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await anyio.aclose_forcefully(stream)


ERRORS = (
    "BackendUnavailable",
    "BackendTimeout",
    "BackendOverloaded",
    "BackendError",
    "ContextTooLong",
    "BackendAuthFailed",
)


def bad_mood(backend: FakeBackend, chance: random.Random) -> None:
    """Other faults for a fake, from now on."""
    faults: list[Fault] = []
    for _ in range(chance.choice((0, 1, 1, 2))):
        action = chance.choice(("raise", "raise", "hang", "slow"))
        error = chance.choice(ERRORS)
        # In the middle of an answer a full context ends it, as a budget of tokens does: that is no failure.
        moments = ("enter",) if error == "ContextTooLong" else ("enter", "token", "token")
        faults.append(
            Fault(
                on=chance.choice(moments),  # type: ignore[arg-type]
                of=chance.choice(("stream", "session", "both")),  # type: ignore[arg-type]
                after=chance.randrange(12),
                action=action,  # type: ignore[arg-type]
                error=error,
                seconds=chance.uniform(0.001, 0.05),
                times=chance.choice((1, 2, 5)),
            )
        )
    backend.faults = tuple(faults)
