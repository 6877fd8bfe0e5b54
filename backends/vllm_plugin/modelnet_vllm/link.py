"""Between the engine's process and the API server's: one Unix stream socket, in both directions.

The API server listens (`Listener`) on a path in a directory that only its user can enter, and writes the path into every
request of a session (`tag`). The engine connects when it sees the path first (`Links`). Its forward passes send with one
non-blocking `send` and nothing in between: no queue, no second thread, no library. A thread of its own reads what the API
server asks (look-ups need no forward pass, so they must not wait for one) and writes what a full socket did not take.

Every message is u32 length (of what follows), u8 kind, and:

    engine → API server
    1 HELLO    JSON {"hooks": bool: partial rows are known and drafts scored, "vllm": version}
    2 ROWS     u64 session, u32 seq, u32 position of the first row, u16 rows, u16 k, then i32 ids [rows, k],
               f32 log-probabilities [rows, k], f32 mass outside [rows]
    3 VALUES   u64 session, u32 request, then f32 log-probabilities; none at all: the position is gone
    4 ECHO     u32 request
    API server → engine
    10 LOOKUP  u64 session, u32 seq, u32 request, u32 places before its draft's last one, then i32 ids
    11 FORGET  u64 session
    12 ECHO    u32 request
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import selectors
import shutil
import socket
import struct
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

log = logging.getLogger("vllm.modelnet")

HELLO, ROWS, VALUES, ECHO = 1, 2, 3, 4
LOOKUP, FORGET, ASK_ECHO = 10, 11, 12

_LENGTH = struct.Struct("<IB")
ROWS_HEAD = struct.Struct("<QIIHH")
VALUES_HEAD = struct.Struct("<QI")
LOOKUP_HEAD = struct.Struct("<QIII")
SESSION = struct.Struct("<Q")
NUMBER = struct.Struct("<I")

MOST_WAITING = 64 << 20
"""Bytes that may wait for an API server that doesn't read; then its link is cut and its sessions fail."""
MOST_MESSAGE = 256 << 20


def message(kind: int, *parts: bytes) -> bytes:
    """One message, ready to be sent."""
    return b"".join((_LENGTH.pack(1 + sum(map(len, parts)), kind), *parts))


class Cutter:
    """Cuts a byte stream into messages: (kind, body)."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        held = self._held
        held += data
        found = []
        at = 0
        while len(held) - at >= _LENGTH.size:
            length, kind = _LENGTH.unpack_from(held, at)
            if not 1 <= length <= MOST_MESSAGE:
                raise ValueError("not a message of this link")
            if len(held) - at < 4 + length:
                break
            found.append((kind, bytes(held[at + 5 : at + 4 + length])))
            at += 4 + length
        del held[:at]
        return found


class Link:
    """The engine's end. `send` may be called from any thread and never blocks."""

    def __init__(self, path: str, wake: Callable[[], None]) -> None:
        self.path = path
        self.cutter = Cutter()
        self.closed = False
        self._wake = wake
        self._lock = threading.Lock()
        self._waiting: deque[memoryview] = deque()
        self._bytes = 0
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
            self.socket.settimeout(1.0)
            self.socket.connect(path)
            self.socket.setblocking(False)
        except BaseException:
            self.socket.close()
            raise

    @property
    def waits(self) -> bool:
        return self._bytes > 0

    def send(self, data: bytes) -> None:
        with self._lock:
            if self.closed:
                return
            view = memoryview(data)
            if not self._waiting:
                view = view[self._try(view) :]
            if not view:
                return
            self._waiting.append(view)
            self._bytes += len(view)
            if self._bytes > MOST_WAITING:
                self._cut("the API server does not read")
        self._wake()

    def flush(self) -> None:
        """Write more of what waits."""
        with self._lock:
            while self._waiting and not self.closed:
                view = self._waiting.popleft()
                sent = self._try(view)
                self._bytes -= sent
                if sent < len(view):
                    self._waiting.appendleft(view[sent:])
                    return

    def cut(self, why: str) -> None:
        with self._lock:
            self._cut(why)

    def _try(self, view: memoryview) -> int:
        try:
            return self.socket.send(view)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            self._cut(str(error))
            return len(view)

    def _cut(self, why: str) -> None:
        if not self.closed:
            self.closed = True
            self._waiting.clear()
            self._bytes = 0
            log.info("modelnet: link to an API server is cut: %s", why)
            self._wake()


class Links:
    """All links of an engine process, and the thread that reads them.

    hello: sent first on every link. handle: called in that thread with (link, kind, body); gone: with the path of a link
    that is no more.
    """

    def __init__(
        self,
        hello: Callable[[], bytes],
        handle: Callable[[Link, int, bytes], None],
        gone: Callable[[str], None],
    ) -> None:
        self._hello = hello
        self._handle = handle
        self._gone = gone
        self._links: dict[str, Link] = {}
        self._failed: set[str] = set()
        self._lock = threading.Lock()
        self._fresh: deque[Link] = deque()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._thread: threading.Thread | None = None

    def to(self, path: str) -> Link | None:
        """The link to an API server; None if it can't be reached (which is logged once)."""
        link = self._links.get(path)
        if link is not None and not link.closed:
            return link
        if path in self._failed:
            return None
        try:
            link = Link(path, self._wake)
        except OSError as error:
            self._failed.add(path)
            log.warning("modelnet: the API server's socket can't be reached from this process: %s", error)
            return None
        link.send(self._hello())
        self._links[path] = link
        with self._lock:
            self._fresh.append(link)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="modelnet-link", daemon=True)
                self._thread.start()
        self._wake()
        return link

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it is awake already
            self._wake_write.send(b"!")

    def _run(self) -> None:
        selector = selectors.DefaultSelector()
        selector.register(self._wake_read, selectors.EVENT_READ)
        registered: dict[Link, int] = {}
        while True:
            with self._lock:
                while self._fresh:
                    link = self._fresh.popleft()
                    selector.register(link.socket, selectors.EVENT_READ, link)
                    registered[link] = selectors.EVENT_READ
            for link in list(registered):
                if link.closed:
                    selector.unregister(link.socket)
                    link.socket.close()
                    del registered[link]
                    if self._links.get(link.path) is link:
                        del self._links[link.path]
                    self._gone(link.path)
                    continue
                events = selectors.EVENT_READ | (selectors.EVENT_WRITE if link.waits else 0)
                if events != registered[link]:
                    selector.modify(link.socket, events, link)
                    registered[link] = events
            for key, events in selector.select():
                if key.data is None:
                    self._drain_wakes()
                else:
                    self._serve(key.data, events)

    def _drain_wakes(self) -> None:
        with contextlib.suppress(OSError):  # nothing left
            while self._wake_read.recv(4096):
                pass

    def _serve(self, link: Link, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            link.flush()
        if not events & selectors.EVENT_READ:
            return
        try:
            data = link.socket.recv(1 << 16)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            link.cut(str(error))
            return
        if not data:
            link.cut("the API server closed it")
            return
        try:
            for kind, body in link.cutter.feed(data):
                self._handle(link, kind, body)
        except Exception:
            log.exception("modelnet: a request on the link failed")
            link.cut("a request on it failed")


class Listener:
    """The API server's end. `handle(wire, kind, body)` is called in the event loop, `gone(wire)` when an engine left."""

    def __init__(self, handle: Callable[[Wire, int, bytes], None], gone: Callable[[Wire], None]) -> None:
        self._handle = handle
        self._gone = gone
        self._server: asyncio.AbstractServer | None = None
        self._directory: str | None = None
        self.path = ""

    async def start(self) -> None:
        """Listen. The directory is made by `mkdtemp`: nobody else can enter it."""
        base = os.environ.get("VLLM_RPC_BASE_PATH") or None
        self._directory = tempfile.mkdtemp(prefix="modelnet-", dir=base)
        self.path = str(Path(self._directory) / "link")
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: Wire(self._handle, self._gone), self.path)

    async def aclose(self) -> None:
        if self._server is not None:
            self._server.close()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)


class Wire(asyncio.Protocol):
    """One engine process, seen from the API server. hello: what it said of itself."""

    def __init__(self, handle: Callable[[Wire, int, bytes], None], gone: Callable[[Wire], None]) -> None:
        self._handle = handle
        self._gone = gone
        self._cutter = Cutter()
        self._transport: Any = None
        self.hello: dict[str, Any] = {}

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for kind, body in self._cutter.feed(data):
                self._handle(self, kind, body)
        except Exception:
            log.exception("modelnet: a message from the engine could not be read")
            self._transport.abort()

    def connection_lost(self, _error: Exception | None) -> None:
        self._gone(self)

    def send(self, data: bytes) -> None:
        self._transport.write(data)
