"""Requests on a real connection: framed as they should be, or not at all."""

from __future__ import annotations

import asyncio
import random
import re
from dataclasses import dataclass

from fuzz_requests import Request

PATIENCE = 30.0
"""Seconds for the answer to a request that is whole."""
GLANCE = 0.02
"""Seconds for the answer to something that may never be one."""

GARBAGE = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /healthz HTTP/9.9\r\n\r\n",
    b"GET /healthz\r\n\r\n",
    b"GET  /healthz HTTP/1.1\r\n\r\n",
    b"GET /healthz HTTP/1.1\nhost: a\n\n",
    b"GET http://evil.example/healthz HTTP/1.1\r\nhost: a\r\n\r\n",
    b"CONNECT evil.example:443 HTTP/1.1\r\nhost: evil.example\r\n\r\n",
    b"POST /v1/models HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcdef",
    b"POST /v1/models HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /v1/models HTTP/1.1\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    b"POST /v1/models HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
    b"POST /v1/models HTTP/1.1\r\ncontent-length: 99999999999999999999999999\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nhost: a\r\n x: folded\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\n: empty\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nhost: a\x00b\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-key: a\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nupgrade: h2c\r\nconnection: upgrade, http2-settings\r\nhttp2-settings: AA\r\n\r\n",
    b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\n" + b"".join(b"x-%d: y\r\n" % n for n in range(300)) + b"\r\n",
    b"\r\n\r\n\r\n\r\n",
    b"\x00" * 500,
    b"GET /v1/models/\xff\xfe HTTP/1.1\r\nhost: a\r\n\r\n",
)
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")


@dataclass
class Heard:
    """What came back on a connection. whole: the request was framed as it should be, so it must have been answered."""

    statuses: list[int]
    data: bytes
    whole: bool
    sent: bytes


def framed(chance: random.Random, request: Request) -> tuple[bytes, bool]:
    """The bytes of a request, and whether they are one."""
    if chance.random() < 0.1:
        return _garbled(chance, chance.choice(GARBAGE)), False
    body = request.payload()
    names = {name.lower() for name, _ in request.headers}
    whole = (
        not names & {b"content-length", b"transfer-encoding", b"expect", b"connection", b"upgrade", b""}
        and all(_plain(name) and _sound(value) for name, value in request.headers)
        and request.method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD")
        and request.path.startswith(b"/")
        and _sound(request.path)
        and b" " not in request.path
        and b"#" not in request.path
        and sum(len(name) + len(value) for name, value in request.headers) + len(request.path) < 60_000
    )
    lines = [request.method.encode() + b" " + request.path + b" HTTP/1.1"]
    lines += [name + b": " + value for name, value in request.headers]
    how = chance.choice(("length", "length", "chunked", "short", "long", "1.0"))
    if how == "1.0":
        lines[0] = lines[0][:-1] + b"0"
    if how == "chunked":
        lines.append(b"transfer-encoding: chunked")
        size = chance.choice((1, 7, 1000)) if len(body) < 2000 else 10_000
        parts = [body[at : at + size] for at in range(0, len(body), size)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    elif body or request.method != "GET":
        length = len(body) + {"short": -3, "long": 5}.get(how, 0)
        whole = whole and how not in ("short", "long")
        lines.append(b"content-length: %d" % length)
    data = b"\r\n".join([*lines, b"", b""]) + body
    if chance.random() < 0.05:
        return _garbled(chance, data), False
    return data, whole


def _plain(name: bytes) -> bool:
    return re.fullmatch(rb"[A-Za-z0-9-]+", name) is not None


def _sound(value: bytes) -> bool:
    return all(0x20 <= byte < 0x7F for byte in value) and value == value.strip()


def _garbled(chance: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(chance.choice((0, 1, 3))):
        at = chance.randrange(len(out) + 1)
        if chance.random() < 0.5:
            out[at:at] = chance.choice((b"\r", b"\n", b"\r\n", b"\x00", b":", b" ", b"\xff", b"\r\n\r\n"))
        else:
            del out[at : at + chance.choice((1, 4, 30))]
    return bytes(out)


async def talk(port: int, chance: random.Random, data: bytes, whole: bool) -> Heard:
    """Send, and listen. Raises TimeoutError where the answer to a whole request does not come."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    heard = b""
    try:
        cut = chance.randrange(len(data) + 1) if chance.random() < 0.3 else len(data)
        writer.write(data[:cut])
        if cut < len(data):
            await asyncio.sleep(0)
            writer.write(data[cut:])
        async with asyncio.timeout(PATIENCE if whole else GLANCE):
            while not _answered(heard, head_only=data.startswith(b"HEAD ")):
                part = await reader.read(65_536)
                if not part:
                    break
                heard += part
    except TimeoutError:
        if whole:
            raise
    except OSError:  # cut by the server: what is too large is not read to its end
        whole = False
    finally:
        writer.transport.abort()
    statuses = [int(status) for status in _STATUS.findall(heard) if status != b"100"]  # that is no answer yet
    return Heard(statuses, heard, whole, data)


def _answered(heard: bytes, head_only: bool) -> bool:
    """Whether a first response is there to its end."""
    head, found, body = heard.partition(b"\r\n\r\n")
    if not found:
        return False
    if head_only or b"HTTP/1.1 204" in head:
        return True
    length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
    if length is not None:
        return len(body) >= int(length[1])
    return body.endswith(b"0\r\n\r\n")
