"""A transport that sends the head of a response together with its first bytes.

uvicorn writes them one after the other, and each write is a system call, a packet, and a wake-up of the client. The ASGI
specification lets a server keep the head until the body begins; here every body begins right behind its head.
"""

from __future__ import annotations

from typing import Any


class HeadHolder:
    """Keeps what is plainly the head of a response until the next write. transport: of asyncio."""

    __slots__ = (
        "_held",
        "_transport",
        "_write",
        "abort",
        "get_extra_info",
        "is_closing",
        "pause_reading",
        "resume_reading",
    )

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._held = b""
        self._write = transport.write
        # What is asked for often; the rest is looked up when it is.
        self.abort = transport.abort
        self.get_extra_info = transport.get_extra_info
        self.is_closing = transport.is_closing
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send, now or with the next write."""
        if self._held:
            data, self._held = self._held + data, b""
        elif data.startswith(b"HTTP/1.1 ") and data.endswith(b"\r\n\r\n") and not data.startswith(b"HTTP/1.1 100"):
            self._held = data
            return
        self._write(data)

    def flush(self) -> None:
        """Send what is kept: nothing comes behind it (an answer to HEAD)."""
        if self._held:
            held, self._held = self._held, b""
            self._write(held)

    def close(self) -> None:
        """Send what is kept, and close."""
        self.flush()
        self._transport.close()
