"""From the bytes of an answer to its text and its tool calls, as they come. The form is that of `grammars`, and held by a guide."""

from __future__ import annotations

import codecs
import re
import secrets
import string
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from backends.types import TokenLogprob, ToolCallDelta
from strategies.engine.guiding.grammars import CALL_BEGIN, CALL_END
from strategies.engine.options import Constraint, Tools

_BEGIN, _END = CALL_BEGIN.encode(), CALL_END.encode()
_HEAD = re.compile(rb'\s*\{\s*"name"\s*:\s*"([^"\\]*)"\s*,\s*"arguments"\s*:\s*(?=\S)')
_MAY_BEGIN = tuple(_BEGIN[:length] for length in range(len(_BEGIN) - 1, 0, -1))
_ALPHABET = string.ascii_letters + string.digits

Fed = tuple[bytes, TokenLogprob | None]
"""Bytes of text, and what is known of the token that they are (the first part of)."""


@dataclass(frozen=True, slots=True)
class Parted:
    """What became certain. text: of the answer's text, in the portions in which it was fed. calls: parts of tool calls, after it."""

    text: tuple[Fed, ...] = ()
    calls: tuple[ToolCallDelta, ...] = ()


class CallsOut:
    """Parts an answer into text and calls.

    What may yet turn out to be the mark of a call is held back, and so is white space that nothing but it came before: an answer
    that is a call has no text. All text comes before the first call. A portion that was fed is given out whole, or cut where the
    mark begins.

    first_only: a mark counts only where the answer begins with it. So it is where the text is bound to a form of its own, in which the
    mark may be part of a string.
    """

    __slots__ = ("_arguments", "_blank", "_first_only", "_held", "_rest", "_state", "begun")

    def __init__(self, *, first_only: bool = False) -> None:
        self.begun = 0
        """Calls that have begun: their names are known."""
        self._first_only = first_only
        self._held: deque[Fed] = deque()
        self._blank = True  # no text but white space so far
        self._state: Callable[[], ToolCallDelta | None] = self._text
        self._rest = b""  # of a call: what is not read yet
        self._arguments = _Arguments(0)

    @property
    def calling(self) -> bool:
        """Whether the text is over: the mark of a call was seen."""
        return self._state != self._text

    def feed(self, data: bytes, token: TokenLogprob | None = None) -> Parted:
        """More of the answer; returns what is certain now."""
        if self._state == self._text:
            self._held.append((data, token))
            text = self._certain()
            return Parted(text, self._read()) if self.calling else Parted(text)
        self._rest += data
        return Parted(calls=self._read())

    def finish(self, *, cut: bool = False) -> Parted:
        """The answer is over: returns what was held back. A call that was cut stays so; cut: the beginning of a mark is one too."""
        held = tuple(self._held)
        if cut:
            joined = b"".join(data for data, _ in held)
            held = self._take(len(joined) - _begun(joined))
        self._held.clear()
        return Parted(held)

    def _certain(self) -> tuple[Fed, ...]:
        """Text that is no part of a mark, out of what is held; if a mark is complete, what stands behind it is to be read."""
        joined = b"".join(data for data, _ in self._held)
        if self._first_only and not (self._blank and (_BEGIN.startswith(joined) or joined.startswith(_BEGIN))):
            self._blank = False
            return self._take(len(joined))
        at = joined.find(_BEGIN)
        if at >= 0:
            self._rest = joined[at + len(_BEGIN) :]
            self._state = self._before_name
            text = () if self._blank and not joined[:at].strip() else self._take(at)
            self._held.clear()
            return text
        certain = len(joined) - _begun(joined)
        if self._blank and not joined[:certain].strip():
            return ()
        text = self._take(certain, whole=True)
        self._blank = self._blank and not text
        return text

    def _take(self, length: int, *, whole: bool = False) -> tuple[Fed, ...]:
        """The first `length` bytes that are held. whole: only portions that end there or before."""
        taken: list[Fed] = []
        while self._held and length > 0:
            data, token = self._held[0]
            if whole and len(data) > length:
                break
            self._held.popleft()
            taken.append((data[:length], token))
            length -= len(data)
        return tuple(taken)

    # Inside a call: each state reads what it can and names the next one, or the same if it needs more bytes.

    def _read(self) -> tuple[ToolCallDelta, ...]:
        deltas: list[ToolCallDelta] = []
        while True:
            state = self._state
            delta = state()
            if delta is not None:
                deltas.append(delta)
            if self._state == state:
                return tuple(deltas)

    def _text(self) -> None:
        """Nothing to read: what is fed is text."""

    def _before_name(self) -> ToolCallDelta | None:
        head = _HEAD.match(self._rest)
        if head is None:
            return None
        index, self.begun = self.begun, self.begun + 1
        self._rest = self._rest[head.end() :]
        self._arguments = _Arguments(index)
        self._state = self._in_arguments
        return ToolCallDelta(index, _new_id(), head[1].decode())

    def _in_arguments(self) -> ToolCallDelta | None:
        text, rest = self._arguments.feed(self._rest)
        self._rest = rest
        if self._arguments.complete:
            self._state = self._after_arguments
        return ToolCallDelta(self._arguments.index, arguments=text) if text else None

    def _after_arguments(self) -> None:
        _, mark, behind = self._rest.partition(_END)
        if mark:
            self._rest = behind
            self._state = self._between

    def _between(self) -> None:
        _, mark, behind = self._rest.partition(_BEGIN)
        if mark:
            self._rest = behind
            self._state = self._before_name


def _begun(text: bytes) -> int:
    """How many bytes at the end of a text may be the beginning of a mark."""
    return next((len(head) for head in _MAY_BEGIN if text.endswith(head)), 0)


class _Arguments:
    """One JSON value as it comes: where it ends, and its text. index: of the call."""

    __slots__ = ("_decoder", "_depth", "_escaped", "_quoted", "complete", "index")

    def __init__(self, index: int) -> None:
        self.index = index
        self.complete = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._depth = 0
        self._quoted = self._escaped = False

    def feed(self, data: bytes) -> tuple[str, bytes]:
        """The value's text in these bytes, and the bytes behind its end."""
        for at, byte in enumerate(data):
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._escaped = byte == 0x5C
                self._quoted = byte != 0x22
            elif byte == 0x22:
                self._quoted = True
            elif byte in b"{[":
                self._depth += 1
            elif byte in b"}]":
                self._depth -= 1
                if self._depth == 0:
                    self.complete = True
                    return self._decoder.decode(data[: at + 1], final=True), data[at + 1 :]
        return self._decoder.decode(data), b""


def calls_of(constraint: Constraint | None, tools: Tools | None) -> CallsOut | None:
    """What parts an answer of this kind; None: it is all text."""
    if tools is None or not tools.tools or tools.choice == "none":
        return None
    return CallsOut(first_only=constraint is not None)


def finish_of(calls: CallsOut | None, reason: str) -> str:
    """How an answer ended that ended for this reason: calls that are whole are an end of their own."""
    return "tool_calls" if reason == "stop" and calls is not None and calls.begun else reason


def _new_id() -> str:
    return "call_" + "".join(secrets.choice(_ALPHABET) for _ in range(24))
