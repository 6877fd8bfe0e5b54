"""What is done to valid requests: to the tree of their JSON, to its bytes, to names, headers, methods and paths."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from fuzz_requests import CHAT, SAMPLING, WORDS, Pairs, Raw, Request, dumps, pairs, quoted, wiring

STRINGS = (
    *("", " ", "\x00", "a\x00b", "\ud800", "\udfff\ud800", "\ufeff", "\u202e", "\uffff", "🎉", "e\u0301" * 50, "null"),
    *("a|b", "a>b", "(((", "a" * 513, "a>" * 300 + "a", "|", "*", "a*1e999", "a*-1", "a*NaN", "s2p:", "s2p:a", ":"),
    *(
        "../../etc/passwd",
        "http://127.0.0.1:1/",
        "{{7*7}}",
        "${HOME}",
        "%s%n",
        "'; DROP TABLE requests; --",
        "<|im_end|>",
    ),
    *("\r\nx-evil: 1", "x" * 5000, "是" * 3000, "(" * 400, "(?:a+)+$", "[" * 200, "\\", "\u2028", "true", "1e9"),
)
NUMBERS = (
    *(0, -1, 1, 2, 7, 16.0, 0.5, -0.0, 2**31, 2**53 + 1, 2**63 - 1, -(2**63), 2**64, 1e308, 1e-320, 65535, 100000),
    *(Raw("1e400"), Raw("-1e400"), Raw("123456789012345678901234567890"), Raw("NaN"), Raw("Infinity"), Raw("0x10")),
    *(Raw("01"), Raw("1."), Raw("-"), Raw("1" * 4000), Raw("0." + "1" * 3000), Raw("1e99999999999"), Raw("2E0")),
)
HEADERS = (
    *(b"content-type", b"content-length", b"authorization", b"x-request-id", b"x-modelnet-timeout", b"accept"),
    *(b"x-modelnet-priority", b"x-modelnet-arm", b"traceparent", b"tracestate", b"origin", b"accept-encoding"),
    *(b"x-team", b"expect", b"content-encoding", b"cookie", b"access-control-request-headers", b"range", b"x-n\xff"),
    *(b"transfer-encoding", b"connection", b"host", b"openai-organization", b"forwarded", b"baggage", b"", b"te"),
)
HEADER_VALUES = (
    *(b"", b" ", b"\xff\xfe", b"\x00", b"1", b"-1", b"0", b"nan", b"inf", b"1e9", b"0x1f", b"\xc2\xb2", b"12" * 40),
    *(b"text/plain", b"application/json; charset=utf-16", b"application/json; charset=latin-1", b"multipart/form-data"),
    *(b"application/x-www-form-urlencoded", b"Bearer", b"Bearer ", b"bearer x", b"Basic YTpi", b"Bearer \xe2\x82\xac"),
    *(b"low", b"HIGH", b"plain", b"pair", b"nobody", b"null", b"http://localhost:3000", b"http://evil.example"),
    *(b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01", b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-00", b"ff-zz-1-1"),
    *(b"gzip, br", b"gzip", b"100-continue", b"bytes=0-1", b"a" * 128, b"a" * 20000, b"\t\x7f", b"a=b,c=\xe9", b"*"),
)
METHODS = ("GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "POST", "get", "BREW", "")
PATHS = (
    *(b"/", b"//", b"/v1", b"/v1/", b"/v1/chat/completions/", b"/v1/models/", b"/v1//models", b"/V1/models", b"*", b""),
    *(b"/v1/models/%", b"/v1/models/%zz", b"/v1/models/%00", b"/v1/models/%ff%fe", b"/v1/models/..%2f..%2fetc/passwd"),
    *(
        b"/v1/models/%ED%A0%80",
        b"/v1/models?limit=9&after=%00",
        b"/metrics?name[]=x",
        b"/docs/../admin/keys",
        b"/x;y=z",
    ),
    *(
        b"/v1/models/" + b"a" * 3000,
        b"/v1/models/" + b"(" * 500,
        b"/admin/experiments/%F0%9F%8E%89",
        b"/" + b"%2F" * 400,
    ),
    *(
        b"/admin/experiments/support?days=nan",
        b"/admin/experiments/support?days=1e999&metric=x&format=exe",
        b"/v1/files",
    ),
    *(
        b"/admin/experiments/support?days=%F0%9F",
        b"/admin/keys/%00",
        b"/admin/keys/" + b"z" * 2000,
        b"/v1/responses/%00",
    ),
)
FIELDS = (
    *SAMPLING,
    *CHAT,
    "model",
    "messages",
    "input",
    "prompt",
    "content",
    "role",
    "type",
    "id",
    "score",
    "echo",
    "suffix",
    "text",
)

Mutation = Callable[[random.Random, Request], Request]

LARGEST = 2_000_000
"""Characters of a text that was made long: several times what a body may have."""


def anything(chance: random.Random) -> Any:
    """A value of any kind."""
    kind = chance.random()
    if kind < 0.35:
        return chance.choice(STRINGS)
    if kind < 0.65:
        return chance.choice(NUMBERS)
    if kind < 0.75:
        return chance.choice((None, True, False))
    if kind < 0.85:
        return chance.choice(([], Pairs(), [None], [[]], Pairs([("a", 1)]), ["x"] * 2000, [0] * 3000, [Pairs()] * 3))
    if kind < 0.9:
        return deep(chance)
    fields = SAMPLING | CHAT
    return pairs(fields[chance.choice(list(fields))])


def deep(chance: random.Random) -> Any:
    """Arrays or objects in one another."""
    depth, value = chance.choice((5, 60, 120, 129, 260, 900, 1100)), chance.choice(("x", 1, None, []))
    for _ in range(depth):
        value = [value] if chance.random() < 0.5 else Pairs([("a", value)])
    return value


def _places(value: Any) -> list[tuple[Any, int]]:
    """Every place in the tree: what holds it, and where."""
    found: list[tuple[Any, int]] = []
    todo = [value]
    while todo and len(found) < 2000:
        holder = todo.pop()
        if isinstance(holder, Pairs | list):
            for index, item in enumerate(holder):
                found.append((holder, index))
                todo.append(item[1] if isinstance(holder, Pairs) else item)
    return found


def _copied(value: Any) -> Any:
    if isinstance(value, Pairs):
        return Pairs((key, _copied(item)) for key, item in value)
    return [_copied(item) for item in value] if isinstance(value, list) else value


def in_tree(chance: random.Random, request: Request) -> Request:
    """One change somewhere in the JSON."""
    if request.value is None:
        return request
    try:
        value = _copied(request.value)
    except RecursionError:  # it nests by now
        return request
    places = _places(value)
    if not places:
        return request.noting("another body", value=anything(chance))
    holder, index = chance.choice(places)
    what = chance.choice(("put", "put", "put", "word", "drop", "twice", "rename", "add", "wrap", "move", "grow"))
    key = holder[index][0] if isinstance(holder, Pairs) else None
    if what == "drop":
        del holder[index]
    elif what == "twice":
        holder.insert(chance.randrange(len(holder) + 1), (key, anything(chance)) if key is not None else holder[index])
    elif what == "rename" and key is not None:
        holder[index] = (chance.choice((*FIELDS, *STRINGS)), holder[index][1])
    elif what == "add":
        new = chance.choice(FIELDS)
        target = value if isinstance(value, Pairs) and chance.random() < 0.6 else holder
        target.append((new, anything(chance)) if isinstance(target, Pairs) else anything(chance))
    else:
        old = holder[index][1] if key is not None else holder[index]
        new = _instead(chance, what, old, key, places)
        holder[index] = (key, new) if key is not None else new
    return request.noting(f"{what} at {key!r}", value=value)


def _instead(chance: random.Random, what: str, old: Any, key: Any, places: list[tuple[Any, int]]) -> Any:
    if what == "word":
        if key == "model" or not isinstance(key, str) or key not in WORDS:
            return wiring(chance) if key == "model" else anything(chance)
        if key == "modelnet":
            return Pairs((name, anything(chance)) for name in WORDS[key] if chance.random() < 0.3)
        return chance.choice(WORDS[key])
    if what == "wrap":
        return [old] if chance.random() < 0.5 else Pairs([(chance.choice(FIELDS), old)])
    if what == "move":
        other, at = chance.choice(places)
        moved = other[at][1] if isinstance(other, Pairs) else other[at]
        return _copied(moved)
    if what == "grow" and isinstance(old, str):
        return (old * chance.choice((2, 50, 50, 50, 2000)))[:LARGEST]
    if what == "grow" and isinstance(old, Pairs | list) and old:
        return type(old)([*old] * chance.choice((2, 2, 20, 20, 20, 1100)))
    return anything(chance)


def in_name(chance: random.Random, request: Request) -> Request:
    """One change in the characters of the model's name."""
    name = wiring(chance)
    for _ in range(chance.choice((1, 1, 2, 5))):
        at = chance.randrange(len(name) + 1)
        new = chance.choice((*"()|>*:. -/,+0123456789e\t\n\x00\x7f\u00e9🎉", "a", "b", "far", "*2", "s2p:", "\ud800"))
        name = chance.choice(
            (name[:at] + new + name[at:], name[:at] + name[at + 1 :], name[:at] + new + name[at + 1 :])
        )
    if request.path.startswith(b"/v1/models/"):
        return request.noting("name", path=b"/v1/models/" + quoted(name, chance))
    if not isinstance(request.value, Pairs):
        return request
    return request.noting("name", value=Pairs((key, name if key == "model" else item) for key, item in request.value))


def in_bytes(chance: random.Random, request: Request) -> Request:
    """What is no longer a tree."""
    data = bytearray(request.payload())
    for _ in range(chance.choice((1, 1, 3, 10))):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(6):
            case 0:
                data[at:at] = chance.choice(
                    (b"\x00", b"\xff", b"\xed\xa0\x80", b'"', b"{", b"[", b"}", b",", b"\\u", b"\xef\xbb\xbf")
                )
            case 1:
                del data[at : at + chance.choice((1, 1, 5, 50))]
            case 2:
                data = data[:at]
            case 3 if data:
                data[at % len(data)] = chance.randrange(256)
            case 4:
                data += data[: chance.choice((1, 10, 1000))]
            case _:
                data = (
                    bytearray(bytes(data).decode("utf-8", "replace").encode("utf-16"))
                    if chance.random() < 0.1
                    else data
                )
    return request.noting("bytes", body=bytes(data))


def noise(chance: random.Random, request: Request) -> Request:
    """A body that never was anything."""
    choices = (
        b"",
        b"null",
        b"[]",
        b'""',
        b"0",
        b"{}",
        b"[" * 5000,
        b'{"a":' * 3000,
        b"\x1f\x8b\x08\x00",
        b"a=b&c=d",
        b"\xff" * 100,
    )
    body = chance.choice(
        (*choices, chance.randbytes(chance.randrange(300)), b" " * 5000, b'{"model":"a"' + b" " * 3000)
    )
    return request.noting("noise", body=body)


def in_headers(chance: random.Random, request: Request) -> Request:
    """One header more, less, twice, or other."""
    headers = list(request.headers)
    match chance.randrange(4):
        case 0 if headers:
            del headers[chance.randrange(len(headers))]
        case 1 if headers:
            at = chance.randrange(len(headers))
            headers[at] = (headers[at][0], chance.choice(HEADER_VALUES))
        case _:
            value = chance.choice((*HEADER_VALUES, chance.randbytes(chance.randrange(20))))
            headers.insert(chance.randrange(len(headers) + 1), (chance.choice(HEADERS), value))
    return request.noting(f"headers {headers[-1:]!r:.60}", headers=tuple(headers))


def in_line(chance: random.Random, request: Request) -> Request:
    """Another method or path."""
    if chance.random() < 0.5:
        return request.noting("method", method=chance.choice(METHODS))
    path = bytearray(chance.choice((*PATHS, request.path)))
    if chance.random() < 0.3:
        path[chance.randrange(len(path) + 1) : 0] = chance.choice((b"/", b"%", b"%2e", b"?", b"#", b"\xe9", b";", b" "))
    return request.noting("path", path=bytes(path))


_KINDS: tuple[Mutation, ...] = (*(in_tree,) * 8, *(in_name,) * 3, *(in_headers,) * 3, in_bytes, in_line)


def mutated(chance: random.Random, request: Request) -> Request:
    """One to four changes."""
    for _ in range(chance.choice((1, 1, 2, 2, 3, 4))):
        request = chance.choice(_KINDS)(chance, request)
    return noise(chance, request) if chance.random() < 0.02 else request


__all__ = ["dumps", "mutated"]
