"""Server-sent events out of bytes, however the bytes are cut.

Follows the WHATWG rules: lines end with \\n, \\r\\n or \\r; `data` lines of one event are joined by \\n; one space behind the
colon is dropped; lines that begin with a colon are comments; a byte-order mark at the beginning is dropped. Two things differ
on purpose: an event whose closing blank line is missing at the end is still given by `finish` (servers forget it), and
sizes are limited. Cost: linear in the bytes, whatever their cutting.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_LINE_END = re.compile(rb"\r\n?|\n")
_BOM = b"\xef\xbb\xbf"


class SSEError(ValueError):
    """Not a stream of events: a line or event beyond the limit, or bytes that are no UTF-8."""


@dataclass(frozen=True, slots=True)
class SSEEvent:
    """One event. name: of its `event` field, "" where it has none."""

    data: str
    name: str = ""


class SSEParser:
    """Feed it bytes. `limit`: most bytes of one line, and of one event's data."""

    def __init__(self, limit: int = 4 * 1024 * 1024) -> None:
        self._limit = limit
        self._partial: list[bytes] = []  # the unfinished line
        self._size = 0
        self._after_cr = False  # the last byte was \r: a \n now belongs to it
        self._first = True
        self._data: list[bytes] = []  # the unfinished event
        self._data_size = 0
        self._name = b""

    def feed(self, chunk: bytes) -> list[SSEEvent]:
        """The events that are complete with these bytes. Raises SSEError."""
        if not chunk:
            return []
        if self._after_cr and chunk[:1] == b"\n":
            chunk = chunk[1:]
        self._after_cr = chunk[-1:] == b"\r"
        events: list[SSEEvent] = []
        begin = 0
        for end in _LINE_END.finditer(chunk):
            self._hold(chunk[begin : end.start()])
            begin = end.end()
            if event := self._line():
                events.append(event)
        self._hold(chunk[begin:])
        return events

    def finish(self) -> list[SSEEvent]:
        """The stream is over: what was held back. Raises SSEError."""
        last = [self._line() if self._partial else None, self._dispatch()]
        return [event for event in last if event]

    def _hold(self, part: bytes) -> None:
        if part:
            self._partial.append(part)
            self._size += len(part)
            if self._size > self._limit:
                raise SSEError("a line is too long")

    def _line(self) -> SSEEvent | None:
        line = b"".join(self._partial)
        self._partial.clear()
        self._size = 0
        if self._first:
            self._first = False
            line = line.removeprefix(_BOM)
        if not line:
            return self._dispatch()
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
            self._data_size += len(value) + 1
            if self._data_size > self._limit:
                raise SSEError("an event is too long")
        elif field == b"event":
            self._name = value
        return None

    def _dispatch(self) -> SSEEvent | None:
        data, name = self._data, self._name
        self._data, self._data_size, self._name = [], 0, b""
        if not data:
            return None
        try:
            return SSEEvent(b"\n".join(data).decode(), name.decode())
        except UnicodeDecodeError as error:
            raise SSEError("an event is not UTF-8") from error
