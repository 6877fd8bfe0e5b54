"""uvicorn, held so that starting and stopping are ours: a taken port is told before any model loads, and shutting down ends
streams in bounded time and frees the models afterwards."""

from __future__ import annotations

import contextlib
import ipaddress
import signal
import socket
import threading
from collections.abc import Iterator

import anyio
import uvicorn

from gateway.app import Application

BACKLOG = 2048
LAST_WORDS_SECONDS = 2.0
"""After the patience is over: for error events to go out, before connections are cut."""


def bind(host: str, port: int) -> socket.socket:
    """A bound socket; nobody can connect before `serve` listens. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
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


class Server(uvicorn.Server):
    """patience: seconds that running requests get once a signal has come."""

    def __init__(self, application: Application, patience: float) -> None:
        super().__init__(
            uvicorn.Config(
                application,
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                backlog=BACKLOG,
                timeout_graceful_shutdown=max(1, round(patience + LAST_WORDS_SECONDS)),
            )
        )
        self._application = application
        self._patience = patience

    def stop(self) -> None:
        """Begin to shut down; told twice, at once."""
        self.force_exit = self.should_exit
        self.should_exit = True

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
