"""The protocol between the gateway and the extension: binary frames in WebSocket messages, one frame a message.

The gateway and the extension are installed apart, so each has its own copy of this file; a test holds the two together.
Everything is little-endian. Every frame begins with a head of 12 bytes:

    u8 kind, u8 0, u16 0 (LOOKUP: places back), u32 session, u32 request

`session` is chosen by the client, new for every OPEN on a connection; 0 where a frame concerns no session. `request` is chosen
by the client and comes back in the answer. A session has at most one request under way; CLOSE needs no answer.

    kind        from    body
     1 HELLO    client  4s "MNGW", u16 lowest, u16 highest protocol version, f32 heartbeat in s, then who it is (UTF-8)
     2 WELCOME  server  u16 version chosen, then JSON: what the server is and can (see `Welcome`)
     3 REFUSED  server  u16 lowest, u16 highest protocol version, then why (UTF-8); the server closes afterwards
    16 OPEN     client  u16 k, u8 what (0: token ids, 1: messages), u8 0, u32 room in tokens (2^32-1: all there is), then
                        i32 ids or JSON {"messages": […], further fields of vLLM's /tokenize}
    17 OPENED   server  u32 tokens of the prompt; comes when the session has its place
    18 STEP     client  u32 ids to drop, then i32 ids to append; answered by TOPS of one row
    19 SCORE    client  as STEP, at least one id; answered by TOPS of as many rows
    20 TOPS     server  u16 rows, u16 k, then i32 ids [rows, k], f32 log-probabilities [rows, k] (nats, descending; ties:
                        smaller id first), f32 mass outside [rows]
    21 LOOKUP   client  i32 ids; its places are counted from where the session stands, into the draft just scored or over steps before
    22 VALUES   server  f32 log-probabilities (nats), as many as were asked for; none: they are not kept any more
    23 CLOSE    client  empty
    32 VOCAB    client  empty
    33 TABLE    server  u32 part, u32 parts, then a piece of the table; joined, the pieces are: u32 n, u32 number of ends,
                        i32 end ids, u32 lengths [n], the tokens' bytes, and the fingerprint (ASCII)
    48 FAIL     server  u16 code, u16 0, u32 tokens, u32 limit (0 where they say nothing), then a message (UTF-8)
    64 BEAT     both    empty; the client's say that it is there

HELLO and REFUSED never change their layout, so that any two versions can tell each other that they don't fit.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LOWEST, HIGHEST = 1, 1
"""The protocol versions that this side speaks."""

ROUTE = "/v1/modelnet/sessions"
"""Where the door is, behind the server's root."""

MAGIC = b"MNGW"
ALL_ROOM = 0xFFFFFFFF
MOST_K = 512
"""Most tokens that a distribution lists."""

# Codes of FAIL
REJECTED = 1  # the request makes no sense; the message says why
TOO_LONG = 2  # the ids (`tokens`) don't fit the context (`limit`)
OVERLOADED = 3  # no place, now
UNAVAILABLE = 4  # the engine died or doesn't answer
NO_SESSION = 5  # no such session (any more)
UNSUPPORTED = 6  # this server can't do that

_HEAD = struct.Struct("<BBHII")
_HELLO = struct.Struct("<4sHHf")
_RANGE = struct.Struct("<HH")
_OPEN = struct.Struct("<HBBI")
_FAIL = struct.Struct("<HHII")
_PART = struct.Struct("<II")
_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")

I4 = np.dtype("<i4")
F4 = np.dtype("<f4")


class FrameError(ValueError):
    """What came is no frame of this protocol."""


@dataclass(frozen=True)
class Hello:
    """The client begins. heartbeat: seconds between its signs of life."""

    lowest: int
    highest: int
    heartbeat: float
    agent: str

    def encode(self) -> bytes:
        body = _HELLO.pack(MAGIC, self.lowest, self.highest, self.heartbeat)
        return _head(1) + body + self.agent.encode()


@dataclass(frozen=True)
class Welcome:
    """info: `server` and `vllm` (versions), `model`, `context` (tokens), `sessions` (most at once; 0: `why_not` says why),
    `drafts` ("one pass" or "steps"), `recall` (LOOKUP can go back in one), `rewind` ("in place" or "reopen"), `fingerprint` (of
    the vocabulary), `prefix_cache` (tokens of a block that is kept for prompts which begin alike; 0: none is)."""

    version: int
    info: dict[str, Any]

    def encode(self) -> bytes:
        return _head(2) + _U16.pack(self.version) + json.dumps(self.info).encode()


@dataclass(frozen=True)
class Refused:
    """We do not understand each other, and why."""

    lowest: int
    highest: int
    message: str

    def encode(self) -> bytes:
        return _head(3) + _RANGE.pack(self.lowest, self.highest) + self.message.encode()


@dataclass(frozen=True)
class Open:
    """prompt: token ids, or the JSON object with the messages. room: tokens behind the prompt, None: all there is."""

    session: int
    request: int
    k: int
    room: int | None
    prompt: NDArray[np.int32] | dict[str, Any]

    def encode(self) -> bytes:
        told = isinstance(self.prompt, dict)
        room = ALL_ROOM if self.room is None else min(self.room, ALL_ROOM - 1)
        body = json.dumps(self.prompt).encode() if told else _i4(self.prompt)
        return _head(16, self.session, self.request) + _OPEN.pack(self.k, int(told), 0, room) + body


@dataclass(frozen=True)
class Opened:
    """The session has its place."""

    session: int
    request: int
    prompt_tokens: int

    def encode(self) -> bytes:
        return _head(17, self.session, self.request) + _U32.pack(self.prompt_tokens)


@dataclass(frozen=True)
class Step:
    """Drop, append, and tell what comes next."""

    session: int
    request: int
    drop: int
    ids: Any  # int32 [n]

    def encode(self) -> bytes:
        return _head(18, self.session, self.request) + _U32.pack(self.drop) + _i4(self.ids)


@dataclass(frozen=True)
class Score:
    """Drop, append, and tell what comes next after every appended id."""

    session: int
    request: int
    drop: int
    ids: Any  # int32 [n]

    def encode(self) -> bytes:
        return _head(19, self.session, self.request) + _U32.pack(self.drop) + _i4(self.ids)


@dataclass(frozen=True)
class Tops:
    """ids: int32 [rows, k]. logprobs: float32 [rows, k], nats. outside: float32 [rows], probability."""

    session: int
    request: int
    ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    outside: NDArray[np.float32]

    def encode(self) -> bytes:
        rows, k = self.ids.shape
        head = _head(20, self.session, self.request) + _RANGE.pack(rows, k)
        return b"".join((head, _i4(self.ids), _f4(self.logprobs), _f4(self.outside)))


@dataclass(frozen=True)
class Lookup:
    """Tell the log-probabilities of these ids at the current position, or so many places before it."""

    session: int
    request: int
    ids: Any  # int32 [n]
    back: int = 0

    def encode(self) -> bytes:
        return _head(21, self.session, self.request, self.back) + _i4(self.ids)


@dataclass(frozen=True)
class Values:
    """values: float32 [n], nats."""

    session: int
    request: int
    values: NDArray[np.float32]

    def encode(self) -> bytes:
        return _head(22, self.session, self.request) + _f4(self.values)


@dataclass(frozen=True)
class Close:
    """End a session."""

    session: int

    def encode(self) -> bytes:
        return _head(23, self.session)


@dataclass(frozen=True)
class Vocab:
    """Tell the vocabulary."""

    request: int

    def encode(self) -> bytes:
        return _head(32, 0, self.request)


@dataclass(frozen=True)
class TablePart:
    """A piece of `encode_table`."""

    request: int
    part: int
    parts: int
    data: bytes

    def encode(self) -> bytes:
        return _head(33, 0, self.request) + _PART.pack(self.part, self.parts) + self.data


@dataclass(frozen=True)
class Fail:
    """A request failed, for one of the reasons above."""

    session: int
    request: int
    code: int
    message: str
    tokens: int = 0
    limit: int = 0

    def encode(self) -> bytes:
        body = _FAIL.pack(self.code, 0, self.tokens, self.limit)
        return _head(48, self.session, self.request) + body + self.message.encode()


@dataclass(frozen=True)
class Beat:
    """A sign of life."""

    def encode(self) -> bytes:
        return _head(64)


Frame = (
    Hello | Welcome | Refused | Open | Opened | Step | Score | Tops | Lookup | Values | Close | Vocab | TablePart | Fail | Beat
)  # fmt: skip


def decode(data: bytes) -> Frame:  # noqa: C901 - one line a kind
    """The frame in a message. Arrays are views of `data`. Raises FrameError."""
    try:
        kind, _, back, session, request = _HEAD.unpack_from(data)
        at = _HEAD.size
        if kind == 1:
            magic, lowest, highest, heartbeat = _HELLO.unpack_from(data, at)
            if magic != MAGIC:
                raise FrameError("this is not the gateway's protocol")
            return Hello(lowest, highest, heartbeat, data[at + _HELLO.size :].decode())
        if kind == 2:
            return Welcome(_U16.unpack_from(data, at)[0], _object(data[at + 2 :]))
        if kind == 3:
            lowest, highest = _RANGE.unpack_from(data, at)
            return Refused(lowest, highest, data[at + _RANGE.size :].decode())
        if kind == 16:
            k, what, _, room = _OPEN.unpack_from(data, at)
            at += _OPEN.size
            prompt = _object(data[at:]) if what else _ids(data, at)
            return Open(session, request, k, None if room == ALL_ROOM else room, prompt)
        if kind == 17:
            return Opened(session, request, _U32.unpack_from(data, at)[0])
        if kind in (18, 19):
            (drop,) = _U32.unpack_from(data, at)
            return (Step if kind == 18 else Score)(session, request, drop, _ids(data, at + 4))
        if kind == 20:
            return _tops(data, at, session, request)
        if kind == 21:
            return Lookup(session, request, _ids(data, at), back)
        if kind == 22:
            return Values(session, request, np.frombuffer(data, F4, -1, at))
        if kind == 23:
            return Close(session)
        if kind == 32:
            return Vocab(request)
        if kind == 33:
            part, parts = _PART.unpack_from(data, at)
            return TablePart(request, part, parts, data[at + _PART.size :])
        if kind == 48:
            code, _, tokens, limit = _FAIL.unpack_from(data, at)
            return Fail(session, request, code, data[at + _FAIL.size :].decode(), tokens, limit)
        if kind == 64:
            return Beat()
    except (struct.error, ValueError) as error:
        raise FrameError(str(error)) from error
    raise FrameError(f"frames of kind {kind} are unknown here")


def agree(lowest: int, highest: int) -> int | None:
    """The version that both sides speak, None if there is none."""
    common = min(highest, HIGHEST)
    return common if common >= max(lowest, LOWEST) else None


def disagreement(gateway: tuple[int, int], extension: tuple[int, int]) -> str:
    """Says who is to be upgraded. The pairs are (lowest, highest)."""
    older = "gateway" if gateway[1] < extension[0] else "vLLM extension (modelnet-vllm)"
    said = f"The gateway speaks protocol {_span(gateway)}, the vLLM extension {_span(extension)}"
    return f"{said}: upgrade the {older}."


def encode_table(tokens: list[bytes], ends: list[int], fingerprint: str) -> bytes:
    """A vocabulary as the pieces of TABLE carry it."""
    lengths = np.fromiter(map(len, tokens), np.dtype("<u4"), len(tokens))
    head = _PART.pack(len(tokens), len(ends)) + _i4(sorted(ends))
    return b"".join((head, lengths.tobytes(), *tokens, fingerprint.encode()))


def decode_table(data: bytes) -> tuple[list[bytes], list[int], str]:
    """Tokens, end ids and fingerprint. Raises FrameError."""
    try:
        count, ends = _PART.unpack_from(data)
        at = _PART.size
        end_ids = np.frombuffer(data, I4, ends, at).tolist()
        at += 4 * ends
        lengths = np.frombuffer(data, np.dtype("<u4"), count, at).tolist()
        at += 4 * count
        tokens = []
        for length in lengths:
            tokens.append(data[at : at + length])
            at += length
        if at > len(data):
            raise FrameError("the table ends too early")
        return tokens, end_ids, data[at:].decode("ascii")
    except (struct.error, ValueError) as error:
        raise FrameError(str(error)) from error


def _head(kind: int, session: int = 0, request: int = 0, back: int = 0) -> bytes:
    return _HEAD.pack(kind, 0, back, session, request)


def _tops(data: bytes, at: int, session: int, request: int) -> Tops:
    rows, k = _RANGE.unpack_from(data, at)
    at += _RANGE.size
    cells = rows * k
    if len(data) != at + 8 * cells + 4 * rows:
        raise FrameError("a distribution of the wrong length")
    ids = np.frombuffer(data, I4, cells, at).reshape(rows, k)
    logprobs = np.frombuffer(data, F4, cells, at + 4 * cells).reshape(rows, k)
    return Tops(session, request, ids, logprobs, np.frombuffer(data, F4, rows, at + 8 * cells))


def _ids(data: bytes, at: int) -> NDArray[np.int32]:
    return np.frombuffer(data, I4, -1, at)


def _i4(ids: Any) -> bytes:
    return np.asarray(ids, I4).tobytes()


def _f4(values: Any) -> bytes:
    return np.asarray(values, F4).tobytes()


def _object(data: bytes) -> dict[str, Any]:
    found = json.loads(data)
    if not isinstance(found, dict):
        raise FrameError("not a JSON object")
    return found


def _span(versions: tuple[int, int]) -> str:
    return str(versions[0]) if versions[0] == versions[1] else f"{versions[0]} to {versions[1]}"
