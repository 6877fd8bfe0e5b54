"""uvicorn, held so that starting and stopping are ours: a taken port is told before any model loads, and shutting down ends
streams in bounded time and frees the models afterwards."""

from __future__ import annotations

import contextlib
import gc
import ipaddress
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Protocol

import anyio
import uvicorn

from gateway.web.asgi import App, Receive, Scope, Send
from gateway.web.protocol import BoundedProtocol

BACKLOG = 2048
GARBAGE = 10_000
"""New objects that may hold each other before the collector looks at them; a request makes some hundred, and keeps none."""
LAST_WORDS_SECONDS = 2.0
"""After the patience is over: for error events to go out, before connections are cut."""


def settle() -> None:
    """All that was loaded by now stays: the garbage collector need not walk over it again and again, nor begin so often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE, 20, 20)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket: who connects before it is served waits. Raises OSError.

    It listens at once, since only that takes the port: with SO_REUSEADDR, which a restart needs, any number of sockets may be bound to it.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
        sock.set_inheritable(False)
    except OSError:
        sock.close()
        raise
    return sock


def url(sock: socket.socket) -> str:
    """Where a client on this machine reaches it."""
    host, port = sock.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "::1" if ":" in host else "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Served(Protocol):
    """An ASGI application that can be brought to an end."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        ...

    def begin_drain(self) -> None:
        """From now on probes are told that the end is near; all else goes on."""
        ...

    def end_requests(self) -> None:
        """End what is running, and take nothing more."""
        ...


class Server(uvicorn.Server):
    """The end of it, once a signal has come: for `drain` seconds only probes notice; then no connection is taken any more, and running
    requests get `patience` seconds; then they are ended. A second signal ends at once. idle: seconds that a connection is kept without
    requests."""

    def __init__(self, application: Served, patience: float, drain: float = 0.0, idle: int = 75) -> None:
        super().__init__(
            uvicorn.Config(
                application,
                http=BoundedProtocol,
                proxy_headers=False,  # nothing here asks where a client is
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=idle,
                timeout_graceful_shutdown=max(1, round(patience + LAST_WORDS_SECONDS)),
            )
        )
        self._application = application
        self._patience = patience
        self._drain = drain
        self._drained: float | None = None  # when draining is over; None: it has not begun

    def stop(self) -> None:
        """Begin to shut down; told twice, at once."""
        if self._drained is not None or self.should_exit:
            self.force_exit = self.should_exit = True
            return
        self._application.begin_drain()
        self._drained = time.monotonic() + self._drain
        self.should_exit = not self._drain

    async def on_tick(self, counter: int) -> bool:
        if self._drained is not None and time.monotonic() >= self._drained:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        async def end() -> None:
            await anyio.sleep(0 if self.force_exit else self._patience)
            self._application.end_requests()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(end)
            await super().shutdown(sockets)
            tasks.cancel_scope.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but a signal is not raised again afterwards: models still have to be freed then."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        caught = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, lambda *_: self.stop()) for number in caught}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


async def serve_admin(app: App, sock: socket.socket) -> None:
    """Serve the admin API until cancelled. It has no streams: what runs then is cut."""
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=1,
        )
    )
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment] # signals are the main server's
    try:
        await server.serve(sockets=[sock])
    finally:
        server.should_exit = True
        with anyio.CancelScope(shield=True):
            if server.started:
                await server.shutdown(sockets=[sock])
